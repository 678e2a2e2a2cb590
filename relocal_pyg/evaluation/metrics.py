"""Overlaps and what is counted of them: mAP@1, recall, and what the proposals allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relocal_pyg.errors import UsageError, check_number
from relocal_pyg.moments import tiou, to_tensor

#: tIoU thresholds of mAP@1 that the paper lists (section 5.2.3).
THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: Those of our tables, which begin lower.
SHOWN = (0.3, *THRESHOLDS)
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
    answers, targets = to_tensor(moments).double(), to_tensor(truths).double()
    shapes = f"moments {list(answers.shape)}, truths {list(targets.shape)}"
    for tensor in (answers, targets):
        if tensor.ndim not in (2, 3) or tensor.shape[-1] != 2 or 0 in tensor.shape[1:]:
            raise UsageError(f"{shapes}: [N, 2] or [N, K, 2] wanted")
    if len(answers) != len(targets):
        raise UsageError(f"{shapes}: the same N wanted")
    sound = torch.isfinite(answers).all() & torch.isfinite(targets).all()
    if not sound & (targets[..., 0] < targets[..., 1]).all():  # one wait for the device
        reason = "a number is not finite, or a truth does not start before it ends"
        raise UsageError(f"{shapes}: {reason}")
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
    overlaps = overlaps if overlaps.is_floating_point() else overlaps.double()
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
    """Fail where a score rises with its threshold: no fixed set of answers can do that.

    Raises:
        UsageError: A score rises; the thresholds are named. It is a ``ValueError``.
    """
    ordered = sorted(values.items())
    for (low, before), (high, after) in pairwise(ordered):
        if after > before + 1e-9:
            raise UsageError(
                f"the score rises from {before} at tIoU {low} to {after} at {high}: "
                "the figures come from different answers"
            )


class _Key(float):
    """A threshold in a result, which a ``MetricCollection`` may give a prefix or a postfix."""

    def __add__(self, other: Any) -> Any:
        return f"{self}{other}" if isinstance(other, str) else float(self) + other

    def __radd__(self, other: Any) -> Any:
        return f"{other}{self}" if isinstance(other, str) else other + float(self)


class MomentMAP(Metric):
    r"""mAP@1 of section 5.2.3 as a torchmetrics metric: it accumulates and merges over processes.

    .. math::
        mAP@1(\theta) = \frac{1}{N} \sum_i 1[tIoU(s_i, s_i^*) > \theta]

    Every figure of this package that counts hits is counted here.

    Args:
        thresholds: tIoU thresholds, each in ``[0, 1]``.
        strict: Whether the tIoU has to be above the threshold, as in the paper and in
            fengyang0317/video_reloc, or may equal it.
        average: Whether :meth:`compute` also gives ``"avg_mAP@1"``, the mean over .5:.1:.9, which
            fengyang0317/video_reloc logs as ``IoU/mean``.

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

    hits: Tensor
    averaged_hits: Tensor
    total: Tensor
    settings: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = THRESHOLDS,
        strict: bool = True,
        average: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        several = thresholds if isinstance(thresholds, Iterable) else [thresholds]
        self.thresholds = values = tuple(map(_Key, several))
        if not values or not all(0 <= value <= 1 for value in values):
            raise UsageError(f"thresholds {values}: one or more numbers in [0, 1] wanted")
        self.strict = strict
        self.average = average
        counts = torch.zeros(len(self.thresholds), dtype=torch.long)
        self.add_state("hits", default=counts, dist_reduce_fx="sum")
        averaged = torch.zeros(len(AVERAGED), dtype=torch.long)
        self.add_state("averaged_hits", default=averaged, dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")
        # A MetricCollection lets metrics of equal states count for each other from then on.
        self.add_state("settings", default=torch.tensor([strict, *values]), dist_reduce_fx="max")

    def update(self, pred_moments: Tensor, true_moments: Tensor | None = None) -> None:
        """Add the answers to some queries.

        Args:
            pred_moments: ``[N, 2]``, one answer a query; or ``[N, K, 2]``, of which the best one
                counts: then R@K is computed. Or, without truths, overlaps ``[N]`` that are known.
            true_moments: ``[N, 2]``, or ``[N, G, 2]`` where several truths count, filled up by
                repeating one of them (:func:`stack_moments`).

        Raises:
            UsageError: Shapes do not fit, a number is not finite, a truth is empty, or what should
                be an overlap is outside ``[0, 1]``.
        """
        if true_moments is None:
            tious = to_tensor(pred_moments)
            tious = tious if tious.is_floating_point() else tious.double()
            if tious.ndim != 1 or not ((tious >= 0) & (tious <= 1)).all():
                raise UsageError(f"overlaps are {list(tious.shape)}: [N] in [0, 1] wanted")
        else:
            tious = best_tiou(pred_moments, true_moments)
            tious = tious.amax(dim=1) if tious.ndim == 2 else tious
        self.hits += above(tious, self.thresholds, strict=self.strict).sum(dim=0)
        self.averaged_hits += above(tious, AVERAGED, strict=self.strict).sum(dim=0)
        self.total += len(tious)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same thresholds counted.

        Raises:
            UsageError: It has others.
        """
        state = incoming_state if isinstance(incoming_state, dict) else vars(incoming_state)
        if not torch.equal(state["settings"].to(self.settings), self.settings):
            raise UsageError("a metric with the same thresholds wanted")
        super().merge_state(incoming_state)

    def compute(self) -> dict[Any, Tensor]:
        """Give mAP@1 by threshold, each in ``[0, 1]``, float64.

        Returns:
            One entry a threshold, the float itself as the key; with ``average`` also
            ``"avg_mAP@1"``. NaN before the first update.
        """
        shares = self.hits.double() / self.total
        # One wait for the device, not one a threshold.
        check_monotone(dict(zip(self.thresholds, shares.tolist(), strict=True)))
        values: dict[Any, Tensor] = dict(zip(self.thresholds, shares, strict=True))
        if self.average:
            values["avg_mAP@1"] = self.averaged_hits.double().mean() / self.total
        return values


def map_at_1(tious: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> dict[float, float]:
    """mAP@1 of overlaps ``[N]`` by threshold, as :class:`MomentMAP` counts it.

    Example:
        >>> map_at_1(torch.tensor([0.6, 0.2]), (0.5, 0.6))
        {0.5: 0.5, 0.6: 0.0}
    """
    metric = MomentMAP(thresholds)
    metric.update(tious)
    return {threshold: float(value) for threshold, value in metric.compute().items()}


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

    Raises:
        UsageError: There is no bound, or they do not rise.
    """
    if not len(bounds) or any(low >= high for low, high in pairwise(bounds)):
        raise UsageError(f"bounds {tuple(bounds)}: one or more rising lengths wanted")
    number = torch.bucketize(lengths.double(), torch.tensor(bounds).double(), right=True)
    middle = [f"{low:g}-{high:g} s" for low, high in pairwise(bounds)]
    names = [f"< {bounds[0]:g} s", *middle, f">= {bounds[-1]:g} s"]
    return {name: number == i for i, name in enumerate(names)}


def oracle(proposals: Tensor, truths: Tensor) -> Tensor:
    """Overlap of the best proposal of one reference: no ranking of them can do better.

    Args:
        proposals: ``[M, 2]``.
        truths: ``[G, 2]``.

    Returns:
        A scalar, 0 where there is no proposal or nothing to find.

    Example:
        >>> oracle(torch.tensor([[0, 4], [2, 8]]), torch.tensor([[2, 6]])).item()
        0.6666666666666666
    """
    best = recall_by_budget(proposals, truths, (max(len(proposals), 1),))
    return best.amax() if best.numel() else torch.zeros((), dtype=torch.float64)


def recall_by_budget(proposals: Tensor, truths: Tensor, budgets: Sequence[int] = BUDGETS) -> Tensor:
    """Overlap ``[budgets, G]`` of each truth of a reference with the best of its first proposals.

    Example:
        >>> proposals, truths = torch.tensor([[0, 4], [2, 6]]), torch.tensor([[2, 6]])
        >>> recall_by_budget(proposals, truths, (1, 2)).tolist()
        [[0.3333333333333333], [1.0]]

    Raises:
        UsageError: A budget is below 1.
    """
    for budget in budgets:
        check_number(budget, "budget", least=1, whole=True)
    if len(proposals) == 0:
        return torch.zeros(len(budgets), len(truths), dtype=torch.float64)
    overlaps = tiou(proposals[:, None].double(), truths[None].double()).cummax(dim=0).values
    return overlaps[torch.tensor(budgets).clamp(max=len(proposals)) - 1]
