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
layer 1 splits into T rows instead of ``k``; with masks, where a factor before the sum depends on
both videos (``"laplacian"``, ``"sym"``), it is run for each pair like the later ones, and of
``"exponential"`` weights, which count all 2T nodes, nothing is cut off; with ``graph_conv=False``
query and proposal never meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from relocal_pyg.graph import PairGraph
from relocal_pyg.nn.network import PairNetwork
from relocal_pyg.nn.products import multiplies_bfloat16, project, tanh_

#: Up to so many steps one product with the K matrices, stacked, beats K sums.
STACKED_STEPS = 96


class Neighbours:
    """Sums over the neighbours in K graphs that differ in ``k`` alone, of many pairs at once.

    With the nodes first and the pairs second, a sum is one matrix product.

    Args:
        graphs: The graphs.
        masked: Whether pads are kept out, so that degrees differ from pair to pair.

    Attributes:
        splits: Whether the features of one video can be summed before the other video is known,
            because nothing but factors after the sums depends on both.
    """

    def __init__(self, graphs: Sequence[PairGraph], masked: bool) -> None:
        weight, normalization = graphs[0].weight, graphs[0].normalization
        self.splits = not masked or (weight != "laplacian" and normalization != "sym")
        # A mean is a plain sum times factors of each pair; any other scaling is in the matrix.
        self.mean = normalization == "mean"
        self.graphs = [replace(g, normalization="none") if self.mean else g for g in graphs]
        #: Whether a step receives the same as all others of its residue class modulo ``k``.
        self.alike = weight == "binary" and normalization != "sym"
        self._matrices: dict[tuple[int, torch.dtype], Tensor] = {}

    def matrices(self, steps: int, like: Tensor) -> Tensor:
        """The K matrices ``[K, 2T, 2T]`` for so many steps T, made once."""
        key = steps, like.dtype
        if key not in self._matrices:
            graphs = (replace(graph, num_steps=steps) for graph in self.graphs)
            dense = [graph.dense(like.dtype, like.device) for graph in graphs]
            self._matrices[key] = torch.stack(dense)
        return self._matrices[key]

    def factors(self, real: Tensor | None, like: Tensor) -> Tensor | None:
        """What the sums are multiplied by, ``[K, 2T, N, 1]``, zero at pads; None for 1.

        Args:
            real: Real nodes ``[2T, N, 1]`` as numbers, or None for all.
            like: States ``[T, N, d]`` of one side.
        """
        if not self.mean:
            return None if real is None else real.expand(len(self.graphs), -1, -1, -1)
        nodes = like.new_ones(2 * len(like), 1, 1) if real is None else real
        # Degrees count: whole numbers that a short float type cannot hold.
        degree = self.sum(nodes.to(torch.promote_types(like.dtype, torch.float32)))
        return torch.where(nodes > 0, degree.reciprocal(), 0).to(like.dtype)

    def sum(self, x: Tensor, real: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """Sums over neighbours times :meth:`factors`, ``[2T, N, d]`` to ``[K, 2T, N, d]``.

        T may be any; pads of ``x`` count for nothing and are overwritten.
        """
        steps = len(x) // 2
        graphs = (replace(graph, num_steps=steps) for graph in self.graphs)
        if not self.splits:  # the graphs find the factors themselves
            pairs, mask = x.transpose(0, 1), None if real is None else real[..., 0].T > 0
            return torch.stack([graph.matmul(pairs, mask).transpose(0, 1) for graph in graphs])
        if real is not None:
            x.mul_(real)
        if steps <= STACKED_STEPS:
            stacked = self.matrices(steps, x).flatten(0, 1)
            out = project(stacked, x.flatten(1).T).view(-1, *x.shape)
        else:
            out = torch.stack([graph.matmul(x.flatten(1)).view_as(x) for graph in graphs])
        return out if factors is None else out.mul_(factors)

    def split_sums(self, x: Tensor, *, query: bool) -> tuple[Tensor, list[Tensor]]:
        """What the steps of one video, ``[T, N, d]``, give their own video, and the other one.

        Returns:
            ``[K, T, N, d]``, and for each graph the different rows ``[C_k, N, d]``: step ``i`` of
            the other video receives row ``i mod C_k``.
        """
        steps, zeros = len(x), torch.zeros_like(x)
        classes = [min(graph.k, steps) if self.alike else steps for graph in self.graphs]
        if steps > STACKED_STEPS:
            halves = self.sum(torch.cat([x, zeros] if query else [zeros, x])).chunk(2, dim=1)
            own, other = halves if query else halves[::-1]
            return own, [rows[:count] for rows, count in zip(other, classes, strict=True)]
        here, there = (0, steps) if query else (steps, 0)
        columns = self.matrices(steps, x)[:, :, here : here + steps]
        pairs = zip(columns, classes, strict=True)
        rows = [matrix[there : there + count] for matrix, count in pairs]
        stacked = torch.cat([*columns[:, here : here + steps], *rows])
        sums = project(stacked, x.flatten(1).T).view(-1, *x.shape[1:])
        own, *cross = sums.split([len(classes) * steps, *classes])
        return own.view(-1, *x.shape), cross


class LayerWeights(NamedTuple):
    """A multi-graph layer of K branches, as products of matrices ``[out, in]``.

    Attributes:
        enter: The first 1x1 convolution, of the nodes; or, merged with the last one of the layer
            before, of that layer's branches: a matrix for each, and the bias.
        branches: A matrix for each branch.
        leave: The last 1x1 convolution: a matrix for each branch, and the bias.
        pool: The same in one piece, in the dtype of the network: it comes after the pool.
    """

    enter: tuple[list[Tensor], Tensor]
    branches: list[Tensor]
    leave: tuple[list[Tensor], Tensor]
    pool: tuple[Tensor, Tensor]


def mix(branches: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """A 1x1 convolution of branches ``[., N, d]`` side by side, a matrix ``[d', d]`` for each."""
    out = project(branches[0], weights[0], bias)
    for branch, weight in zip(branches[1:], weights[1:], strict=True):
        out = project(branch, weight, add=out)
    return out


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
        graphs: Its K graphs, which differ in ``k`` alone.
        dtype: Arithmetic of all that is done per pair, that of the weights where None. Pools and
            heads keep the dtype of the weights.

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
        self, network: PairNetwork, graphs: Sequence[PairGraph], dtype: torch.dtype | None = None
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
        self.chunk = max(4, CHUNK_NUMBERS // numbers)  # proposals at once
        #: Whether layer 1 is a sum of a part of the query and a part of the proposal.
        self.splits = self.graph_conv and self.neighbours.splits
        # A weight that is a function of a node's number among all 2T sees where padding ends.
        self._cuts = self.masked and graphs[0].weight != "exponential"
        # Gates from (in, forget, new, out) to (in, forget, out, new): the sigmoids side by side.
        gates = [parameter.chunk(4) for parameter in network.encoder.proposal_lstm.parameters()]
        weight, recurrent, *biases = (torch.cat([i, f, o, n]) for i, f, n, o in gates)
        self._lstm = weight, recurrent, biases[0] + biases[1]
        self._layers: list[LayerWeights] = []
        for layer in fusion.layers:
            weight, bias, number = layer.lin_in.weight, layer.lin_in.bias, 1
            if self._layers and self.graph_conv and not self.residual:
                before, before_bias = self._layers[-1].pool
                bias = weight @ before_bias + bias
                weight, number = weight @ before, len(graphs)
            leave = layer.lin_out.weight.clone(), layer.lin_out.bias.clone()
            self._layers.append(
                LayerWeights(
                    (self._parts(weight, number), bias.to(self.dtype, copy=True)),
                    [conv.lin.weight.to(self.dtype, copy=True) for conv in layer.convs],
                    (self._parts(leave[0], len(graphs)), leave[1].to(self.dtype)),
                    leave,
                )
            )

    def _parts(self, weight: Tensor, number: int) -> list[Tensor]:
        """Copies of the columns of each branch."""
        parts = weight.to(self.dtype, copy=True).chunk(number, dim=1)
        return [part.contiguous() for part in parts]

    def score(
        self, query: Tensor, query_mask: Tensor | None, states: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Score encoded proposals against one encoded query.

        States are ``[T, d]`` of the query and ``[T, M, d]`` of the proposals; masks ``[T]`` and
        ``[M, T]`` are needed where the network masks its padding.

        Returns:
            Logits ``[M]`` and offsets ``[M, 2]``, those of :meth:`PairNetwork.fuse`.
        """
        pooled = self.pooled(query, query_mask, states, mask)
        with torch.no_grad():
            return self.network.score_head.logits(pooled), self.network.offset_head(pooled)

    def score_windows(
        self, query: Tensor, query_mask: Tensor, rows: Tensor, positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode windows by :meth:`encode`, :data:`WINDOWS` at once, and :meth:`score` them."""
        found = []
        for part in torch.arange(len(positions), device=positions.device).split(WINDOWS):
            states = self.encode(rows, positions[part], mask[part])
            found.append(self.score(query, query_mask, states, mask[part]))
        logits, offsets = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(offsets)

    @torch.no_grad()
    def encode(
        self, rows: Tensor, positions: Tensor, mask: Tensor, extra: Tensor | None = None
    ) -> Tensor:
        """Hidden states of windows whose rows are gathered from a table.

        The input's share of the gates is a matrix product per row of the table, not per row of
        every window, which is most of the work where windows overlap. Equal to running the LSTM of
        the proposals on the gathered windows, with zero rows at padding.

        Args:
            rows: The table ``[n, C]``.
            positions: Row numbers ``[M, T]``.
            mask: Real steps ``[M, T]``, each row true up to the window's length.
            extra: Further channels ``[M, T, E]`` after the ``C`` of the table, zero at padding;
                flags count as 0 and 1.

        Returns:
            States ``[T, M, d]``, time first; 0 at padding where the network masks it.
        """
        weight, recurrent, bias = self._lstm
        width, channels = recurrent.shape[1], rows.shape[1]
        inputs = project(rows, weight[:, :channels].contiguous(), bias)
        # One more row stands for padding.
        inputs = torch.cat([inputs, bias[None]])
        order = torch.argsort(mask.sum(dim=1), descending=True, stable=True)
        places = torch.where(mask, positions, len(rows))[order].T.contiguous()
        flags = None if extra is None else extra[order].transpose(0, 1).to(rows)
        steps, count = places.shape
        alive = mask.sum(dim=0).tolist() if self.masked else [count] * steps
        states = rows.new_zeros(steps, count, width)
        cell = rows.new_zeros(count, width)
        for step, active in enumerate(alive):
            if active == 0:
                break
            gates = inputs.index_select(0, places[step, :active])
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

    @torch.no_grad()
    def pooled(
        self, query: Tensor, query_mask: Tensor | None, states: Tensor, mask: Tensor | None
    ) -> Tensor:
        """What the heads are given, ``[M, d]``; arguments as in :meth:`score`."""
        count, shortest, start = states.shape[1], self.steps, 0
        order = torch.arange(count, device=states.device)
        lengths = [self.steps] * count
        if self._cuts and mask is not None and query_mask is not None:
            # The longest first: what is padding in a whole chunk is cut off.
            sizes, order = mask.sum(dim=1).sort(descending=True, stable=True)
            lengths, shortest = sizes.tolist(), max(1, int(query_mask.sum()))
        pooled = states.new_empty(count, self.channels, dtype=self.exact)
        queries: dict[int, Side] = {}
        while start < count:
            steps = max(shortest, lengths[start])
            rows = order[start : start + self.chunk * self.steps // steps]
            start += len(rows)
            if steps not in queries:
                real = None if query_mask is None else query_mask[None, :steps]
                queries[steps] = self.side(query[:steps, None], real, query=True)
            real = None if mask is None else mask[rows, :steps]
            proposals = self.side(states[:steps, rows], real, query=False)
            pooled[rows] = self._pool(queries[steps], proposals)
        return pooled

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
        latent = mix([hidden], *first.enter)
        if real is not None:
            latent.mul_(real)
        own, cross = (
            [project(rows, weight) for rows, weight in zip(sums, first.branches, strict=True)]
            for sums in self.neighbours.split_sums(latent, query=query)
        )
        return Side(hidden, real, own, cross)

    def _pool(self, query: Side, proposals: Side) -> Tensor:
        """The average over the nodes of each pair after the last layer, ``[N, d]``."""
        count, real = proposals.hidden.shape[1], None
        if query.real is not None and proposals.real is not None:
            real = torch.cat([query.real.expand(-1, count, -1), proposals.real])
        number = 2 * len(query.hidden) if real is None else real.sum(dim=0, dtype=self.exact)
        if not self.graph_conv:
            return (self._sum_apart(query) + self._sum_apart(proposals)) / number
        factors = self.neighbours.factors(real, query.hidden)
        total = torch.zeros((), dtype=self.exact, device=proposals.hidden.device)
        # What the next layer reads: the nodes, or the branches of the layer before.
        parts: list[Tensor] = []
        if self.residual or not self.splits:
            parts = [torch.cat([query.hidden.expand(-1, count, -1), proposals.hidden])]
        if self.residual:
            total = parts[0].sum(dim=0, dtype=self.exact)
        for layer in self._layers:
            if layer is self._layers[0] and self.splits:
                active = self._first(query, proposals, factors)
            else:
                sums = self.neighbours.sum(mix(parts, *layer.enter), real, factors)
                pairs = zip(sums, layer.branches, strict=True)
                active = [project(branch, weight, act="tanh") for branch, weight in pairs]
            last = layer is self._layers[-1]
            if self.residual or last:
                pool = torch.cat([branch.sum(dim=0, dtype=self.exact) for branch in active], dim=1)
                weight, bias = layer.pool
                total = total + (pool @ weight.T + number * bias)
            if self.residual and not last:
                active = [parts[0] + mix(active, *layer.leave)]
            parts = active
        return total / number

    def _first(self, query: Side, proposals: Side, factors: Tensor | None) -> list[Tensor]:
        """Layer 1 from its two parts, for each graph ``[2T, N, d]`` after the tanh."""
        steps, count, width = proposals.hidden.shape
        step = torch.arange(steps, device=proposals.hidden.device)
        active = []
        for place, (cross, back) in enumerate(zip(proposals.cross, query.cross, strict=True)):
            out = proposals.hidden.new_empty(2 * steps, count, width)
            torch.add(cross[step % len(cross)], query.own[place], out=out[:steps])
            torch.add(proposals.own[place], back[step % len(back)], out=out[steps:])
            active.append(tanh_(out if factors is None else out.mul_(factors[place])))
        return active

    def _sum_apart(self, side: Side) -> Tensor:
        """Sum over the nodes of one side of a network without graphs, ``[N, d]``."""
        x = side.hidden
        for layer in self._layers:
            latent = mix([x], *layer.enter)
            out = mix([project(latent, w, act="tanh") for w in layer.branches], *layer.leave)
            x = x + out if self.residual else out
        return (x if side.real is None else x * side.real).sum(dim=0, dtype=self.exact)
