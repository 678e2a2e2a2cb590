"""Moments of videos on their way into a file: what a format has to know, and frames and timecode.

Times are seconds until a format counts frames; then a moment is ``[first, stop)``, stop exclusive.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from relocal_pyg.errors import UsageError, check_number
from relocal_pyg.formats.rows import safe_name

if TYPE_CHECKING:
    from relocal_pyg.moments import Moment

#: Below this probability a reference may not hold what is looked for.
DOUBT = 0.5

_DROP_RATES = (Fraction(30000, 1001), Fraction(60000, 1001))

_TIMECODE = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})([:;.,])(\d{2,3})")
# What XML 1.0 cannot hold, and what ends a line somewhere.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Source:
    """A video that moments were found in.

    Attributes:
        path: Its file, or its name where there is no file.
        duration: Seconds, where known.
        frame_rate: Frames per second, where known.
        frame_count: Number of frames, where known.
        timecode: Of the first frame, ``hh:mm:ss:ff`` (``;`` before ``ff``: drop-frame), where the
            file carries one.
        size: Width and height in pixels, where known.
        audio: Whether it has sound.
        variable_rate: Whether its frames are not evenly spaced.
        first_picture: Seconds of the file's clock at which its first frame appears.
        id: Its name in a collection; elsewhere the name of the file without its suffix is used.
        here: Whether the path leads to the file; elsewhere links are the name of the file alone.
    """

    path: str
    duration: float | None = None
    frame_rate: Fraction | None = None
    frame_count: int | None = None
    timecode: str | None = None
    size: tuple[int, int] | None = None
    audio: bool = False
    variable_rate: bool = False
    first_picture: float = 0.0
    id: str = ""
    here: bool = True

    @property
    def name(self) -> str:
        """File name, on one line, its blanks as they are."""
        return _CONTROL.sub("_", re.split(r"[/\\]", self.path)[-1]) or "video"

    @property
    def video_id(self) -> str:
        """What annotations call the video: the id that its file has in a folder."""
        file = re.split(r"[/\\]", self.path)[-1]
        return _CONTROL.sub(" ", self.id) or safe_name(PurePath(file).stem) or "video"

    @property
    def url(self) -> str:
        """Percent-encoded ``file:`` address of the file."""
        address = "file://" + quote(os.fsencode(os.path.abspath(self.path)))
        return address if self.here else quote(self.name)

    def rate(self, what: str) -> Fraction:
        """Frames per second; a warning where frames are not evenly spaced.

        ``what`` is the format that asks, for the message.

        Raises:
            UsageError: The rate is unknown.
        """
        if self.frame_rate is None:
            raise UsageError(
                f"{what} counts frames, and the frame rate is not known: choose a format in "
                "seconds, such as .vtt or .llc",
                file=self.path,
            )
        if self.variable_rate:
            warnings.warn(
                f"{self.path}: frames are not evenly spaced, so the frame numbers of {what} drift:"
                " convert the video first (ffmpeg -i IN -fps_mode cfr OUT)",
                stacklevel=2,
            )
        return self.frame_rate


@dataclass(frozen=True)
class Clip:
    """A moment as a file shows it.

    Attributes:
        source: The video.
        start: Start in seconds.
        end: End in seconds, exclusive.
        name: Such as ``"moment 1"``.
        label: What happens there, for annotation tools; the name of the query.
        rank: 1 for the best answer.
        score: The model's score, where there is one.
        probability: Of the moment being right, where the model is calibrated.
        subject: Who performs, where known.
    """

    source: Source
    start: float
    end: float
    name: str
    label: str
    rank: int = 1
    score: float | None = None
    probability: float | None = None
    subject: str = ""

    @property
    def caption(self) -> str:
        """Name and score on one line."""
        scored = "" if self.score is None else f", score {self.score:.3f}"
        return one_line(self.name) + scored


def to_clips(
    moments: Iterable[tuple[Source, Moment]], label: str, padding: float = 0.0
) -> list[Clip]:
    """Name ranked moments and put them in order: by video, then by time.

    Args:
        moments: Videos and moments (seconds), best first.
        label: What was looked for.
        padding: Seconds to add at both ends, as far as the video goes.

    Raises:
        UsageError: ``padding`` is negative or not finite.
    """
    check_number(padding, "padding", least=0)
    clips, place = [], dict[str, int]()
    for rank, (source, moment) in enumerate(moments, start=1):
        place.setdefault(source.path, len(place))
        last = math.inf if source.duration is None else max(source.duration, moment.end)
        clips.append(
            Clip(
                source,
                max(moment.start - padding, 0.0),
                min(moment.end + padding, last),
                f"moment {rank}",
                label,
                rank,
                moment.score,
                moment.probability,
            )
        )
    return sorted(clips, key=lambda clip: (place[clip.source.path], clip.start, clip.rank))


def lanes(clips: Sequence[Clip]) -> list[list[Clip]]:
    """Deal clips of one video into as few rows as possible in which no two overlap."""
    rows: list[list[Clip]] = []
    for clip in sorted(clips, key=lambda clip: (clip.start, clip.end)):
        row = next((row for row in rows if row[-1].end <= clip.start), None)
        if row is None:
            rows.append(row := [])
        row.append(clip)
    return rows


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.mmm.

    Example:
        >>> clock(3723.5)
        '1:02:03.500'
    """
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def short_clock(seconds: int) -> str:
    """Whole seconds as m:ss, or h:mm:ss."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def presence_line(presence: float) -> str:
    """Whether a video holds what was looked for at all, in words.

    Example:
        >>> presence_line(0.8)
        'probability that the reference holds it: 0.80'
        >>> presence_line(0.2)
        'probably not in this video: probability 0.20, below 0.5'
    """
    if presence < DOUBT:
        return f"probably not in this video: probability {presence:.2f}, below {DOUBT:g}"
    return f"probability that the reference holds it: {presence:.2f}"


def one_line(text: str) -> str:
    r"""Text without line breaks, control characters and lone surrogates.

    Example:
        >>> one_line("a\nb\x00 c")
        'a b c'
    """
    return " ".join(_CONTROL.sub(" ", text).split())


def clip_frames(clip: Clip, rate: Fraction) -> tuple[int, int]:
    """First frame of a clip and the frame after its last; at least one frame, inside the video."""
    begin = Fraction(clip.source.first_picture)
    first = max(round((Fraction(clip.start) - begin) * rate), 0)
    stop = max(round((Fraction(clip.end) - begin) * rate), first + 1)
    count = clip.source.frame_count
    if count is not None and stop > count:
        stop = max(count, 1)
        first = min(first, stop - 1)
    return first, stop


def timecode(frame: int, rate: Fraction, drop: bool) -> str:
    """Timecode of a frame number; it starts again after 24 hours.

    Drop-frame numbers leave out 2 (59.94: 4) numbers at each minute but every tenth.

    Raises:
        UsageError: Drop-frame of another rate, or frames of more than two digits.

    Example:
        >>> timecode(107892, Fraction(30000, 1001), drop=True)
        '01:00:00;00'
        >>> timecode(107892, Fraction(30000, 1001), drop=False)
        '00:59:56:12'
    """
    base = round(rate)
    if drop:
        skipped = _skipped(rate)
        tens, rest = divmod(frame, 600 * base - 9 * skipped)
        frame += 9 * skipped * tens
        if rest >= skipped:
            frame += skipped * ((rest - skipped) // (60 * base - skipped))
    seconds, frames = divmod(frame, base)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if base > 100:
        raise UsageError(f"timecode has two digits for frames: {base} a second are too many")
    return f"{hours % 24:02d}:{minutes:02d}:{seconds:02d}{';' if drop else ':'}{frames:02d}"


def frame_number(text: str, rate: Fraction) -> tuple[int, bool]:
    """Frame number of a timecode, and whether it is drop-frame.

    Raises:
        UsageError: Not a timecode of this rate.

    Example:
        >>> frame_number("01:00:00;00", Fraction(30000, 1001))
        (107892, True)
    """
    match, base = _TIMECODE.fullmatch(text.strip()), round(rate)
    if match is None:
        raise UsageError(f"{text!r} is not a timecode: hh:mm:ss:ff wanted")
    hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
    drop = match[4] != ":"
    skipped = _skipped(rate) if drop else 0
    left_out = minutes % 10 and not seconds and frames < skipped  # no frame has this number
    if hours > 23 or minutes > 59 or seconds > 59 or frames >= base or left_out:
        raise UsageError(f"{text!r} is not a timecode of {float(rate):g} frames a second")
    total_minutes = 60 * hours + minutes
    frame = (60 * total_minutes + seconds) * base + frames
    return frame - skipped * (total_minutes - total_minutes // 10), drop


def start_frame(source: Source, rate: Fraction) -> tuple[int, bool]:
    """Frame number that a video's own timecode gives its first frame, and whether it drops frames.

    Without a timecode the count begins at 0, drop-frame at the rates that have it. A timecode that
    makes no sense at this rate is left aside with a warning.
    """
    default = 0, rate in _DROP_RATES
    if source.timecode is None:
        return default
    try:
        return frame_number(source.timecode, rate)
    except UsageError as problem:
        warnings.warn(f"{source.path}: {problem.reason}: counted from 0", stacklevel=2)
        return default


def _skipped(rate: Fraction) -> int:
    if rate not in _DROP_RATES:
        raise UsageError(f"{float(rate):g} frames a second have no drop-frame timecode")
    return round(rate) // 15


def by_source(clips: Sequence[Clip]) -> list[tuple[Source, list[Clip]]]:
    """Clips of each video."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.source.path, []).append(clip)
    return [(group[0].source, group) for group in groups.values()]


def json_text(value: Any) -> str:
    """JSON, one value a line, non-ASCII letters as they are."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def xml_text(root: ET.Element, doctype: str = "") -> str:
    """XML, indented, with its declaration and a document type by name."""
    ET.indent(root, " ")
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    head += f"<!DOCTYPE {doctype}>\n" if doctype else ""
    return head + ET.tostring(root, encoding="unicode") + "\n"


def table_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as comma-separated text with Unix line ends."""
    lines = []
    for row in rows:
        stream = io.StringIO()
        # With this end of a line a cell that holds a lone carriage return is quoted too.
        csv.writer(stream, lineterminator="\r\n").writerow(row)
        lines.append(stream.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def plain(seconds: float) -> str:
    """Seconds to the microsecond without an exponent or idle zeros.

    Example:
        >>> plain(1e-05), plain(12.5), plain(3.0)
        ('0.00001', '12.5', '3')
    """
    return f"{seconds:.6f}".rstrip("0").rstrip(".") or "0"
