"""torch.func, torch.compile and torch.export on the layers, at a width where shortcuts bite."""

from __future__ import annotations

import io
import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import EdgeIndex

from relocal_pyg.graph import PairGraph
from relocal_pyg.nn import MultiGraphConv, SumConv

WIDTH = 500
FULL = os.environ.get("RELOCAL_FAULTS") == "full"
FORMS = ("graph", "coo", "EdgeIndex", "csr")


def forms(graph: PairGraph, form: str) -> Any:
    size = (graph.num_nodes, graph.num_nodes)
    match form:
        case "graph":
            return graph
        case "coo":
            return graph.edge_index()
        case "csr":
            return graph.dense().to_sparse_csr()
        case _:
            return EdgeIndex(graph.edge_index(), sparse_size=size, sort_order="col")


def graphs_of(steps: int, form: str) -> list[Any]:
    kinds = (
        (1, "binary"),
        (2, "binary"),
        (3, "laplacian" if form in ("graph", "csr") else "binary"),
    )
    return [forms(PairGraph(steps, k, kind), form) for k, kind in kinds]  # type: ignore[arg-type]


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.fixture(params=[(6, form) for form in FORMS] + [(95, "graph")], ids=str)
def graphs(request: pytest.FixtureRequest) -> list[Any]:
    return graphs_of(*request.param)


@pytest.fixture
def conv() -> MultiGraphConv:
    return MultiGraphConv(WIDTH, WIDTH, 3)


def inputs(graphs: list[Any], count: int = 3) -> Tensor:
    first = graphs[0]
    nodes = first.num_nodes if isinstance(first, PairGraph) else 12
    return 0.3 * torch.randn(count, nodes, WIDTH)


def test_vmap_equals_a_loop(conv: MultiGraphConv, graphs: list[Any]) -> None:
    x = inputs(graphs)
    close(vmap(lambda one: conv(one, graphs))(x), torch.stack([conv(one, graphs) for one in x]))


@pytest.mark.slow
def test_jvp_equals_finite_differences(conv: MultiGraphConv, graphs: list[Any]) -> None:
    double = conv.double()
    x, change = inputs(graphs, 2).double()
    _, ours = jvp(lambda one: double(one, graphs), (x,), (change,))
    step = 1e-5
    ahead, behind = double(x + step * change, graphs), double(x - step * change, graphs)
    torch.testing.assert_close(ours, (ahead - behind) / (2 * step), atol=1e-7, rtol=1e-6)


@pytest.mark.slow
def test_gradients_of_each_sample_equal_a_loop(conv: MultiGraphConv, graphs: list[Any]) -> None:
    x, parameters = inputs(graphs), dict(conv.named_parameters())

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(conv, parameters, (one, graphs)).square().sum()

    ours = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for place, one in enumerate(x):
        wanted = torch.autograd.grad(conv(one, graphs).square().sum(), list(parameters.values()))
        for name, theirs in zip(parameters, wanted, strict=True):
            close(ours[name][place] / theirs.abs().max(), theirs / theirs.abs().max())


def test_an_ensemble_equals_its_members(graphs: list[Any]) -> None:
    members = [MultiGraphConv(WIDTH, WIDTH, 3) for _ in range(2)]
    parameters, _ = stack_module_state(members)
    x = inputs(graphs)[0]
    ours = vmap(lambda p: functional_call(members[0], p, (x, graphs)))(parameters)
    close(ours, torch.stack([member(x, graphs) for member in members]))


@pytest.mark.parametrize("form", FORMS)
def test_a_hessian_is_that_of_the_dense_product(form: str) -> None:
    graph, conv, x = PairGraph(2, 1), SumConv(3, 2), torch.randn(4, 3)
    used = forms(graph, form)
    ours = hessian(lambda one: conv(one, used).pow(3).sum())(x)
    close(ours, hessian(lambda one: (graph.dense() @ one @ conv.lin.weight.T).pow(3).sum())(x))


def test_weights_of_edges_under_transforms_are_those_of_single_messages() -> None:
    graph, conv = PairGraph(5, 2), SumConv(7, 4)
    edges, x = graph.edge_index(), torch.randn(10, 7)
    ordered = forms(graph, "EdgeIndex")
    weights, change = torch.randn(2, 3, edges.shape[1])

    def run(form: Any, weight: Tensor, x: Tensor = x) -> Tensor:
        return conv(x, form, weight)

    def slope(form: Any, weight: Tensor, x: Tensor) -> Tensor:
        return grad(lambda w: run(form, w, x).square().sum())(weight)

    for function in (
        lambda form: vmap(lambda w: run(form, w))(weights),
        lambda form: vmap(lambda w: slope(form, w, x))(weights),
        lambda form: vmap(lambda one: slope(form, weights[0], one))(torch.stack([x, 2 * x])),
        lambda form: jvp(lambda w: run(form, w), (weights[0],), (change[0],))[1],
        lambda form: jvp(lambda w: slope(form, w, x), (weights[0],), (change[0],))[1],
    ):
        close(function(ordered), function(edges))


@pytest.mark.slow
def test_the_layers_call_no_private_operator(conv: MultiGraphConv) -> None:
    called = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.add(func.namespace)
            return func(*args, **(kwargs or {}))

    x = torch.randn(64, 80, WIDTH, requires_grad=True)
    with Record():
        conv(x, graphs_of(40, "graph")).sum().backward()
    assert called == {"aten"}


class Holding(nn.Module):
    """A module with its graphs inside."""

    def __init__(self, steps: int, form: str) -> None:
        super().__init__()
        self.conv, self.graphs = MultiGraphConv(5, 6, 3), graphs_of(steps, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.graphs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["long graph", "EdgeIndex", "by the compiler"] + ["graph", "coo"] * FULL
)
def test_compiles_as_one_graph_for_any_batch(form: str) -> None:
    backend, steps = "aot_eager", 95 if form == "long graph" else 6
    if form == "by the compiler":
        if shutil.which("g++") is None:
            pytest.skip("the compiler of torch.compile needs g++")
        backend = "inductor"
    kind = form if form in FORMS else "graph"
    graphs = graphs_of(steps, kind)[: 3 if form == "graph" else 1]
    conv = MultiGraphConv(5, 6, len(graphs))
    torch._dynamo.reset()
    compiled = torch.compile(conv, dynamic=True, fullgraph=True, backend=backend)
    for batch in (2, 5):
        x = torch.randn(batch, 2 * steps, 5, requires_grad=True)
        ours, theirs = compiled(x, graphs), conv(x, graphs)
        close(ours, theirs)
        close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (ours, theirs)))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["sum", "multi"])
def test_compiles_around_sparse_matrices(layer: str) -> None:
    """A compiler knows none: the products are left out of what is compiled."""
    conv = SumConv(5, 6) if layer == "sum" else MultiGraphConv(5, 6, 3)
    graphs, dense = graphs_of(6, "csr"), graphs_of(6, "graph")
    torch._dynamo.reset()
    compiled = torch.compile(conv, backend="aot_eager")
    x = torch.randn(3, 12, 5, requires_grad=True)
    ours, theirs = (
        call(x, given[0] if layer == "sum" else given)
        for call, given in ((compiled, graphs), (conv, dense))
    )
    close(ours, theirs)
    close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (ours, theirs)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "form", "strict"),
    [(6, "graph", False), (6, "graph", True), (95, "graph", False), (6, "coo", False)]
    + [(95, "graph", True), (6, "coo", True)] * FULL,
)
def test_exports_with_its_graphs_inside_or_given(steps: int, form: str, strict: bool) -> None:
    holding = Holding(steps, form).eval()
    x, more = torch.randn(3, 2 * steps, 5), torch.randn(7, 2 * steps, 5)
    shapes: tuple[Any, ...] = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(holding, (x,), dynamic_shapes=shapes, strict=strict)
    close(program.module()(more), holding(more))
    given = (holding.graphs,)
    shapes = (*shapes, [[] if form == "graph" else None] * 3)
    program = torch.export.export(holding.conv, (x, *given), dynamic_shapes=shapes, strict=strict)
    close(program.module()(more, *given), holding(more))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    close(torch.export.load(stored).module()(more, *given), holding(more))


@pytest.mark.slow
def test_an_exported_layer_refuses_another_graph() -> None:
    conv, x = SumConv(5, 6), torch.randn(3, 12, 5)
    program = torch.export.export(conv, (x, PairGraph(6, 2)))
    with pytest.raises(ValueError, match="PairGraph"):
        program.module()(x, PairGraph(6, 3))
