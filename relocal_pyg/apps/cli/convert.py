"""``relocal convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from relocal_pyg.apps.cli.options import OUT_FILE, Rate, Seconds


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
    from relocal_pyg.data.annotations import Quarantine, read_annotations, write_csv
    from relocal_pyg.formats.rows import ImportOptions

    quarantine = Quarantine(strict=strict)
    options = ImportOptions(media, fps, point_width, modifiers)
    videos = [
        video
        for file in files
        for video in read_annotations(
            file, quarantine=quarantine, clip=clip, options=options
        ).values()
    ]
    write_csv(out, videos)
    labels = {segment.label for video in videos for segment in video.segments}
    actions = sum(len(video.segments) for video in videos)
    names = {video.video_id for video in videos}
    print(f"{out}: {actions} actions, {len(labels)} labels, {len(names)} videos")
    if quarantine.records:
        report = out.with_name(f"{out.name}.set-aside.json")
        quarantine.save(report)
        print(f"{quarantine.summary()}; all in {report}")
