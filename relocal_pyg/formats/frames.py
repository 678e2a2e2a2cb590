"""Moments in formats that count frames: EDL, OpenTimelineIO, Final Cut Pro, Label Studio, CVAT.

An end is exclusive but in Label Studio. A source's own start timecode is added where the format
counts from it (EDL, OTIO, FCPXML) and stated where it does not (Final Cut Pro 7). A rate that is
unknown, none of the format's timelines, or not the same everywhere is a UsageError.
"""

from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

from relocal_pyg.errors import UsageError
from relocal_pyg.formats.clips import (
    Clip,
    Source,
    by_source,
    clip_frames,
    frame_number,
    json_text,
    one_line,
    start_frame,
    timecode,
    xml_text,
)
from relocal_pyg.formats.rows import TIMELINE_RATES

_MAX_EVENTS = 999


def resolve_markers(clips: Sequence[Clip], timeline_start: str = "01:00:00:00") -> str:
    """Markers for a timeline of DaVinci Resolve that begins with the video, at such a timecode."""
    rate = _shared_rate(clips, "Resolve markers", TIMELINE_RATES)
    begin, drop = _same_day(clips, rate, *frame_number(timeline_start, rate))
    lines = [f"TITLE: {clips[0].source.name}", f"FCM: {'' if drop else 'NON-'}DROP FRAME", ""]
    for number, clip in enumerate(clips, start=1):
        first, stop = clip_frames(clip, rate)
        at, after = (timecode(begin + frame, rate, drop) for frame in (first, first + 1))
        name = one_line(clip.name.replace("|", "/"))
        lines += [
            f"{number:03d}  001      V     C        {at} {after} {at} {after}",
            f" |C:ResolveColorBlue |M:{name} |D:{stop - first}",
            "",
        ]
    return "\n".join(lines) + "\n"


def cut_list(clips: Sequence[Clip]) -> str:
    """A CMX3600 cut list: the clips one after the other. The rate is not in the file."""
    rate = _shared_rate(clips, "a cut list", TIMELINE_RATES)
    if len(clips) > _MAX_EVENTS:
        raise UsageError(f"a cut list holds {_MAX_EVENTS} cuts, these are {len(clips)}")
    begins = {
        source.path: _same_day(group, rate, *start_frame(source, rate))
        for source, group in by_source(clips)
    }
    drop = begins[clips[0].source.path][1]
    lines = [f"TITLE: {clips[0].source.name}", f"FCM: {'' if drop else 'NON-'}DROP FRAME", ""]
    for number, (clip, first, stop, at) in enumerate(_in_a_row(clips, rate), start=1):
        begin, source_drop = begins[clip.source.path]
        times = [timecode(begin + frame, rate, source_drop) for frame in (first, stop)]
        times += [timecode(frame, rate, drop) for frame in (at, at + stop - first)]
        lines += [
            f"{number:03d}  AX       V     C        {' '.join(times)}",
            f"* FROM CLIP NAME: {clip.source.name}",
            f"* COMMENT: {clip.caption}",
            "",
        ]
    return "\n".join(lines) + "\n"


def otio(clips: Sequence[Clip]) -> str:
    """An OpenTimelineIO timeline: the clips one after the other, each with a marker on it."""
    rate = _shared_rate(clips, "OpenTimelineIO")

    def schema(what: str, **fields: Any) -> dict[str, Any]:
        return {"OTIO_SCHEMA": what, **fields}

    def span(first: int, length: int) -> dict[str, Any]:
        start, duration = (
            schema("RationalTime.1", rate=float(rate), value=float(frames))
            for frames in (first, length)
        )
        return schema("TimeRange.1", start_time=start, duration=duration)

    children = []
    for clip, first, stop, _ in _in_a_row(clips, rate):
        begin, _ = start_frame(clip.source, rate)
        cut, count = span(begin + first, stop - first), clip.source.frame_count
        facts = {name: getattr(clip, name) for name in ("rank", "score", "probability")}
        facts |= {"label": one_line(clip.label)}
        facts |= {"start_seconds": clip.start, "end_seconds": clip.end}
        marker = {"name": clip.caption, "color": "BLUE", "marked_range": cut, "metadata": {}}
        media: dict[str, Any] = {"name": clip.source.name, "target_url": clip.source.url}
        media |= {"metadata": {}, "available_range": None if count is None else span(begin, count)}
        children.append(
            schema(
                "Clip.2",
                name=one_line(clip.name),
                source_range=cut,
                metadata={"relocal": facts},
                markers=[schema("Marker.2", **marker)],
                effects=[],
                enabled=True,
                media_references={"DEFAULT_MEDIA": schema("ExternalReference.1", **media)},
                active_media_reference_key="DEFAULT_MEDIA",
            )
        )
    track = schema("Track.1", name="V1", kind="Video", children=children)
    stack = schema("Stack.1", name="tracks", children=[track])
    return json_text(schema("Timeline.1", name=clips[0].source.name, tracks=stack))


def xmeml(clips: Sequence[Clip]) -> str:
    """A Final Cut Pro 7 sequence (Premiere Pro, Resolve): the clips one after the other."""
    rate = _shared_rate(clips, "Final Cut Pro 7 XML", TIMELINE_RATES)
    rows = _in_a_row(clips, rate)
    total = rows[-1][3] + rows[-1][2] - rows[-1][1]
    root = ET.Element("xmeml", version="5")
    sequence = ET.SubElement(root, "sequence", id="sequence-1")
    _text(sequence, name=clips[0].source.name, duration=total)
    _rate(sequence, rate)
    drop = start_frame(clips[0].source, rate)[1]
    _timecode(sequence, rate, 0, drop)
    video = ET.SubElement(ET.SubElement(sequence, "media"), "video")
    size = clips[0].source.size
    if size is not None:
        characteristics = ET.SubElement(ET.SubElement(video, "format"), "samplecharacteristics")
        _rate(characteristics, rate)
        _text(characteristics, width=size[0], height=size[1])
    track = ET.SubElement(video, "track")
    files: dict[str, str] = {}
    for number, (clip, first, stop, at) in enumerate(rows, start=1):
        item = ET.SubElement(track, "clipitem", id=f"clipitem-{number}")
        length = clip.source.frame_count or stop
        _text(item, name=one_line(clip.name), duration=length)
        _rate(item, rate)
        _text(item, start=at, end=at + stop - first, enabled="TRUE")
        _text(item, **{"in": first, "out": stop})
        source = clip.source
        if source.path in files:  # in full once, afterwards by its id
            ET.SubElement(item, "file", id=files[source.path])
        else:
            files[source.path] = identifier = f"file-{len(files) + 1}"
            _file(ET.SubElement(item, "file", id=identifier), source, rate, length)
        marker = ET.SubElement(item, "marker")
        _text(marker, name=clip.caption, comment=one_line(clip.label))
        _text(marker, **{"in": first, "out": stop})
    return xml_text(root, "xmeml")


def fcpxml(clips: Sequence[Clip]) -> str:
    """A Final Cut Pro project (FCPXML 1.9): the clips one after the other, a marker on each."""
    rate = _shared_rate(clips, "FCPXML")

    def time(frame: int) -> str:
        return f"{frame * rate.denominator}/{rate.numerator}s" if frame else "0s"

    rows = _in_a_row(clips, rate)
    root = ET.Element("fcpxml", version="1.9")
    resources = ET.SubElement(root, "resources")
    formats: dict[tuple[int, int] | None, str] = {}
    assets: dict[str, str] = {}
    for source, _ in by_source(clips):
        if source.size not in formats:
            formats[source.size] = f"r{len(resources) + 1}"
            layout = {"id": formats[source.size], "frameDuration": time(1)}
            if source.size is not None:
                layout |= {"width": str(source.size[0]), "height": str(source.size[1])}
            ET.SubElement(resources, "format", layout)
        assets[source.path] = identifier = f"r{len(resources) + 1}"
        stops = [stop for other, _, stop, _ in rows if other.source.path == source.path]
        facts = {"hasVideo": "1", "format": formats[source.size], "videoSources": "1"}
        if source.audio:
            facts |= {"hasAudio": "1", "audioSources": "1"}
        facts |= {
            "id": identifier,
            "name": source.name,
            "start": time(start_frame(source, rate)[0]),
            "duration": time(source.frame_count or max(stops)),
        }
        asset = ET.SubElement(resources, "asset", facts)
        ET.SubElement(asset, "media-rep", kind="original-media", src=source.url)
    library = ET.SubElement(root, "library")
    event = ET.SubElement(library, "event", name="relocal")
    project = ET.SubElement(event, "project", name=clips[0].source.name)
    length, mode = rows[-1][3] + rows[-1][2] - rows[-1][1], start_frame(clips[0].source, rate)[1]
    layout = {"format": "r1", "duration": time(length), "tcStart": "0s", "tcFormat": _mode(mode)}
    sequence = ET.SubElement(project, "sequence", layout)
    spine = ET.SubElement(sequence, "spine")
    for clip, first, stop, at in rows:
        begin, drop = start_frame(clip.source, rate)
        span = {"offset": time(at), "start": time(begin + first), "duration": time(stop - first)}
        what = {"ref": assets[clip.source.path], "name": one_line(clip.name)}
        item = ET.SubElement(spine, "asset-clip", what | span, tcFormat=_mode(drop))
        marker = {"start": time(begin + first), "duration": time(1), "value": clip.caption}
        ET.SubElement(item, "marker", marker, note=one_line(clip.label))
    return xml_text(root, "fcpxml")


def label_studio(clips: Sequence[Clip]) -> str:
    """Tasks of Label Studio with predictions for a ``TimelineLabels`` control ``videoLabels``.

    Frames count from 1 and an end is inclusive. Label Studio takes the frame rate from its own
    configuration; it stands in ``data.fps`` here for those who read the file.
    """
    tasks = []
    for source, group in by_source(clips):
        rate = source.rate("Label Studio")
        results: list[dict[str, Any]] = []
        for clip in group:
            first, stop = clip_frames(clip, rate)
            ranges = [{"start": first + 1, "end": stop}]
            value = {"ranges": ranges, "timelinelabels": [one_line(clip.label)]}
            place = {"from_name": "videoLabels", "to_name": "video", "value": value}
            results.append({"id": f"moment{clip.rank}", "type": "timelinelabels", **place})
            results[-1] |= {} if clip.score is None else {"score": clip.score}
        data = {"video": source.name, "fps": float(rate)}
        predictions = [{"model_version": "relocal", "result": results}]
        tasks.append({"data": data, "predictions": predictions})
    return json_text(tasks)


def cvat(clips: Sequence[Clip]) -> str:
    """Tracks over the whole picture for CVAT (CVAT for video 1.1), which has no intervals."""
    source = clips[0].source
    rate = source.rate("CVAT")
    if source.size is None:
        raise UsageError("CVAT needs the size of the picture, which is not known", file=source.path)
    spans = [clip_frames(clip, rate) for clip in clips]
    frames = source.frame_count or max(stop for _, stop in spans)
    width, height = (str(side) for side in source.size)
    picture = {"xtl": "0.00", "ytl": "0.00", "xbr": f"{width}.00", "ybr": f"{height}.00"}
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    _text(task, name=source.video_id, size=frames, mode="interpolation", source=source.name)
    _text(ET.SubElement(task, "original_size"), width=width, height=height)
    for number, (clip, (first, stop)) in enumerate(zip(clips, spans, strict=True)):
        track = ET.SubElement(
            root, "track", id=str(number), label=one_line(clip.label), source="auto"
        )
        marks = [(first, "0")]
        # A frame after the end hides the box; where the video ends there is no such frame.
        marks += [(stop, "1")] if stop < frames else [(stop - 1, "0")] if stop - 1 > first else []
        for frame, outside in marks:
            facts = {"frame": str(frame), "outside": outside, "occluded": "0", "keyframe": "1"}
            ET.SubElement(track, "box", facts | picture, z_order="0")
    return xml_text(root)


def _shared_rate(
    clips: Sequence[Clip], what: str, known: Sequence[Fraction] | None = None
) -> Fraction:
    """The frame rate of all clips, among ``known`` ones where those are given."""
    rates = {source.path: source.rate(what) for source, _ in by_source(clips)}
    rate = next(iter(rates.values()))
    for path, other in rates.items():
        if other != rate:
            raise UsageError(
                f"has {float(other):.5g} frames a second, another video {float(rate):.5g}: {what} "
                "holds one rate; write a file for each",
                file=path,
            )
        if known is not None and other not in known:
            raise UsageError(
                f"{float(other):.5g} frames a second are no rate of {what}: export .otio, or a "
                "format in seconds, or convert the video first",
                file=path,
            )
    return rate


def _in_a_row(clips: Sequence[Clip], rate: Fraction) -> list[tuple[Clip, int, int, int]]:
    """Clips with their first frame, the frame after the last, and where each starts in a row."""
    spans = [clip_frames(clip, rate) for clip in clips]
    starts = accumulate((stop - first for first, stop in spans), initial=0)
    return [(clip, *span, at) for clip, span, at in zip(clips, spans, starts, strict=False)]


def _same_day(clips: Sequence[Clip], rate: Fraction, begin: int, drop: bool) -> tuple[int, bool]:
    """Where clips of one video are counted from; 0 where their timecode would pass midnight."""
    last = f"23:59:59{';' if drop else ':'}{round(rate) - 1:02d}"
    midnight = frame_number(last, rate)[0] + 1
    if begin and begin + max(clip_frames(clip, rate)[1] for clip in clips) >= midnight:
        text = f"{clips[0].source.path}: timecode passes midnight, counted from 0: export .otio"
        warnings.warn(text, stacklevel=2)
        begin = 0
    return begin, drop


def _mode(drop: bool) -> str:
    return "DF" if drop else "NDF"


def _text(parent: ET.Element, **values: Any) -> None:
    for name, value in values.items():
        ET.SubElement(parent, name).text = str(value)


def _rate(parent: ET.Element, rate: Fraction) -> None:
    ntsc = "TRUE" if rate.denominator == 1001 else "FALSE"
    _text(ET.SubElement(parent, "rate"), timebase=round(rate), ntsc=ntsc)


def _timecode(parent: ET.Element, rate: Fraction, frame: int, drop: bool) -> None:
    element = ET.SubElement(parent, "timecode")
    _rate(element, rate)
    _text(element, string=timecode(frame, rate, drop), frame=frame, displayformat=_mode(drop))


def _file(element: ET.Element, source: Source, rate: Fraction, length: int) -> None:
    address = source.url.replace("file:///", "file://localhost/", 1)
    _text(element, name=source.name, pathurl=address)
    _rate(element, rate)
    _text(element, duration=length)
    _timecode(element, rate, *start_frame(source, rate))
    video = ET.SubElement(ET.SubElement(element, "media"), "video")
    if source.size is not None:
        characteristics = ET.SubElement(video, "samplecharacteristics")
        _text(characteristics, width=source.size[0], height=source.size[1])
