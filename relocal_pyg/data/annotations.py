"""Readers of annotations: which action happens when in which video. Seconds throughout."""

from __future__ import annotations

import io
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relocal_pyg.data.quarantine import Quarantine
from relocal_pyg.data.videos import Segment, Video, VideoCollector
from relocal_pyg.errors import AnnotationError
from relocal_pyg.reading import read_json, read_text, refuse_look_alikes

__all__ = ["Segment", "Video", "read_activitynet", "read_annotations", "read_csv", "read_thumos14"]


def read_annotations(
    path: str | Path, *, quarantine: Quarantine | None = None, clip: bool = False
) -> dict[str, Video]:
    """Read annotations by the ending of the file: :func:`read_csv`, else :func:`read_activitynet`.

    Arguments, result and errors are theirs.
    """
    if str(path).lower().endswith(".csv"):
        return read_csv(path, quarantine=quarantine, clip=clip)
    return read_activitynet(path, quarantine=quarantine, clip=clip)


def read_activitynet(
    path: str | Path,
    *,
    quarantine: Quarantine | None = None,
    clip: bool = False,
    as_published: bool = False,
) -> dict[str, Video]:
    """Read annotations in the official ActivityNet layout.

    That is ``{"database": {<id>: {"duration", "subset", "annotations": [{"segment", "label"}]}}}``,
    optionally with a ``"subject"`` per video. Everything else in the file is ignored.

    Args:
        path: The JSON file.
        quarantine: Takes the records that cannot be used; where None, a warning counts them.
        clip: Cut segments that leave the video at its borders instead of setting them aside.
        as_published: Keep every segment of finite times, even empty ones and those beyond the
            end: for rebuilding data sets that were made without such checks.

    Returns:
        Videos by id, in the order of the file; those without any action are among them.

    Raises:
        AnnotationError: The file is no such JSON (the line is named), two ids differ in Unicode
            normalisation alone, or no record can be used.
    """
    content = read_json(path, AnnotationError, allow_nan=True)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise AnnotationError('has no "database" object: ActivityNet layout wanted', file=path)
    refuse_look_alikes(database, path, AnnotationError)
    collect = VideoCollector(path, quarantine, clip, as_published)
    for video_id, entry in database.items():
        if not isinstance(entry, dict):
            collect.reject(video_id, "is not an object")
            continue
        given = entry.get("annotations", [])
        if not isinstance(given, list):
            collect.reject(video_id, '"annotations" is not a list')
            continue
        rows = [
            (*_times(row), row.get("label")) if isinstance(row, dict) else (None, None, None)
            for row in given
        ]
        subject = entry.get("subject")
        collect.video(
            video_id,
            entry.get("duration"),
            rows,
            subset=str(entry.get("subset") or ""),
            subject=None if subject is None else str(subject),
        )
    return collect.finish()


def read_csv(
    path: str | Path, *, quarantine: Quarantine | None = None, clip: bool = False
) -> dict[str, Video]:
    """Read annotations from a table with a header line.

    Columns ``video``, ``start``, ``end`` (seconds) and ``label`` are needed; ``duration``,
    ``subject`` and ``subset`` are read where present. Without ``duration`` it stays unknown, and
    ends are not compared with it.

    Args:
        path: UTF-8 text, comma separated.
        quarantine: Takes the records that cannot be used; where None, a warning counts them.
        clip: Cut segments that leave the video at its borders instead of setting them aside.

    Returns:
        Videos by id, in the order of the file.

    Raises:
        AnnotationError: Not such a table, two ids differ in Unicode normalisation alone, or no
            record can be used.
    """
    import pandas as pd  # a second of import time that JSON users need not wait for

    text = read_text(path, AnnotationError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a line longer than the header
            table = pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, index_col=False
            )
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise AnnotationError(f"is not a table: {error}", file=path) from None
    table = table.fillna("")  # short lines
    table.columns = [str(name).strip() for name in table.columns]
    missing = [name for name in ("video", "start", "end", "label") if name not in table.columns]
    if missing:
        raise AnnotationError(f"has no column {', '.join(missing)}", file=path, record="line 1")
    table.index += 2  # the line, as long as no field spans several
    videos = {str(video_id): rows for video_id, rows in table.groupby("video", sort=False)}
    refuse_look_alikes(videos, path, AnnotationError)
    collect = VideoCollector(path, quarantine, clip)
    for video_id, rows in videos.items():
        facts: dict[str, str | None] = {}
        for name in ("duration", "subject", "subset"):
            values = rows[name].unique().tolist() if name in rows else [""]
            if len(values) > 1:
                collect.reject(video_id, f"has several values of {name}: {values[:3]}")
                break
            facts[name] = values[0] or None
        else:
            collect.video(
                video_id,
                _number(facts["duration"]),
                [
                    (_number(start), _number(end), label)
                    for start, end, label in zip(
                        rows["start"], rows["end"], rows["label"], strict=True
                    )
                ],
                subset=facts["subset"] or "",
                subject=facts["subject"],
                names=[f"line {line}" for line in rows.index],
                needs_duration=bool(facts["duration"]),
            )
    return collect.finish()


def read_thumos14(
    annotation_folder: str | Path,
    durations_file: str | Path,
    avoid_files: Sequence[str | Path] = (),
    *,
    quarantine: Quarantine | None = None,
    clip: bool = False,
) -> dict[str, Video]:
    """Read the official THUMOS14 temporal annotations of one subset.

    The folder holds ``<Class>_val.txt`` or ``<Class>_test.txt`` files of lines ``video start end``;
    ``Ambiguous`` is not a class and is left out. Every video keeps all of its classes: each
    ``CliffDiving`` is also annotated as ``Diving``.

    Args:
        annotation_folder: Such as ``temporal_annotations_test``.
        durations_file: Pairs of lines: a file name, then its duration in seconds.
        avoid_files: Lists of videos (first word of each line) to leave out.
        quarantine: Takes the records that cannot be used; where None, a warning counts them.
        clip: Cut segments that leave the video at its borders instead of setting them aside.

    Returns:
        Videos by id, sorted, those without any action left out; ``subset`` is the word in the file
        names.

    Raises:
        AnnotationError: A file is missing or a line is malformed.
    """
    folder = Path(annotation_folder)
    durations = _durations(durations_file)
    avoid = {
        line.split()[0]
        for file in avoid_files
        for line in read_text(file, AnnotationError).splitlines()
        if line.strip()
    }
    rows: dict[str, list[tuple[float | None, float | None, str]]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    subset = ""
    for file in sorted(folder.glob("*_*.txt")):
        label, _, subset = file.stem.rpartition("_")
        for number, line in enumerate(read_text(file, AnnotationError).splitlines(), start=1):
            words = line.split()
            if not words or label == "Ambiguous":
                continue
            if len(words) != 3:
                raise AnnotationError(
                    "a video, a start and an end wanted", file=file, record=f"line {number}"
                )
            rows[words[0]].append((_number(words[1]), _number(words[2]), label))
            names[words[0]].append(f"{file.name} line {number}")
    if not rows:
        raise AnnotationError("holds no annotations: <Class>_<subset>.txt wanted", file=folder)
    collect = VideoCollector(folder, quarantine, clip)
    for video_id in sorted(set(rows) - avoid):
        collect.video(
            video_id,
            durations.get(video_id),
            rows[video_id],
            subset=subset,
            names=names[video_id],
        )
    return collect.finish()


def _durations(path: str | Path) -> Mapping[str, float]:
    lines = [line.strip() for line in read_text(path, AnnotationError).splitlines()]
    lines = [line for line in lines if line]
    result = {}
    for number in range(0, len(lines), 2):
        seconds = _number(lines[number + 1]) if number + 1 < len(lines) else None
        if seconds is None:
            raise AnnotationError(
                "a file name and then its duration wanted", file=path, record=f"line {number + 2}"
            )
        result[lines[number].rsplit("/", 1)[-1].rsplit(".", 1)[0]] = seconds
    return result


def _times(row: dict[str, Any]) -> tuple[Any, Any]:
    segment = row.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        return None, None
    return segment[0], segment[1]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
