"""Confidence intervals by resampling source videos, and how far probabilities are from rates."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import UsageError, check_number

#: Most bins of a calibration error.
MAX_BINS = 10
_LEAST_IN_BIN = 10
#: How often outcomes are drawn from probabilities, for the error by chance.
_DRAWS = 200


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % bootstrap interval.

    Attributes:
        value: The score itself, not the mean of the resampled ones.
        low: Lower end, or None where there is nothing to resample.
        high: Upper end, or None.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def known(cls, value: Tensor, low: Tensor, high: Tensor) -> Estimate:
        """From scalars, of which the ends of the interval may be NaN."""
        if torch.isnan(low) or torch.isnan(high):
            return cls(float(value))
        return cls(float(value), float(low), float(high))

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, printed after ``±``."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2


def bootstrap_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    runs: Sequence[Hashable] | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """95 % percentile interval of a mean, resampling whole clusters instead of single values.

    Pairs that share a source video are not independent: drawing videos with replacement, each with
    all of its pairs, keeps what they have in common. Where ``runs`` are given (training seeds),
    they are drawn with replacement as well, independently of the videos. With R runs this gives a
    spread between runs that is too small by ``(R - 1) / R``, the usual bias of a bootstrap.

    Args:
        values: ``[N]``, or ``[N, V]`` for V means from the same draws.
        clusters: N names of source videos.
        runs: N names of runs. Where runs hold different clusters, draws without any value are left
            out.
        samples: How often to resample.
        seed: Seed of the draws: the same arguments give the same interval.

    Returns:
        Lower and upper ends, float64, scalars or ``[V]``. NaN where there is only one cluster and
        at most one run: nothing can be said then.

    Raises:
        UsageError: Lengths differ, or there is no value.

    Example:
        >>> low, high = bootstrap_interval([0., 0., 1., 1.], ["a", "a", "b", "b"])
        >>> (low.item(), high.item())
        (0.0, 1.0)
    """
    table = torch.as_tensor(values).double()
    if len(table) == 0 or len(clusters) != len(table):
        raise UsageError(f"{len(table)} values and {len(clusters)} clusters")
    if runs is not None and len(runs) != len(table):
        raise UsageError(f"{len(table)} values and {len(runs)} runs")
    columns = table.reshape(len(table), -1)
    cluster, num_clusters = _number(clusters)
    run, num_runs = _number(runs if runs is not None else [0] * len(columns))
    if num_clusters == 1 and num_runs == 1:
        unknown = torch.full(table.shape[1:], torch.nan, dtype=torch.float64)
        return unknown, unknown.clone()
    cell = run * num_clusters + cluster
    sums = columns.new_zeros(num_runs * num_clusters, columns.shape[1]).index_add_(0, cell, columns)
    sizes = torch.bincount(cell, minlength=len(sums)).double()
    generator = torch.Generator().manual_seed(seed)
    drawn_clusters = _draw_counts(num_clusters, samples, generator)
    drawn_runs = _draw_counts(num_runs, samples, generator)
    # A drawn (run, video) counts as often as its run times as often as its video was drawn.
    totals = torch.cat([sums, sizes[:, None]], dim=1).reshape(num_runs, num_clusters, -1)
    drawn = torch.einsum("srv,sr->sv", (drawn_clusters @ totals).transpose(0, 1), drawn_runs)
    means = drawn[:, :-1] / drawn[:, -1:]
    ends = torch.nanquantile(means, means.new_tensor([0.025, 0.975]), dim=0)
    low, high = ends.reshape(2, *table.shape[1:])
    return low, high


def auroc_interval(
    held: Tensor,
    empty: Tensor,
    held_clusters: Sequence[Hashable],
    empty_clusters: Sequence[Hashable],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Area under the ROC curve and its 95 % interval, resampling clusters and runs.

    The area is the chance that something that should score high does score above something that
    should not, ties counted half (Mann and Whitney). Several runs are averaged. A cluster is drawn
    with all of its values of both kinds.

    Args:
        held: ``[R, P]``, scores that should be high, of R runs.
        empty: ``[R, Q]``, scores that should be low.
        held_clusters: P names of source videos.
        empty_clusters: Q names of source videos.
        samples: How often to resample.
        seed: Seed of the draws.

    Returns:
        The area, and the ends of its interval, NaN where there is one cluster and one run, or no
        draw has both kinds.

    Raises:
        UsageError: Lengths differ, there is no value of a kind, or a score is NaN.

    Example:
        >>> held, empty = torch.tensor([[0.9, 0.4]]), torch.tensor([[0.4, 0.1]])
        >>> auroc_interval(held, empty, ["a", "b"], ["c", "d"])[0].item()
        0.875
    """
    if held.numel() == 0 or empty.numel() == 0 or len(held) != len(empty):
        raise UsageError(f"scores {list(held.shape)}, {list(empty.shape)}: [R, P], [R, Q] wanted")
    if held.shape[1] != len(held_clusters) or empty.shape[1] != len(empty_clusters):
        raise UsageError("one cluster a score wanted")
    if held.isnan().any() or empty.isnan().any():
        raise UsageError("a score is no number: it is above and below nothing")
    cluster, num_clusters = _number([*held_clusters, *empty_clusters])
    rows, columns = cluster.split([held.shape[1], empty.shape[1]])
    wins = torch.stack(
        [_wins(a, b, rows, columns, num_clusters) for a, b in zip(held, empty, strict=True)]
    )
    sizes = torch.outer(
        torch.bincount(rows, minlength=num_clusters),
        torch.bincount(columns, minlength=num_clusters),
    ).double()
    value = (wins.sum(dim=(1, 2)) / sizes.sum()).mean()
    if num_clusters == 1 and len(held) == 1:
        unknown = torch.tensor(torch.nan, dtype=torch.float64)
        return value, unknown, unknown.clone()
    generator = torch.Generator().manual_seed(seed)
    drawn = _draw_counts(num_clusters, samples, generator)
    runs = _draw_counts(len(held), samples, generator)
    won = torch.einsum("sa,rab,sb->sr", drawn, wins, drawn)
    met = torch.einsum("sa,ab,sb->s", drawn, sizes, drawn)
    areas = (won * runs).sum(dim=1) / (len(held) * met)
    # A draw without one of the kinds has no area: 0 of 0.
    low, high = torch.nanquantile(areas, areas.new_tensor([0.025, 0.975]))
    return value, low, high


def calibration_error(probabilities: Tensor, outcomes: Tensor) -> tuple[float, float]:
    """Expected calibration error of probabilities ``[N]`` and outcomes, over bins of equal count.

    Answers are sorted by probability and cut into at most ten bins of ten answers or more; the
    error is the mean over bins, by size, of the distance between mean probability and frequency. It
    is never 0 for few answers, which is why the error by chance stands beside it.

    Returns:
        The error, and what so many answers show on average where every probability is exact.

    Example:
        >>> calibration_error(torch.full((20,), 0.5), torch.tensor([1.0, 0.0] * 10))[0]
        0.0
    """
    values, order = probabilities.double().sort(stable=True)
    bins = max(1, min(MAX_BINS, len(values) // _LEAST_IN_BIN))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(_DRAWS, len(values), generator=generator, dtype=torch.float64) < values
    both = torch.cat([outcomes.double()[order][None], drawn.double()])
    gaps = [part.sum(dim=1).abs() for part in (both - values).tensor_split(bins, dim=1)]
    errors = torch.stack(gaps).sum(dim=0) / len(values)
    return errors[0].item(), errors[1:].mean().item()


def _wins(held: Tensor, empty: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Wins of the high kind, ties counted half, by pair of clusters: float64 ``[size, size]``."""
    above = (held[:, None] > empty).double() + (held[:, None] == empty).double() / 2
    by_row = above.new_zeros(size, len(empty)).index_add_(0, rows, above)
    return above.new_zeros(size, size).index_add_(1, columns, by_row)


def _number(names: Sequence[Hashable]) -> tuple[Tensor, int]:
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names]), len(numbers)


def _draw_counts(size: int, samples: int, generator: torch.Generator) -> Tensor:
    """How often each of ``size`` things is drawn in each sample: float64 ``[samples, size]``."""
    check_number(samples, "samples", least=1, whole=True)
    drawn = torch.randint(size, (samples, size), generator=generator)
    ones = torch.ones(samples, size, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)
