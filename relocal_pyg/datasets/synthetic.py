"""The embedded default protocol: classes made of sub-actions, unseen ones at test, no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relocal_pyg.data.items import FeatureSource, Item, Protocol
from relocal_pyg.data.proposals import WindowProposals, geometric_lengths
from relocal_pyg.datasets.simulation import (
    SimulatedFeatures,
    VideoPlan,
    World,
    WorldConfig,
    check_fields,
)
from relocal_pyg.errors import UsageError, check_number
from relocal_pyg.io.seeding import generator


@dataclass(frozen=True)
class SyntheticConfig:
    """Size and layout of the synthetic data set, each value with its reason.

    What the videos look like is in ``world``.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    """What the videos show; holds the seed."""
    train_classes: int = 40
    """As many as a network needs to learn what themes and nuisance are, not the classes."""
    val_classes: int = 8
    """Classes of their own, so that stopping early watches unseen classes too."""
    test_classes: int = 16
    """Unseen classes: two of each theme."""
    train_videos: int = 12
    """Videos of a class; 480 in all, which the demonstration makes in a second."""
    val_videos: int = 8
    """Videos of a validation class: about 100 pairs."""
    test_videos: int = 8
    """Videos of a test class: about 190 pairs, a standard error below 4 points."""
    second_action: float = 0.5
    """Chance that a video holds an action of another class of its split; ActivityNet has 1.5
    segments per video."""
    shortest_reference: int = 40
    """In steps; references of ``anet-vrl`` hold 46 in the median and 300 at most."""
    longest_reference: int = 130
    """In steps; at most two minutes, to keep the demonstration quick."""
    shortest_moment: int = 6
    """In steps: room for two sub-actions at least."""
    usual_moment: int = 10
    """Mode of a triangular distribution; the median is then 15 (``anet-vrl``: 12 to 14)."""
    longest_moment: int = 32
    """In steps, the bound of ``anet-vrl``."""
    seconds_per_step: float = 0.5
    """About 16 frames at 30 frames a second, and exact in binary."""
    window_ratio: float = 1.4
    """Each proposal length over the one before it: the best window has tIoU .85 or more by
    length."""
    window_stride: float = 0.3
    """Stride of the proposals as a share of their length. With the ratio: about 135 proposals per
    reference, one of which reaches tIoU .7 for nearly every moment."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_number(self.seconds_per_step, "seconds_per_step", above=0)
        bounds = (1, self.shortest_moment, self.usual_moment, self.longest_moment)
        if list(bounds) != sorted(bounds) or self.shortest_moment == self.longest_moment:
            raise UsageError(
                "1 <= shortest_moment <= usual_moment <= longest_moment must hold, and "
                "the shortest be shorter than the longest"
            )
        if not 2 * self.longest_moment <= self.longest_reference:
            raise UsageError("longest_reference must hold two of the longest moments")
        if not 1 <= self.shortest_reference <= self.longest_reference:
            raise UsageError("shortest_reference must be 1 or more and not over the longest")
        if min(self.train_videos, self.val_videos, self.test_videos) < 2:
            raise UsageError("a class needs two videos or more: one to query, one to search")
        if min(self.train_classes, self.val_classes, self.test_classes) < 1:
            raise UsageError("every split needs a class or more")


@dataclass(frozen=True)
class Sparse:
    """Features of which only what stands out is left: non-negative, mostly zero."""

    source: FeatureSource
    threshold: float = 1.0

    @property
    def dim(self) -> int:
        """Width F."""
        return self.source.dim

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        """Steps ``[n, F]`` of a video."""
        rows = self.source.read(video_id, start, end)
        return torch.relu(rows - self.threshold * rows.std())


def synthetic(config: SyntheticConfig | None = None) -> Protocol:
    """Make the synthetic protocol: disjoint classes and videos in train, val and test.

    Classes are sets of sub-actions, and share them, as real classes do; which of its sub-actions a
    performance shows, in which order and how fast varies (the paper's Figure 2). Around labelled
    actions the videos show background, other activity and partial matches. Features are made when
    first read and then kept.

    Every video is one context.

    Raises:
        UsageError: The configuration contradicts itself.

    Example:
        >>> protocol = synthetic()
        >>> [(name, len(items)) for name, items in protocol.splits.items()]
        [('train', 713), ('val', 97), ('test', 190)]
    """
    config = config or SyntheticConfig()
    sizes = {
        "train": (config.train_classes, config.train_videos),
        "val": (config.val_classes, config.val_videos),
        "test": (config.test_classes, config.test_videos),
    }
    world = World(config.world, sum(classes for classes, _ in sizes.values()))
    numbers = generator(config.world.seed, "split").permutation(len(world.classes))
    plans: dict[str, VideoPlan] = {}
    splits: dict[str, tuple[Item, ...]] = {}
    for split, (num_classes, num_videos) in sizes.items():
        own, numbers = numbers[:num_classes], numbers[num_classes:]
        videos = {
            f"{split}_{index:04d}": own[index % num_classes]
            for index in range(num_classes * num_videos)
        }
        made = {video: _plan(config, own, int(first), video) for video, first in videos.items()}
        plans |= made
        splits[split] = tuple(
            item for video, plan in made.items() for item in _items(config, video, plan)
        )
    lengths = geometric_lengths(config.shortest_moment, config.longest_moment, config.window_ratio)
    return Protocol(
        name="synthetic",
        splits=splits,
        features=SimulatedFeatures(world, plans, cached=len(plans)),
        propose=WindowProposals(tuple(lengths), config.window_stride),
        about={
            "source": "simulated, not recorded: no figure on it compares with one on real video",
            "config": asdict(config),
            "classes": {name: sorted({i.label for i in items}) for name, items in splits.items()},
        },
    )


def _plan(config: SyntheticConfig, classes: NDArray[np.int64], first: int, video: str) -> VideoPlan:
    """Lay out a video with an action of class ``first`` and maybe one of another class."""
    rng = generator(config.world.seed, "layout", video)
    numbers = [first]
    others = classes[classes != first]
    if len(others) and rng.random() < config.second_action:
        numbers.append(int(rng.choice(others)))
    numbers = [numbers[index] for index in rng.permutation(len(numbers))]
    bounds = (config.shortest_moment, config.usual_moment, config.longest_moment)
    lengths = [round(rng.triangular(*bounds)) for _ in numbers]
    shortest = max(config.shortest_reference, sum(lengths))
    num_steps = int(rng.integers(shortest, config.longest_reference + 1))
    # Free steps are split at random before, between and after the actions.
    cuts = np.sort(rng.integers(0, num_steps - sum(lengths) + 1, size=len(numbers)))
    starts = cuts + np.cumsum([0, *lengths[:-1]])
    return VideoPlan(
        num_steps,
        tuple(
            (int(start), int(start) + length, number)
            for start, length, number in zip(starts, lengths, numbers, strict=True)
        ),
    )


def _items(config: SyntheticConfig, video: str, plan: VideoPlan) -> Iterator[Item]:
    for index, (start, end, number) in enumerate(plan.actions):
        yield Item(
            item_id=f"{video}#{index}",
            video_id=video,
            label=f"action_{number:03d}",
            context=(0, plan.num_steps),
            moment=(start, end),
            moments=((start, end),),
            seconds_per_step=config.seconds_per_step,
        )
