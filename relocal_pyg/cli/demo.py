"""``relocal demo``."""

from __future__ import annotations

from pathlib import Path

from relocal_pyg.cli.options import DataOptions, describe, load_protocol
from relocal_pyg.cli.train import PresetName, choose_preset, train_network


def demo(
    out: Path = Path("relocal_demo"),
    *,
    steps: int | None = None,
    preset: PresetName = "recommended",
    seed: int = 0,
) -> None:
    """Make synthetic data, train on it, test on unseen classes, write a report.

    Args:
        out: Folder to write.
        steps: Optimiser steps at most, instead of the preset's.
        preset: "recommended" or "paper".
        seed: Seed of data, weights, samples and dropout.
    """
    from relocal_pyg.cli.evaluate import compare_models, publish
    from relocal_pyg.models import load_model

    data = DataOptions(protocol="synthetic", split_seed=seed)
    protocol = load_protocol(data)
    counts = ", ".join(f"{name} {len(items)}" for name, items in protocol.splits.items())
    print(f"synthetic data, seed {seed}: {counts} items; test classes are unseen in training")
    chosen = choose_preset(preset, steps)
    print(chosen)
    run = out / "run"
    train_network(
        protocol, chosen, run, seed=seed, resume=(run / "last").is_dir(),
        identity={"data": describe(data)},
    )
    comparison = compare_models(protocol, "test", [(load_model(run), seed)])
    publish(comparison, out / "evaluation", protocol)
    print(f"checkpoint: {run / 'best'}")
