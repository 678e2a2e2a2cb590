"""Every score that is a mean over queries, with its confidence interval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relocal_pyg.evaluation.bootstrap import bootstrap_interval
from relocal_pyg.evaluation.overlaps import above, check_monotone
from relocal_pyg.evaluation.thresholds import AVERAGED, THRESHOLDS


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


def estimate_scores(
    tious: Tensor,
    clusters: Sequence[Hashable],
    *,
    best_of_5: Tensor | None = None,
    instances: Tensor | None = None,
    before: Tensor | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every score that is a mean over queries, each with its interval.

    Several runs of one system (training seeds) are averaged; their interval resamples source
    videos and runs, see :func:`bootstrap_interval`.

    Args:
        tious: ``[R, N]`` tIoU of the best answer, R runs over the same N pairs.
        clusters: N source videos of the references.
        best_of_5: ``[R, N]`` best tIoU of the first five answers.
        instances: ``[R, N]`` share of the reference's truths met by the first five answers.
        before: ``[R, N]`` tIoU of the best answer before boundary refinement.
        samples: How often to resample.
        seed: Seed of the draws.

    Returns:
        By name: ``mAP@1@<threshold>``, ``avg_mAP@1``, ``mIoU``, ``R@5@<threshold>``,
        ``all@5@0.5`` and the first three with ``before/`` in front.
    """
    columns = {**_scores("", tious)}
    if best_of_5 is not None:
        columns |= {f"R@5@{t:g}": above(best_of_5, (t,))[..., 0].double() for t in THRESHOLDS}
    if instances is not None:
        columns["all@5@0.5"] = instances.double()
    if before is not None:
        columns |= _scores("before/", before)
    num_runs, num_pairs = tious.shape
    table = torch.stack([column.reshape(-1) for column in columns.values()], dim=1)
    values = table.mean(dim=0)
    runs = torch.arange(num_runs).repeat_interleave(num_pairs).tolist()
    low, high = bootstrap_interval(
        table, list(clusters) * num_runs, runs, samples=samples, seed=seed
    )
    scores = {
        name: Estimate.known(value, bottom, top)
        for name, value, bottom, top in zip(columns, values, low, high, strict=True)
    }
    for kind in ("mAP@1@", "before/mAP@1@", "R@5@"):
        steps = {t: scores[f"{kind}{t:g}"].value for t in THRESHOLDS if f"{kind}{t:g}" in scores}
        check_monotone(steps)
    return scores


def _scores(prefix: str, tious: Tensor) -> dict[str, Tensor]:
    """Per-query values ``[R, N]`` whose means are the scores."""
    passed = above(tious.double(), THRESHOLDS).double()
    by_threshold = {f"{prefix}mAP@1@{t:g}": passed[..., i] for i, t in enumerate(THRESHOLDS)}
    averaged = above(tious.double(), AVERAGED).double().mean(dim=-1)
    return {**by_threshold, f"{prefix}avg_mAP@1": averaged, f"{prefix}mIoU": tious.double()}
