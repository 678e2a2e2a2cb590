"""Many models, one protocol: each trained once, kept by a hash of all that made it, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from relocal_pyg.data.items import Protocol
from relocal_pyg.errors import CheckpointError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.io.write import write_json
from relocal_pyg.models.base import TrainableRelocalizer
from relocal_pyg.models.baselines.aft_srm import AFTSRM
from relocal_pyg.models.baselines.cross_gated import CrossGated
from relocal_pyg.models.baselines.sst import SST
from relocal_pyg.models.baselines.video_level import VideoLevel
from relocal_pyg.models.checkpoint import load_model
from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
from relocal_pyg.models.network_config import NetworkConfig
from relocal_pyg.training.loop import fit
from relocal_pyg.training.presets import PAPER, Preset, TrainingConfig

#: Adam at 1e-3 with gradients clipped at 5, which the public code of the baselines uses.
BASELINE = TrainingConfig(
    batch_size=16,
    steps=600,
    learning_rate=1e-3,
    offset_learning_rate=1e-3,
    weight_decay=0.0,
    clip_norm=5.0,
    validate_every=100,
    patience=5,
    max_validation_pairs=100,
)


@dataclass(frozen=True)
class System:
    """One row of a table: a name, how to build the model, and how to train it."""

    title: str
    build: Callable[[int], TrainableRelocalizer]
    training: TrainingConfig


@dataclass(frozen=True)
class Trained:
    """A trained model, the seed it was trained with and how training went."""

    title: str
    seed: int
    model: TrainableRelocalizer
    history: tuple[dict[str, float], ...] = ()

    @classmethod
    def load(cls, title: str, seed: int, run: Path) -> Trained:
        """Read the kept weights and the history of a run folder.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        history = read_json(run / "history.json", CheckpointError)
        return cls(title, seed, load_model(run), tuple(history))


def table_one(preset: Preset) -> list[System]:
    """The systems of the paper's Table 1 that have weights, ours by the given preset.

    Our network by the paper's own recipe is a row of its own where the preset is another one.
    """
    ours = preset.network
    systems = [
        System("Ours", _network(ours), preset.training),
        System("Ours (CNN)", _network(replace(ours, graph_conv=False)), preset.training),
        System(CrossGated.title, CrossGated, BASELINE),
        System(AFTSRM.title, AFTSRM, BASELINE),
        System(SST.title, SST, BASELINE),
        System("SST + cosine", lambda channels: SST(channels, rerank=True), BASELINE),
        System(VideoLevel.title, VideoLevel, BASELINE),
    ]
    if preset.name != PAPER.name:
        systems.insert(
            1, System("Ours, the paper's recipe", _network(PAPER.network), PAPER.training)
        )
    return systems


def ablation(preset: Preset, layers: Sequence[int], graphs: Sequence[int]) -> list[System]:
    """The grid of the paper's Table 3: n layers by graphs k = 1..K.

    Args:
        preset: What every cell shares.
        layers: Values of n.
        graphs: Values of K; a cell uses the graphs 1..K.
    """
    return [
        System(
            f"n={layer}, k={graph}",
            _network(replace(preset.network, num_layers=layer, ks=tuple(range(1, graph + 1)))),
            preset.training,
        )
        for layer in layers
        for graph in graphs
    ]


def edge_weights(preset: Preset) -> list[System]:
    """The three edge weights of section 4.4."""
    kinds: tuple[Literal["binary", "exponential", "laplacian"], ...]
    kinds = ("binary", "exponential", "laplacian")
    return [
        System(
            f"{kind} weights",
            # Laplacian weights are normalised already.
            _network(replace(preset.network, weight=kind, normalization="none")),
            preset.training,
        )
        for kind in kinds
    ]


def train_all(
    systems: Sequence[System],
    protocol: Protocol,
    seeds: Sequence[int],
    folder: Path,
    *,
    steps: int | None = None,
) -> Iterator[Trained]:
    """Train each system with each seed, or load it where the same run was finished before.

    A run is named by a hash of its settings, its seed and the protocol's items and files; one that
    was interrupted goes on where it stopped.

    Args:
        systems: What to train.
        protocol: What on.
        seeds: One run each.
        folder: Where runs are kept.
        steps: Optimiser steps at most, instead of each system's own number.
    """
    data = fingerprint(protocol)
    for system in systems:
        training = system.training
        if steps is not None:
            most = min(training.steps, steps)
            every = max(1, min(training.validate_every, most))
            training = replace(training, steps=most, validate_every=every)
        for seed in seeds:
            seed_torch(seed, "weights")
            model = system.build(protocol.features.dim)
            facts = {
                "model": type(model).__name__,
                "config": model.config(),
                "training": asdict(training),
                "seed": seed,
                "data": data,
            }
            run = folder / _digest(facts)
            if not (run / "finished.json").is_file():
                print(f"{system.title}, seed {seed}: training in {run}")
                fit(model, protocol, config=training, seed=seed, out=run, resume=True)
                write_json(run / "finished.json", {"title": system.title, **facts})
            yield Trained.load(system.title, seed, run)


def fingerprint(protocol: Protocol) -> str:
    """A hash of a protocol's name, its items and what it says about its source."""
    items = {
        split: [asdict(item) for item in sorted(members)]
        for split, members in protocol.splits.items()
    }
    return _digest({"name": protocol.name, "items": items, "about": protocol.about})


def _network(config: NetworkConfig) -> Callable[[int], TrainableRelocalizer]:
    return lambda channels: MultiGraphRelocalizer.from_config(channels, config)


def _digest(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
