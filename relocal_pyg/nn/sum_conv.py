"""The graph convolution of section 4.4: a plain sum over neighbours."""

# No `from __future__ import annotations`: PyG reads the annotations of message functions.

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import zeros
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size
from torch_geometric.utils import is_torch_sparse_tensor, spmm

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph


class SumConv(MessagePassing):
    r"""The graph convolution of section 4.4, before its nonlinearity.

    From the `"Graph Neural Network for Video Relocalization"
    <https://arxiv.org/abs/2007.09877>`_ paper:

    .. math::
        \mathbf{X}^{\prime} = \mathbf{A} \mathbf{X} \mathbf{W}, \qquad
        \mathbf{x}^{\prime}_i = \mathbf{W}^{\top} \sum_{j \in \mathcal{N}(i)} e_{j,i} \mathbf{x}_j

    where :math:`e_{j,i}` denotes the edge weight from source node :obj:`j` to target node
    :obj:`i` (default: :obj:`1`). Nothing is normalised and no self-loop is added: the result is
    that of :class:`~torch_geometric.nn.conv.GCNConv` with :obj:`normalize=False` and
    :obj:`add_self_loops=False`.

    The graph comes in one of four forms, with the same numbers from each: a COO
    :obj:`edge_index`; an :class:`~torch_geometric.EdgeIndex`; a :obj:`torch.sparse` CSR matrix
    :obj:`adj_t` with rows as targets; or a :class:`~relocal_pyg.graph.PairGraph`, which needs no
    edges at all.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive the size from the
            first input to the forward method.
        out_channels (int): Size of each output sample.
        bias (bool, optional): If set to :obj:`True`, the layer learns an additive bias; the
            equation has none. (default: :obj:`False`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:**
          node features :math:`(*, |\mathcal{V}|, F_{in})`, or a pair of them if bipartite;
          edge indices :math:`(2, |\mathcal{E}|)`, or a sparse matrix
          :math:`(|\mathcal{V}|, |\mathcal{V}|)`, or a :obj:`PairGraph` of :math:`2T` nodes, where
          :math:`|\mathcal{V}|` may be :math:`B \cdot 2T`: :math:`B` pairs, one after the other;
          edge weights :math:`(|\mathcal{E}|)` *(optional)*;
          node mask :math:`(*, |\mathcal{V}|)` *(optional)*
        - **output:** node features :math:`(*, |\mathcal{V}|, F_{out})`

    Example:
        >>> import torch
        >>> conv, graph = SumConv(16, 8), PairGraph(num_steps=5, k=2)
        >>> x = torch.randn(10, 16)
        >>> torch.allclose(conv(x, graph), conv(x, graph.edge_index()), atol=1e-5)
        True
    """

    SUPPORTS_FUSED_EDGE_INDEX: Final[bool] = True

    def __init__(
        self, in_channels: int, out_channels: int, bias: bool = False, **kwargs: Any
    ) -> None:
        kwargs.setdefault("aggr", "sum")
        super().__init__(**kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")
        self.bias = nn.Parameter(self.lin.weight.new_empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        super().reset_parameters()
        self.lin.reset_parameters()
        zeros(self.bias)

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj | PairGraph,
        edge_weight: OptTensor = None,
        size: Size = None,
        mask: OptTensor = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor or (torch.Tensor, torch.Tensor)): The node features, with any number
                of leading dimensions that share one graph.
            edge_index (torch.Tensor, EdgeIndex, torch.sparse or PairGraph): The graph.
            edge_weight (torch.Tensor, optional): One weight per edge; a sparse matrix and a
                :obj:`PairGraph` carry their own. (default: :obj:`None`)
            size ((int, int), optional): Numbers of source and target nodes.
                (default: :obj:`None`)
            mask (torch.Tensor, optional): The real nodes, bool; edges that touch another node
                are dropped, and the sums of other nodes are 0. (default: :obj:`None`)
        """
        if isinstance(x, tuple):
            target = x[1]
            if size is None and target is not None:
                size = (x[0].size(self.node_dim), target.size(self.node_dim))
            out = self.sum_neighbors((self.lin(x[0]), None), edge_index, edge_weight, size, mask)
        else:
            out = self.sum_neighbors(self.lin(x), edge_index, edge_weight, size, mask)
        return out if self.bias is None else out + self.bias

    def sum_neighbors(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj | PairGraph,
        edge_weight: OptTensor = None,
        size: Size = None,
        mask: OptTensor = None,
    ) -> Tensor:
        r"""Multiply by :math:`\mathbf{A}` alone; arguments as in :meth:`forward`.

        Raises:
            UsageError: Weights come twice, a mask meets a bipartite graph, or the number of nodes
                is no multiple of the :obj:`PairGraph`'s.
        """
        if isinstance(edge_index, PairGraph):
            if edge_weight is not None:
                raise UsageError("a PairGraph carries its own weights: set its `weight`")
            if isinstance(x, tuple):
                raise UsageError("a PairGraph is not bipartite: give one tensor of 2T nodes")
            return _sum_pairs(x, edge_index, mask)
        if is_torch_sparse_tensor(edge_index) and edge_weight is not None:
            raise UsageError("a sparse matrix carries its own weights: leave edge_weight out")
        if mask is not None:
            if isinstance(x, tuple):
                raise UsageError("a mask needs one tensor of nodes, not a bipartite pair")
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        if isinstance(edge_index, EdgeIndex) and self.flow == "target_to_source":
            # The fused product of a matrix sorted by column knows one direction only.
            edge_index = edge_index.as_tensor()
        pair = x if isinstance(x, tuple) else (x, x)
        # propagate_type: (x: OptPairTensor, edge_weight: OptTensor)
        out = self.propagate(edge_index, x=pair, edge_weight=edge_weight, size=size)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        """Weigh each neighbour."""
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def message_and_aggregate(
        self, edge_index: Adj, x: OptPairTensor, edge_weight: OptTensor
    ) -> Tensor:
        """One sparse product; leading dimensions become channels, as it takes matrices only."""
        source = x[0]
        flat = source if source.dim() == 2 else source.movedim(-2, 0).flatten(1)
        if isinstance(edge_index, EdgeIndex):
            if edge_weight is None and flat.dtype != torch.float32:
                # The weights that EdgeIndex assumes are float32, and types do not mix here.
                edge_weight = flat.new_ones(edge_index.size(1))
            out = edge_index.matmul(
                other=flat, input_value=edge_weight, reduce="sum", transpose=True
            )
        else:
            out = spmm(edge_index.to(flat.dtype), flat, reduce="sum")
        if source.dim() == 2:
            return out
        return out.unflatten(1, (*source.shape[:-2], source.shape[-1])).movedim(0, -2)


def _sum_pairs(x: Tensor, graph: PairGraph, mask: OptTensor) -> Tensor:
    if x.size(-2) == graph.num_nodes:
        return graph.matmul(x, mask)
    if x.size(-2) % graph.num_nodes:
        raise UsageError(
            f"x has {x.size(-2)} nodes, a multiple of the graph's {graph.num_nodes} wanted"
        )
    pairs = x.unflatten(-2, (-1, graph.num_nodes))
    real = None if mask is None else mask.unflatten(-1, (-1, graph.num_nodes))
    return graph.matmul(pairs, real).flatten(-3, -2)
