"""``relocal ablate``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relocal_pyg.apps.cli.options import DataOptions, Natural, Output, Steps, load_protocol, restore
from relocal_pyg.apps.cli.train import PresetName, choose_preset, spare_threads
from relocal_pyg.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from relocal_pyg.data.items import Protocol
    from relocal_pyg.data.pairs import PairList
    from relocal_pyg.evaluation import Evaluation
    from relocal_pyg.evaluation.tables import Comparison
    from relocal_pyg.models.base import Relocalizer
    from relocal_pyg.training.sweep import Trained


#: Validation pairs for the probabilities of a model that comes without.
CALIBRATION_PAIRS = 100


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
) -> None:
    """Put trained runs and their rivals in one table, on test pairs.

    Args:
        runs: Run folders of "relocal train"; they say themselves which data to use.
        data: Which data, where no run is given or another than the run's is wanted.
        out: Folder for the table (markdown, JSON, LaTeX, HTML) and every answer; beside the first
            run where left out.
        models: "free": beside the runs, what needs no training; "all": every system of the paper,
            trained first where no cached checkpoint fits.
        preset: Preset of our own network for "all".
        steps: Optimiser steps at most of every system for "all", instead of its own number.
        seeds: Training seeds for "all".
        split: One test split; every one where left out.
        limit: Use LIMIT pairs of the hashed list only, drawn at random by their hash.
    """
    options = _data_of(runs) if runs and data == DataOptions() else data
    from relocal_pyg.training.choice import read_choice

    folder = out or (runs[0] / "evaluation" if runs else None)
    if folder is None:
        raise UsageError("--out is needed where no run is given")
    protocol, chosen = load_protocol(options), choose_preset(preset, None)
    spare_threads(chosen)
    trained = [_load(run) for run in runs]
    for run in runs:
        choice = read_choice(run)
        if choice is not None:
            print(f"{run}: {choice}")
    if models == "all":
        from relocal_pyg.training.sweep import table_one, train_all

        systems = table_one(chosen)
        trained += train_all(systems, protocol, seeds, folder / "runs", steps=steps)
    names = protocol.test_splits() if split is None else [split]
    for name in names:
        pairs = draw_pairs(protocol, name, limit)
        publish(evaluate_trained(protocol, pairs, trained), pairs, folder / name, protocol, trained)


def draw_pairs(protocol: Protocol, split: str, limit: int | None = None) -> PairList:
    """The hashed pair list of a split, the same on every machine.

    Raises:
        UsageError: There is no such split.
    """
    from relocal_pyg.data.pairs import make_pairs

    if split not in protocol.splits:
        raise UsageError(f"no split {split!r}: {', '.join(protocol.splits)}")
    return make_pairs(
        protocol.splits[split], split=split, protocol=protocol.name, exclude=protocol.exclude
    ).sample(limit)


def draw_nulls(protocol: Protocol, pairs: PairList, limit: int | None = None) -> PairList:
    """References without the action for the queries of a pair list, or for some of them."""
    from relocal_pyg.data.pairs import make_null_pairs

    asked = {pair.query.item_id for pair in pairs.pairs}
    nulls = make_null_pairs(protocol, pairs.split)
    chosen = tuple(pair for pair in nulls.pairs if pair.query.item_id in asked)
    return dataclasses.replace(nulls, pairs=chosen).sample(limit)


def evaluate_trained(
    protocol: Protocol,
    pairs: PairList,
    trained: Sequence[Trained],
    max_nulls: int | None = None,
) -> Comparison:
    """Evaluate trained models, and those that need no training, on a pair list.

    The contrast matcher is calibrated on validation pairs; trained models come calibrated, or are
    ranked by their scores alone: those pairs cost a big network more than the test does.

    Args:
        protocol: Where features and proposals are.
        pairs: What is asked.
        trained: Trained models.
        max_nulls: References without the action at most; one a pair where None.
    """
    from relocal_pyg.evaluation import compare
    from relocal_pyg.evaluation import evaluate as run
    from relocal_pyg.models import Chance, ContrastMatcher, CosineMatcher, FrameLevel
    from relocal_pyg.models.calibrated import calibrate

    matcher = ContrastMatcher()
    free: list[Relocalizer] = [Chance(), FrameLevel(), CosineMatcher(), matcher]
    with suppress(UsageError):  # too few validation pairs: scores alone are shown
        matcher.calibration = calibrate(matcher, protocol, limit=CALIBRATION_PAIRS)
    nulls = draw_nulls(protocol, pairs, max_nulls)
    evaluations: list[Evaluation] = [run(model, protocol, pairs, nulls=nulls) for model in free]
    evaluations += [
        run(each.model, protocol, pairs, nulls=nulls, title=each.title, seed=each.seed)
        for each in trained
    ]
    return compare(evaluations)


def publish(
    comparison: Comparison,
    pairs: PairList,
    folder: Path,
    protocol: Protocol,
    trained: Sequence[Trained] = (),
) -> None:
    """Print the table; write it in every form, the pair list and every answer into a folder."""
    from relocal_pyg.evaluation import tables
    from relocal_pyg.evaluation.report import write_report
    from relocal_pyg.io.write import replace_file
    from relocal_pyg.models import MultiGraphRelocalizer

    print(tables.to_text(comparison))
    folder.mkdir(parents=True, exist_ok=True)
    pairs.save(folder / "pairs.json")
    asked = len(comparison.first_with_nulls.nulls)
    draw_nulls(protocol, pairs, asked).save(folder / "nulls.json")
    forms = {
        "results.md": tables.to_markdown,
        "results.json": tables.to_json,
        "results.tex": tables.to_latex,
    }
    for name, form in forms.items():
        with replace_file(folder / name) as temporary:
            temporary.write_text(form(comparison), encoding="utf-8")
    for title, evaluations in comparison.evaluations.items():
        for evaluation in evaluations:
            seed = "" if evaluation.seed is None else f"-seed{evaluation.seed}"
            evaluation.save(folder / "answers" / f"{slug(title)}{seed}")
    networks = [each.model for each in trained if isinstance(each.model, MultiGraphRelocalizer)]
    write_report(
        folder / "report.html",
        comparison,
        protocol,
        histories={f"{each.title}, seed {each.seed}": each.history for each in trained},
        graphs=networks[0].graphs if networks else (),
    )
    print(f"report: {folder / 'report.html'}\n")


def slug(title: str) -> str:
    """A title as a file name.

    Example:
        >>> slug("SST + cosine")
        'sst-cosine'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def _data_of(runs: tuple[Path, ...]) -> DataOptions:
    from relocal_pyg.io.read import read_json

    record = read_json(runs[0] / "run.json", CheckpointError)
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        raise CheckpointError("does not say which data it used", file=runs[0] / "run.json")
    return restore(record["data"])


def _load(run: Path) -> Trained:
    from relocal_pyg.io.read import read_json
    from relocal_pyg.training.sweep import Trained

    facts = read_json(run / "run.json", CheckpointError)
    loaded = Trained.load("", int(facts["seed"]), run)
    preset = facts.get("preset", run.name)
    return dataclasses.replace(loaded, title=f"{loaded.model.title} ({preset})")


def ablate(
    out: Annotated[
        Path, Output(folder="ablation"), tyro.conf.Positional, tyro.conf.arg(metavar="OUT")
    ],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    grid: Literal["layers-graphs", "weights"] = "layers-graphs",
    layers: tuple[int, ...] = (1, 2, 3),
    graphs: tuple[int, ...] = (1, 2, 3),
    preset: PresetName = "recommended",
    steps: Steps = None,
    seeds: tuple[Natural, ...] = (0,),
    split: str | None = None,
    limit: Steps = None,
) -> None:
    """Train the n x k grid of the paper's Table 3, or the three edge weights, and print the table.

    Finished cells are kept in OUT; run the same line again after an interrupt to go on.

    Args:
        out: Folder for runs and tables.
        data: Which data.
        grid: "layers-graphs" for n x k, "weights" for the edge weights of section 4.4.
        layers: Values of n, the number of multi-graph layers.
        graphs: Values of k: a cell uses the graphs 1..k.
        preset: What every cell shares.
        steps: Optimiser steps at most, instead of the preset's.
        seeds: Training seeds.
        split: Test split; the first one where left out.
        limit: Use LIMIT pairs of the hashed list only, drawn at random by their hash.
    """
    from relocal_pyg.training.sweep import ablation, edge_weights, train_all

    protocol = load_protocol(data)
    chosen = choose_preset(preset, steps)
    spare_threads(chosen)
    cells = ablation(chosen, layers, graphs) if grid == "layers-graphs" else edge_weights(chosen)
    trained = train_all(cells, protocol, seeds, out / "runs")
    name = split or protocol.test_splits()[0]
    pairs = draw_pairs(protocol, name, limit)
    publish(evaluate_trained(protocol, pairs, list(trained)), pairs, out / name, protocol)
