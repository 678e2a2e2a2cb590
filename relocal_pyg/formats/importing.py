"""Annotations in from JSON and tables: BORIS, VIA 3, Label Studio, saved queries. Seconds."""

from __future__ import annotations

import json
import math
import mimetypes
import re
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from typing import Any

from relocal_pyg.errors import ascii_line
from relocal_pyg.formats.rows import (
    MAX_ROWS,
    Importer,
    Row,
    finite,
    parse_seconds,
    positive,
    table_lines,
    video_of,
    whole,
)
from relocal_pyg.io.read import json_memory, lines_of

#: A table of BORIS 7 has some lines above its header, one for each variable of the observation.
_MAX_PREAMBLE = 200
#: What says which files an observation is of, and how long each is.
_OBSERVATION = (
    *("Observation id", "Source", "Time offset (s)"),
    *("Media duration (s)", "Total length"),
)
#: What the JSON in a cell may take in memory.
_MAX_CELL_MEMORY, _SHORT = 32 << 20, 100_000

Record = dict[str, str]


def json_rows(content: Any, importer: Importer) -> Iterator[Row] | None:
    """Rows of a BORIS or VIA 3 project, Label Studio tasks, a saved query; None for any other JSON.

    Raises:
        AnnotationError: The options have to say more.
    """
    if isinstance(content, list) and content and all(isinstance(task, dict) for task in content):
        return _label_studio(content, importer)
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("observations"), dict) and "behaviors_conf" in content:
        return _boris_project(content, importer)
    if all(isinstance(content.get(key), dict) for key in ("metadata", "view", "file", "attribute")):
        return _via(content, importer)
    if str(content.get("schema")).startswith("relocal_pyg.moments/"):
        return _saved_query(content, importer)
    return None


def _saved_query(content: Mapping[str, Any], importer: Importer) -> Iterator[Row]:
    """The clip of a saved query, its examples, and the answers with a yes; its file names them."""
    label = video_of(str(importer.path))
    span = content.get("query_span")
    if is_still(content.get("query")):
        importer.reject("query", "is words or a picture, not a stretch of a video")
    elif isinstance(span, list) and len(span) == 2 and None not in span:
        yield Row(_saved_video(content.get("query")), span[0], span[1], label, "query")
    for kind in ("examples", "moments"):
        for number, each in enumerate(_dicts(content.get(kind)), start=1):
            if each.get("good") is True:
                video = _saved_video(each.get("video") or content.get("reference"))
                yield Row(video, each.get("start"), each.get("end"), label, f"{kind} {number}")


def is_still(query: object) -> bool:
    """Whether what a saved query names is words, which stand in quotes, or a picture."""
    kind = mimetypes.guess_type(str(query))[0] or ""
    return str(query).startswith('"') or (kind.startswith("image/") and kind != "image/gif")


def _is_media(address: str) -> bool:
    kinds = (mimetypes.guess_type(text)[0] or "" for text in (address, address.split("?")[0]))
    return any(kind.startswith(("video/", "audio/")) for kind in kinds)


def _saved_video(place: object) -> str:
    """Id of a video from its file, or from ``features.h5::ID``."""
    features = re.fullmatch(r".*?\.\w+::(.+)", str(place), re.DOTALL)
    return features[1] if features else video_of(str(place))


def table_rows(text: str, importer: Importer) -> Iterator[Row] | None:
    """Rows of a table of BORIS (aggregated or tabular events) or VIA 3; None for any other table.

    Raises:
        AnnotationError: The quoting is broken, there are too many columns, lines or cells, or the
            options have to say more.
    """
    if re.search(r'^"?# CSV_HEADER = ', text[:100_000], re.MULTILINE):
        return _via_table(text, importer)
    above: list[list[str]] = []
    for number, head in table_lines(text, importer.path):
        # Read anew each time: all lines at once would take many times the memory of the text.
        table = partial(_records, text, importer, head, number)
        if "Behavior" in head and ("Start (s)" in head or "Time" in head):
            return _boris_table(table, above, "Start (s)" in head, importer)
        if "temporal_segment_start" in head and "file_list" in head:
            return _via_records(table(), {}, importer)
        above.append(head)
        if len(above) > _MAX_PREAMBLE or {"video", "start", "end"} <= set(head):
            break
    return None


def _records(
    text: str | Sequence[str], importer: Importer, head: Sequence[str], after: int
) -> Iterator[tuple[str, Record]]:
    """Lines of a table that are not empty, by their number and the names of their columns."""
    for number, cells in table_lines(text, importer.path):
        if number > after and any(cells):
            yield f"line {number}", dict(zip(head, cells, strict=False))


# Label Studio


def _label_studio(tasks: Sequence[dict[str, Any]], importer: Importer) -> Iterator[Row]:
    predicted = 0
    for number, task in enumerate(tasks):
        name = f"task {task.get('id', number)}"
        data = task.get("data")
        if not isinstance(data, dict):
            raise importer.error("has no data: export as JSON, not JSON-MIN", name)
        texts = [text for text in (data.get("video"), *data.values()) if isinstance(text, str)]
        texts = [re.sub(r"""(?s)\A\s*<.*?\bsrc=["'](.*?)["'].*""", r"\1", text) for text in texts]
        if not isinstance(data.get("video"), str):  # a name and more may stand before the media
            texts.sort(key=lambda text: not _is_media(text))
        address = next(iter(texts), "")
        served = r".*/data/(upload/(.*/)?[0-9a-f]{8}-|local-files/\?d=)"
        video = importer.id_of(address, re.sub(served, "/data/", address))
        given = _dicts(task.get("annotations"))
        done = [answer for answer in given if not answer.get("was_cancelled")]
        guessed = [] if given else _dicts(task.get("predictions"))[:1]
        predicted += len(guessed)
        if given and not done:
            importer.reject(name, "was skipped by its annotator")
        for other in done[1:]:
            importer.reject(f"{name} annotation {other.get('id', '')}", "is of a further annotator")
        for answer in done[:1] or guessed:
            for place, result in enumerate(_dicts(answer.get("result"))):
                record = f"{name} result {result.get('id', place)}"
                yield from _label_studio_rows(result, video, data.get("fps"), importer, record)
    if predicted:
        text = f"{importer.path}: predictions were read of tasks without annotations: {predicted}"
        warnings.warn(ascii_line(text), stacklevel=2)


def _label_studio_rows(
    result: dict[str, Any], video: str, fps: Any, importer: Importer, record: str
) -> Iterator[Row]:
    kind, value = result.get("type"), result.get("value")
    if not isinstance(value, dict) or kind not in ("timelinelabels", "labels"):
        importer.reject(record, f"is {kind!r}, not a stretch of time")
        return
    spans: list[tuple[Any, Any]] = [(value.get("start"), value.get("end"))]  # of sound: seconds
    if kind == "timelinelabels":  # of pictures: frames from 1 on, the last one included
        rate, spans = importer.fps(fps, record), []
        for stretch in _dicts(value.get("ranges")):
            first, last = whole(stretch.get("start")), whole(stretch.get("end"))
            start = None if first is None else (first - 1) / rate
            spans.append((start, None if last is None else last / rate))
    labels = value.get(kind)
    for label in labels if isinstance(labels, list) else [None]:
        for start, end in spans:
            yield Row(video, start, end, label, record)


# VIA 3


def _via(content: Mapping[str, Any], importer: Importer) -> Iterator[Row]:
    @cache
    def video(view_id: str) -> str | None:
        view = content["view"].get(view_id)
        fids = view.get("fid_list") if isinstance(view, dict) else None
        files = [content["file"].get(str(f)) for f in (fids if isinstance(fids, list) else [])]
        names = [importer.id_of(str(file.get("fname", ""))) for file in _dicts(files)]
        return importer.video(names) if names else None

    for key, entry in content["metadata"].items():
        entry = entry if isinstance(entry, dict) else {}
        values = entry.get("av")
        label = _via_label(
            values if isinstance(values, dict) else {}, content["attribute"], importer
        )
        row = Row("", entry.get("z"), None, label, f"metadata {key}")
        yield from _via_rows(partial(video, str(entry.get("vid"))), row, entry.get("xy"), importer)


def _via_table(text: str, importer: Importer) -> Iterator[Row]:
    attributes: Any = {}
    head: list[str] = []
    body: list[str] = []
    for number, line in enumerate(lines_of(text)):
        comment = re.match(r'"?# (ATTRIBUTES?|CSV_HEADER) = (.*)', line)
        if comment and comment[1] == "CSV_HEADER":
            head = [name.strip() for name in comment[2].split(",")]
        elif comment:
            attributes = _loads(comment[2])
        body.append("\n" if line.startswith(("#", '"#')) else line)  # line numbers stay
        if number > MAX_ROWS:
            break  # reading it as a table says so
    table = _records(body, importer, head, 0)
    yield from _via_records(table, attributes if isinstance(attributes, dict) else {}, importer)


def _via_records(
    table: Iterable[tuple[str, Record]], attributes: Mapping[str, Any], importer: Importer
) -> Iterator[Row]:
    for record, cells in table:
        names, values = _loads(cells.get("file_list")), _loads(cells.get("metadata"))
        if not isinstance(names, list) or not isinstance(values, dict):
            importer.reject(record, "a list of files and attributes, in JSON, wanted")
            continue
        times = _loads(cells.get("temporal_coordinates"))
        if "temporal_segment_start" in cells:  # before version 3.0.5
            ends = (cells.get(f"temporal_segment_{end}", "") for end in ("start", "end"))
            times = [parse_seconds(end) for end in ends if end]
        place = _loads(cells.get("spatial_coordinates"))
        label = _via_label(values, attributes, importer)
        ids = [importer.id_of(str(name)) for name in names]
        video = partial(importer.video, ids) if ids else lambda: None
        yield from _via_rows(video, Row("", times, None, label, record), place, importer)


def _via_label(values: Mapping[str, Any], attributes: Mapping[str, Any], importer: Importer) -> str:
    """The first attribute of an annotation; the others are its modifiers."""
    words = [""] if not values else []
    for key in sorted(values, key=lambda key: (len(key), key)):
        attribute = attributes.get(key)
        choices = attribute.get("options") if isinstance(attribute, dict) else None
        text = str(values[key])
        if isinstance(choices, dict):
            parts = [text] if text in choices else text.split(",")  # boxes that are ticked
            if all(part in choices for part in parts):
                text = ",".join(str(choices[part]) for part in parts)
        words.append(text)
    return importer.label(words[0], words[1:])


def _via_rows(
    video: Callable[[], str | None], row: Row, place: Any, importer: Importer
) -> Iterator[Row]:
    """Rows of an annotation; its ``start`` holds one time or two."""
    times = row.start
    if place:
        importer.reject(row.record, "is a place in the picture, not a stretch of time")
    elif not isinstance(times, list) or len(times) not in (1, 2):
        importer.reject(row.record, "has no start and end")
    elif (name := video()) is None:
        importer.reject(row.record, "belongs to no file")
    else:
        row = replace(row, video=name, start=times[0], end=times[-1])
        yield from importer.point(row) if len(times) == 1 else [row]


# BORIS


@dataclass(frozen=True)
class _Event:
    """A moment of a BORIS observation: time on its clock, what, who, how, in which file."""

    time: float
    subject: str
    behaviour: str
    modifiers: tuple[str, ...]
    record: str
    file: str = ""


class _Observation:
    """The files of one observation and the events on their common clock.

    Args:
        files: Those of player 1, which play one after the other.
        lengths: Their durations in seconds, where known.
        ordered: Whether the files are in the order in which they play.
        offset: What the observation's clock shows at the start of the first, in seconds.
    """

    def __init__(
        self,
        files: Sequence[str],
        lengths: Sequence[float | None],
        offset: float,
        importer: Importer,
        ordered: bool = True,
    ) -> None:
        self.names = [importer.id_of(file) for file in files]
        self.lengths, self.offset, self.importer = lengths, offset, importer
        # Where each begins; not a number after one of unknown length.
        first = 0.0 if ordered or len(files) == 1 else math.nan
        self.begins = list(accumulate((length or math.nan for length in lengths), initial=first))
        self._known = [begin for begin in self.begins if not math.isnan(begin)]
        self._only = {name: place for place, name in enumerate(self.names)}
        for name, count in Counter(self.names).items():
            if count > 1:
                del self._only[name]
        self._open: dict[tuple[object, ...], _Event] = {}

    def span(self, event: _Event, end: float) -> Iterator[Row]:
        """The row of an event that lasts until ``end``, on the clock of its own file."""
        row = self._row(event)
        if row is not None:
            yield replace(row, end=round(row.start + end - event.time, 6))

    def point(self, event: _Event) -> Iterator[Row]:
        """The row of an event without length."""
        row = self._row(event)
        if row is not None:
            yield from self.importer.point(row)

    def start(self, event: _Event) -> None:
        """Wait for the event that ends this one."""
        before = self._open.pop(self._key(event), None)
        if before is not None:
            self.importer.reject(before.record, "is started again before it is stopped")
        self._open[self._key(event)] = event

    def stop(self, event: _Event) -> Iterator[Row]:
        """The row that this event ends."""
        begun = self._open.pop(self._key(event), None)
        if begun is None:
            self.importer.reject(event.record, "is stopped and was not started")
        else:
            yield from self.span(begun, event.time)

    def toggle(self, event: _Event) -> Iterator[Row]:
        """Stop what goes on, else start it."""
        if self._key(event) in self._open:
            yield from self.stop(event)
        else:
            self.start(event)

    def close(self) -> None:
        """Report what was never stopped."""
        for event in self._open.values():
            self.importer.reject(event.record, "is started and never stopped")

    @staticmethod
    def _key(event: _Event) -> tuple[object, ...]:
        return event.subject, event.behaviour, event.modifiers

    def _row(self, event: _Event) -> Row | None:
        time = event.time - self.offset
        place = self._place(time, video_of(event.file))
        if math.isnan(self.begins[place]):
            self.importer.reject(
                event.record,
                "times run on over several files, and how long those before this one are is not "
                "said: read the .boris project instead",
            )
            return None
        start = round(time - self.begins[place], 6)
        label = self.importer.label(event.behaviour, event.modifiers)
        who = "" if event.subject == "No focal subject" else event.subject
        name, length = self.names[place], self.lengths[place]
        return Row(name, start, start, label, event.record, who, length)

    def _place(self, time: float, name: str) -> int:
        """Which file an event is in: the one that is named, else the one that plays then."""
        if name in self._only:
            return self._only[name]
        place = bisect_right(self._known, time) - 1
        playing = 0 <= place < len(self._known) - 1
        return place if playing else 0 if time < 0 else len(self.names) - 1


def _boris_project(content: Mapping[str, Any], importer: Importer) -> Iterator[Row]:
    behaviours = content["behaviors_conf"]
    entries = behaviours.values() if isinstance(behaviours, dict) else []
    kinds = {str(entry.get("code")): str(entry.get("type")) for entry in _dicts(list(entries))}
    for name, given in content["observations"].items():
        record = f"observation {name!r}"
        given = given if isinstance(given, dict) else {}
        files = given.get("file")
        first = files.get("1") if isinstance(files, dict) else None
        if not isinstance(first, list) or not first or given.get("type") != "MEDIA":
            importer.reject(record, "is not of a media file")
            continue
        facts = given.get("media_info")
        lengths = facts.get("length") if isinstance(facts, dict) else None
        known = lengths if isinstance(lengths, dict) else {}
        observation = _Observation(
            [str(file) for file in first],
            [positive(known.get(str(file))) for file in first],
            finite(given.get("time offset")) or 0.0,
            importer,
        )
        events = given.get("events")
        for number, cells in enumerate(events if isinstance(events, list) else []):
            place = f"{record} event {number}"
            time = finite(cells[0]) if isinstance(cells, list) and len(cells) >= 4 else None
            if time is None:
                importer.reject(place, "time, subject, code and modifier wanted")
                continue
            who, code, modifier = (str(cell) for cell in cells[1:4])
            event = _Event(time, who, code, tuple(modifier.split("|")), place)
            if code not in kinds:
                importer.reject(place, f"{code!r} is none of the project's behaviours")
            elif kinds[code].startswith("Point"):
                yield from observation.point(event)
            else:
                yield from observation.toggle(event)
        observation.close()


def _boris_table(
    table: Callable[[], Iterator[tuple[str, Record]]],
    above: Sequence[Sequence[str]],
    aggregated: bool,
    importer: Importer,
) -> Iterator[Row]:
    """Rows of aggregated events, a start and a stop each, or of tabular ones, in turn."""
    # Version 7 puts above the header what is the same for all events.
    common = {cells[0]: cells[1] for cells in above if len(cells) > 1}
    listed = [cells[1] for cells in above if len(cells) > 1 and cells[0] == "Player #1"]
    named: dict[str, dict[str, None]] = {}
    for _, cells in table():
        named.setdefault(cells.get("Observation id", ""), {})[_boris_file(cells)] = None
    observations: dict[object, _Observation] = {}
    for record, cells in table():
        time = parse_seconds(cells.get("Start (s)" if aggregated else "Time", ""), True)
        event = _boris_event(cells, time, record, importer)
        if event is None:
            continue
        name = cells.get("Observation id", "")
        key = tuple(map(cells.get, _OBSERVATION)) if aggregated else name
        if key not in observations:
            facts = {**common, **cells}
            observations[key] = _boris_observation(facts, named[name], listed, importer)
        observation = observations[key]
        status = (cells.get("Behavior type") or cells.get("Status") or "").upper()
        end = parse_seconds(cells.get("Stop (s)", ""), True) if aggregated else None
        if status == "POINT":
            yield from observation.point(event)
        elif end is not None:
            yield from observation.span(event, end)
        elif aggregated:
            importer.reject(record, "has no stop in seconds")
        elif status == "START":
            observation.start(event)
        elif status == "STOP":
            yield from observation.stop(event)
        else:
            importer.reject(record, f"is {status!r}: START, STOP or POINT wanted")
    for observation in observations.values():
        observation.close()


def _boris_observation(
    cells: Record, named: Iterable[str], listed: Sequence[str], importer: Importer
) -> _Observation:
    """The files of player 1 and their lengths, as a row or the lines above it say them."""
    if cells.get("Source", "").startswith("player #1:"):
        first = re.split(r"player #\d+:", cells["Source"])[1].strip().removesuffix("|")
        listed = [name.strip() for name in first.split(";") if name.strip()]
    files = listed or list(named)
    durations = cells.get("Media duration (s)") or cells.get("Total length") or ""
    lengths = [parse_seconds(text, True) for text in durations.split("|")[0].split(";")]
    if len(lengths) != len(files):  # the sum of all, in older versions
        lengths = [None] * len(files)
    offset = parse_seconds(cells.get("Time offset (s)", ""), True) or 0.0
    return _Observation(files, lengths, offset, importer, ordered=bool(listed))


def _boris_event(
    cells: Record, time: float | None, record: str, importer: Importer
) -> _Event | None:
    file, kind = _boris_file(cells), cells.get("Observation type", "Media")
    if not kind.lower().startswith("media") or file in ("", "NA", "Not found"):
        importer.reject(record, "is not of a media file")
        return None
    if time is None:
        importer.reject(record, "has no time in seconds")
        return None
    modifiers = tuple(
        word
        for name, cell in cells.items()
        if cell and re.fullmatch(r"Modifiers?( #?\d+)?", name)
        for word in cell.split("|")
    )
    who, what = cells.get("Subject", ""), cells.get("Behavior", "")
    return _Event(time, who, what, modifiers, record, file)


def _boris_file(cells: Mapping[str, str]) -> str:
    names = ("Media file name", "Media file", "Media file path")
    return next((cells[name] for name in names if cells.get(name)), "")


def _loads(text: str | None) -> Any:
    if not text or (len(text) > _SHORT and json_memory(text) > _MAX_CELL_MEMORY):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
