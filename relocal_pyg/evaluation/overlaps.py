"""How well answers overlap several truths, in float64, and which thresholds they pass.

In float64 3 shared steps of 5 are exactly 0.6 and not above it; in float32 they would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from relocal_pyg.errors import UsageError
from relocal_pyg.moments import tiou


def best_tiou(moments: Tensor, truths: Tensor) -> Tensor:
    """Overlap of each moment with the truth that it fits best, in float64.

    Args:
        moments: ``[N, 2]``, or ``[N, K, 2]`` for K answers a query.
        truths: ``[N, 2]``, or ``[N, G, 2]`` for G truths a query.

    Returns:
        ``[N]`` or ``[N, K]``. A moment turned round or without length overlaps nothing.

    Raises:
        UsageError: Shapes do not fit, a number is not finite, or a truth is empty.

    Example:
        >>> truths = torch.tensor([[[0, 4], [10, 12]]])
        >>> best_tiou(torch.tensor([[10, 14]]), truths).tolist()
        [0.5]
    """
    answers, targets = torch.as_tensor(moments).double(), torch.as_tensor(truths).double()
    shapes = f"moments {list(answers.shape)}, truths {list(targets.shape)}"
    for tensor in (answers, targets):
        if tensor.ndim not in (2, 3) or tensor.shape[-1] != 2 or 0 in tensor.shape[1:]:
            raise UsageError(f"{shapes}: [N, 2] or [N, K, 2] wanted")
    if len(answers) != len(targets):
        raise UsageError(f"{shapes}: the same N wanted")
    if not (torch.isfinite(answers).all() and torch.isfinite(targets).all()):
        raise UsageError(f"{shapes}: a start or an end is not finite")
    if not (targets[..., 0] < targets[..., 1]).all():
        raise UsageError(f"{shapes}: a truth does not start before it ends")
    many = answers if answers.ndim == 3 else answers[:, None]
    targets = targets if targets.ndim == 3 else targets[:, None]
    overlaps = tiou(many[:, :, None], targets[:, None]).amax(dim=-1)
    return overlaps if answers.ndim == 3 else overlaps[:, 0]


def above(overlaps: Tensor, thresholds: Sequence[float], *, strict: bool = True) -> Tensor:
    """Which overlaps pass which thresholds: bool ``[..., len(thresholds)]``.

    Example:
        >>> above(torch.tensor([0.5, 0.7]), (0.5, 0.6)).tolist()
        [[False, False], [True, True]]
    """
    limits = torch.tensor(thresholds, dtype=overlaps.dtype, device=overlaps.device)
    return overlaps[..., None] > limits if strict else overlaps[..., None] >= limits


def stack_moments(moments: Sequence[Sequence[tuple[float, float]] | Tensor]) -> Tensor:
    """Stack lists of moments of unequal length, filled up by repeating the first of each.

    A repeated moment changes no maximum, so the result needs no mask.

    Args:
        moments: N lists; an empty one becomes ``[0, 0]``, which overlaps nothing.

    Returns:
        float64 ``[N, K, 2]`` with K the longest list, at least 1.

    Example:
        >>> stack_moments([[(0, 4)], [(1, 2), (5, 9)]]).tolist()
        [[[0.0, 4.0], [0.0, 4.0]], [[1.0, 2.0], [5.0, 9.0]]]
    """
    rows = [torch.as_tensor(row, dtype=torch.float64).reshape(-1, 2) for row in moments]
    rows = [row if len(row) else row.new_zeros(1, 2) for row in rows]
    width = max((len(row) for row in rows), default=1)
    if not rows:
        return torch.zeros(0, width, 2, dtype=torch.float64)
    padded = [torch.cat([row, row[:1].expand(width - len(row), 2)]) for row in rows]
    return torch.stack(padded)


def check_monotone(values: Mapping[float, float]) -> None:
    """Fail where a score rises with the threshold: no fixed set of answers can do that.

    Args:
        values: Score by threshold.

    Raises:
        AssertionError: A score rises; the thresholds are named.

    Example:
        >>> check_monotone({0.5: 0.49, 0.6: 0.48})
    """
    ordered = sorted(values.items())
    for (low, before), (high, after) in pairwise(ordered):
        # An explicit raise: the check also holds under ``python -O``.
        if after > before + 1e-9:
            raise AssertionError(
                f"the score rises from {before} at tIoU {low} to {after} at {high}: "
                "the figures come from different answers"
            )
