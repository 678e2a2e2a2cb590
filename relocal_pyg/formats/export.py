"""Moments out: the formats by name and suffix, and those that are a few lines of text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from relocal_pyg.errors import UsageError
from relocal_pyg.formats import annotating, editing
from relocal_pyg.formats.annotating import json_text, table
from relocal_pyg.formats.clips import Clip, one_line
from relocal_pyg.io.write import replace_file

#: What YouTube asks of chapters: this long at least, and this many.
YOUTUBE_SECONDS, YOUTUBE_CHAPTERS = 10, 3


@dataclass(frozen=True)
class Format:
    """A way to write moments.

    Attributes:
        suffixes: Endings of its files; the first format with an ending is its default.
        render: Clips, at least one, to text.
        title: What it is and where it opens.
        several: Whether one file holds moments of several videos.
    """

    suffixes: tuple[str, ...]
    render: Callable[..., str]
    title: str
    several: bool = False


def webvtt(clips: Sequence[Clip]) -> str:
    """Subtitles for web players (WebVTT)."""
    return "WEBVTT\n\n" + _cues(clips, ".", escape)


def srt(clips: Sequence[Clip]) -> str:
    """Subtitles (SubRip)."""
    return _cues(clips, ",", str)


def ffmpeg_chapters(clips: Sequence[Clip]) -> str:
    """Chapters for ``ffmpeg -i VIDEO -i FILE -map 0 -map_chapters 1 -c copy OUT``, milliseconds.

    MP4 lets each chapter run to the next: gaps are chapters named ``-``, and where clips overlap
    the earlier one ends at the start of the later.
    """
    spans: list[tuple[int, int, str]] = []
    last = 0
    starts = [_milliseconds(clip.start) for clip in clips]
    for clip, start, following in zip(clips, starts, [*starts[1:], None], strict=True):
        end = max(_milliseconds(clip.end), start + 1)
        end = end if following is None else min(end, following)
        if end <= start:
            continue  # one that starts with it stands for both
        if start > last:
            spans.append((last, start, "-"))
        spans.append((start, end, clip.name))
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
        joined += start > before
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
    return "".join(f"{_short_clock(start)} {name}\n" for start, name in chapters)


def losslesscut(clips: Sequence[Clip]) -> str:
    """A project of LosslessCut."""
    segments = [
        {
            "start": round(clip.start, 6),
            "end": round(clip.end, 6),
            "name": one_line(clip.name),
            "tags": {} if clip.score is None else {"score": f"{clip.score:.3f}"},
        }
        for clip in clips
    ]
    name = clips[0].source.name
    return json_text({"version": 2, "mediaFileName": name, "cutSegments": segments})


def losslesscut_csv(clips: Sequence[Clip]) -> str:
    """A table of seconds that LosslessCut opens, three decimals and no exponent."""
    rows = [(f"{clip.start:.3f}", f"{clip.end:.3f}", one_line(clip.name)) for clip in clips]
    return table([("Start", "End", "Name"), *rows])


def ranked_csv(clips: Sequence[Clip]) -> str:
    """A table by rank: start and end in seconds, score, probability where known, video if several.

    Numbers are written in full.
    """
    names = ["start", "end", "score"]
    if any(clip.probability is not None for clip in clips):
        names.append("probability")
    several = len({clip.source.path for clip in clips}) > 1
    rows: list[list[Any]] = [["rank", *["video"] * several, *names]]
    for clip in sorted(clips, key=lambda clip: clip.rank):
        video = [clip.source.video_id] * several
        rows.append([clip.rank, *video, *(getattr(clip, name) for name in names)])
    return table(rows)


#: Every format by name; a suffix that several share means the first of them.
FORMATS: dict[str, Format] = {
    "webvtt": Format((".vtt",), webvtt, "WebVTT subtitles"),
    "srt": Format((".srt",), srt, "SubRip subtitles"),
    "youtube": Format((".txt",), youtube_chapters, "chapters of a YouTube description"),
    "ffmpeg-chapters": Format(
        (".ffmeta", ".ffmetadata", ".txt"), ffmpeg_chapters, "chapters for ffmpeg"
    ),
    "audacity": Format((".txt",), annotating.audacity, "label track of Audacity"),
    "otio": Format((".otio",), editing.otio, "OpenTimelineIO (Resolve 18.5)", True),
    "cut-list": Format((".edl",), editing.cut_list, "CMX3600 cut list", True),
    "resolve-markers": Format((".edl",), editing.resolve_markers, "DaVinci Resolve markers"),
    "fcp7-xml": Format((".xml",), editing.xmeml, "Final Cut Pro 7 XML (Premiere Pro)", True),
    "cvat": Format((".xml",), annotating.cvat, "CVAT for video 1.1"),
    "fcpxml": Format((".fcpxml",), editing.fcpxml, "Final Cut Pro (FCPXML 1.9)", True),
    "losslesscut": Format((".llc",), losslesscut, "LosslessCut project"),
    "csv": Format((".csv",), ranked_csv, "table by rank", True),
    "annotations": Format(
        (".csv",), annotating.annotation_rows, "table that relocal train reads", True
    ),
    "losslesscut-csv": Format((".csv",), losslesscut_csv, "table that LosslessCut opens"),
    "elan": Format((".eaf",), annotating.elan, "ELAN"),
    "boris": Format((".tsv",), annotating.boris, "BORIS events"),
    "activitynet": Format((".json",), annotating.activitynet, "ActivityNet JSON", True),
    "via": Format((".json",), annotating.via, "VGG Image Annotator 3", True),
    "label-studio": Format((".json",), annotating.label_studio, "Label Studio", True),
    "textgrid": Format((".textgrid",), annotating.textgrid, "Praat TextGrid"),
}


def format_of(path: str | Path, wanted: str | None = None) -> str:
    """Name of the format that a file is written in, by its suffix.

    Args:
        path: The file to write.
        wanted: Decides between formats that share the suffix, or where the suffix is no format's.

    Raises:
        UsageError: No format has this name or suffix.

    Example:
        >>> format_of("a.edl"), format_of("a.edl", "resolve-markers"), format_of("a.vtt", "via")
        ('cut-list', 'resolve-markers', 'webvtt')
    """
    if wanted is not None and wanted not in FORMATS:
        raise UsageError(f"no format {wanted!r}: {', '.join(FORMATS)}")
    suffix = Path(path).suffix.lower()
    names = [name for name, form in FORMATS.items() if suffix in form.suffixes]
    if wanted is not None and (wanted in names or not names):
        return wanted
    if not names:
        known = sorted({ending for form in FORMATS.values() for ending in form.suffixes})
        raise UsageError(
            f"{suffix or 'no suffix'} is no format: end it in {', '.join(known)}, or name one",
            file=path,
        )
    return names[0]


def render(name: str, clips: Sequence[Clip], timeline_start: str = "01:00:00:00") -> str:
    """Clips as the text of a file.

    Args:
        name: A key of :data:`FORMATS`.
        clips: In the order of :func:`relocal_pyg.formats.to_clips`.
        timeline_start: For Resolve's markers: timecode of the timeline's first frame.

    Raises:
        UsageError: There are no clips (csv, srt and webvtt are then empty), they are of several
            videos where the format holds one, or what it needs of a video is not known.
    """
    if not clips and name not in ("csv", "srt", "webvtt"):
        raise UsageError(f"there are no moments to write as {name}")
    form = FORMATS[name]
    if not form.several and len({clip.source.path for clip in clips}) > 1:
        raise UsageError(f"{name} holds moments of one video: write a file for each")
    options = {"timeline_start": timeline_start} if name == "resolve-markers" else {}
    return form.render(clips, **options)


def export_clips(
    path: str | Path,
    clips: Sequence[Clip],
    format_name: str | None = None,
    timeline_start: str = "01:00:00:00",
) -> list[Path]:
    """Write clips to a file; where the format holds one video, to a file for each.

    Args:
        path: The file; its suffix says the format. With several videos and a format for one, the
            name of each video is put before the suffix.
        clips: In the order of :func:`relocal_pyg.formats.to_clips`.
        format_name: A key of :data:`FORMATS`, where the suffix leaves a choice.
        timeline_start: For Resolve's markers: timecode of the timeline's first frame.

    Returns:
        The files written.

    Raises:
        UsageError: See :func:`format_of` and :func:`render`.
        OutputError: A file cannot be written.
    """
    path, name = Path(path), format_of(path, format_name)
    groups = {path: list(clips)}
    videos = {clip.source.path: clip.source.video_id for clip in clips}
    if len(videos) > 1 and not FORMATS[name].several:
        groups = {
            path.with_name(f"{path.stem}-{video}{path.suffix}"): [
                clip for clip in clips if clip.source.path == key
            ]
            for key, video in videos.items()
        }
        if len(groups) < len(videos):
            raise UsageError(f"two videos have one name: {name} needs a file for each", file=path)
    texts = {file: render(name, group, timeline_start) for file, group in groups.items()}
    for file, text in texts.items():
        with replace_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return list(texts)


def _milliseconds(seconds: float) -> int:
    return round(max(seconds, 0.0) * 1000)


def _clock(seconds: float, point: str) -> str:
    minutes, rest = divmod(_milliseconds(seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _short_clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _cues(clips: Sequence[Clip], point: str, quote: Callable[[str], str]) -> str:
    return "\n".join(
        f"{number}\n{_clock(clip.start, point)} --> {_clock(clip.end, point)}\n"
        f"{quote(clip.caption)}\n"
        for number, clip in enumerate(clips, start=1)
    )
