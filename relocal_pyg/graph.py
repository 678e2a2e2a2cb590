"""The graphs that join a query and a proposal (section 4.3 of Zhou et al., arXiv 2007.09877)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from relocal_pyg.errors import UsageError, check_number

#: :meth:`PairGraph.matmul` multiplies by the dense matrix up to this many steps per bit of ``k``,
#: and uses the closed form beyond. Measured on one CPU core, forward and backward, float32, 500
#: channels, 32 pairs: the two meet near T = 30, 50 and 85 for k = 1, 3 and 10.
DENSE_STEPS_PER_BIT = 30


@dataclasses.dataclass(frozen=True)
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
        for name in ("num_steps", "k"):
            count = check_number(getattr(self, name), name, least=1, whole=True)
            object.__setattr__(self, name, count)
        if self.weight not in ("binary", "exponential", "laplacian"):
            raise UsageError(f"weight {self.weight!r}: binary, exponential or laplacian wanted")
        if self.normalization not in ("none", "mean", "sym"):
            raise UsageError(f"normalization {self.normalization!r}: none, mean or sym wanted")
        if self.weight == "laplacian" and self.normalization != "none":
            raise UsageError("laplacian weights are normalised already: leave normalization 'none'")
        object.__setattr__(self, "scale", float(check_number(self.scale, "scale", least=0)))

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
            UsageError: ``x`` has other nodes or no floating point, or there is no such way.

        Example:
            >>> graph, x = PairGraph(num_steps=4, k=2), torch.randn(5, 8, 3)
            >>> torch.allclose(graph.matmul(x), graph.dense() @ x, atol=1e-5)
            True
        """
        if method not in ("auto", "dense", "closed_form"):
            raise UsageError(f"method {method!r}: auto, dense or closed_form wanted")
        if x.ndim < 2 or x.shape[-2] != self.num_nodes:
            raise UsageError(f"x is {list(x.shape)} where the graph has {self.num_nodes} nodes")
        plain = self.weight == "binary" and self.normalization == "none"
        if not (plain or x.is_floating_point() or x.is_complex()):
            raise UsageError(f"x is {x.dtype}: these weights are no whole numbers")
        if self.weight == "exponential":
            if method == "closed_form":
                raise UsageError("exponential weights have no closed form: use method='dense'")
            closed = False
        else:
            fits = self.num_steps <= DENSE_STEPS_PER_BIT * min(self.k, self.num_steps).bit_length()
            closed = method == "closed_form" or (method == "auto" and not fits)
        if mask is None and not closed:
            return torch.matmul(_kept(PairGraph.dense, self, x), x)
        x, kind, before, after = zero_pads(x, mask), x.dtype, None, None
        if self.weight == "laplacian" or self.normalization != "none":
            # What is divided afterwards does not always fit short floats before, nor do degrees.
            wide = torch.float64 if kind in (torch.float64, torch.complex128) else torch.float32
            real = x.new_ones(self.num_nodes, dtype=torch.bool) if mask is None else mask
            before, after = self._scales(self._sum(real.unsqueeze(-1).to(wide), closed))
            x = x.to(torch.promote_types(kind, wide))
        out = self._sum(x if before is None else x * before, closed)
        return zero_pads((out if after is None else out * after).to(kind), mask)

    def _sum(self, x: Tensor, closed: bool) -> Tensor:
        """Multiply by the weights before normalisation."""
        if not closed:
            return torch.matmul(_kept(_base_matrix, self, x), x)
        sides = x.unflatten(-2, (2, self.num_steps))
        out = _neighbour_sum(sides, self.k).flatten(-3, -2)
        return out + x if self.weight == "laplacian" else out

    def _scales(self, degree: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Factors ``[..., 2T, 1]`` of the nodes before and after the sum."""
        # A node without edges (a pad) must not give infinity; its rows are 0 in any case.
        degree = torch.where(degree > 0, degree, 1)
        if self.weight == "laplacian" or self.normalization == "sym":
            root = degree.rsqrt()
            return root, root
        return None, degree.reciprocal() if self.normalization == "mean" else None


# To torch.export and torch.func a graph is a structure without tensors: a constant.
register_pytree_node(
    PairGraph,
    lambda graph: ([], dataclasses.astuple(graph)),
    lambda _, fields: PairGraph(*fields),
    flatten_with_keys_fn=lambda graph: ([], dataclasses.astuple(graph)),
    serialized_type_name="relocal_pyg.graph.PairGraph",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
)
# An exported program keeps its example inputs; five plain values are safe to read back.
torch.serialization.add_safe_globals([PairGraph])


def zero_pads(x: Tensor, mask: Tensor | None) -> Tensor:
    """Nodes ``[..., N, F]`` with 0 for all but the real ones, ``[..., N]``, which are bool."""
    if mask is None:
        return x
    nodes, real = x.shape[:-1], mask.shape
    fits = len(real) <= len(nodes) and real[-1:] == nodes[-1:]
    fits = fits and all(m in (1, n) for m, n in zip(real[::-1], nodes[::-1], strict=False))
    if mask.dtype != torch.bool or not fits:
        raise UsageError(f"mask is {mask.dtype} {list(real)}, bool {list(nodes)} wanted")
    # A fill, not a product: a pad may hold anything, NaN included.
    return x.masked_fill(~mask.unsqueeze(-1), 0)


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
        decay = torch.exp(-(((node[:, None] - node[None]) / scale) ** 2) / 2)
        return matrix * decay.to(dtype)
    return matrix


def _kept(make: Callable[..., Tensor], graph: PairGraph, like: Tensor) -> Tensor:
    """A matrix of a graph, of the type and on the device of ``like``; made once."""
    # A compiler traces the construction and folds it into a constant; what a mode of its own has
    # wrapped (a fake tensor) must not stay when the mode is left.
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return make(graph, like.dtype, like.device)
    return _keep(make, graph, like.dtype, like.device)


# An inference tensor in the cache would break the first training step that meets it.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _keep(
    make: Callable[..., Tensor], graph: PairGraph, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # torch.func wraps what is made inside a transform.
    matrix: Tensor = torch.func.debug_unwrap(make(graph, dtype, device))
    return matrix


#: Numbers in one block of the closed form on a CPU: few enough for a processor's cache.
BLOCK_NUMBERS = 1 << 18
#: Bytes from which a result is taken from NumPy. PyTorch gets memory of this size from the system
#: in fresh 4 KiB pages each time, which costs more than the sums; NumPy asks for large pages.
LARGE_BYTES = 1 << 25


class _NeighbourSum(torch.autograd.Function):
    """Sum over the neighbours of binary weights, ``[..., 2, T, F]``, in blocks of steps.

    The matrix is symmetric, so that the gradient is the same sum.
    """

    @staticmethod
    def forward(x: Tensor, k: int) -> Tensor:
        if _is_wrapped(x):
            return _plain_neighbour_sum(x, k)
        steps, reach, period = x.shape[-2], min(k, x.shape[-2] - 1), min(k, x.shape[-2])
        rows = steps
        if x.device.type == "cpu":
            rows = max(BLOCK_NUMBERS * steps // max(1, x.numel()), 2 * reach)
            rows = min(-(-rows // period) * period, steps)
        blocks = [(start, min(rows, steps - start)) for start in range(0, steps, rows)]
        sums = x.new_zeros(*x.shape[:-2], -(-rows // period) * period, x.shape[-1])
        for start, count in blocks:
            sums.narrow(-2, 0, count).add_(x.narrow(-2, start, count))
        received = _spread(_class_sums(sums, period).flip(-3), rows)
        spare = [x.new_empty(*x.shape[:-2], rows + 2 * reach, x.shape[-1]) for _ in range(2)]
        out = _empty_like(x)
        for start, count in blocks:
            before, after = max(0, start - reach), min(steps, start + count + reach)
            window = x.narrow(-2, before, after - before)
            pads = before - (start - reach), start + count + reach - after
            if any(pads):
                window = F.pad(window, (0, 0, *pads))
            base, result = received.narrow(-2, 0, count), out.narrow(-2, start, count)
            _add_box_sums(base, window, reach, result, spare)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.k = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _NeighbourSum.apply(grad, ctx.k), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        out: Tensor = _NeighbourSum.apply(tangent, ctx.k)
        return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, k: int) -> tuple[Tensor, int]:
        return _NeighbourSum.apply(x.movedim(in_dims[0], 0), k), 0


def _neighbour_sum(x: Tensor, k: int) -> Tensor:
    if torch.compiler.is_compiling():
        return _plain_neighbour_sum(x, k)
    out: Tensor = _NeighbourSum.apply(x, k)
    return out


def _plain_neighbour_sum(x: Tensor, k: int) -> Tensor:
    """The same in one block, out of place."""
    steps = x.shape[-2]
    received = _spread(_class_sums(x, min(k, steps)).flip(-3), steps)
    reach = min(k, steps - 1)
    return _add_box_sums(received, F.pad(x, (0, 0, reach, reach)), reach)


def _add_box_sums(
    base: Tensor,
    window: Tensor,
    k: int,
    out: Tensor | None = None,
    spare: Sequence[Tensor | None] = (None, None),
) -> Tensor:
    """Add to ``base [..., n, F]`` the sums over ``2k + 1`` rows of ``window [..., n + 2k, F]``.

    Takes ``log2(k)`` rounds. The result is written to ``out`` and what is between to two ``spare``
    tensors, where given.
    """
    offset, width, digits = 0, 1, 2 * k + 1
    # window[i] holds the sum of `width` rows from i on; the binary digits of 2k + 1 say which
    # widths tile the whole box.
    while digits:
        if width > 1:
            rows, free = window.shape[-2] - width // 2, spare[0]
            window = torch.add(
                window.narrow(-2, 0, rows),
                window.narrow(-2, width // 2, rows),
                out=None if free is None else free.narrow(-2, 0, rows),
            )
            spare = spare[::-1]
        if digits % 2:
            base = torch.add(base, window.narrow(-2, offset, base.shape[-2]), out=out)
            offset += width
        width, digits = 2 * width, digits // 2
    return base


def _class_sums(x: Tensor, k: int) -> Tensor:
    """Sums over the steps of each residue class modulo ``k <= T``, ``[..., k, F]``."""
    rounds, rest = x.shape[-2] // k, x.shape[-2] % k
    whole = x.narrow(-2, 0, rounds * k).reshape(*x.shape[:-2], rounds, k, x.shape[-1])
    sums = whole.sum(-3, dtype=x.dtype)
    if rest:
        sums = sums + F.pad(x.narrow(-2, rounds * k, rest), (0, 0, 0, k - rest))
    return sums


def _spread(classes: Tensor, steps: int) -> Tensor:
    """Give each of ``steps`` steps the row of its class, ``[..., k, F]`` to ``[..., steps, F]``."""
    *leading, k, width = classes.shape
    rounds = -(-steps // k)
    rows = classes.unsqueeze(-3).expand(*leading, rounds, k, width)
    return rows.reshape(*leading, rounds * k, width).narrow(-2, 0, steps)


def _is_wrapped(x: Tensor) -> bool:
    """Whether a vectorised backward pass (``is_grads_batched``) hands over a tensor of tensors."""
    try:
        x.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return True
    return False


def _empty_like(x: Tensor) -> Tensor:
    size = x.numel() * x.element_size()
    if x.device.type != "cpu" or size < LARGE_BYTES or type(x) is not Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(x.dtype).view(x.shape)
