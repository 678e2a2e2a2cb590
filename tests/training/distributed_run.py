"""Trains each kind of network, under torchrun: OUT DEVICES. Not a test by itself."""

from __future__ import annotations

import dataclasses
import json
import sys
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


def main(out: Path, devices: int, kind: str) -> None:
    sizes = {"train_classes": 4, "val_classes": 2, "test_classes": 2}
    protocol = synthetic(SyntheticConfig(**sizes, train_videos=3, val_videos=3, test_videos=2))
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in KINDS:
        main(Path(sys.argv[1], each), int(sys.argv[2]), each)
