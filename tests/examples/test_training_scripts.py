from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.models import Chance
from relocal_pyg.training import RECOMMENDED, Preset, recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def small(short_videos) -> SyntheticConfig:
    classes = {"train_classes": 5, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 6, "val_videos": 3, "test_videos": 3}
    return SyntheticConfig(**classes, **videos, **short_videos)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model that needs no training, in place of all that the recipes compare with."""
    monkeypatch.setattr(recipe, "free_models", lambda protocol: {"Chance": Chance()})


def quick() -> Preset:
    sizes = {"num_members": 1, "hidden_channels": 8, "num_steps": 6, "list_length": 8}
    network = dataclasses.replace(RECOMMENDED.network, **sizes)
    training = dataclasses.replace(
        RECOMMENDED.training, steps=2, batch_size=2, validate_every=2, max_validation_pairs=3
    )
    return dataclasses.replace(RECOMMENDED, network=network, training=training)


@pytest.mark.slow
def test_train_anet(load, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path, small):
    example = load("train_anet")
    monkeypatch.setattr(example, "synthetic", lambda: synthetic(small))
    monkeypatch.setitem(example.PRESETS, "recommended", quick())
    arguments = ["--synthetic", "--preset", "recommended", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_anet.py", *arguments, "--steps", "1"])
    example.main()
    assert "Proposal oracle" in capsys.readouterr().out
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_train_anet_needs_data(load, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_anet.py"])
    with pytest.raises(SystemExit):
        load("train_anet").main()
    assert "--root" in capsys.readouterr().err


@pytest.mark.slow
def test_train_custom(
    load, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path, write_synthetic, small
):
    write_synthetic(tmp_path, small)
    example = load("train_custom")
    monkeypatch.setattr(example, "RECOMMENDED", quick())
    arguments = ["--root", str(tmp_path), "--unseen-classes", "2", "--holdout", "video"]
    monkeypatch.setattr(
        sys, "argv", ["train_custom.py", *arguments, "--out", str(tmp_path / "run")]
    )
    example.main()
    printed = capsys.readouterr().out
    assert "test_seen" in printed
    assert "test_unseen" in printed
