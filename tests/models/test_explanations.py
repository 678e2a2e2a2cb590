"""Which query steps met which reference steps, and what that did to the score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relocal_pyg.data.pair_data import resample_windows
from relocal_pyg.errors import UsageError
from relocal_pyg.models import (
    ContrastMatcher,
    CosineMatcher,
    MultiGraphMatcher,
    MultiGraphRelocalizer,
)

QUERY, REFERENCE, VIDEO = (
    torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (7, 40, 30)
)
MOMENT = (11.0, 21.0)


def network(**settings: Any) -> MultiGraphRelocalizer:
    torch.manual_seed(3)
    model = MultiGraphRelocalizer(6, **settings).eval()
    # A head that starts at zero would explain nothing but the prior.
    torch.nn.init.normal_(model.network.score_head.mlp[-1].weight, std=0.5)
    return model.double()


@pytest.mark.parametrize("around", [VIDEO, None])
@pytest.mark.parametrize("moment", [MOMENT, (0.0, 3.0), (38.0, 40.0), (0.0, 40.0)])
@pytest.mark.parametrize("matcher", [ContrastMatcher(), ContrastMatcher(0.9, centre_query=False)])
def test_contributions_of_the_contrast_matcher_sum_to_its_score(
    matcher: ContrastMatcher, moment: tuple[float, float], around: Tensor | None
) -> None:
    scores = matcher.rank(QUERY, REFERENCE, torch.tensor([moment]), query_video=around).scores
    table = matcher.explain(QUERY, REFERENCE, moment, around)
    assert table.shape == (7, 40)
    assert table.sum().item() == pytest.approx(scores.item(), abs=1e-6)


def test_a_planted_meeting_is_what_is_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    query, reference = (torch.randn(n, 64, generator=generator) for n in (6, 60))
    for step in range(6):
        reference[20 + step] = 5 * query[step]
    for model in (ContrastMatcher(), MultiGraphMatcher.pretrained()):
        table = model.explain(query, reference, (20.0, 26.0))
        assert table[:, 20:26].argmax(dim=0).tolist() == list(range(6))
        assert table.diagonal(20).sum() > 0.5 * table.clamp(min=0).sum()


@pytest.mark.parametrize("settings", [{}, {"normalization": "mean", "mask_padding": True}])
def test_edges_between_the_videos_are_told_for_a_network_that_compares_no_steps(
    settings: dict[str, Any],
) -> None:
    # T = 40 keeps every step where it is; nodes beyond the clip are pads.
    model = network(hidden_channels=6, num_steps=40, ks=(1, 2), num_layers=1, **settings)
    table = model.explain(QUERY.double(), REFERENCE.double(), MOMENT)
    assert table.shape == (7, 40)
    assert (table[:, :11] == 0).all()
    assert (table[:, 21:] == 0).all()
    assert (table[:, 11:21] != 0).all()
    # With k = 2 alone only steps at an even distance are joined.
    comb = network(hidden_channels=6, num_steps=40, ks=(2,), num_layers=1, **settings)
    joined = comb.explain(QUERY.double(), REFERENCE.double(), MOMENT)[:, 11:21] != 0
    odd = (torch.arange(7)[:, None] - torch.arange(10)) % 2 == 1
    assert torch.equal(joined, ~odd)


def test_edges_add_up_to_what_scaling_all_of_them_does() -> None:
    model = network(hidden_channels=6, num_steps=9, ks=(1, 3))
    query, reference = torch.randn(9, 6).double(), torch.randn(30, 6).double()
    table = model.explain(query, reference, (4.0, 13.0))
    place = torch.tensor([[4.0, 13.0]], dtype=torch.float64)
    across = torch.ones(18, 18, dtype=torch.float64)
    across[:9, 9:] = across[9:, :9] = 0
    matrices = [graph.dense(torch.float64) for graph in model.graphs]

    def score(factor: float) -> float:
        proposal, mask = resample_windows(reference, place, 9)
        sides = (
            model.network.encode_query(query[None], mask),
            model.network.encode_proposal(proposal, mask),
        )
        x = torch.cat(sides, dim=1)[0]
        for layer in model.network.fusion.layers:
            latent = layer.lin_in(x)
            parts = [
                torch.tanh((matrix * (across + factor * (1 - across))) @ conv.lin(latent))
                for matrix, conv in zip(matrices, layer.convs, strict=True)
            ]
            x = layer.lin_out(torch.cat(parts, dim=1))
        return float(model.network.score_head.logits(x.mean(dim=0, keepdim=True)))

    with torch.no_grad():
        change = (score(1 + 1e-5) - score(1 - 1e-5)) / 2e-5
    assert table.sum().item() == pytest.approx(change, abs=1e-8, rel=1e-5)


def test_explaining_leaves_the_model_as_it_was() -> None:
    model = MultiGraphMatcher(hidden_channels=8, num_steps=9).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        table = model.explain(QUERY, REFERENCE, MOMENT)
    assert model.training
    assert not table.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_joins_no_steps_explains_nothing() -> None:
    assert CosineMatcher().explain(QUERY, REFERENCE, MOMENT) is None
    with pytest.raises(UsageError, match="joins no steps"):
        MultiGraphRelocalizer(6, hidden_channels=4, graph_conv=False).explain(
            QUERY, REFERENCE, MOMENT
        )
