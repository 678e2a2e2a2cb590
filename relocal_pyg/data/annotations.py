"""Readers of annotations: which action happens when in which video. Seconds throughout."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relocal_pyg.errors import AnnotationError, RelocalError, ascii_line
from relocal_pyg.formats.clips import plain, table_text
from relocal_pyg.formats.importing import json_rows, table_rows
from relocal_pyg.formats.rows import (
    MAX_ROWS,
    Importer,
    ImportOptions,
    Row,
    finite,
    parse_seconds,
    positive,
    separator,
    table_records,
    xml_rows,
)
from relocal_pyg.io.read import id_problem, read_json, read_lines, read_text, refuse_twins, tidy
from relocal_pyg.io.write import replace_text, write_json

#: What no text file can hold.
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
#: Seconds by which two programs may differ on how long one video is.
_SAME_DURATION = 1.0
#: What is said of a file in which nothing happens.
NO_ACTION = "holds no action"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was set aside: its file, its name in it, and why it cannot be used."""

    file: str
    record: str
    reason: str


class Quarantine:
    """Collects records that cannot be used; where ``strict``, the first is an error.

    Example:
        >>> quarantine = Quarantine()
        >>> quarantine.add("a.json", "v_1", "start 3 is not before end 2")
        >>> quarantine.summary()
        '1 record set aside: a.json: v_1: start 3 is not before end 2'
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.records: list[Rejected] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(
        self,
        file: str | Path,
        record: str,
        reason: str,
        error: type[RelocalError] = AnnotationError,
    ) -> None:
        """Set a record aside; where ``strict``, raise it as an error of that kind."""
        self.records.append(Rejected(str(file), record[:300], reason))
        if self.strict:
            raise error(reason, file=file, record=record)

    def summary(self) -> str:
        """How many records were set aside, and the first one, in one line."""
        if not self.records:
            return "no record set aside"
        count, first = len(self.records), self.records[0]
        files = Counter(entry.file for entry in self.records)
        where = f" in {len(files)} files" if len(files) > 1 else ""
        text = f"{count} record{'s' * (count > 1)} set aside{where}"
        word = "the first: " if count > 1 else ""
        return ascii_line(f"{text}: {word}{first.file}: {first.record}: {first.reason}")

    def save(self, path: str | Path) -> None:
        """Write the report as JSON: a list of file, record and reason."""
        write_json(path, [asdict(entry) for entry in self.records])


@dataclass(frozen=True, order=True, slots=True)
class Segment:
    """One action of a video.

    Attributes:
        start: Start in seconds.
        end: End in seconds, exclusive.
        label: Class name.
        subject: Who performs, where that is not the same in the whole video; else empty.
    """

    start: float
    end: float
    label: str
    subject: str = ""


@dataclass(frozen=True)
class Video:
    """What is known about one video.

    Attributes:
        video_id: Key of the video in the feature file.
        duration: Seconds, or None where the annotation does not say.
        segments: Actions, sorted by start.
        subset: Official subset such as ``"training"``; may be empty.
        subject: Who performs in the whole video, where the annotation says so.
    """

    video_id: str
    duration: float | None
    segments: tuple[Segment, ...]
    subset: str = ""
    subject: str | None = None


class VideoCollector:
    """Checks videos one by one and sets aside what cannot be used.

    ``quarantine`` and ``clip`` are as of :func:`read_annotations`; where ``as_published``, only
    that times are finite and labels text is checked.
    """

    def __init__(
        self,
        path: str | Path,
        quarantine: Quarantine | None,
        clip: bool,
        as_published: bool = False,
    ) -> None:
        self.path, self.clip, self.as_published = path, clip, as_published
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self._warn = quarantine is None
        self._videos: dict[str, Video] = {}
        self._segments = 0
        self._rejected = 0
        self._counted = 0

    def count(self, records: int = 1) -> None:
        """Note that so many records were met; an error where they are too many for one file."""
        self._counted += records
        if self._counted > MAX_ROWS:
            raise AnnotationError(f"holds over {MAX_ROWS:,} actions: split it", file=self.path)

    def reject(self, record: str, reason: str, actions: int = 0) -> None:
        """Set a record aside; the number of actions that go with it is said."""
        reason += f" (actions left out with it: {actions})" if actions else ""
        self.count()
        self._rejected += 1
        self.quarantine.add(self.path, record, reason)

    def video(
        self,
        video_id: str,
        duration: Any,
        rows: Sequence[tuple[Any, Any, Any]],
        *,
        subset: str,
        subject: str | None = None,
        subjects: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Check a video and add what is usable of it.

        All is as the file gives it; ``names`` say what to call each row in the report, and
        ``subjects`` who performs in each, in place of ``subject``.
        """
        video_id = tidy(video_id)
        problem = id_problem(video_id)
        if problem:
            self.reject(video_id or "''", f"the id {problem}", len(rows))
            return
        if duration is None:
            length = math.inf
        elif positive(duration) is None:
            reason = f"the duration is {_show(duration)}: seconds wanted"
            self.reject(video_id, reason, len(rows))
            return
        else:
            length = float(duration)
        if subjects is not None and len(set(subjects)) == 1:
            subject, subjects = subjects[0] or None, None
        kept: dict[Segment, None] = {}
        for number, (start, end, label) in enumerate(rows):
            name = f"{video_id} segment {number}"
            if names is not None:
                name = f"{names[number]} ({video_id})"
            problem = self._problem(start, end, label, length)
            if problem:
                self.reject(name, problem)
                continue
            if self.as_published:
                segment = Segment(float(start), float(end), label)
            else:
                label = tidy(label)
                who = "" if subjects is None else subjects[number]
                segment = Segment(max(float(start), 0.0), min(float(end), length), label, who)
            if segment in kept and not self.as_published:
                self.quarantine.add(self.path, name, "is a duplicate: counted once")
                continue
            kept[segment] = None
        self._segments += len(kept)
        self._videos[video_id] = Video(
            video_id, None if math.isinf(length) else length, tuple(sorted(kept)), subset, subject
        )

    def finish(self) -> dict[str, Video]:
        """Give the videos; an error where there is no usable action."""
        if not self._segments:
            reason = NO_ACTION
            if self._rejected:
                first = self.quarantine.records[-self._rejected]
                reason = f"no record can be used; the first: {first.record}: {first.reason}"
            raise AnnotationError(reason, file=self.path)
        if self._warn and self.quarantine.records:
            warnings.warn(self.quarantine.summary(), stacklevel=3)
        return self._videos

    def _problem(self, start: Any, end: Any, label: Any, length: float) -> str | None:
        if finite(start) is None or finite(end) is None:
            return f"times are {_show(start)}, {_show(end)}: two numbers of seconds wanted"
        if not isinstance(label, str) or not tidy(label) or _UNWRITABLE.search(label):
            return f"the label is {_show(label)}: text wanted"
        if self.as_published:
            return None
        if start >= end:
            return f"start {start} is not before end {end}"
        video = "the video" if math.isinf(length) else f"the video of {length} s"
        if start >= length or end <= 0:
            frames = end > 5 * length and float(start).is_integer() and float(end).is_integer()
            hint = ": are these frames? seconds are wanted" if frames else ""
            return f"[{start}, {end}) lies outside {video}{hint}"
        if not self.clip and (start < 0 or end > length):
            return f"[{start}, {end}) leaves {video}: --clip (clip=True) cuts it"
        return None


def _show(value: Any) -> str:
    return repr(value)[:40]


#: Endings of files that are read.
_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".boris", ".eaf", ".xml")

#: What a table is read for: what it needs, and what it may have.
_COLUMNS, _MORE = ("video", "start", "end", "label"), ("duration", "subset", "subject")
#: What may be a thousand and a bit, or a bit over one.
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


def read_annotations(
    path: str | Path,
    *,
    quarantine: Quarantine | None = None,
    clip: bool = False,
    options: ImportOptions | None = None,
) -> dict[str, Video]:
    """Read annotations of any program this package knows, by the file's suffix and content.

    Tables (``.csv``, ``.tsv``, ``.txt``): :func:`read_csv`, events of BORIS, VIA 3. JSON
    (``.json``, ``.boris``): :func:`read_activitynet`, BORIS, VIA 3, Label Studio. XML (``.eaf``,
    ``.xml``): ELAN, CVAT.

    Args:
        path: The file.
        quarantine: Takes the records that cannot be used; where None, a warning counts them.
        clip: Cut segments that leave the video at its borders instead of setting them aside.
        options: What a file of another program may leave open.

    Returns:
        Videos by id, in the order of the file.

    Raises:
        AnnotationError: The file is of no such kind, or no record of it can be used.
    """
    collect = VideoCollector(path, quarantine, clip)
    importer = Importer(path, options or ImportOptions(), collect.reject)
    suffix = Path(path).suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        raise AnnotationError("is a spreadsheet: save the sheet as CSV (UTF-8)", file=path)
    rows: Iterator[Row] | None
    if suffix in (".eaf", ".xml"):
        rows = xml_rows(importer)
    elif suffix in (".csv", ".tsv", ".txt"):
        rows = table_rows(read_text(path, AnnotationError), importer)
        if rows is None:
            return read_csv(path, quarantine=quarantine, clip=clip)
    else:
        try:
            content = read_json(path, AnnotationError, allow_nan=True)
        except AnnotationError as error:
            if error.record is None or suffix in (".json", ".boris"):
                raise
            reason = f"is of no kind that is read: {', '.join(_SUFFIXES)} wanted"
            raise AnnotationError(reason, file=path) from None
        rows = json_rows(content, importer)
        if rows is None:
            return _activitynet(content, collect)
    return _videos(rows, collect)


def _videos(rows: Iterable[Row], collect: VideoCollector) -> dict[str, Video]:
    """Put the rows of each video together and check them."""
    videos: dict[str, list[Row]] = {}
    for row in rows:
        collect.count()
        videos.setdefault(row.video, []).append(row)
    refuse_twins(videos, collect.path, AnnotationError)
    for video_id, group in videos.items():
        said = list(dict.fromkeys(row.duration for row in group if row.duration is not None))
        subsets = list(dict.fromkeys(row.subset for row in group if row.subset))
        lengths = [each for each in said if isinstance(each, float)]
        apart = len(said) > 1
        if apart and len(lengths) == len(said):  # 10 and 10.0, or measured by two programs
            apart = max(lengths) - min(lengths) > _SAME_DURATION
        if apart or len(subsets) > 1:
            what, values = ("duration", said) if apart else ("subset", subsets)
            reason = f"has several values of {what}: {values[:3]}"
            collect.reject(video_id, reason, len(group))
            continue
        collect.video(
            video_id,
            max(lengths) if lengths else next(iter(said), None),
            [(row.start, row.end, row.label) for row in group],
            subset=next(iter(subsets), ""),
            subjects=[row.subject for row in group],
            names=[row.record for row in group],
        )
    return collect.finish()


def write_csv(path: str | Path, videos: Iterable[Video]) -> list[Sequence[str]]:
    """Write the table that :func:`read_csv` reads, and give its rows; seconds to the microsecond.

    A video may come several times, from several files: the longest duration that one says holds for
    all (a warning where they are over a second apart), and an action that two hold is written once.

    Raises:
        OutputError: The file cannot be written.
    """
    videos = list(videos)
    durations = dict[str, list[float]]()
    for video in videos:
        if video.duration is not None:
            durations.setdefault(video.video_id, []).append(video.duration)
    for name, lengths in durations.items():
        if max(lengths) - min(lengths) > _SAME_DURATION:
            text = f"{name}: said to be {min(lengths):g} s and {max(lengths):g} s: is it one video?"
            warnings.warn(ascii_line(text), stacklevel=2)
    rows: list[Sequence[str]] = [("video", "start", "end", "label", "subject", "duration")]
    for video in videos:
        duration = plain(max(durations[video.video_id])) if video.video_id in durations else ""
        for segment in video.segments:
            who = segment.subject or video.subject or ""
            times = plain(segment.start), plain(segment.end)
            rows.append((video.video_id, *times, segment.label, who, duration))
    rows = list(dict.fromkeys(rows))
    replace_text(path, table_text(rows))
    return rows[1:]


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
        quarantine: As of :func:`read_annotations`.
        clip: As of :func:`read_annotations`.
        as_published: Keep every segment of finite times, even empty ones and those beyond the
            end: for rebuilding data sets that were made without such checks.

    Returns:
        Videos by id, in the order of the file; those without any action are among them.

    Raises:
        AnnotationError: The file is no such JSON (the line is named), two ids differ in Unicode
            normalisation alone, or no record can be used.
    """
    content = read_json(path, AnnotationError, allow_nan=True)
    return _activitynet(content, VideoCollector(path, quarantine, clip, as_published))


def _activitynet(content: Any, collect: VideoCollector) -> dict[str, Video]:
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        reason = 'has no "database" object: ActivityNet layout wanted'
        raise AnnotationError(reason, file=collect.path)
    refuse_twins(database, collect.path, AnnotationError)
    for video_id, entry in database.items():
        if not isinstance(entry, dict):
            collect.reject(video_id, "is not an object")
            continue
        given = entry.get("annotations")
        given = [] if given is None else given
        if not isinstance(given, list):
            collect.reject(video_id, '"annotations" is not a list')
            continue
        rows = [
            (*_times(row), row.get("label")) if isinstance(row, dict) else (None, None, None)
            for row in given
        ]
        collect.count(len(rows))
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
    ends are not compared with it. Spreadsheets may separate by semicolon or tab, with a comma as
    decimal point and ``sep=;`` before the header; times may be ``[h:]mm:ss.fff``. The rest is as of
    :func:`read_annotations`.

    Raises:
        AnnotationError: Not such a table, two ids differ in Unicode normalisation alone, or no
            record can be used.
    """
    rows = _csv_rows(read_text(path, AnnotationError), path)
    return _videos(rows, VideoCollector(path, quarantine, clip))


def _csv_rows(text: str, path: str | Path) -> Iterator[Row]:
    mark, _ = separator(text)

    def seconds(cell: str) -> float | str:  # what is no time is shown as it was written
        # Between commas a decimal comma stands in quotes, as sheets of some countries write it.
        value = parse_seconds(cell, comma=mark != "," or not _GROUPS.fullmatch(cell))
        return cell if value is None else value

    for record, row in table_records(text, path, _COLUMNS, _MORE):
        duration = seconds(row["duration"]) if row["duration"] else None
        times, who = (seconds(row["start"]), seconds(row["end"])), row["subject"]
        yield Row(row["video"], *times, row["label"], record, who, duration, row["subset"])


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
        quarantine: As of :func:`read_annotations`.
        clip: As of :func:`read_annotations`.

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
        for line in read_lines(file, AnnotationError)
        if line
    }
    rows: list[Row] = []
    for file in sorted(folder.glob("*_*.txt")):
        label, _, subset = file.stem.rpartition("_")
        for number, line in enumerate(read_lines(file, AnnotationError), start=1):
            words = line.split()
            if not words or label == "Ambiguous":
                continue
            record = f"line {number}"
            if len(words) != 3:
                reason = "a video, a start and an end wanted"
                raise AnnotationError(reason, file=file, record=record)
            video, start, end = words[0], *map(parse_seconds, words[1:])
            length = durations.get(video, "not in the list")
            record = f"{file.name} {record}"
            rows.append(Row(video, start, end, label, record, "", length, subset))
    if not rows:
        raise AnnotationError("holds no annotations: <Class>_<subset>.txt wanted", file=folder)
    rows = sorted((row for row in rows if row.video not in avoid), key=lambda row: row.video)
    return _videos(rows, VideoCollector(folder, quarantine, clip))


def _durations(path: str | Path) -> Mapping[str, float]:
    lines = [line for line in read_lines(path, AnnotationError) if line]
    result = {}
    for number in range(0, len(lines), 2):
        seconds = parse_seconds(lines[number + 1]) if number + 1 < len(lines) else None
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
