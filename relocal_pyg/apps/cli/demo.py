"""``relocal demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from relocal_pyg.apps.cli.evaluate import print_table
from relocal_pyg.apps.cli.options import (
    DataOptions,
    Natural,
    Output,
    PresetName,
    Steps,
    choose_preset,
    describe,
    load_protocol,
)


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
    from relocal_pyg.training import recipe

    data = DataOptions(protocol="synthetic", split_seed=seed)
    protocol, chosen, run = load_protocol(data), choose_preset(preset, steps), out / "run"
    counts = ", ".join(f"{name} {len(items)}" for name, items in protocol.splits.items())
    print(f"synthetic data, seed {seed}: {counts} items; test classes are unseen in training")
    print(chosen)
    result = recipe.train(
        protocol,
        chosen,
        run,
        seed=seed,
        resume=True,
        calibration_pairs=30,
        identity={"data": describe(data)},
    )
    print(result.calibration)
    trained = [recipe.Trained.load(run)]
    pairs = recipe.draw_pairs(protocol, "test")
    comparison = recipe.compare_trained(protocol, pairs, trained, max_nulls=25)
    print_table(comparison, pairs, out / "evaluation", protocol, trained)
    print(f"checkpoint: {run / 'best'}")
