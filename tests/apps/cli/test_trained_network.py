"""Videos are searched with features made as those that a model learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("efficientnet_lite_pytorch")

from relocal_pyg.apps.cli.options import (
    BackboneOptions,
    describe_extraction,
    load_backbone,
    load_network,
)
from relocal_pyg.errors import CheckpointError, FeatureError, RelocalError, UsageError
from relocal_pyg.models import ContrastMatcher, MultiGraphRelocalizer
from relocal_pyg.video import fit_pca

NONE = BackboneOptions()


def reduced_to(folder: Path) -> BackboneOptions:
    """The network followed by a PCA to 5 channels."""
    torch.manual_seed(0)
    fit_pca([torch.randn(20, 1280)], 5).save(folder / "pca.safetensors")
    return BackboneOptions(pca=folder / "pca.safetensors")


@pytest.fixture
def reduced(tmp_path: Path) -> BackboneOptions:
    return reduced_to(tmp_path)


@pytest.fixture
def run(tmp_path: Path, reduced: BackboneOptions) -> Path:
    """A run folder as training on videos leaves it, at 4 frames a second."""
    MultiGraphRelocalizer(5, num_steps=4, hidden_channels=4).save(tmp_path / "run" / "best")
    features = describe_extraction(reduced, load_backbone(reduced), 4.0)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"seed": 0, "features": features}))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run says of its features."""
    reduced = reduced_to(tmp_path_factory.mktemp("network"))
    return describe_extraction(reduced, load_backbone(reduced), 4.0)


def model(width: int = 5) -> MultiGraphRelocalizer:
    return MultiGraphRelocalizer(width, num_steps=4, hidden_channels=4)


@pytest.mark.slow
def test_the_run_says_which_network_and_rate(run, reduced):
    for place in (run, run / "best"):
        backbone, rate = load_network(NONE, None, place, model())
        assert (backbone.dim, rate) == (5, 4.0)
        assert backbone.name == load_backbone(reduced).name
    assert load_network(NONE, 2.0, run, model())[1] == 2.0
    # The same network, said aloud.
    assert load_network(reduced, None, run, model())[1] == 4.0


@pytest.mark.slow
def test_without_a_run_of_videos_the_options_decide(run, tmp_path):
    assert load_network(NONE, None, None, ContrastMatcher())[1] is None
    assert load_network(NONE, None, tmp_path / "elsewhere", model(1280))[0].dim == 1280
    (run / "run.json").write_text('{"seed": 0}')  # trained on a feature file
    assert load_network(NONE, 3.0, run, model(1280))[1] == 3.0
    with pytest.raises(FeatureError, match="has 1280 channels and the model takes 5") as caught:
        load_network(NONE, None, run, model())
    assert str(caught.value).startswith(f"{run}: ")


@pytest.mark.slow
def test_another_network_is_refused(run, tmp_path):
    fit_pca([torch.randn(20, 1280)], 5).save(tmp_path / "other.safetensors")
    options = BackboneOptions(pca=tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="was trained on features of .*: leave --backbone"):
        load_network(options, None, run, model())
    # A file that changed since is another network too.
    (tmp_path / "other.safetensors").rename(tmp_path / "pca.safetensors")
    with pytest.raises(UsageError, match="was trained on features of"):
        load_network(NONE, None, run, model())
    (tmp_path / "pca.safetensors").unlink()
    with pytest.raises(RelocalError, match="pca.safetensors"):
        load_network(NONE, None, run, model())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"rate_hz": 0},
        {"rate_hz": "fast"},
        {"network": {}},
        {"network": {"backbone": "c3d", "weights": None}},
        {"network": [1]},
    ],
)
def test_a_damaged_record_is_one_error(tmp_path, features, change: dict[str, Any]):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 0, "features": {**features, **change}}))
    with pytest.raises(CheckpointError, match="how its features were made"):
        load_network(NONE, None, tmp_path, model())
