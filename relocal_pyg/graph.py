"""The graphs that join a query and a proposal (section 4.3 of Zhou et al., arXiv 2007.09877)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relocal_pyg.errors import UsageError

#: :meth:`PairGraph.matmul` multiplies by the dense matrix up to this many steps per bit of ``k``,
#: and uses the closed form beyond. Measured on one CPU core, forward and backward, float32, 500
#: channels: the two meet near T = 30, 55 and 100 for k = 1, 3 and 10.
DENSE_STEPS_PER_BIT = 30


@dataclass(frozen=True)
class PairGraph:
    r"""One graph over the ``2T`` steps of a query (nodes ``0..T-1``) and a proposal (``T..2T-1``).

    Inside a video step ``i`` is joined with steps ``j`` where :math:`|i - j| \le k`, itself
    included, because the slice of section 4.3.1 includes it. Between the videos query step ``i``
    is joined with proposal step ``j`` where :math:`(j - i) \bmod k = 0`; the slice of section 4.3.2
    stops at "21", read here as ``2T``. The pattern is symmetric, and for ``k = 1`` the two videos
    are fully joined.

    Args:
        num_steps: Steps ``T`` of each video, at least 1.
        k: Reach inside a video and stride between the videos, at least 1; it may exceed ``T``.
        weight: Section 4.4: ``"binary"`` (the paper's choice); ``"exponential"``,
            :math:`\exp(-|i-j|^2 / 2s^2)` on the joined pairs, where ``i`` and ``j`` count all
            ``2T`` nodes, so that the same step of both videos is ``T`` apart; or ``"laplacian"``,
            :math:`\tilde{D}^{-1/2} (A + I) \tilde{D}^{-1/2}`, where ``I`` comes on top of the
            self-loops that ``A`` has already.
        scale: ``s`` of the exponential weights in nodes; the paper gives none. 0 means ``T``.
        normalization: ``"none"`` (the paper), ``"mean"`` (:math:`D^{-1} A`) or ``"sym"``
            (:math:`D^{-1/2} A D^{-1/2}`), over the weights above.

    Raises:
        UsageError: An argument is out of range.

    Example:
        >>> graph = PairGraph(num_steps=40, k=3)
        >>> graph.edge_index().shape
        torch.Size([2, 1604])
        >>> PairGraph(num_steps=3, k=2).dense().int().tolist()[0]
        [1, 1, 1, 1, 0, 1]
    """

    num_steps: int = 40
    k: int = 3
    weight: Literal["binary", "exponential", "laplacian"] = "binary"
    scale: float = 0.0
    normalization: Literal["none", "mean", "sym"] = "none"

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.k < 1:
            raise UsageError(f"num_steps {self.num_steps} and k {self.k}: both must be at least 1")
        if self.weight not in ("binary", "exponential", "laplacian"):
            raise UsageError(f"weight {self.weight!r}: binary, exponential or laplacian wanted")
        if self.normalization not in ("none", "mean", "sym"):
            raise UsageError(f"normalization {self.normalization!r}: none, mean or sym wanted")
        if self.weight == "laplacian" and self.normalization != "none":
            raise UsageError("laplacian weights are normalised already: leave normalization 'none'")
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise UsageError(f"scale {self.scale}: a finite number of nodes wanted, 0 for T")

    @property
    def num_nodes(self) -> int:
        """The ``2T`` nodes."""
        return 2 * self.num_steps

    def edge_index(self, device: torch.device | str | None = None) -> Tensor:
        """Edges ``[2, E]`` (int64) as (source, target), sorted by target, then by source.

        Example:
            >>> PairGraph(num_steps=1, k=1).edge_index().tolist()
            [[0, 1, 0, 1], [0, 0, 1, 1]]
        """
        target, source = _pattern(self, device).nonzero(as_tuple=True)
        return torch.stack([source, target])

    def edge_weight(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """Weights ``[E]`` in the order of :meth:`edge_index`, normalised where asked for."""
        return self.dense(dtype, device)[_pattern(self, device)]

    def dense(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """The matrix ``[2T, 2T]`` with ``dense()[target, source]``."""
        matrix = _base_matrix(self, torch.float64, device)
        before, after = self._scales(matrix.sum(dim=1, keepdim=True))
        if before is not None:
            matrix = matrix * before.T
        if after is not None:
            matrix = matrix * after
        return matrix.to(dtype)

    def matmul(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        method: Literal["auto", "dense", "closed_form"] = "auto",
    ) -> Tensor:
        r"""Multiply by :meth:`dense` without an edge list.

        For weights other than exponential the closed form takes :math:`O(T F \log k)`: the intra
        block is a box filter of width ``2k + 1``, and the inter block gives every step the same
        sum over the other video's steps of its residue class modulo ``k``. Both add
        neighbours directly, never differences of running sums, so nothing cancels.

        Args:
            x: Node features ``[..., 2T, F]``.
            mask: Real nodes, bool ``[..., 2T]``; the edges that touch another node are dropped,
                also from the degrees of a normalised graph, and rows of other nodes are 0.
            method: Which way to compute it; ``"auto"`` takes the faster one.

        Returns:
            ``[..., 2T, F]``.

        Raises:
            UsageError: ``x`` has another number of nodes, or there is no closed form.

        Example:
            >>> graph, x = PairGraph(num_steps=4, k=2), torch.randn(5, 8, 3)
            >>> torch.allclose(graph.matmul(x), graph.dense() @ x, atol=1e-5)
            True
        """
        if x.shape[-2] != self.num_nodes:
            raise UsageError(f"x has {x.shape[-2]} nodes where the graph has {self.num_nodes}")
        if self.weight == "exponential":
            if method == "closed_form":
                raise UsageError("exponential weights have no closed form: use method='dense'")
            closed = False
        else:
            fits = self.num_steps <= DENSE_STEPS_PER_BIT * min(self.k, self.num_steps).bit_length()
            closed = method == "closed_form" or (method == "auto" and not fits)
        if mask is None and not closed:
            return torch.matmul(_cached_dense(self, x.dtype, x.device), x)
        if mask is None:
            ones = x.new_ones(self.num_nodes, 1)
        else:
            real = mask.unsqueeze(-1)
            # A fill, not a product: a pad may hold anything, NaN included.
            x, ones = x.masked_fill(~real, 0), real.to(x.dtype)
        before = after = None
        if self.weight == "laplacian" or self.normalization != "none":
            before, after = self._scales(self._sum(ones, closed))
        out = self._sum(x if before is None else x * before, closed)
        if after is not None:
            out = out * after
        return out if mask is None else out.masked_fill(~real, 0)

    def _sum(self, x: Tensor, closed: bool) -> Tensor:
        """Multiply by the weights before normalisation."""
        if not closed:
            return torch.matmul(_cached_base(self, x.dtype, x.device), x)
        sides = x.unflatten(-2, (2, self.num_steps))
        out = (_box_sum(sides, self.k) + _comb_sum(sides, self.k).flip(-3)).flatten(-3, -2)
        return out + x if self.weight == "laplacian" else out

    def _scales(self, degree: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Factors ``[..., 2T, 1]`` of the nodes before and after the sum."""
        # A node without edges (a pad) must not give infinity; its rows are 0 in any case.
        degree = torch.where(degree > 0, degree, 1)
        if self.weight == "laplacian" or self.normalization == "sym":
            root = degree.rsqrt()
            return root, root
        return None, degree.reciprocal() if self.normalization == "mean" else None


def _pattern(graph: PairGraph, device: torch.device | str | None) -> Tensor:
    """Which nodes are joined, bool ``[2T, 2T]``."""
    node = torch.arange(graph.num_nodes, device=device)
    step, video = node % graph.num_steps, node // graph.num_steps
    apart = step[:, None] - step[None]
    same_video = video[:, None] == video[None]
    return torch.where(same_video, apart.abs() <= graph.k, apart % graph.k == 0)


def _base_matrix(graph: PairGraph, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """Weights before normalisation, ``[2T, 2T]``; for Laplacian weights ``A + I``."""
    matrix = _pattern(graph, device).to(dtype)
    if graph.weight == "laplacian":
        return matrix + torch.eye(graph.num_nodes, dtype=dtype, device=device)
    if graph.weight == "exponential":
        node = torch.arange(graph.num_nodes, device=device, dtype=torch.float64)
        scale = graph.scale or float(graph.num_steps)
        decay = torch.exp(-((node[:, None] - node[None]) ** 2) / (2 * scale**2))
        return matrix * decay.to(dtype)
    return matrix


def _cached_dense(graph: PairGraph, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A compiler traces the construction instead, and folds it into a constant.
    if torch.compiler.is_compiling():
        return graph.dense(dtype, device)
    return _keep_dense(graph, dtype, device)


def _cached_base(graph: PairGraph, dtype: torch.dtype, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        return _base_matrix(graph, dtype, device)
    return _keep_base(graph, dtype, device)


# An inference tensor in the cache would break the first training step that meets it.
@functools.lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _keep_dense(graph: PairGraph, dtype: torch.dtype, device: torch.device) -> Tensor:
    return graph.dense(dtype, device)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _keep_base(graph: PairGraph, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _base_matrix(graph, dtype, device)


def _box_sum(x: Tensor, k: int) -> Tensor:
    """Sum over steps at most ``k`` away, ``[..., T, F] -> [..., T, F]``, in ``log2(k)`` rounds."""
    steps = x.shape[-2]
    k = min(k, steps - 1)
    window, offset, width = F.pad(x, (0, 0, k, k)), 0, 1
    total = torch.zeros_like(x)
    # window[i] holds the sum of `width` steps from i on; the binary digits of 2k + 1 say which
    # widths tile the whole box.
    for digit in reversed(f"{2 * k + 1:b}"):
        if width > 1:
            half, rows = width // 2, window.shape[-2] - width // 2
            window = window.narrow(-2, 0, rows) + window.narrow(-2, half, rows)
        if digit == "1":
            total = total + window.narrow(-2, offset, steps)
            offset += width
        width *= 2
    return total


def _comb_sum(x: Tensor, k: int) -> Tensor:
    """For each step the sum over the steps of its residue class modulo ``k``, ``[..., T, F]``."""
    steps = x.shape[-2]
    k = min(k, steps)  # with k >= T every step is alone in its class
    rounds = -(-steps // k)
    padded = F.pad(x, (0, 0, 0, rounds * k - steps)).unflatten(-2, (rounds, k))
    classes = padded.sum(-3, keepdim=True).expand_as(padded)
    return classes.flatten(-3, -2).narrow(-2, 0, steps)
