"""Arithmetic at its edges: what no feature, however odd, may do to an answer or to the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import FeatureError, RelocalError, RunError
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.models import (
    AFTSRM,
    SST,
    CentreHalf,
    Chance,
    ContrastMatcher,
    CosineMatcher,
    CrossGated,
    FrameLevel,
    MultiGraphRelocalizer,
    RandomMoment,
    VideoLevel,
    WholeReference,
    load_model,
)
from relocal_pyg.models.base import Relocalizer, TrainableRelocalizer
from relocal_pyg.models.network_config import MatcherConfig, NetworkConfig
from relocal_pyg.moments import MAX_LOG_LENGTH, decode_offsets
from relocal_pyg.training import PAPER, RECOMMENDED, Preset, TrainingConfig, fit
from relocal_pyg.training.recipe import build_network

pytestmark = pytest.mark.faults

DIM = 6


def small(preset: Preset) -> NetworkConfig | MatcherConfig:
    heads = (6, 4) if preset is PAPER else 8
    return dataclasses.replace(preset.network, hidden_channels=8, num_steps=6, head_channels=heads)


def network(preset=RECOMMENDED) -> TrainableRelocalizer:
    return build_network(small(preset), DIM)


def closer() -> TrainableRelocalizer:
    model = network()
    model.set_refinement("windows")
    return model


TRAINED: dict[str, Callable[[], torch.nn.Module]] = {
    "paper": lambda: network(PAPER),
    "recommended": network,
    "recommended, finer windows": closer,
    "one step": lambda: MultiGraphRelocalizer(DIM, hidden_channels=4, num_steps=1),
    "video level": lambda: VideoLevel(DIM, 8),
    "SST": lambda: SST(DIM, 8),
    "SST reranked": lambda: SST(DIM, 8, rerank=True),
    "cross-gated": lambda: CrossGated(DIM, 8),
    "AFT+SRM": lambda: AFTSRM(DIM, 8, num_steps=6, widths=(4, 4, 4)),
}
FREE: dict[str, Callable[[], Relocalizer]] = {
    each.__name__: each
    for each in (
        Chance,
        CentreHalf,
        RandomMoment,
        WholeReference,
        FrameLevel,
        CosineMatcher,
        ContrastMatcher,
    )
}

ODD = {
    "zeros": lambda shape: torch.zeros(shape),
    "constant": lambda shape: torch.full(shape, 3.7),
    "negative zero": lambda shape: torch.full(shape, -0.0),
    "denormal": lambda shape: torch.full(shape, 1e-42),
    "tiny": lambda shape: 1e-25 * torch.randn(shape),
    "large": lambda shape: 1e8 * torch.randn(shape),
    "one-hot": lambda shape: torch.eye(max(shape))[: shape[0], : shape[1]],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", [*TRAINED, *FREE])
def test_every_model_answers_odd_features_with_finite_numbers(name: str, kind: str):
    model = {**TRAINED, **FREE}[name]()
    if isinstance(model, torch.nn.Module):
        model.eval()
    for query_steps, steps in ((1, 1), (1, 9), (7, 40), (9, 3)):
        query, reference = ODD[kind]((query_steps, DIM)), ODD[kind]((steps, DIM))
        proposals = torch.tensor([[0.0, steps], [0.0, 0.5], [steps - 1, steps], [0.2, 0.9]])
        for around in (None, reference):
            with torch.no_grad():
                ranking = model.rank(query, reference, proposals, query_video=around)
            assert len(ranking.scores) >= 1
            assert torch.isfinite(ranking.scores).all()
            assert torch.isfinite(ranking.moments).all()
            assert (ranking.scores.diff() <= 0).all()
        for found in model.localize(query, reference, proposals=proposals):
            assert 0 <= found.start <= found.end <= steps


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_float32_answers_are_those_of_float64(name: str):
    torch.manual_seed(1)
    model = TRAINED[name]().eval()
    query, reference = torch.randn(7, DIM), torch.randn(40, DIM)
    proposals = torch.tensor([[0.0, 9.0], [3.0, 17.0], [20.0, 31.0], [8.5, 12.25], [30.0, 40.0]])
    with torch.no_grad():
        single = model.rank(query, reference, proposals)
        model.double()
        double = model.rank(query.double(), reference.double(), proposals.double())
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(single.scores.double(), double.scores.double(), **close)
    # Answers whose scores differ by less than rounding may change places.
    apart = int(double.scores[0] - double.scores[1] > 1e-4)
    torch.testing.assert_close(single.moments[:apart], double.moments[:apart].float(), **close)


@pytest.mark.parametrize("size", [0.0, 10.0, 1e4, 3e38, math.inf])
def test_refinement_is_bounded(size: float):
    proposals = torch.tensor([[3.0, 8.0], [0.0, 1.0]])
    for sign in (-1, 1):
        moments = decode_offsets(proposals, torch.tensor([[0.0, sign * size]]).expand(2, 2))
        assert torch.isfinite(moments).all()
        length = moments[:, 1] - moments[:, 0]
        assert (length <= math.exp(MAX_LOG_LENGTH) * 5.01).all()


def test_a_network_with_extreme_offsets_still_answers_inside_the_video():
    model = network(PAPER).eval()
    with torch.no_grad():
        list(model.network.offset_head.parameters())[-1].fill_(1e30)
    for found in model.localize(torch.randn(5, DIM), torch.randn(30, DIM)):
        assert 0 <= found.start <= found.end <= 30
        assert math.isfinite(found.score)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_localize_refuses_what_is_not_finite(bad: float):
    spoilt = torch.randn(9, DIM)
    spoilt[4, 2] = bad
    sound = torch.randn(9, DIM)
    for query, reference in ((spoilt, sound), (sound, spoilt)):
        with pytest.raises(FeatureError, match="step 4 is not finite"):
            network().localize(query, reference)


class Spoilt:
    """A feature source that turns bad after some reads, as a file that skips its checks could."""

    def __init__(self, source: object, after: int, value: float) -> None:
        self.source, self.left, self.value = source, after, value
        self.dim = source.dim

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> torch.Tensor:
        self.left -= 1
        values = self.source.read(video_id, start, end).clone()
        if self.left < 0:
            values[0, 0] = self.value
        return values


SMALL = TrainingConfig(batch_size=2, steps=6, validate_every=3, max_validation_pairs=3)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    sizes = {"train_classes": 3, "val_classes": 2, "test_classes": 1}
    return synthetic(SyntheticConfig(**sizes, train_videos=3, val_videos=2, test_videos=2))


@pytest.mark.slow
@pytest.mark.parametrize("preset", [PAPER, RECOMMENDED], ids=lambda preset: preset.name)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_bad_features_never_reach_the_weights(protocol, tmp_path: Path, preset, value: float):
    source = Spoilt(protocol.features, 50, value)  # the fingerprint reads some too
    spoilt = Protocol("spoilt", protocol.splits, source, protocol.propose)
    model = build_network(small(preset), source.dim)
    config = dataclasses.replace(SMALL, steps=60)
    # A huge number need not overflow; NaN and infinities always stop the run.
    expected = pytest.raises(RelocalError, match="not finite")
    with contextlib.suppress(RelocalError) if value == 1e38 else expected:
        fit(model, spoilt, config=config, out=tmp_path, show_progress=False)
    for name in ("last", "best"):
        if name == "best" or (tmp_path / name).is_dir():
            kept = load_model(tmp_path / name).state_dict()
            assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(protocol, tmp_path, monkeypatch):
    model = build_network(small(RECOMMENDED), protocol.features.dim)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def root_at_zero(self, batch):  # the value is 0, its slope is not a number
        return {"loss": sum((p * 0).square().sum().sqrt() for p in self.parameters())}

    monkeypatch.setattr(type(model), "training_losses", root_at_zero)
    with pytest.raises(RunError, match="gradient is not finite at step 0"):
        fit(model, protocol, config=SMALL, out=tmp_path, show_progress=False)
    kept = load_model(tmp_path / "last").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())


def deterministic_run() -> str:
    """Hash of the weights after a short training, with deterministic algorithms only."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        sizes = {"train_classes": 3, "val_classes": 2, "test_classes": 1}
        source = synthetic(SyntheticConfig(**sizes, train_videos=3, val_videos=2, test_videos=2))
        seed_torch(0, "weights")
        model = MultiGraphRelocalizer(source.features.dim, hidden_channels=8, num_steps=6)
        fit(model, source, config=SMALL, show_progress=False)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
    data = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(data).hexdigest()


@pytest.mark.slow
def test_deterministic_mode_gives_the_same_bits_twice(script):
    """Here, after other tests, and in a process of its own."""
    assert script("test_numerics.py") == deterministic_run()


def test_lists_and_numpy_arrays_are_features_too():
    rows = np.random.default_rng(0).standard_normal((20, DIM))
    matcher = ContrastMatcher()
    one = matcher.localize(rows[3:8], rows, top_k=1)
    assert one == matcher.localize(rows[3:8].tolist(), rows.tolist(), top_k=1)


if __name__ == "__main__":
    print(json.dumps(deterministic_run()))
