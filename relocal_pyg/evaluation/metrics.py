"""What the proposals allow: the best that any ranking of them could reach."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relocal_pyg.errors import UsageError
from relocal_pyg.moments import tiou

#: tIoU thresholds of mAP@1 that the paper lists (section 5.2.3).
THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: tIoU thresholds that ``avg_mAP@1`` averages over.
AVERAGED = (0.5, 0.6, 0.7, 0.8, 0.9)
#: tIoU thresholds of average recall, as in the ActivityNet proposal task.
RECALL_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: Numbers of proposals at which average recall is given.
BUDGETS = (1, 5, 10, 50, 100)
#: Lengths in seconds that divide short, middle and long truths.
LENGTH_BOUNDS = (10.0, 30.0)


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


class MomentMAP(Metric):
    r"""mAP@1 of section 5.2.3 as a torchmetrics metric: it accumulates and merges over processes.

    .. math::
        mAP@1(\theta) = \frac{1}{N} \sum_i 1[tIoU(s_i, s_i^*) > \theta]

    Args:
        thresholds: tIoU thresholds, each in ``[0, 1]``.
        strict: Whether the tIoU has to be above the threshold, as in the paper and in
            fengyang0317/video_reloc, or may equal it.
        average: Whether :meth:`compute` also gives ``"avg_mAP@1"``, the mean over .5:.1:.9.

    Raises:
        UsageError: A threshold is outside ``[0, 1]``, or there is none.

    Example:
        >>> metric = MomentMAP(thresholds=(0.5, 0.9))
        >>> metric.update(torch.tensor([[0., 10.], [0., 5.]]), torch.tensor([[0., 10.], [0., 10.]]))
        >>> {threshold: value.item() for threshold, value in metric.compute().items()}
        {0.5: 0.5, 0.9: 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    averaged_hits: Tensor
    total: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = THRESHOLDS,
        strict: bool = True,
        average: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.thresholds = _as_thresholds(thresholds)
        self.strict = strict
        self.average = average
        counts = torch.zeros(len(self.thresholds), dtype=torch.long)
        self.add_state("hits", default=counts, dist_reduce_fx="sum")
        averaged = torch.zeros(len(AVERAGED), dtype=torch.long)
        self.add_state("averaged_hits", default=averaged, dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pred_moments: Tensor, true_moments: Tensor) -> None:
        """Add the best answers of some queries.

        Args:
            pred_moments: ``[N, 2]``, one answer a query.
            true_moments: ``[N, 2]``, or ``[N, G, 2]`` where several truths count, filled up by
                repeating one of them (:func:`stack_moments`).

        Raises:
            UsageError: Shapes do not fit, a number is not finite, or a truth is empty.
        """
        overlaps = best_tiou(pred_moments, true_moments)
        if overlaps.ndim != 1:
            raise UsageError(f"pred_moments {list(pred_moments.shape)}: [N, 2] wanted")
        self.hits += above(overlaps, self.thresholds, strict=self.strict).sum(dim=0)
        self.averaged_hits += above(overlaps, AVERAGED, strict=self.strict).sum(dim=0)
        self.total += len(overlaps)

    def compute(self) -> dict[Any, Tensor]:
        """Give mAP@1 by threshold, each in ``[0, 1]``, float64.

        Returns:
            One entry a threshold, the float itself as the key; with ``average`` also
            ``"avg_mAP@1"``. NaN before the first update.
        """
        values: dict[Any, Tensor] = {
            threshold: count.double() / self.total
            for threshold, count in zip(self.thresholds, self.hits, strict=True)
        }
        check_monotone({threshold: float(value) for threshold, value in values.items()})
        if self.average:
            values["avg_mAP@1"] = self.averaged_hits.double().mean() / self.total
        return values


def map_at_1(
    pred_moments: Tensor,
    true_moments: Tensor,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    strict: bool = True,
) -> dict[float, Tensor]:
    """mAP@1 of section 5.2.3 (micro): the functional twin of :class:`MomentMAP`.

    Args:
        pred_moments: ``[N, 2]``, one answer a query.
        true_moments: ``[N, 2]`` or ``[N, G, 2]``, see :meth:`MomentMAP.update`.
        thresholds: tIoU thresholds.
        strict: Whether the tIoU has to be above the threshold.

    Returns:
        mAP@1 in ``[0, 1]`` by threshold.

    Example:
        >>> values = map_at_1(torch.tensor([[0, 3]]), torch.tensor([[0, 5]]), (0.5, 0.6))
        >>> [value.item() for value in values.values()]
        [1.0, 0.0]
    """
    return recall_at(pred_moments[:, None], true_moments, 1, thresholds, strict=strict)


def average_map_at_1(pred_moments: Tensor, true_moments: Tensor, *, strict: bool = True) -> Tensor:
    """``avg_mAP@1``: the mean of mAP@1 over the thresholds .5, .6, .7, .8, .9.

    fengyang0317/video_reloc logs this figure as ``IoU/mean``.

    Example:
        >>> average_map_at_1(torch.tensor([[0, 3]]), torch.tensor([[0, 4]])).item()
        0.6
    """
    values = map_at_1(pred_moments, true_moments, AVERAGED, strict=strict)
    return torch.stack(list(values.values())).mean()


def macro_map_at_1(
    pred_moments: Tensor,
    true_moments: Tensor,
    labels: Sequence[Hashable],
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    strict: bool = True,
) -> dict[float, Tensor]:
    """mAP@1 of each class, averaged over classes: every class counts the same.

    Args:
        pred_moments: ``[N, 2]``.
        true_moments: ``[N, 2]`` or ``[N, G, 2]``.
        labels: N class names.
        thresholds: tIoU thresholds.
        strict: Whether the tIoU has to be above the threshold.

    Returns:
        Mean over classes in ``[0, 1]`` by threshold.

    Example:
        >>> answers = torch.tensor([[0, 4], [0, 4], [0, 4]])
        >>> truths = torch.tensor([[0, 4], [0, 4], [6, 8]])
        >>> macro_map_at_1(answers, truths, ["run", "run", "jump"], (0.5,))[0.5].item()
        0.5
    """
    overlaps = best_tiou(pred_moments, true_moments)
    values = class_mean(above(overlaps, thresholds, strict=strict), labels)
    return dict(zip(thresholds, values, strict=True))


def class_mean(values: Tensor, labels: Sequence[Hashable]) -> Tensor:
    """Mean of each class, averaged over classes.

    Args:
        values: ``[N, V]``, one row a query.
        labels: N class names.

    Returns:
        float64 ``[V]``; NaN without queries.

    Raises:
        UsageError: There is not one label a row.

    Example:
        >>> class_mean(torch.tensor([[1.0], [1.0], [0.0]]), ["run", "run", "jump"]).tolist()
        [0.5]
    """
    if len(labels) != len(values):
        raise UsageError(f"{len(labels)} labels for {len(values)} queries")
    numbers: dict[Hashable, int] = {}
    classes = torch.tensor([numbers.setdefault(x, len(numbers)) for x in labels], dtype=torch.long)
    sums = torch.zeros(len(numbers), values.shape[1], dtype=torch.float64)
    sums.index_add_(0, classes, values.double())
    return (sums / torch.bincount(classes, minlength=len(numbers))[:, None]).mean(dim=0)


def recall_at(
    pred_moments: Tensor,
    true_moments: Tensor,
    k: int,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    strict: bool = True,
) -> dict[float, Tensor]:
    """R@k: the share of queries with a truth met by one of the first k answers.

    Args:
        pred_moments: ``[N, K, 2]``, best first; fewer than k answers are taken as they are.
        true_moments: ``[N, 2]`` or ``[N, G, 2]``; meeting one truth is enough.
        k: How many answers count.
        thresholds: tIoU thresholds.
        strict: Whether the tIoU has to be above the threshold.

    Returns:
        R@k in ``[0, 1]`` by threshold; NaN without queries.

    Example:
        >>> answers = torch.tensor([[[0, 2], [4, 8]]])
        >>> recall_at(answers, torch.tensor([[4, 8]]), 5, (0.5,))[0.5].item()
        1.0
    """
    if k < 1 or pred_moments.ndim != 3:
        raise UsageError(f"k = {k}, answers {list(pred_moments.shape)}: k >= 1, [N, K, 2] wanted")
    overlaps = best_tiou(pred_moments[:, :k], true_moments).amax(dim=1)
    values = above(overlaps, thresholds, strict=strict).double().mean(dim=0)
    return dict(zip(thresholds, values, strict=True))


def mean_iou(pred_moments: Tensor, true_moments: Tensor) -> Tensor:
    """Mean tIoU of the best answers (the true mIoU).

    Args:
        pred_moments: ``[N, 2]``.
        true_moments: ``[N, 2]`` or ``[N, G, 2]``.

    Returns:
        A scalar in ``[0, 1]``.

    Example:
        >>> mean_iou(torch.tensor([[0, 4], [0, 2]]), torch.tensor([[0, 4], [0, 4]])).item()
        0.75
    """
    return best_tiou(pred_moments, true_moments).mean()


def length_buckets(lengths: Tensor, bounds: Sequence[float] = LENGTH_BOUNDS) -> dict[str, Tensor]:
    """Sort queries by the length of their truth.

    Args:
        lengths: ``[N]`` lengths of the truths in seconds.
        bounds: Rising lengths in seconds that part the buckets; a length equal to a bound belongs
            to the longer bucket.

    Returns:
        By name of the bucket, short first: bool ``[N]``, the queries inside.

    Example:
        >>> buckets = length_buckets(torch.tensor([4.0, 10.0, 80.0]))
        >>> {name: inside.nonzero().flatten().tolist() for name, inside in buckets.items()}
        {'< 10 s': [0], '10-30 s': [1], '>= 30 s': [2]}
    """
    limits = torch.tensor(bounds, dtype=lengths.dtype)
    number = torch.bucketize(lengths, limits, right=True)
    middle = [f"{low:g}-{high:g} s" for low, high in pairwise(bounds)]
    names = [f"< {bounds[0]:g} s", *middle, f">= {bounds[-1]:g} s"]
    return {name: number == i for i, name in enumerate(names)}


def _as_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(threshold) for threshold in thresholds)
    if not values or not all(0 <= value <= 1 for value in values):
        raise UsageError(f"thresholds {values}: one or more numbers in [0, 1] wanted")
    return values


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
