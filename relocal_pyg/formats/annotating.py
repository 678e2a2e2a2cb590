"""Moments as annotations, for ELAN, BORIS, VIA, Label Studio, CVAT, Praat, Audacity, ActivityNet.

What these programs ask for is the label; scores go where a format has a place for them.
"""

from __future__ import annotations

import csv
import io
import json
import mimetypes
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import count
from typing import Any

from relocal_pyg.errors import UsageError
from relocal_pyg.formats.clips import Clip, Source, clip_frames, lanes, one_line

_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_EAF_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"


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
    ET.SubElement(
        header,
        "MEDIA_DESCRIPTOR",
        MEDIA_URL=source.url,
        MIME_TYPE=mimetypes.guess_type(source.name)[0] or "unknown",
        RELATIVE_MEDIA_URL=f"./{source.url.rsplit('/', 1)[-1]}",
    )
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
            annotation = ET.SubElement(
                ET.SubElement(tier, "ANNOTATION"),
                "ALIGNABLE_ANNOTATION",
                ANNOTATION_ID=f"a{next(numbers)}",
                TIME_SLOT_REF1=slots[clip.start],
                TIME_SLOT_REF2=slots[clip.end],
            )
            ET.SubElement(annotation, "ANNOTATION_VALUE").text = one_line(clip.label)
    ET.SubElement(
        root,
        "LINGUISTIC_TYPE",
        GRAPHIC_REFERENCES="false",
        LINGUISTIC_TYPE_ID="default-lt",
        TIME_ALIGNABLE="true",
    )
    return _document(root)


def boris(clips: Sequence[Clip]) -> str:
    """Rows to paste into the events of a BORIS observation, separated by tabs, START and STOP each.

    Columns: time in seconds, subject, behaviour, modifiers, comment, frame (``NA``). BORIS pairs
    the rows of one behaviour in turn; clips that overlap get a modifier of their own.
    """
    events = []
    for lane, row in enumerate(lanes(clips), start=1):
        for clip in row:
            what = [one_line(clip.subject), one_line(clip.label), "" if lane == 1 else str(lane)]
            events.append((clip.start, 1, *what, clip.caption))
            events.append((clip.end, 0, *what, ""))
    rows = ([f"{time:.3f}", *row, "NA"] for time, _, *row in sorted(events))
    return table(rows, delimiter="\t")


def via(clips: Sequence[Clip]) -> str:
    """A project of the VGG Image Annotator 3: one view for each video."""
    ids: dict[str, str] = {}
    files, views = {}, {}
    for clip in clips:
        source = clip.source
        if source.path not in ids:
            ids[source.path] = key = str(len(ids) + 1)
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
    project = {
        "project": {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "__VIA_PROJECT_REV_ID__",
            "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
            "project_name": "relocal",
            "creator": "relocal",
            "created": 0,
            "vid_list": list(views),
        },
        "config": {
            "file": {"loc_prefix": {str(place): "" for place in range(1, 5)}},
            "ui": {
                **editor,
                "file_content_align": "center",
                "spatial_metadata_editor_visible": True,
                "spatial_region_label_attribute_id": "",
                "gtimeline_visible_row_count": "4",
            },
        },
        "attribute": {
            "1": {
                "aname": "label",
                "anchor_id": "FILE1_Z2_XY0",
                "type": 1,
                "desc": "What happens",
                "options": {},
                "default_option_id": "",
            }
        },
        "file": files,
        "metadata": metadata,
        "view": views,
    }
    return json_text(project)


def label_studio(clips: Sequence[Clip]) -> str:
    """Tasks of Label Studio with predictions for a ``TimelineLabels`` control ``videoLabels``.

    Frames count from 1 and an end is inclusive. Label Studio takes the frame rate from its own
    configuration; it stands in ``data.fps`` here for those who read the file.

    Raises:
        UsageError: The frame rate is unknown.
    """
    tasks = []
    for source, group in _by_source(clips):
        rate = source.rate("Label Studio")
        results = []
        for clip in group:
            first, stop = clip_frames(clip, rate)
            result: dict[str, Any] = {
                "id": f"moment{clip.rank}",
                "type": "timelinelabels",
                "from_name": "videoLabels",
                "to_name": "video",
                "value": {
                    "ranges": [{"start": first + 1, "end": stop}],
                    "timelinelabels": [one_line(clip.label)],
                },
            }
            results.append(result | ({} if clip.score is None else {"score": clip.score}))
        tasks.append(
            {
                "data": {"video": source.name, "fps": float(rate)},
                "predictions": [{"model_version": "relocal", "result": results}],
            }
        )
    return json_text(tasks)


def cvat(clips: Sequence[Clip]) -> str:
    """Tracks over the whole picture for CVAT (CVAT for video 1.1), which has no intervals.

    Raises:
        UsageError: The frame rate or the size of the picture is unknown.
    """
    source = clips[0].source
    rate = source.rate("CVAT")
    if source.size is None:
        raise UsageError("CVAT needs the size of the picture, which is not known", file=source.path)
    spans = [clip_frames(clip, rate) for clip in clips]
    frames = source.frame_count or max(stop for _, stop in spans)
    width, height = (str(side) for side in source.size)
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    facts = {"name": source.video_id, "size": frames, "mode": "interpolation"}
    for name, value in (*facts.items(), ("source", source.name)):
        ET.SubElement(task, name).text = str(value)
    shape = ET.SubElement(task, "original_size")
    ET.SubElement(shape, "width").text = width
    ET.SubElement(shape, "height").text = height
    for number, (clip, (first, stop)) in enumerate(zip(clips, spans, strict=True)):
        track = ET.SubElement(
            root, "track", id=str(number), label=one_line(clip.label), source="auto"
        )
        marks = [(first, "0")]
        # A frame after the end hides the box; where the video ends there is no such frame.
        marks += [(stop, "1")] if stop < frames else [(stop - 1, "0")] if stop - 1 > first else []
        for frame, outside in marks:
            ET.SubElement(
                track,
                "box",
                frame=str(frame),
                outside=outside,
                occluded="0",
                keyframe="1",
                xtl="0.00",
                ytl="0.00",
                xbr=f"{width}.00",
                ybr=f"{height}.00",
                z_order="0",
            )
    return _document(root)


def audacity(clips: Sequence[Clip]) -> str:
    """A label track of Audacity: start, end (seconds) and text, separated by tabs."""
    return "".join(f"{clip.start:.6f}\t{clip.end:.6f}\t{clip.caption}\n" for clip in clips)


def textgrid(clips: Sequence[Clip]) -> str:
    """A TextGrid of Praat: interval tiers without gaps; overlapping clips go to further tiers."""
    end = max(clip.end for clip in clips)
    end = max(end, clips[0].source.duration or end)
    rows = lanes([_on_grid(clip, 1_000_000) for clip in clips])
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
    database: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for source, group in _by_source(clips):
        entry: dict[str, Any] = {} if source.duration is None else {"duration": source.duration}
        subjects = {clip.subject for clip in group}
        if len(subjects) == 1 and "" not in subjects:
            entry["subject"] = group[0].subject
        rows = [
            {"segment": [clip.start, clip.end], "label": one_line(clip.label)} for clip in group
        ]
        entry = database.setdefault(source.video_id, {**entry, "subset": "", "annotations": []})
        entry["annotations"] += rows
        results.setdefault(source.video_id, []).extend(
            row | ({} if clip.score is None else {"score": clip.score})
            for row, clip in zip(rows, group, strict=True)
        )
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
    return table([head, *rows])


def table(rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """Rows as separated text with Unix line ends."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def plain(seconds: float) -> str:
    """Seconds to the microsecond without an exponent or idle zeros.

    Example:
        >>> plain(1e-05), plain(12.5), plain(3.0)
        ('0.00001', '12.5', '3')
    """
    return f"{seconds:.6f}".rstrip("0").rstrip(".") or "0"


def json_text(value: Any) -> str:
    """JSON, one value a line, non-ASCII letters as they are."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _by_source(clips: Sequence[Clip]) -> list[tuple[Source, list[Clip]]]:
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.source.path, []).append(clip)
    return [(group[0].source, group) for group in groups.values()]


def _on_grid(clip: Clip, per_second: int) -> Clip:
    """A clip with ends on a grid, so that rounding makes no overlap; never empty."""
    start = round(Fraction(clip.start) * per_second)
    end = max(round(Fraction(clip.end) * per_second), start + 1)
    return replace(clip, start=start / per_second, end=end / per_second)


def _document(root: ET.Element) -> str:
    ET.indent(root, " ")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'
