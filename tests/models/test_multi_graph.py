from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch, Data

from relocal_pyg.data.pair_data import PairData
from relocal_pyg.errors import CheckpointError, FeatureError, UsageError
from relocal_pyg.io.record import write_manifest
from relocal_pyg.models import MultiGraphRelocalizer, NetworkConfig, load_model
from relocal_pyg.models.checkpoint import load_weights
from relocal_pyg.training import PAPER


def small(**changes: object) -> MultiGraphRelocalizer:
    settings = {"hidden_channels": 6, "num_steps": 5, "head_channels": (4, 3), **changes}
    return MultiGraphRelocalizer(7, **settings).double().eval()


def disturb(model: torch.nn.Module) -> None:
    """Move zero-initialised layers away from zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def plain_network(model: MultiGraphRelocalizer, query, proposal) -> tuple[float, list[float]]:
    """Sections 4.2 to 4.6 with dense matrices, one pair, for T = len(query) = len(proposal)."""
    net = model.network
    hidden = torch.cat([net.encoder.query_lstm(query)[0], net.encoder.proposal_lstm(proposal)[0]])
    num = len(query)
    for layer in net.fusion.layers:
        latent = layer.lin_in(hidden)
        branches = []
        for k, conv in zip(model.settings.ks, layer.convs, strict=True):
            matrix = torch.zeros(2 * num, 2 * num, dtype=hidden.dtype)
            for i in range(num):
                for j in range(num):
                    if abs(i - j) <= k:
                        matrix[i, j] = matrix[num + i, num + j] = 1
                    if (j - i) % k == 0:
                        matrix[i, num + j] = matrix[num + j, i] = 1
            branches.append(torch.tanh(matrix @ latent @ conv.lin.weight.T))
        hidden = layer.lin_out(torch.cat(branches, dim=1))
    pooled = hidden.mean(dim=0, keepdim=True)
    return net.score_head(pooled).item(), net.offset_head(pooled)[0].tolist()


def test_network_is_the_dense_algebra_of_the_paper():
    model = small()
    query, proposal = torch.randn(2, 5, 7, dtype=torch.float64)
    pair = PairData.from_features(query, proposal, num_steps=5, materialize=False)
    score, offsets = model(Batch.from_data_list([pair]))
    wanted_score, wanted_offsets = plain_network(model, query, proposal)
    assert score.item() == pytest.approx(wanted_score, abs=1e-12)
    assert offsets[0].tolist() == pytest.approx(wanted_offsets, abs=1e-12)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_batch_equals_pair_by_pair_and_stored_edges_equal_none(mask_padding):
    model = small(mask_padding=mask_padding)
    sizes = [(3, 9), (5, 5), (8, 2)]
    features = [(torch.randn(m, 7).double(), torch.randn(n, 7).double()) for m, n in sizes]
    stored = [PairData.from_features(q, p, num_steps=5) for q, p in features]
    bare = [PairData.from_features(q, p, num_steps=5, materialize=False) for q, p in features]
    scores, offsets = model(Batch.from_data_list(bare))
    with_edges = model(Batch.from_data_list(stored))
    torch.testing.assert_close(with_edges[0], scores, atol=1e-12, rtol=0)
    torch.testing.assert_close(with_edges[1], offsets, atol=1e-12, rtol=0)
    for number, pair in enumerate(bare):
        alone, offset = model(Batch.from_data_list([pair]))
        torch.testing.assert_close(alone[0], scores[number], atol=1e-12, rtol=0)
        torch.testing.assert_close(offset[0], offsets[number], atol=1e-12, rtol=0)


WEIGHTED = [("laplacian", "none"), ("exponential", "none"), ("exponential", "sym")]


@pytest.mark.parametrize(("weight", "normalization"), [*WEIGHTED, ("binary", "mean")])
def test_stored_edges_lose_no_weights(weight, normalization):
    """Scores and losses are those of a network that is given the weights of every edge by hand."""
    model = small(weight=weight, normalization=normalization)
    disturb(model)
    sides = []
    for materialize in (False, True):
        torch.manual_seed(3)
        pairs = [
            PairData.from_features(
                torch.randn(4, 7).double(),
                torch.randn(6, 7).double(),
                num_steps=5,
                materialize=materialize,
                weight=weight,
                offsets=torch.zeros(1, 2).double(),
            )
            for _ in range(3)
        ]
        sides.append(Batch.from_data_list(pairs))
    network, x, mask = model.network, sides[0].x.view(3, 2, 5, 7), torch.ones(3, 5).bool()
    edges = [graph.edge_index() for graph in model.graphs]
    edges = [torch.cat([some + 10 * pair for pair in range(3)], dim=1) for some in edges]
    weights = [graph.edge_weight(torch.float64).repeat(3) for graph in model.graphs]
    hidden = network.encode_query(x[:, 0], mask), network.encode_proposal(x[:, 1], mask)
    wanted = torch.tanh(network.fuse(*hidden, edges, mask, mask, weights)[0])
    for bare, other in ((sides[0], sides[1]), (sides[1], sides[1]), (sides[1], sides[0])):
        torch.testing.assert_close(model(bare)[0], wanted, atol=1e-12, rtol=0)
        ranking = model.training_losses((bare, other))["ranking"]
        assert ranking.item() == pytest.approx(1.5)  # the same pairs twice: the margin each
        scores, _ = model._score_triplets(bare, other)
        torch.testing.assert_close(scores, wanted.repeat(2), atol=1e-12, rtol=0)


def test_rank_scores_each_proposal_as_its_own_pair():
    model = small()
    query, reference = torch.randn(4, 7).double(), torch.randn(20, 7).double()
    proposals = torch.tensor([[0.0, 3.0], [2.0, 19.0], [5.0, 10.0]])
    scores, offsets = model.score(query, [reference], [proposals])
    for number, (start, end) in enumerate(proposals.int().tolist()):
        pair = PairData.from_features(query, reference[start:end], num_steps=5)
        score, offset = model(Batch.from_data_list([pair]))
        assert scores[number].item() == pytest.approx(score.item(), abs=1e-12)
        torch.testing.assert_close(offsets[number], offset[0], atol=1e-12, rtol=0)


def test_padding_is_invisible_where_it_is_masked():
    """T larger than both clips changes nothing: pads are outside edges, LSTM and pool."""
    query, reference = torch.randn(4, 7).double(), torch.randn(5, 7).double()
    proposals = torch.tensor([[0.0, 5.0]])
    model = small(mask_padding=True, ks=(1, 2))
    longer = small(mask_padding=True, ks=(1, 2), num_steps=11)
    longer.load_state_dict(model.state_dict())
    short = model.score(query, [reference], [proposals])
    long = longer.score(query, [reference], [proposals])
    torch.testing.assert_close(short[0], long[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(short[1], long[1], atol=1e-12, rtol=0)


def test_cnn_ablation_cannot_see_the_neighbours_of_a_step():
    model = small(graph_conv=False, mask_padding=True)
    disturb(model)
    hidden = torch.randn(1, 10, 6, dtype=torch.float64)
    changed = hidden.clone()
    changed[0, 3] += 1.0
    difference = model.network.fusion(hidden, None) - model.network.fusion(changed, None)
    assert difference[0, 3].abs().sum() > 0
    assert difference[0, [0, 1, 2, 4, 5, 6, 7, 8, 9]].abs().max() == 0


def test_regression_loss_trains_its_head_alone():
    model = small().train()
    query, proposal = torch.randn(2, 6, 7, dtype=torch.float64)
    pairs = [PairData.from_features(query, proposal, num_steps=5, materialize=False)] * 3
    _, offsets = model(Batch.from_data_list(pairs))
    offsets.sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all(name.startswith("network.offset_head") for name in with_gradient)


def test_parameter_groups_hold_every_parameter_once():
    model = small()
    groups = model.parameter_groups(1e-4, 0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert [group["lr"] for group in groups] == [1e-4, 0.1]


def test_paper_preset_is_the_default_and_what_the_paper_states():
    assert PAPER.network == NetworkConfig()
    network, training = PAPER.network, PAPER.training
    assert (network.num_steps, network.ks, network.num_layers) == (40, (1, 2, 3), 2)
    assert (network.margin, network.weight, network.normalization) == (0.5, "binary", "none")
    assert (training.batch_size, training.learning_rate) == (32, 1e-4)
    assert (training.offset_learning_rate, training.weight_decay) == (0.1, 2 * 5e-3)


def test_save_and_load_give_the_same_answer(tmp_path: Path):
    model = small().float()
    disturb(model)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    query, reference = torch.randn(4, 7), torch.randn(30, 7)
    assert again.localize(query, reference) == model.localize(query, reference)
    assert again.config() == model.config()


def test_a_wrong_or_damaged_checkpoint_is_refused(tmp_path: Path):
    folder = tmp_path / "model"
    small().save(folder)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"query_lstm.weight_ih_l0: has shape"):
        load_weights(small(hidden_channels=8), folder)
    with pytest.raises(CheckpointError, match="is missing"):
        load_weights(small(num_layers=3), folder)
    with pytest.raises(CheckpointError, match="not part of this model"):
        load_weights(small(num_layers=1), folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"format": 3', '"format": 99', "newer"),
        ("MultiGraphRelocalizer", "os.system", "does not exist"),
        ('"hidden_channels": 6', '"hidden_chanels": 6', "do not fit"),
    ],
)
def test_edited_config_is_refused(tmp_path: Path, old: str, new: str, reason: str):
    folder = tmp_path / "model"
    small().save(folder)
    file = folder / "config.json"
    file.write_text(file.read_text().replace(old, new))
    write_manifest(folder, "model")
    with pytest.raises(CheckpointError, match=reason):
        load_model(folder)


def test_wrong_input_is_named():
    model = small()
    pair = PairData.from_features(torch.randn(3, 4), torch.randn(3, 4), num_steps=5)
    with pytest.raises(FeatureError, match="wanted"):
        model(Batch.from_data_list([pair]))
    with pytest.raises(UsageError):
        MultiGraphRelocalizer(7, num_steps=0)
    with pytest.raises(UsageError, match="margin"):
        MultiGraphRelocalizer(7, margin=float("nan"))


def test_pairs_of_another_length_are_refused_and_not_cut_anew():
    model = small()
    for steps, count in ((10, 1), (10, 3), (1, 5), (4, 5)):
        sides = torch.randn(2, 3, 7).double()
        pairs = [PairData.from_features(*sides, num_steps=steps)] * count
        batch = Batch.from_data_list(pairs)
        for data in [batch, *pairs[: count == 1]]:
            with pytest.raises(FeatureError, match=f"{count} pairs of T = 5"):
                model(data)
        with pytest.raises(FeatureError, match=f"{count} pairs of T = 5"):
            model.training_losses((batch, batch))
    alone = PairData.from_features(*sides, num_steps=5)
    by_hand = Data(x=alone.x.repeat(3, 1), step_mask=alone.step_mask.repeat(3))
    assert torch.equal(model(by_hand)[0], model(alone)[0].repeat(3))
    assert torch.equal(model(alone)[0], model(Batch.from_data_list([alone]))[0])


@pytest.mark.parametrize("materialize", [False, True])
def test_losses_of_a_batch_are_those_of_its_pairs(materialize):
    """Queries are encoded once for positives and negatives, which changes no number."""
    model = small()
    disturb(model)
    sides: list[list[PairData]] = [[], []]
    for _ in range(3):
        query = torch.randn(4, 7).double()
        for side in sides:
            offsets = torch.randn(1, 2).double()
            features = torch.randn(6, 7).double()
            side.append(
                PairData.from_features(
                    query, features, num_steps=5, materialize=materialize, offsets=offsets
                )
            )
    near, far = (Batch.from_data_list(side) for side in sides)
    losses = model.training_losses((near, far))
    positive, offsets = model(near)
    negative, _ = model(far)
    ranking = (0.5 - positive + negative).clamp(min=0).sum()
    regression = (offsets - near.offsets).abs().sum(dim=1).mean()
    torch.testing.assert_close(losses["ranking"], ranking, atol=1e-12, rtol=0)
    torch.testing.assert_close(losses["regression"], regression, atol=1e-12, rtol=0)
