"""Windows against enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relocal_pyg.data.proposals import (
    QUERY_SCALES,
    default_proposals,
    geometric_lengths,
    sliding_windows,
)
from relocal_pyg.errors import UsageError
from relocal_pyg.moments import tiou


def enumerate_windows(num_steps: int, lengths: list[int], fraction: float) -> list[list[float]]:
    found = set()
    for length in lengths:
        length = min(max(length, 1), num_steps)
        start = 0
        while start + length <= num_steps:
            found.add((start, start + length))
            start += max(1, round(length * fraction))
        found.add((num_steps - length, num_steps))
    return [list(map(float, pair)) for pair in sorted(found)] or [[0.0, float(num_steps)]]


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.lists(st.integers(-2, 80), max_size=4),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]),
)
def test_windows_equal_enumeration(num_steps: int, lengths: list[int], fraction: float) -> None:
    windows = sliding_windows(num_steps, lengths, fraction)
    assert windows.dtype == torch.float32
    assert windows.tolist() == enumerate_windows(num_steps, lengths, fraction)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 400), st.sampled_from([1.1, 1.3, 2.0]))
def test_lengths_grow_by_about_the_ratio(shortest: int, longest: int, ratio: float) -> None:
    lengths = geometric_lengths(shortest, longest, ratio)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == longest
    assert lengths[0] == min(shortest, longest)
    for shorter, longer in zip(lengths, lengths[1:], strict=False):
        # Both are rounded: half a step each way, the shorter one's grown by the ratio.
        assert longer <= shorter * ratio + (ratio + 1) / 2


@pytest.mark.parametrize(("shortest", "ratio"), [(0, 1.3), (4, 1.0), (4, 0.5)])
def test_lengths_that_would_never_end_are_refused(shortest: int, ratio: float) -> None:
    with pytest.raises(UsageError):
        geometric_lengths(shortest, 16, ratio)


def test_defaults_hold_every_start_at_every_scale() -> None:
    windows = {tuple(pair) for pair in default_proposals(30, 10).tolist()}
    lengths = {round(scale * 10) for scale in QUERY_SCALES}
    assert windows == {(s, s + n) for n in lengths for s in range(30 - n + 1)}
    assert default_proposals(3, 10).tolist() == [[0.0, 3.0]]


def test_defaults_are_thinned_on_long_videos() -> None:
    thinned = default_proposals(20_000, 200)
    assert len(thinned) <= 4000 + len(QUERY_SCALES)
    assert len(torch.unique(thinned, dim=0)) == len(thinned)
    # A moment as long as a window is missed by half a stride at most.
    stride = math.ceil(20_000 / (4000 // len(QUERY_SCALES)))
    for start in range(0, 19_800, 137):
        moment = torch.tensor([start, start + 200.0])
        assert tiou(thinned, moment).max() >= (200 - stride / 2) / (200 + stride / 2) - 1e-6


def test_thinning_leaves_no_step_out() -> None:
    windows = default_proposals(5000, 2, limit=50)
    covered = torch.zeros(5000, dtype=torch.bool)
    for start, end in windows.int().tolist():
        covered[start:end] = True
    assert covered.all()
