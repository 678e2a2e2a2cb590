from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import make_pairs
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import CheckpointError, FeatureError, RunError, UsageError
from relocal_pyg.io.record import write_manifest
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.models import SST, ContrastMatcher, MultiGraphRelocalizer, load_model
from relocal_pyg.models.base import TrainableRelocalizer
from relocal_pyg.moments import clip_moments, tiou
from relocal_pyg.nn.losses import listwise_loss
from relocal_pyg.training import PAPER, RECOMMENDED, TrainingConfig, fit, loop
from relocal_pyg.training.loop import learning_rate_factor
from relocal_pyg.training.recipe import build_network
from relocal_pyg.training.validation import (
    SELECTION_THRESHOLDS,
    paired_gain,
    passed,
    selection_score,
    validate,
)

CONFIG = TrainingConfig(
    batch_size=2, steps=8, learning_rate=1e-2, validate_every=4, max_validation_pairs=4
)


@pytest.fixture(scope="module")
def protocol(short_videos) -> Protocol:
    sizes = {"train_classes": 4, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 3, "val_videos": 3, "test_videos": 2}
    return synthetic(SyntheticConfig(**sizes, **videos, **short_videos))


def network(protocol: Protocol, preset=RECOMMENDED, **changes: object) -> TrainableRelocalizer:
    sizes = {"head_channels": 8, "num_members": 1, "list_length": 12}
    sizes = {"head_channels": (6, 4)} if preset is PAPER else sizes
    config = dataclasses.replace(
        preset.network, hidden_channels=8, num_steps=6, **{**sizes, **changes}
    )
    seed_torch(0, "weights")
    return build_network(config, protocol.features.dim)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [PAPER, RECOMMENDED], ids=lambda preset: preset.name)
def test_interrupted_and_resumed_equals_uninterrupted(protocol, preset, tmp_path, monkeypatch):
    whole = network(protocol, preset)
    fit(whole, protocol, config=CONFIG, out=tmp_path / "whole", show_progress=False)

    broken = network(protocol, preset)
    real, calls = type(broken).training_losses, []

    def interrupt_at_the_seventh(self, batch):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(type(broken), "training_losses", interrupt_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, protocol, config=CONFIG, out=tmp_path / "broken", show_progress=False)
    monkeypatch.undo()
    record = json.loads((tmp_path / "broken" / "last" / "progress.json").read_text())
    assert record["progress"]["step"] == 6
    again = network(protocol, preset)
    result = fit(
        again, protocol, config=CONFIG, out=tmp_path / "broken", resume=True, show_progress=False
    )
    assert same_weights(whole, again)
    one = (tmp_path / "whole" / "last" / "model.safetensors").read_bytes()
    two = (tmp_path / "broken" / "last" / "model.safetensors").read_bytes()
    assert one == two
    assert [row["step"] for row in result.history] == [0, 4, 8]


@pytest.mark.slow
def test_training_moves_and_keeps_the_best_validated_weights(tmp_path):
    sizes = {"train_classes": 4, "val_classes": 2, "test_classes": 2}
    protocol = synthetic(SyntheticConfig(**sizes, train_videos=3, val_videos=3, test_videos=2))
    whole = {"num_members": 2, "list_length": RECOMMENDED.network.list_length}
    model = network(protocol, **whole)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    result = fit(model, protocol, config=CONFIG, out=tmp_path / "run", show_progress=False)
    last = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert last["optimizer"]["state"]
    scores = [row["val_score"] for row in result.history]
    for row in result.history:
        ways = [row[f"val_refined_by_{way}"] for way in ("none", "windows")]
        assert row["val_score"] == max(ways)
    assert result.best_score == max(scores)
    assert result.best_step == result.history[scores.index(max(scores))]["step"]
    kept = load_model(tmp_path / "run")
    assert same_weights(kept, model)
    unchanged = all(torch.equal(start[key], value) for key, value in kept.state_dict().items())
    assert unchanged == (result.best_step == 0)
    without_folder = network(protocol, **whole)
    fit(without_folder, protocol, config=CONFIG, show_progress=False)
    assert same_weights(without_folder, model)


@pytest.mark.slow
def test_loss_falls_on_the_samples_it_is_trained_on(protocol):
    model = network(protocol, blind=0.0)
    samples = model.training_set(protocol, num_samples=4, seed=0)
    samples = [samples[number] for number in range(4)]
    batch = Batch.from_data_list(samples)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.training_losses(batch)["ranking"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Cross entropy cannot fall below that of a network that knows every tIoU.
    floor = sum(listwise_loss(s.overlap[None], s.overlap[None]).item() for s in samples) / 4
    assert losses[-1] - floor < 0.7 * (losses[0] - floor)


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_not_overwritten(protocol, tmp_path, monkeypatch):
    fit(network(protocol), protocol, config=CONFIG, out=tmp_path, show_progress=False)
    with pytest.raises(CheckpointError, match="--resume"):
        fit(network(protocol), protocol, config=CONFIG, out=tmp_path, show_progress=False)
    other = dataclasses.replace(CONFIG, learning_rate=1.0)
    with pytest.raises(CheckpointError, match=r"learning_rate = 0\.01, this run has 1\.0: use"):
        fit(
            network(protocol),
            protocol,
            config=other,
            out=tmp_path,
            resume=True,
            show_progress=False,
        )
    splits = {**protocol.splits, "train": protocol.splits["train"][1:]}
    changed = dataclasses.replace(protocol, splits=splits)
    again = {"config": CONFIG, "out": tmp_path, "resume": True, "show_progress": False}
    with pytest.raises(CheckpointError, match="data_sha256"):
        fit(network(protocol), changed, **again)
    kept = loop.load_state  # a run of version 0.2 does not say which data

    def old(folder, model, optimizer, identity):
        shutil.copytree(folder, tmp_path / "old")
        record = json.loads((tmp_path / "old" / "progress.json").read_text())
        del record["identity"]["data_sha256"]
        (tmp_path / "old" / "progress.json").write_text(json.dumps(record))
        write_manifest(tmp_path / "old", "checkpoint")
        return kept(tmp_path / "old", model, optimizer, identity)

    monkeypatch.setattr(loop, "load_state", old)
    assert fit(network(protocol), changed, **again).history[-1]["step"] == 8
    before = (tmp_path / "best" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "last")
    with pytest.raises(CheckpointError, match="holds a finished run"):
        fit(network(protocol), protocol, **again)
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_never_reaches_the_weights(protocol, tmp_path, monkeypatch):
    model = network(protocol)
    monkeypatch.setattr(
        type(model),
        "training_losses",
        lambda self, batch: {"loss": next(self.parameters()).sum() * float("nan")},
    )
    with pytest.raises(RunError, match="not finite at step 0"):
        fit(model, protocol, config=CONFIG, out=tmp_path, show_progress=False)
    assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "last").parameters())


@pytest.mark.slow
def test_early_stopping(protocol):
    config = dataclasses.replace(
        CONFIG, learning_rate=0.0, offset_learning_rate=0.0, steps=40, validate_every=2, patience=3
    )
    result = fit(network(protocol), protocol, config=config, show_progress=False)
    assert result.best_step == 0
    assert [row["step"] for row in result.history] == [0, 2, 4, 6]


def test_validation_is_the_mean_of_micro_accuracies(protocol):
    pairs = make_pairs(protocol.splits["val"], split="val", protocol="synthetic")
    model = ContrastMatcher()
    hits = []
    for pair in pairs.pairs:
        reference = protocol.reference(pair.reference)
        ranking = model.rank(
            protocol.query(pair.query),
            reference,
            protocol.proposals(pair.reference),
            query_video=protocol.reference(pair.query),
        )
        moment = clip_moments(ranking.moments[0], len(reference))
        best = max(tiou(moment, list(truth)).item() for truth in pair.reference.truths)
        # At a threshold is not above it, whatever the rounding.
        hits.append(sum(best > threshold + 1e-6 for threshold in SELECTION_THRESHOLDS))
    wanted = sum(hits) / len(hits) / len(SELECTION_THRESHOLDS)
    found = validate(model, protocol, pairs.pairs)
    assert list(found) == ["none", "refined"]
    for overlaps in found.values():
        assert selection_score(overlaps) == pytest.approx(wanted)
        assert passed(overlaps).mean().item() == pytest.approx(wanted)


@pytest.mark.slow
def test_every_way_to_refine_is_validated_whatever_was_chosen_before(protocol):
    """Weights that are kept refine as validated best, not as earlier weights did."""
    pairs = make_pairs(protocol.splits["val"], split="val", protocol="synthetic")
    model = network(protocol)
    with torch.no_grad():  # heads start at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = []
    for way in model.refinements:
        model.set_refinement(way)
        assert model.refinement == way
        found.append(validate(model, protocol, pairs.pairs[:5]))
        overlaps = []
        for pair in pairs.pairs[:5]:
            reference = protocol.reference(pair.reference)
            ranking = model.eval().rank(
                protocol.query(pair.query),
                reference,
                protocol.proposals(pair.reference),
                query_video=protocol.reference(pair.query),
            )
            moment = clip_moments(ranking.moments[0], len(reference))
            overlaps.append(tiou(moment[None], pair.reference.truths).max().item())
        hits = [overlap > t + 1e-6 for overlap in overlaps for t in SELECTION_THRESHOLDS]
        assert selection_score(found[-1][way]) == pytest.approx(sum(hits) / len(hits))
    for way in model.refinements:
        assert torch.equal(found[0][way], found[1][way])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gains", "informed", "kept"),
    [
        # Better on every one of the videos; better on half of them, worse on the others, by less.
        ([[0.2] * 8, [0.1] * 8], True, 1),
        ([[0.9, -0.4] * 4, [0.1] * 8], True, 2),
        ([[0.9, -0.4] * 4, [0.3, -0.2] * 4], True, 0),
        ([[0.9, -0.4] * 4, [0.3, -0.2] * 4], False, 1),
        ([[-0.1] * 8, [0.0] * 8], True, 0),
    ],
)
def test_an_informed_start_is_kept_unless_beaten_by_more_than_chance(
    protocol, monkeypatch, tmp_path, gains, informed, kept
):
    """Every pair scores 0.5 at step 0, then more or less by half of what its video gains."""
    model = network(protocol)
    monkeypatch.setattr(type(model), "starts_informed", informed)
    pairs = make_pairs(protocol.splits["val"], split="val", protocol="synthetic").pairs
    videos = sorted({pair.reference.video_id for pair in pairs})
    rows = iter([[0.0] * 8, *gains])

    def told(each, *details):
        if isinstance(each, ContrastMatcher):
            return {"none": torch.zeros(len(pairs))}
        row = next(rows)
        found = [0.5 + row[videos.index(p.reference.video_id) % 8] / 2 for p in pairs]
        return dict.fromkeys(model.refinements, torch.tensor(found))

    monkeypatch.setattr(loop, "validate", told)
    monkeypatch.setattr(loop, "selection_score", lambda overlaps: overlaps.mean().item())
    monkeypatch.setattr(loop, "passed", lambda overlaps: overlaps)
    config = dataclasses.replace(CONFIG, steps=2, validate_every=1, max_validation_pairs=999)
    result = fit(model, protocol, config=config, out=tmp_path, show_progress=False)
    assert result.best_step == kept
    value, low, high = result.choice.gain
    assert low <= value <= high
    assert (low > 0) or not (informed and kept)
    kind = "gained" if kept else "its start was kept"
    assert kind in result.choice.bought()
    assert result.choice.videos == len(videos) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "informed", "way"),
    [
        ([0.3] * 8, True, "none"),
        ([0.9, -0.4] * 4, True, "windows"),  # more on average, by chance alone
        ([0.9, -0.4] * 4, False, "none"),
    ],
)
def test_an_informed_start_refines_as_before_unless_another_way_is_better_by_more_than_chance(
    protocol, monkeypatch, gain, informed, way
):
    model = network(protocol)
    model.set_refinement("windows")
    monkeypatch.setattr(type(model), "starts_informed", informed)
    pairs = make_pairs(protocol.splits["val"], split="val", protocol="synthetic").pairs
    videos = sorted({pair.reference.video_id for pair in pairs})
    more = torch.tensor([gain[videos.index(p.reference.video_id) % 8] / 2 for p in pairs])
    found = {"none": 0.5 + more, "windows": torch.full((len(pairs),), 0.5)}
    monkeypatch.setattr(loop, "validate", lambda *_: found)
    monkeypatch.setattr(loop, "selection_score", lambda overlaps: overlaps.mean().item())
    monkeypatch.setattr(loop, "passed", lambda overlaps: overlaps)
    config = dataclasses.replace(CONFIG, steps=1, validate_every=1, max_validation_pairs=999)
    fit(model, protocol, config=config, show_progress=False)
    assert model.refinement == way  # of the start: what comes later is no better, and not kept


def test_few_videos_cannot_beat_an_informed_start(protocol):
    pairs = make_pairs(protocol.splits["val"], split="val", protocol="synthetic").pairs
    videos = sorted({pair.reference.video_id for pair in pairs})
    some = [pair for pair in pairs if pair.reference.video_id in videos[:3]]
    gain = paired_gain([1.0] * len(some), [0.0] * len(some), some)
    assert (gain.value, gain.low) == (1.0, None)
    every = paired_gain([1.0] * len(pairs), [0.0] * len(pairs), pairs)
    assert (every.low, every.high) == (1.0, 1.0)


def test_learning_rate_schedule():
    config = TrainingConfig(warmup=10, steps=110, decay=True)
    factors = [learning_rate_factor(step, config) for step in range(110)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[-1] < 0.001


@pytest.mark.slow
def test_history_settings_and_log_are_written(protocol, tmp_path: Path):
    pytest.importorskip("tensorboard")
    fit(
        network(protocol),
        protocol,
        config=CONFIG,
        seed=5,
        out=tmp_path,
        identity={"note": "x"},
        show_progress=False,
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["seed"], run["note"], run["protocol"]) == (5, "x", "synthetic")
    assert run["training"]["steps"] == 8
    assert len(run["val_pairs"]) == 64
    history = json.loads((tmp_path / "history.json").read_text())
    assert [row["step"] for row in history] == [0, 4, 8]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_protocol_without_validation_pairs_is_refused(protocol):
    splits = {"train": protocol.splits["train"], "val": ()}
    empty = Protocol("x", splits, protocol.features, protocol.propose)
    none = Protocol("x", {"train": splits["train"]}, protocol.features, protocol.propose)
    untrained = dataclasses.replace(protocol, splits={**protocol.splits, "train": ()})
    for wrong, told in (
        (empty, "validation"),
        (none, "no split 'val'"),
        (untrained, "training items"),
    ):
        with pytest.raises(UsageError, match=told):
            fit(network(protocol), wrong, config=CONFIG, show_progress=False)
    with pytest.raises(FeatureError, match="protocol synthetic"):
        fit(SST(protocol.features.dim + 1), protocol, config=CONFIG, show_progress=False)
    with pytest.raises(UsageError, match="decay is no"):
        TrainingConfig(decay="no")  # it was true


def test_a_loss_is_that_of_its_process_whatever_else_is_open(monkeypatch):
    """A process group that somebody opened says nothing of whether gradients are averaged."""
    protocol = synthetic(SyntheticConfig(train_classes=2, val_classes=2, test_classes=2))
    model = MultiGraphRelocalizer(protocol.features.dim, hidden_channels=4, num_steps=5).eval()
    sample = model.training_set(protocol, num_samples=1, seed=0)[0]
    batch = [Batch.from_data_list([side]) for side in sample]
    wanted = model.training_losses(batch)["ranking"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    assert torch.equal(model.training_losses(batch)["ranking"], wanted)


def test_fit_trains_where_gradients_are_off():
    protocol = synthetic(SyntheticConfig(train_classes=2, val_classes=2, test_classes=2))
    with torch.no_grad():
        config = TrainingConfig(steps=1, validate_every=1)
        found = fit(SST(protocol.features.dim, 4), protocol, config=config)
    assert len(found.history) == 2
