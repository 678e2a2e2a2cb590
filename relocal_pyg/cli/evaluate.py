"""``relocal evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relocal_pyg.cli.options import DataOptions, load_protocol, restore
from relocal_pyg.cli.train import PresetName, choose_preset
from relocal_pyg.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from relocal_pyg.data.pairs import PairList
    from relocal_pyg.datasets.protocol import Protocol
    from relocal_pyg.evaluation import Evaluation
    from relocal_pyg.evaluation.comparison import Comparison
    from relocal_pyg.models.base import Relocalizer


def evaluate(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    data: DataOptions | None = None,
    *,
    out: Path | None = None,
    models: Literal["free", "all"] = "free",
    preset: PresetName = "recommended",
    steps: int | None = None,
    seeds: tuple[int, ...] = (0,),
    split: str | None = None,
    limit: int | None = None,
) -> None:
    """Put trained runs and their rivals in one table, on test pairs.

    Args:
        runs: Run folders of "relocal train"; they say themselves which data to use.
        data: Which data, where no run is given.
        out: Folder for the table (markdown, JSON, LaTeX, HTML) and every answer; beside the first
            run where left out.
        models: "free": beside the runs, what needs no training; "all": every system of the paper,
            trained first where no cached checkpoint fits.
        preset: Preset of our own network for "all".
        steps: Optimiser steps at most of every system for "all", instead of its own number.
        seeds: Training seeds for "all".
        split: One test split; every one where left out.
        limit: Use the first LIMIT pairs of the hashed list only.
    """
    options = _data_of(runs) if data is None else data
    folder = out or (runs[0] / "evaluation" if runs else None)
    if folder is None:
        raise UsageError("--out is needed where no run is given")
    protocol = load_protocol(options)
    trained = [(_load(run), _seed_of(run)) for run in runs]
    if models == "all":
        from relocal_pyg.training.sweep import table_one

        trained += table_one(
            protocol, choose_preset(preset, None), seeds, folder / "trained", steps=steps
        )
    names = protocol.test_splits() if split is None else [split]
    for name in names:
        comparison = compare_models(protocol, name, trained, limit=limit)
        publish(comparison, folder / name, protocol)


def compare_models(
    protocol: Protocol,
    split: str,
    trained: list[tuple[Relocalizer, int | None]],
    *,
    limit: int | None = None,
) -> Comparison:
    """Evaluate trained models and those that need no training on the pairs of a split.

    Raises:
        UsageError: There is no such split.
    """
    from relocal_pyg.data.pairs import make_pairs
    from relocal_pyg.evaluation import compare
    from relocal_pyg.evaluation import evaluate as run
    from relocal_pyg.models import Chance, ContrastMatcher, CosineMatcher, FrameLevel

    if split not in protocol.splits:
        raise UsageError(f"no split {split!r}: {', '.join(protocol.splits)}")
    pairs: PairList = make_pairs(
        protocol.splits[split], split=split, protocol=protocol.name, exclude=protocol.exclude
    )
    if limit is not None:
        pairs = pairs.first(limit)
    free: list[Relocalizer] = [Chance(), FrameLevel(), CosineMatcher(), ContrastMatcher()]
    evaluations: list[Evaluation] = [run(model, protocol, pairs) for model in free]
    evaluations += [run(model, protocol, pairs, seed=seed) for model, seed in trained]
    return compare(evaluations)


def publish(comparison: Comparison, folder: Path, protocol: Protocol) -> None:
    """Print the table, and write it and every answer into a folder."""
    from relocal_pyg.evaluation.publish import write_all

    print(write_all(comparison, folder, protocol))
    print(f"report: {folder / 'report.html'}\n")


def _data_of(runs: tuple[Path, ...]) -> DataOptions:
    from relocal_pyg.reading import read_json

    if not runs:
        raise UsageError("give a run folder, or the data to use (--protocol ...)")
    record = read_json(runs[0] / "run.json", CheckpointError)
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        raise CheckpointError("does not say which data it used", file=runs[0] / "run.json")
    return restore(record["data"])


def _load(run: Path) -> Relocalizer:
    from relocal_pyg.models import load_model

    return load_model(run)


def _seed_of(run: Path) -> int | None:
    from relocal_pyg.reading import read_json

    file = run / "run.json"
    return int(read_json(file, CheckpointError)["seed"]) if file.is_file() else None
