"""Confidence intervals by resampling source videos."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import UsageError


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
        runs: N names of runs; each run holds each cluster.
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
    ends = torch.quantile(means, means.new_tensor([0.025, 0.975]), dim=0)
    low, high = ends.reshape(2, *table.shape[1:])
    return low, high


def _number(names: Sequence[Hashable]) -> tuple[Tensor, int]:
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names]), len(numbers)


def _draw_counts(size: int, samples: int, generator: torch.Generator) -> Tensor:
    """How often each of ``size`` things is drawn in each sample: float64 ``[samples, size]``."""
    drawn = torch.randint(size, (samples, size), generator=generator)
    ones = torch.ones(samples, size, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)
