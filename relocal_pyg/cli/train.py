"""``relocal train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relocal_pyg.cli.options import DataOptions, describe, load_protocol
from relocal_pyg.training.presets import PRESETS, Preset

if TYPE_CHECKING:
    from relocal_pyg.datasets.protocol import Protocol
    from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
    from relocal_pyg.training.engine import FitResult

PresetName = Literal["recommended", "paper"]
Precision = Literal["32", "bf16-mixed", "auto"]


def train(
    out: Annotated[Path, tyro.conf.Positional],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    preset: PresetName = "recommended",
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    precision: Precision | None = None,
    accelerator: str = "cpu",
    devices: int = 1,
) -> None:
    """Train the network of the paper on a protocol; then "relocal evaluate OUT".

    Args:
        out: Run folder to write: checkpoints, settings, history, log.
        data: Which data.
        preset: "recommended", or "paper" for the paper's recipe to the letter.
        steps: Optimiser steps at most, instead of the preset's.
        seed: Seed of weights, samples and dropout.
        resume: Go on with the run that OUT holds.
        precision: Arithmetic, instead of the preset's.
        accelerator: Kind of device: cpu, cuda, auto.
        devices: How many devices.
    """
    chosen = choose_preset(preset, steps, precision)
    print(chosen)
    result = train_network(
        load_protocol(data),
        chosen,
        out,
        seed=seed,
        resume=resume,
        identity={"data": describe(data)},
        accelerator=accelerator,
        devices=devices,
    )
    print(f"best validation score {result.best_score:.3f} at step {result.best_step}")
    print(f"checkpoint: {out / 'best'}\nnext: relocal evaluate {out}")


def choose_preset(name: str, steps: int | None, precision: Precision | None = None) -> Preset:
    """A preset with the few settings that the command line overrides."""
    preset = PRESETS[name]
    training = preset.training
    if steps is not None:
        training = replace(
            training, steps=steps, validate_every=max(1, min(training.validate_every, steps))
        )
    if precision is not None:
        training = replace(training, precision=precision)
    return replace(preset, training=training)


def train_network(
    protocol: Protocol,
    preset: Preset,
    out: Path,
    *,
    seed: int,
    resume: bool,
    identity: dict[str, object],
    accelerator: str = "cpu",
    devices: int = 1,
) -> FitResult:
    """Build the network of a preset with seeded weights and train it."""
    from relocal_pyg.training import fit

    return fit(
        build_network(protocol.features.dim, preset, seed),
        protocol,
        config=preset.training,
        seed=seed,
        out=out,
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        identity={"preset": preset.name, **identity},
    )


def build_network(in_channels: int, preset: Preset, seed: int) -> MultiGraphRelocalizer:
    """The network of a preset, its first weights drawn from ``seed``."""
    from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
    from relocal_pyg.seeding import seed_torch

    seed_torch(seed, "weights")
    return MultiGraphRelocalizer.from_config(in_channels, preset.network)
