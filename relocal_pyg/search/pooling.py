r"""Scores of a first stage as inner products: a vector a proposal, a direction a query and video.

The training-free matcher scores a proposal by the mean similarity of its steps to one direction,
minus a share of the mean around it. The mean can be taken of the vectors instead of the
similarities, once, when a video is indexed: :math:`v = \mathrm{mean}_{in}\, u -
\tfrac12 \mathrm{mean}_{around}\, u` of the unit rows :math:`u_t`, and the score is :math:`v \cdot
d`. A network that compares steps with the query does so after a learned map of the features; of its
proposals the means inside and around are kept apart, since it weighs them in its own way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.models.contrast import contrast_scores
from relocal_pyg.models.pair_inputs import PairInputBuilder, centre

#: Videos whose directions are found at once.
_BLOCK = 256


class Pooling(Protocol):
    """How proposals and queries become vectors.

    Attributes:
        apart: Whether a vector holds what is inside a proposal and what is around it one after the
            other, ``[2 F]``, and not their difference ``[F]``.
    """

    apart: bool

    def pool(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors ``[M, F]`` or ``[M, 2 F]`` and shifts ``[M]`` of the proposals of a video.

        Args:
            features: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
        """

    def directions(self, query: Tensor, query_video: Tensor | None, means: Tensor) -> Tensor:
        """Directions ``[V, F]`` of a query in each video, or ``[1, F]`` where all have the same.

        Args:
            query: ``[m, F]``.
            query_video: ``[v, F]`` around the query; a bare clip is centred by each video.
            means: Mean step ``[V, F]`` of each video.
        """

    def probe(self, query: Tensor, query_video: Tensor | None, means: Tensor) -> Tensor:
        """One direction for all vectors, with one more number for the shifts.

        Unlike :meth:`directions` approximate where the query is bare.
        """


class CentredPooling:
    r"""Of the features themselves: the first stage of the training-free matcher.

    :meth:`pool` shifts by :math:`v \cdot \bar r`, so that up to a factor for each video
    :meth:`probe` is exact too.
    """

    apart = False

    def pool(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Pooling`."""
        mean = features.mean(dim=0)
        # Every channel is a row of similarities of its own.
        rows = functional.normalize(features - mean, dim=1).T
        vectors = contrast_scores(rows, proposals[None]).T
        return vectors, vectors @ mean

    def directions(self, query: Tensor, query_video: Tensor | None, means: Tensor) -> Tensor:
        """See :class:`Pooling`."""
        around = means if query_video is None else query_video.mean(dim=0, keepdim=True)
        return functional.normalize(query.mean(dim=0) - around, dim=1)

    def probe(self, query: Tensor, query_video: Tensor | None, means: Tensor) -> Tensor:
        """See :class:`Pooling`."""
        bare = query_video is None
        mean = query.mean(dim=0) if bare else self.directions(query, query_video, means)[0]
        return torch.cat([mean, -torch.full((1,), float(bare))])


class AdaptedPooling:
    """Of features mapped as a network maps them before it compares.

    Inside minus half of around is the network's prior, exactly.

    Args:
        inputs: The network's inputs, which have an adapter.
    """

    apart = True

    def __init__(self, inputs: PairInputBuilder) -> None:
        assert inputs.adapter is not None
        self.adapter = inputs.adapter

    @torch.no_grad()
    def pool(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Pooling`."""
        centred, _ = centre(features, features, None)
        rows = functional.normalize(self.adapter(centred), dim=1).T
        inside = contrast_scores(rows, proposals[None], 0.0).T
        around = inside - contrast_scores(rows, proposals[None], 1.0).T
        return torch.cat([inside, around], dim=1), inside.new_zeros(len(inside))

    @torch.no_grad()
    def directions(self, query: Tensor, query_video: Tensor | None, means: Tensor) -> Tensor:
        """See :class:`Pooling`."""
        around = means if query_video is None else query_video.mean(dim=0, keepdim=True)
        found = []
        for part in around.split(_BLOCK):
            centred = query - part[:, None]
            length = centred.norm(dim=2).mean(dim=1).clamp(min=1e-6)
            mapped = self.adapter(centred / length[:, None, None])
            found.append(functional.normalize(mapped.mean(dim=1), dim=1))
        return torch.cat(found)

    def probe(self, query: Tensor, query_video: Tensor | None, means: Tensor) -> Tensor:
        """See :class:`Pooling`."""
        usual = means.mean(dim=0, keepdim=True)
        direction = self.directions(query, query_video, usual)[0]
        return torch.cat([direction, -0.5 * direction, direction.new_zeros(1)])
