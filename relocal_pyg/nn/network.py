"""Encoder, multi-graph fusion and the two heads: everything between node features and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.typing import Adj

from relocal_pyg.errors import check_number
from relocal_pyg.graph import PairGraph, zero_pads
from relocal_pyg.nn.conv import MultiGraphConv


class PairEncoder(nn.Module):
    """Encode a query and a proposal with an LSTM each and join them in time (section 4.2).

    ``H = [LSTM_q(query); LSTM_p(proposal)]``. Both LSTMs have one layer and run forward in time,
    with weights of their own. Dropout (section 5.2.2 names no rate) acts on their outputs, since
    that of ``nn.LSTM`` does nothing with one layer.

    Args:
        in_channels: Size of the input features.
        hidden_channels: Size ``d`` of the hidden states.
        dropout: Probability of zeroing an output.

    Shapes:
        - **input:** query ``[B, T, in_channels]``, proposal ``[B, T, in_channels]``; masks of
          real steps, bool ``[B, T]``, each true up to the clip's length and false after it
          *(optional)*
        - **output:** ``[B, 2T, hidden_channels]``, the query first

    Example:
        >>> encoder = PairEncoder(16, 8)
        >>> encoder(torch.randn(4, 5, 16), torch.randn(4, 5, 16)).shape
        torch.Size([4, 10, 8])
    """

    def __init__(
        self, in_channels: int = 500, hidden_channels: int = 500, dropout: float = 0.4
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.query_lstm = nn.LSTM(in_channels, hidden_channels, batch_first=True)
        self.proposal_lstm = nn.LSTM(in_channels, hidden_channels, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Reset all learnable parameters."""
        self.query_lstm.reset_parameters()
        self.proposal_lstm.reset_parameters()

    def encode_query(self, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states of queries, ``[B, T, in_channels] -> [B, T, hidden_channels]``.

        Args:
            query: Features of queries.
            mask: Real steps ``[B, T]``; outputs at other steps are 0. Steps before the padding
                cannot see it, so that this equals running on a packed sequence.
        """
        return self._encode(self.query_lstm, query, mask)

    def encode_proposal(self, proposal: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states of proposals; arguments as in :meth:`encode_query`."""
        return self._encode(self.proposal_lstm, proposal, mask)

    def forward(
        self,
        query: Tensor,
        proposal: Tensor,
        query_mask: Tensor | None = None,
        proposal_mask: Tensor | None = None,
    ) -> Tensor:
        """Encode both and concatenate along time; shapes as above."""
        hidden_query = self.encode_query(query, query_mask)
        hidden_proposal = self.encode_proposal(proposal, proposal_mask)
        return torch.cat([hidden_query, hidden_proposal], dim=1)

    def _encode(self, lstm: nn.LSTM, x: Tensor, mask: Tensor | None) -> Tensor:
        return zero_pads(self.dropout(lstm(zero_pads(x, mask))[0]), mask)


class MultiGraphFusion(nn.Module):
    r"""``L`` cascaded :class:`MultiGraphConv` layers over the same graphs (section 4.5).

    The paper's cascade is plain. ``residual`` is an addition of this package:
    :math:`\mathbf{X}^{(l+1)} = \mathbf{X}^{(l)} + \mathrm{Layer}(\mathbf{X}^{(l)})`.

    Args:
        channels: Size of every node's features, before and after each layer.
        num_graphs: Number of graphs ``K``.
        num_layers: Number of layers ``L``; the paper's best is 2.
        hidden_channels: Size after the first 1x1 convolution of each layer; ``channels`` where
            None.
        residual: Add a layer's input to its output.
        graph_conv: False drops the graphs: the paper's "Ours (CNN)".

    Raises:
        UsageError: An argument is out of range.

    Shapes:
        - **input:** node features ``[..., 2T, channels]``, or ``[B * 2T, channels]``; ``K``
          graphs; mask ``[..., 2T]`` or ``[B * 2T]`` *(optional)*
        - **output:** as the node features

    Example:
        >>> fusion = MultiGraphFusion(16, num_graphs=2)
        >>> graphs = [PairGraph(num_steps=5, k=1), PairGraph(num_steps=5, k=2)]
        >>> fusion(torch.randn(4, 10, 16), graphs).shape
        torch.Size([4, 10, 16])
    """

    def __init__(
        self,
        channels: int,
        num_graphs: int,
        num_layers: int = 2,
        hidden_channels: int | None = None,
        residual: bool = False,
        graph_conv: bool = True,
    ) -> None:
        super().__init__()
        check_number(num_layers, "num_layers", least=1, whole=True)
        self.channels = channels
        self.num_graphs = num_graphs
        self.num_layers = num_layers
        self.residual = residual
        layers = (
            MultiGraphConv(channels, channels, num_graphs, hidden_channels, graph_conv)
            for _ in range(num_layers)
        )
        self.layers = cast("Sequence[MultiGraphConv]", nn.ModuleList(layers))

    def reset_parameters(self) -> None:
        """Reset all learnable parameters."""
        for layer in self.layers:
            layer.reset_parameters()

    def forward(
        self,
        x: Tensor,
        graphs: Sequence[Adj | PairGraph] | None,
        edge_weights: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Run the first ``depth`` layers; the rest is as in :meth:`MultiGraphConv.forward`."""
        for layer in self.layers[:depth]:
            out = layer(x, graphs, edge_weights, mask)
            x = x + out if self.residual else out
            x = zero_pads(x, mask)  # a residual brings pads back
        return x

    def pooled(
        self,
        x: Tensor,
        graphs: Sequence[Adj | PairGraph] | None,
        mask: Tensor | None,
        num_nodes: int,
        edge_weights: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Average of :meth:`forward` over the nodes of each pair.

        The last 1x1 convolution is linear and is done after the average, on a row a pair. Nodes are
        ``[B, num_nodes, channels]`` or ``[B * num_nodes, channels]``, masks the same without
        channels.

        Returns:
            ``[B, channels]``; pads count for nothing.
        """
        x = self(x, graphs, edge_weights, mask, self.num_layers - 1)
        last = self.layers[-1]
        active = _average(last.branches(x, graphs, edge_weights, mask), mask, num_nodes)
        out = last.lin_out(active)
        return out + _average(x, mask, num_nodes) if self.residual else out


def _average(x: Tensor, mask: Tensor | None, num_nodes: int) -> Tensor:
    x = x.view(-1, num_nodes, x.shape[-1])
    if mask is None:
        return x.mean(dim=1)
    real = mask.view(-1, num_nodes)
    return zero_pads(x, real).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)


class _Head(nn.Module):
    """Layers from the pooled feature of a pair to so many numbers."""

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(in_channels, width), nn.BatchNorm1d(width), nn.Tanh()]
            in_channels = width
        self.mlp = nn.Sequential(*layers, nn.Linear(in_channels, out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all learnable parameters and running statistics."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear | nn.BatchNorm1d):
                layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to pooled features; shapes as above."""
        # Batch normalisation itself takes ``[N, F]`` only.
        out: Tensor = self.mlp(x.reshape(-1, x.shape[-1]))
        return out.reshape(*x.shape[:-1], out.shape[-1])


class ScoreHead(_Head):
    """Similarity of a pair from its pooled feature (section 4.6.1).

    ``FC-BN-Tanh`` for each of ``widths``, which the paper does not give, then ``FC-Tanh``.

    Args:
        in_channels: Size ``d`` of the pooled feature.
        widths: Sizes of the hidden layers.

    Shapes:
        - **input:** pooled features ``[..., in_channels]``
        - **output:** scores ``[...]`` in ``[-1, 1]``

    Example:
        >>> ScoreHead(16).eval()(torch.randn(4, 7, 16)).shape
        torch.Size([4, 7])
    """

    def __init__(self, in_channels: int = 500, widths: Sequence[int] = (256, 64)) -> None:
        super().__init__(in_channels, widths, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score pooled features; shapes as above."""
        return torch.tanh(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Scores ``[...]`` before the final tanh."""
        return super().forward(x).squeeze(-1)


class OffsetHead(_Head):
    """Offsets ``[Tc, Tl]`` of a proposal from the pooled feature of its pair (section 4.6.2).

    The layers and arguments of :class:`ScoreHead` with two unbounded outputs, offsets ``[..., 2]``;
    :func:`relocal_pyg.moments.decode_offsets` applies them.

    Example:
        >>> OffsetHead(16).eval()(torch.randn(4, 16)).shape
        torch.Size([4, 2])
    """

    def __init__(self, in_channels: int = 500, widths: Sequence[int] = (256, 64)) -> None:
        super().__init__(in_channels, widths, 2)


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
        mask_padding: Keep padded steps out of LSTM outputs, edges and pool.

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
        mask_padding: bool = False,
    ) -> None:
        super().__init__()
        self.mask_padding = mask_padding
        self.encoder = PairEncoder(in_channels, hidden_channels, dropout)
        self.fusion = MultiGraphFusion(
            hidden_channels, num_graphs, num_layers, residual=residual, graph_conv=graph_conv
        )
        self.score_head = ScoreHead(hidden_channels, head_channels)
        self.offset_head = OffsetHead(hidden_channels, head_channels)

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
