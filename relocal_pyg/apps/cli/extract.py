"""``relocal extract``, ``propose``, ``convert`` and ``check``: what data are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from relocal_pyg.apps.cli.options import (
    OUT_FILE,
    BackboneOptions,
    Count,
    DataOptions,
    DeviceName,
    Natural,
    Output,
    Rate,
    Seconds,
    Steps,
    load_backbone,
    load_protocol,
    say,
)
from relocal_pyg.errors import AnnotationError, UsageError

if TYPE_CHECKING:
    from relocal_pyg.data.annotations import Quarantine, Video
    from relocal_pyg.video.folder import Extraction


def extract(
    videos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEOS")],
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, OUT_FILE, tyro.conf.arg(aliases=["-o"])],
    rate: Rate = None,
    workers: Steps = None,
    device: DeviceName = "auto",
    cache: Annotated[Path | None, Output()] = None,
    key: str | None = None,
    report: Annotated[Path | None, OUT_FILE] = None,
    strict: bool = False,
) -> None:
    """Extract features of a folder of videos into one HDF5 file; run it again to go on.

    Args:
        videos: A folder, searched with its subfolders, or one video file.
        network: Which network turns frames into features.
        output: The HDF5 file to write: VIDEO_ID/features and VIDEO_ID/times.
        rate: Frames per second; 3.125 for efficientnet-lite0, the video's own for c3d if left out.
        workers: Videos at a time; all processors where left out.
        device: Where the network runs; "auto" is cuda where there is one.
        cache: Folder of finished videos; OUTPUT.cache where left out.
        key: Name of the feature array inside a video's group; features or c3d_features if left
            out.
        report: Write the videos that could not be used as JSON here.
        strict: Stop at the first bad video with exit code 2.
    """
    from relocal_pyg.data.annotations import Quarantine
    from relocal_pyg.video.folder import VIDEO_SUFFIXES, extract_folder

    if output.suffix.lower() in (".npy", *VIDEO_SUFFIXES):
        raise UsageError("is written as HDF5: name it .h5", file=output)
    quarantine = Quarantine(strict=strict)
    backbone = load_backbone(network, device)
    facts: dict[str, Any] = {"workers": workers, "quarantine": quarantine, "key": key}
    try:
        done = extract_folder(videos, output, backbone, rate, cache=cache, **facts)
    finally:
        if report is not None:
            quarantine.save(report)
    print_extraction(done, quarantine)
    say(f"features: {output} ({backbone.name}, {backbone.dim} channels)")


def print_extraction(done: Extraction, quarantine: Quarantine) -> None:
    """Print how many videos were extracted, reused and left out, and which."""
    pace = f", {60 * done.computed / done.seconds:.0f} a minute" if done.computed else ""
    print(f"{done.computed} videos extracted, {done.reused} reused{pace}")
    if done.passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in done.passed_over.items())
        say(f"passed over: {sum(done.passed_over.values())} files ({kinds})")
    for record in quarantine.records:
        say(f"left out: {record.file}: {record.reason}")


def propose(
    out: Annotated[Path, OUT_FILE, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    tag: Literal["paper", "ssn-code"] = "paper",
    steps: Count = 500,
    seed: Natural = 0,
) -> None:
    """Train an actionness classifier on the training split and write TAG proposals of every video.

    Args:
        out: Proposal list to write, in the released text format.
        data: Which data.
        tag: Thresholds and tolerances: the article's even grid, or those of the released code.
        steps: Optimiser steps of the classifier.
        seed: Seed of the classifier.
    """
    from relocal_pyg.proposals import PAPER, SSN_CODE, fit_actionness
    from relocal_pyg.proposals import propose as write_proposals

    protocol = load_protocol(data)
    classifier = fit_actionness(protocol, steps=steps, seed=seed, show_progress=True)
    config = PAPER if tag == "paper" else SSN_CODE
    records = write_proposals(protocol, classifier, out, config=config, show_progress=True)
    total = sum(len(record.moments) for record in records)
    say(f"{total} proposals of {len(records)} videos: {out}")


def convert(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")],
    *,
    out: Annotated[Path, OUT_FILE, tyro.conf.arg(aliases=["-o"])],
    media: str | None = None,
    fps: Rate = None,
    point_width: Seconds = None,
    modifiers: bool = False,
    clip: bool = False,
    strict: bool = False,
) -> None:
    """Turn annotations of other programs into the table that "relocal train --annotations" reads.

    Reads ELAN (.eaf), BORIS (aggregated or tabular events, .boris), VIA 3 (JSON, CSV), Label Studio
    (JSON), CVAT for video (XML), ActivityNet JSON, and tables with the columns video, start, end,
    label. Writes video,start,end,label,subject,duration, in seconds; what cannot be used is counted
    and listed in OUT.set-aside.json.

    Args:
        files: The files.
        out: The CSV file to write.
        media: Which video is meant where a file names several.
        fps: Frames per second, where a file counts frames and does not say (Label Studio, CVAT).
        point_width: Seconds to give to events without length, half before and half after; such
            events are set aside where left out.
        modifiers: Make label|modifier of a label and its modifiers.
        clip: Cut what leaves its video at the video's borders instead of setting it aside.
        strict: Stop at the first bad record instead of setting it aside.
    """
    from relocal_pyg.data.annotations import NO_ACTION, Quarantine, read_annotations, write_csv
    from relocal_pyg.formats.rows import ImportOptions

    if not files:
        raise UsageError("FILE is missing: which annotations?")
    quarantine = Quarantine(strict=strict)
    options = ImportOptions(media, fps, point_width, modifiers)
    videos: list[Video] = []
    for file in files:
        try:
            found = read_annotations(file, quarantine=quarantine, clip=clip, options=options)
            videos += found.values()
        except AnnotationError as error:
            if error.reason != NO_ACTION or file == files[-1] and not videos:
                raise
            quarantine.add(file, "all of it", NO_ACTION)  # one session of many
    rows = write_csv(out, videos)
    names, labels = {row[0] for row in rows}, {row[3] for row in rows}
    say(f"{out}: {len(rows)} actions, {len(labels)} labels, {len(names)} videos")
    report = out.with_name(f"{out.name}.set-aside.json")
    if quarantine.records or report.exists():  # that of an earlier call is not left
        quarantine.save(report)
        say(f"{quarantine.summary()}; all in {report}")


def check(
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")],
    annotations: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ANNOTATIONS")],
    *,
    key: str | None = None,
    report: Annotated[Path | None, OUT_FILE] = None,
    clip: bool = False,
    seconds_per_step: Seconds = None,
    strict: bool = False,
) -> None:
    """Read a data set and report every bad record.

    Args:
        features: HDF5 file of features.
        annotations: ActivityNet JSON or CSV.
        key: Name of the feature array inside a video's group; features or c3d_features if left
            out.
        report: Write the bad records as JSON here.
        clip: Cut actions that leave their video at its borders instead of reporting them.
        seconds_per_step: Duration of a step; the usual one of the videos where left out.
        strict: Stop at the first bad record with exit code 2.
    """
    from relocal_pyg.data.annotations import Quarantine
    from relocal_pyg.data.checks import check_dataset

    quarantine = Quarantine(strict=strict)
    facts: dict[str, Any] = {"key": key, "clip": clip, "seconds_per_step": seconds_per_step}
    try:
        check_dataset(features, annotations, quarantine=quarantine, **facts)
    finally:
        if report is not None:
            quarantine.save(report)
    for record in quarantine.records:
        say(f"{record.file}: {record.record}: {record.reason}")
    print(quarantine.summary())
    if report is not None:
        say(f"report: {report}")
