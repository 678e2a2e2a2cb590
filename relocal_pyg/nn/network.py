"""Encoder, multi-graph fusion and the two heads: everything between node features and score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch_geometric.typing import Adj

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph
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
        out = self.dropout(lstm(x)[0])
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)


class MultiGraphFusion(nn.Module):
    r"""``L`` cascaded :class:`MultiGraphConv` layers over the same graphs (section 4.5).

    The paper's cascade is plain. ``residual`` and ``norm`` are additions of this package:
    :math:`\mathbf{X}^{(l+1)} = \mathrm{Norm}(\mathbf{X}^{(l)} + \mathrm{Layer}(\mathbf{X}^{(l)}))`.

    Args:
        channels: Size of every node's features, before and after each layer.
        num_graphs: Number of graphs ``K``.
        num_layers: Number of layers ``L``; the paper's best is 2.
        hidden_channels: Size after the first 1x1 convolution of each layer; ``channels`` where
            None.
        residual: Add a layer's input to its output.
        norm: ``"layer"`` for layer normalisation of each layer's output.
        graph_conv: False drops the graphs: the paper's "Ours (CNN)".
        act: The nonlinearity inside the layers.

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
        norm: Literal["layer"] | None = None,
        graph_conv: bool = True,
        act: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise UsageError(f"num_layers {num_layers}: at least 1 wanted")
        if norm not in (None, "layer"):
            raise UsageError(f"norm {norm!r}: None or 'layer' wanted")
        self.channels = channels
        self.num_graphs = num_graphs
        self.num_layers = num_layers
        self.residual = residual
        layers = (
            MultiGraphConv(channels, channels, num_graphs, hidden_channels, graph_conv, act)
            for _ in range(num_layers)
        )
        self.layers = cast("Sequence[MultiGraphConv]", nn.ModuleList(layers))
        self.norms = nn.ModuleList(
            nn.LayerNorm(channels) if norm == "layer" else nn.Identity() for _ in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Reset all learnable parameters."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            layer.reset_parameters()
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        graphs: Sequence[Adj | PairGraph] | None,
        edge_weights: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Run the layers; arguments as in :meth:`MultiGraphConv.forward`."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self._advance(x, layer, norm, graphs, mask, edge_weights)
        return x

    def _advance(
        self,
        x: Tensor,
        layer: MultiGraphConv,
        norm: nn.Module,
        graphs: Sequence[Adj | PairGraph] | None,
        mask: Tensor | None,
        edge_weights: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        out = layer(x, graphs, edge_weights, mask)
        x = norm(x + out if self.residual else out)
        # A residual or a normalisation brings pads back.
        return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)

    def pooled(
        self,
        x: Tensor,
        graphs: Sequence[Adj | PairGraph] | None,
        mask: Tensor | None,
        num_nodes: int,
        edge_weights: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Average of :meth:`forward` over the nodes of each pair.

        The last 1x1 convolution is linear and is done after the average, on a row a pair.

        Args:
            x: ``[B, num_nodes, channels]`` or ``[B * num_nodes, channels]``.
            graphs: As in :meth:`forward`.
            mask: Real nodes, of the shape of ``x`` without channels, or None for all.
            num_nodes: Nodes of a pair.
            edge_weights: As in :meth:`forward`.

        Returns:
            ``[B, channels]``; pads count for nothing.
        """
        for layer, norm in zip(self.layers[:-1], self.norms[:-1], strict=True):
            x = self._advance(x, layer, norm, graphs, mask, edge_weights)
        last, norm = self.layers[-1], self.norms[-1]
        if not isinstance(norm, nn.Identity):
            out = self._advance(x, last, norm, graphs, mask, edge_weights)
            return _average(out, mask, num_nodes)
        active = _average(last.branches(x, graphs, edge_weights, mask), mask, num_nodes)
        out = last.lin_out(active)
        return out + _average(x, mask, num_nodes) if self.residual else out


def _average(x: Tensor, mask: Tensor | None, num_nodes: int) -> Tensor:
    x = x.view(-1, num_nodes, x.shape[-1])
    if mask is None:
        return x.mean(dim=1)
    real = mask.view(-1, num_nodes, 1)
    return (x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


class ScoreHead(nn.Module):
    """Similarity of a pair from its pooled feature (section 4.6.1).

    ``FC-BN-Tanh`` for each of ``widths``, which the paper does not give, then ``FC-Tanh``.

    Args:
        in_channels: Size ``d`` of the pooled feature.
        widths: Sizes of the hidden layers.
        zero_last: Start the last layer at 0, so that every score starts at 0.
        norm: ``"batch"`` (the paper), or ``"layer"``, which a pair's batch mates do not change.

    Shapes:
        - **input:** pooled features ``[..., in_channels]``
        - **output:** scores ``[...]`` in ``[-1, 1]``

    Example:
        >>> ScoreHead(16).eval()(torch.randn(4, 7, 16)).shape
        torch.Size([4, 7])
    """

    def __init__(
        self,
        in_channels: int = 500,
        widths: Sequence[int] = (256, 64),
        zero_last: bool = False,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        self.zero_last = zero_last
        self.mlp = _mlp(in_channels, widths, norm, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all learnable parameters and running statistics."""
        _reset(self.mlp, self.zero_last)

    def forward(self, x: Tensor) -> Tensor:
        """Score pooled features; shapes as above."""
        return torch.tanh(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Scores ``[...]`` before the final tanh."""
        return _run(self.mlp, x).squeeze(-1)


class OffsetHead(nn.Module):
    """Offsets ``[Tc, Tl]`` of a proposal from the pooled feature of its pair (section 4.6.2).

    The layers of :class:`ScoreHead` with two unbounded outputs;
    :func:`relocal_pyg.moments.decode_offsets` applies them.

    Args:
        in_channels: Size ``d`` of the pooled feature.
        widths: Sizes of the hidden layers.
        zero_last: Start the last layer at 0, so that every proposal starts unchanged.
        norm: As in :class:`ScoreHead`.

    Shapes:
        - **input:** pooled features ``[..., in_channels]``
        - **output:** offsets ``[..., 2]`` as ``[Tc, Tl]``

    Example:
        >>> OffsetHead(16, zero_last=True).eval()(torch.randn(1, 16)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        in_channels: int = 500,
        widths: Sequence[int] = (256, 64),
        zero_last: bool = False,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        self.zero_last = zero_last
        self.mlp = _mlp(in_channels, widths, norm, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all learnable parameters and running statistics."""
        _reset(self.mlp, self.zero_last)

    def forward(self, x: Tensor) -> Tensor:
        """Predict offsets from pooled features; shapes as above."""
        return _run(self.mlp, x)


def _mlp(
    in_channels: int, widths: Sequence[int], norm: Literal["batch", "layer"], out_channels: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        between = nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width)
        layers += [nn.Linear(in_channels, width), between, nn.Tanh()]
        in_channels = width
    return nn.Sequential(*layers, nn.Linear(in_channels, out_channels))


def _reset(mlp: nn.Sequential, zero_last: bool) -> None:
    for layer in mlp:
        if isinstance(layer, nn.Linear | nn.BatchNorm1d | nn.LayerNorm):
            layer.reset_parameters()
    last = mlp[-1]
    if zero_last and isinstance(last, nn.Linear):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def _run(mlp: nn.Sequential, x: Tensor) -> Tensor:
    """Apply to ``[..., F]``; batch normalisation itself takes ``[N, F]`` only."""
    out: Tensor = mlp(x.reshape(-1, x.shape[-1]))
    return out.reshape(*x.shape[:-1], -1)


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
