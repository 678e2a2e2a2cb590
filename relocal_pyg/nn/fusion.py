"""Cascaded Multi-Graph Feature Fusion layers (section 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch_geometric.typing import Adj

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn.multi_graph_conv import MultiGraphConv


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
