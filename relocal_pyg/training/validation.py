"""What selects weights: the score on validation pairs, and when one is better than another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from relocal_pyg.data.items import Pair, Protocol
from relocal_pyg.evaluation.metrics import above, map_at_1
from relocal_pyg.evaluation.run import overlaps_by_way
from relocal_pyg.evaluation.statistics import Estimate, bootstrap_interval
from relocal_pyg.models.base import Relocalizer

#: Thresholds whose mean mAP@1 selects a model: wide, so that a small set still tells models apart.
SELECTION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Fewest validation videos that can tell a gain from chance: one of three ahead on all three by
#: luck is one in eight.
FEWEST_VIDEOS = 4


def validate(
    model: Relocalizer, protocol: Protocol, pairs: Sequence[Pair], fabric: Fabric | None = None
) -> dict[str, Tensor]:
    """Overlap of the best answer to each validation pair by every way to refine, float64 ``[N]``.

    Args:
        model: The model; a module is put in evaluation mode and back.
        protocol: Where features and proposals are.
        pairs: Validation pairs, never those of a test split.
        fabric: Where given, its processes share the pairs out, each pair once.
    """
    if fabric is None or fabric.world_size == 1:
        return overlaps_by_way(model, protocol, pairs)
    own = slice(fabric.global_rank, None, fabric.world_size)
    found = {}
    for way, overlaps in overlaps_by_way(model, protocol, pairs[own]).items():
        # Zero where another process answers, so that a sum over processes is every answer once.
        shared = torch.zeros(len(pairs), dtype=torch.float64)
        shared[own] = overlaps
        found[way] = cast(Tensor, fabric.all_reduce(shared, reduce_op="sum")).cpu()
    return found


def selection_score(overlaps: Tensor) -> float:
    """The number that selects weights: mean mAP@1 over :data:`SELECTION_THRESHOLDS`."""
    return statistics.fmean(map_at_1(overlaps, SELECTION_THRESHOLDS).values())


def passed(overlaps: Tensor) -> Tensor:
    """Share of :data:`SELECTION_THRESHOLDS` that each answer ``[N]`` passes; its mean is the score.

    Example:
        >>> passed(torch.tensor([0.2, 1.0])).tolist()
        [0.0, 1.0]
    """
    return above(overlaps, SELECTION_THRESHOLDS).double().mean(dim=1)


def paired_gain(ours: Sequence[float], start: Sequence[float], pairs: Sequence[Pair]) -> Estimate:
    """Gain in the score over the start, paired, with its 95 % interval over reference videos.

    Args:
        ours: What each pair passes (:func:`passed`).
        start: The same of the start.
        pairs: The pairs.

    Returns:
        The gain; without an interval where there are fewer than :data:`FEWEST_VIDEOS` videos.
    """
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(start, dtype=torch.float64)
    videos = [pair.reference.video_id for pair in pairs]
    if len(set(videos)) < FEWEST_VIDEOS:
        return Estimate(difference.mean().item())
    return Estimate.known(difference.mean(), *bootstrap_interval(difference, videos))
