"""Telling references that hold the action from references that do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from relocal_pyg.data.items import Pair, Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import RelocalError, UsageError
from relocal_pyg.evaluation import Evaluation, compare, evaluate, to_json, to_latex, to_markdown
from relocal_pyg.evaluation.results import LENGTH
from relocal_pyg.evaluation.statistics import auroc_interval, calibration_error
from relocal_pyg.evaluation.tables import to_text
from relocal_pyg.models.base import Ranking


@pytest.fixture
def nulls(small_protocol: Protocol) -> PairList:
    """Each class looked for in a reference of the other one, half of them cut short."""
    run_a, run_b, jump_a, jump_b = (
        replace(i, item_id=f"{i.item_id} nothing", moment=(i.context[0],) * 2, moments=())
        for i in small_protocol.splits["test"]
    )
    short = replace(run_a, item_id="v0@10-40 free of jump", context=(10, 40))
    asked = small_protocol.splits["test"]
    others = (jump_a, jump_b, short, run_b)
    pairs = tuple(Pair(query, other) for query, other in zip(asked, others, strict=True))
    return PairList(pairs, "small", "test", 6, "video")


@pytest.fixture
def asked(
    small_protocol: Protocol, small_pairs: PairList, nulls: PairList, scripted: Any
) -> Evaluation:
    moments = torch.tensor([[0.0, 10.0], [10.0, 20.0]])
    best = [0.9, 0.4, 0.8, 0.6, 0.5, 0.6, 0.1, 0.2]
    model = scripted([Ranking(moments, torch.tensor([b, b / 2]), moments) for b in best])
    return evaluate(model, small_protocol, small_pairs, nulls=nulls, progress=False)


def test_null_references_are_answered_and_not_scored(
    asked: Evaluation, small_protocol: Protocol, small_pairs: PairList, nulls: PairList
) -> None:
    assert [round(null.score, 6) for null in asked.nulls] == [0.5, 0.6, 0.1, 0.2]
    assert [null.reference_steps for null in asked.nulls] == [40, 40, 30, 40]
    assert len(asked) == 4
    assert asked.nulls_sha256 == nulls.sha256
    assert asked.nulls[0].presence is None
    assert {(null.tiou, null.truths, null.oracle) for null in asked.nulls} == {(0, (), 0)}


def test_the_table_gives_the_area_and_the_row_of_lengths(asked: Evaluation) -> None:
    score, length = compare([asked], samples=50).presence
    held = [record.scores[0] for record in asked.records]
    empty = [null.score for null in asked.nulls]
    # Of 16 comparisons 0.4 loses two, 0.6 loses none and ties once.
    wins = sum((h > e) + (h == e) / 2 for h in held for e in empty)
    assert wins == 13.5
    assert score.auroc.value == 13.5 / 16
    assert score.auroc.low <= score.auroc.value <= score.auroc.high
    assert (score.title, score.by, score.num_pairs, score.num_nulls) == ("Scripted", "score", 4, 4)
    assert score.presence_error is None
    assert (length.title, length.auroc.value) == (LENGTH, 10 / 16)


def test_probabilities_get_a_row_and_their_calibration_error(asked: Evaluation) -> None:
    def tell(record: Any, probability: float, presence: float) -> Any:
        return replace(record, probability=probability, presence=presence)

    pairs = zip(asked.records, (0.1, 0.2, 0.9, 0.9), (0.9, 0.9, 0.9, 0.5), strict=True)
    sure = replace(
        asked,
        title="Sure",
        records=tuple(tell(*each) for each in pairs),
        nulls=tuple(tell(null, 0.1, 0.1) for null in asked.nulls),
    )
    rows = {(row.title, row.by): row for row in compare([asked, sure], samples=50).presence}
    row = rows["Sure", "probability"]
    assert row.auroc.value == 1
    # One bin of eight: 3.6 expected and 4 held; of the answers the second is right (tIoU 1).
    assert row.presence_error[0] == pytest.approx((4 - 3.6) / 8)
    right = sum(record.tiou > 0.5 for record in asked.records)
    assert row.moment_error[0] == pytest.approx(abs(2.5 - right) / 8)
    assert ("Scripted", "probability") not in rows
    # With one null reference its query alone counts.
    fewer = replace(sure, nulls=(replace(sure.nulls[0], presence=0.4),))
    row = next(row for row in compare([fewer], samples=50).presence if row.by == "probability")
    own = next(r for r in sure.records if r.query_id == sure.nulls[0].query_id)
    assert row.presence_error[0] == pytest.approx(abs(1 - own.presence - 0.4) / 2, abs=1e-6)
    assert row.presence_error[0] > 0.1


def test_every_form_of_the_table_holds_it(asked: Evaluation, longest: Any) -> None:
    comparison = compare([replace(asked, title="A_b|c <i>")], samples=50)
    for form in (to_text, to_markdown, to_latex):
        text = form(comparison)
        assert "Does the reference hold it at all?" in text
        assert "of which 1 are" in text
        assert "84.4" in text
    assert r"A\_b|c \textless{}i" in to_latex(comparison)
    assert r"A_b\|c &lt;i" in to_markdown(comparison)
    content = json.loads(to_json(comparison))
    assert [row["by"] for row in content["presence"]] == ["score", "length"]


def test_without_null_references_there_is_no_second_table(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    comparison = compare(
        [evaluate(longest, small_protocol, small_pairs, progress=False)], samples=20
    )
    assert comparison.presence == ()
    assert "Does the reference" not in to_text(comparison)


def test_lists_of_null_references_are_not_mixed(asked: Evaluation) -> None:
    other = replace(asked, title="Other", nulls_sha256="0" * 64)
    with pytest.raises(UsageError, match="without the action differ"):
        compare([asked, other])


def test_it_is_kept_and_read_again(asked: Evaluation, tmp_path: Path) -> None:
    asked.save(tmp_path)
    assert Evaluation.load(tmp_path) == asked
    content = json.loads((tmp_path / "evaluation.json").read_text())
    del content["nulls"][0]["video_id"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(RelocalError, match="not an evaluation"):
        Evaluation.load(tmp_path)


def test_recall_of_all_instances(
    small_protocol: Protocol, small_pairs: PairList, scripted: Any
) -> None:
    # The truths of v1 are 10-20 and 30-34; the others have one each: 0-10, 0-40 and 5-35.
    moments = torch.tensor([[10.0, 20.0], [0.0, 40.0], [22.0, 29.0], [30.0, 33.0], [36.0, 39.0]])
    model = scripted([Ranking(moments, torch.arange(5, 0, -1).float(), moments)])
    evaluation = evaluate(model, small_protocol, small_pairs, progress=False)
    assert [record.instances_met for record in evaluation.records] == [1, 0, 1, 1]
    two = scripted([Ranking(moments[:2], torch.tensor([2.0, 1.0]), moments[:2])])
    again = evaluate(two, small_protocol, small_pairs, progress=False)
    assert again.records[0].instances_met == 0.5
    summary = again.summary(samples=20)["scores"]
    assert summary["all@5@0.5"]["value"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert summary["R@5@0.5"]["value"] == 0.75


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_that_of_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that there are ties.
    held = torch.randint(3, 10, (1, 37), generator=generator) / 10
    empty = torch.randint(0, 8, (1, 23), generator=generator) / 10
    value, low, high = auroc_interval(held, empty, list(range(37)), list(range(37, 60)))
    truth = torch.tensor([1] * 37 + [0] * 23)
    assert value.item() == pytest.approx(
        binary_auroc(torch.cat([held[0], empty[0]]), truth).item(), abs=1e-6
    )
    assert low < value < high


def test_the_interval_resamples_videos_as_a_loop_would() -> None:
    rng = np.random.default_rng(0)
    held, empty = rng.normal(0.7, 1, 30), rng.normal(0, 1, 30)
    places, other = rng.integers(0, 8, 30), rng.integers(0, 8, 30)
    areas = []
    for _ in range(2000):
        drawn = rng.integers(0, 8, 8)
        a = np.concatenate([held[places == video] for video in drawn])
        b = np.concatenate([empty[other == video] for video in drawn])
        areas.append(np.mean(a[:, None] > b))
    _, low, high = auroc_interval(
        torch.tensor(held)[None],
        torch.tensor(empty)[None],
        places.tolist(),
        other.tolist(),
        samples=4000,
    )
    assert [low.item(), high.item()] == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.02)


def test_seeds_are_averaged_and_one_video_has_no_interval() -> None:
    held, empty = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    value, low, high = auroc_interval(held, empty, ["a", "b"], ["b"])
    assert (value.item(), low.item(), high.item()) == (0.5, 0, 1)
    alone = auroc_interval(held[:1], empty[:1], ["a", "a"], ["a"])
    assert torch.isnan(alone[1])
    # Few draws of two videos, one of each kind: in some none has both.
    few = [
        auroc_interval(held[:1, :1], empty[:1], ["a"], ["b"], samples=1, seed=n) for n in range(9)
    ]
    assert {str(low.item()) for _, low, _ in few} == {"nan", "1.0"}
    with pytest.raises(UsageError, match="wanted"):
        auroc_interval(held[:, :0], empty, [], ["b"])
    with pytest.raises(UsageError, match="no number"):
        auroc_interval(held * torch.nan, empty, ["a", "b"], ["b"])
    with pytest.raises(UsageError, match="one cluster"):
        auroc_interval(held, empty, ["a"], ["b"])


def test_calibration_error_by_hand_and_beside_torchmetrics() -> None:
    rng = np.random.default_rng(1)
    probabilities = torch.tensor(rng.uniform(size=400))
    exact = torch.tensor(rng.uniform(size=400)) < probabilities
    good, bad = calibration_error(probabilities, exact), calibration_error(probabilities, ~exact)
    assert good[0] == pytest.approx(good[1], abs=0.025)
    assert bad[0] > 8 * good[1]
    # With values spread evenly, bins of equal count are nearly those of equal width.
    even = (torch.arange(400) + 0.5) / 400
    outcomes = torch.tensor(rng.uniform(size=400)) < even**2
    wanted = binary_calibration_error(even, outcomes.long(), n_bins=10)
    assert calibration_error(even, outcomes)[0] == pytest.approx(wanted.item(), abs=1e-6)


def test_few_answers_share_one_bin() -> None:
    error = calibration_error(torch.tensor([0.2, 0.6, 1.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert error[0] == pytest.approx(abs(1.8 - 2) / 3)
