"""Fixtures shared by every test."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "faults"))  # for forked.py

from relocal_pyg.data.features import FeatureStore, write_features
from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share cores: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# A slow machine is no fault: pytest's own time limit is the only one.
# What is drawn is the same everywhere: a failure that CI sees is there for the next one to see.
hypothesis.settings.register_profile("any machine", deadline=None, derandomize=True)
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests get longer than the time limit of all others (pyproject.toml)."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data that is not part of the project; the test skips where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RELOCAL_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set RELOCAL_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def weizmann_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the features of the real clips are kept: each film is read once by all tests."""
    base = tmp_path_factory.getbasetemp()
    # Processes that share the tests share this too.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "weizmann_features"


@pytest.fixture(scope="session")
def cases(shared_data: Path) -> Path:
    """Small files that went wrong once, with known right values; skips where they are absent."""
    folder = shared_data.parent / "cases" / "data"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return folder


@pytest.fixture(scope="session")
def count() -> Callable[[int, int], int]:
    """``count(quick, full)``: how often to try.

    Continuous integration runs few kills and few mutations of each kind; ``RELOCAL_FAULTS=full``,
    as benchmarks.reliability sets it, the counts that the documentation quotes.
    """
    full = os.environ.get("RELOCAL_FAULTS") == "full"
    return lambda quick, many: many if full else quick


@pytest.fixture
def figure() -> Callable[[str, str], None]:
    """Note a measured figure under a goal, for ``benchmarks.reliability`` to read."""

    def note(goal: str, text: str) -> None:
        print(f"{goal}: {text}")
        if "RELOCAL_FIGURES" in os.environ:
            with open(os.environ["RELOCAL_FIGURES"], "a", encoding="utf-8") as stream:
                stream.write(json.dumps([goal, text]) + "\n")

    return note


@pytest.fixture
def constant() -> Callable[..., Any]:
    """A calibration by which a reference and a moment have these probabilities, come what may."""
    from relocal_pyg.models.calibrated import FACTS, Confidence
    from relocal_pyg.models.presence import Logistic

    def always(probability: float) -> Logistic:
        zeros, ones = (0.0,) * len(FACTS), (1.0,) * len(FACTS)
        return Logistic(zeros, ones, zeros, math.log(probability / (1 - probability)))

    def make(presence: float = 0.5, moment: float = 0.5) -> Confidence:
        return Confidence(always(presence), always(moment), 20, 20, 15)

    return make


@pytest.fixture
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands train is narrow, and checked on few pairs."""
    from relocal_pyg.training import presets

    for name in ("recommended", "paper"):
        preset = presets.PRESETS[name]
        alone = {"num_members": 1, "list_length": 8} if name == "recommended" else {}
        network = replace(preset.network, hidden_channels=8, num_steps=6, **alone)
        training = replace(preset.training, batch_size=2, max_validation_pairs=3)
        small = replace(preset, network=network, training=training)
        monkeypatch.setitem(presets.PRESETS, name, small)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def short_videos() -> dict[str, int]:
    """Settings of a SyntheticConfig by which videos are short, and all that is done with them."""
    steps = {"shortest_moment": 4, "usual_moment": 6, "longest_moment": 12}
    return {**steps, "shortest_reference": 24, "longest_reference": 40}


@pytest.fixture(scope="session")
def write_synthetic() -> Callable[..., Protocol]:
    """Write the synthetic data set as real ones come: ActivityNet's annotations, features."""

    def write(folder: Path, config: SyntheticConfig) -> Protocol:
        protocol = synthetic(config)
        write_features(folder / "features.h5", protocol.features.arrays())
        subsets = {"train": "training", "val": "validation", "test": "testing"}
        database: dict[str, Any] = {}
        for split, items in protocol.splits.items():
            for item in items:
                seconds = item.seconds_per_step
                fresh = {"duration": item.num_steps * seconds, "subset": subsets[split]}
                entry = database.setdefault(item.video_id, {**fresh, "annotations": []})
                segment = [step * seconds for step in item.moment]
                entry["annotations"].append({"segment": segment, "label": item.label})
        annotations = {"version": "synthetic", "taxonomy": [], "database": database}
        (folder / "annotations.json").write_text(json.dumps(annotations))
        return replace(protocol, features=FeatureStore(folder / "features.h5"))

    return write
