"""What the proposals allow: the best that any ranking of them could reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relocal_pyg.evaluation.overlaps import above
from relocal_pyg.evaluation.thresholds import BUDGETS, RECALL_THRESHOLDS
from relocal_pyg.moments import tiou


def oracle(proposals: Tensor, truths: Tensor) -> Tensor:
    """Overlap of the best proposal of one reference: no ranking of them can do better.

    Args:
        proposals: ``[M, 2]``; none give 0.
        truths: ``[G, 2]``.

    Example:
        >>> oracle(torch.tensor([[0, 4], [2, 8]]), torch.tensor([[2, 6]])).item()
        0.6666666666666666
    """
    return recall_by_budget(proposals, truths, (max(len(proposals), 1),)).amax()


def recall_by_budget(proposals: Tensor, truths: Tensor, budgets: Sequence[int] = BUDGETS) -> Tensor:
    """Overlap of each truth of one reference with the best of its first few proposals.

    Args:
        proposals: ``[M, 2]`` in the order of the list.
        truths: ``[G, 2]``.
        budgets: Numbers of proposals to look at, each at least 1.

    Returns:
        float64 ``[len(budgets), G]``.

    Example:
        >>> proposals, truths = torch.tensor([[0, 4], [2, 6]]), torch.tensor([[2, 6]])
        >>> recall_by_budget(proposals, truths, (1, 2)).tolist()
        [[0.3333333333333333], [1.0]]
    """
    if len(proposals) == 0:
        return torch.zeros(len(budgets), len(truths), dtype=torch.float64)
    overlaps = tiou(proposals[:, None].double(), truths[None].double()).cummax(dim=0).values
    return overlaps[torch.tensor(budgets).clamp(max=len(proposals)) - 1]


def average_recall(
    proposals: Sequence[Tensor],
    truths: Sequence[Tensor],
    budgets: Sequence[int] = BUDGETS,
    thresholds: Sequence[float] = RECALL_THRESHOLDS,
    *,
    strict: bool = True,
) -> dict[int, Tensor]:
    """AR@AN: recall of the truths by the first few proposals, averaged over thresholds.

    Args:
        proposals: One ``[M, 2]`` a reference, in the order of the list.
        truths: One ``[G, 2]`` a reference; every truth counts once.
        budgets: Numbers of proposals; each reference gives at most so many.
        thresholds: tIoU thresholds, .5:.05:.95 by default.
        strict: Whether the tIoU has to be above the threshold; the ActivityNet tools use ``>=``.

    Returns:
        Average recall in ``[0, 1]`` by number of proposals.

    Example:
        >>> proposals, truths = torch.tensor([[0, 4], [2, 6]]), torch.tensor([[2, 6]])
        >>> recall = average_recall([proposals], [truths], budgets=(1, 2))
        >>> {budget: value.item() for budget, value in recall.items()}
        {1: 0.0, 2: 1.0}
    """
    best = [recall_by_budget(p, t, budgets) for p, t in zip(proposals, truths, strict=True)]
    overlaps = torch.cat(best, dim=1) if best else torch.zeros(len(budgets), 0)
    values = above(overlaps, thresholds, strict=strict).double().mean(dim=(1, 2))
    return dict(zip(budgets, values, strict=True))
