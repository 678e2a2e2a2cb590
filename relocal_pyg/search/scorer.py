"""One query against many proposals of one reference, by exact algebra."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relocal_pyg.models.base import Ranking
from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
from relocal_pyg.models.window_scorer import CHUNK, encode_windows
from relocal_pyg.nn.window_states import window_states
from relocal_pyg.search.comparing import compare_videos


class PairScorer:
    """The fast form of :meth:`MultiGraphRelocalizer.score_proposals`, with the same numbers.

    The weights are copied and merged once: make a new one after a training step. What is done once
    per query, per proposal or per pair is told in :mod:`relocal_pyg.nn.pair_scoring`.

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
