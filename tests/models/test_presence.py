"""Presence without labels: what chance gives, what is there, and what changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.presence import NOTHING, answer, endless, unrelated  # noqa: E402
from relocal_pyg.models import ContrastMatcher  # noqa: E402
from relocal_pyg.models.presence import FACTS, MOMENT_FACTS, _diagonals, _Pair, judge, moment_facts  # noqa: E402

PLACE = torch.tensor([[20.0, 36.0]])


def walk(count: int, width: int, seed: int, keep: float = 0.9) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    for step in range(1, count):
        rows[step] = keep * rows[step - 1] + (1 - keep**2) ** 0.5 * rows[step]
    return rows


def held(seed: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """A query, and a reference that shows it from step 20 to 36 with noise of its own."""
    query, reference = walk(16, 32, seed), walk(120, 32, seed + 1000)
    grain = torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))
    reference[20:36] = query + noise * grain
    return query, reference


def alarms(kind: str, count: int, keep: float | None = None) -> int:
    said = 0
    for asked in unrelated(5, kind, count, keep):
        end = min(len(asked.query), len(asked.reference))
        presence = judge(
            asked.query, asked.reference, torch.tensor([[0.0, end]]), asked.query_video
        )[1]
        said += presence >= 0.5
    return said


CASES = [("walk", keep) for keep in (0.9, 0.95, 0.99)] + [(kind, None) for kind in NOTHING[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "keep"), CASES)
def test_nothing_raises_an_alarm_in_one_draw_of_twenty_at_most(
    count, kind: str, keep: float | None
) -> None:
    draws = count(40, 200)
    assert alarms(kind, draws, keep) <= draws / 20


def filmed(kind: str, count: int, seed: int) -> Tensor:
    """What a network makes of noise, of stills and of people: all of it along few directions."""
    ways = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    ways = ways * torch.tensor([2.0, 1.4, 1.0, 0.7, 0.5, 0.4, 0.3, 0.2])[:, None]
    draw = torch.Generator().manual_seed(seed)
    look = torch.randn(8, generator=draw)
    if kind == "noise":
        rows = 0.5 * torch.randn(count, 8, generator=draw)
    else:
        rows = 0.7 * walk(count, 8, seed) if kind == "people" else torch.zeros(count, 8)
    return (look + rows) @ ways


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "other"), [("noise", "noise"), ("still", "noise"), ("still", "people")]
)
def test_a_bare_clip_in_which_nothing_happens_is_in_no_other_video(kind: str, other: str) -> None:
    alarms = 0
    for seed in range(40):
        query, reference = filmed(kind, 24, seed), filmed(other, 200, seed + 100)
        alarms += judge(query, reference, torch.tensor([[0.0, 24.0]]))[1] >= 0.5
    assert alarms <= 2


@pytest.mark.parametrize("kind", ["noise", "still"])
def test_a_copy_is_told_even_of_noise_or_of_a_still(kind: str) -> None:
    reference = torch.cat([filmed("people", 60, seed) for seed in range(4)])
    grain = torch.randn(24, 64, generator=torch.Generator().manual_seed(4))
    if kind == "noise":
        reference = torch.randn(240, 64, generator=torch.Generator().manual_seed(5))
    else:
        reference[80:104] = reference[80]
    query = reference[80:104] + 0.02 * grain
    assert judge(query, reference, torch.tensor([[80.0, 104.0]]))[1] >= 0.5


@pytest.mark.slow
def test_what_is_there_is_said_to_be_there() -> None:
    presences = [judge(*held(seed), PLACE)[1] for seed in range(20)]
    assert sum(presence >= 0.5 for presence in presences) >= 18


def test_the_usual_type_of_numbers_changes_no_probability() -> None:
    sides = held(1)
    wanted, presence = judge(*sides, PLACE)
    torch.set_default_dtype(torch.float64)
    try:
        found = judge(*sides, PLACE)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found[0], wanted, atol=1e-4, rtol=0)
    assert found[1] == pytest.approx(presence, abs=1e-4)


def test_the_right_place_is_more_probable_than_another() -> None:
    places = torch.tensor([[20.0, 36.0], [70.0, 86.0]])
    for seed in range(5):
        right, wrong = judge(*held(seed), places)[0]
        assert right > wrong


@pytest.mark.slow
def test_the_action_elsewhere_in_the_reference_is_told_from_one_that_is_not_there() -> None:
    """Worlds without end: mean presence of what is there is above that of what is not."""
    told: dict[bool, list[float]] = {True: [], False: []}
    for asked in endless(77, 40):
        facts, _ = answer(asked, ContrastMatcher(), 1)
        end = float(min(len(asked.query), len(asked.reference)))
        presence = judge(
            asked.query, asked.reference, torch.tensor([[0.0, end]]), asked.query_video
        )[1]
        assert facts.shape == (1, len(MOMENT_FACTS))
        told[len(asked.truths) > 0].append(presence)
    there, absent = (sum(values) / len(values) for values in told.values())
    assert there > absent + 0.05


def test_a_moment_is_never_more_probable_than_presence() -> None:
    places = torch.tensor([[20.0, 36.0], [0.0, 120.0], [5.0, 6.0]])
    for seed in range(5):
        moments, presence = judge(*held(seed, 2.0), places)
        assert (moments <= presence).all()
        assert (moments >= 0).all()
        assert 0 <= presence <= 1


def test_turning_scaling_and_moving_all_features_changes_nothing() -> None:
    query, reference = held(3)
    turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    before = moment_facts(query, reference, PLACE)
    after = moment_facts(query @ turn * 7 + 3, reference @ turn * 7 + 3, PLACE)
    torch.testing.assert_close(after, before, atol=2e-2, rtol=1e-3)


def test_channels_that_stay_as_they_are_change_nothing() -> None:
    sides = held(3)
    wider = [torch.cat([rows, torch.full((len(rows), 480), 0.1)], dim=1) for rows in sides]
    torch.testing.assert_close(
        moment_facts(*wider, PLACE), moment_facts(*sides, PLACE), atol=1e-3, rtol=1e-3
    )


def test_rows_in_blocks_are_rows() -> None:
    query, reference = walk(20, 8, 1), walk(1500, 8, 2)

    class InBlocks:
        def __len__(self) -> int:
            return len(reference)

        def split(self, size: int) -> tuple[Tensor, ...]:
            return reference.split(size)

    first = moment_facts(query, reference, PLACE)
    assert torch.equal(first, moment_facts(query, reference, PLACE))
    torch.testing.assert_close(moment_facts(query, InBlocks(), PLACE), first)


def test_diagonals_are_means_of_cosines() -> None:
    query, reference = held(4)
    mean = reference.mean(dim=0)
    pair = _Pair.of(query, reference, mean, mean)
    best, _ = _diagonals(pair, torch.ones(3, pair.query.shape[1]))
    rows = torch.nn.functional.normalize(query - mean, dim=1)
    columns = torch.nn.functional.normalize(reference - mean, dim=1)
    starts = range(len(reference) - len(query) + 1)
    slow = max((rows * columns[start : start + len(rows)]).sum(dim=1).mean() for start in starts)
    # Other paces may do better, and here they do not: the copy has the query's own.
    torch.testing.assert_close(best[0], slow)


@pytest.mark.parametrize(("query", "reference"), [(1, 1), (1, 50), (50, 1), (3, 2), (400, 30)])
def test_any_lengths(query: int, reference: int) -> None:
    place = torch.tensor([[0.0, float(reference)]])
    moments, presence = judge(walk(query, 8, 1), walk(reference, 8, 2), place, walk(60, 8, 3))
    assert torch.isfinite(moments).all()
    assert 0 <= presence <= 1


@pytest.mark.slow
def test_many_answers_in_a_long_reference_take_little_memory() -> None:
    """And each is judged as it is by itself."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.untyped_storage().nbytes())
            return made

    query, reference = walk(6, 16, 1), walk(3000, 16, 2)
    start = torch.arange(0.0, 3000, 10)[:, None]
    answers = torch.cat([start, start + 7], dim=1)
    with Watch():
        every = judge(query, reference, answers)[0]
    assert largest < 10_000_000
    for number in (0, 150, 299):
        one = judge(query, reference, answers[number : number + 1])[0]
        torch.testing.assert_close(every[number : number + 1], one)


def test_stills_and_black_say_nothing() -> None:
    for query in (torch.zeros(9, 16), torch.ones(9, 16), walk(9, 16, 1)):
        for reference in (torch.zeros(80, 16), torch.full((80, 16), 0.1)):
            assert judge(query, reference, PLACE)[1] < 0.5


def test_a_grey_clip_in_a_grey_fade_is_not_there() -> None:
    """The fade passes through the clip's grey: one direction tells nothing."""
    direction, level = walk(2, 64, 1)
    fade = level + torch.linspace(-1, 1, 100)[:, None] * direction
    assert judge((level + 0.3 * direction).expand(12, -1), fade, PLACE)[1] < 0.5


def test_facts_have_the_names_that_the_coefficients_are_for() -> None:
    assert MOMENT_FACTS[: len(FACTS)] == FACTS
    assert moment_facts(*held(1), PLACE).shape == (1, len(MOMENT_FACTS) + 1)
