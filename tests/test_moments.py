"""Interval arithmetic against brute force on sets of small cells and against plain loops."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relocal_pyg.errors import UsageError
from relocal_pyg.moments import (
    MAX_LOG_LENGTH,
    Moment,
    clip_moments,
    decode_offsets,
    encode_offsets,
    nms,
    seconds_to_steps,
    tiou,
)

pairs = st.tuples(st.integers(0, 30), st.integers(0, 30))


def cells(moment: tuple[int, int]) -> set[int]:
    return set(range(moment[0], moment[1]))


def plain_tiou(first: tuple[int, int], second: tuple[int, int]) -> float:
    union = cells(first) | cells(second)
    return len(cells(first) & cells(second)) / len(union) if union else 0.0


def plain_nms(moments: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        overlaps = []
        for j in kept:
            shared = min(moments[i][1], moments[j][1]) - max(moments[i][0], moments[j][0])
            union = sum(b - a for a, b in (moments[i], moments[j])) - max(shared, 0)
            overlaps.append(max(shared, 0) / union if union else 0)
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(i)
    return kept


def random_moments(seed: int, count: int, span: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, span, (count,), generator=generator)
    length = torch.randint(1, 20, (count,), generator=generator)
    return torch.stack([start, start + length], dim=1).double()


def test_lists_and_whole_numbers_are_counted_in_double_precision() -> None:
    now = 1_700_000_000
    moment = [now, now + 10]
    for each_way in (moment, [float(each) for each in moment], torch.tensor(moment)):
        assert tiou(each_way, each_way).item() == 1
    near = [[36000.010, 36000.015], [36000.011, 36000.016]]
    assert tiou(*near).item() == pytest.approx(2 / 3, abs=1e-6)
    assert len(nms(torch.tensor([moment] * 2), torch.tensor([0.5, 0.9]), 0.5)) == 1
    late = [100000.06, 100000.10]
    wanted = seconds_to_steps(np.array(late), 0.04, 3_000_000).tolist()
    assert seconds_to_steps(late, 0.04, 3_000_000).tolist() == wanted == [2500001, 2500003]


class TestTiou:
    @pytest.mark.slow
    @settings(deadline=None)
    @given(pairs, pairs)
    def test_equals_counting_cells(self, first: tuple[int, int], second: tuple[int, int]) -> None:
        assert tiou(first, second).item() == pytest.approx(plain_tiou(first, second), abs=1e-6)
        assert tiou(first, second) == tiou(second, first)

    def test_all_pairs_broadcast(self) -> None:
        first, second = random_moments(0, 13), random_moments(1, 7)
        table = tiou(first[:, None], second[None])
        assert table.shape == (13, 7)
        for i in range(13):
            for j in range(7):
                a, b = first[i].int().tolist(), second[j].int().tolist()
                assert table[i, j].item() == pytest.approx(plain_tiou(a, b), abs=1e-12)

    def test_unit_does_not_matter(self) -> None:
        first, second = random_moments(2, 20), random_moments(3, 20)
        torch.testing.assert_close(tiou(first, second), tiou(first * 0.37, second * 0.37))

    @pytest.mark.parametrize("moment", [(5, 5), (7, 3)])
    def test_empty_or_turned_round_has_no_overlap(self, moment: tuple[int, int]) -> None:
        assert tiou(moment, (0, 10)) == 0
        assert tiou(moment, moment) == 0

    def test_touching_moments_do_not_overlap(self) -> None:
        assert tiou((0, 5), (5, 9)) == 0

    def test_keeps_double_precision_and_takes_numpy(self) -> None:
        third = tiou(np.array([0.0, 1.0]), np.array([0.0, 3.0]))
        assert third.dtype == torch.float64
        assert third.item() == 1 / 3
        assert tiou(torch.tensor([0, 1]), torch.tensor([0.0, 3.0]).double()).item() == 1 / 3

    @pytest.mark.parametrize(
        "form",
        [
            lambda x: np.asfortranarray(x),
            lambda x: x[::-1].copy()[::-1],
            lambda x: x.astype(">f8"),
            lambda x: x.astype(np.longdouble),
            lambda x: x.astype(object),
            lambda x: pd.DataFrame(x),
            lambda x: [torch.tensor(row) for row in x],
            lambda x: [list(row) for row in x],
            lambda x: list(x),
        ],
    )
    def test_takes_any_array_of_numbers(self, form: Any) -> None:
        moments = np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 9.0]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tiou(form(moments), [0.0, 4.0]).tolist() == pytest.approx([1, 1 / 4, 1 / 9])
        frozen = moments.copy()
        frozen.flags.writeable = False
        assert tiou(frozen, moments).tolist() == [1, 1, 1]

    @pytest.mark.parametrize("other", [None, "ab", [1], [], [[1, 2, 3]], {"a": 1}, [[1, 2], [3]]])
    def test_refuses_what_is_no_pair(self, other: Any) -> None:
        with pytest.raises(UsageError) as caught:
            tiou(other, [0.0, 1.0])
        assert "\n" not in str(caught.value)

    def test_gradient_is_that_of_the_formula(self) -> None:
        first = torch.tensor([[1.0, 6.0], [2.0, 4.0]], dtype=torch.float64, requires_grad=True)
        second = torch.tensor([[0.5, 5.0], [3.0, 9.0]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(tiou, (first, second))


class TestNms:
    @pytest.mark.slow
    @pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 0.95])
    @pytest.mark.parametrize("count", [1, 5, 60, 700])
    def test_equals_a_greedy_loop(self, count: int, threshold: float) -> None:
        moments = random_moments(count, count, span=max(50, count // 4))
        scores = torch.rand(count, generator=torch.Generator().manual_seed(1))
        expected = plain_nms(moments.tolist(), scores.tolist(), threshold)
        assert nms(moments, scores, threshold).tolist() == expected

    @pytest.mark.slow
    @settings(deadline=None)
    @given(st.lists(st.tuples(pairs, st.integers(0, 3)), max_size=40), st.sampled_from([0.3, 0.5]))
    def test_equals_a_greedy_loop_with_ties(
        self, boxes: list[tuple[tuple[int, int], int]], threshold: float
    ) -> None:
        moments = [sorted(pair) for pair, _ in boxes]
        scores = [float(score) for _, score in boxes]
        kept = nms(torch.tensor(moments).reshape(-1, 2).double(), torch.tensor(scores), threshold)
        assert kept.tolist() == plain_nms(moments, scores, threshold)

    @pytest.mark.parametrize("limit", [0, 1, 5, 300])
    def test_a_limit_keeps_the_best_of_the_same(self, limit: int) -> None:
        moments = random_moments(3, 2000)
        scores = torch.rand(2000)
        assert (
            nms(moments, scores, 0.3, limit).tolist() == nms(moments, scores, 0.3)[:limit].tolist()
        )

    @pytest.mark.parametrize("limit", [1, 3, 4, 9])
    def test_many_good_ones_in_one_place_leave_room_for_the_others(self, limit: int) -> None:
        starts = torch.linspace(0, 1, 500)
        others = torch.tensor([[100.0, 110.0], [200.0, 210.0], [300.0, 310.0]])
        moments = torch.cat([torch.stack([starts, starts + 50], dim=1), others])
        scores = torch.cat([torch.linspace(2, 1, 500), torch.tensor([0.3, 0.2, 0.1])])
        assert nms(moments, scores, 0.5, limit).tolist() == [0, 500, 501, 502][:limit]

    def test_ties_keep_the_earlier_moment(self) -> None:
        moments = torch.tensor([[0.0, 10.0], [1.0, 11.0], [0.0, 10.0]])
        assert nms(moments, torch.ones(3), 0.5).tolist() == [0]

    def test_a_suppressed_moment_suppresses_nothing(self) -> None:
        # The second loses to the first; the third overlaps only the second and must stay.
        moments = torch.tensor([[0.0, 10.0], [4.0, 14.0], [8.0, 18.0]])
        assert nms(moments, torch.tensor([3.0, 2.0, 1.0]), 0.4).tolist() == [0, 2]

    def test_a_long_chain_over_several_blocks(self) -> None:
        start = torch.arange(3000.0)
        moments = torch.stack([start, start + 30], dim=1)
        kept = nms(moments, -start, 0.5).tolist()
        # tIoU (30 - d) / (30 + d) is above a half up to d = 9.
        assert kept == list(range(0, 3000, 10))

    def test_nothing_in_nothing_out(self) -> None:
        assert nms(torch.empty(0, 2), torch.empty(0), 0.5).tolist() == []

    def test_many_moments_never_make_a_table_of_all_pairs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = []

        def watched(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            table = tiou(first, second)
            sizes.append(table.numel())
            return table

        monkeypatch.setattr("relocal_pyg.moments.tiou", watched)
        generator = torch.Generator().manual_seed(0)
        start = torch.rand(50_000, generator=generator) * 100
        moments = torch.stack([start, start + 5 + torch.rand(50_000, generator=generator)], dim=1)
        kept = nms(moments, torch.rand(50_000, generator=generator), 0.5)
        assert max(sizes) <= 4_000_000
        # What is kept is mutually apart and covers everything that was dropped.
        assert (tiou(moments[kept][:, None], moments[kept][None]) > 0.5).sum() == len(kept)
        assert (tiou(moments[kept][:, None], moments[None]) > 0.5).any(dim=0).all()


class TestOffsets:
    def test_targets_are_those_of_section_4_7_2(self) -> None:
        # Proposal centre 10, length 8; truth centre 14, length 4.
        offsets = encode_offsets(torch.tensor([6.0, 14.0]), torch.tensor([12.0, 16.0]))
        assert offsets.tolist() == pytest.approx([(10 - 14) / 4, np.log(8 / 4)])

    def test_round_trip(self) -> None:
        proposals, truths = random_moments(4, 200), random_moments(5, 200)
        decoded = decode_offsets(proposals, encode_offsets(proposals, truths))
        torch.testing.assert_close(decoded, truths, rtol=1e-12, atol=1e-12)

    def test_targets_do_not_depend_on_unit_or_origin(self) -> None:
        proposals, truths = random_moments(6, 50), random_moments(7, 50)
        moved = encode_offsets(proposals * 0.53 + 11, truths * 0.53 + 11)
        torch.testing.assert_close(moved, encode_offsets(proposals, truths))

    def test_zero_offsets_change_nothing(self) -> None:
        proposals = random_moments(8, 9)
        assert torch.equal(decode_offsets(proposals, torch.zeros(9, 2).double()), proposals)

    def test_length_cannot_overflow(self) -> None:
        wild = torch.tensor([[0.0, -1e30], [0.0, 1e30]])
        decoded = decode_offsets(torch.tensor([[10.0, 12.0], [10.0, 12.0]]).double(), wild)
        assert torch.isfinite(decoded).all()
        lengths = (decoded[:, 1] - decoded[:, 0]).tolist()
        assert lengths == pytest.approx([2 * 62.5, 2 / 62.5], rel=1e-6)
        assert np.exp(MAX_LOG_LENGTH) == pytest.approx(1000 / 16)

    def test_gradcheck(self) -> None:
        proposals = torch.tensor([[1.0, 6.0], [2.0, 4.5]], dtype=torch.float64, requires_grad=True)
        truths = torch.tensor([[0.5, 5.0], [3.0, 9.0]], dtype=torch.float64, requires_grad=True)
        offsets = torch.tensor([[0.3, -0.4], [-1.2, 0.8]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(encode_offsets, (proposals, truths))
        assert torch.autograd.gradcheck(decode_offsets, (proposals, offsets))


class TestSteps:
    @settings(deadline=None)
    @given(st.floats(0, 40), st.floats(0.01, 30), st.sampled_from([0.25, 0.5, 1.0, 0.64, 1.0 / 3]))
    def test_smallest_range_that_covers(self, start: float, length: float, per: float) -> None:
        first, last = seconds_to_steps(torch.tensor([start, start + length]).double(), per, 10**6)
        slack = 2e-6 * per
        assert first * per <= start + slack
        assert last * per >= start + length - slack
        assert first + 1 == last or (first + 1) * per > start - slack
        assert first + 1 == last or (last - 1) * per < start + length + slack

    def test_whole_steps_survive_the_way_to_seconds_and_back(self) -> None:
        steps = random_moments(9, 300, span=900)
        for per in (0.1, 16 / 29.97, 1 / 3, 0.64):
            assert torch.equal(seconds_to_steps(steps * per, per, 2000), steps.long())
            assert torch.equal(seconds_to_steps((steps * per).float(), per, 2000), steps.long())

    @pytest.mark.parametrize(
        ("moment", "expected"),
        [
            ((-3.0, 2.0), [0, 2]),
            ((8.0, 99.0), [8, 10]),
            ((50.0, 60.0), [9, 10]),
            ((-9.0, -5.0), [0, 1]),
            ((4.2, 4.3), [4, 5]),
            ((4.0, 4.0), [4, 5]),
        ],
    )
    def test_result_lies_inside_the_video(
        self, moment: tuple[float, float], expected: list[int]
    ) -> None:
        assert seconds_to_steps(torch.tensor(moment), 1.0, 10).tolist() == expected

    def test_a_video_without_steps_gives_an_empty_range(self) -> None:
        assert seconds_to_steps(torch.tensor([1.0, 2.0]), 1.0, 0).tolist() == [0, 0]

    def test_takes_numpy_and_lists_like_tiou(self) -> None:
        assert seconds_to_steps([[0, 2], [3, 4]], 2.0, 5).tolist() == [[0, 1], [1, 2]]  # type: ignore[arg-type]


def test_clip_moments_never_lowers_the_overlap_with_a_truth_inside() -> None:
    moments = random_moments(10, 100) - 10
    truth = torch.tensor([4.0, 33.0]).double()
    clipped = clip_moments(moments, 35.0)
    assert clipped.min() >= 0
    assert clipped.max() <= 35
    assert (tiou(clipped, truth) >= tiou(moments, truth) - 1e-12).all()


def test_moment_is_a_value() -> None:
    assert Moment(1.0, 2.0, 0.5) == Moment(1.0, 2.0, 0.5, None)
    with pytest.raises(AttributeError):
        Moment(1.0, 2.0, 0.5).start = 3.0  # type: ignore[misc]


def test_seconds_without_a_place_are_refused() -> None:
    for per in (0.0, -1.0, torch.nan, torch.inf):
        with pytest.raises(UsageError, match="seconds_per_step"):
            seconds_to_steps([0.0, 1.0], per, 10)
    for moment in ([0.0, torch.nan], [torch.nan, 1.0], [0.0, torch.inf]):
        with pytest.raises(UsageError, match="finite"):
            seconds_to_steps(moment, 1.0, 10)
    assert seconds_to_steps([-1e30, 1e30], 1.0, 10).tolist() == [0, 10]


def test_suppression_refuses_what_would_drop_answers_unseen() -> None:
    moments, scores = torch.tensor([[0.0, 4.0], [8.0, 9.0]]), torch.tensor([0.5, 0.9])
    for limit in (-1, 1.5):
        with pytest.raises(UsageError, match="limit"):
            nms(moments, scores, 0.5, limit=limit)
    with pytest.raises(UsageError, match="scores"):
        nms(moments, scores[:1], 0.5)


def test_long_moments_of_short_floats_overlap() -> None:
    long = torch.tensor([[0.0, 60000.0], [0.0, 30000.0]]).half()
    assert tiou(long[0], long).tolist() == pytest.approx([1.0, 0.5], abs=1e-3)
