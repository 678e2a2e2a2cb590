"""``relocal example`` and ``relocal demo``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import tyro

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


def example(
    folder: Annotated[Path, Output(), tyro.conf.Positional] = Path("films"),
) -> None:
    """Draw two short films into FOLDER, to try a search on, and say how.

    Args:
        folder: Gets park.mp4, 12 s, and street.mp4, 30 s.
    """
    from relocal_pyg.video.example import write_example

    park, street = map(str, write_example(folder))
    command = ["relocal", "find", park, street, "--query-start", "4", "--query-end", "8"]
    print("In the park somebody does jumping jacks from 4 to 8 s. Find them in the street:")
    print(shlex.join([*command, "--report", "report.html"]))


def demo(
    out: Annotated[Path, Output(folder="demo")] = Path("relocal_demo"),
    *,
    steps: Steps = None,
    preset: PresetName = "recommended",
    seed: Natural = 0,
) -> None:
    """Make synthetic data, train on it, test on unseen classes, write a report.

    What is seen: rows of numbers in place of pictures, in which the actions of made-up people
    recur; a network learns from some actions, then has to find others, beside simpler ways.

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
    print(
        "No films here: made-up numbers in place of pictures, in which actions recur. A network "
        "learns from some of them, then has to find others that it never saw; the table sets it "
        "beside simpler ways."
    )
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
