"""The Multi-Graph Feature Fusion layer (section 4.5, Fig. 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import reset, zeros
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size
from torch_geometric.utils import is_torch_sparse_tensor

from relocal_pyg.errors import UsageError, check_number
from relocal_pyg.graph import PairGraph, zero_pads


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
        super().__init__(aggr="sum", **kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
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
            if self.flow == "target_to_source":  # PyG gathers the wrong side then
                raise UsageError("a bipartite graph runs from source to target: flip its edges")
            target = x[1]
            if size is None and target is not None:
                size = (x[0].size(self.node_dim), target.size(self.node_dim))
            out = self.sum_neighbors((self.lin(x[0]), None), edge_index, edge_weight, size, mask)
        else:
            x = self.lin(zero_pads(x, mask))
            out = self.sum_neighbors(x, edge_index, edge_weight, size, mask)
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
            UsageError: Weights come twice, a mask meets a bipartite graph, :obj:`flow` a mean
                that has the other, or graph, weights and mask have not the sizes of each other.
        """
        if isinstance(edge_index, PairGraph):
            if edge_weight is not None:
                raise UsageError("a PairGraph carries its own weights: set its `weight`")
            if isinstance(x, tuple):
                raise UsageError("a PairGraph is not bipartite: give one tensor of 2T nodes")
            if self.flow == "target_to_source" and edge_index.normalization == "mean":
                raise UsageError("a mean has one direction: for the other give edges and weights")
            return _sum_pairs(x, edge_index, mask)
        if is_torch_sparse_tensor(edge_index) and edge_weight is not None:
            raise UsageError("a sparse matrix carries its own weights: leave edge_weight out")
        if mask is not None:
            if isinstance(x, tuple):
                raise UsageError("a mask needs one tensor of nodes, not a bipartite pair")
            x = zero_pads(x, mask)
        if isinstance(edge_index, EdgeIndex) and (
            # The fused product of a matrix sorted by column knows one direction only, and a
            # compiler no sparse matrix.
            self.flow == "target_to_source" or torch.compiler.is_compiling()
        ):
            edge_index = edge_index.as_tensor()
        if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
            raise UsageError(f"{edge_index.shape[1]} edges have weights {list(edge_weight.shape)}")
        # propagate_type: (x: OptPairTensor, edge_weight: OptTensor)
        out = self.propagate(edge_index, x=x, edge_weight=edge_weight, size=size)
        # Single messages are of the wider type of x and weights.
        out = out.to((x[0] if isinstance(x, tuple) else x).dtype)
        return zero_pads(out, mask)

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        """Weigh each neighbour."""
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    @torch.compiler.disable  # it knows no sparse matrix
    def message_and_aggregate(
        self, edge_index: Adj, x: Tensor | OptPairTensor, edge_weight: OptTensor
    ) -> Tensor:
        """One sparse product; leading dimensions become channels, as it takes matrices only."""
        source, target = x if isinstance(x, tuple) else (x, x)
        _check_size(edge_index, (source, target), edge_weight)
        flat = source if source.dim() == 2 else source.movedim(-2, 0).flatten(1)
        if isinstance(edge_index, EdgeIndex):
            (pointer, node), _ = edge_index.get_csc()
            if target is not None:  # an EdgeIndex that was not told its size ends early
                missing = target.shape[-2] + 1 - len(pointer)
                pointer = F.pad(pointer, (0, missing), value=len(node))
            out = _SparseProduct.apply(flat, edge_weight, lambda: (pointer, node, None), None)
        else:
            weight = edge_index.to_sparse_csr().values() if edge_index.requires_grad else None
            out = _SparseProduct.apply(flat, weight, lambda: _csr_parts(edge_index), None)
        if source.dim() == 2:
            return out
        return out.unflatten(1, (*source.shape[:-2], source.shape[-1])).movedim(0, -2)


def _check_size(graph: Adj, x: OptPairTensor, edge_weight: OptTensor) -> None:
    """Refuse what :class:`_SparseProduct`, which checks nothing, would read beyond its end."""
    matrix = not isinstance(graph, EdgeIndex)  # one that was not told its size may end early
    size = graph.shape[::-1] if matrix else graph.get_sparse_size()
    for number, side in zip(size, x, strict=True):
        if side is not None and (number > side.shape[-2] or (matrix and number < side.shape[-2])):
            raise UsageError(f"the graph has {number} nodes and x {side.shape[-2]}")
    if not matrix and edge_weight is not None and edge_weight.shape != graph.shape[1:]:
        raise UsageError(f"{graph.shape[1]} edges have weights {list(edge_weight.shape)}")


def _csr_parts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    csr = matrix.to_sparse_csr()
    return csr.crow_indices(), csr.col_indices(), csr.values()


class _SparseProduct(torch.autograd.Function):
    """A sparse matrix of targets and sources times ``x``, or its transpose of so many ``rows``.

    Neither PyTorch's own sparse products nor PyG's are known to ``torch.func``. The parts of the
    matrix (row pointer, columns, values or None for ones) come from a call, because inside a
    transform a sparse tensor cannot even be read; ``weight`` stands for values to differentiate.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: OptTensor, parts: Callable[[], tuple[Any, ...]], rows: int | None
    ) -> Tensor:
        pointer, node, values = parts()
        values = values if weight is None else weight
        values = x.new_ones(len(node)) if values is None else values.to(x.dtype)
        size = (len(pointer) - 1, len(x) if rows is None else rows)
        matrix = torch.sparse_csr_tensor(pointer, node, values, size, check_invariants=False)
        if rows is not None:
            matrix = matrix.t().to_sparse_csr()
        return torch.sparse.mm(matrix, x, "sum") if x.device.type == "cpu" else matrix @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.parts, ctx.rows = inputs
        ctx.nodes = len(x)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[OptTensor, OptTensor, None, None]:
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            back = ctx.nodes if ctx.rows is None else None
            to_x = _SparseProduct.apply(grad, weight, ctx.parts, back)
        if ctx.needs_input_grad[1]:
            pointer, node, _ = ctx.parts()
            row = torch.arange(len(pointer) - 1, device=node.device)
            row = row.repeat_interleave(pointer.diff(), output_size=len(node))
            given, received = (node, row) if ctx.rows is None else (row, node)
            to_weight = (grad[received] * x[given]).sum(-1).to(weight.dtype)
        return to_x, to_weight, None, None

    @staticmethod
    def jvp(ctx: Any, x_change: OptTensor, weight_change: OptTensor, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        total: Any = 0
        if x_change is not None:
            total = _SparseProduct.apply(x_change, weight, ctx.parts, ctx.rows)
        if weight_change is not None:
            total = total + _SparseProduct.apply(x, weight_change, ctx.parts, ctx.rows)
        return total

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: OptTensor, *graph: Any
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            stacked = x.movedim(in_dims[0] or 0, 1)
            out = _SparseProduct.apply(stacked.flatten(1), weight, *graph)
            return out.unflatten(1, stacked.shape[1:]), 1
        size = info.batch_size
        xs = [x] * size if in_dims[0] is None else x.unbind(in_dims[0])
        pairs = zip(xs, weight.unbind(in_dims[1]), strict=True)
        return torch.stack([_SparseProduct.apply(*pair, *graph) for pair in pairs]), 0


def _sum_pairs(x: Tensor, graph: PairGraph, mask: OptTensor) -> Tensor:
    if x.size(-2) == graph.num_nodes:
        return graph.matmul(x, mask)
    if x.size(-2) % graph.num_nodes:
        raise UsageError(
            f"x has {x.size(-2)} nodes, a multiple of the graph's {graph.num_nodes} wanted"
        )
    x = zero_pads(x, mask)
    pairs = x.unflatten(-2, (-1, graph.num_nodes))
    real = None if mask is None else mask.unflatten(-1, (-1, graph.num_nodes))
    return graph.matmul(pairs, real).flatten(-3, -2)


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    return any(getattr(module, f"_{kind}_hooks") for kind in kinds)


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
        check_number(num_graphs, "num_graphs", least=1, whole=True)
        hidden = out_channels if hidden_channels is None else hidden_channels
        for name, size in (("out_channels", out_channels), ("hidden_channels", hidden)):
            check_number(size, name, least=1, whole=True)
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
        reset(self.act)

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
        return zero_pads(self.lin_out(active), mask)

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
        x = zero_pads(x, mask)  # what a pad holds must not reach the gradients of the weights
        lins = [self.lin_in, *(conv.lin for conv in self.convs)]
        # A (X W) = (A X) W: the branches share one wide product.
        weight = torch.cat([lin.weight for lin in lins[1:]])
        one = isinstance(graphs, Tensor | PairGraph)
        weights = [None] * self.num_graphs if edge_weights is None else edge_weights
        if self.graph_conv and (
            graphs is None or one or not len(graphs) == len(weights) == self.num_graphs
        ):
            raise UsageError(f"{self.num_graphs} graphs wanted, one per branch")
        # A hook waits for a call, such as that which finds a size that is not known yet.
        if any(map(_has_hooks, [*lins[1:], *self.convs])):
            hidden = self.lin_in(x)
            if not self.graph_conv:
                return self.act(torch.cat([lin(hidden) for lin in lins[1:]], dim=-1))
            each = zip(self.convs, graphs or (), weights, strict=True)
            parts = [conv(hidden, graph, weight, mask=mask) for conv, graph, weight in each]
            return self.act(torch.cat(parts, dim=-1))
        if (
            _has_hooks(self.lin_in)
            # Which way is cheaper is a question of the batch, which a traced graph must not ask.
            or torch.compiler.is_compiling()
            or x.numel() < MERGED_ROWS * self.hidden_channels * x.shape[-1]
        ):
            branches = F.linear(self.lin_in(x), weight)
        else:
            # Both products are one where multiplying the weights costs less than the nodes.
            bias = torch.mv(weight, self.lin_in.bias)
            branches = F.linear(x, weight @ self.lin_in.weight, bias)
        if self.graph_conv:
            parts = branches.split(self.out_channels, dim=-1)
            items = zip(self.convs, parts, graphs or (), weights, strict=True)
            branches = torch.cat(
                [conv.sum_neighbors(part, graph, w, mask=mask) for conv, part, graph, w in items],
                dim=-1,
            )
        return self.act(branches)

    def __repr__(self) -> str:
        kind = "" if self.graph_conv else ", graph_conv=False"
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"num_graphs={self.num_graphs}{kind})"
        )
