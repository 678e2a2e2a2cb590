"""``relocal evaluate`` and ``relocal ablate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relocal_pyg.apps.cli.options import (
    Count,
    DataOptions,
    DeviceName,
    Natural,
    Output,
    PresetName,
    Steps,
    choose_preset,
    load_protocol,
    pick_device,
    restore,
)
from relocal_pyg.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from relocal_pyg.data.items import Protocol
    from relocal_pyg.data.pairs import PairList
    from relocal_pyg.evaluation.tables import Comparison
    from relocal_pyg.training.recipe import Trained


def evaluate(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = (),
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    out: Annotated[Path | None, Output(folder="evaluation")] = None,
    models: Literal["free", "all"] = "free",
    preset: PresetName = "recommended",
    steps: Steps = None,
    seeds: tuple[Natural, ...] = (0,),
    split: str | None = None,
    limit: Steps = None,
    pairs: Path | None = None,
    consistency: bool = False,
    few_shot: tuple[Count, ...] = (),
    instances: tuple[Literal["single", "multi", "superset"], ...] = ("single",),
    device: DeviceName = "auto",
) -> None:
    """Put trained runs and their rivals in one table, on test pairs.

    Args:
        runs: Run folders of "relocal train"; they say themselves which data to use.
        data: Which data, where no run is given or another than the run's is wanted.
        out: Folder for the table (markdown, JSON, LaTeX, HTML) and every answer; beside the first
            run where left out.
        models: "free": beside the runs, what needs no training; "all": every system of the paper
            and MATR, trained first where no cached checkpoint fits.
        preset: Preset of our own network for "all".
        steps: Optimiser steps at most of every system for "all", instead of its own number.
        seeds: Training seeds for "all".
        split: One test split; every one where left out.
        limit: Use LIMIT pairs of the hashed list only, drawn at random by their hash.
        pairs: A fixed pair list instead: a pairs.json of before, or a CSV of
            query,query_start,query_end,reference,start,end in steps of the videos.
        consistency: Tell too how far similarity by step and by clip disagree, and whether systems
            gain where they do.
        few_shot: Ask by episodes instead: every moment of a class by so many examples of it, for
            each number given; "1 5" are the usual two. --limit limits the 1000 episodes.
        instances: For --few-shot: references with one moment, with two or more, or any.
        device: Where networks run; "auto" is cuda where there is one.
    """
    from relocal_pyg.data.pairs import read_pairs
    from relocal_pyg.training import recipe

    folder = out or (runs[0] / "evaluation" if runs else None)
    if folder is None:
        raise UsageError("--out is needed where no run is given")
    options = _data_of(runs) if runs and data == DataOptions() else data
    protocol, chosen = load_protocol(options), choose_preset(preset, None)
    recipe.spare_threads(chosen)
    place = pick_device(device)
    trained = [recipe.Trained.load(run, device=place) for run in runs]
    for run, each in zip(runs, trained, strict=True):
        if each.choice is not None:
            print("\n".join(filter(None, (f"{run}: {each.choice}", each.choice.bought()))))
    if models == "all":
        systems = recipe.table_one(chosen)
        trained += recipe.train_all(
            systems, protocol, seeds, folder / "runs", steps=steps, accelerator=place
        )
    if pairs is not None:
        split = split or "fixed list"
        fixed = read_pairs(pairs, protocol, split).sample(limit)
    for name in protocol.test_splits() if split is None else [split]:
        if few_shot:
            text = recipe.few_shot(
                protocol,
                name,
                trained,
                folder / name,
                shots=few_shot,
                instances=instances,
                count=limit or 1000,
            )
            print(text)
            continue
        asked = recipe.draw_pairs(protocol, name, limit) if pairs is None else fixed
        comparison = recipe.compare_trained(protocol, asked, trained)
        print_table(comparison, asked, folder / name, protocol, trained)
        if consistency:
            print_consistency(comparison, asked, protocol)


def ablate(
    out: Annotated[
        Path, Output(folder="ablation"), tyro.conf.Positional, tyro.conf.arg(metavar="OUT")
    ],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    grid: Literal["layers-graphs", "weights", "normalization"] = "layers-graphs",
    layers: tuple[Count, ...] = (1, 2, 3),
    graphs: tuple[Count, ...] = (1, 2, 3),
    preset: PresetName = "recommended",
    set: tuple[str, ...] = (),  # noqa: A002 - the option's name
    steps: Steps = None,
    seeds: tuple[Natural, ...] = (0,),
    split: str | None = None,
    limit: Steps = None,
    device: DeviceName = "auto",
) -> None:
    """Train the cells of one of the paper's comparisons from scratch, and print the table.

    Finished cells are kept in OUT; run the same line again after an interrupt to go on. The other
    grids find what cells they share with it there.

    Args:
        out: Folder for runs and tables.
        data: Which data.
        grid: "layers-graphs" for the n x k of Table 3, each cell with its CNN, "weights" for the
            edge weights of section 4.4, "normalization" for sums, means and symmetric sums.
        layers: Values of n, the number of multi-graph layers.
        graphs: Values of k: a cell uses the graphs 1..k.
        preset: What every cell shares.
        set: Other settings than the preset's, NAME=VALUE each.
        steps: Optimiser steps at most, instead of the preset's.
        seeds: Training seeds.
        split: Test split; the first one where left out.
        limit: Use LIMIT pairs of the hashed list only, drawn at random by their hash.
        device: Where networks run; "auto" is cuda where there is one.
    """
    from relocal_pyg.training import recipe

    protocol, chosen = load_protocol(data), choose_preset(preset, steps, changes=set)
    recipe.spare_threads(chosen)
    cells = {
        "layers-graphs": lambda: recipe.ablation(chosen, layers, graphs),
        "weights": lambda: recipe.edge_weights(chosen),
        "normalization": lambda: recipe.normalizations(chosen),
    }[grid]()
    place = pick_device(device)
    trained = list(recipe.train_all(cells, protocol, seeds, out / "runs", accelerator=place))
    name = split or protocol.test_splits()[0]
    pairs = recipe.draw_pairs(protocol, name, limit)
    table = name if grid == "layers-graphs" else f"{name}-{grid}"  # none writes over another
    print_table(recipe.compare_trained(protocol, pairs, trained), pairs, out / table, protocol)


def print_table(
    comparison: Comparison,
    pairs: PairList,
    folder: Path,
    protocol: Protocol,
    trained: Sequence[Trained] = (),
) -> None:
    """Print a table, and write it in every form into a folder."""
    from relocal_pyg.evaluation.tables import to_text
    from relocal_pyg.training.recipe import publish

    print(to_text(comparison))
    print(f"report: {publish(comparison, pairs, folder, protocol, trained)}\n")


def print_consistency(comparison: Comparison, pairs: PairList, protocol: Protocol) -> None:
    """Print how far similarity by step and by clip disagree, and who gains where they do."""
    from relocal_pyg.evaluation.consistency import by_disagreement, disagreement, to_markdown

    against = "Contrast matcher"
    amounts = disagreement(protocol, pairs)
    print(to_markdown(amounts, pairs, by_disagreement(comparison, amounts, against), against))


def _data_of(runs: tuple[Path, ...]) -> DataOptions:
    from relocal_pyg.io.read import read_json

    record = read_json(runs[0] / "run.json", CheckpointError)
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        raise CheckpointError("does not say which data it used", file=runs[0] / "run.json")
    return restore(record["data"])
