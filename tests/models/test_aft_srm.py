from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch_geometric.loader import DataLoader

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pair_data import resample
from relocal_pyg.data.proposals import sliding_windows
from relocal_pyg.models.baselines.aft_srm import AFTSRM, FusionTensor
from relocal_pyg.moments import decode_offsets

MakeProtocol = Callable[..., Protocol]


def small(**options: float) -> AFTSRM:
    return AFTSRM(12, 8, num_steps=10, widths=(8, 8, 8), **options)  # type: ignore[arg-type]


def test_it_says_what_it_is() -> None:
    assert AFTSRM.reconstructed
    assert "reconstruction" in AFTSRM.title
    assert "RECONSTRUCTION" in (AFTSRM.__doc__ or "")


def test_fusion_tensor_equals_the_loop() -> None:
    layer = FusionTensor(4, 2)
    query, proposal = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    given = layer(query, proposal)
    assert given.shape == (3, 5, 5, 5)
    for b in range(3):
        q, p = query[b], proposal[b]
        s = torch.tensor(
            [
                [float((q[i] @ layer.relation(p[j])).detach()) / 2 for j in range(5)]
                for i in range(5)
            ]
        )
        for i in range(5):
            for j in range(5):
                a = 5 * math.exp(s[i, j]) / s[i].exp().sum()
                c = 5 * math.exp(s[i, j]) / s[:, j].exp().sum()
                factor = layer.query_factors(q[i]) * layer.proposal_factors(p[j])
                cosine = torch.cosine_similarity(q[i], p[j], dim=0).abs()
                expected = torch.cat([factor * a, factor * c, cosine[None]])
                torch.testing.assert_close(given[b, :, i, j], expected)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_any_number_of_steps(num_steps: int) -> None:
    model = AFTSRM(6, 4, num_steps=num_steps, widths=(3, 4, 5)).eval()
    scores, offsets = model(torch.randn(2, num_steps, 6), torch.randn(2, num_steps, 6))
    assert scores.shape == (2,)
    assert offsets.shape == (2, 2)
    assert (scores.abs() <= 1).all()


def test_rank_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relocal_pyg.models.baselines.aft_srm.CHUNK", 7)
    model = small().eval()
    query, reference = torch.randn(5, 12), torch.randn(40, 12)
    windows = sliding_windows(40, [4, 15])
    ranking = model.rank(query, reference, windows)
    assert ranking.proposals is not None
    assert torch.equal(torch.unique(ranking.proposals, dim=0), windows)
    assert (ranking.scores.diff() <= 0).all()
    clip = resample(query, 10)[0][None]
    for window, refined, score in zip(
        ranking.proposals, ranking.moments, ranking.scores, strict=True
    ):
        start, end = window.long().tolist()
        one, offsets = model(clip, resample(reference[start:end], 10)[0][None])
        torch.testing.assert_close(score, one[0].detach())
        torch.testing.assert_close(refined, decode_offsets(window, offsets[0].detach()))


def test_regression_trains_its_own_layer_only(planted: MakeProtocol) -> None:
    model = small()
    loader = DataLoader(model.training_set(planted(), num_samples=4, seed=0), batch_size=4)
    losses = model.training_losses(next(iter(loader)))
    torch.testing.assert_close(losses["loss"], losses["ranking"] + losses["regression"])
    losses["regression"].backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None}
    assert reached == {"offsets.weight", "offsets.bias"}
    groups = model.parameter_groups(1e-4, 1e-1)
    assert [group["lr"] for group in groups] == [1e-4, 1e-1]
    assert {id(p) for group in groups for p in group["params"]} == {
        id(p) for p in model.parameters()
    }


@pytest.mark.slow
def test_overfits_a_batch(planted: MakeProtocol) -> None:
    model = small(dropout=0.0)
    loader = DataLoader(model.training_set(planted(), num_samples=8, seed=0), batch_size=8)
    batch = next(iter(loader))
    optimizer = torch.optim.Adam(model.parameter_groups(1e-2, 1e-2))
    losses = []
    for _ in range(60):
        parts = model.training_losses(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append({name: float(value.detach()) for name, value in parts.items()})
    assert losses[-1]["ranking"] < 0.1 * losses[0]["ranking"]
    assert losses[-1]["regression"] < 0.5 * losses[0]["regression"]


def test_config_rebuilds_the_model() -> None:
    model = small(margin=0.2)
    twin = AFTSRM(**model.config())
    twin.load_state_dict(model.state_dict())
    assert twin.config() == model.config()
