from __future__ import annotations

import pytest
import torch

from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import compare, evaluate
from relocal_pyg.evaluation.consistency import by_disagreement, disagreement, halves, to_markdown
from relocal_pyg.evaluation.statistics import bootstrap_interval
from relocal_pyg.models import ContrastMatcher, CosineMatcher, DiagonalMatcher
from relocal_pyg.training.recipe import draw_pairs


@pytest.fixture(scope="module")
def asked():
    sizes = {"train_classes": 2, "val_classes": 2, "test_classes": 2}
    protocol = synthetic(SyntheticConfig(**sizes, train_videos=2, val_videos=2, test_videos=4))
    return protocol, draw_pairs(protocol, "test", 6)


def test_disagreement_is_one_minus_spearman_over_the_proposals(asked):
    protocol, pairs = asked
    found = disagreement(protocol, pairs)
    for pair, amount in zip(pairs.pairs, found.tolist(), strict=True):
        proposals = protocol.proposals(pair.reference, pair.query).float()
        clip, around = protocol.query(pair.query), protocol.reference(pair.query)
        tables = []
        for model in (CosineMatcher(), DiagonalMatcher()):
            ranking = model.rank(
                clip, protocol.reference(pair.reference), proposals, query_video=around
            )
            place = {tuple(m): n for n, m in enumerate(ranking.moments.tolist())}
            tables.append([place[tuple(m)] for m in proposals.tolist()])
        count = len(proposals)
        squares = sum((a - b) ** 2 for a, b in zip(*tables, strict=True))
        # Spearman's own formula, which holds where there are no ties.
        assert amount == pytest.approx(6 * squares / (count * (count**2 - 1)), abs=1e-6)


@pytest.mark.slow
def test_what_both_halves_share_widens_no_interval():
    generator = torch.Generator().manual_seed(0)
    amounts = torch.rand(60, generator=generator, dtype=torch.float64)
    videos = [str(number // 3) for number in range(60)]
    _, behind = halves(amounts, -torch.ones(60, dtype=torch.float64))
    assert behind.eq(0).all()  # one behind on every pair: no more here than there
    lead = torch.randint(-1, 2, (60,), generator=generator).double() - 0.7
    larger, values = halves(amounts, lead)
    assert values.mean() == pytest.approx(lead[larger].mean() - lead[~larger].mean())
    # The bootstrap as it is defined: both means anew for each draw of videos.
    drawn = []
    for _ in range(2000):
        names = torch.randint(20, (20,), generator=generator)
        at = torch.cat([torch.arange(3 * name, 3 * name + 3) for name in names.tolist()])
        drawn.append(lead[at][larger[at]].mean() - lead[at][~larger[at]].mean())
    wanted = torch.stack(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    found = torch.stack(bootstrap_interval(values, videos, samples=2000))
    assert (found - wanted).abs().max() < 0.1


@pytest.mark.slow
def test_halves_and_the_difference_of_leads_by_hand(asked):
    protocol, pairs = asked
    models = (ContrastMatcher(), CosineMatcher())
    table = compare([evaluate(m, protocol, pairs, progress=False) for m in models])
    amounts = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7], dtype=torch.float64)
    rows = {row.title: row for row in by_disagreement(table, amounts, "Contrast matcher")}
    ours, theirs = (
        [float(t > 0.5) for t in table.evaluations[m.title][0].tious.tolist()] for m in models
    )
    differ, agree = (1, 3, 5), (0, 2, 4)
    lead = [sum(theirs[n] - ours[n] for n in half) / 3 for half in (differ, agree)]
    row = rows["Cosine of means"]
    assert row.gain.value == pytest.approx(lead[0] - lead[1])
    assert row.agree == pytest.approx(sum(theirs[n] for n in agree) / 3)
    assert rows["Contrast matcher"].gain.value == 0
    text = to_markdown(amounts, pairs, [row._replace(title="a|b")], "Contrast matcher")
    assert "| a\\|b | " in text
    assert "clip: 0.50" in text
    none = to_markdown(torch.zeros(6), pairs, [], "Contrast matcher")
    assert "clip: 0.00 (95 % 0.00 to 0.00)" in none
    for wrong, words in (
        ((amounts, "nobody"), "no system 'nobody'"),
        ((amounts[:5], "Contrast matcher"), "5 amounts"),
        ((torch.ones(6), "Contrast matcher"), "alike"),
    ):
        with pytest.raises(UsageError, match=words):
            by_disagreement(table, *wrong)
