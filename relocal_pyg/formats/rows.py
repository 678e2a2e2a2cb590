"""Rows of annotations: what all importers share, and those that read XML (ELAN, CVAT). Seconds.

Importers only translate; whether times make sense is checked in
:mod:`relocal_pyg.data.annotations`. A file is a stranger's: its size is bounded, no entity of it is
expanded, and a record that cannot be translated is set aside under its name.
"""

from __future__ import annotations

import csv
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

from relocal_pyg.errors import AnnotationError, UsageError, ascii_line, check_number
from relocal_pyg.io.read import NOTHING, lines_of, parse_time, tidy

#: Annotations, and lines of a table, that one file may hold.
MAX_ROWS = 250_000
_MAX_COLUMNS, _MAX_CELLS, _MAX_LINE = 1000, 10_000_000, 1 << 20

#: Larger XML is refused, and a tree that takes more memory: what an element, an attribute and a
#: letter take is added up as it grows.
MAX_XML_BYTES, MAX_XML_MEMORY = 128 << 20, 192 << 20
_ELEMENT, _ATTRIBUTE = 100, 150
_MAX_DEPTH, _MAX_TAG = 100, 1 << 20
#: The attributes that are looked at; others are dropped as they come.
_ATTRIBUTES = frozenset(
    [
        *("ANNOTATION_ID", "ANNOTATION_REF", "MEDIA_URL", "MIME_TYPE", "PARTICIPANT"),
        *("RELATIVE_MEDIA_URL", "TIER_ID", "TIME_ORIGIN", "TIME_SLOT_ID", "TIME_SLOT_REF1"),
        *("TIME_SLOT_REF2", "TIME_UNITS", "TIME_VALUE"),
        *("frame", "id", "label", "outside", "task_id"),
    ]
)

#: Frame rates of editing timelines; a measured rate this close to one is that one.
TIMELINE_RATES = tuple(
    sorted(
        [Fraction(base) for base in (24, 25, 30, 48, 50, 60)]
        + [Fraction(base * 1000, 1001) for base in (24, 30, 48, 60)]
    )
)
_SNAP = Fraction(4, 10_000)


@dataclass(frozen=True)
class ImportOptions:
    """What a file of annotations may leave open.

    Attributes:
        media: Which video is meant where a file names several.
        fps: Frames per second, where a file counts frames and does not say.
        point_width: Seconds that an event without length gets, half before it and half after;
            where None such events are set aside.
        modifiers: Make ``label|modifier`` of a label and its modifiers.
    """

    media: str | None = None
    fps: float | None = None
    point_width: float | None = None
    modifiers: bool = False

    def __post_init__(self) -> None:
        for name in ("fps", "point_width"):
            value = getattr(self, name)
            if value is not None:
                check_number(value, name, above=0)


@dataclass(frozen=True, slots=True)
class Row:
    """One annotated action, not checked yet.

    Attributes:
        video: Id of the video: its file name without folder and suffix.
        start: Start in seconds, or what stands in its place.
        end: End in seconds, or what stands in its place.
        label: What happens.
        record: Its name in the file, for messages.
        subject: Who performs; may be empty.
        duration: Of the video in seconds, where the file says so, or what stands in its place.
        subset: Of the data set, such as ``"training"``; may be empty.
    """

    video: str
    start: Any
    end: Any
    label: Any
    record: str
    subject: str = ""
    duration: float | str | None = None
    subset: str = ""


@dataclass(frozen=True)
class Importer:
    """A file that is being read.

    Attributes:
        path: The file.
        options: What it leaves open.
        reject: Takes the name of a record that is set aside, and why.
        addresses: The address that gave each id of a video, as :meth:`id_of` met it.
    """

    path: str | Path
    options: ImportOptions
    reject: Callable[[str, str], None]
    addresses: dict[str, str] = field(default_factory=dict)

    def error(self, reason: str, record: str | None = None) -> AnnotationError:
        """An error that names the file."""
        return AnnotationError(reason, file=self.path, record=record)

    def id_of(self, address: str, short: str | None = None) -> str:
        """Id of a video by its address, or a shorter one; a warning where another has the same."""
        name = video_of(short or address)
        first = self.addresses.setdefault(name, address)
        if first not in ("", address):
            self.addresses[name] = ""  # said once
            text = f"{self.path}: {first} and {address} are both taken for the video {name}"
            warnings.warn(ascii_line(text), stacklevel=2)
        return name

    def video(self, names: Sequence[str]) -> str:
        """The one video, or that of several which the options name.

        Raises:
            AnnotationError: The options name none of them.
        """
        if len(set(names)) == 1:
            return names[0]
        shown = ", ".join(repr(name) for name in names[:9]) + ", ..." * (len(names) > 9)
        if self.options.media is None:
            raise self.error(f"names several media, choose one (relocal convert --media): {shown}")
        wanted = video_of(self.options.media)
        if wanted not in names:
            raise self.error(f"the media {wanted!r} is none of {shown}")
        return wanted

    def fps(self, stated: Any, record: str | None = None) -> float:
        """Frames per second: as the file states, else as the options do; rounded ones exact.

        Raises:
            AnnotationError: Neither does.
        """
        rate = positive(stated) or self.options.fps
        if rate is None:
            raise self.error(
                "counts frames and does not say how fast: relocal convert --fps", record
            )
        return float(timeline_rate(rate)) or rate

    def label(self, label: str, modifiers: Iterable[str]) -> str:
        """A label with its modifiers, where they are wanted."""
        words = [word.strip() for word in modifiers if word.strip() not in ("", "None")]
        return "|".join([label.strip(), *words]) if self.options.modifiers else label.strip()

    def point(self, row: Row) -> Iterator[Row]:
        """A stretch around the point in time ``row.start``, inside the video."""
        time = finite(row.start)
        if self.options.point_width is None:
            reason = "is a point in time, not a stretch: relocal convert --point-width"
            self.reject(row.record, reason)
        elif time is None:
            self.reject(row.record, "a time in seconds wanted")
        else:
            half = self.options.point_width / 2
            last = finite(row.duration)
            start, end = max(time - half, 0.0), time + half
            end = end if last is None else min(end, last)
            yield replace(row, start=round(start, 6), end=round(end, 6))


def separator(text: str) -> tuple[str, int]:
    r"""What separates the cells of a table, and how many lines come before its header.

    Spreadsheets write ``;`` where the comma is a decimal point, and may say so in a first line.

    Example:
        >>> separator("sep=;\nvideo;start"), separator("video,start"), separator("a\tb")
        ((';', 1), (',', 0), ('\t', 0))
    """
    first = next(lines_of(text), "").strip('\r\n" ')
    if re.fullmatch(r"sep=[,;\t|]", first, re.IGNORECASE):
        return first[4:], 1
    return max(",;\t", key=first.count), 0


def table_lines(text: str | Iterable[str], path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of a table with their numbers, cells without the blanks around them.

    Lines of a table that is given by them are separated by commas.

    Raises:
        AnnotationError: The quoting is broken, or there are too many columns, lines or cells.
    """
    mark, skip = separator(text) if isinstance(text, str) else (",", 0)
    held = fed = 0

    def lines() -> Iterator[str]:
        nonlocal fed
        for line in lines_of(text) if isinstance(text, str) else text:
            fed += len(line)
            if fed > _MAX_LINE:
                raise csv.Error(f"a line of over {_MAX_LINE} letters")
            yield line

    reader = csv.reader(lines(), delimiter=mark, skipinitialspace=True, strict=True)
    try:
        for number, cells in enumerate(reader):
            held, fed = held + len(cells), 0
            if len(cells) > _MAX_COLUMNS:
                raise csv.Error(f"more than {_MAX_COLUMNS} columns")
            if number > MAX_ROWS or held > _MAX_CELLS:
                reason = f"has over {MAX_ROWS:,} lines or {_MAX_CELLS:,} cells: split it"
                raise AnnotationError(reason, file=path)
            if reader.line_num > skip:
                yield reader.line_num, [cell.strip(NOTHING) for cell in cells]
    except csv.Error as problem:
        record = f"line {reader.line_num or 1}"
        raise AnnotationError(f"is not a table: {problem}", file=path, record=record) from None


def table_records(
    text: str, path: str | Path, needed: Sequence[str], known: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of a table, named, as cells by the columns that its first line names, in any case.

    Empty lines are left out, and cells that a line has not are empty.

    Raises:
        AnnotationError: As :func:`table_lines`, a needed column is missing, one of those or of the
            ``known`` ones is there twice, or a line has more cells than the first.
    """
    lines = table_lines(text, path)
    first, head = next(lines, (1, []))
    head, record = [name.lower() for name in head], f"line {first}"
    if not head:
        raise AnnotationError("is not a table: its first line is empty", file=path)
    if missing := [name for name in needed if name not in head]:
        raise AnnotationError(f"has no column {', '.join(missing)}", file=path, record=record)
    if twice := [name for name in (*needed, *known) if head.count(name) > 1]:
        raise AnnotationError(f"has more than one column {twice[0]}", file=path, record=record)
    for number, cells in lines:
        record = f"line {number}"
        if any(cells[len(head) :]):
            reason = f"is not a table: {len(cells)} cells, {len(head)} in the first line"
            raise AnnotationError(reason, file=path, record=record)
        if any(cells):
            yield record, dict.fromkeys((*known, *head), "") | dict(zip(head, cells, strict=False))


def parse_seconds(text: str, comma: bool = False) -> float | None:
    """Seconds of a cell: a number or ``[h:]mm:ss[.fff]``, maybe with a comma; None for neither.

    Example:
        >>> parse_seconds("12.5"), parse_seconds("1:02:03.5"), parse_seconds("12,5", comma=True)
        (12.5, 3723.5, 12.5)
    """
    try:
        return parse_time(text.replace(",", ".") if comma else text)
    except UsageError:
        return None


def video_of(name: str) -> str:
    r"""Id of a video from its path or address, in any system's notation.

    Example:
        >>> video_of("file:///C:/films/my%20film.mp4"), video_of("C:\\films\\day 1.5.mov")
        ('my film', 'day 1.5')
    """
    if re.match("https?:", name):  # elsewhere these are letters of a name
        name = re.sub("[?#].*", "", name)
    plain = unquote(name) if re.match(r"(file|https?|s3|gs):|\.\.?/|/data/", name) else name
    last = tidy(re.split(r"[/\\]", plain)[-1])
    suffix = r"(?<=.)\.(mpeg-4|dvr-ms|26[45]|(?=[0-9]*[a-z])[0-9a-z]{2,5})$"
    return safe_name(re.sub(suffix, "", last, flags=re.IGNORECASE | re.ASCII))


def safe_name(stem: str) -> str:
    """Composed text of at most 255 bytes; what cannot be printed, and slashes, are ``_``."""
    safe = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in tidy(stem))
    return safe.encode()[:255].decode(errors="ignore")


def timeline_rate(rate: float | Fraction) -> Fraction:
    """The exact rate behind a measured or rounded one; others stay as they are.

    Example:
        >>> timeline_rate(29.97), timeline_rate(Fraction(19001, 634)), timeline_rate(12.5)
        (Fraction(30000, 1001), Fraction(30000, 1001), Fraction(25, 2))
    """
    exact = Fraction(rate).limit_denominator(1_000_000)
    nearest = min(TIMELINE_RATES, key=lambda known: abs(known - exact))
    return nearest if abs(nearest - exact) <= _SNAP * nearest else exact


def finite(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def positive(value: Any) -> float | None:
    """A finite number above 0, or None."""
    number = finite(value)
    return number if number is not None and number > 0 else None


def whole(value: Any) -> int | None:
    """A whole number, also one in digits, or None."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\d{1,9}", value) else None
    number = finite(value)
    return None if number is None or number != int(number) else int(number)


def read_xml(path: str | Path) -> ET.Element:
    """Parse XML that has no document type, so no entities, and little depth.

    Raises:
        AnnotationError: Missing, too large, not well-formed, or with one of those.
    """
    builder, depth, taken = ET.TreeBuilder(), 0, 0
    parser = expat.ParserCreate()

    def problem(reason: str) -> AnnotationError:
        return AnnotationError(reason, file=path, record=f"line {parser.CurrentLineNumber}")

    def take(size: int) -> None:
        nonlocal taken
        taken += size
        if taken > MAX_XML_MEMORY:
            reason = f"holds more elements than fit {MAX_XML_MEMORY >> 20} MiB: export less at once"
            raise problem(reason)

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise problem("is nested too deep")
        kept = {each: value for each, value in attributes.items() if each in _ATTRIBUTES}
        take(_ELEMENT + _ATTRIBUTE * len(kept) + sum(map(len, kept.values())))
        builder.start(name, kept)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def data(text: str) -> None:
        take(len(text))
        builder.data(text)

    def refuse(*_: Any) -> None:
        raise problem("has a document type, which may hide entities: remove the <!DOCTYPE ...>")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.StartDoctypeDeclHandler = refuse
    try:
        if not Path(path).is_file():
            raise AnnotationError("does not exist or is not a regular file", file=path)
        if Path(path).stat().st_size > MAX_XML_BYTES:
            raise AnnotationError(f"is over {MAX_XML_BYTES} bytes: split it", file=path)
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 16):
                parser.Parse(chunk)
                if stream.tell() - parser.CurrentByteIndex > _MAX_TAG:
                    raise problem(f"has a tag of over {_MAX_TAG} bytes: it is no annotation")
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise problem(f"is not XML: {expat.ErrorString(error.code)}") from None
    except (OSError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise AnnotationError(f"cannot be read ({error})", file=path) from None
    return builder.close()


def xml_rows(importer: Importer) -> Iterator[Row]:
    """Rows of an ELAN document or of CVAT's XML.

    Raises:
        AnnotationError: Not readable (:func:`read_xml`), of another kind, or the options have to
            say more.
    """
    root = read_xml(importer.path)
    if root.tag == "ANNOTATION_DOCUMENT":
        return _elan(root, importer)
    if root.tag == "annotations":
        return _cvat(root, importer)
    raise importer.error(f"<{root.tag}> is neither ELAN nor CVAT for video")


def _elan(root: ET.Element, importer: Importer) -> Iterator[Row]:
    header = root.find("HEADER")
    units = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
    if units != "milliseconds":
        raise importer.error(f"times are {units}: milliseconds wanted")
    media = root.findall("HEADER/MEDIA_DESCRIPTOR")
    media.sort(key=lambda entry: not entry.get("MIME_TYPE", "").startswith("video"))
    films = [entry for entry in media if entry.get("MIME_TYPE", "").startswith("video")]
    if len(films) == 1 and importer.options.media is None:  # the others are its sound
        media = films
    addresses = (m.get("RELATIVE_MEDIA_URL") or m.get("MEDIA_URL") or "" for m in media)
    names = [(importer.id_of if media == films else video_of)(address) for address in addresses]
    video = importer.video(names or [Path(importer.path).stem])
    origin = 0.0
    if names:  # what comes before time 0 of the document
        origin = parse_seconds(media[names.index(video)].get("TIME_ORIGIN", "0")) or 0.0
    slots = {
        slot.get("TIME_SLOT_ID", ""): parse_seconds(slot.get("TIME_VALUE", ""))
        for slot in root.iterfind("TIME_ORDER/TIME_SLOT")
    }
    parents: dict[str, str] = {}
    # By the element too: files that were put together have one id twice.
    spans: dict[str | ET.Element, tuple[float | None, float | None]] = {}
    for tier in root.iterfind("TIER"):
        aligned = tier.findall("ANNOTATION/ALIGNABLE_ANNOTATION")
        ends = [(a.get("TIME_SLOT_REF1", ""), a.get("TIME_SLOT_REF2", "")) for a in aligned]
        between = _spread(ends, slots)
        for annotation, (one, two) in zip(aligned, ends, strict=True):
            span = between.get(one, slots.get(one)), between.get(two, slots.get(two))
            spans[annotation] = spans[annotation.get("ANNOTATION_ID", "")] = span
        for annotation in tier.iterfind("ANNOTATION/REF_ANNOTATION"):
            name = annotation.get("ANNOTATION_ID", "")
            parents[name] = annotation.get("ANNOTATION_REF", "")
    for tier in root.iterfind("TIER"):
        for annotation in tier.iterfind("ANNOTATION/*"):
            name = annotation.get("ANNOTATION_ID", "")
            record = f"tier {tier.get('TIER_ID', '')!r} annotation {name}"
            seen: set[str] = set()
            while name in parents and name not in seen:  # a child has its parent's time
                seen.add(name)
                name = parents[name]
            parents.update(dict.fromkeys(seen, name))  # the next child need not go all the way
            start, end = spans.get(annotation) or spans.get(name, (None, None))
            if start is None or end is None:
                importer.reject(record, "its time slots have no value")
                continue
            label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
            who = tier.get("PARTICIPANT", "").strip()
            yield Row(video, (start + origin) / 1000, (end + origin) / 1000, label, record, who)


def _spread(ends: Sequence[tuple[str, str]], slots: Mapping[str, float | None]) -> dict[str, float]:
    """Times of slots without one, between neighbours that have one: evenly, as ELAN shows them."""
    found: dict[str, float] = {}
    chain: list[str] = []
    for number, (one, two) in enumerate(ends):
        chain = chain or [one]
        chain.append(two)
        goes_on = number + 1 < len(ends) and ends[number + 1][0] == two
        if goes_on and slots.get(two) is None:
            continue
        first, last = slots.get(chain[0]), slots.get(chain[-1])
        if first is not None and last is not None:
            for place, slot in enumerate(chain[1:-1], start=1):
                found[slot] = first + (last - first) * place / (len(chain) - 1)
        chain = []
    return found


def _cvat(root: ET.Element, importer: Importer) -> Iterator[Row]:
    tasks = [*root.iterfind("meta/task"), *root.iterfind("meta/project/tasks/task")]
    tasks += root.iterfind("meta/job")
    videos = {
        task.findtext("id", ""): importer.id_of(
            task.findtext("source") or task.findtext("name") or ""
        )
        for task in tasks
    }
    tracks = root.findall("track")
    if not tracks:
        raise importer.error("has no <track>: export as CVAT for video 1.1")
    fps = importer.fps(None)

    @cache
    def the_video() -> str:
        return importer.video(list(filter(None, videos.values())) or [Path(importer.path).stem])

    for track in tracks:
        record = f"track {track.get('id', '')}"
        task_id = track.get("task_id", "")
        video = importer.video([videos[task_id]]) if task_id in videos else the_video()
        for first, stop in _shown(track, record, importer):
            label = track.get("label", "")
            yield Row(video, first / fps, stop / fps, label, f"{record} frame {first}")


def _shown(track: ET.Element, record: str, importer: Importer) -> Iterator[tuple[int, int]]:
    """First frame of each run in which an object is in the picture, and the frame after it."""
    first: int | None = None
    last = -1
    shapes: list[tuple[int, bool]] = []
    for shape in track:
        frame = whole(shape.get("frame"))
        if frame is None:
            importer.reject(record, "a shape has no frame number")
        else:
            # Of a skeleton its points say it.
            told = [each.get("outside") for each in (shape, *shape.iterfind("points"))]
            told = told[:1] if told[0] is not None else told[1:]
            shapes.append((frame, set(told) == {"1"}))
    # Tools that merge tracks, and people, do not keep them in order.
    for frame, outside in sorted(shapes, key=lambda shape: shape[0]):
        if outside and first is not None:
            yield first, frame
            first = None
        elif not outside and first is None:
            first = frame
        last = frame
    if first is not None:
        yield first, last + 1
