"""One query against many proposals of one reference, by exact algebra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.pair_data import resample_positions, window_positions
from relocal_pyg.models.base import Ranking
from relocal_pyg.models.matchers import contrast_scores
from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
from relocal_pyg.models.pair_inputs import PairInputBuilder, centre, extend
from relocal_pyg.models.window_scorer import CHUNK, encode_windows
from relocal_pyg.nn.inference import window_states


@dataclass(frozen=True)
class ComparedVideos:
    """A query and V references of R steps in all, with M proposals in all.

    Attributes:
        query_x: What the network sees of the query beside each reference, ``[V, T, C]``.
        query_mask: ``[T]``, False at padding.
        rows: What it sees of the references, one after the other, ``[R, C]``; a flag of proposals
            comes apart.
        positions: Row of each step of each proposal, ``[M, T]``.
        mask: ``[M, T]``, False at padding.
        inside: The flag ``[M, T, 1]``, or None.
        prior: ``[M]``, the training-free score, or zeros.
        owner: ``[M]``, the reference of each proposal.
    """

    query_x: Tensor
    query_mask: Tensor
    rows: Tensor
    positions: Tensor
    mask: Tensor
    inside: Tensor | None
    prior: Tensor
    owner: Tensor


@torch.no_grad()
def compare_videos(
    inputs: PairInputBuilder,
    query: Tensor,
    references: Sequence[Tensor],
    proposals: Sequence[Tensor],
    query_video: Tensor | None = None,
) -> ComparedVideos:
    """:meth:`PairInputBuilder.compare` and ``windows`` of many references, a few calls for all.

    Args:
        inputs: The network's inputs.
        query: ``[m, F]``.
        references: ``[n, F]`` each.
        proposals: ``[., 2]`` in steps, for each reference.
        query_video: Features ``[v, F]`` of the video around the query, or None.
    """
    config = inputs.config
    lengths = torch.tensor([len(reference) for reference in references])
    counts = torch.tensor([len(some) for some in proposals])
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    of_row = torch.arange(len(lengths)).repeat_interleave(lengths)
    rows, some = torch.cat(list(references)), torch.cat(list(proposals))
    queries = query.expand(len(lengths), -1, -1)
    extra: list[Tensor] = []
    query_extra: list[Tensor] = []
    prior = rows.new_zeros(len(some))
    if inputs.adapter is not None:
        means = torch.stack([reference.mean(dim=0) for reference in references])
        around = means
        if query_video is not None and len(query_video):
            around = query_video.mean(dim=0, keepdim=True)
        queries = query - around[:, None]
        queries = inputs.adapter(queries / _size(queries.norm(dim=2).mean(dim=1))[:, None, None])
        queries = queries.expand(len(lengths), -1, -1)
        rows = rows - means[of_row]
        sizes = torch.stack([part.mean() for part in rows.norm(dim=1).split(lengths.tolist())])
        rows = inputs.adapter(rows / _size(sizes)[of_row, None])
        units, unit_queries = (
            functional.normalize(rows, dim=1),
            functional.normalize(queries, dim=2),
        )
        direction = functional.normalize(queries.mean(dim=1), dim=1)
        similarity = (units * direction[of_row]).sum(dim=1)
        if config.similarity:
            split = units.split(lengths.tolist())
            tables = [one @ part.T for one, part in zip(unit_queries, split, strict=True)]
            usual = torch.stack([part.mean(dim=0) for part in split])
            extra = [
                similarity,
                torch.cat([table.amax(dim=0) for table in tables]),
                (units * unit_queries.mean(dim=1)[of_row]).sum(dim=1),
            ]
            query_extra = [
                (unit_queries @ direction[..., None])[..., 0],
                torch.stack([table.amax(dim=1) for table in tables]),
                (unit_queries @ usual[..., None])[..., 0],
            ]
        if config.prior == "contrast":
            prior = _prior(similarity, lengths, proposals, counts)
    if config.context > 0:
        query_extra.append(queries.new_ones(queries.shape[:2]))
    if not config.appearance:
        queries, rows = queries[..., :0], rows[:, :0]
    seen = torch.cat([queries, *(channel[..., None] for channel in query_extra)], dim=2)
    chosen, query_mask = resample_positions(torch.tensor(len(query)), config.num_steps)
    return ComparedVideos(
        seen[:, chosen] * query_mask[:, None].to(seen),
        query_mask,
        torch.cat([rows, *(channel[:, None] for channel in extra)], dim=1),
        *_windows(inputs, some, lengths, owner),
        prior,
        owner,
    )


def _windows(
    inputs: PairInputBuilder, proposals: Tensor, lengths: Tensor, owner: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions among the rows of all references, mask and flag."""
    config, ends = inputs.config, lengths[owner]
    first = (lengths.cumsum(dim=0) - lengths)[owner]
    bounds = extend(proposals, config.context, int(lengths.max())).round().long()
    # A window is at least a step long and inside its own reference before all become one.
    start = torch.minimum(bounds[:, 0], ends - 1)
    past = torch.minimum(bounds[:, 1], ends)
    whole = torch.stack([start + first, past + first], dim=1).double()
    positions, mask = window_positions(int(lengths.sum()), whole, config.num_steps)
    if config.context == 0:
        return positions, mask, None
    middle = positions - first[:, None] + 0.5
    inside = (middle > proposals[:, :1]) & (middle < proposals[:, 1:]) & mask
    return positions, mask, inside[..., None]


def _prior(
    similarity: Tensor, lengths: Tensor, proposals: Sequence[Tensor], counts: Tensor
) -> Tensor:
    """Training-free scores, references and proposals padded to a common length."""
    padded = torch.nn.utils.rnn.pad_sequence(
        list(similarity.split(lengths.tolist())), batch_first=True
    )
    whole = similarity.new_tensor([0.0, 1.0])
    windows = whole.repeat(len(counts), int(counts.max()), 1)
    real = torch.arange(windows.shape[1]) < counts[:, None]
    windows[real] = torch.cat(list(proposals)).to(windows)
    return contrast_scores(padded, windows, num_steps=lengths)[real]


def _size(norms: Tensor) -> Tensor:
    return norms.clamp(min=1e-6)


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


class PairScorer:
    """The fast form of :meth:`MultiGraphRelocalizer.score_proposals`, with the same numbers.

    The weights are copied and merged once: make a new one after a training step. What is done once
    per query, per proposal or per pair is told in :mod:`relocal_pyg.nn.inference`.

    Args:
        model: The network; it is put in evaluation mode.
        dtype: Arithmetic of all that is done per pair. bfloat16 moves a score by 2e-2 at most.
        chunk: Proposals at once; bounds memory. Chosen to fit a processor's cache where None.

    Example:
        >>> model = MultiGraphRelocalizer(8, hidden_channels=16, num_steps=5)
        >>> scorer = PairScorer(model)
        >>> proposals = torch.tensor([[0.0, 4.0], [3.0, 9.0]])
        >>> scores, offsets = scorer.score(torch.rand(4, 8), torch.rand(30, 8), proposals)
        >>> scores.shape, offsets.shape
        (torch.Size([2]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        model: MultiGraphRelocalizer,
        dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.scoring = model.scoring(dtype, chunk)

    @property
    def keeps_states(self) -> bool:
        """Whether the states of a proposal are the same for every query and may be stored."""
        return self.model.inputs.adapter is None

    def score(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        query_video: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score the proposals of one reference.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
            query_video: Features ``[v, F]`` of the video around the query, or None.

        Returns:
            Scores ``[M]`` in ``[-1, 1]`` and offsets ``[M, 2]``.
        """
        raw, offsets = self.model.score_fast(query, reference, proposals, query_video, self.scoring)
        return torch.tanh(raw), offsets

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Score and refine, as :meth:`MultiGraphRelocalizer.rank`; arguments of :meth:`score`."""
        way = self.model.refinement
        return self.model.rankings(
            query, reference, proposals, query_video=query_video, ways=(way,), scoring=self.scoring
        )[way]

    @torch.no_grad()
    def score_videos(
        self,
        query: Tensor,
        references: Sequence[Tensor],
        proposals: Sequence[Tensor],
        query_video: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score a few proposals of each of many references together: less overhead, same numbers.

        Args:
            query: ``[m, F]``.
            references: ``[n, F]`` each.
            proposals: ``[., 2]`` in steps, for each reference; M in all.
            query_video: As in :meth:`score`.

        Returns:
            Scores ``[M]`` and offsets ``[M, 2]``, reference by reference.
        """
        network = self.model.network
        seen = compare_videos(self.model.inputs, query, references, proposals, query_video)
        # Where steps are compared, the query is seen differently beside each reference.
        masks = seen.query_mask.expand(len(seen.query_x), -1)
        hidden = network.encode_query(seen.query_x, masks).transpose(0, 1)
        raw, offsets = [], []
        for part in torch.arange(len(seen.owner)).split(CHUNK):
            states = window_states(
                network.encoder.proposal_lstm,
                seen.rows,
                seen.positions[part],
                seen.mask[part],
                None if seen.inside is None else seen.inside[part],
                skip_padding=self.model.network_config.mask_padding,
            )
            scores, offset = self.scoring.score(
                hidden, seen.query_mask, states, seen.mask[part], seen.owner[part]
            )
            raw.append(scores)
            offsets.append(offset)
        return torch.tanh(torch.cat(raw) + seen.prior), torch.cat(offsets)

    @torch.no_grad()
    def encode_query(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[T, d]`` and mask ``[T]`` of a query ``[m, F]``, where :attr:`keeps_states`."""
        compared = self.model.inputs.compare(query, query)
        x, mask = compared.query_x[None], compared.query_mask[None]
        return self.model.network.encode_query(x, mask)[0], mask[0]

    def encode_proposals(self, reference: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[T, M, d]``, time first, and mask ``[M, T]``, where :attr:`keeps_states`.

        Args:
            reference: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
        """
        return encode_windows(self.model.network, self.model.inputs, reference, proposals)

    def score_states(
        self, query: tuple[Tensor, Tensor], proposals: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Score what :meth:`encode_proposals` gave against what :meth:`encode_query` gave.

        Returns:
            Scores ``[M]`` in ``[-1, 1]`` and offsets ``[M, 2]``.
        """
        raw, offsets = self.scoring.score(*query, *proposals)
        return torch.tanh(raw), offsets
