"""The Multi-Graph Feature Fusion layer (section 4.5, Fig. 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Adj

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn.products import linear, tanh
from relocal_pyg.nn.sum_conv import SumConv

#: The first two products of a layer are merged from so many nodes a channel.
MERGED_ROWS = 4


class MultiGraphConv(nn.Module):
    r"""The Multi-Graph Feature Fusion layer (section 4.5, Fig. 7).

    From the `"Graph Neural Network for Video Relocalization"
    <https://arxiv.org/abs/2007.09877>`_ paper:

    .. math::
        \tilde{\mathbf{X}} &= \mathbf{X} \mathbf{W}_{\mathrm{in}} + \mathbf{b}_{\mathrm{in}}

        \mathbf{X}^{\prime} &= \left[ \sigma(\mathbf{A}_1 \tilde{\mathbf{X}} \mathbf{W}_1) \, \Vert
        \, \ldots \, \Vert \, \sigma(\mathbf{A}_K \tilde{\mathbf{X}} \mathbf{W}_K) \right]
        \mathbf{W}_{\mathrm{out}} + \mathbf{b}_{\mathrm{out}}

    A 1x1 convolution projects the features, one :class:`SumConv` per graph sums over neighbours,
    the branches are concatenated along the features, as the equation says (the caption of Fig. 7
    says time), and a second 1x1 convolution fuses them. The graphs may be any :math:`K` edge sets
    over the same nodes.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive the size from the
            first input to the forward method.
        out_channels (int): Size of each output sample and of each branch.
        num_graphs (int): Number of graphs :math:`K`.
        hidden_channels (int, optional): Size after the first 1x1 convolution. If set to
            :obj:`None`, equals :obj:`out_channels`. (default: :obj:`None`)
        graph_conv (bool, optional): If set to :obj:`False`, every branch drops its graph,
            :math:`\sigma(\tilde{\mathbf{X}} \mathbf{W}_k)`: the paper's "Ours (CNN)".
            (default: :obj:`True`)
        act (Callable, optional): The nonlinearity :math:`\sigma`. (default: :obj:`torch.tanh`)

    Shapes:
        - **input:**
          node features :math:`(*, |\mathcal{V}|, F_{in})`;
          :math:`K` graphs, each in one of the forms that :class:`SumConv` takes;
          node mask :math:`(*, |\mathcal{V}|)` *(optional)*
        - **output:** node features :math:`(*, |\mathcal{V}|, F_{out})`

    Example:
        >>> conv = MultiGraphConv(16, 32, num_graphs=2)
        >>> graphs = [PairGraph(num_steps=5, k=1), PairGraph(num_steps=5, k=2)]
        >>> conv(torch.randn(4, 10, 16), graphs).shape
        torch.Size([4, 10, 32])
        >>> conv(torch.randn(10, 16), [graph.edge_index() for graph in graphs]).shape
        torch.Size([10, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_graphs: int,
        hidden_channels: int | None = None,
        graph_conv: bool = True,
        act: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        if num_graphs < 1:
            raise UsageError(f"num_graphs {num_graphs}: at least 1 wanted")
        hidden = out_channels if hidden_channels is None else hidden_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.hidden_channels = hidden
        self.num_graphs = num_graphs
        self.graph_conv = graph_conv
        self.act = act
        self.lin_in = Linear(in_channels, hidden)
        branches = (SumConv(hidden, out_channels) for _ in range(num_graphs))
        self.convs = cast("Sequence[SumConv]", nn.ModuleList(branches))
        self.lin_out = Linear(num_graphs * out_channels, out_channels)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.lin_in.reset_parameters()
        for conv in self.convs:
            conv.reset_parameters()
        self.lin_out.reset_parameters()

    def forward(
        self,
        x: Tensor,
        graphs: Sequence[Adj | PairGraph] | None,
        edge_weights: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The node features.
            graphs (Sequence): One graph per branch, in the order of the branches; :obj:`None` is
                enough where :obj:`graph_conv=False`.
            edge_weights (Sequence, optional): For each graph one weight per edge, or
                :obj:`None`. (default: :obj:`None`)
            mask (torch.Tensor, optional): The real nodes, bool; edges that touch another node
                are dropped, and the rows of other nodes are 0. (default: :obj:`None`)

        Raises:
            UsageError: Not one graph (and weight) per branch.
        """
        active = self.branches(x, graphs, edge_weights, mask)
        out = linear(active, self.lin_out.weight, self.lin_out.bias)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)

    def branches(
        self,
        x: Tensor,
        graphs: Sequence[Adj | PairGraph] | None,
        edge_weights: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        r"""The concatenated branches before the last 1x1 convolution, :math:`(*, |V|, K F_{out})`.

        The arguments are those of :meth:`forward`. Whatever is linear, an average over nodes for
        instance, may be done on them first.
        """
        # A (X W) = (A X) W: the branches share one wide product.
        weight = torch.cat([conv.lin.weight for conv in self.convs])
        if self.lin_in.in_channels < 0:
            # A size that is not known yet is found by calling the module itself.
            branches = linear(self.lin_in(x), weight)
        elif (
            # Which way is cheaper is a question of the batch, which a traced graph must not ask.
            torch.compiler.is_compiling()
            or x.numel() < MERGED_ROWS * self.hidden_channels * x.shape[-1]
        ):
            branches = linear(linear(x, self.lin_in.weight, self.lin_in.bias), weight)
        else:
            # Both products are one where multiplying the weights costs less than the nodes.
            bias = torch.mv(weight, self.lin_in.bias)
            branches = linear(x, weight @ self.lin_in.weight, bias)
        if self.graph_conv:
            weights = [None] * self.num_graphs if edge_weights is None else edge_weights
            if graphs is None or not len(graphs) == len(weights) == self.num_graphs:
                raise UsageError(f"{self.num_graphs} graphs wanted, one per branch")
            parts = branches.split(self.out_channels, dim=-1)
            items = zip(self.convs, parts, graphs, weights, strict=True)
            branches = torch.cat(
                [conv.sum_neighbors(part, graph, w, mask=mask) for conv, part, graph, w in items],
                dim=-1,
            )
        return tanh(branches) if self.act is torch.tanh else self.act(branches)

    def __repr__(self) -> str:
        kind = "" if self.graph_conv else ", graph_conv=False"
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"num_graphs={self.num_graphs}{kind})"
        )
