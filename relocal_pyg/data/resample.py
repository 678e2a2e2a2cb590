"""Every clip gets the same number of steps T: long ones are thinned, short ones padded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relocal_pyg.errors import FeatureError, ProposalError, UsageError

Mode = Literal["linspace", "floor"]


def resample_positions(
    lengths: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Which steps of clips of given lengths are kept (section 5.2.1: "40 equidistance features").

    Position ``i`` of a clip of ``n > T`` steps is ``round(i (n - 1) / (T - 1))``, computed in whole
    numbers with ties to even, or ``floor(i n / T)``. A clip of ``n <= T`` steps keeps all of them
    and is padded at its end.

    Args:
        lengths: Lengths ``[...]`` in steps, each at least 1 (int64).
        num_steps: T.
        mode: ``"linspace"``, which keeps the first and the last step, or ``"floor"``.

    Returns:
        Positions ``[..., T]`` (int64; 0 where padded) and mask ``[..., T]``, True for real steps.

    Raises:
        UsageError: ``num_steps`` below 1 or an unknown mode.

    Example:
        >>> resample_positions(torch.tensor([2, 9]), 3)[0].tolist()
        [[0, 1, 0], [0, 4, 8]]
        >>> resample_positions(torch.tensor([2, 9]), 3, "floor")[0].tolist()
        [[0, 1, 0], [0, 3, 6]]
    """
    if num_steps < 1:
        raise UsageError(f"num_steps is {num_steps}: 1 or more wanted")
    slots = torch.arange(num_steps, device=lengths.device)
    lengths = lengths[..., None]
    if mode == "linspace":
        parts = max(num_steps - 1, 1)
        twice = 2 * slots * (lengths - 1)
        thinned = (twice + parts) // (2 * parts)
        tie = (twice + parts) % (2 * parts) == 0
        thinned = thinned - (tie & (thinned % 2 == 1)).long()
    elif mode == "floor":
        thinned = slots * lengths // num_steps
    else:
        raise UsageError(f"mode is {mode!r}: 'linspace' or 'floor' wanted")
    mask = slots < lengths
    return torch.where(lengths > num_steps, thinned, slots * mask), mask


def resample(
    features: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Bring a clip to T steps, see :func:`resample_positions`.

    Args:
        features: ``[n, F]``, ``n >= 1``.
        num_steps: T.
        mode: ``"linspace"`` or ``"floor"``.

    Returns:
        Features ``[T, F]``, zero where padded, and mask ``[T]``, True for real steps.

    Raises:
        FeatureError: ``features`` is not ``[n, F]`` with ``n >= 1``.

    Example:
        >>> x, mask = resample(torch.tensor([[1.0], [2.0]]), 3)
        >>> x.flatten().tolist(), mask.tolist()
        ([1.0, 2.0, 0.0], [True, True, False])
    """
    _check(features)
    length = torch.tensor(len(features), device=features.device)
    positions, mask = resample_positions(length, num_steps, mode)
    return features[positions] * mask[:, None].to(features.dtype), mask


def resample_windows(
    reference: Tensor, windows: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Cut many windows out of one reference and bring each to T steps, in one gather.

    Equal to calling :func:`resample` on every window; boundaries are rounded to whole steps, at
    least one, inside the reference.

    Args:
        reference: ``[n, F]``, ``n >= 1``.
        windows: ``[M, 2]`` in steps of the reference.
        num_steps: T.
        mode: ``"linspace"`` or ``"floor"``.

    Returns:
        Features ``[M, T, F]``, zero where padded, and mask ``[M, T]``, True for real steps.

    Raises:
        FeatureError: ``reference`` is not ``[n, F]`` with ``n >= 1``.
        ProposalError: ``windows`` is not ``[M, 2]`` or not finite.
    """
    _check(reference)
    positions, mask = window_positions(len(reference), windows, num_steps, mode)
    return reference[positions] * mask[..., None].to(reference.dtype), mask


def window_positions(
    length: int, windows: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Which steps of a reference :func:`resample_windows` takes.

    Args:
        length: Steps of the reference.
        windows: ``[M, 2]`` in steps of the reference.
        num_steps: T.
        mode: ``"linspace"`` or ``"floor"``.

    Returns:
        Positions ``[M, T]`` (int64; a window's first step where padded) and mask ``[M, T]``.

    Raises:
        ProposalError: ``windows`` is not ``[M, 2]`` or not finite.
    """
    if windows.ndim != 2 or windows.shape[1] != 2:
        raise ProposalError(f"shape {tuple(windows.shape)}, [M, 2] wanted")
    if not torch.isfinite(windows).all():
        raise ProposalError("a boundary is not finite")
    whole = windows.round().long()
    starts = whole[:, 0].clamp(0, length - 1)
    ends = torch.maximum(whole[:, 1].clamp(max=length), starts + 1)
    positions, mask = resample_positions(ends - starts, num_steps, mode)
    return starts[:, None] + positions, mask


def _check(features: Tensor) -> None:
    if features.ndim != 2 or len(features) == 0:
        raise FeatureError(f"shape {tuple(features.shape)}, [n, F] with n >= 1 wanted")
