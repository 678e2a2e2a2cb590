"""Moments out to players, editors and annotation tools; annotations in from those tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relocal_pyg.errors import UsageError
from relocal_pyg.formats import frames, seconds
from relocal_pyg.formats.clips import Clip, Source, by_source, to_clips
from relocal_pyg.io.write import replace_text

__all__ = ["FORMATS", "Clip", "Format", "Source", "export_clips", "format_of", "render", "to_clips"]


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


#: Formats that say in words of their own that nothing was found.
MAY_BE_EMPTY = ("csv", "srt", "webvtt")

#: Every format by name; a suffix that several share means the first of them.
FORMATS: dict[str, Format] = {
    "webvtt": Format((".vtt",), seconds.webvtt, "WebVTT subtitles"),
    "srt": Format((".srt",), seconds.srt, "SubRip subtitles"),
    "youtube": Format((".txt",), seconds.youtube_chapters, "chapters of a YouTube description"),
    "ffmpeg-chapters": Format(
        (".ffmeta", ".ffmetadata", ".txt"), seconds.ffmpeg_chapters, "chapters for ffmpeg"
    ),
    "audacity": Format((".txt",), seconds.audacity, "label track of Audacity"),
    "otio": Format((".otio",), frames.otio, "OpenTimelineIO (Resolve 18.5)", True),
    "cut-list": Format((".edl",), frames.cut_list, "CMX3600 cut list", True),
    "resolve-markers": Format((".edl",), frames.resolve_markers, "DaVinci Resolve markers"),
    "fcp7-xml": Format((".xml",), frames.xmeml, "Final Cut Pro 7 XML (Premiere Pro)", True),
    "cvat": Format((".xml",), frames.cvat, "CVAT for video 1.1"),
    "fcpxml": Format((".fcpxml",), frames.fcpxml, "Final Cut Pro (FCPXML 1.9)", True),
    "losslesscut": Format((".llc",), seconds.losslesscut, "LosslessCut project"),
    "csv": Format((".csv",), seconds.ranked_csv, "table by rank", True),
    "annotations": Format(
        (".csv",), seconds.annotation_rows, "table that relocal train reads", True
    ),
    "losslesscut-csv": Format((".csv",), seconds.losslesscut_csv, "table that LosslessCut opens"),
    "elan": Format((".eaf",), seconds.elan, "ELAN"),
    "boris": Format((".tsv",), seconds.boris, "BORIS events"),
    "activitynet": Format((".json",), seconds.activitynet, "ActivityNet JSON", True),
    "via": Format((".json",), seconds.via, "VGG Image Annotator 3", True),
    "label-studio": Format((".json",), frames.label_studio, "Label Studio", True),
    "textgrid": Format((".textgrid",), seconds.textgrid, "Praat TextGrid"),
}


def format_of(path: str | Path, wanted: str | None = None) -> str:
    """Name of the format that a file is written in, by its suffix.

    ``wanted`` decides between formats that share it, and where it is no format's.

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
        reason = f"{suffix or 'no suffix'} is no format: end it in {', '.join(known)}, or name one"
        raise UsageError(reason, file=path)
    return names[0]


def render(name: str, clips: Sequence[Clip], timeline_start: str = "01:00:00:00") -> str:
    """Clips as the text of a file.

    ``name`` is a key of :data:`FORMATS`; the timecode is that of the first frame of Resolve's
    timeline.

    Raises:
        UsageError: There are no clips and the format is none of :data:`MAY_BE_EMPTY`, they are of
            several videos where it holds one, or of one name where it names them, or what it needs
            of a video is not known.
    """
    if not clips and name not in MAY_BE_EMPTY:
        raise UsageError(f"there are no moments to write as {name}")
    form = FORMATS[name]
    by_file = name in ("via", "label-studio")  # annotation programs that are given a file's name
    videos = {c.source.path: c.source.name if by_file else c.source.video_id for c in clips}
    if not form.several and len(videos) > 1:
        raise UsageError(f"{name} holds moments of one video: write a file for each")
    # Editors are given paths; tables and annotation programs know a video by its name alone.
    if form.suffixes[0] in (".csv", ".json") and len(set(videos.values())) < len(videos):
        raise UsageError(f"two videos have one name: {name} cannot tell them apart")
    options = {"timeline_start": timeline_start} if name == "resolve-markers" else {}
    return form.render(clips, **options)


def export_clips(
    path: str | Path,
    clips: Sequence[Clip],
    format_name: str | None = None,
    timeline_start: str = "01:00:00:00",
) -> list[Path]:
    """Write clips to a file; where the format holds one video, to a file for each.

    With several videos and a format for one, the name of each video is put before the suffix.
    ``format_name`` is a key of :data:`FORMATS`, what :func:`format_of` says where None.

    Raises:
        UsageError: See :func:`format_of` and :func:`render`.
        OutputError: A file cannot be written.
    """
    path, name = Path(path), format_name or format_of(path)
    groups = {path: list(clips)}
    videos = by_source(clips)
    if len(videos) > 1 and not FORMATS[name].several:
        groups = {
            path.with_name(f"{path.stem}-{source.video_id}{path.suffix}"): group
            for source, group in videos
        }
        if len(groups) < len(videos):
            raise UsageError(f"two videos have one name: {name} needs a file for each", file=path)
    texts = {file: render(name, group, timeline_start) for file, group in groups.items()}
    for file, text in texts.items():
        replace_text(file, text)
    return list(texts)
