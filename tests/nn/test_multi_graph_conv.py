"""MultiGraphConv and MultiGraphFusion against the equation of section 4.5 and other layers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, HeteroConv

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn import MultiGraphConv, MultiGraphFusion, SumConv

KS = (1, 2, 3)


def graphs_of(steps: int, form: str, dtype: torch.dtype = torch.float64) -> list[object]:
    graphs = [PairGraph(steps, k) for k in KS]
    size = (2 * steps, 2 * steps)
    match form:
        case "graph":
            return list(graphs)
        case "coo":
            return [graph.edge_index() for graph in graphs]
        case "csr":
            return [graph.dense(dtype).to_sparse_csr() for graph in graphs]
        case _:
            return [EdgeIndex(g.edge_index(), sparse_size=size, sort_order="col") for g in graphs]


def equation(conv: MultiGraphConv, x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Section 4.5 written out, one branch and one pair of nodes at a time."""
    hidden = x @ conv.lin_in.weight.T + conv.lin_in.bias
    branches = [
        torch.tanh(a @ hidden @ one.lin.weight.T)
        for a, one in zip(matrices, conv.convs, strict=True)
    ]
    return torch.cat(branches, dim=-1) @ conv.lin_out.weight.T + conv.lin_out.bias


def test_repr() -> None:
    assert repr(MultiGraphConv(4, 8, 3)) == "MultiGraphConv(4, 8, num_graphs=3)"
    cnn = MultiGraphConv(4, 8, 3, graph_conv=False)
    assert repr(cnn) == "MultiGraphConv(4, 8, num_graphs=3, graph_conv=False)"


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("form", ["graph", "coo", "csr", "EdgeIndex"])
@pytest.mark.parametrize("steps", [2, 7, 60])
def test_against_the_equation(steps: int, form: str, dtype: torch.dtype, atol: float) -> None:
    conv = MultiGraphConv(5, 6, 3, hidden_channels=4).to(dtype)
    x = torch.randn(2 * steps, 5, dtype=dtype)
    expected = equation(conv, x, [PairGraph(steps, k).dense(dtype) for k in KS])
    assert expected.shape == (2 * steps, 6)
    torch.testing.assert_close(conv(x, graphs_of(steps, form, dtype)), expected, rtol=0, atol=atol)


def test_against_hetero_conv() -> None:
    conv = MultiGraphConv(5, 6, 3)
    edge_types = [("step", f"k{k}", "step") for k in KS]
    branches = {}
    for edge_type, one in zip(edge_types, conv.convs, strict=True):
        gcn = GCNConv(6, 6, normalize=False, add_self_loops=False, bias=False)
        gcn.load_state_dict(one.state_dict())
        branches[edge_type] = gcn
    hetero = HeteroConv(branches, aggr="cat")
    x, graphs = torch.randn(8, 5), graphs_of(4, "coo")
    hidden = hetero({"step": conv.lin_in(x)}, dict(zip(edge_types, graphs, strict=True)))["step"]
    torch.testing.assert_close(conv(x, graphs), conv.lin_out(torch.tanh(hidden)))


def test_without_graphs_every_node_stands_alone() -> None:
    conv = MultiGraphConv(5, 6, 3, graph_conv=False)
    x = torch.randn(2, 8, 5)
    out = conv(x, None)
    torch.testing.assert_close(out, equation(conv, x, [torch.eye(8)] * 3))
    torch.testing.assert_close(conv(x[:, 3:4], graphs_of(1, "graph")), out[:, 3:4])


def test_edge_weights_and_another_nonlinearity() -> None:
    conv = MultiGraphConv(5, 6, 2, act=torch.relu).double()
    edge_indices = [torch.randint(9, (2, 20)) for _ in range(2)]
    weights = [torch.randn(20, dtype=torch.float64), None]
    matrices = []
    for edges, weight in zip(edge_indices, weights, strict=True):
        value = torch.ones(20, dtype=torch.float64) if weight is None else weight
        matrix = torch.zeros(9, 9, dtype=torch.float64)
        matrices.append(matrix.index_put((edges[1], edges[0]), value, accumulate=True))
    x = torch.randn(9, 5, dtype=torch.float64)
    hidden = conv.lin_in(x)
    expected = conv.lin_out(
        torch.cat(
            [
                torch.relu(a @ hidden @ one.lin.weight.T)
                for a, one in zip(matrices, conv.convs, strict=True)
            ],
            -1,
        )
    )
    torch.testing.assert_close(conv(x, edge_indices, weights), expected)


def test_swapping_graphs_with_their_branches_changes_nothing() -> None:
    conv, x, graphs = MultiGraphConv(5, 6, 3), torch.randn(10, 5), graphs_of(5, "graph")
    out = conv(x, graphs)
    swapped = copy.deepcopy(conv)
    order = [2, 0, 1]
    for place, k in enumerate(order):
        swapped.convs[place].load_state_dict(conv.convs[k].state_dict())
    columns = torch.cat([torch.arange(6) + 6 * k for k in order])
    swapped.lin_out.weight.data = conv.lin_out.weight.data[:, columns]
    torch.testing.assert_close(swapped(x, [graphs[k] for k in order]), out)
    assert not torch.allclose(conv(x, [graphs[k] for k in order]), out)


def test_batch_equals_one_by_one() -> None:
    conv = MultiGraphConv(5, 6, 3).double()
    x = torch.randn(4, 14, 5, dtype=torch.float64)
    each = torch.stack([conv(item, graphs_of(7, "coo")) for item in x])
    torch.testing.assert_close(conv(x, graphs_of(7, "graph")), each, rtol=0, atol=1e-12)
    torch.testing.assert_close(conv(x, graphs_of(7, "csr")), each, rtol=0, atol=1e-12)
    flat = conv(x.flatten(0, 1), graphs_of(7, "graph"))
    torch.testing.assert_close(flat.view_as(each), each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["graph", "coo"])
@pytest.mark.parametrize("layer", ["conv", "fusion"])
def test_mask_equals_the_graph_of_real_nodes(layer: str, form: str) -> None:
    if layer == "conv":
        module: nn.Module = MultiGraphConv(6, 6, 3).double()
    else:
        module = MultiGraphFusion(6, 3, residual=True).double()
    x = torch.randn(10, 6, dtype=torch.float64)
    mask = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1, 0], dtype=torch.bool)
    place = mask.cumsum(0) - 1
    small = []
    for k in KS:
        edges = PairGraph(5, k).edge_index()
        small.append(place[edges[:, mask[edges[0]] & mask[edges[1]]]])
    expected = module(x[mask], small)
    dirty = x.masked_fill(~mask[:, None], 1e6)
    out = module(dirty, graphs_of(5, form), mask=mask)
    torch.testing.assert_close(out[mask], expected, rtol=0, atol=1e-12)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("nodes", [10, 40])  # few are multiplied one product at a time
@pytest.mark.parametrize("form", ["graph", "coo"])
@pytest.mark.parametrize("layer", ["conv", "sum", "cnn", "pooled"])
def test_what_pads_hold_reaches_no_gradient(layer: str, form: str, nodes: int, odd: float) -> None:
    module: nn.Module = {
        "conv": MultiGraphConv(4, 4, 3),
        "sum": SumConv(4, 4, bias=True),
        "cnn": MultiGraphConv(4, 4, 3, graph_conv=False),
        "pooled": MultiGraphFusion(4, 3, num_layers=1, residual=True),
    }[layer]
    graphs = graphs_of(nodes // 2, form, torch.float32)
    mask = torch.rand(nodes) < 0.6
    x = torch.randn(nodes, 4)
    answers = []
    for held in (0.0, odd):
        filled = x.masked_fill(~mask[:, None], held).requires_grad_()
        if layer == "pooled":
            out = module.pooled(filled, graphs, mask, nodes)
        else:
            out = module(filled, graphs[0] if layer == "sum" else graphs, mask=mask)
        grads = torch.autograd.grad(out.sum(), [filled, *module.parameters()])
        answers.append([out, *grads])
    assert answers[0][1][mask].abs().sum() > 0
    for clean, dirty in zip(*answers, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["graph", "coo", "csr"])
def test_gradcheck(form: str) -> None:
    conv = MultiGraphConv(3, 2, 3).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    graphs = graphs_of(3, form)
    assert torch.autograd.gradcheck(lambda x: conv(x, graphs), x)
    names = [name for name, _ in conv.named_parameters()]

    def by_parameters(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(conv, state, (x.detach(), graphs))

    assert torch.autograd.gradcheck(by_parameters, tuple(conv.parameters()))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("nodes", [4, 40])  # few and many take different products
@pytest.mark.parametrize("place", ["lin_in", "convs.0.lin", "convs.2.lin"])
def test_hooks_of_the_modules_inside_are_heeded(place: str, nodes: int) -> None:
    """Pruned or normalised weights train, and hooks see and change what they wait for."""
    x, graphs = torch.randn(nodes, 5), graphs_of(nodes // 2, "graph")
    matrices = [graph.dense() for graph in graphs]
    for change in (
        nn.utils.weight_norm,
        lambda one, _: prune.random_unstructured(one, "weight", 0.5),
    ):
        conv = MultiGraphConv(5, 6, 3)
        module = conv.get_submodule(place)
        change(module, "weight")
        learned = [p for name, p in module.named_parameters() if name != "bias"]
        for _ in range(2):  # weights are made anew with every call
            conv(x, graphs).square().sum().backward()
            with torch.no_grad():
                for parameter in learned:
                    assert parameter.grad.abs().sum() > 0
                    parameter -= 0.1 * parameter.grad
        out = conv(x, graphs)
        torch.testing.assert_close(out, equation(conv, x, matrices))
    conv = MultiGraphConv(5, 6, 3)
    plain, seen = conv(x, graphs), []
    module = conv.get_submodule(place)
    handles = [
        module.register_forward_hook(lambda _, given, out: seen.append("forward")),
        module.register_full_backward_hook(lambda *_: seen.append("backward")),
        module.register_full_backward_pre_hook(lambda *_: seen.append("before")),
    ]
    torch.testing.assert_close(conv(x, graphs), plain)
    conv(x.clone().requires_grad_(), graphs).sum().backward()
    assert sorted(set(seen)) == ["backward", "before", "forward"]
    for handle in handles:
        handle.remove()
    assert torch.equal(conv(x, graphs), plain)


def test_hooks_of_branches_are_called_and_heeded() -> None:
    x, graphs = torch.randn(2, 8, 5), graphs_of(4, "graph")
    conv = MultiGraphConv(5, 6, 3)
    mask = torch.rand(2, 8) > 0.3
    wanted = equation(conv, x, [g.matmul(torch.eye(8)) for g in graphs_of(4, "graph")])
    seen: list[Tensor] = []
    handle = conv.convs[1].register_forward_hook(lambda _, given, out: seen.append(out))
    torch.testing.assert_close(conv(x, graphs), wanted)
    plain = [module.sum_neighbors(module.lin(conv.lin_in(x)), graphs[1]) for module in conv.convs]
    torch.testing.assert_close(seen[0], plain[1])
    masked = conv(x, graphs, mask=mask)
    handle.remove()
    torch.testing.assert_close(conv(x, graphs, mask=mask), masked)
    conv.convs[1].register_forward_hook(lambda _, given, out: 0 * out)
    rows = conv.branches(x, graphs).split(6, dim=-1)
    assert not rows[1].any()
    assert rows[0].any()


def test_a_learnable_nonlinearity_is_reset_too() -> None:
    conv = MultiGraphConv(4, 8, 2, act=nn.PReLU())
    with torch.no_grad():
        conv.act.weight.fill_(9)
    conv.reset_parameters()
    assert conv.act.weight.item() == 0.25


def test_reset_pickle_deepcopy_and_lazy_size() -> None:
    x, graphs = torch.randn(8, 7), graphs_of(4, "graph")
    conv = MultiGraphConv(-1, 6, 3)
    out = conv(x, graphs)
    assert torch.equal(copy.deepcopy(conv)(x, graphs), out)
    assert torch.equal(pickle.loads(pickle.dumps(conv))(x, graphs), out)
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    conv.reset_parameters()
    assert all(not torch.equal(before[name], value) for name, value in conv.state_dict().items())


def test_refuses() -> None:
    conv, x = MultiGraphConv(5, 6, 3), torch.randn(8, 5)
    one = PairGraph(4, 1)
    for graphs in (None, one, one.edge_index(), graphs_of(4, "coo")[:2]):
        with pytest.raises(UsageError, match="3 graphs"):
            conv(x, graphs)
    with pytest.raises(UsageError, match="3 graphs"):
        conv(x, graphs_of(4, "coo"), [None])
    with pytest.raises(UsageError):
        MultiGraphConv(5, 6, 0)
    for sizes, name in (((5, -6, 3), "out_channels"), ((5, 6, 3, 0), "hidden_channels")):
        with pytest.raises(UsageError, match=name):
            MultiGraphConv(*sizes)
    with pytest.raises(UsageError):
        MultiGraphFusion(5, 3, num_layers=0)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_fusion_is_a_plain_cascade(num_layers: int) -> None:
    fusion = MultiGraphFusion(6, 3, num_layers, hidden_channels=4)
    x, graphs = torch.randn(2, 10, 6), graphs_of(5, "graph")
    expected = x
    for layer in fusion.layers:
        expected = equation(layer, expected, [graph.dense() for graph in graphs])
    assert len(fusion.layers) == num_layers
    torch.testing.assert_close(fusion(x, graphs), expected)


def test_fusion_with_residual() -> None:
    fusion = MultiGraphFusion(6, 3, 2, residual=True)
    x, graphs = torch.randn(2, 10, 6), graphs_of(5, "graph")
    expected = x
    for layer in fusion.layers:
        expected = expected + layer(expected, graphs)
    torch.testing.assert_close(fusion(x, graphs), expected)
    before = fusion.layers[1].lin_in.weight.clone()
    fusion.reset_parameters()
    assert not torch.equal(fusion.layers[1].lin_in.weight, before)
    cnn = MultiGraphFusion(6, 3, graph_conv=False)
    torch.testing.assert_close(cnn(x, None)[:, 2], cnn(x[:, 2:3], None)[:, 0])


def test_learns_in_a_data_loader_batch() -> None:
    """Gradients reach every parameter through batched COO graphs."""
    conv = MultiGraphConv(5, 1, 2)
    samples = [
        Data(
            x=torch.randn(n, 5),
            edge_index=torch.randint(n, (2, 9)),
            edge_index_b=torch.randint(n, (2, 5)),
        )
        for n in (4, 6)
    ]
    batch = Batch.from_data_list(samples)
    out = conv(batch.x, [batch.edge_index, batch.edge_index_b])
    each = [conv(s.x, [s.edge_index, s.edge_index_b]) for s in samples]
    torch.testing.assert_close(out, torch.cat(each))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conv.parameters())


def test_short_floats_take_the_weights_of_pairs() -> None:
    graphs = [PairGraph(4, k, "exponential") for k in KS]
    conv, x = MultiGraphConv(5, 6, 3), torch.randn(8, 5)
    wanted = conv(x, graphs)
    given = [graph.edge_index() for graph in graphs], [graph.edge_weight() for graph in graphs]
    out = conv.bfloat16()(x.bfloat16(), *given)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, rtol=0.1, atol=0.1)


def test_no_channels_are_a_size_too() -> None:
    conv = MultiGraphConv(0, 6, 3)
    out = conv(torch.zeros(8, 0), graphs_of(4, "graph"))
    torch.testing.assert_close(out[:1], conv(torch.zeros(8, 0), graphs_of(4, "coo"))[:1])
