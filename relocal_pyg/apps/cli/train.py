"""``relocal train``, ``pretrain``, ``evaluate``, ``ablate``; ``example`` and ``demo`` to begin."""

from __future__ import annotations

import functools
import re
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relocal_pyg.apps.cli.options import (
    OF_FILMS,
    TYPED,
    BackboneOptions,
    Count,
    DataOptions,
    DeviceName,
    Natural,
    Output,
    Precision,
    PresetName,
    Rate,
    Steps,
    SystemName,
    choose_preset,
    describe,
    describe_extraction,
    load_backbone,
    load_protocol,
    pick_device,
    restore,
    say,
)
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.io.write import own_folder

if TYPE_CHECKING:
    from relocal_pyg.data.items import Protocol
    from relocal_pyg.data.pairs import PairList
    from relocal_pyg.evaluation.tables import Comparison
    from relocal_pyg.training.recipe import Trained


def train(
    out: Annotated[Path, Output(folder="run"), tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    videos: Path | None = None,
    rate: Rate = None,
    workers: Steps = None,
    preset: SystemName = "recommended",
    set: tuple[str, ...] = (),  # noqa: A002 - the option's name
    steps: Steps = None,
    seed: Natural = 0,
    resume: bool = False,
    precision: Precision | None = None,
    device: DeviceName = "auto",
    devices: Count = 1,
    from_scratch: bool = False,
    start: Path | None = None,
) -> None:
    """Train a network on a protocol, from the weights that come with it; then "relocal evaluate".

    With --videos and --annotations: extract the features of your own videos, train on them and
    evaluate, in one go.

    Args:
        out: Run folder to write: checkpoints, settings, history, log.
        data: Which data.
        network: With --videos: which network turns frames into features.
        videos: A folder of video files, annotated by --annotations (a CSV of
            video,start,end,label, or what "relocal convert" reads; a video is named by its file
            without the suffix).
        rate: With --videos: frames per second; follows the length of the actions if left out.
        workers: With --videos: videos at a time; all processors where left out.
        preset: "recommended", "paper" for the paper's recipe to the letter, or a system of others.
        set: Other settings than the preset's, NAME=VALUE each: "--set num_layers=3 ks=[1,2]" or,
            for MATR trained without labels, "--preset matr --set self_supervised=true".
        steps: Optimiser steps at most, instead of the preset's.
        seed: Seed of weights, samples and dropout.
        resume: Go on with the run that OUT holds.
        precision: Arithmetic, instead of the preset's.
        device: Where networks run; "auto" is cuda where there is one.
        devices: How many devices.
        from_scratch: Start from random weights, for comparison.
        start: Start from the weights of this run of the same network.
    """
    from relocal_pyg.training import recipe

    chosen = choose_preset(preset, steps, precision, set)
    identity: dict[str, object] = {}
    if (out / "last").is_dir() and not resume:  # said before anything is extracted
        raise UsageError("holds a run: pass --resume to go on, or another folder", file=out)
    if videos is None and (network, rate, workers) != (BackboneOptions(), None, None):
        raise UsageError(f"{OF_FILMS} need --videos")
    if start is not None and from_scratch:
        raise UsageError("--start and --from-scratch name two beginnings: leave one out")
    weights = [] if start is None else [*start.glob("model.s*"), *start.glob("best/model.s*")]
    if start is not None and not weights:
        raise UsageError("holds no weights to start from: name a run or a checkpoint", file=start)
    if videos is not None:
        data, identity["features"] = extract_for_training(
            videos, data, network, out, rate, workers, device
        )
    print(chosen)
    result = recipe.train(
        load_protocol(data),
        chosen,
        out,
        seed=seed,
        resume=resume,
        identity={"data": describe(data), **identity},
        accelerator=pick_device(device),
        devices=devices,
        from_scratch=from_scratch,
        start=start,
    )
    if not result.calibration:  # a process of a distributed run other than the first
        return
    print(result.calibration)
    print(f"best validation score {result.best_score:.3f} at step {result.best_step}")
    print("\n".join(filter(None, (f"validation: {result.choice}", result.choice.bought()))))
    say(f"checkpoint: {out / 'best'}")
    if videos is None:
        say(f"next: relocal evaluate {out}")
    else:
        evaluate((out,))


def extract_for_training(
    videos: Path,
    data: DataOptions,
    network: BackboneOptions,
    out: Path,
    rate: float | None,
    workers: int | None,
    device: DeviceName = "auto",
) -> tuple[DataOptions, dict[str, object]]:
    """Extract into ``OUT/features.h5``; the options that use it, and how it was made."""
    if data.annotations is None:
        raise UsageError("--videos needs --annotations: JSON, or CSV of video,start,end,label")
    made = (data.features, data.seconds_per_step, data.subsample) != (None, None, 1)
    if made or data.protocol not in (None, "custom"):
        options = "--features, --seconds-per-step, --subsample and a --protocol of others"
        raise UsageError(f"--videos makes the features: leave {options} out")
    from relocal_pyg.apps.cli.extract import print_extraction
    from relocal_pyg.data.annotations import Quarantine
    from relocal_pyg.video.folder import features_from_videos

    backbone = load_backbone(network, device)
    quarantine = Quarantine(strict=data.strict)
    features = out / "features.h5"
    done, seconds_per_step = features_from_videos(
        videos,
        data.annotations,
        features,
        backbone,
        rate,
        workers=workers,
        background=data.background,
        quarantine=quarantine,
        key=data.key,
    )
    print_extraction(done, quarantine)
    used = replace(
        data, protocol="custom", features=features, seconds_per_step=seconds_per_step, subsample=1
    )
    # Rounded: 49 a second would come back as 49.00000000000001.
    rate_hz = round(backbone.clip_stride / seconds_per_step, 9)
    return used, describe_extraction(network, backbone, rate_hz)


def pretrain(
    out: Annotated[Path, Output(folder="run"), tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    steps: Steps = None,
    seed: Natural = 0,
    worlds: Natural = 45,
) -> None:
    """Train the matcher that needs no labels, on simulated worlds: how the shipped weights came.

    Two networks are trained, and their scores averaged: one on simulated features alone, one on
    drawn films as well. A run that was cut off goes on when the command is given again. The result
    is used by "relocal find --model OUT".

    Args:
        out: Run folder to write.
        steps: Optimiser steps of each network, instead of those of the shipped weights.
        seed: Seed of worlds and weights.
        worlds: Worlds of drawn films, twelve processor-seconds each; with none there is one
            network.
    """
    import torch

    from relocal_pyg.datasets.endless import FootageWorld
    from relocal_pyg.models import MultiGraphMatcher
    from relocal_pyg.training.pretrain import MEMBERS, PretrainConfig, joined
    from relocal_pyg.training.pretrain import pretrain as run

    torch.set_flush_denormal(True)  # Adam's moments of weights that rest become denormal, and slow
    say = functools.partial(print, flush=True)
    footage: list[FootageWorld] = []
    if worlds:
        from relocal_pyg.video.backbones import EfficientNetLite0
        from relocal_pyg.video.drawn import keep_footage

        footage = keep_footage(out / "footage", seed, worlds, EfficientNetLite0())
    networks: list[MultiGraphMatcher] = []
    for name in MEMBERS if worlds else ("features",):
        config = PretrainConfig(steps=steps or MEMBERS[name], seed=seed)
        say(f"network {name}: {config.steps} steps")
        films = footage if name == "films" else []
        networks.append(run(config, folder=out / name, log=say, footage=films))
    joined(networks).save(out / "best")
    say(f"checkpoint: {out / 'best'}")


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
        data: Which data; where runs are given those of the first, but for what is said here, or
            others, where --protocol is.
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
    from relocal_pyg.evaluation.consistency import by_disagreement, disagreement, to_markdown
    from relocal_pyg.training import recipe

    if few_shot and (pairs is not None or consistency):
        raise UsageError("--few-shot asks by episodes: leave out --pairs and --consistency")
    if models != "all" and (preset, steps, seeds) != ("recommended", None, (0,)):
        raise UsageError("--preset, --steps and --seeds are of --models all, RUN has its own")
    if instances != ("single",) and not few_shot:
        raise UsageError("--instances needs --few-shot")
    if pairs is not None and split is not None:
        raise UsageError("--pairs is a list of its own: leave --split out")
    folder = out or (runs[0] / "evaluation" if runs else None)
    if folder is None:
        raise UsageError("--out is needed where no run is given")
    runs = tuple(dict.fromkeys(runs))
    options = _data_of(runs[0], data) if runs and data.protocol is None else data
    protocol, chosen = load_protocol(options), choose_preset(preset, None)
    # Drawn first: what cannot be asked is said before anything is trained.
    names = protocol.test_splits() if split is None else [split]
    asked, episodes = [], []
    if pairs is not None:
        asked = [read_pairs(pairs, protocol, "fixed list").sample(limit)]
    elif few_shot:
        episodes = [
            recipe.draw_questions(protocol, name, few_shot, instances, limit or 1000)
            for name in names
        ]
    else:
        asked = [recipe.draw_pairs(protocol, name, limit) for name in names]
    recipe.spare_threads(chosen)
    place = pick_device(device)
    trained = recipe.load_runs(runs, place)
    for run, each in zip(runs, trained, strict=True):
        if each.choice is not None:
            for line in filter(None, (f"{run}: {each.choice}", each.choice.bought())):
                say(line)
    with own_folder(folder, "evaluation"):
        if models == "all":
            systems = recipe.table_one(chosen)
            trained += recipe.train_all(
                systems, protocol, seeds, folder / "runs", steps=steps, accelerator=place
            )
        for lists in episodes:
            print(recipe.few_shot(protocol, lists, trained, folder / lists[0].split))
        for questions in asked:
            comparison = recipe.compare_trained(protocol, questions, trained)
            # A list says itself of which split it is: maybe "../..".
            table = questions.split if questions.split in protocol.splits else "fixed list"
            print_table(comparison, questions, folder / table, protocol, trained)
            if consistency:
                amounts = disagreement(protocol, questions)
                try:
                    gains = by_disagreement(comparison, amounts, "Contrast matcher")
                except UsageError as error:  # of one split: others may have more to say
                    warnings.warn(f"{questions.split}: {error}", stacklevel=2)
                else:
                    print(to_markdown(amounts, questions, gains, "Contrast matcher"))


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

    if grid != "layers-graphs" and (layers, graphs) != ((1, 2, 3), (1, 2, 3)):
        raise UsageError("--layers and --graphs are of --grid layers-graphs")
    varied = {
        "layers-graphs": ("num_layers", "ks", "graph_conv"),
        "weights": ("weight", "normalization"),
        "normalization": ("weight", "normalization"),
    }[grid]
    if given := [word for word in set if word.partition("=")[0] in varied]:
        raise UsageError(f"--set {given[0]} is what --grid {grid} varies: leave it out")
    protocol, chosen = load_protocol(data), choose_preset(preset, steps, changes=set)
    name = split or protocol.test_splits()[0]
    pairs = recipe.draw_pairs(protocol, name, limit)  # a wrong split is said before training
    recipe.spare_threads(chosen)
    cells = {
        "layers-graphs": lambda: recipe.ablation(chosen, layers, graphs),
        "weights": lambda: recipe.edge_weights(chosen),
        "normalization": lambda: recipe.normalizations(chosen),
    }[grid]()
    place = pick_device(device)
    trained = list(recipe.train_all(cells, protocol, seeds, out / "runs", accelerator=place))
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
    say(f"report: {publish(comparison, pairs, folder, protocol, trained)}")


def _data_of(run: Path, data: DataOptions) -> DataOptions:
    """The data that a run used, but for what the options say."""
    from relocal_pyg.io.read import read_json

    record = read_json(run / "run.json", CheckpointError)
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        raise CheckpointError("does not say which data it used", file=run / "run.json")
    used = restore(record["data"], run / "run.json")
    beside = run / "features.h5"  # of "train --videos", which moved with the run
    if used.features is not None and not used.features.exists() and beside.is_file():
        used = replace(used, features=beside)
    typed = TYPED.get() if TYPED.get()[:1] == ("evaluate",) else ()  # not after "train --videos"
    flags = (word.partition("=")[0].replace("-", "_") for word in typed)
    words = {re.sub("^__(no_)?", "", flag) for flag in flags}
    given = {each.name: getattr(data, each.name) for each in fields(data)}
    usual = vars(DataOptions())
    return replace(used, **{k: v for k, v in given.items() if v != usual[k] or k in words})


def example(
    folder: Annotated[
        Path, Output(filled=True), tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")
    ] = Path("films"),
) -> None:
    """Draw two short films into FOLDER, to try a search on, and say how.

    Args:
        folder: Gets park.mp4, 12 s, and street.mp4, 30 s.
    """
    from relocal_pyg.video.example import write_example

    park, street = map(str, write_example(folder))
    command = ["relocal", "find", park, street, "--query-start", "4", "--query-end", "8"]
    print("In the park somebody does jumping jacks from 4 to 8 s. Find them in the street:")
    say(shlex.join([*command, "--report", "report.html"]))


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
    say(f"checkpoint: {run / 'best'}")
