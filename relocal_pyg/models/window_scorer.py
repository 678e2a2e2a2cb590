"""Scores of any windows of one reference for one query, by exact algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from relocal_pyg.models.pair_inputs import PairInputBuilder
from relocal_pyg.nn.inference import PairScoring, window_states
from relocal_pyg.nn.network import PairNetwork

#: Windows encoded at once: bounds memory, changes no result.
CHUNK = 1024


class WindowScorer:
    """Query and reference are compared, and the query is encoded, once for all windows.

    Args:
        network: The network, in evaluation mode.
        inputs: What it sees of query and reference.
        scoring: Its merged weights.
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]`` or None.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: PairNetwork,
        inputs: PairInputBuilder,
        scoring: PairScoring,
        query: Tensor,
        reference: Tensor,
        query_video: Tensor | None = None,
    ) -> None:
        self.network, self.inputs, self.scoring = network, inputs, scoring
        self.compared = inputs.compare(query, reference, query_video)
        self.query_mask = self.compared.query_mask
        self.hidden = network.encode_query(self.compared.query_x[None], self.query_mask[None])[0]

    @torch.no_grad()
    def __call__(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Score windows ``[M, 2]`` in steps.

        Returns:
            Scores ``[M]`` before the last tanh, and offsets ``[M, 2]``.
        """
        raw, offsets = [], []
        for part in windows.split(CHUNK):
            states, mask = encode_windows(self.network, self.inputs, self.compared.reference, part)
            logits, offset = self.scoring.score(self.hidden, self.query_mask, states, mask)
            raw.append(logits + self.compared.prior(part))
            offsets.append(offset)
        return torch.cat(raw), torch.cat(offsets)


@torch.no_grad()
def encode_windows(
    network: PairNetwork, inputs: PairInputBuilder, rows: Tensor, windows: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode windows of a reference.

    Args:
        network: Whose encoder.
        inputs: Which steps it sees of a window.
        rows: What it sees of each step of the reference, ``[n, C]``; the features themselves,
            unless steps are compared with the query.
        windows: ``[M, 2]`` in steps.

    Returns:
        States ``[T, M, d]``, time first, and mask ``[M, T]``.
    """
    positions, mask, inside = inputs.windows(len(rows), windows)
    states = window_states(
        network.encoder.proposal_lstm,
        rows,
        positions,
        mask,
        inside,
        skip_padding=inputs.config.mask_padding,
    )
    return states, mask
