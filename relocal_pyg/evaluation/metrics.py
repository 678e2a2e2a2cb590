"""Metrics of video relocalization: how often the best answer overlaps the truth enough.

``mAP@1`` of section 5.2.3 is neither a mean over classes nor an average precision: it is the share
of queries whose best answer has a tIoU above the threshold, over all queries (micro). It is given
here under the name the field uses. The mean over the thresholds .5, .6, .7, .8, .9 is called
``avg_mAP@1``; some public code prints it as a mean IoU, which it is not. The mean of the tIoU
itself is :func:`mean_iou`.

Units (seconds or steps) are the caller's: one of them throughout.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation.overlaps import above, best_tiou, check_monotone
from relocal_pyg.evaluation.thresholds import AVERAGED, LENGTH_BOUNDS, THRESHOLDS


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
