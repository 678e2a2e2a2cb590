"""The losses of a batch of lists, against the scores of one list after the other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch_geometric.data import Batch

from relocal_pyg.data.samples import SOFT_TARGET, ListDataset
from relocal_pyg.models import MultiGraphRelocalizer
from relocal_pyg.models.listwise import OFFSET_TIOU
from relocal_pyg.training import RECOMMENDED


@pytest.mark.parametrize(("far_proposals", "temperature"), [(0, 0.1), (6, 0.2)])
def test_a_list_is_ranked_over_both_of_its_videos(planted, far_proposals, temperature):
    protocol = planted()
    config = dataclasses.replace(
        RECOMMENDED.network,
        hidden_channels=6,
        num_steps=5,
        far_proposals=far_proposals,
    )
    model = MultiGraphRelocalizer.from_config(protocol.features.dim, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # heads start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    lists = ListDataset(
        protocol,
        num_samples=3,
        seed=0,
        list_length=20,
        far_proposals=far_proposals,
        target_temperature=temperature,
    )
    samples = [lists[number] for number in range(3)]
    ranking, regression = [], []
    for sample in samples:
        raw, offsets = model.score_fast(
            sample.query, sample.reference, sample.proposals, sample.query_video
        )
        grades = sample.overlap
        if far_proposals:
            far, _ = model.score_fast(
                sample.query, sample.far_reference, sample.far_proposals, sample.query_video
            )
            raw, grades = torch.cat([raw, far]), torch.cat([grades, sample.far_overlap])
        target = torch.exp(grades / temperature) / torch.exp(grades / temperature).sum()
        ranking.append(-(target * torch.log(torch.exp(10 * raw) / torch.exp(10 * raw).sum())).sum())
        near = sample.overlap > OFFSET_TIOU
        regression.append((offsets - sample.offsets)[near].abs().sum(dim=1).mean())
    losses = model.training_losses(Batch.from_data_list(samples))
    wanted = torch.stack([torch.stack(ranking).mean(), torch.stack(regression).mean()])
    found = torch.stack([losses["ranking"], losses["regression"]])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["loss"], wanted.sum(), rtol=1e-4, atol=1e-4)


def test_few_items_are_trained_towards_a_soft_target(planted, monkeypatch):
    protocol = planted()
    options = {"num_samples": 1, "seed": 0}
    network = dataclasses.replace(RECOMMENDED.network, target_temperature=0.02)
    model = MultiGraphRelocalizer.from_config(protocol.features.dim, network)
    few = model.training_set(protocol, **options)[0]
    monkeypatch.setattr("relocal_pyg.data.samples.FEW_ITEMS", len(protocol.splits["train"]))
    enough = model.training_set(protocol, **options)[0]
    assert few.temperature.item() == pytest.approx(SOFT_TARGET)
    assert enough.temperature.item() == pytest.approx(0.02)
    assert torch.equal(few.overlap, enough.overlap)
