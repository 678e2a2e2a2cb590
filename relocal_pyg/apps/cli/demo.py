"""``relocal demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from relocal_pyg.apps.cli.options import (
    DataOptions,
    Natural,
    Output,
    Steps,
    describe,
    load_protocol,
)
from relocal_pyg.apps.cli.train import PresetName, choose_preset, train_network


def demo(
    out: Annotated[Path, Output(folder="demo")] = Path("relocal_demo"),
    *,
    steps: Steps = None,
    preset: PresetName = "recommended",
    seed: Natural = 0,
) -> None:
    """Make synthetic data, train on it, test on unseen classes, write a report.

    Args:
        out: Folder to write.
        steps: Optimiser steps at most, instead of the preset's.
        preset: "recommended" or "paper".
        seed: Seed of data, weights, samples and dropout.
    """
    from relocal_pyg.apps.cli.evaluate import draw_pairs, evaluate_trained, publish
    from relocal_pyg.models import load_model
    from relocal_pyg.training.sweep import Trained

    data = DataOptions(protocol="synthetic", split_seed=seed)
    protocol = load_protocol(data)
    counts = ", ".join(f"{name} {len(items)}" for name, items in protocol.splits.items())
    print(f"synthetic data, seed {seed}: {counts} items; test classes are unseen in training")
    chosen = choose_preset(preset, steps)
    print(chosen)
    run = out / "run"
    result = train_network(
        protocol,
        chosen,
        run,
        seed=seed,
        resume=True,
        identity={"data": describe(data)},
        calibration_pairs=30,
    )
    model = load_model(run)
    trained = [Trained(f"{model.title} ({chosen.name})", seed, model, tuple(result.history))]
    pairs = draw_pairs(protocol, "test")
    comparison = evaluate_trained(protocol, pairs, trained, max_nulls=25)
    publish(comparison, pairs, out / "evaluation", protocol, trained)
    print(f"checkpoint: {run / 'best'}")
