"""Arithmetic on moments: arrays of half-open ``[start, end)`` pairs. No model, no file.

Functions take and give ``torch.Tensor``; :func:`tiou` also takes numpy arrays and nested lists.
Unless a docstring says otherwise the unit is the caller's: all steps or all seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import RelocalError, UsageError, check_number

#: Largest ``|Tl|`` that :func:`decode_offsets` accepts: a length changed by a factor of 62.5.
MAX_LOG_LENGTH = 4.135166556742356

#: Entries of the largest table of overlaps that :func:`nms` makes at once.
_NMS_TABLE = 4_000_000


@dataclass(frozen=True)
class Moment:
    """One answer: a ``[start, end)`` pair of the reference and its score.

    Attributes:
        start: Start in seconds.
        end: End in seconds, exclusive.
        score: The model's score; comparable only inside one answer.
        proposal: The proposal before refinement, in seconds, where there was one.
        probability: Of the moment being right (tIoU above 0.5), where the model is calibrated.
        presence: Probability that the reference holds the action at all, the same for every answer
            in one reference; where the model is calibrated.
    """

    start: float
    end: float
    score: float
    proposal: tuple[float, float] | None = None
    probability: float | None = None
    presence: float | None = None


def tiou(first: ArrayLike, second: ArrayLike) -> Tensor:
    """Temporal intersection over union, broadcast over leading dimensions.

    Args:
        first: Moments ``[..., 2]``.
        second: Moments ``[..., 2]`` of a shape that broadcasts with ``first``.

    Returns:
        ``[...]`` values in ``[0, 1]``; 0 where either moment is empty or turned round.
        For all pairs of ``[N, 2]`` and ``[M, 2]`` call ``tiou(first[:, None], second[None])``.

    Raises:
        UsageError: One is no ``[..., 2]`` of numbers.

    Example:
        >>> tiou([0.0, 10.0], [5.0, 15.0]).item()
        0.3333333333333333
        >>> tiou(torch.tensor([[0.0, 4.0], [1.0, 2.0]]), torch.tensor([0.0, 4.0])).tolist()
        [1.0, 0.25]
    """
    first, second = _as_float(first), _as_float(second)
    # In float32 at least: sums of lengths do not always fit short floats.
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    first, second = first.to(dtype), second.to(dtype)
    start = torch.maximum(first[..., 0], second[..., 0])
    end = torch.minimum(first[..., 1], second[..., 1])
    shared = (end - start).clamp(min=0)
    length = (first[..., 1] - first[..., 0]).clamp(min=0)
    length = length + (second[..., 1] - second[..., 0]).clamp(min=0)
    union = length - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(dtype).tiny), 0.0)


def nms(moments: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Greedy non-maximum suppression, a block of moments at a time.

    Memory grows with the number of moments, not with its square: 50,000 moments are fine.

    Args:
        moments: ``[M, 2]``.
        scores: ``[M]``; ties keep the earlier moment.
        threshold: A moment is dropped where its tIoU with a kept, better one is above this.
        limit: How many to keep at most; all where None. A few of very many are found fast.

    Returns:
        Positions of the kept moments, best first.

    Raises:
        UsageError: There is not one score a moment, or ``limit`` is below 0.

    Example:
        >>> kept = nms(torch.tensor([[0., 10.], [1., 10.], [20., 30.]]),
        ...            torch.tensor([.5, .9, .1]), 0.5)
        >>> kept.tolist()
        [1, 2]
    """
    if moments.shape != (*scores.shape, 2):
        raise UsageError(f"moments are {list(moments.shape)} and scores {list(scores.shape)}")
    if limit is not None:
        check_number(limit, "limit", least=0, whole=True)
    ranked = torch.argsort(scores, descending=True, stable=True)
    if limit is not None and 32 * limit < len(ranked):
        # Whether a moment is kept depends on better ones alone: mostly the first few settle it.
        kept = _suppress(moments, ranked[: 32 * limit], threshold)
        if len(kept) >= limit:
            return kept[:limit]
    return _suppress(moments, ranked, threshold)[:limit]


def _suppress(moments: Tensor, left: Tensor, threshold: float) -> Tensor:
    """Greedy suppression of positions ranked best first."""
    block = min(256, max(32, _NMS_TABLE // max(len(left), 1)))
    kept = [left[:0]]
    while len(left):
        best = _settle(moments, left[:block], threshold)
        kept.append(best)
        left = left[block:]
        overlap = tiou(moments[best][:, None], moments[left][None])
        left = left[~(overlap > threshold).any(dim=0)]
    return torch.cat(kept)


def _settle(moments: Tensor, ranked: Tensor, threshold: float) -> Tensor:
    """Greedy suppression inside one block of positions, ranked best first."""
    chosen = moments[ranked]
    # beats[i, j]: the better moment i would suppress the worse moment j.
    beats = (tiou(chosen[:, None], chosen[None]) > threshold).triu(diagonal=1)
    keep = torch.ones(len(ranked), dtype=torch.bool, device=moments.device)
    # Each round settles at least the next-best undecided moment, so the fixed point is the greedy
    # answer; in practice a handful of rounds suffice.
    while True:
        settled = ~(beats & keep[:, None]).any(dim=0)
        if torch.equal(settled, keep):
            return ranked[keep]
        keep = settled


def encode_offsets(proposals: Tensor, truths: Tensor) -> Tensor:
    """Regression targets ``[Tc, Tl]`` of section 4.7.2.

    ``Tc = (loc - loc*) / len*`` and ``Tl = log(len / len*)`` with ``loc``, ``len`` the centre and
    length of the proposal and ``*`` those of the ground truth: the sign and the normaliser are the
    opposite of Faster R-CNN's.

    Args:
        proposals: ``[..., 2]``, each longer than 0.
        truths: ``[..., 2]``, each longer than 0.

    Returns:
        ``[..., 2]`` in the order ``[Tc, Tl]``.

    Example:
        >>> encode_offsets(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0])).tolist()
        [0.0, 0.6931471824645996]
    """
    centre, length = _centre_length(proposals)
    true_centre, true_length = _centre_length(truths)
    return torch.stack(
        [(centre - true_centre) / true_length, torch.log(length / true_length)], dim=-1
    )


def decode_offsets(proposals: Tensor, offsets: Tensor) -> Tensor:
    """Refine proposals by predicted offsets: the inverse of :func:`encode_offsets` (section 4.8.2).

    Args:
        proposals: ``[..., 2]``.
        offsets: ``[..., 2]`` in the order ``[Tc, Tl]``; ``Tl`` is bounded by
            :data:`MAX_LOG_LENGTH`, so that ``exp`` cannot overflow.

    Returns:
        Refined moments ``[..., 2]``.

    Example:
        >>> proposals, truths = torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0])
        >>> decode_offsets(proposals, encode_offsets(proposals, truths)).tolist()
        [1.0, 3.0]
    """
    centre, length = _centre_length(proposals)
    bounded = offsets[..., 1].clamp(-MAX_LOG_LENGTH, MAX_LOG_LENGTH)
    true_length = torch.exp(-bounded) * length
    true_centre = centre - offsets[..., 0] * true_length
    return torch.stack([true_centre - true_length / 2, true_centre + true_length / 2], dim=-1)


def clip_moments(moments: Tensor, end: float) -> Tensor:
    """Cut moments to ``[0, end]``; the shape is kept.

    Example:
        >>> clip_moments(torch.tensor([[-1.0, 3.0], [2.0, 9.0]]), 5.0).tolist()
        [[0.0, 3.0], [2.0, 5.0]]
    """
    return moments.clamp(0, end)


def seconds_to_steps(moments: ArrayLike, seconds_per_step: float, num_steps: int) -> Tensor:
    """Smallest half-open step ranges that cover moments given in seconds.

    Args:
        moments: ``[..., 2]`` in seconds.
        seconds_per_step: Duration of one step.
        num_steps: Number of steps of the video; the result lies inside ``[0, num_steps]``.

    Returns:
        ``[..., 2]`` whole steps (int64), each at least one step long where the video has one.

    Example:
        >>> seconds_to_steps(torch.tensor([0.9, 2.1]), 1.0, 10).tolist()
        [0, 3]
    """
    moments = _as_float(moments)
    check_number(seconds_per_step, "seconds_per_step", above=0)
    if not torch.isfinite(moments).all():
        raise UsageError("a start or an end is not finite")
    steps = moments.double() / seconds_per_step
    # A boundary that should fall on a step must not spill over by rounding error.
    slack = (2 * torch.finfo(moments.dtype).eps * steps.abs()).clamp(min=1e-6)
    start = torch.floor((steps + slack)[..., 0]).clamp(0, max(num_steps - 1, 0))
    end = torch.ceil((steps - slack)[..., 1]).clamp(max=num_steps)
    end = torch.maximum(end, (start + 1).clamp(max=num_steps))
    return torch.stack([start, end], dim=-1).long()


def _centre_length(moments: Tensor) -> tuple[Tensor, Tensor]:
    return (moments[..., 0] + moments[..., 1]) / 2, moments[..., 1] - moments[..., 0]


def to_tensor(
    array: Any, refusal: type[RelocalError] = UsageError, record: str | None = None
) -> Tensor:
    """Give any array of numbers as a tensor: of any strides or byte order, a table, a list of rows.

    Raises:
        RelocalError: The ``refusal``: no numbers are in it that lie in memory one by one.
    """
    try:
        if isinstance(array, list | tuple) and array and isinstance(array[0], Tensor):
            array = torch.stack(array)
        if isinstance(array, Tensor):
            if array.layout == torch.strided and not array.is_quantized:
                return array
            raise TypeError("a dense tensor that holds them wanted")
        if np.ma.is_masked(array):
            raise TypeError("some of them are masked: fill them")
        array = np.asarray(array)
        array = array.astype(float) if array.dtype.char in "Og" else array  # objects, long doubles
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise refusal(f"not an array of numbers ({error})", record=record) from None


def _as_float(moments: ArrayLike) -> Tensor:
    tensor = to_tensor(moments)
    if tensor.shape[-1:] != (2,):
        raise UsageError(f"moments are {list(tensor.shape)}: [..., 2] wanted")
    plain = not tensor.is_floating_point() or isinstance(moments, list | tuple)
    return tensor.double() if plain else tensor
