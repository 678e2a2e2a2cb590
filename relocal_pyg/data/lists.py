"""Listwise training samples: one query, one reference, many of its proposals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from relocal_pyg.data.items import Item
from relocal_pyg.data.samples import SeededSamples
from relocal_pyg.data.triplets import PartnerSampler, best_truths
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.moments import encode_offsets

#: A target that also counts proposals which are nearly the best: what few items can teach.
SOFT_TARGET = 0.1
#: Training items below which a sharper target was learned by heart.
FEW_ITEMS = 100


class ListDataset(SeededSamples[Data]):
    """Samples of one query and the graded proposals of one reference.

    A triplet of two classes never shows a network where a moment ends; a list of overlapping
    proposals of one reference, graded by tIoU, does. Proposals of a further video, mostly without
    the action, make scores comparable across videos: one that holds the action has to win against
    one that does not. Sample ``i`` depends on ``(seed, i)`` alone.

    Each sample is a ``Data`` with ``query`` [m, F], ``reference`` [n, F], ``query_video`` [v, F],
    ``proposals`` [M, 2] in steps, ``overlap`` [M] (tIoU with the best ground truth), ``offsets``
    [M, 2] (targets of section 4.7.2) and ``temperature`` [1]; with ``far_proposals`` also
    ``far_reference`` [n', F], ``far_proposals`` [N, 2] and ``far_overlap`` [N].

    Args:
        protocol: Where items, features and proposals come from; its ``"train"`` split is used.
        num_samples: Length of the data set.
        seed: Names the stream of samples.
        list_length: Proposals kept; half of them, where there are so many, overlap a ground truth.
        far_proposals: Proposals kept of one more reference, that of any action of another video;
            half of them, where there are so many, overlap that action.
        target_temperature: Divides the tIoUs of a list; at least 0.1 where the split has fewer than
            100 items.
        surroundings: Share of the samples whose query comes with the video it was cut from; the
            others are bare clips.
    """

    stream = "list"

    def __init__(
        self,
        protocol: Protocol,
        *,
        num_samples: int,
        seed: int,
        list_length: int = 48,
        far_proposals: int = 0,
        target_temperature: float = SOFT_TARGET,
        surroundings: float = 1.0,
    ) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        self.list_length, self.far_proposals = list_length, far_proposals
        self.surroundings = surroundings
        few = len(protocol.splits["train"]) < FEW_ITEMS
        self.temperature = max(target_temperature, SOFT_TARGET) if few else target_temperature
        self._sampler = PartnerSampler(protocol.splits["train"])

    def draw(self, rng: np.random.Generator) -> Data:
        """Draw a query, a reference and its list."""
        query = self._sampler.query(rng)
        reference = self._sampler.positive(query, rng)
        proposals = self.protocol.proposals(reference, query)
        overlap, truths = best_truths(proposals, reference.truths)
        kept = choose_proposals(overlap, self.list_length, rng)
        proposals, overlap, truths = proposals[kept], overlap[kept], truths[kept]
        clip = self.protocol.query(query)
        bare = rng.random() >= self.surroundings
        return Data(
            query=clip,
            reference=self.protocol.reference(reference),
            query_video=clip[:0] if bare else self.protocol.reference(query),
            proposals=proposals,
            overlap=overlap,
            offsets=encode_offsets(proposals, truths),
            temperature=torch.tensor([self.temperature]),
            num_nodes=len(proposals),
            **(self._far(query, rng) if self.far_proposals else {}),
        )

    def _far(self, query: Item, rng: np.random.Generator) -> dict[str, Tensor]:
        """Graded proposals of another video, half of them at an action, mostly of another class."""
        item = self._sampler.elsewhere(query, rng)
        proposals = self.protocol.proposals(item, query)
        own, _ = best_truths(proposals, item.truths)
        proposals = proposals[choose_proposals(own, self.far_proposals, rng)]
        truths = self._sampler.moments_inside(item, query.label)
        overlap = proposals.new_zeros(len(proposals))
        if truths:
            overlap, _ = best_truths(proposals, truths)
        return {
            "far_reference": self.protocol.reference(item),
            "far_proposals": proposals,
            "far_overlap": overlap,
        }


def choose_proposals(overlap: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Pick proposals for a list: the best, up to half that overlap a truth, the rest at random.

    Args:
        overlap: tIoU ``[M]`` of each proposal with its best ground truth.
        count: How many to pick; all where there are no more.
        rng: Source of randomness.

    Returns:
        Sorted positions ``[min(M, count)]``.
    """
    if len(overlap) <= count:
        return torch.arange(len(overlap))
    best = int(overlap.argmax())
    shuffled = torch.from_numpy(rng.permutation(len(overlap)))
    shuffled = shuffled[shuffled != best]
    near = overlap[shuffled] > 0.3
    first = shuffled[near][: count // 2]
    rest = torch.cat([shuffled[~near], shuffled[near][count // 2 :]])
    picked = torch.cat([torch.tensor([best]), first, rest])[:count]
    return picked.sort().values
