"""Trains each kind of network, in one process or in those of torchrun. Not a test by itself."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from unittest import mock

import torch

from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.nn.network import OffsetHead, ScoreHead
from relocal_pyg.training import PAPER, RECOMMENDED, TrainingConfig, fit
from relocal_pyg.training.recipe import build_network

KINDS = ("triplets", "lists")


class Double:
    """Features in float64, so that nothing but the method can make two runs differ."""

    def __init__(self, source) -> None:
        self.source, self.dim = source, source.dim

    def read(self, *place) -> torch.Tensor:
        return self.source.read(*place).double()


def main(out: Path, devices: int, kind: str, short: dict[str, int]) -> None:
    sizes = {"train_classes": 4, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 3, "val_videos": 3, "test_videos": 2}
    protocol = synthetic(SyntheticConfig(**sizes, **videos, **short))
    protocol = dataclasses.replace(protocol, features=Double(protocol.features))
    preset = {"triplets": PAPER, "lists": RECOMMENDED}[kind]
    sizes = {
        "triplets": {"head_channels": (6, 4), "dropout": 0.0},
        "lists": {"head_channels": 8, "blind": 0.0},
    }
    network = dataclasses.replace(preset.network, hidden_channels=8, num_steps=6, **sizes[kind])
    seed_torch(0, "weights")
    model = build_network(network, protocol.features.dim)
    for head in (m for m in model.modules() if isinstance(m, ScoreHead | OffsetHead)):
        for place, layer in enumerate(head.mlp):  # a device would see its own share of the batch
            if isinstance(layer, torch.nn.BatchNorm1d):
                head.mlp[place] = torch.nn.LayerNorm(layer.num_features)
    model.double()
    answered = []
    rankings = type(model).rankings

    def counted(self, query, reference, proposals, **more):
        answered.append(1)
        return rankings(self, query, reference, proposals, **more)

    config = TrainingConfig(
        batch_size=4, steps=6, learning_rate=1e-2, validate_every=6, max_validation_pairs=5
    )
    with mock.patch.object(type(model), "rankings", counted):
        result = fit(model, protocol, config=config, out=out, devices=devices, show_progress=False)
    number = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    facts = {"answered": len(answered), "history": result.history}
    (out / f"rank{number}.json").write_text(json.dumps(facts))


def rank(number: int, port: int, out: Path, short: dict[str, int]) -> None:
    """One of two processes, told of the other as torchrun tells those that it starts."""
    facts = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "MASTER_PORT": port}
    facts |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in facts.items()}
    os.environ["TORCHELASTIC_RUN_ID"] = "two"
    torch.set_num_threads(1)
    for kind in KINDS:
        main(out / kind, 2, kind, short)
