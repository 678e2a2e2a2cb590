"""Losses (section 4.7), each as a function and as a module.

The L2 term of the triplet loss, ``lambda * ||theta||^2``, is left to the optimiser: its gradient
``2 * lambda * theta`` is that of ``weight_decay=2 * lambda`` in ``torch.optim.Adam`` (not AdamW).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relocal_pyg.errors import UsageError


def triplet_loss(
    positive: Tensor,
    negative: Tensor,
    margin: float = 0.5,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Hinge on the scores of a positive and a negative proposal (section 4.7.1).

    ``sum_i max(0, margin - S(q, p)_i + S(q, n)_i)``. The paper sums over the batch; with
    ``"mean"`` divide the weight decay by the batch size to keep the balance.

    Args:
        positive: Scores of positive proposals ``[N]``, in ``[-1, 1]``.
        negative: Scores of negative proposals ``[N]``.
        margin: The paper's gamma.
        reduction: How to put the triplets together.

    Returns:
        The loss, a scalar.

    Example:
        >>> triplet_loss(torch.tensor([0.9, 0.1]), torch.tensor([0.0, 0.0])).item()
        0.4000000059604645
    """
    hinge = (margin - positive + negative).clamp(min=0)
    return hinge.mean() if reduction == "mean" else hinge.sum()


def offset_loss(offsets: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over positive proposals of ``|Tc - Tc*| + |Tl - Tl*|`` (section 4.7.2).

    Args:
        offsets: Predictions ``[N, 2]`` as ``[Tc, Tl]``.
        targets: Ground truth ``[N, 2]``, from :func:`relocal_pyg.moments.encode_offsets`.
        mask: Which proposals are positive, bool ``[N]``; all where None.

    Returns:
        The loss, a scalar; 0 where nothing is positive.

    Example:
        >>> offset_loss(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2)).item()
        3.0
    """
    if offsets.shape != targets.shape:
        raise UsageError(
            f"offsets {tuple(offsets.shape)} and targets {tuple(targets.shape)} differ"
        )
    distance = (offsets - targets).abs().sum(dim=-1)
    if mask is None:
        return distance.mean()
    # Targets of other proposals may be infinite: they must not meet the sum.
    return torch.where(mask, distance, 0).sum() / mask.sum().clamp(min=1)


def listwise_loss(
    scores: Tensor,
    tious: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.1,
    target_temperature: float = 0.1,
) -> Tensor:
    """Cross entropy of the ranking of one reference's proposals against that by tIoU.

    The target is ``softmax(tiou / target_temperature)`` and the prediction
    ``softmax(score / temperature)``, both over the proposals of a reference. Not part of the paper.

    Args:
        scores: ``[B, M]``, a row for each query and reference.
        tious: tIoU of each proposal with the ground truth, ``[B, M]``.
        mask: Which entries are proposals, bool ``[B, M]``; all where None. A row without any
            counts for nothing.
        temperature: Divides the scores; they lie in ``[-1, 1]``, so 1 would keep it flat.
        target_temperature: Divides the tIoUs; small values favour the best proposal alone.

    Returns:
        The mean over rows, a scalar.

    Example:
        >>> listwise_loss(torch.zeros(1, 4), torch.zeros(1, 4)).item()
        1.3862943649291992
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    lowest = torch.finfo(scores.dtype).min
    target = F.softmax((tious / target_temperature).masked_fill(~mask, lowest), dim=-1)
    log_prediction = F.log_softmax((scores / temperature).masked_fill(~mask, lowest), dim=-1)
    entropy = -torch.where(mask, target * log_prediction, 0).sum(dim=-1)
    return entropy.sum() / mask.any(dim=-1).sum().clamp(min=1)


class TripletLoss(nn.Module):
    """:func:`triplet_loss` as a module: ``(positive [N], negative [N]) -> scalar``.

    Args:
        margin: The paper's gamma.
        reduction: ``"sum"`` (the paper) or ``"mean"``.
    """

    def __init__(self, margin: float = 0.5, reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise UsageError(f"reduction {reduction!r}: sum or mean wanted")
        self.margin, self.reduction = margin, reduction

    def forward(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the loss; shapes as in :func:`triplet_loss`."""
        return triplet_loss(positive, negative, self.margin, self.reduction)


class OffsetLoss(nn.Module):
    """:func:`offset_loss` as a module: ``(offsets [N, 2], targets [N, 2], mask [N]) -> scalar``."""

    def forward(self, offsets: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss; shapes as in :func:`offset_loss`."""
        return offset_loss(offsets, targets, mask)


class ListwiseLoss(nn.Module):
    """:func:`listwise_loss` as a module: ``(scores [B, M], tious [B, M], mask) -> scalar``.

    Args:
        temperature: Divides the scores.
        target_temperature: Divides the tIoUs.
    """

    def __init__(self, temperature: float = 0.1, target_temperature: float = 0.1) -> None:
        super().__init__()
        if not (temperature > 0 and target_temperature > 0):
            raise UsageError("both temperatures must be above 0")
        self.temperature, self.target_temperature = temperature, target_temperature

    def forward(self, scores: Tensor, tious: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss; shapes as in :func:`listwise_loss`."""
        return listwise_loss(scores, tious, mask, self.temperature, self.target_temperature)
