"""PairData: what PyG does with K flat edge sets, sample by sample and in batches."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, HeteroData
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.loader import DataLoader
from torch_geometric.nn import HeteroConv

from relocal_pyg.data.pair_data import PairData
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn import MultiGraphConv, SumConv

KS = (1, 2, 3)


def pair(m: int = 3, n: int = 9, **options: object) -> PairData:
    options.setdefault("num_steps", 5)
    return PairData.from_features(torch.randn(m, 4), torch.randn(n, 4), **options)  # type: ignore[arg-type]


def test_rows_and_mask() -> None:
    query, proposal = torch.randn(3, 4), torch.randn(9, 4)
    data = PairData.from_features(query, proposal, num_steps=5)
    assert torch.equal(data.x[:3], query)
    assert torch.equal(data.x[3:5], torch.zeros(2, 4))
    assert torch.equal(data.x[5:], proposal[[0, 2, 4, 6, 8]])
    assert data.step_mask.tolist() == [True] * 3 + [False] * 2 + [True] * 5
    floor = PairData.from_features(query, proposal, num_steps=5, mode="floor")
    assert torch.equal(floor.x[5:], proposal[[0, 1, 3, 5, 7]])


def test_edges_are_those_of_the_graphs() -> None:
    data = pair(ks=(3, 1, 10))
    assert data.ks == (1, 3, 10)
    for k, edges in zip(data.ks, data.edge_indices(), strict=True):
        assert torch.equal(edges, PairGraph(5, k).edge_index())
        assert torch.equal(edges, data[f"edge_index_k{k}"])
    assert data.edge_weights() == [None, None, None]
    assert data.num_edges == sum(int(PairGraph(5, k).dense().sum()) for k in (1, 3, 10))
    assert data.num_nodes == 10
    assert data.is_node_attr("step_mask")


def test_defaults_are_the_papers() -> None:
    data = PairData.from_features(torch.randn(50, 4), torch.randn(7, 4))
    assert [edges.shape[1] for edges in data.edge_indices()] == [3436, 1988, 1604]
    assert data.x.shape == (80, 4)


def test_weights_are_stored() -> None:
    data = pair(ks=(1, 2), weight="laplacian")
    for k, weights in zip((1, 2), data.edge_weights(), strict=True):
        assert torch.equal(weights, PairGraph(5, k, "laplacian").edge_weight())
    conv, graphs = MultiGraphConv(4, 3, 2), [PairGraph(5, k, "laplacian") for k in (1, 2)]
    out = conv(data.x, data.edge_indices(), data.edge_weights())
    torch.testing.assert_close(out, conv(data.x, graphs))


def test_without_edges() -> None:
    data = pair(materialize=False)
    assert data.ks == ()
    assert sorted(data.keys()) == ["step_mask", "x"]
    assert data.validate()
    assert data.edge_weights() == []
    with pytest.raises(UsageError, match="materialize"):
        data.edge_indices()


def test_samples_share_no_edges() -> None:
    first, second = pair(), pair()
    first.edge_index_k1.zero_()
    assert torch.equal(second.edge_index_k1, PairGraph(5, 1).edge_index())


@pytest.mark.parametrize("materialize", [True, False])
def test_a_loader_batch_equals_one_by_one(materialize: bool) -> None:
    samples = [pair(m, n, materialize=materialize) for m, n in ((3, 9), (5, 5), (1, 2), (8, 1))]
    (batch,) = DataLoader(samples, batch_size=4)
    conv = MultiGraphConv(4, 6, 3)
    graphs = [PairGraph(5, k) for k in KS]
    each = torch.cat([conv(s.x, graphs, mask=s.step_mask) for s in samples])
    used = batch.edge_indices() if materialize else graphs
    torch.testing.assert_close(conv(batch.x, used, mask=batch.step_mask), each)
    assert batch.validate()
    assert batch.num_edges == sum(s.num_edges for s in samples)
    for got, sample in zip(batch.to_data_list(), samples, strict=True):
        assert isinstance(got, PairData)
        assert sorted(got.keys()) == sorted(sample.keys())
        assert all(torch.equal(got[key], sample[key]) for key in sample.keys())  # noqa: SIM118


def test_positive_and_negative_come_as_two_batches_through_workers() -> None:
    samples = [(pair(3, n, label=n), pair(3, n + 1, label=-n)) for n in range(1, 5)]
    ((positive, negative),) = DataLoader(samples, batch_size=4, num_workers=1)
    assert positive.label.tolist() == [1, 2, 3, 4]
    assert negative.label.tolist() == [-1, -2, -3, -4]
    assert positive.num_graphs == negative.num_graphs == 4


def test_follow_batch() -> None:
    samples = [pair(), pair()]
    (batch,) = DataLoader(samples, batch_size=2, follow_batch=["edge_index_k2"])
    assert batch.edge_index_k2_batch.bincount().tolist() == [samples[0].edge_index_k2.shape[1]] * 2


@pytest.mark.parametrize("name", ["query_index", "index", "batch_no", "my_batch", "face"])
def test_names_that_pyg_would_shift_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        pair(**{name: torch.tensor(0)})


def test_other_labels_survive_a_batch() -> None:
    samples = [pair(offsets=torch.tensor([[float(i), 0.0]]), video="v") for i in range(3)]
    batch = Batch.from_data_list(samples)
    assert batch.offsets[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch.video == ["v"] * 3


def test_validate_looks_at_every_edge_set() -> None:
    def broken(key: str, value: torch.Tensor) -> PairData:
        data = pair(ks=(1, 2), weight="laplacian")
        data[key] = value
        return data

    assert pair().validate()
    faults = {
        "outside": broken("edge_index_k2", torch.tensor([[0, 10], [1, 2]])),
        "int64": broken("edge_index_k2", torch.zeros(2, 3)),
        "weights": broken("edge_weight_k1", torch.ones(3)),
    }
    faults["outside"].edge_weight_k2 = torch.ones(2)
    for message, data in faults.items():
        with pytest.raises(ValueError, match=message):
            data.validate()
        with pytest.warns(UserWarning, match=message):
            assert not data.validate(raise_on_error=False)
    negative = broken("edge_index_k1", torch.tensor([[-1], [0]]))
    negative.edge_weight_k1 = torch.ones(1)
    with pytest.raises(ValueError, match="outside"):
        negative.validate()
    empty = broken("edge_index_k1", torch.empty(2, 0, dtype=torch.long))
    empty.edge_weight_k1 = torch.empty(0)
    assert empty.validate()


def test_validate_finds_an_edge_that_leaked_into_the_next_pair() -> None:
    bad = pair(ks=(1,))
    bad.edge_index_k1[0, 0] = 10
    batch = Batch.from_data_list([bad, pair(ks=(1,))])
    with pytest.raises(ValueError, match="joins two pairs"):
        batch.validate()


@pytest.mark.parametrize("batched", [False, True])
def test_to_hetero(batched: bool) -> None:
    data = pair(ks=(1, 3), weight="laplacian", label=torch.tensor([7]))
    if batched:
        data = Batch.from_data_list(
            [data, pair(ks=(1, 3), weight="laplacian", label=torch.tensor([8]))]
        )
    hetero = data.to_hetero()
    assert isinstance(hetero, HeteroData)
    assert hetero.validate()
    assert hetero.edge_types == [("step", "k1", "step"), ("step", "k3", "step")]
    assert torch.equal(hetero["step"].step_mask, data.step_mask)
    assert hetero.label.tolist() == ([7, 8] if batched else [7])
    assert ("batch" in hetero["step"]) == batched
    conv = SumConv(4, 3)
    for k in (1, 3):
        store = hetero["step", f"k{k}", "step"]
        out = conv(hetero["step"].x, store.edge_index, store.edge_weight)
        torch.testing.assert_close(
            out, conv(data.x, data[f"edge_index_k{k}"], data[f"edge_weight_k{k}"])
        )


def test_hetero_form_takes_edge_subgraphs() -> None:
    hetero = pair(ks=(1, 2)).to_hetero()
    kept = hetero.subgraph({"step": torch.arange(5)})
    inside = kept["step", "k1", "step"].edge_index
    # The query alone: its band.
    assert torch.equal(inside, PairGraph(5, 1).dense()[:5, :5].nonzero().T.flip(0))


def test_an_explainer_masks_the_edges_of_every_graph() -> None:
    hetero = pair(ks=(1, 2)).to_hetero()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convs = {edge_type: SumConv(4, 3) for edge_type in hetero.edge_types}
            self.conv = HeteroConv(convs, aggr="cat")

        def forward(self, x: dict[str, torch.Tensor], edges: dict[object, torch.Tensor]) -> object:
            return torch.tanh(self.conv(x, edges)["step"]).mean().view(1, 1)

    explainer = Explainer(
        Model(),
        GNNExplainer(epochs=2),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "graph"},
    )
    masks = explainer(hetero.x_dict, hetero.edge_index_dict).edge_mask_dict
    assert {key[1]: len(mask) for key, mask in masks.items()} == {"k1": 76, "k2": 64}


def lopsided() -> PairData:
    """Two edge sets without symmetry: a loop, a double edge and a lone node in one of them."""
    return PairData(
        x=torch.randn(4, 3),
        edge_index_k1=torch.tensor([[0, 1, 1, 1, 2, 3], [1, 1, 2, 2, 3, 0]]),
        edge_weight_k1=torch.arange(1.0, 7),
        edge_index_k2=torch.tensor([[0, 1], [2, 2]]),
        edge_attr_k2=torch.randn(2, 5),
    )


def sets_of(data: PairData | HeteroData) -> list[dict[str, torch.Tensor]]:
    """The edge sets in full, read from the flat keys or from the edge types."""
    if isinstance(data, HeteroData):
        return [store.to_dict() for store in data.edge_stores]
    return [
        {key.removesuffix(f"_k{k}"): data[key] for key in data.keys() if key.endswith(f"_k{k}")}  # noqa: SIM118
        for k in data.ks
    ]


@pytest.mark.parametrize("batched", [False, True])
def test_questions_about_the_edges_are_asked_of_every_set(batched: bool) -> None:
    def of(**change: torch.Tensor) -> PairData:
        data = lopsided()
        for key, value in change.items():
            data[key] = value
        return Batch.from_data_list([data, data]) if batched else data

    ring = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])
    both = {"edge_index_k1": ring, "edge_weight_k1": torch.ones(8)}
    assert not of().is_undirected()
    assert of().is_directed()
    assert not of(**both).is_undirected()
    assert of(**both, edge_index_k2=ring, edge_attr_k2=torch.ones(8, 5)).is_undirected()
    assert of().has_self_loops()
    assert not of(**both).has_self_loops()
    assert of().has_isolated_nodes()
    assert of(**both).has_isolated_nodes()
    assert not of(edge_index_k2=ring, edge_attr_k2=torch.ones(8, 5)).has_isolated_nodes()
    assert not of().is_coalesced()
    assert of().coalesce().is_coalesced()
    for k in KS:
        graph = pair(ks=(k,))
        assert graph.is_undirected()
        assert not graph.has_isolated_nodes()


@pytest.mark.parametrize(
    "transform",
    [
        T.ToUndirected(),
        T.ToUndirected(reduce="max", merge=True),
        T.AddSelfLoops(),
        T.AddRemainingSelfLoops(fill_value=3.0),
        T.RemoveSelfLoops(),
        T.RemoveDuplicatedEdges(),
        lambda data: data.sort(sort_by_row=False),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_transforms_reach_every_set_as_they_reach_every_edge_type(
    transform: Callable[[object], object], batched: bool
) -> None:
    data = lopsided()
    if batched:
        data = Batch.from_data_list([data, lopsided()])
    hetero = data.to_hetero()
    before = sets_of(data)
    changed, wanted = transform(copy.copy(data)), transform(hetero)
    assert [sorted(one) for one in sets_of(changed)] == [sorted(one) for one in sets_of(wanted)]
    for ours, theirs in zip(sets_of(changed), sets_of(wanted), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert isinstance(changed, PairData)
    assert changed.num_edges == sum(one["edge_index"].shape[1] for one in sets_of(wanted))
    assert changed.validate()
    for ours, theirs in zip(sets_of(data), before, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_coalesce_merges_what_double_edges_carry() -> None:
    data = lopsided()
    merged = data.coalesce()
    for k, carried in ((1, "edge_weight_k1"), (2, "edge_attr_k2")):
        dense, again = (
            torch.zeros(4, 4, *one[carried].shape[1:]).index_put(
                tuple(one[f"edge_index_k{k}"]), one[carried], accumulate=True
            )
            for one in (data, merged)
        )
        torch.testing.assert_close(again, dense)
        assert merged[f"edge_index_k{k}"].unique(dim=1).shape[1] == len(merged[carried])
    assert merged.validate()


def test_without_edges_nothing_is_done_in_silence() -> None:
    data = pair(materialize=False)
    for call in (
        T.ToUndirected(),
        T.AddSelfLoops(),
        PairData.is_undirected,
        PairData.has_self_loops,
        PairData.has_isolated_nodes,
        PairData.coalesce,
    ):
        with pytest.raises(UsageError, match="materialize"):
            call(data)
    assert data.num_edges == 0


@pytest.mark.parametrize(
    "transform",
    [
        T.VirtualNode(),
        T.LocalDegreeProfile(),
        T.GDC(),
        T.AddRandomWalkPE(2),
        T.ToDense(20),
        T.SIGN(1),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_what_knows_one_edge_set_is_refused_in_words(
    transform: Callable[[object], object], batched: bool
) -> None:
    data = Batch.from_data_list([pair(), pair()]) if batched else pair()
    with pytest.raises(UsageError, match="to_hetero"):
        transform(data)
    with pytest.raises(UsageError, match="edge_indices"):
        _ = data.edge_index
    assert not hasattr(data, "edge_index")
    assert getattr(data, "edge_index", None) is None
    data.edge_index = data.edge_index_k1
    assert torch.equal(data.edge_index, data.edge_index_k1)


def test_one_graph_is_no_list_of_graphs() -> None:
    with pytest.raises(UsageError, match=r"ks is 3: the graphs wanted, such as \(1, 2, 3\)"):
        PairData.from_features(torch.rand(3, 2), torch.rand(4, 2), 5, ks=3)  # type: ignore[arg-type]


def test_transforms_that_change_the_number_of_nodes_are_refused_or_found() -> None:
    data = pair()
    with pytest.raises(UsageError, match="2T"):
        T.Pad(20, 400)(data)
    assert data.validate()
    isolated = pair(ks=(1,))
    isolated.edge_index_k1 = isolated.edge_index_k1[:, (isolated.edge_index_k1 != 3).all(dim=0)]
    odd = T.RemoveIsolatedNodes()(isolated)
    assert odd.num_nodes == 9
    with pytest.raises(ValueError, match="odd"):
        odd.validate()
    with pytest.warns(UserWarning, match="odd"):
        assert not Batch.from_data_list([odd, odd]).validate(raise_on_error=False)


def test_sparse_matrices_are_named_where_edges_are_asked_for() -> None:
    data = T.ToSparseTensor(layout=torch.sparse_csr)(pair())
    with pytest.raises(UsageError, match="adj_t_k"):
        data.edge_indices()
    for k in KS:
        assert torch.equal(data[f"adj_t_k{k}"].to_dense(), PairGraph(5, k).dense())


def test_subgraphs_are_refused() -> None:
    data = pair()
    with pytest.raises(UsageError, match="to_hetero"):
        data.subgraph(torch.arange(3))
    with pytest.raises(UsageError, match="to_hetero"):
        data.edge_subgraph(torch.arange(3))


def test_refuses_sides_of_different_width() -> None:
    with pytest.raises(FeatureError, match="4 channels .* 5"):
        PairData.from_features(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(FeatureError):
        PairData.from_features(torch.randn(0, 4), torch.randn(3, 4))
    for sides in ((None, torch.randn(3, 4)), (torch.randn(3, 4), torch.tensor(1.0))):
        with pytest.raises(FeatureError, match=r"n, F"):
            PairData.from_features(*sides)


@pytest.mark.parametrize("form", [np.asarray, np.float32, list, lambda x: x.tolist(), pd.DataFrame])
def test_takes_any_array(form) -> None:
    query, proposal = np.random.rand(3, 4), np.random.rand(7, 4)
    made = PairData.from_features(form(query), form(proposal), num_steps=np.int8(5))
    wanted = PairData.from_features(torch.tensor(query), torch.tensor(proposal), num_steps=5)
    assert torch.allclose(made.x.double(), wanted.x)
    assert torch.equal(made.step_mask, wanted.step_mask)


def test_pickle_copy_and_an_empty_one() -> None:
    data = pair()
    for other in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data), data.clone()):
        assert isinstance(other, PairData)
        assert torch.equal(other.edge_index_k3, data.edge_index_k3)
    assert PairData().ks == ()
    assert PairData(edge_index=torch.zeros(2, 3, dtype=torch.long)).num_edges == 3


def test_real_features(shared_data: Path) -> None:
    """Whole videos of 50 Salads against their first minute: every step is a step of the file."""
    path = shared_data / "50salads" / "features.h5"
    if not path.is_file():
        pytest.skip(f"no {path}")
    conv = SumConv(28, 4)
    with h5py.File(path) as file:
        samples = []
        for video in sorted(file)[:4]:
            whole = torch.from_numpy(file[video]["c3d_features"][()])
            data = PairData.from_features(whole[:30], whole)
            assert torch.equal(data.x[:30], whole[:30])
            assert data.step_mask.sum() == 70
            assert (data.x[40:, None] == whole).all(dim=2).any(dim=1).all()
            samples.append(data)
    batch = Batch.from_data_list(samples)
    out = conv(batch.x, batch.edge_index_k3)
    torch.testing.assert_close(out, conv(batch.x, PairGraph(40, 3)), rtol=1e-4, atol=1e-4)
