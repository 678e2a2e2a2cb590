"""Losses (section 4.7).

The L2 term of the triplet loss, ``lambda * ||theta||^2``, is left to the optimiser: its gradient
``2 * lambda * theta`` is that of ``weight_decay=2 * lambda`` in ``torch.optim.Adam`` (not AdamW).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from relocal_pyg.errors import UsageError


def triplet_loss(positive: Tensor, negative: Tensor, margin: float = 0.5) -> Tensor:
    """Hinge on the scores of a positive and a negative proposal (section 4.7.1).

    ``sum_i max(0, margin - S(q, p)_i + S(q, n)_i)``. A sum over the batch, as in the paper:
    with a mean divide the weight decay by the batch size to keep the balance.

    Args:
        positive: Scores of positive proposals ``[N]``, in ``[-1, 1]``.
        negative: Scores of negative proposals ``[N]``.
        margin: The paper's gamma.

    Example:
        >>> triplet_loss(torch.tensor([0.9, 0.1]), torch.tensor([0.0, 0.0])).item()
        0.4000000059604645
    """
    _check_alike(positive, negative)
    return (margin - positive + negative).clamp(min=0).sum()


def offset_loss(offsets: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over positive proposals of ``|Tc - Tc*| + |Tl - Tl*|`` (section 4.7.2), 0 without any.

    Args:
        offsets: Predictions ``[N, 2]`` as ``[Tc, Tl]``.
        targets: Ground truth ``[N, 2]``, from :func:`relocal_pyg.moments.encode_offsets`.
        mask: Which proposals are positive, bool ``[N]``; all where None.

    Example:
        >>> offset_loss(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2)).item()
        3.0
    """
    _check_alike(offsets, targets)
    distance = (offsets - targets).abs().sum(dim=-1)
    if mask is None:
        return distance.sum() / max(distance.numel(), 1)
    _check_alike(distance, mask)
    if mask.dtype != torch.bool:
        raise UsageError(f"mask is {mask.dtype}, bool wanted")
    # Targets of other proposals may be infinite: they must not meet the sum.
    return torch.where(mask, distance, 0).sum() / mask.sum().clamp(min=1)


def listwise_loss(
    scores: Tensor, tious: Tensor, temperature: float = 0.1, target_temperature: float = 0.1
) -> Tensor:
    """Cross entropy of the ranking of one reference's proposals against that by tIoU.

    The target is ``softmax(tiou / target_temperature)`` and the prediction
    ``softmax(score / temperature)``, both over the proposals of a reference. Not part of the paper.

    Args:
        scores: ``[B, M]``, a row for each query and reference.
        tious: tIoU of each proposal with the ground truth, ``[B, M]``.
        temperature: Divides the scores; they lie in ``[-1, 1]``, so 1 would keep it flat.
        target_temperature: Divides the tIoUs; small values favour the best proposal alone.

    Returns:
        The mean over rows, a scalar.

    Example:
        >>> listwise_loss(torch.zeros(1, 4), torch.zeros(1, 4)).item()
        1.3862943649291992
    """
    _check_alike(scores, tious)
    target = F.softmax(tious / target_temperature, dim=-1)
    return -(target * F.log_softmax(scores / temperature, dim=-1)).sum(dim=-1).mean()


def _check_alike(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise UsageError(f"shapes {list(first.shape)} and {list(second.shape)} differ")
