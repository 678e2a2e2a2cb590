"""Multi-scale sliding windows: proposals that need no training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relocal_pyg.errors import UsageError

#: Window lengths of :func:`query_windows` as multiples of the query's length.
QUERY_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)


def sliding_windows(
    num_steps: int, lengths: Sequence[int], stride_fraction: float = 1 / 3
) -> Tensor:
    """Windows of several lengths, each moved by a fraction of its own length.

    The last window of every length ends with the video. Lengths over ``num_steps`` give one window,
    the whole video; there is always at least that one.

    Args:
        num_steps: Steps of the reference, at least 1.
        lengths: Window lengths in steps.
        stride_fraction: Stride as a share of the window's length; at least one step.

    Returns:
        float32 ``[M, 2]`` half-open windows in steps, without duplicates, sorted.

    Example:
        >>> sliding_windows(5, [3], 1 / 3).tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        >>> sliding_windows(2, [4]).tolist()
        [[0.0, 2.0]]
    """
    grids = []
    for length in {min(max(int(length), 1), num_steps) for length in lengths} or {num_steps}:
        stride = max(1, round(length * stride_fraction))
        starts = torch.arange(0, num_steps - length + 1, stride)
        last = torch.tensor([num_steps - length])
        starts = torch.cat([starts, last])
        grids.append(torch.stack([starts, starts + length], dim=1))
    return torch.unique(torch.cat(grids), dim=0).float()


def geometric_lengths(shortest: int, longest: int, ratio: float = 1.3) -> list[int]:
    """Whole window lengths from ``shortest`` to ``longest``, each about ``ratio`` times the last.

    Raises:
        UsageError: ``shortest`` is below 1 or ``ratio`` not above 1.

    Example:
        >>> geometric_lengths(4, 16, 2.0)
        [4, 8, 16]
    """
    if shortest < 1 or ratio <= 1:
        raise UsageError(f"shortest={shortest}, ratio={ratio}: at least 1 and above 1 wanted")
    lengths, length = [], float(shortest)
    while length < longest:
        lengths.append(round(length))
        length *= ratio
    return sorted({*lengths, longest})


def query_windows(
    num_steps: int, query_steps: int, scales: Sequence[float] = QUERY_SCALES
) -> Tensor:
    """Windows of the query's length times each scale, at every step.

    Where the query's own length says how long the moment may be (a clip of the same action), this
    beats a fixed grid.

    Args:
        num_steps: Steps of the reference.
        query_steps: Steps of the query.
        scales: Multiples of ``query_steps``.

    Returns:
        float32 ``[M, 2]`` half-open windows in steps.
    """
    lengths = [max(1, round(scale * query_steps)) for scale in scales]
    return sliding_windows(num_steps, lengths, stride_fraction=0.0)


def default_proposals(num_steps: int, query_steps: int, limit: int = 4000) -> Tensor:
    """The proposals used where none are given: :func:`query_windows`, thinned for long videos.

    Args:
        num_steps: Steps of the reference.
        query_steps: Steps of the query.
        limit: About how many windows at most. Strides grow until they fit, but never past a
            window's own length, so that no step is left out.

    Returns:
        float32 ``[M, 2]`` half-open windows in steps.
    """
    per_scale = max(1, limit // len(QUERY_SCALES))
    stride = max(1, -(-num_steps // per_scale))
    lengths = [max(1, round(scale * query_steps)) for scale in QUERY_SCALES]
    if stride == 1:
        return query_windows(num_steps, query_steps)
    grids = [
        sliding_windows(num_steps, [length], stride_fraction=stride / max(length, stride))
        for length in lengths
    ]
    return torch.unique(torch.cat(grids), dim=0)
