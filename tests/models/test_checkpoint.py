"""What is read of a checkpoint that came from anywhere, and of one that an older version wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.io.record import write_manifest
from relocal_pyg.io.tensors import save_tensors
from relocal_pyg.models import (
    AFTSRM,
    SST,
    CrossGated,
    MultiGraphMatcher,
    MultiGraphRelocalizer,
    VideoLevel,
    load_model,
)
from relocal_pyg.models.checkpoint import checked_config, load_weights
from relocal_pyg.search.storage import fingerprint

MODELS = {
    "paper": lambda: MultiGraphRelocalizer(8, hidden_channels=6, num_steps=5, head_channels=(4, 3)),
    "ours": lambda: MultiGraphMatcher(hidden_channels=6, num_steps=5, head_channels=4),
    "video level": lambda: VideoLevel(8, 6),
    "SST": lambda: SST(8, 6),
    "cross-gated": lambda: CrossGated(8, 6),
    "AFT+SRM": lambda: AFTSRM(8, 6, num_steps=6, widths=(4, 4, 4)),
}


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the record of a checkpoint, and its manifest to fit."""
    file = folder / "config.json"
    record = json.loads(file.read_text())
    record["config"].update(changes.pop("config", {}))
    file.write_text(json.dumps({**record, **changes}))
    write_manifest(folder, "model")


def test_weights_of_doubles_come_back_as_doubles(tmp_path: Path):
    model = MultiGraphRelocalizer(4, hidden_channels=6, num_steps=5).double()
    model.save(tmp_path / "double")
    loaded = load_model(tmp_path / "double")
    assert fingerprint(loaded) == fingerprint(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_as_it_was(tmp_path: Path, name: str):
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    query, reference = torch.randn(4, 8), torch.randn(30, 8)
    assert again.localize(query, reference) == model.localize(query, reference)
    assert again.config() == model.config()
    assert not again.training
    assert {p.device.type for p in again.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_allocated_for_settings_that_the_weights_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """A checkpoint of kilobytes that asks for gigabytes."""
    MODELS[name]().save(tmp_path / "model")
    rewrite(tmp_path / "model", config={"hidden_channels": 90_000})

    def allocated(*details: object, **options: object) -> None:
        raise AssertionError("memory was taken")

    monkeypatch.setattr(torch.nn.Module, "to_empty", allocated)
    with pytest.raises(CheckpointError, match="has shape"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_channels": 10**9},
        {"hidden_channels": -5},
        {"num_layers": 10**6},
        {"num_layers": 0},
        {"num_steps": 10**9},
        {"ks": list(range(1, 10_000))},
        {"ks": [10**12]},
        {"ks": []},
        {"head_channels": [10**9, 4]},
        {"dropout": 1e300},
        {"head_channels": "ab"},
        {"weight": "heavy"},
    ],
)
def test_settings_out_of_range_are_one_line(tmp_path: Path, settings: dict[str, Any]):
    MODELS["paper"]().save(tmp_path / "model")
    rewrite(tmp_path / "model", config=settings)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"in_channels": 150_528}, {"num_layers": 65}, {"ks": range(1, 66)}, {"margin": 1e6}],
)
def test_what_could_not_be_read_again_is_not_trained(settings: dict[str, Any]):
    with pytest.raises(UsageError, match=f"^{next(iter(settings))} "):
        MultiGraphRelocalizer(**{"in_channels": 4, "hidden_channels": 2, **settings})


def test_a_training_starts_from_sound_weights_of_its_own_kind(tmp_path: Path):
    """A flipped bit was trained on in silence."""
    model = MODELS["paper"]()
    model.save(tmp_path / "a")
    load_weights(model, tmp_path / "a")
    SST(4, hidden_channels=2).save(tmp_path / "b")
    with pytest.raises(CheckpointError, match="is of SST, MultiGraphRelocalizer wanted"):
        load_weights(model, tmp_path / "b")
    file = tmp_path / "a" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(model, tmp_path / "a")


def test_what_the_manifest_does_not_list_is_not_read(tmp_path: Path):
    model = MODELS["paper"]()
    model.save(tmp_path / "model")
    manifest = tmp_path / "model" / "manifest.json"
    manifest.write_text(json.dumps({"files": {}}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_model(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    text = config.read_text()
    config.unlink()
    write_manifest(tmp_path / "model", "model")
    config.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: is not listed"):
        checked_config(tmp_path / "model")


#: What a network's record held before ours was a model of its own.
BEFORE = {
    "residual": False,
    "head_norm": "batch",
    "objective": "triplet",
    "prior": "none",
    "context": 0.0,
    "similarity": False,
    "appearance": True,
    "rotation": False,
    "list_length": 48,
    "far_proposals": 0,
    "target_temperature": 0.1,
    "finer_windows": False,
}


def as_before(model: MultiGraphRelocalizer, folder: Path, **settings: Any) -> None:
    """Write a checkpoint as format 1 had it."""
    model.save(folder)
    weights = {**model.state_dict(), "refines": torch.tensor(1)}
    save_tensors(weights, folder / "model.safetensors")
    rewrite(folder, config={**BEFORE, **settings}, format=1)


def test_the_paper_s_network_of_an_older_version_gives_the_same_scores(tmp_path: Path):
    model = MODELS["paper"]().eval()
    as_before(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    query, reference = torch.randn(4, 8), torch.randn(30, 8)
    windows = torch.tensor([[0.0, 4.0], [3.0, 9.0], [10.0, 30.0]])
    old, new = (each.rank(query, reference, windows) for each in (model, again))
    assert torch.equal(old.scores, new.scores)
    assert torch.equal(old.moments, new.moments)


def test_a_matcher_from_when_it_was_one_network_gives_the_same_scores(tmp_path: Path):
    model = MultiGraphMatcher(num_members=1, hidden_channels=8, num_steps=6).eval()
    torch.nn.init.normal_(model.members[0].head[-1].weight)
    model.save(tmp_path / "model")
    named = {name.removeprefix("members.0."): w for name, w in model.state_dict().items()}
    save_tensors(named, tmp_path / "model" / "model.safetensors")
    config = tmp_path / "model" / "config.json"
    record = json.loads(config.read_text())
    del record["config"]["num_members"]
    config.write_text(json.dumps(record))
    rewrite(tmp_path / "model", format=2)
    again = load_model(tmp_path / "model")
    query, reference = torch.randn(4, 8), torch.randn(30, 8)
    windows = torch.tensor([[0.0, 4.0], [3.0, 9.0], [10.0, 30.0]])
    old, new = (each.rank(query, reference, windows) for each in (model, again))
    assert torch.equal(old.scores, new.scores)


@pytest.mark.parametrize("settings", [{"prior": "contrast"}, {"residual": True}])
def test_a_network_with_options_that_are_gone_is_refused(tmp_path: Path, settings: dict[str, Any]):
    as_before(MODELS["paper"](), tmp_path / "model", **settings)
    (option,) = settings
    with pytest.raises(CheckpointError, match=rf"\({option}\): train again"):
        load_model(tmp_path / "model")


@pytest.mark.slow
def test_numbers_in_buffers_that_make_no_sense_do_not_break_an_answer(tmp_path: Path):
    query, reference = torch.randn(4, 8), torch.randn(30, 8)
    for name, buffer in (("SST", "stride"), ("cross-gated", "decoded_steps")):
        for value in (-7, 0, 2**40):
            model = MODELS[name]().eval()
            getattr(model, buffer).fill_(value)
            model.save(tmp_path / "model")
            assert load_model(tmp_path / "model").localize(query, reference)


def test_the_default_type_of_numbers_does_not_change_a_model_that_is_read():
    wanted = load_model("pretrained").state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        read = load_model("pretrained")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {name: value.dtype for name, value in read.state_dict().items()} == {
        name: value.dtype for name, value in wanted.items()
    }
