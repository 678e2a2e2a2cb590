"""Resampling against numpy, a loop, and its own definition."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relocal_pyg.data.pair_data import nearest_steps, resample, resample_positions, resample_windows
from relocal_pyg.errors import FeatureError, ProposalError, UsageError


def test_forty_of_many_equals_numpy() -> None:
    lengths = torch.arange(41, 3000)
    positions, mask = resample_positions(lengths)
    wanted = [np.round(np.linspace(0, n - 1, 40)) for n in lengths.tolist()]
    assert np.array_equal(positions.numpy(), np.array(wanted))
    assert mask.all()


@given(n=st.integers(1, 10**6), num_steps=st.integers(1, 60))
def test_positions_equal_exact_arithmetic(n: int, num_steps: int) -> None:
    for mode in ("linspace", "floor"):
        positions, mask = resample_positions(torch.tensor(n), num_steps, mode)
        if n <= num_steps:
            assert positions[:n].tolist() == list(range(n))
            assert mask.tolist() == [True] * n + [False] * (num_steps - n)
        elif mode == "linspace":
            gaps = max(num_steps - 1, 1)
            # Fractions round to the nearest whole number, ties to even, without error.
            wanted = [round(Fraction(i * (n - 1), gaps)) for i in range(num_steps)]
            assert positions.tolist() == wanted
            assert positions[0] == 0
            assert num_steps == 1 or positions[-1] == n - 1
        else:
            assert positions.tolist() == [i * n // num_steps for i in range(num_steps)]


def test_short_clips_are_padded_with_zeros_at_the_end() -> None:
    x, mask = resample(torch.full((3, 2), 7.0), 5)
    assert x.tolist() == [[7, 7]] * 3 + [[0, 0]] * 2
    assert mask.tolist() == [True] * 3 + [False] * 2
    x, mask = resample(torch.full((5, 2), 7.0), 5)
    assert (x == 7).all()
    assert mask.all()


@pytest.mark.slow
@given(data=st.data(), n=st.integers(1, 90), num_steps=st.integers(1, 20))
def test_windows_equal_the_loop(data: st.DataObject, n: int, num_steps: int) -> None:
    bound = st.floats(-10, 100)
    windows = data.draw(st.lists(st.tuples(bound, bound), min_size=1, max_size=8))
    mode: Literal["linspace", "floor"] = data.draw(st.sampled_from(["linspace", "floor"]))
    reference = torch.randn(n, 3)
    x, mask = resample_windows(reference, torch.tensor(windows), num_steps, mode)
    assert x.shape == (len(windows), num_steps, 3)
    for number, (start, end) in enumerate(torch.tensor(windows).tolist()):
        first = min(max(round(start), 0), n - 1)
        last = min(max(round(end), first + 1), n)
        wanted, wanted_mask = resample(reference[first:last], num_steps, mode)
        assert torch.equal(x[number], wanted)
        assert torch.equal(mask[number], wanted_mask)


def test_types_and_gradients_pass_through() -> None:
    reference = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    x, _ = resample_windows(reference, torch.tensor([[0.0, 50.0], [10.0, 12.0]]), 8)
    assert x.dtype == torch.float64
    x.sum().backward()
    positions, _ = resample_positions(torch.tensor(50), 8)
    wanted = torch.zeros(50)
    wanted[positions] += 1
    wanted[10:12] += 1
    assert reference.grad is not None
    assert torch.equal(reference.grad[:, 0].float(), wanted)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_windows_far_outside_are_those_that_end_with_the_video(kind: torch.dtype) -> None:
    """1e30 steps do not fit whole numbers of 64 bits."""
    far = torch.tensor([[0.0, 1e30], [-1e30, 3.0], [1e30, 2e30], [-2e30, -1e30]], dtype=kind)
    inside = [[0, 9], [0, 3], [8, 9], [0, 1]]
    assert nearest_steps(far, 9).tolist() == inside
    assert nearest_steps(far, torch.full((4,), 9)).tolist() == inside
    reference = torch.randn(9, 2)
    for found, wanted in zip(
        resample_windows(reference, far, 4),
        resample_windows(reference, torch.tensor(inside), 4),
        strict=True,
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("odd", [torch.inf, torch.nan])
def test_pads_are_zero_whatever_the_first_step_holds(odd: float) -> None:
    features = torch.tensor([[odd, 1.0], [2.0, 3.0]])
    x, mask = resample(features, 4)
    many, masks = resample_windows(features, torch.tensor([[0.0, 2.0], [0.0, 1.0]]), 4)
    for clip, real, length in ((x, mask, 2), (many[0], masks[0], 2), (many[1], masks[1], 1)):
        assert real.tolist() == [step < length for step in range(4)]
        torch.testing.assert_close(clip[:length], features[:length], equal_nan=True)
        assert torch.equal(clip[length:], torch.zeros(4 - length, 2))


def test_wrong_shapes_and_options() -> None:
    good = torch.ones(3, 2)
    for bad in (torch.ones(3), torch.ones(0, 2), torch.ones(1, 2, 3)):
        with pytest.raises(FeatureError):
            resample(bad)
        with pytest.raises(FeatureError):
            resample_windows(bad, torch.ones(1, 2))
    for windows in (torch.ones(2), torch.ones(1, 3), torch.tensor([[0.0, torch.nan]])):
        with pytest.raises(ProposalError):
            resample_windows(good, windows)
    with pytest.raises(UsageError, match="num_steps"):
        resample(good, 0)
    with pytest.raises(UsageError, match="mode"):
        resample(good, 4, "nearest")  # type: ignore[arg-type]


def test_no_windows_give_an_empty_batch() -> None:
    x, mask = resample_windows(torch.ones(3, 2), torch.zeros(0, 2), 4)
    assert x.shape == (0, 4, 2)
    assert mask.shape == (0, 4)
