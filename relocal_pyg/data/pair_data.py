"""A query and a proposal as one graph of ``2T`` nodes (sections 4.2 and 4.3)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import warn_or_raise
from torch_geometric.data.storage import EdgeStorage, GlobalStorage
from torch_geometric.utils import coalesce

from relocal_pyg.errors import FeatureError, ProposalError, UsageError, check_number
from relocal_pyg.graph import PairGraph
from relocal_pyg.moments import to_tensor

Mode = Literal["linspace", "floor"]


def resample_positions(
    lengths: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Which steps of clips of given lengths are kept (section 5.2.1: "40 equidistance features").

    Position ``i`` of a clip of ``n > T`` steps is ``round(i (n - 1) / (T - 1))``, computed in whole
    numbers with ties to even, or ``floor(i n / T)``. A clip of ``n <= T`` steps keeps all of them
    and is padded at its end.

    Args:
        lengths: Lengths ``[...]`` in steps, each at least 1 (int64).
        num_steps: T.
        mode: ``"linspace"``, which keeps the first and the last step, or ``"floor"``.

    Returns:
        Positions ``[..., T]`` (int64; 0 where padded) and mask ``[..., T]``, True for real steps.

    Raises:
        UsageError: ``num_steps`` below 1 or an unknown mode.

    Example:
        >>> resample_positions(torch.tensor([2, 9]), 3)[0].tolist()
        [[0, 1, 0], [0, 4, 8]]
        >>> resample_positions(torch.tensor([2, 9]), 3, "floor")[0].tolist()
        [[0, 1, 0], [0, 3, 6]]
    """
    num_steps = int(check_number(num_steps, "num_steps", least=1, whole=True))
    slots = torch.arange(num_steps, device=lengths.device)
    lengths = lengths[..., None]
    if mode == "linspace":
        parts = max(num_steps - 1, 1)
        twice = 2 * slots * (lengths - 1)
        thinned = (twice + parts) // (2 * parts)
        tie = (twice + parts) % (2 * parts) == 0
        thinned = thinned - (tie & (thinned % 2 == 1)).long()
    elif mode == "floor":
        thinned = slots * lengths // num_steps
    else:
        raise UsageError(f"mode is {mode!r}: 'linspace' or 'floor' wanted")
    mask = slots < lengths
    return torch.where(lengths > num_steps, thinned, slots * mask), mask


def resample(
    features: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Bring a clip ``[n, F]`` to T steps, see :func:`resample_positions`.

    Returns:
        Features ``[T, F]``, zero where padded, and mask ``[T]``, True for real steps.

    Raises:
        FeatureError: ``features`` is not ``[n, F]`` with ``n >= 1``.

    Example:
        >>> x, mask = resample(torch.tensor([[1.0], [2.0]]), 3)
        >>> x.flatten().tolist(), mask.tolist()
        ([1.0, 2.0, 0.0], [True, True, False])
    """
    _check(features)
    length = torch.tensor(len(features), device=features.device)
    positions, mask = resample_positions(length, num_steps, mode)
    return features[positions].masked_fill_(~mask[:, None], 0), mask


def resample_windows(
    reference: Tensor, windows: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Cut many windows out of one reference and bring each to T steps, in one gather.

    Equal to calling :func:`resample` on every window; boundaries ``[M, 2]`` are rounded to the
    :func:`nearest_steps` of the reference ``[n, F]``.

    Returns:
        Features ``[M, T, F]``, zero where padded, and mask ``[M, T]``, True for real steps.

    Raises:
        FeatureError: ``reference`` is not ``[n, F]`` with ``n >= 1``.
        ProposalError: ``windows`` is not ``[M, 2]`` or not finite.
    """
    _check(reference)
    positions, mask = window_positions(len(reference), windows, num_steps, mode)
    return reference[positions].masked_fill_(~mask[..., None], 0), mask


def nearest_steps(windows: Tensor, num_steps: Tensor | int) -> Tensor:
    """Whole-step windows nearest to given ones, int64, at least one step and inside the video.

    ``num_steps`` is the length of the video, a tensor ``[M]`` where windows are of several.

    Example:
        >>> nearest_steps(torch.tensor([[1.6, 4.2], [7.0, 12.0], [3.1, 3.2]]), 10).tolist()
        [[2, 4], [7, 10], [3, 4]]
    """
    last = torch.as_tensor(num_steps, device=windows.device)
    start, end = torch.round(windows.double()).clamp(-1, 2**53).long().unbind(dim=-1)
    start = torch.minimum(start.clamp(min=0), last - 1)
    return torch.stack([start, torch.minimum(torch.maximum(end, start + 1), last)], dim=-1)


def window_positions(
    length: Tensor | int, windows: Tensor, num_steps: int = 40, mode: Mode = "linspace"
) -> tuple[Tensor, Tensor]:
    """Which steps of a reference of such a length :func:`resample_windows` takes.

    Returns:
        Positions ``[M, T]`` (int64; a window's first step where padded) and mask ``[M, T]``.

    Raises:
        ProposalError: ``windows`` is not ``[M, 2]`` or not finite.
    """
    if windows.ndim != 2 or windows.shape[1] != 2:
        raise ProposalError(f"shape {tuple(windows.shape)}, [M, 2] wanted")
    if not torch.isfinite(windows).all():
        raise ProposalError("a boundary is not finite")
    starts, ends = nearest_steps(windows, length).unbind(dim=1)
    positions, mask = resample_positions(ends - starts, num_steps, mode)
    return starts[:, None] + positions, mask


def _check(features: Tensor) -> None:
    if features.ndim != 2 or len(features) == 0:
        raise FeatureError(f"shape {tuple(features.shape)}, [n, F] with n >= 1 wanted")


_EDGES = "edge_index_k"
_WEIGHTS = "edge_weight_k"
_NO_EDGES = "no edge_index_k*: use materialize=True, or give the layer PairGraphs or adj_t_k*"
_ASK = "give a layer edge_indices(), and what knows one set only to_hetero()"


class _NoEdgeSet(UsageError, AttributeError):
    """There is no one edge set, which is an answer to ``hasattr`` too."""


class _EdgeSet(GlobalStorage):
    """One edge set of a pair as PyG's methods and transforms want it; what they write is kept."""

    def __init__(self, pair: PairData, k: int) -> None:
        super().__init__()
        self._parent, self._suffix = pair, f"_k{k}"
        for key, value in pair.to_dict().items():
            if key.startswith("edge_") and key.endswith(self._suffix):
                self._mapping[key.removesuffix(self._suffix)] = value

    @property
    def num_nodes(self) -> int | None:
        nodes: int | None = self._parent().num_nodes
        return nodes

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._parent()[key + self._suffix] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        del self._parent()[key + self._suffix]

    def coalesce(self, reduce: str = "sum") -> _EdgeSet:
        """Merge double edges and whatever they carry; PyG's own forgets all but ``edge_attr``."""
        keys = [key for key in self if key != "edge_index" and self.is_edge_attr(key)]
        values = [self[key] for key in keys]
        edges, values = coalesce(self["edge_index"], values, self.num_nodes, reduce)
        self["edge_index"] = edges
        for key, value in zip(keys, values, strict=True):
            self[key] = value
        return self


class PairData(Data):
    """A query (nodes ``0..T-1``) and a proposal (nodes ``T..2T-1``), with K edge sets.

    What PyG asks of or does to "the" edges (``is_undirected``, ``coalesce``, ``ToUndirected``, ...)
    is asked of and done to each of the K sets, as if they were the edge types of :meth:`to_hetero`;
    without stored edges it is refused.

    Attributes:
        x: Features ``[2T, F]``, zero at padding.
        step_mask: bool ``[2T]``, False at padding.
        edge_index_k1: ``[2, E_1]``, the edges of the graph k = 1, and so on for each k; absent
            where the pair was made with ``materialize=False``. The keys are flat, and each
            contains ``index``, because that is what PyG batches correctly.
        edge_weight_k1: ``[E_1]``, and so on; absent for binary weights.

    Example:
        >>> query, proposal = torch.rand(3, 8), torch.rand(9, 8)
        >>> pair = PairData.from_features(query, proposal, num_steps=5, ks=(1, 2))
        >>> pair.x.shape, [edges.shape[1] for edges in pair.edge_indices()]
        (torch.Size([10, 8]), [76, 64])
        >>> pair.num_edges
        140
    """

    @classmethod
    def from_features(
        cls,
        query: Tensor,
        proposal: Tensor,
        num_steps: int = 40,
        ks: Sequence[int] = (1, 2, 3),
        materialize: bool = True,
        weight: Literal["binary", "exponential", "laplacian"] = "binary",
        mode: Mode = "linspace",
        **attributes: Any,
    ) -> PairData:
        """Bring both sides to T steps and join them.

        Args:
            query: Features ``[m, F]``, any ``m >= 1``.
            proposal: Features ``[n, F]``, any ``n >= 1``.
            num_steps: T.
            ks: The graphs.
            materialize: Store the edges. A layer that is given
                :class:`~relocal_pyg.graph.PairGraph` does not need them.
            weight: Edge weights, see :class:`~relocal_pyg.graph.PairGraph`.
            mode: How a long side is thinned, see :func:`relocal_pyg.data.pair_data.resample`.
            **attributes: Kept as they are, labels for instance. PyG shifts a tensor called ``face``
                or with ``index`` or ``batch`` in its name when it makes a batch: these are refused.

        Raises:
            FeatureError: The sides differ in width, or one cannot be resampled.
            UsageError: PyG would shift an attribute of that name, or a graph is impossible.
        """
        for name in attributes:
            if "index" in name or "batch" in name or name == "face":
                raise UsageError(f"attribute {name!r}: PyG would shift it in a batch, rename it")
        if not isinstance(ks, Iterable):
            raise UsageError(f"ks is {ks!r}: the graphs wanted, such as (1, 2, 3)")
        query, proposal = (to_tensor(side, FeatureError) for side in (query, proposal))
        query_x, query_mask = resample(query, num_steps, mode)
        proposal_x, proposal_mask = resample(proposal, num_steps, mode)
        if query.shape[-1:] != proposal.shape[-1:]:
            raise FeatureError(
                f"the query has {query.shape[-1]} channels and the proposal "
                f"{proposal.shape[-1]}: extract both with the same backbone"
            )
        pair = cls(
            x=torch.cat([query_x, proposal_x]),
            step_mask=torch.cat([query_mask, proposal_mask]),
            **attributes,
        )
        if materialize:
            for k in ks:
                edges, weights = _edges(PairGraph(num_steps, k, weight))
                # A clone each: the samples must not share what one of them changes.
                pair[f"{_EDGES}{k}"] = edges.clone()
                if weight != "binary":
                    pair[f"{_WEIGHTS}{k}"] = weights.clone()
        return pair

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "num_nodes":  # T.Pad, which knows one edge set and one end
            raise UsageError("a pair keeps its 2T nodes: choose num_steps, or use to_hetero()")
        super().__setattr__(key, value)

    @property
    def ks(self) -> tuple[int, ...]:
        """The graphs whose edges are stored, rising."""
        keys = (key.removeprefix(_EDGES) for key in self.keys() if key.startswith(_EDGES))
        return tuple(sorted(int(key) for key in keys if key.isdecimal()))

    @property
    def num_edges(self) -> int:
        """Edges of all K graphs together."""
        return super().num_edges if self._has_edges else 0

    @property
    def edge_stores(self) -> list[EdgeStorage]:
        """The K edge sets, one at a time; an error where no edges are stored."""
        if not self._has_edges:
            raise UsageError(_NO_EDGES)
        plain = super().edge_stores if "edge_index" in self else []
        return [*plain, *(_EdgeSet(self, k) for k in self.ks)]

    @property
    def edge_index(self) -> Tensor:
        """The one edge set that was put beside the K; without it an error, where PyG has None."""
        return self["edge_index"] if "edge_index" in self else self.__getattr__("edge_index")

    def __getattr__(self, key: str) -> Any:
        if key == "edge_index":  # Python asks here again once the property has failed
            raise _NoEdgeSet(f"a pair has an edge set a graph: {_ASK}" if self.ks else _NO_EDGES)
        return super().__getattr__(key)

    def edge_indices(self) -> list[Tensor]:
        """``edge_index_k*`` ``[2, E_k]`` in the order of :attr:`ks`, as a layer wants them."""
        if not self.ks:
            raise UsageError(_NO_EDGES)
        return [self[f"{_EDGES}{k}"] for k in self.ks]

    def edge_weights(self) -> list[Tensor | None]:
        """``edge_weight_k*`` ``[E_k]`` in the order of :attr:`ks`; None for binary weights."""
        return [self.get(f"{_WEIGHTS}{k}") for k in self.ks]

    def validate(self, raise_on_error: bool = True) -> bool:
        """Check every edge set and 2T; ``Data.validate`` looks at ``edge_index`` alone."""
        sound = super().validate(raise_on_error)
        sizes = self.ptr.diff() if "ptr" in self else torch.tensor(self.num_nodes or 0)
        if (sizes % 2).any():
            warn_or_raise("a pair has an odd number of nodes, 2T wanted", raise_on_error)
            sound = False
        for k, weights in zip(self.ks, self.edge_weights(), strict=True):
            fault = self._edge_fault(self[f"{_EDGES}{k}"], weights)
            if fault is not None:
                warn_or_raise(f"'{_EDGES}{k}' {fault}", raise_on_error)
                sound = False
        return sound

    def to_hetero(self) -> HeteroData:
        """One node type ``"step"`` and an edge type ``("step", "k<k>", "step")`` per graph.

        The edge masks of PyG's explainers work on one edge set per type, not on several of a
        ``Data``. Tensors are shared.
        """
        hetero = HeteroData()
        for key, value in self.to_dict().items():
            name, _, k = key.rpartition("_k")
            if name.startswith("edge_") and k.isdecimal():
                hetero["step", f"k{k}", "step"][name] = value
            elif key == "ptr" or self.is_node_attr(key):
                hetero["step"][key] = value
            else:
                hetero[key] = value
        return hetero

    def subgraph(self, subset: Tensor) -> NoReturn:
        """Refused: half of a pair has no T."""
        raise UsageError("a pair keeps its 2T nodes: use to_hetero().subgraph(...)")

    def edge_subgraph(self, subset: Tensor) -> NoReturn:
        """Refused: ``subset`` does not say which of the K edge sets it means."""
        raise UsageError("a pair has several edge sets: use to_hetero().edge_subgraph(...)")

    @property
    def _has_edges(self) -> bool:
        return bool(self.ks) or "edge_index" in self

    def _edge_fault(self, edges: Tensor, weights: Tensor | None) -> str | None:
        if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.long:
            return f"is {edges.dtype} {tuple(edges.shape)}, int64 [2, E] wanted"
        if weights is not None and weights.shape != edges.shape[1:]:
            return f"has {edges.shape[1]} edges and {tuple(weights.shape)} weights"
        if edges.numel() == 0:
            return None
        if edges.min() < 0 or edges.max() >= (self.num_nodes or 0):
            return f"names a node outside 0..{(self.num_nodes or 0) - 1}"
        if "batch" in self and not torch.equal(self.batch[edges[0]], self.batch[edges[1]]):
            return "joins two pairs of a batch: an edge of one of them was out of range"
        return None


@functools.lru_cache(maxsize=64)
def _edges(graph: PairGraph) -> tuple[Tensor, Tensor]:
    return graph.edge_index(), graph.edge_weight()
