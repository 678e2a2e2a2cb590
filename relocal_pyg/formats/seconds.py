"""Moments as text that counts seconds: subtitles, chapters, tables, annotations.

Annotation tools ask for the label; scores go where a format has a place for them.
"""

from __future__ import annotations

import math
import mimetypes
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import count
from typing import Any
from xml.sax.saxutils import escape

from relocal_pyg.formats.clips import (
    Clip,
    by_source,
    clock,
    json_text,
    lanes,
    one_line,
    plain,
    short_clock,
    table_text,
    xml_text,
)

#: What YouTube asks of chapters: this long at least, and this many.
YOUTUBE_SECONDS, YOUTUBE_CHAPTERS = 10, 3

# What a spreadsheet computes; with a hyphen alone an id of YouTube may begin.
_FORMULA = re.compile("[=+@]|-.*[(|!]")
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_EAF_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"


def webvtt(clips: Sequence[Clip]) -> str:
    """Subtitles for web players (WebVTT)."""
    return "WEBVTT\n\n" + _cues(clips, ".", escape)


def srt(clips: Sequence[Clip]) -> str:
    """Subtitles (SubRip)."""
    return _cues(clips, ",", str)


def ffmpeg_chapters(clips: Sequence[Clip]) -> str:
    """Chapters for ``ffmpeg -i VIDEO -i FILE -map 0 -map_chapters 1 -c copy OUT``, milliseconds.

    MP4 lets each chapter run to the next: gaps are chapters named ``-``, and where clips overlap
    the earlier one ends at the start of the later; those that start as one are one.
    """
    spans: list[tuple[int, int, str]] = []
    last = 0
    groups: dict[int, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(_milliseconds(clip.start), []).append(clip)
    for (start, group), following in zip(groups.items(), [*groups, None][1:], strict=True):
        end = max(_milliseconds(max(clip.end for clip in group)), start + 1)
        end = end if following is None else min(end, following)
        if start > last:
            spans.append((last, start, "-"))
        spans.append((start, end, ", ".join(clip.name for clip in group)))
        last = end
    duration = clips[0].source.duration
    if duration is not None and _milliseconds(duration) > last:
        spans.append((last, _milliseconds(duration), "-"))
    lines = [";FFMETADATA1"]
    for start, end, name in spans:
        lines += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={end}"]
        title = one_line(name)
        for char in "\\=;#":
            title = title.replace(char, "\\" + char)
        # A backslash at the end, escaped or not, joins the next line to this one in FFmpeg.
        lines.append(f"title={title}" + " " * title.endswith("\\"))
    return "\n".join(lines) + "\n"


def youtube_chapters(clips: Sequence[Clip]) -> str:
    """Chapters for the description of a YouTube video.

    YouTube wants the first at 0:00, three at least, and ten seconds for each, or shows none: a
    moment that begins too early after another joins it, and a warning says so.
    """
    chapters: list[tuple[int, str]] = [(0, "Start")]
    duration = clips[0].source.duration
    latest = math.inf if duration is None else duration - YOUTUBE_SECONDS
    joined = 0
    for clip in clips:
        start, name = math.floor(clip.start), one_line(clip.name)
        before, text = chapters[-1]
        if start - before >= YOUTUBE_SECONDS and start <= latest:
            chapters.append((start, name))
            continue
        joined += start > before or text != "Start"
        chapters[-1] = before, name if text == "Start" else f"{text}, {name}"
    if joined:
        warnings.warn(
            f"YouTube gives a chapter {YOUTUBE_SECONDS} s at least: {joined} moments joined the "
            "one before",
            stacklevel=2,
        )
    if len(chapters) < YOUTUBE_CHAPTERS:
        warnings.warn(
            f"YouTube shows chapters from {YOUTUBE_CHAPTERS} on, these are {len(chapters)}",
            stacklevel=2,
        )
    return "".join(f"{short_clock(start)} {name}\n" for start, name in chapters)


def losslesscut(clips: Sequence[Clip]) -> str:
    """A project of LosslessCut."""
    segments = [
        {
            "start": clip.start,
            "end": clip.end,
            "name": one_line(clip.name),
            "tags": {} if clip.score is None else {"score": f"{clip.score:.3f}"},
        }
        for clip in (_on_grid(clip, 1_000_000) for clip in clips)
    ]
    name = clips[0].source.name
    return json_text({"version": 2, "mediaFileName": name, "cutSegments": segments})


def losslesscut_csv(clips: Sequence[Clip]) -> str:
    """A table of seconds that LosslessCut opens, three decimals and no exponent."""
    grid = (_on_grid(clip, 1000) for clip in clips)  # without length it refuses the table
    rows = [(f"{clip.start:.3f}", f"{clip.end:.3f}", one_line(clip.name)) for clip in grid]
    return table_text([("Start", "End", "Name"), *rows])


def ranked_csv(clips: Sequence[Clip]) -> str:
    """A table by rank: start and end in seconds, score, probability where known.

    The video is named where it is one of a collection; after an apostrophe where a spreadsheet
    would take the name for a formula. Numbers are written in full.
    """
    names = ["start", "end", "score"]
    if any(clip.probability is not None for clip in clips):
        names.append("probability")
    several = any(clip.source.id for clip in clips)
    rows: list[list[Any]] = [["rank", *["video"] * several, *names]]
    for clip in sorted(clips, key=lambda clip: clip.rank):
        name = clip.source.video_id
        video = ["'" + name if _FORMULA.match(name) else name] * several
        rows.append([clip.rank, *video, *(getattr(clip, name) for name in names)])
    return table_text(rows)


def elan(clips: Sequence[Clip]) -> str:
    """An ELAN document (EAF 3.0), whole milliseconds; overlapping clips go to further tiers."""
    source = clips[0].source
    ET.register_namespace("xsi", _XSI)
    root = ET.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "relocal",
            "DATE": "1970-01-01T00:00:00+00:00",  # the same moments give the same file
            "FORMAT": "3.0",
            "VERSION": "3.0",
            f"{{{_XSI}}}noNamespaceSchemaLocation": _EAF_SCHEMA,
        },
    )
    header = ET.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    media = {"MEDIA_URL": source.url, "RELATIVE_MEDIA_URL": f"./{source.url.rsplit('/', 1)[-1]}"}
    media |= {"MIME_TYPE": mimetypes.guess_type(source.name)[0] or "unknown"}
    ET.SubElement(header, "MEDIA_DESCRIPTOR", media)
    order = ET.SubElement(root, "TIME_ORDER")
    moments = [_on_grid(clip, 1000) for clip in clips]
    times = sorted({time for clip in moments for time in (clip.start, clip.end)})
    slots = {time: f"ts{number}" for number, time in enumerate(times, start=1)}
    for time, slot in slots.items():
        value = str(round(time * 1000))
        ET.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=value)
    numbers = count(1)
    for lane, row in enumerate(lanes(moments), start=1):
        name = "relocal" if lane == 1 else f"relocal-{lane}"
        tier = ET.SubElement(root, "TIER", LINGUISTIC_TYPE_REF="default-lt", TIER_ID=name)
        for clip in row:
            facts = {"TIME_SLOT_REF1": slots[clip.start], "TIME_SLOT_REF2": slots[clip.end]}
            facts |= {"ANNOTATION_ID": f"a{next(numbers)}"}
            parent = ET.SubElement(tier, "ANNOTATION")
            parent = ET.SubElement(parent, "ALIGNABLE_ANNOTATION", facts)
            ET.SubElement(parent, "ANNOTATION_VALUE").text = one_line(clip.label)
    kind = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "default-lt"}
    ET.SubElement(root, "LINGUISTIC_TYPE", kind, TIME_ALIGNABLE="true")
    return xml_text(root)


def boris(clips: Sequence[Clip]) -> str:
    """Rows to paste into the events of a BORIS observation, separated by tabs, START and STOP each.

    Columns: time in seconds, subject, behaviour, modifiers, comment, frame (``NA``). BORIS pairs
    the rows of one behaviour in turn; clips that overlap get a modifier of their own.
    """
    events = []
    for lane, row in enumerate(lanes([_on_grid(clip, 1000) for clip in clips]), start=1):
        for clip in row:
            what = [one_line(clip.subject), one_line(clip.label), "" if lane == 1 else str(lane)]
            events.append((clip.start, 1, "\t".join([*what, clip.caption, "NA"])))
            events.append((clip.end, 0, "\t".join([*what, "", "NA"])))
    # BORIS takes what is between two tabs as it is, quotes too, and no empty line at the end.
    return "\n".join(f"{time:.3f}\t{row}" for time, _, row in sorted(events))


def via(clips: Sequence[Clip]) -> str:
    """A project of the VGG Image Annotator 3: one view for each video."""
    ids: dict[str, str] = {}
    files, views = {}, {}
    for place, (source, _) in enumerate(by_source(clips), start=1):
        ids[source.path] = key = str(place)
        files[key] = {"fid": key, "fname": source.name, "type": 4, "loc": 1, "src": ""}
        views[key] = {"fid_list": [key]}
    metadata = {}
    for number, clip in enumerate(clips):
        view = ids[clip.source.path]
        metadata[f"{view}_{number:08d}"] = {
            "vid": view,
            "flg": 0,
            "z": [round(clip.start, 6), round(clip.end, 6)],
            "xy": [],
            "av": {"1": one_line(clip.label)},
        }
    editor = {f"{name}_metadata_editor_visible": True for name in ("file", "temporal_segment")}
    attribute = {"aname": "label", "anchor_id": "FILE1_Z2_XY0", "type": 1, "desc": "What happens"}
    attribute |= {"options": {}, "default_option_id": ""}
    marks = {"pid": "ID", "rev": "REV_ID", "rev_timestamp": "REV_TIMESTAMP"}  # VIA fills them in
    about = {"project_name": "relocal", "creator": "relocal", "created": 0, "vid_list": [*views]}
    look = {"file_content_align": "center", "spatial_metadata_editor_visible": True}
    look |= {"spatial_region_label_attribute_id": "", "gtimeline_visible_row_count": "4"}
    places = {"loc_prefix": {str(place): "" for place in range(1, 5)}}
    project = {
        "project": {key: f"__VIA_PROJECT_{mark}__" for key, mark in marks.items()} | about,
        "config": {"file": places, "ui": editor | look},
        "attribute": {"1": attribute},
        "file": files,
        "metadata": metadata,
        "view": views,
    }
    return json_text(project)


def audacity(clips: Sequence[Clip]) -> str:
    """A label track of Audacity: start, end (seconds) and text, separated by tabs."""
    return "".join(f"{clip.start:.6f}\t{clip.end:.6f}\t{clip.caption}\n" for clip in clips)


def textgrid(clips: Sequence[Clip]) -> str:
    """A TextGrid of Praat: interval tiers without gaps; overlapping clips go to further tiers."""
    rows = lanes([_on_grid(clip, 1_000_000) for clip in clips])
    end = max(clips[0].source.duration or 0.0, *(row[-1].end for row in rows))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end:.6f}",
        "tiers? <exists>",
        f"size = {len(rows)}",
        "item []:",
    ]
    for lane, row in enumerate(rows, start=1):
        spans: list[tuple[float, float, str]] = []
        last = 0.0
        for clip in row:
            if clip.start > last:
                spans.append((last, clip.start, ""))
            spans.append((clip.start, clip.end, one_line(clip.label).replace('"', '""')))
            last = clip.end
        if round(end, 6) > last:
            spans.append((last, end, ""))
        lines += [
            f"    item [{lane}]:",
            '        class = "IntervalTier"',
            f'        name = "{"relocal" if lane == 1 else f"relocal-{lane}"}"',
            "        xmin = 0",
            f"        xmax = {end:.6f}",
            f"        intervals: size = {len(spans)}",
        ]
        for number, (start, stop, text) in enumerate(spans, start=1):
            lines += [
                f"        intervals [{number}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {stop:.6f}",
                f'            text = "{text}"',
            ]
    return "\n".join(lines) + "\n"


def activitynet(clips: Sequence[Clip]) -> str:
    """JSON in the layout of ActivityNet: as annotations (``database``) and as ``results``."""
    database, results = {}, {}
    for source, group in by_source(clips):
        entry: dict[str, Any] = {} if source.duration is None else {"duration": source.duration}
        subjects = {clip.subject for clip in group}
        if len(subjects) == 1 and "" not in subjects:
            entry["subject"] = one_line(group[0].subject)
        rows = [
            {"segment": [clip.start, clip.end], "label": one_line(clip.label)} for clip in group
        ]
        database[source.video_id] = {**entry, "subset": "", "annotations": rows}
        results[source.video_id] = [
            row | ({} if clip.score is None else {"score": clip.score})
            for row, clip in zip(rows, group, strict=True)
        ]
    return json_text({"version": "relocal", "database": database, "results": results})


def annotation_rows(clips: Sequence[Clip]) -> str:
    """The table that ``relocal train`` reads: video, start, end, label, subject, duration."""
    head = ("video", "start", "end", "label", "subject", "duration")
    rows = (
        (
            clip.source.video_id,
            plain(clip.start),
            plain(clip.end),
            one_line(clip.label),
            one_line(clip.subject),
            "" if clip.source.duration is None else plain(clip.source.duration),
        )
        for clip in clips
    )
    return table_text([head, *rows])


def _milliseconds(seconds: float) -> int:
    return round(max(seconds, 0.0) * 1000)


def _cues(clips: Sequence[Clip], point: str, quote: Callable[[str], str]) -> str:
    cues = []
    for number, clip in enumerate((_on_grid(clip, 1000) for clip in clips), start=1):
        ends = (clock(end).replace(".", point).rjust(12, "0") for end in (clip.start, clip.end))
        cues.append(f"{number}\n{' --> '.join(ends)}\n{quote(clip.caption)}\n")
    return "\n".join(cues)


def _on_grid(clip: Clip, per_second: int) -> Clip:
    """A clip with ends on a grid, so that rounding makes no overlap; never empty."""
    start = round(Fraction(clip.start) * per_second)
    end = max(round(Fraction(clip.end) * per_second), start + 1)
    return replace(clip, start=start / per_second, end=end / per_second)
