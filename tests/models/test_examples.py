"""Several examples, counter-examples, and every occurrence with its count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.models import ByExamples, Calibrated, ContrastMatcher, Example, MultiGraphMatcher
from relocal_pyg.models.examples import separate, trace, usual_length
from relocal_pyg.models.occurrences import count_of, occurrences
from relocal_pyg.moments import tiou
from relocal_pyg.search import SearchIndex, build_index


def film(draw: torch.Generator, places: list[int], size: int = 8, steps: int = 160) -> torch.Tensor:
    """A video in which one movement of ``size`` steps begins at each of some places."""
    channels = 24
    own, noise = (torch.randn(1 if n == 0 else steps, channels, generator=draw) for n in (0, 1))
    rows = own + 0.4 * noise
    turn = torch.linspace(0, 2 * torch.pi, size + 1)[:-1]
    movement = torch.zeros(size, channels)
    movement[:, 0], movement[:, 1], movement[:, 2] = 3, 2 * turn.cos(), 2 * turn.sin()
    for place in places:
        rows[place : place + size] += movement
    return rows


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_the_logistic_regression_is_that_of_scikit_learn(draw):
    linear = pytest.importorskip("sklearn.linear_model")
    for width in (5, 90):
        good = functional.normalize(torch.randn(20, width, generator=draw) + 0.5, dim=1)
        rest = functional.normalize(torch.randn(50, width, generator=draw), dim=1)
        fitted = linear.LogisticRegression(C=1, class_weight="balanced", tol=1e-8).fit(
            torch.cat([good, rest]).numpy(), [1] * 20 + [0] * 50
        )
        wanted = torch.from_numpy(fitted.coef_[0]).float()
        cosine = functional.cosine_similarity(separate(good, rest), wanted, dim=0)
        assert float(cosine) > 0.9999


def test_movements_apart_and_back_to_back_are_found_once_each(draw):
    places = [10, 40, 48, 56, 90, 140]
    video, reference = film(draw, [30]), film(draw, places)
    found, count = occurrences(ContrastMatcher(), video[30:38], reference, query_video=video)
    spans = torch.tensor([[each.start, each.end] for each in found])
    truths = torch.tensor([[place, place + 8] for place in places])
    assert count.number == len(found) == len(places)
    assert ((tiou(spans[:, None], truths[None]) > 0.5).sum(dim=0) == 1).all()
    assert count.low <= len(places) <= count.high


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ((9.0, 17.0, False), [90]),
        ((9.0, 17.0, True), [90]),
        ((16.0, 24.0, False), [10, 90]),  # a no to one leaves another that shares its edge
        ((16.0, 24.0, True), [90]),
    ],
)
def test_stretches_that_are_no_answers_are_not_counted(draw, said, left):
    video, reference = film(draw, [30]), film(draw, [10, 90])
    found, count = occurrences(
        ContrastMatcher(), video[30:38], reference, query_video=video, without=[said]
    )
    assert sorted(round(each.start, -1) for each in found) == left
    assert count.number == len(left)


def test_a_film_without_the_action_has_no_occurrence(draw):
    video, reference = film(draw, [30]), film(draw, [])
    found, count = occurrences(ContrastMatcher(), video[30:38], reference, query_video=video)
    assert count.low == 0
    assert count.expected < 1.5
    assert len(found) <= 1


def test_an_action_that_the_querys_video_lacks_is_no_occurrence(draw):
    # Four actions, of which the query's video shows three: the fourth is like none of them.
    wave, jacks, bend, walk = torch.eye(4).repeat_interleave(20, dim=0).split(20)
    video, reference = torch.cat([wave, jacks, bend]), torch.cat([walk, wave, jacks, bend, walk])
    video, reference = (
        rows + 0.05 * torch.randn(len(rows), 4, generator=draw) for rows in (video, reference)
    )
    found, count = occurrences(ContrastMatcher(), video[20:40], reference, query_video=video)
    assert [(each.start, each.end) for each in found] == [(40, 60)]
    assert count.number == 1


@pytest.mark.parametrize("noise", [0.1, 0.6])
def test_a_query_that_repeats_itself_stands_for_any_number_of_its_movements(draw, noise):
    turn = torch.arange(8) * (2 * torch.pi / 8)
    constant = torch.ones(8)
    movement = torch.stack([constant, turn.cos(), turn.sin(), *torch.zeros(3, 8)], dim=1)
    between = torch.eye(6)[3:].repeat_interleave(10, dim=0)

    def filmed(*times):
        """Stretches of so many movements, and where they are."""
        parts, places, length = [between], [], len(between)
        for number in times:
            places.append((length, length + 8 * number))
            parts += [movement.repeat(number, 1), between]
            length += 8 * number + len(between)
        rows = torch.cat(parts)
        return rows + noise * torch.randn(len(rows), 6, generator=draw) / 6**0.5, places

    video, [(start, end)] = filmed(4)
    reference, places = filmed(4, 1, 6, 2)
    query = video[start:end]
    found, count = occurrences(ContrastMatcher(), query, reference, query_video=video)
    assert count.number == 4
    found = sorted((each.start, each.end) for each in found)
    assert torch.tensor(found) == pytest.approx(torch.tensor(places), abs=1.5)


def test_the_count_is_the_distribution_of_all_outcomes():
    chances = [0.95, 0.8, 0.6, 0.3]
    odds = np.zeros(5)
    for outcome in itertools.product((0, 1), repeat=4):
        odds[sum(outcome)] += np.prod(
            [c if o else 1 - c for c, o in zip(chances, outcome, strict=True)]
        )
    count = count_of(chances, 0.5)
    assert count.number == 3
    assert count.expected == pytest.approx(sum(chances))
    assert odds[: count.low].sum() <= 0.025
    assert odds[count.high + 1 :].sum() <= 0.025


def test_examples_say_how_long_a_moment_is():
    """Normal logarithms; two lengths by half a logarithm off stand beside those of the examples."""
    windows = torch.tensor([[0.0, 4.0], [10.0, 18.0], [3.0, 40.0]])
    for lengths, mean, variance in (
        ([8], np.log(8), 0.25),
        ([4, 16], np.log(8), (0.5 + 2 * np.log(2) ** 2) / 3),
        ([8] * 19, np.log(8), 0.5 / 20),
    ):
        normal = torch.distributions.Normal(mean, variance**0.5)
        likely = normal.log_prob((windows[:, 1] - windows[:, 0]).double().log())
        told = usual_length([Example(torch.ones(length, 3)) for length in lengths], windows)
        wanted = (likely - normal.log_prob(torch.tensor(mean))) / 2
        assert told.tolist() == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-7)


def test_of_two_places_alike_the_one_as_long_as_the_examples_comes_first():
    rest, action = torch.eye(3)[:2].repeat_interleave(24, dim=0).split(24)
    rows = torch.cat([rest[:12], action[:6], rest[:12], action, rest[:12]])
    windows, query = torch.tensor([[12.0, 18.0], [30.0, 54.0]]), action[:6]
    plain = ContrastMatcher().rank(query, rows, windows)
    assert plain.scores.tolist() == pytest.approx([float(plain.scores[0])] * 2, abs=1e-6)
    ranked = ByExamples(ContrastMatcher(), [Example(query)]).rank(query, rows, windows.flip(0))
    assert ranked.moments.tolist() == windows.tolist()


def test_a_counter_example_takes_what_it_shows_from_the_front(draw):
    """Two things happen in the reference; the query shows both, and one of them is not meant."""
    reference = 0.2 * torch.randn(100, 12, generator=draw)
    reference[20:28, 0] += 3
    reference[70:78, 1] += 3
    query = 0.2 * torch.randn(8, 12, generator=draw)
    query[:, :2] += torch.tensor([2.0, 3.0])
    other = torch.zeros(6, 12)
    other[:, 1] = 3
    plain = ContrastMatcher().localize(query, reference, top_k=1)[0]
    assert plain.start == pytest.approx(70, abs=2)
    direction = trace([Example(query), Example(other, good=False)], reference).similarity
    alone = trace([Example(query)], reference).similarity
    lost = [
        float(alone[span].mean() - direction[span].mean())
        for span in (slice(20, 28), slice(70, 78))
    ]
    assert lost[1] > lost[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [ContrastMatcher(), MultiGraphMatcher(hidden_channels=8, num_steps=8).eval()]
)
def test_examples_serve_any_model(model, draw):
    reference = film(draw, [50])
    films = [film(draw, [30]) for _ in range(3)]
    examples = [Example(each[30:38], each) for each in films]
    told = Calibrated(ByExamples(model, examples[1:]))
    found = told.localize(examples[0].rows, reference, query_video=films[0], top_k=3)
    assert float(tiou([found[0].start, found[0].end], [50, 58])) > 0.5
    assert found[0].probability is not None


def test_the_order_of_examples_decides_nothing_of_the_direction(draw):
    reference = film(draw, [50])
    films = [film(draw, [30]) for _ in range(3)]
    examples = [Example(each[30:38], each) for each in films]
    forth, back = (trace(each, reference).similarity for each in (examples, examples[::-1]))
    torch.testing.assert_close(forth, back, atol=1e-3, rtol=0)


def test_counter_examples_alone_are_refused(draw):
    with pytest.raises(UsageError, match="only counter-examples"):
        trace([Example(torch.rand(4, 3), good=False)], torch.rand(9, 3))


@pytest.mark.slow
def test_examples_may_be_any_arrays_of_one_width(draw):
    video, reference = film(draw, [30]), film(draw, [10, 90])
    shown = video[30:38]
    wanted = ByExamples(ContrastMatcher(), [Example(shown, video)]).localize(shown, reference)
    for kind in (lambda rows: rows.numpy(), torch.Tensor.double, torch.Tensor.tolist):
        model = ByExamples(ContrastMatcher(), [Example(kind(shown), kind(video))])
        assert model.localize(shown, reference) == wanted
    whole = (video * 100).int()
    assert ByExamples(ContrastMatcher(), [Example(whole[30:38], whole)]).localize(shown, reference)
    for example in (Example(shown[:, :3]), Example(shown, video[:, :3])):
        with pytest.raises(FeatureError, match="3 channels"):
            ByExamples(ContrastMatcher(), [example]).localize(shown, reference)


def test_occurrences_take_arrays_and_check_their_numbers(draw):
    video, reference = film(draw, [30]), film(draw, [10, 90])
    wanted = occurrences(ContrastMatcher(), video[30:38], reference)
    assert occurrences(ContrastMatcher(), video[30:38].numpy(), reference.numpy()) == wanted
    for options in ({"least": 2.0}, {"least": float("nan")}, {"seconds_per_step": 0.0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            occurrences(ContrastMatcher(), video[30:38], reference, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gradients", "inference"])
def test_answers_leave_the_callers_gradients_alone(draw, mode, tmp_path):
    """Features that come out of somebody's own network, or in its inference mode."""
    own = torch.nn.Linear(24, 24)
    with torch.inference_mode(mode == "inference"):
        video, reference = own(film(draw, [30])), own(film(draw, [10, 90]))
        query = video[30:38]
        build_index(tmp_path, ContrastMatcher(), [("a", reference.detach(), 1.0)])
        index, more = SearchIndex(tmp_path, ContrastMatcher()), [Example(query, video)]
        told = [
            occurrences(ContrastMatcher(), query, reference, query_video=video)[0],
            ByExamples(ContrastMatcher(), more).localize(query, reference, query_video=video),
            index.search(query, query_video=video, examples=more),
            index.occurrences(query, query_video=video)[0],
        ]
    assert own.weight.grad is None
    plain = video.detach().clone(), reference.detach().clone()
    wanted = occurrences(ContrastMatcher(), plain[0][30:38], plain[1], query_video=plain[0])[0]
    assert told[0] == wanted
    assert all(told)
