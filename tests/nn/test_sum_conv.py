"""SumConv: one answer from every form of the graph, and the usual traps of a PyG layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, HeteroConv

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn import MultiGraphConv, SumConv


def random_graph(nodes: int = 9, edges: int = 40) -> tuple[Tensor, Tensor]:
    """Random edges with duplicates, and weights; node 0 has no edge at all."""
    edge_index = torch.randint(1, nodes, (2, edges))
    return edge_index[:, edge_index[1].argsort()], torch.randn(edges, dtype=torch.float64)


def dense(edge_index: Tensor, weight: Tensor, nodes: int) -> Tensor:
    matrix = torch.zeros(nodes, nodes, dtype=weight.dtype)
    return matrix.index_put((edge_index[1], edge_index[0]), weight, accumulate=True)


def csr(edge_index: Tensor, weight: Tensor, nodes: int) -> Tensor:
    return dense(edge_index, weight, nodes).to_sparse_csr()


def double(conv: SumConv) -> SumConv:
    return conv.double()


def test_repr() -> None:
    assert repr(SumConv(16, 32)) == "SumConv(16, 32)"


@pytest.mark.parametrize("weighted", [False, True])
def test_against_dense_and_gcn(weighted: bool) -> None:
    edge_index, weight = random_graph()
    conv = double(SumConv(5, 3))
    x = torch.randn(9, 5, dtype=torch.float64)
    used = weight if weighted else torch.ones_like(weight)
    out = conv(x, edge_index, weight if weighted else None)
    expected = dense(edge_index, used, 9) @ x @ conv.lin.weight.T
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    gcn = GCNConv(5, 3, normalize=False, add_self_loops=False, bias=False).double()
    gcn.load_state_dict(conv.state_dict())
    torch.testing.assert_close(
        out, gcn(x, edge_index, weight if weighted else None), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("bias", [False, True])
def test_bias_and_reset(bias: bool) -> None:
    conv = SumConv(5, 3, bias=bias)
    empty = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(conv(torch.randn(4, 5), empty), torch.zeros(4, 3))
    assert ("bias" in conv.state_dict()) == bias
    before = conv.lin.weight.detach().clone()
    if bias:
        conv.bias.data.fill_(1.0)
        assert torch.equal(conv(torch.randn(4, 5), empty), torch.ones(4, 3))
    conv.reset_parameters()
    assert not torch.equal(before, conv.lin.weight)
    if bias:
        assert torch.equal(conv.bias, torch.zeros(3))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("steps", "k"), [(4, 1), (5, 2), (3, 5), (40, 3), (90, 3), (120, 1)])
@pytest.mark.parametrize("weight", ["binary", "laplacian", "exponential"])
def test_every_form_gives_the_same(
    steps: int, k: int, weight: str, dtype: torch.dtype, atol: float
) -> None:
    graph = PairGraph(steps, k, weight)
    edge_index, edge_weight = graph.edge_index(), graph.edge_weight(dtype)
    nodes = graph.num_nodes
    conv = SumConv(6, 4).to(dtype)
    x = torch.randn(nodes, 6, dtype=dtype, requires_grad=True)
    expected = conv(x, edge_index, edge_weight)
    probe = torch.randn_like(expected)
    grads = torch.autograd.grad((expected * probe).sum(), [x, conv.lin.weight])
    sorted_index = EdgeIndex(edge_index, sparse_size=(nodes, nodes), sort_order="col")
    parts = SumConv(6, 4, decomposed_layers=2).to(dtype)
    parts.lin = conv.lin
    rtol = 0 if dtype == torch.float64 else 1e-5
    outs = [
        conv(x, sorted_index, edge_weight),
        conv(x, csr(edge_index, edge_weight, nodes)),
        parts(x, edge_index, edge_weight),
        parts(x, csr(edge_index, edge_weight, nodes)),
        conv(x, graph),
        conv(x.expand(2, -1, -1), graph)[1],
        conv(x.repeat(2, 1), graph)[nodes:],
    ]
    for out in outs:
        torch.testing.assert_close(out, expected, rtol=rtol, atol=atol)
        for got, want in zip(
            torch.autograd.grad((out * probe).sum(), [x, conv.lin.weight]), grads, strict=True
        ):
            torch.testing.assert_close(got, want, rtol=10 * rtol, atol=20 * atol)


def test_unsorted_edge_index_object_takes_the_reference_path() -> None:
    edge_index, weight = random_graph()
    shuffled = torch.randperm(40)
    conv, x = double(SumConv(5, 3)), torch.randn(9, 5, dtype=torch.float64)
    wrapped = EdgeIndex(edge_index[:, shuffled], sparse_size=(9, 9))
    torch.testing.assert_close(conv(x, wrapped, weight[shuffled]), conv(x, edge_index, weight))


def test_sparse_graphs_need_not_be_of_the_type_of_x() -> None:
    graph = PairGraph(4, 2)
    conv, x = double(SumConv(5, 3)), torch.randn(8, 5, dtype=torch.float64)
    expected = conv(x, graph)
    ordered = EdgeIndex(graph.edge_index(), sparse_size=(8, 8), sort_order="col")
    for form in (graph.dense().to_sparse_csr(), ordered):
        torch.testing.assert_close(conv(x, form), expected, rtol=0, atol=1e-12)


def test_sparse_paths_run_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    edge_index, weight = random_graph()
    conv, x = double(SumConv(5, 3)), torch.randn(9, 5, dtype=torch.float64)
    forms = [
        csr(edge_index, weight, 9),
        EdgeIndex(edge_index, sparse_size=(9, 9), sort_order="col"),
    ]

    def refuse(**_: object) -> None:
        raise AssertionError("messages were made one by one")

    monkeypatch.setattr(conv, "message", refuse)
    for form in forms:
        out = conv(x, form)
        assert out.dtype == torch.float64
    with pytest.raises(AssertionError, match="one by one"):
        conv(x, edge_index)


@pytest.mark.parametrize("form", ["coo", "csr", "EdgeIndex"])
def test_static_graph(form: str) -> None:
    edge_index, weight = random_graph()
    conv, x = double(SumConv(5, 3)), torch.randn(2, 4, 9, 5, dtype=torch.float64)
    each = torch.stack([conv(item, edge_index, weight) for item in x.flatten(0, 1)])
    args = {
        "coo": (edge_index, weight),
        "csr": (csr(edge_index, weight, 9),),
        "EdgeIndex": (EdgeIndex(edge_index, sparse_size=(9, 9), sort_order="col"), weight),
    }[form]
    out = conv(x, *args)
    torch.testing.assert_close(out, each.unflatten(0, (2, 4)), rtol=0, atol=1e-12)


def test_batch_equals_one_by_one() -> None:
    conv = double(SumConv(5, 3))
    samples = []
    for nodes in (9, 6, 11):
        edge_index, weight = random_graph(nodes, 30)
        x = torch.randn(nodes, 5, dtype=torch.float64)
        samples.append(Data(x=x, edge_index=edge_index, edge_weight=weight))
    batch = Batch.from_data_list(samples)
    out = conv(batch.x, batch.edge_index, batch.edge_weight)
    each = [conv(s.x, s.edge_index, s.edge_weight) for s in samples]
    torch.testing.assert_close(out, torch.cat(each), rtol=0, atol=1e-12)


def test_permutations() -> None:
    edge_index, weight = random_graph()
    conv, x = double(SumConv(5, 3)), torch.randn(9, 5, dtype=torch.float64)
    out = conv(x, edge_index, weight)
    order = torch.randperm(40)
    torch.testing.assert_close(conv(x, edge_index[:, order], weight[order]), out)
    nodes = torch.randperm(9)
    place = nodes.argsort()  # node v moves to place[v]
    torch.testing.assert_close(conv(x[nodes], place[edge_index], weight), out[nodes])


@pytest.mark.parametrize("form", ["coo", "EdgeIndex by col", "EdgeIndex by row"])
def test_flow_reversal(form: str) -> None:
    edge_index, weight = random_graph()
    forward = double(SumConv(5, 3))
    back = double(SumConv(5, 3, flow="target_to_source"))
    back.load_state_dict(forward.state_dict())
    x = torch.randn(9, 5, dtype=torch.float64)
    expected = forward(x, edge_index.flip(0), weight)
    graph = edge_index
    if form == "EdgeIndex by col":
        graph = EdgeIndex(edge_index, sparse_size=(9, 9), sort_order="col")
    elif form == "EdgeIndex by row":
        order = edge_index[0].argsort(stable=True)
        graph = EdgeIndex(edge_index[:, order], sparse_size=(9, 9), sort_order="row")
        weight = weight[order]
    torch.testing.assert_close(back(x, graph, weight), expected, rtol=0, atol=1e-12)


def test_isolated_nodes_get_zero_and_duplicates_count_twice() -> None:
    conv, x = SumConv(5, 3), torch.randn(4, 5)
    once = conv(x, torch.tensor([[1, 2], [2, 3]]))
    twice = conv(x, torch.tensor([[1, 1, 2], [2, 2, 3]]))
    assert torch.equal(once[:2], torch.zeros(2, 3))
    torch.testing.assert_close(twice[2], 2 * once[2])
    torch.testing.assert_close(twice[3], once[3])


def test_bipartite() -> None:
    conv = double(SumConv(5, 3))
    source, target = torch.randn(4, 5).double(), torch.randn(2, 5).double()
    edge_index = torch.tensor([[0, 1, 3, 3], [0, 0, 1, 0]])
    expected = torch.stack([source[[0, 1, 3]].sum(0), source[3]]) @ conv.lin.weight.T
    torch.testing.assert_close(conv((source, target), edge_index), expected)
    torch.testing.assert_close(conv((source, None), edge_index, size=(4, 2)), expected)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("form", ["graph", "coo"])
def test_mask(form: str, flatten: bool) -> None:
    graph = PairGraph(4, 2)
    conv = double(SumConv(5, 3))
    x, mask = torch.randn(3, 8, 5, dtype=torch.float64), torch.rand(3, 8) < 0.6
    expected = []
    for item, real in zip(x, mask, strict=True):
        edge_index = graph.edge_index()
        kept = edge_index[:, real[edge_index[0]] & real[edge_index[1]]]
        expected.append(conv(item, kept))
    want = torch.stack(expected)
    if form == "graph" and flatten:
        out = conv(x.flatten(0, 1), graph, mask=mask.flatten()).unflatten(0, (3, 8))
    elif form == "coo" and flatten:
        data = [
            Data(x=item, edge_index=graph.edge_index(), mask=m)
            for item, m in zip(x, mask, strict=True)
        ]
        batch = Batch.from_data_list(data)
        out = conv(batch.x, batch.edge_index, mask=batch.mask).unflatten(0, (3, 8))
    else:
        out = conv(x, graph if form == "graph" else graph.edge_index(), mask=mask)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


def test_inside_hetero_conv() -> None:
    graphs = [PairGraph(4, k).edge_index() for k in (1, 2)]
    convs = [SumConv(5, 3) for _ in graphs]
    edge_types = [("step", f"k{k}", "step") for k in (1, 2)]
    hetero = HeteroConv(dict(zip(edge_types, convs, strict=True)), aggr="cat")
    x = torch.randn(8, 5)
    out = hetero({"step": x}, dict(zip(edge_types, graphs, strict=True)))["step"]
    expected = torch.cat([conv(x, g) for conv, g in zip(convs, graphs, strict=True)], dim=-1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("form", ["coo", "csr", "graph"])
def test_gradcheck(form: str) -> None:
    graph = PairGraph(3, 2)
    conv = double(SumConv(3, 2, bias=True))
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    edge_index = graph.edge_index()
    weight = torch.randn(edge_index.shape[1], dtype=torch.float64, requires_grad=True)
    if form == "coo":
        assert torch.autograd.gradcheck(lambda x, w: conv(x, edge_index, w), (x, weight))
    else:
        used = csr(edge_index, weight.detach(), 6) if form == "csr" else graph
        assert torch.autograd.gradcheck(lambda x: conv(x, used), x)


def test_lazy_pickle_and_deepcopy() -> None:
    graph, x = PairGraph(4, 2), torch.randn(8, 7)
    conv = SumConv(-1, 3)
    out = conv(x, graph)
    assert conv.lin.weight.shape == (3, 7)
    assert torch.equal(copy.deepcopy(conv)(x, graph), out)
    again = pickle.loads(pickle.dumps(conv))
    assert torch.equal(again(x, graph), out)
    assert torch.equal(again(x, graph.edge_index()), conv(x, graph.edge_index()))


def test_refuses() -> None:
    graph, conv, x = PairGraph(4, 2), SumConv(5, 3), torch.randn(8, 5)
    with pytest.raises(UsageError, match="own weights"):
        conv(x, graph, graph.edge_weight())
    with pytest.raises(UsageError, match="own weights"):
        conv(x, graph.dense().to_sparse_csr(), graph.edge_weight())
    with pytest.raises(UsageError, match="multiple"):
        conv(torch.randn(12, 5), graph)
    with pytest.raises(UsageError, match="bipartite"):
        conv((x, x), graph)
    with pytest.raises(UsageError, match="bipartite"):
        conv((x, x), graph.edge_index(), mask=torch.ones(8, dtype=torch.bool))
    with pytest.raises(UsageError, match="flip its edges"):  # PyG gathers the wrong side
        SumConv(5, 3, flow="target_to_source")((x, x[:2]), torch.tensor([[0, 7], [0, 1]]))


@pytest.mark.parametrize("form", ["graph", "coo"])
@pytest.mark.parametrize("layer", ["sum", "multi"])
def test_a_mask_of_other_nodes_is_refused(layer: str, form: str) -> None:
    one, pairs = PairGraph(5, 2), torch.randn(3, 10, 4)
    graph = one if form == "graph" else one.edge_index()
    conv = SumConv(4, 4) if layer == "sum" else MultiGraphConv(4, 4, 2)
    given = graph if layer == "sum" else [graph] * 2
    real = torch.ones(3, 10, dtype=torch.bool)
    wrong = [real[0, :, None], real[0, :9], real[0, 0], real[:2], real.float(), real.long()]
    for mask in wrong:
        with pytest.raises(UsageError, match="mask is"):
            conv(pairs, given, mask=mask)
    with pytest.raises(UsageError, match="mask is"):
        conv(pairs[0], given, mask=real)
    if form == "graph":
        with pytest.raises(UsageError, match="mask is"):
            conv(pairs.flatten(0, 1), given, mask=real.flatten()[:20])
    shared = torch.rand(10) < 0.6
    each = torch.stack([conv(pair, given, mask=shared) for pair in pairs])
    for mask in (shared, shared[None], shared.expand(3, 10)):
        torch.testing.assert_close(conv(pairs, given, mask=mask), each)


def test_weights_of_other_edges_are_refused() -> None:
    graph, conv, x = PairGraph(5, 2).edge_index(), SumConv(4, 4), torch.randn(10, 4)
    for count in (1, graph.shape[1] - 1, graph.shape[1] + 1):
        with pytest.raises(UsageError, match=f"{graph.shape[1]} edges"):
            conv(x, graph, torch.ones(count))
    with pytest.raises(UsageError, match="edges"):
        conv(x, graph, torch.tensor(1.0))


def test_a_bias_waits_for_no_size() -> None:
    conv = SumConv(-1, 3, bias=True)
    assert conv(torch.randn(8, 7), PairGraph(4, 2)).shape == (8, 3)
    assert torch.equal(conv.bias, torch.zeros(3))


def test_a_graph_of_other_nodes_is_refused_in_every_form() -> None:
    """What a sparse product reads beyond the end of x is whatever lies there in memory."""
    conv, x, beyond = SumConv(5, 3), torch.randn(4, 5), torch.tensor([[0, 9], [0, 1]])
    fitting = torch.tensor([[0, 1], [0, 1]])
    for graph in (
        beyond,
        EdgeIndex(beyond, sort_order="col"),
        EdgeIndex(beyond.flip(0), sort_order="col"),
        EdgeIndex(fitting, sort_order="col", sparse_size=(9, 9)),
        torch.eye(9).to_sparse_csr(),
        torch.eye(2).to_sparse_csr(),
        torch.ones(4, 9).to_sparse_csr(),
        torch.ones(9, 4).to_sparse_csr(),
    ):
        with pytest.raises((IndexError, UsageError), match=r"9|10|\b2 nodes"):
            conv(x, graph)
    ordered = EdgeIndex(fitting, sort_order="col")
    assert torch.equal(conv(x, ordered)[2:], torch.zeros(2, 3))
    for wrong in (torch.ones(1), torch.ones(9), torch.ones(2, 1)):
        with pytest.raises(UsageError, match="2 edges"):
            conv(x, ordered, wrong)
    sides = torch.randn(4, 5), torch.randn(2, 5)
    assert conv(sides, torch.ones(2, 4).to_sparse_csr()).shape == (2, 3)
    with pytest.raises(UsageError, match="nodes"):
        conv(sides, torch.ones(4, 2).to_sparse_csr())


@pytest.mark.parametrize("form", ["coo", "EdgeIndex"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_the_answer_is_of_the_type_of_x_whatever_the_weights_are(
    form: str, kind: torch.dtype
) -> None:
    graph, conv = PairGraph(4, 2, "exponential"), SumConv(5, 3).to(kind)
    x, edges = torch.randn(8, 5).to(kind), graph.edge_index()
    if form == "EdgeIndex":
        edges = EdgeIndex(edges, sparse_size=(8, 8), sort_order="col")
    out = conv(x, edges, graph.edge_weight(torch.float32))
    assert out.dtype == kind
    torch.testing.assert_close(out, conv(x, graph), rtol=0.02, atol=0.02)


def test_a_mean_has_one_direction() -> None:
    back, x = SumConv(5, 3, flow="target_to_source"), torch.randn(8, 5)
    for graph in (PairGraph(4, 2, "exponential"), PairGraph(4, 2, normalization="sym")):
        wanted = back(x, graph.edge_index(), graph.edge_weight())
        torch.testing.assert_close(back(x, graph), wanted)
    with pytest.raises(UsageError, match="direction"):
        back(x, PairGraph(4, 2, normalization="mean"))
