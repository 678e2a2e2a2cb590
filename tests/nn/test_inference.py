"""Exact algebra against the network as it is written."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from relocal_pyg.data.pair_data import resample, resample_windows, window_positions
from relocal_pyg.graph import PairGraph
from relocal_pyg.nn import inference
from relocal_pyg.nn.inference import InferenceNetwork
from relocal_pyg.nn.losses import triplet_loss
from relocal_pyg.nn.network import PairNetwork

OPTIONS: dict[str, dict[str, Any]] = {
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
    "far reach": {"ks": (2, 9), "num_layers": 2},
}


class Network:
    """A network, its graphs, and the scores of windows by the way it is written."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        num_steps: int = 7,
        ks: tuple[int, ...] = (1, 2, 3),
        weight: Any = "binary",
        normalization: Any = "none",
        hidden_channels: int = 10,
        head_channels: tuple[int, int] = (6, 5),
        **options: Any,
    ) -> None:
        self.graphs = [PairGraph(num_steps, k, weight, normalization=normalization) for k in ks]
        self.network = PairNetwork(
            8, hidden_channels, num_graphs=len(ks), head_channels=head_channels, **options
        ).to(dtype)
        self.steps, self.dtype = num_steps, dtype

    def perturb(self) -> Network:
        """Move every weight and statistic away from where it starts."""
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in self.network.named_buffers():
                if "running_mean" in name:
                    buffer.add_(0.1 * torch.randn_like(buffer))
                elif "running_var" in name:
                    buffer.mul_(1 + torch.rand_like(buffer))
        self.network.eval()
        return self

    def inference(self, dtype: torch.dtype | None = None) -> InferenceNetwork:
        return InferenceNetwork(self.network, self.graphs, dtype)

    @torch.no_grad()
    def plain(self, query: Tensor, reference: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        x, real = resample(query, self.steps)
        proposal, mask = resample_windows(reference, windows, self.steps)
        count = len(windows)
        return self.network(
            x.expand(count, -1, -1), proposal, self.graphs, real.expand(count, -1), mask
        )

    @torch.no_grad()
    def quick(
        self, query: Tensor, reference: Tensor, windows: Tensor, merged: InferenceNetwork
    ) -> tuple[Tensor, Tensor]:
        x, real = resample(query, self.steps)
        hidden = self.network.encode_query(x[None], real[None])[0]
        where = window_positions(len(reference), windows, self.steps)
        return merged.score_windows(hidden, real, reference, *where)


def sample(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """A query shorter than T, and windows shorter, as long as, and longer than T."""
    starts = torch.arange(0, 24, 2, dtype=dtype)
    windows = [torch.stack([starts, starts + n], dim=1) for n in (1.0, 3.0, 7.0, 11.0)]
    return (
        torch.randn(5, 8, dtype=dtype),
        torch.randn(30, 8, dtype=dtype),
        torch.cat(windows)[torch.randperm(48)],
    )


def check(built: Network, tolerance: float, merged: InferenceNetwork) -> None:
    short, reference, windows = sample(built.dtype)
    for query in (short, torch.randn(12, 8, dtype=built.dtype)):
        raw, offsets = built.plain(query, reference, windows)
        quick, moved = built.quick(query, reference, windows, merged)
        assert torch.tanh(raw).std() > 10 * tolerance
        torch.testing.assert_close(torch.tanh(quick), torch.tanh(raw), atol=tolerance, rtol=0)
        torch.testing.assert_close(moved, offsets, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_plain_network_for_every_option(name, monkeypatch):
    built = Network(torch.float64, **OPTIONS[name]).perturb()
    check(built, 1e-12, built.inference())
    monkeypatch.setattr(inference, "CHUNK_NUMBERS", 1)
    check(built, 1e-12, built.inference())


@pytest.mark.parametrize(("num_graphs", "num_layers"), list(itertools.product((1, 2, 3), repeat=2)))
@pytest.mark.parametrize("mask_padding", [False, True])
def test_float32_within_1e_5(num_graphs, num_layers, mask_padding):
    built = Network(
        ks=tuple(range(1, num_graphs + 1)),
        num_layers=num_layers,
        mask_padding=mask_padding,
        hidden_channels=32,
        num_steps=12,
    ).perturb()
    check(built, 1e-5, built.inference())


def planted(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries ``[count, 12, 8]`` of one sign each, and references with one stretch of either."""
    sign = torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1
    direction = torch.linspace(-1, 1, 8)
    references = 0.5 * torch.randn(count, 36, 8)
    references[:, :12] += sign * direction
    references[:, 18:30] -= sign * direction
    return 0.5 * torch.randn(count, 12, 8) + sign * direction, references


def trained(**options: Any) -> Network:
    built = Network(hidden_channels=32, num_steps=12, head_channels=(16, 8), **options)
    network, graphs = built.network.train(), built.graphs
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    real = torch.ones(16, 12, dtype=torch.bool)
    for _ in range(60):
        queries, references = planted(16)
        near, far = references[:, :12], references[:, 18:30]
        both = torch.cat([near, far]), queries.repeat(2, 1, 1)
        raw, _ = network(both[1], both[0], graphs, real.repeat(2, 1), real.repeat(2, 1))
        loss = triplet_loss(*torch.tanh(raw).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    return built


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "masked mean"])
def test_bfloat16_of_a_trained_network(name):
    """Within 2e-2, and an answer that the plain network finds as good."""
    built = trained(**OPTIONS[name])
    starts = torch.arange(0, 26.0)
    windows = torch.cat([torch.stack([starts, starts + n], dim=1) for n in (4.0, 10.0)])
    merged = built.inference(torch.bfloat16)
    for query, reference in zip(*planted(20), strict=True):
        scores = torch.tanh(built.plain(query, reference, windows)[0])
        short = torch.tanh(built.quick(query, reference, windows, merged)[0])
        exact = torch.tanh(built.quick(query, reference, windows, built.inference())[0])
        assert scores.std() > 0.2
        torch.testing.assert_close(exact, scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(short, scores, atol=2e-2, rtol=0)
        assert scores[short.argmax()] >= scores.max() - 1e-2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("further", [0, 2])
def test_encoded_windows_are_those_of_the_lstm(masked, further):
    network = PairNetwork(4 + further, 6, mask_padding=masked).double().eval()
    merged = InferenceNetwork(network, [PairGraph(5, k) for k in (1, 2, 3)])
    table = torch.randn(9, 4).double()
    positions = torch.randint(0, 9, (11, 5))
    mask = torch.arange(5) < torch.randint(1, 6, (11, 1))
    extra = torch.randn(11, 5, further).double() * mask[..., None]
    x = torch.cat([table[positions], extra], dim=-1) * mask[..., None]
    states = merged.encode(table, positions, mask, extra if further else None)
    wanted = network.encode_proposal(x, mask)
    torch.testing.assert_close(states.transpose(0, 1), wanted, atol=1e-12, rtol=0)
