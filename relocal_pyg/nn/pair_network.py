"""Encoder, multi-graph fusion and the two heads: everything between node features and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.typing import Adj

from relocal_pyg.graph import PairGraph
from relocal_pyg.nn.encoder import PairEncoder
from relocal_pyg.nn.fusion import MultiGraphFusion
from relocal_pyg.nn.heads import OffsetHead, ScoreHead


class PairNetwork(nn.Module):
    """From the node features of pairs to a score and offsets each (sections 4.2 to 4.6).

    Args:
        in_channels: Width C of a node's features.
        hidden_channels: Width d of the LSTMs and of every layer.
        num_graphs: K.
        num_layers: L.
        graph_conv: False for the paper's "Ours (CNN)".
        residual: Add each layer's input to its output.
        dropout: Rate on the LSTM outputs.
        head_channels: Widths inside the heads.
        head_norm: Normalisation inside the heads; the paper's is ``"batch"``.
        mask_padding: Keep padded steps out of LSTM outputs, edges and pool.
        zero_start: Start both heads at zero.

    Shapes:
        - **input:** query and proposal nodes ``[B, T, C]``, K graphs, masks ``[B, T]``
        - **output:** logits ``[B]`` (``tanh`` of them is the paper's score), offsets ``[B, 2]``
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 500,
        num_graphs: int = 3,
        num_layers: int = 2,
        graph_conv: bool = True,
        residual: bool = False,
        dropout: float = 0.4,
        head_channels: Sequence[int] = (256, 64),
        head_norm: Literal["batch", "layer"] = "batch",
        mask_padding: bool = False,
        zero_start: bool = False,
    ) -> None:
        super().__init__()
        self.mask_padding = mask_padding
        self.encoder = PairEncoder(in_channels, hidden_channels, dropout)
        self.fusion = MultiGraphFusion(
            hidden_channels, num_graphs, num_layers, residual=residual, graph_conv=graph_conv
        )
        self.score_head = ScoreHead(hidden_channels, head_channels, zero_start, head_norm)
        self.offset_head = OffsetHead(hidden_channels, head_channels, zero_start, head_norm)

    def encode_query(self, x: Tensor, mask: Tensor) -> Tensor:
        """Hidden states ``[B, T, d]`` of queries."""
        return self.encoder.encode_query(x, mask if self.mask_padding else None)

    def encode_proposal(self, x: Tensor, mask: Tensor) -> Tensor:
        """Hidden states ``[B, T, d]`` of proposals."""
        return self.encoder.encode_proposal(x, mask if self.mask_padding else None)

    def fuse(
        self,
        query: Tensor,
        proposal: Tensor,
        graphs: Sequence[Adj | PairGraph],
        query_mask: Tensor,
        proposal_mask: Tensor,
        edge_weights: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[B]`` and offsets ``[B, 2]`` from the hidden states of B pairs.

        ``graphs`` are PairGraphs, or edge sets over the ``B * 2T`` nodes of all pairs; only those
        take ``edge_weights``, one an edge.
        """
        x = torch.cat([query, proposal], dim=1)
        mask = torch.cat([query_mask, proposal_mask], dim=1) if self.mask_padding else None
        nodes = x.shape[1]
        if not all(isinstance(graph, PairGraph) for graph in graphs):
            x, mask = x.flatten(0, 1), None if mask is None else mask.flatten()
        pooled = self.fusion.pooled(x, graphs, mask, nodes, edge_weights)
        # The regression loss trains its own head only (section 5.2.2).
        return self.score_head.logits(pooled), self.offset_head(pooled.detach())

    def forward(
        self,
        query: Tensor,
        proposal: Tensor,
        graphs: Sequence[Adj | PairGraph],
        query_mask: Tensor,
        proposal_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits and offsets of B pairs; shapes as above."""
        return self.fuse(
            self.encode_query(query, query_mask),
            self.encode_proposal(proposal, proposal_mask),
            graphs,
            query_mask,
            proposal_mask,
        )
