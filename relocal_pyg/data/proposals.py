"""Where the proposals of a reference come from: a list, or windows like training moments."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.data.features import spellings
from relocal_pyg.data.items import Item
from relocal_pyg.data.proposal_lists import ProposalRecord, read_proposal_list, write_proposal_list
from relocal_pyg.errors import ProposalError
from relocal_pyg.proposals.sliding import default_proposals, geometric_lengths, sliding_windows

__all__ = [
    "ProposalRecord",
    "TagProposals",
    "WindowProposals",
    "read_proposal_list",
    "write_proposal_list",
]


class TagProposals:
    """Proposals from a list as a ``ProposalSource``: cut to an item's context, empty ones dropped.

    A video that the list does not have, or a context that no proposal reaches, gets
    :func:`~relocal_pyg.proposals.sliding.default_proposals` instead; the first such case is warned
    about.

    Args:
        records: Records by video id, see :func:`read_proposal_list`.
        num_steps: Gives the number of steps of a whole video, such as ``FeatureStore.num_steps``
            or ``lengths.__getitem__``.
    """

    def __init__(
        self, records: Mapping[str, ProposalRecord], num_steps: Callable[[str], int]
    ) -> None:
        self.records, self.num_steps = records, num_steps
        self._warned = False

    def __call__(self, item: Item, query_steps: int) -> Tensor:
        """Give the proposals of a reference.

        Args:
            item: The reference.
            query_steps: Length of the query in steps; only windows made instead depend on it.

        Returns:
            float32 ``[M, 2]`` in steps of the item's context, without duplicates, sorted.
        """
        names = (name for name in spellings(item.video_id) if name in self.records)
        name = next(names, None)
        if name is not None:
            steps = torch.from_numpy(self.records[name].moments) * self.num_steps(item.video_id)
            moments = (steps - item.context[0]).clamp(0, item.num_steps).float()
            moments = moments[moments[:, 1] > moments[:, 0]]
            if len(moments):
                return torch.unique(moments, dim=0)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the list has no proposals for {item.item_id}: sliding windows are used there "
                "(said once)",
                stacklevel=2,
            )
        return default_proposals(item.num_steps, query_steps or item.num_steps)


@dataclass(frozen=True)
class WindowProposals:
    """Sliding windows of fixed lengths as a ``ProposalSource``.

    Attributes:
        lengths: Window lengths in steps.
        stride: Stride as a share of a window's length.
    """

    lengths: tuple[int, ...]
    stride: float = 1 / 3

    @classmethod
    def fit(
        cls, items: Sequence[Item], *, ratio: float = 1.3, stride: float = 1 / 3
    ) -> WindowProposals:
        """Take lengths between the 2nd and 98th percentile of the items' moments.

        Args:
            items: Items of the training split.
            ratio: Each length is about this many times the last.
            stride: Stride as a share of a window's length.

        Raises:
            ProposalError: There are no items.
        """
        if not items:
            raise ProposalError("window lengths come from training moments; there are none")
        low, high = np.percentile([item.query_steps for item in items], [2, 98])
        lengths = geometric_lengths(max(1, math.floor(low)), max(1, math.ceil(high)), ratio)
        return cls(tuple(lengths), stride)

    def __call__(self, item: Item, query_steps: int) -> Tensor:
        """Give the windows of a reference, float32 ``[M, 2]`` in steps of its context."""
        return sliding_windows(item.num_steps, self.lengths, self.stride)
