"""One sum over neighbours, forward and backward, five ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from benchmarks.measuring import Table, interleaved, peak_mebibytes
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn import SumConv

#: Edges above which a way that stores messages is left out: they would not fit.
MOST_EDGES = 4_000_000


def run(quick: bool) -> Table:
    table = Table(
        "aggregation: sum over neighbours of one graph, forward + backward, float32",
        ["T, k, batch, channels", "way", "ms", "times COO", "peak MiB"],
    )
    shapes = [(40, 3, 32, 500), (400, 1, 1, 500), (400, 3, 1, 500), (3200, 1, 1, 500)]
    if quick:
        shapes = [(8, 2, 2, 16)]
    for steps, k, batch, channels in shapes:
        calls = ways(steps, k, batch, channels)
        times = interleaved(calls, 1 if quick else 5)
        base = times.get("COO")
        for name, seconds in times.items():
            ratio = base / seconds if base else float("nan")
            label = f"{steps}, {k}, {batch}, {channels}"
            table.add(label, name, seconds * 1e3, ratio, peak_mebibytes(calls[name]))
    return table


def growth(quick: bool) -> Table:
    """Eight times as many steps: at most ten times the closed form's time was asked for."""
    short, batch, channels = (16, 2, 16) if quick else (1600, 4, 128)
    table = Table(
        f"growth: closed form, batch {batch}, {channels} channels, forward + backward, float32",
        ["k", f"T={short} ms", f"T={8 * short} ms", "times"],
    )
    for k in (1, 2, 3):
        calls = {
            steps: ways(steps, k, batch, channels, stored=False)["closed form"]
            for steps in (short, 8 * short)
        }
        few, many = interleaved(calls, 1 if quick else 7).values()
        table.add(k, few * 1e3, many * 1e3, many / few)
    return table


def ways(
    steps: int, k: int, batch: int, channels: int, stored: bool = True
) -> dict[str, Callable[[], object]]:
    graph, conv = PairGraph(steps, k), SumConv(channels, channels)
    x = torch.randn(batch, 2 * steps, channels, requires_grad=True)
    grad = torch.randn_like(x)

    def both(forward: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def call() -> object:
            x.grad = None
            forward(x).backward(grad)
            return x.grad

        return call

    calls: dict[str, Callable[[], object]] = {}
    if stored and steps <= 400:
        edges = graph.edge_index()
        if batch * edges.shape[1] < MOST_EDGES:
            shift = 2 * steps * torch.arange(batch)
            coo = (edges[:, None] + shift[None, :, None]).flatten(1)
            nodes = 2 * steps * batch
            sorted_coo = coo[:, coo[1].argsort(stable=True)]
            index = EdgeIndex(sorted_coo, sparse_size=(nodes, nodes), sort_order="col")
            index.fill_cache_()
            csr = torch.sparse_coo_tensor(
                coo.flip(0), torch.ones(coo.shape[1]), (nodes, nodes)
            ).to_sparse_csr()
            for name, form in (("COO", coo), ("CSR", csr), ("EdgeIndex", index)):
                calls[name] = both(
                    lambda x, form=form: conv.sum_neighbors(x.flatten(0, 1), form).view_as(x)
                )
            try:
                from torch_scatter import segment_csr
            except ImportError:
                pass
            else:
                pointer = csr.crow_indices()
                source = sorted_coo[0]
                calls["torch-scatter segment"] = both(
                    lambda x: segment_csr(x.flatten(0, 1)[source], pointer).view_as(x)
                )
    if steps <= 400:
        calls["dense"] = both(lambda x: graph.matmul(x, method="dense"))
    calls["closed form"] = both(lambda x: graph.matmul(x, method="closed_form"))
    return calls
