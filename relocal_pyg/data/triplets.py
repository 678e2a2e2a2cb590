"""Training triplets (query, positive, negative) as section 5.2.1 draws them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.data.items import Item
from relocal_pyg.data.pair import PairData
from relocal_pyg.data.samples import SeededSamples
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.errors import AnnotationError
from relocal_pyg.moments import encode_offsets, tiou

_T = TypeVar("_T")


class PartnerSampler:
    """Draws a query and its partners from the items of one split.

    A query video is drawn first and then one of its actions, so that a video with many actions does
    not dominate; partners likewise (section 5.2.1).

    Args:
        items: Items of the training split.

    Raises:
        AnnotationError: No class has items in two videos.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = sorted(items)
        self._videos: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
        for item in self._items:
            self._videos[item.label][item.video_id].append(item)
        shared = {label for label, videos in self._videos.items() if len(videos) > 1}
        by_video: dict[str, list[Item]] = defaultdict(list)
        for item in self._items:
            if item.label in shared:
                by_video[item.video_id].append(item)
        if not by_video:
            raise AnnotationError("training needs a class with actions in two videos at least")
        self._queries = list(by_video.values())
        self._labels = sorted(self._videos)
        self._moments: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
        for item in self._items:
            self._moments[item.video_id, item.label].update(item.moments)

    def query(self, rng: np.random.Generator) -> Item:
        """An action whose class also occurs in another video."""
        return _pick(_pick(self._queries, rng), rng)

    def positive(self, query: Item, rng: np.random.Generator) -> Item:
        """An action of the query's class in another video."""
        videos = self._videos[query.label]
        others = [video for video in videos if video != query.video_id]
        return _pick(videos[_pick(others, rng)], rng)

    def negative(self, query: Item, rng: np.random.Generator) -> Item:
        """An action of another class, in a video without the query's class where there is one.

        Raises:
            AnnotationError: Every item is of the query's class.
        """
        labels = [label for label in self._labels if label != query.label]
        if not labels:
            raise AnnotationError("a negative of another class was asked for; there is one class")
        videos = self._videos[_pick(labels, rng)]
        clean = [video for video in videos if (video, query.label) not in self._moments]
        return _pick(videos[_pick(clean or list(videos), rng)], rng)

    def elsewhere(self, query: Item, rng: np.random.Generator) -> Item:
        """Any action of another video, which may show the query's class or not."""
        return _pick([item for item in self._items if item.video_id != query.video_id], rng)

    def moments_inside(self, item: Item, label: str) -> list[tuple[int, int]]:
        """The moments of a class inside the context of an item, in steps of that context."""
        first, last = item.context
        return [
            (max(start, first) - first, min(end, last) - first)
            for start, end in sorted(self._moments.get((item.video_id, label), ()))
            if start < last and end > first
        ]


class TripletDataset(SeededSamples[tuple[PairData, PairData]]):
    """Samples ``(positive pair, negative pair)``; sample ``i`` depends on ``(seed, i)`` alone.

    Each video is represented by its proposal of largest tIoU with its own ground truth. PyG's
    ``DataLoader`` batches the two sides into two Batches. The positive carries ``offsets`` [1, 2],
    the targets of section 4.7.2.

    Args:
        protocol: Where items, features and proposals come from; its ``"train"`` split is used.
        num_samples: Length of the data set.
        seed: Names the stream of samples.
        num_steps: T.
        ks: Graphs whose edges are stored in each pair, where ``materialize`` is set.
        negatives: ``"class"``: another class (the paper); ``"video"``: a proposal of the positive
            reference with tIoU below 0.2 to every ground truth.
        materialize: Store the edges; the network does not need them.
    """

    stream = "triplet"

    def __init__(
        self,
        protocol: Protocol,
        *,
        num_samples: int,
        seed: int,
        num_steps: int = 40,
        ks: Sequence[int] = (1, 2, 3),
        negatives: Literal["class", "video"] = "class",
        materialize: bool = False,
    ) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        self.num_steps, self.ks, self.negatives = num_steps, tuple(ks), negatives
        self.materialize = materialize
        self._sampler = PartnerSampler(protocol.splits["train"])

    def draw(self, rng: np.random.Generator) -> tuple[PairData, PairData]:
        """Draw a query, a positive and a negative."""
        query = self._sampler.query(rng)
        positive = self._sampler.positive(query, rng)
        clip = self.protocol.query(query)
        proposals = self.protocol.proposals(positive, query)
        overlap, truths = best_truths(proposals, positive.truths)
        best = int(overlap.argmax())
        near = self._pair(clip, positive, proposals[best])
        near.offsets = encode_offsets(proposals[best], truths[best])[None]
        far = (overlap < 0.2).nonzero().flatten()
        if self.negatives == "video" and len(far):
            window = proposals[far[int(rng.integers(len(far)))]]
            return near, self._pair(clip, positive, window)
        negative = self._sampler.negative(query, rng)
        proposals = self.protocol.proposals(negative, query)
        overlap, _ = best_truths(proposals, negative.truths)
        return near, self._pair(clip, negative, proposals[int(overlap.argmax())])

    def _pair(self, clip: Tensor, reference: Item, window: Tensor) -> PairData:
        start, end = whole_steps(window, reference.num_steps)
        features = self.protocol.features.read(
            reference.video_id, reference.context[0] + start, reference.context[0] + end
        )
        return PairData.from_features(
            clip, features, num_steps=self.num_steps, ks=self.ks, materialize=self.materialize
        )


def best_truths(proposals: Tensor, truths: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """For each proposal its largest tIoU with a ground truth, and that ground truth.

    Args:
        proposals: ``[M, 2]`` in steps.
        truths: Ground truths in the same steps, at least one.

    Returns:
        tIoU ``[M]`` and moments ``[M, 2]``.
    """
    all_truths = torch.tensor(truths, dtype=proposals.dtype)
    overlap, which = tiou(proposals[:, None], all_truths[None]).max(dim=1)
    return overlap, all_truths[which]


def whole_steps(window: Tensor, num_steps: int) -> tuple[int, int]:
    """The whole steps that a proposal covers, at least one, inside ``[0, num_steps)``.

    Example:
        >>> whole_steps(torch.tensor([1.6, 4.2]), 10)
        (2, 4)
    """
    start = min(max(round(float(window[0])), 0), num_steps - 1)
    return start, min(max(round(float(window[1])), start + 1), num_steps)


def _pick(values: Sequence[_T], rng: np.random.Generator) -> _T:
    return values[int(rng.integers(len(values)))]
