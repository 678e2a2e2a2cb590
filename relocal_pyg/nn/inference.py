"""Exact, fast inference of :class:`PairNetwork`: one query against many proposals.

Between two tanh the network is linear, so most of the work on a pair need not be done for the pair:

* The states of the encoder are those of a query or of a proposal, never of a pair.
* Before its first tanh, layer 1 is a sum of a part of the query and a part of the proposal. A step
  takes from the other video the sum over one residue class modulo ``k``, so that the proposal gives
  all query steps ``k`` rows only: ``U_q[i] + R_p[i mod k]``, and likewise the other way round.
* The last 1x1 convolution of a layer and the first of the next one are one matrix.
* The average pool is linear and comes before the last 1x1 convolution.
* Padding that is masked touches nothing, so proposals of a like length are cut to that length.

Where a shortcut does not hold, the next best exact way is taken: with ``residual=True`` the two 1x1
convolutions stay apart, and the pools of all layers are added up; of weights that are not binary
layer 1 splits into T rows instead of ``k``; with masks, where a node's degree depends on both
videos (``"laplacian"``, ``"sym"``), it is run for each pair like the later ones, and of
``"exponential"`` weights, which count all 2T nodes, nothing is cut off; with ``graph_conv=False``
query and proposal never meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from relocal_pyg.graph import PairGraph
from relocal_pyg.nn.conv import MultiGraphConv
from relocal_pyg.nn.network import PairNetwork
from relocal_pyg.nn.products import multiplies_bfloat16, project, tanh_


@torch.no_grad()
def window_states(
    lstm: nn.LSTM,
    table: Tensor,
    positions: Tensor,
    mask: Tensor,
    extra: Tensor | None = None,
    *,
    skip_padding: bool = False,
) -> Tensor:
    """Hidden states of windows whose rows are gathered from a table.

    The input's share of the gates is a matrix product per row of the table, not per row of every
    window, which is most of the work where windows overlap. Equal to running the LSTM on the
    gathered windows, with zero rows at padding.

    Args:
        lstm: One layer, forward in time, batch first.
        table: Rows ``[n, C]``.
        positions: Row numbers ``[M, T]``.
        mask: Real steps ``[M, T]``, each row true up to the window's length.
        extra: Further channels ``[M, T, E]`` after the ``C`` of the table, zero at padding; flags
            count as 0 and 1.
        skip_padding: Leave padded steps out; their states are 0.

    Returns:
        States ``[T, M, d]``, time first.
    """
    width = lstm.hidden_size
    weight, recurrent, *biases = (_reorder(parameter) for parameter in lstm.parameters())
    bias = biases[0] + biases[1]
    channels = table.shape[1]
    inputs = project(table, weight[:, :channels].contiguous(), bias)
    # One more row stands for padding.
    inputs = torch.cat([inputs, bias[None]])
    lengths = mask.sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    rows = torch.where(mask, positions, len(table))[order].T.contiguous()
    flags = None if extra is None else extra[order].transpose(0, 1).to(table)
    steps, count = rows.shape
    alive = [count] * steps
    if skip_padding:
        alive = mask.sum(dim=0).tolist()
    states = table.new_zeros(steps, count, width)
    cell = table.new_zeros(count, width)
    for step, active in enumerate(alive):
        if active == 0:
            break
        gates = inputs.index_select(0, rows[step, :active])
        if flags is not None:
            gates.addmm_(flags[step, :active], weight[:, channels:].T)
        if step > 0:
            gates = project(states[step - 1, :active], recurrent, add=gates)
        enter, forget, leave = gates[:, : 3 * width].sigmoid_().chunk(3, dim=1)
        fresh = tanh_(gates[:, 3 * width :].contiguous())
        now = cell[:active].mul_(forget).addcmul_(enter, fresh)
        torch.mul(leave, tanh_(now.clone()), out=states[step, :active])
    back = torch.empty_like(order)
    back[order] = torch.arange(count, device=order.device)
    return states.index_select(1, back)


def _reorder(weight: Tensor) -> Tensor:
    """Gates from (in, forget, new, out) to (in, forget, out, new): the sigmoids side by side."""
    enter, forget, fresh, leave = weight.detach().chunk(4)
    return torch.cat([enter, forget, leave, fresh])


class LayerWeights(NamedTuple):
    """Weights of a multi-graph layer, ``[out, in]``, K parts where it has K branches."""

    in_weight: Tensor
    in_bias: Tensor
    weights: list[Tensor]
    out_weights: list[Tensor]
    out_bias: Tensor
    exact_weight: Tensor
    exact_bias: Tensor

    @classmethod
    def of(cls, layer: MultiGraphConv, dtype: torch.dtype) -> LayerWeights:
        """Copy the weights of a layer."""
        weight, bias = layer.lin_out.weight.detach().clone(), layer.lin_out.bias.detach().clone()
        return cls(
            layer.lin_in.weight.detach().to(dtype, copy=True),
            layer.lin_in.bias.detach().to(dtype, copy=True),
            [conv.lin.weight.detach().to(dtype, copy=True) for conv in layer.convs],
            _parts(weight, layer.num_graphs, dtype),
            bias.to(dtype),
            weight,
            bias,
        )

    def enter(self, x: Tensor) -> Tensor:
        """The first 1x1 convolution."""
        return project(x.flatten(0, 1), self.in_weight, self.in_bias).view_as(x)

    def leave(self, sums: Tensor, number: Tensor | int) -> Tensor:
        """The last 1x1 convolution, of sums ``[N, K d]`` over so many nodes."""
        return sums @ self.exact_weight.T + number * self.exact_bias


def merge(
    layer: MultiGraphConv, following: MultiGraphConv, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """The last 1x1 convolution of a layer and the first of the next one, in K parts, and bias."""
    leave, enter = layer.lin_out, following.lin_in
    bias = enter.weight @ leave.bias + enter.bias
    return _parts(enter.weight @ leave.weight, layer.num_graphs, dtype), bias.to(dtype)


def _parts(weight: Tensor, number: int, dtype: torch.dtype) -> list[Tensor]:
    """The columns of each branch, each part contiguous."""
    return [part.contiguous() for part in weight.to(dtype).chunk(number, dim=1)]


def apply(x: Tensor, weight: Tensor, act: Literal["none", "tanh"] = "none") -> Tensor:
    """Multiply features ``[T, N, d]``."""
    return project(x.flatten(0, 1), weight, act=act).view(*x.shape[:-1], -1)


def mix(active: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """A 1x1 convolution of concatenated branches, K times ``[2T, N, d]`` to ``[2T, N, d]``."""
    out = project(active[0].flatten(0, 1), weights[0], bias)
    for branch, weight in zip(active[1:], weights[1:], strict=True):
        out = project(branch.flatten(0, 1), weight, add=out)
    return out.view_as(active[0])


def sums(active: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Sums over nodes, branches side by side, ``[N, K d]``."""
    return torch.cat([branch.sum(dim=0, dtype=dtype) for branch in active], dim=1)


def masked(x: Tensor, real: Tensor | None) -> Tensor:
    """Set pads to zero in place."""
    return x if real is None else x.mul_(real)


#: Up to so many steps one product with the K matrices, stacked, beats K sums.
STACKED_STEPS = 96


class Neighbours:
    """K graphs, each as a fixed matrix and factors of the nodes before and after it.

    With the nodes first and the pairs second, the sum over neighbours of many pairs is one matrix
    product.

    Args:
        graphs: The graphs.
        masked: Whether pads are kept out, so that degrees differ from pair to pair.

    Attributes:
        splits: Whether the features of one video can be summed before the other video is known,
            because nothing but factors after the sums depends on both.
    """

    def __init__(self, graphs: Sequence[PairGraph], masked: bool) -> None:
        self.graphs = [_Factored(graph, masked) for graph in graphs]
        self.splits = not any(graph.symmetric for graph in self.graphs)
        self._matrices: dict[tuple[int, torch.dtype], Tensor] = {}
        self._blocks: dict[tuple[int, torch.dtype, bool], Tensor] = {}

    def sum(self, x: Tensor, scales: Scales) -> Tensor:
        """Sum over neighbours, ``[2T, N, d]``, zero at pads, to ``[K, 2T, N, d]``; T may be any."""
        nodes = len(x)
        if nodes <= 2 * STACKED_STEPS and all(before is None for before, _ in scales):
            key = nodes, x.dtype
            if key not in self._matrices:
                dense = [graph.dense(nodes // 2, x) for graph in self.graphs]
                self._matrices[key] = torch.cat(dense)
            out = project(self._matrices[key], x.flatten(1).T).view(-1, *x.shape)
        else:
            pairs = zip(self.graphs, scales, strict=True)
            out = torch.stack([g.sum(x if s[0] is None else x * s[0]) for g, s in pairs])
        for place, (_, after) in enumerate(scales):
            if after is not None:
                out[place].mul_(after)
        return out

    def split_sums(self, x: Tensor, *, query: bool) -> tuple[Tensor, list[Tensor]]:
        """What the steps of one video give their own video, and the other one.

        Returns:
            ``[K, T, N, d]``, and for each graph the different rows ``[C_k, N, d]``: step ``i`` of
            the other video receives row ``i mod C_k``.
        """
        steps, zeros = len(x), torch.zeros_like(x)
        classes = [graph.classes(steps) for graph in self.graphs]
        if steps <= STACKED_STEPS:
            key = steps, x.dtype, query
            if key not in self._blocks:
                here, there = (0, steps) if query else (steps, 0)
                dense = [graph.dense(steps, x)[:, here : here + steps] for graph in self.graphs]
                own = [matrix[here : here + steps] for matrix in dense]
                pairs = zip(dense, classes, strict=True)
                cross = [matrix[there : there + count] for matrix, count in pairs]
                self._blocks[key] = torch.cat([*own, *cross])
            sums = project(self._blocks[key], x.flatten(1).T).view(-1, *x.shape[1:])
            parts = sums.split([len(classes) * steps, *classes])
            return parts[0].view(-1, *x.shape), list(parts[1:])
        nodes = torch.cat([x, zeros] if query else [zeros, x])
        halves = [graph.sum(nodes).chunk(2)[:: 1 if query else -1] for graph in self.graphs]
        rows = [half[1][:count] for half, count in zip(halves, classes, strict=True)]
        return torch.stack([half[0] for half in halves]), rows

    def scales(self, real: Tensor | None, like: Tensor) -> Scales:
        """Factors ``[2T, N, 1]`` before and after each sum, None for 1.

        Args:
            real: Real nodes ``[2T, N, 1]`` as numbers, or None for all.
            like: States ``[T, N, d]`` of one side.
        """
        return [graph.scales(real, like) for graph in self.graphs]


#: For each graph the factors ``[2T, N, 1]`` before and after the sum.
Scales = Sequence[tuple[Tensor | None, Tensor | None]]


class _Factored:
    """One graph: ``after * matrix * before``."""

    def __init__(self, graph: PairGraph, masked: bool) -> None:
        self.mean = graph.normalization == "mean"
        # These have a factor before the sum, which a mask changes.
        self.symmetric = masked and (graph.weight == "laplacian" or graph.normalization == "sym")
        self.identity = self.symmetric and graph.weight == "laplacian"
        if self.identity:
            graph = replace(graph, weight="binary")
        elif self.mean or self.symmetric:
            graph = replace(graph, normalization="none")
        self.graph = graph

    def classes(self, steps: int) -> int:
        alike = self.graph.weight == "binary" and self.graph.normalization == "none"
        return min(self.graph.k, steps) if alike else steps

    def dense(self, steps: int, like: Tensor) -> Tensor:
        matrix = replace(self.graph, num_steps=steps).dense(like.dtype, like.device)
        return (
            matrix + torch.eye(2 * steps, dtype=matrix.dtype, device=matrix.device)
            if self.identity
            else matrix
        )

    def sum(self, x: Tensor) -> Tensor:
        graph = replace(self.graph, num_steps=len(x) // 2)
        out = graph.matmul(x.flatten(1)).view_as(x)
        return out + x if self.identity else out

    def scales(self, real: Tensor | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not (self.mean or self.symmetric):
            return None, real
        nodes = like.new_ones(2 * len(like), 1, 1) if real is None else real
        # Degrees count: whole numbers that a short float type cannot hold.
        degree = self.sum(nodes.to(torch.promote_types(like.dtype, torch.float32)))
        factor = degree.rsqrt() if self.symmetric else degree.reciprocal()
        factor = torch.where(nodes > 0, factor, 0).to(like.dtype)
        return (factor if self.symmetric else None), factor


#: Numbers in the largest intermediate tensor: few enough to stay in a processor's cache.
CHUNK_NUMBERS = 1_500_000
#: Windows encoded at once: bounds memory, changes no result.
WINDOWS = 1024


@dataclass(frozen=True)
class Side:
    """Encoded queries or proposals and their share of layer 1 before its tanh.

    Attributes:
        hidden: ``[T, N, d]``, pads zero where they are masked.
        real: Real steps ``[T, N, 1]`` as numbers, or None where the network masks nothing.
        own: For each graph ``[T, N, d]``, what the steps receive from their own video; empty
            where layer 1 does not split.
        cross: For each graph ``[C_k, N, d]``, what the steps of the other video's classes receive.
    """

    hidden: Tensor
    real: Tensor | None
    own: list[Tensor]
    cross: list[Tensor]


class InferenceNetwork:
    """A frozen copy of a network's weights, merged for inference.

    Later changes of the network do not reach it, except through its heads. Nothing is
    differentiable.

    Args:
        network: The network; dropout is left out. Its heads have to be in evaluation mode.
        graphs: Its K graphs.
        dtype: Arithmetic of all that is done per pair, that of the weights where None. Pools and
            heads keep the dtype of the weights.
        chunk: Proposals at once; such that :data:`CHUNK_NUMBERS` is kept where None.

    Example:
        >>> graphs = [PairGraph(5, 1), PairGraph(5, 2)]
        >>> network = PairNetwork(8, 16, num_graphs=2).eval()
        >>> scoring = InferenceNetwork(network, graphs)
        >>> query, proposals = torch.randn(5, 16), torch.randn(5, 7, 16)
        >>> scoring.score(query, None, proposals, None)[0].shape
        torch.Size([7])
    """

    @torch.no_grad()
    def __init__(
        self,
        network: PairNetwork,
        graphs: Sequence[PairGraph],
        dtype: torch.dtype | None = None,
        chunk: int | None = None,
    ) -> None:
        fusion = network.fusion
        weight = fusion.layers[0].lin_in.weight
        self.network, self.exact = network, weight.dtype
        self.dtype = dtype or weight.dtype
        if self.dtype == torch.bfloat16 and weight.is_cpu and not multiplies_bfloat16():
            self.dtype = torch.float32  # converted once, not for every product
        self.steps, self.masked = graphs[0].num_steps, network.mask_padding
        self.residual, self.channels = fusion.residual, fusion.channels
        self.graph_conv = fusion.layers[0].graph_conv
        self.neighbours = Neighbours(graphs, self.masked)
        numbers = 2 * self.steps * len(graphs) * self.channels
        self.chunk = chunk or max(4, CHUNK_NUMBERS // numbers)
        #: Whether layer 1 is a sum of a part of the query and a part of the proposal.
        self.splits = self.graph_conv and self.neighbours.splits
        # A weight that is a function of a node's number among all 2T sees where padding ends.
        self._cuts = self.masked and all(graph.weight != "exponential" for graph in graphs)
        self._layers = [LayerWeights.of(layer, self.dtype) for layer in fusion.layers]
        pairs = zip(fusion.layers[:-1], fusion.layers[1:], strict=True)
        self._merged = [merge(layer, following, self.dtype) for layer, following in pairs]

    def score(
        self,
        query: Tensor,
        query_mask: Tensor | None,
        states: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Score encoded proposals against one encoded query.

        States are ``[T, d]`` of the query and ``[T, M, d]`` of the proposals; masks ``[T]`` and
        ``[M, T]`` are needed where the network masks its padding.

        Returns:
            Logits ``[M]`` and offsets ``[M, 2]``, those of :meth:`PairNetwork.fuse`.
        """
        return self._heads(self.pooled(query, query_mask, states, mask))

    def score_windows(
        self,
        query: Tensor,
        query_mask: Tensor,
        rows: Tensor,
        positions: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Encode windows by :meth:`encode`, :data:`WINDOWS` at once, and :meth:`score` them."""
        found = []
        for part in torch.arange(len(positions), device=positions.device).split(WINDOWS):
            states = self.encode(rows, positions[part], mask[part])
            found.append(self.score(query, query_mask, states, mask[part]))
        logits, offsets = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(offsets)

    def encode(
        self, rows: Tensor, positions: Tensor, mask: Tensor, extra: Tensor | None = None
    ) -> Tensor:
        """States ``[T, M, d]`` of windows; arguments as in :func:`window_states`."""
        lstm = self.network.encoder.proposal_lstm
        return window_states(lstm, rows, positions, mask, extra, skip_padding=self.masked)

    def pooled(
        self,
        query: Tensor,
        query_mask: Tensor | None,
        states: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """What the heads are given, ``[M, d]``; arguments as in :meth:`score`."""
        pooled = states.new_empty(states.shape[1], self.channels, dtype=self.exact)
        sides: dict[int, Side] = {}
        for rows, steps in self._chunks(query_mask, mask, states):
            if steps not in sides:
                real = None if query_mask is None else query_mask[None, :steps]
                sides[steps] = self.side(query[:steps, None], real, query=True)
            real = None if mask is None else mask[rows, :steps]
            proposals = self.side(states[:steps, rows], real, query=False)
            pooled[rows] = self._pool(sides[steps], proposals)
        return pooled

    @torch.no_grad()
    def side(self, hidden: Tensor, mask: Tensor | None, *, query: bool) -> Side:
        """Prepare one side: states ``[T, N, d]``, real steps ``[N, T]``.

        The mask is ignored where the network does not mask its padding.
        """
        hidden, real = hidden.to(self.dtype), None
        if self.masked and mask is not None:
            real = mask.T.unsqueeze(-1).to(self.dtype)
            hidden = hidden * real
        if not self.splits:
            return Side(hidden, real, [], [])
        first = self._layers[0]
        own, cross = self.neighbours.split_sums(masked(first.enter(hidden), real), query=query)
        rows = [apply(row, weight) for row, weight in zip(cross, first.weights, strict=True)]
        return Side(
            hidden, real, [apply(*pair) for pair in zip(own, first.weights, strict=True)], rows
        )

    def _chunks(
        self, query_mask: Tensor | None, mask: Tensor | None, states: Tensor
    ) -> Iterator[tuple[Tensor, int]]:
        """Rows of each chunk, and the steps that have to be looked at."""
        count = states.shape[1]
        if not self._cuts or mask is None or query_mask is None:
            for rows in torch.arange(count, device=states.device).split(self.chunk):
                yield rows, self.steps
            return
        lengths, order = mask.sum(dim=1).sort(descending=True, stable=True)
        shortest, start = max(1, int(query_mask.sum())), 0
        while start < count:
            steps = max(shortest, int(lengths[start]))
            size = self.chunk * self.steps // steps
            yield order[start : start + size], steps
            start += size

    @torch.no_grad()
    def _pool(self, query: Side, proposals: Side) -> Tensor:
        """The average over the nodes of each pair after the last layer, ``[N, d]``."""
        count, real = proposals.hidden.shape[1], None
        if query.real is not None and proposals.real is not None:
            real = torch.cat([query.real.expand(-1, count, -1), proposals.real])
        number = 2 * len(query.hidden) if real is None else real.sum(dim=0, dtype=self.exact)
        if not self.graph_conv:
            return (self._sum_apart(query) + self._sum_apart(proposals)) / number
        scales = self.neighbours.scales(real, query.hidden)
        x: Tensor | None = None
        active: list[Tensor] = []
        total: Tensor | float = 0.0
        if self.residual or not self.splits:
            x = torch.cat([query.hidden.expand(-1, count, -1), proposals.hidden])
        if x is not None and self.residual:
            total = x.sum(dim=0, dtype=self.exact)
        for place, layer in enumerate(self._layers):
            if place == 0 and self.splits:
                active = _first(query, proposals, scales)
            else:
                merged = self._merged[place - 1]
                latent = mix(active, *merged) if x is None else layer.enter(x)
                mixed = self.neighbours.sum(masked(latent, real), scales)
                pairs = zip(mixed, layer.weights, strict=True)
                active = [apply(branch, weight, act="tanh") for branch, weight in pairs]
            last = place + 1 == len(self._layers)
            if self.residual or last:
                total = total + layer.leave(sums(active, self.exact), number)
            if self.residual and x is not None and not last:
                x = masked(x + mix(active, layer.out_weights, layer.out_bias), real)
            else:
                x = None
        assert isinstance(total, Tensor)
        return total / number

    def _sum_apart(self, side: Side) -> Tensor:
        """Sum over the nodes of one side of a network without graphs, ``[N, d]``."""
        x = side.hidden
        for layer in self._layers:
            latent = layer.enter(x)
            active = [apply(latent, weight, act="tanh") for weight in layer.weights]
            out = mix(active, layer.out_weights, layer.out_bias)
            x = masked(x + out if self.residual else out, side.real)
        return x.sum(dim=0, dtype=self.exact)

    @torch.no_grad()
    def _heads(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.score_head.logits(pooled), self.network.offset_head(pooled)


def _first(query: Side, proposals: Side, scales: Scales) -> list[Tensor]:
    """Layer 1 from its two parts, for each graph ``[2T, N, d]`` after the tanh."""
    steps, count, width = proposals.hidden.shape
    step = torch.arange(steps, device=proposals.hidden.device)
    active = []
    for place, (_, after) in enumerate(scales):
        out = proposals.hidden.new_empty(2 * steps, count, width)
        cross, back = proposals.cross[place], query.cross[place]
        torch.add(cross[step % len(cross)], query.own[place], out=out[:steps])
        torch.add(proposals.own[place], back[step % len(back)], out=out[steps:])
        active.append(tanh_(out if after is None else out.mul_(after)))
    return active
