"""``relocal train``, and ``relocal example`` and ``relocal demo`` to begin with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from relocal_pyg.apps.cli.evaluate import evaluate, print_table
from relocal_pyg.apps.cli.options import (
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
)
from relocal_pyg.errors import UsageError


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
    print(result.calibration)
    print(f"best validation score {result.best_score:.3f} at step {result.best_step}")
    print("\n".join(filter(None, (f"validation: {result.choice}", result.choice.bought()))))
    print(f"checkpoint: {out / 'best'}")
    if videos is None:
        print(f"next: relocal evaluate {out}")
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
    """Extract into ``OUT/features.h5``.

    Returns:
        The options that use them, and how they were made.

    Raises:
        UsageError: No annotations are given, or features beside the videos.
    """
    if data.annotations is None:
        raise UsageError("--videos needs --annotations: JSON, or CSV of video,start,end,label")
    if data.features is not None:
        raise UsageError("give --videos or --features, not both")
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
