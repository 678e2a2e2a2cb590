"""The sums over neighbours in inference, for features laid out node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from relocal_pyg.graph import PairGraph
from relocal_pyg.nn.products import project

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
        """Sum over neighbours, ``[2T, N, d] -> [K, 2T, N, d]``; T may be any.

        Args:
            x: Features, zero at pads.
            scales: Of :meth:`scales`.
        """
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

        Args:
            x: Features ``[T, N, d]``, zero at pads.
            query: Whether the video is the query.

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
        return matrix + torch.eye(2 * steps).to(matrix) if self.identity else matrix

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
