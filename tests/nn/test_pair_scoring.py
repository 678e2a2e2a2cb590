from __future__ import annotations

import itertools

import pytest
import torch

from relocal_pyg.models import MultiGraphRelocalizer, NetworkConfig
from relocal_pyg.models.window_scorer import encode_windows
from relocal_pyg.nn.inference import PairScoring, window_states
from relocal_pyg.nn.losses import triplet_loss

OPTIONS = {
    "paper": {},
    "residual": {"residual": True},
    "masked": {"mask_padding": True},
    "masked residual": {"mask_padding": True, "residual": True},
    "mean": {"normalization": "mean"},
    "sym": {"normalization": "sym"},
    "masked mean": {"normalization": "mean", "mask_padding": True, "residual": True},
    "masked sym": {"normalization": "sym", "mask_padding": True},
    "masked sym residual": {"normalization": "sym", "mask_padding": True, "residual": True},
    "exponential": {"weight": "exponential"},
    "masked exponential": {"weight": "exponential", "mask_padding": True, "normalization": "mean"},
    "laplacian": {"weight": "laplacian"},
    "masked laplacian": {"weight": "laplacian", "mask_padding": True},
    "exponential sym": {"weight": "exponential", "normalization": "sym", "mask_padding": True},
    "cnn": {"graph_conv": False},
    "masked residual cnn": {"graph_conv": False, "mask_padding": True, "residual": True},
    "context": {"context": 0.5},
    "similarity": {"similarity": True, "context": 0.5, "mask_padding": True},
    "similarity alone": {"similarity": True, "appearance": False},
    "prior": {"prior": "contrast", "head_norm": "layer"},
    "far reach": {"ks": (2, 9), "num_layers": 2},
}


def perturbed(dtype: torch.dtype = torch.float32, **changes: object) -> MultiGraphRelocalizer:
    """A network with every weight and statistic moved away from where it starts."""
    settings = {"hidden_channels": 10, "num_steps": 7, "head_channels": (6, 5), **changes}
    model = MultiGraphRelocalizer(8, **settings).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running_mean" in name:
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif "running_var" in name:
                buffer.mul_(1 + torch.rand_like(buffer))
    return model.eval()


def sample(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """A query shorter than T, and windows shorter, as long as, and longer than T."""
    starts = torch.arange(0, 24, 2, dtype=dtype)
    windows = [torch.stack([starts, starts + n], dim=1) for n in (1.0, 3.0, 7.0, 11.0)]
    return (
        torch.randn(5, 8, dtype=dtype),
        torch.randn(30, 8, dtype=dtype),
        torch.cat(windows)[torch.randperm(48)],
    )


def check(model: MultiGraphRelocalizer, tolerance: float, scoring: PairScoring | None) -> None:
    dtype = next(model.parameters()).dtype
    short, reference, proposals = sample(dtype)
    for query in (short, torch.randn(12, 8, dtype=dtype)):
        with torch.no_grad():
            scores, offsets = model.score_proposals(query, reference, proposals)
        raw, quick = model.score_fast(query, reference, proposals, scoring=scoring)
        assert scores.std() > 10 * tolerance
        torch.testing.assert_close(torch.tanh(raw), scores, atol=tolerance, rtol=0)
        torch.testing.assert_close(quick, offsets, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_plain_network_for_every_option(name):
    model = perturbed(torch.float64, **OPTIONS[name])
    check(model, 1e-12, model.scoring(chunk=5))
    check(model, 1e-12, None)


@pytest.mark.parametrize(("num_graphs", "num_layers"), list(itertools.product((1, 2, 3), repeat=2)))
@pytest.mark.parametrize("mask_padding", [False, True])
def test_float32_within_1e_5(num_graphs, num_layers, mask_padding):
    ks = tuple(range(1, num_graphs + 1))
    model = perturbed(
        ks=ks, num_layers=num_layers, mask_padding=mask_padding, hidden_channels=32, num_steps=12
    )
    check(model, 1e-5, None)


def planted(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries ``[count, 12, 8]`` of one sign each, and references with one stretch of either."""
    sign = torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1
    direction = torch.linspace(-1, 1, 8)
    references = 0.5 * torch.randn(count, 36, 8)
    references[:, :12] += sign * direction
    references[:, 18:30] -= sign * direction
    return 0.5 * torch.randn(count, 12, 8) + sign * direction, references


def trained(**changes: object) -> MultiGraphRelocalizer:
    settings = {"hidden_channels": 32, "num_steps": 12, "head_channels": (16, 8), **changes}
    model = MultiGraphRelocalizer(8, **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    real = torch.ones(16, 12, dtype=torch.bool)
    for _ in range(60):
        queries, references = planted(16)
        near, far = references[:, :12], references[:, 18:30]
        both = torch.cat([near, far]), queries.repeat(2, 1, 1)
        raw, _ = model.network(both[1], both[0], model.graphs, real.repeat(2, 1), real.repeat(2, 1))
        loss = triplet_loss(*torch.tanh(raw).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["paper", "masked mean"])
def test_bfloat16_of_a_trained_network(name):
    """Within 2e-2, and an answer that the plain network finds as good."""
    model = trained(**OPTIONS[name])
    starts = torch.arange(0, 26.0)
    windows = torch.cat([torch.stack([starts, starts + n], dim=1) for n in (4.0, 10.0)])
    scoring = model.scoring(torch.bfloat16)
    for query, reference in zip(*planted(20), strict=True):
        with torch.no_grad():
            scores, _ = model.score_proposals(query, reference, windows)
        short, _ = model.score_fast(query, reference, windows, scoring=scoring)
        exact, _ = model.score_fast(query, reference, windows)
        assert scores.std() > 0.2
        torch.testing.assert_close(torch.tanh(exact), scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tanh(short), scores, atol=2e-2, rtol=0)
        assert scores[short.argmax()] >= scores.max() - 1e-2


def test_prepared_proposals_give_the_same_scores():
    model = perturbed(torch.float64)
    query, reference, proposals = sample(torch.float64)
    states, mask = encode_windows(model.network, model.inputs, reference, proposals)
    compared = model.inputs.compare(query, reference)
    hidden = model.network.encode_query(compared.query_x[None], compared.query_mask[None])[0]
    scoring = model.scoring(chunk=7)
    prepared = scoring.prepare(states, mask)
    assert [part.hidden.shape[1] for part in prepared] == [7] * 6 + [6]
    one = scoring.score(hidden, compared.query_mask, states, mask)
    two = scoring.score_prepared(hidden, compared.query_mask, prepared)
    torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_a_later_training_step_changes_the_ranking():
    """Nothing of old weights is kept between calls of rank."""
    model = perturbed()
    query, reference, proposals = sample()
    before = model.rank(query, reference, proposals)
    with torch.no_grad():
        for layer in model.network.fusion.layers:
            layer.lin_in.weight.neg_()
        model.network.encoder.proposal_lstm.weight_ih_l0.neg_()
        plain, _ = model.score_proposals(query, reference, proposals)
    after = model.rank(query, reference, proposals)
    torch.testing.assert_close(after.scores, plain.sort(descending=True).values, atol=1e-5, rtol=0)
    assert (after.scores - before.scores).abs().max() > 1e-3


@pytest.mark.parametrize("skip_padding", [False, True])
@pytest.mark.parametrize("extra", [None, 2])
def test_window_states_are_those_of_the_lstm(skip_padding, extra):
    lstm = torch.nn.LSTM(4 + (extra or 0), 6, batch_first=True).double()
    table = torch.randn(9, 4).double()
    positions = torch.randint(0, 9, (11, 5))
    mask = torch.arange(5) < torch.randint(1, 6, (11, 1))
    x = table[positions]
    further = None
    if extra:
        further = torch.randn(11, 5, extra).double() * mask[..., None]
        x = torch.cat([x, further], dim=-1)
    wanted = lstm(x * mask[..., None])[0]
    if skip_padding:
        wanted = wanted * mask[..., None]
    states = window_states(lstm, table, positions, mask, further, skip_padding=skip_padding)
    torch.testing.assert_close(states.transpose(0, 1), wanted, atol=1e-12, rtol=0)


def test_settings_cover_every_field_of_the_network():
    """A new setting has to be added to the options above, or to those that scoring cannot see."""
    unseen = {"dropout", "head_channels", "objective", "negatives", "margin", "rotation"}
    unseen |= {"list_length", "far_proposals", "hidden_channels", "num_steps"}
    unseen |= {"target_temperature", "finer_windows"}
    tested = {key for options in OPTIONS.values() for key in options}
    assert tested | unseen == set(NetworkConfig.__dataclass_fields__)
