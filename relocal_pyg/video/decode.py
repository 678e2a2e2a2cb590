"""Streaming video decoding with PyAV: frames and the times at which they are shown.

Every time is a presentation timestamp counted from the start of the video stream, never a frame
number over a frame rate: variable frame rates, dropped frames and wrong headers do not shift it.
PyAV is the extra ``relocal_pyg[video]`` and is imported when the first file is opened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocal_pyg.errors import UsageError, VideoError

#: Containers that point at other files or addresses; a stranger's video must not open those.
INDIRECT_FORMATS = frozenset(
    [
        *("concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp", "tty", "vobsub"),
        *("alsa", "fbdev", "kmsgrab", "oss", "video4linux2,v4l2", "webm_dash_manifest", "x11grab"),
    ]
)


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream, cover pictures aside.

    Args:
        path: The video file.

    Yields:
        The ``av`` container and stream.

    Raises:
        VideoError: Missing, empty, a directory, not a video, or without a video stream.
        UsageError: PyAV is not installed.
    """
    av = import_av()
    file = check_file(path)
    options = {"protocol_whitelist": "file", "format_whitelist": _readable_formats()}
    try:
        # "file:" keeps a colon in the name from being read as a protocol; tags may be in any
        # encoding and are of no use here.
        container = av.open(f"file:{file}", metadata_errors="ignore", options=options)
    except failures() as error:
        raise VideoError(f"is not a video FFmpeg reads: {reason(error)}", file=path) from None
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise VideoError("has no video stream", file=path)
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("its codec is not known to this FFmpeg", file=path)
        # Without threads of its own the decoder is faster at small sizes and repeatable.
        stream.thread_type = "NONE"
        yield container, stream


def seek_before(container: Any, stream: Any, seconds: float) -> bool:
    """Go to the key frame at or before a time, counted from the start of the stream.

    Some containers land elsewhere all the same: look at what comes.

    Returns:
        Whether the container could seek at all.
    """
    if stream.start_time is None:
        return False
    try:
        # Half a millisecond more, so that rounding does not lead to the key frame before.
        offset = stream.start_time + math.floor((seconds + 5e-4) / stream.time_base)
        container.seek(offset, stream=stream, backward=True)
    except failures():
        return False
    return True


def check_file(path: str | Path) -> Path:
    """Give the absolute path of a file that exists, is no directory and is not empty.

    Raises:
        VideoError: It is not such a file.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise VideoError("is a directory, a video file wanted", file=path)
        if not file.exists():
            raise VideoError("no such file", file=path)
        if file.stat().st_size == 0:
            raise VideoError("is empty", file=path)
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot be opened: {reason(error)}", file=path) from None
    return file.absolute()


@cache
def failures() -> tuple[type[Exception], ...]:
    """What PyAV raises on bad files; its own errors share no base with the built-in ones."""
    return (import_av().FFmpegError, OSError, ValueError, LookupError, OverflowError)


def reason(error: BaseException) -> str:
    """The words of an error, without the numbers and the path FFmpeg adds."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def import_av() -> Any:
    """Give the ``av`` module.

    Raises:
        UsageError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UsageError("reading videos needs PyAV: pip install 'relocal_pyg[video]'") from None
    return av


@cache
def _readable_formats() -> str:
    return ",".join(sorted(import_av().formats_available - INDIRECT_FORMATS))


#: Frames larger than this many pixels are refused: a forged header must not take the memory.
MAX_PIXELS = 8192 * 8192


class Orientation:
    """How a video's pictures are turned and mirrored, as its first frame says.

    The display matrix belongs to the stream. It is read once also because a frame asked for its
    side data lives on until the garbage collector runs: asking every frame took 200 MB.

    Args:
        frame: An ``av.VideoFrame``.

    Attributes:
        swaps_axes: Whether width and height change places.
    """

    def __init__(self, frame: Any) -> None:
        self._matrix = 1, 0, 0, 1
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is not None:
            # Nine 32-bit numbers, row by row; the upper left 2 x 2 turns and mirrors.
            a, b, _, c, d = (int(cell) for cell in np.frombuffer(bytes(data), dtype=np.int32)[:5])
            self._matrix = a, b, c, d
        a, b, c, d = self._matrix
        self.swaps_axes = abs(b) + abs(c) > abs(a) + abs(d)

    @property
    def rotation(self) -> int:
        """Clockwise degrees (0, 90, 180, 270) by which a player turns the stored picture."""
        a, b, c, d = self._matrix
        if a * d - b * c < 0:  # mirrored: the turn that follows the mirroring
            a, b = -a, -b
        return round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360

    def apply(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn and mirror a stored picture ``[H, W, 3]``; the result is contiguous."""
        a, b, c, d = self._matrix
        # The stored pixel (x, y) is shown at (a x + c y, b x + d y), y pointing down.
        if self.swaps_axes:
            stored = stored.transpose(1, 0, 2)
            flip_x, flip_y = c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return np.ascontiguousarray(stored[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def to_rgb(
    frame: Any, orientation: Orientation, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Scale and convert a frame, then turn it.

    Args:
        frame: An ``av.VideoFrame``.
        orientation: Of its video.
        size: Height and width after turning; the displayed size where None.

    Returns:
        RGB uint8 ``[height, width, 3]``, contiguous and owned by the caller.

    Raises:
        ValueError: The frame is larger than :data:`MAX_PIXELS`.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"{frame.width} x {frame.height} pixels are too many")
    # FFmpeg smooths before it shrinks; bicubic keeps more detail than its default, bilinear.
    wanted: dict[str, Any] = {"interpolation": "BICUBIC"}
    if size is not None:
        height, width = reversed(size) if orientation.swaps_axes else size
        wanted |= {"width": width, "height": height}
    return orientation.apply(frame.to_ndarray(format="rgb24", **wanted))


# Some containers (Matroska) keep whole milliseconds: a frame due at .1667 s is stamped .167 s.
_TOLERANCE = 1e-3
# A jump beyond this is a damaged timestamp, not a long still.
_MAX_JUMP = 3600.0

Timed = tuple[float, float, Any]  # time in seconds, duration in seconds, PyAV frame
Shown = tuple[float, NDArray[np.uint8]]


class VideoWarning(UserWarning):
    """A video is damaged or incomplete; what could be decoded is used."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame say about a video.

    Attributes:
        duration: Seconds the header states, or None; an estimate.
        fps_nominal: Average frames per second the header states, or None.
        width: Pixels, as displayed (after rotation).
        height: Pixels, as displayed (after rotation).
        rotation: Clockwise degrees (0, 90, 180, 270) that a player turns the stored picture.
        num_frames_estimate: Frame count of the header, or duration times rate, or None.
        codec: FFmpeg's name of the codec.
    """

    duration: float | None
    fps_nominal: float | None
    width: int
    height: int
    rotation: int
    num_frames_estimate: int | None
    codec: str


def probe(path: str | Path) -> VideoInfo:
    """Describe a video; its first frame is decoded, so a file that passes holds at least one.

    Args:
        path: The video file.

    Raises:
        VideoError: Missing, empty, not a video, without a video stream, or nothing decodes.
        UsageError: PyAV is not installed.
    """
    with open_video(path) as (container, stream):
        _, _, frame = _first(path, _timed(container, stream, _ignore))
        duration = _stated_duration(container, stream)
        rate = _stated_rate(stream)
        count: int | None = int(stream.frames) or None
        if count is None and duration is not None and rate is not None:
            count = round(duration * rate)
        orientation = Orientation(frame)
        width, height = frame.width, frame.height
        if orientation.swaps_axes:
            width, height = height, width
        return VideoInfo(
            duration=duration,
            fps_nominal=rate,
            width=width,
            height=height,
            rotation=orientation.rotation,
            num_frames_estimate=count,
            codec=str(stream.codec_context.name),
        )


def warn_of(path: str | Path) -> Callable[[str], None]:
    """Give a function that turns a problem of a video into a :class:`VideoWarning`."""
    return lambda problem: warnings.warn(f"{path}: {problem}", VideoWarning, stacklevel=2)


def frames(
    path: str | Path,
    rate_hz: float | None = None,
    every: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    size: tuple[int, int] | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[Shown]:
    """Decode a video one frame at a time, in memory that does not grow with its length.

    With ``rate_hz`` item k is the picture on the screen at ``start + k / rate_hz``: a picture that
    stays on longer is given again (the same array), one that is too short is left out, and k times
    the step is a time in seconds whatever the frame rate does. With ``every`` each n-th decoded
    frame is given; with neither, every frame.

    Args:
        path: The video file.
        rate_hz: Items per second.
        every: Keep each n-th frame; excludes ``rate_hz``.
        start: Seconds; decoding begins at the key frame before it.
        end: Seconds, exclusive; the end of the video where None.
        size: Height and width to scale to (the whole picture, its aspect is not kept); the
            displayed size where None.
        report: Called with one line for each kind of damage met; where None, a
            :class:`VideoWarning` that names the file.

    Yields:
        Time in seconds at which the picture appears, and RGB uint8 ``[height, width, 3]``, turned
        as a player would turn it. A yielded array is never written to again.

    Raises:
        VideoError: As :func:`probe`, or no frame lies between ``start`` and ``end``.
        UsageError: An argument is out of range, or PyAV is not installed.
    """
    if rate_hz is not None and every is not None:
        raise UsageError("give rate_hz or every, not both")
    if rate_hz is not None and not (0 < rate_hz <= 1000):
        raise UsageError(f"rate_hz is {rate_hz}, more than 0 and at most 1000 wanted")
    if every is not None and every < 1:
        raise UsageError(f"every is {every}, at least 1 wanted")
    if not (math.isfinite(start) and start >= 0) or (end is not None and not end > start):
        raise UsageError(f"the range {start} to {end} seconds is empty or negative")
    if size is not None and not all(1 <= side <= 8192 for side in size):
        raise UsageError(f"size is {size}, sides of 1 to 8192 pixels wanted")
    check_file(path)
    timed = _timed_from(path, start, report or warn_of(path))
    if rate_hz is not None:
        return _on_grid(path, timed, rate_hz, start, end, size)
    return _each(path, timed, every or 1, start, end, size)


def _each(
    path: str | Path,
    timed: Iterator[Timed],
    every: int,
    start: float,
    end: float | None,
    size: tuple[int, int] | None,
) -> Iterator[Shown]:
    seen, paint = 0, _painter(path, size)
    for time, _, frame in timed:
        if time < start - _TOLERANCE:
            continue
        if end is not None and time >= end - _TOLERANCE:
            break
        if seen % every == 0:
            yield time, paint(frame)
        seen += 1
    if seen == 0:
        raise VideoError(f"shows no frame between {start} s and {end or 'its end'}", file=path)


def _on_grid(
    path: str | Path,
    timed: Iterator[Timed],
    rate_hz: float,
    start: float,
    end: float | None,
    size: tuple[int, int] | None,
) -> Iterator[Shown]:
    stop = math.inf if end is None else end
    step, paint = 0, _painter(path, size)

    def shown(time: float, frame: Any, until: float) -> Iterator[Shown]:
        nonlocal step
        picture = None
        while start + step / rate_hz < min(until, stop) - _TOLERANCE:
            # Converted only when it is wanted, and once however often it is shown.
            picture = paint(frame) if picture is None else picture
            yield time, picture
            step += 1

    last: Timed | None = None
    for time, length, frame in timed:
        if last is not None:
            yield from shown(last[0], last[2], until=time)
        last = time, length, frame
        if time >= stop:
            break
    if last is not None:
        yield from shown(last[0], last[2], until=last[0] + max(last[1], 2 * _TOLERANCE))
    if step == 0:
        raise VideoError(f"shows no frame between {start} s and {end or 'its end'}", file=path)


def _timed_from(path: str | Path, start: float, report: Callable[[str], None]) -> Iterator[Timed]:
    """Time, duration and frame from the key frame before ``start`` on; never later than that."""
    if start > 0:
        with open_video(path) as (container, stream):
            if seek_before(container, stream, start):
                timed = _timed(container, stream, report)
                head = next(timed, None)
                # Some containers seek past the mark, and a broken index can lead anywhere.
                if head is not None and head[0] <= start + _TOLERANCE:
                    yield head
                    yield from timed
                    return
    with open_video(path) as (container, stream):
        timed = _timed(container, stream, report)
        yield _first(path, timed)
        yield from timed


def _timed(container: Any, stream: Any, report: Callable[[str], None]) -> Iterator[Timed]:
    """Time in seconds, duration in seconds and frame, in rising order of time; damage is reported.

    Packets are decoded one by one, because a damaged packet ends ``container.decode``.
    """
    base = None if stream.start_time is None else float(stream.start_time * stream.time_base)
    rate = _stated_rate(stream)
    previous, length = -math.inf, 1 / rate if rate else 0.0
    damaged = backwards = 0
    for packet in _packets(container, stream, report):
        try:
            decoded = stream.decode(packet)
        except failures():
            damaged += 1
            continue
        for frame in decoded:
            if frame.duration:
                length = float(frame.duration * frame.time_base)
            if frame.pts is None:
                # A raw stream keeps no timestamps: the durations its own headers give are summed.
                time = 0.0 if previous == -math.inf else previous + length
                base = 0.0
            else:
                stamp = float(frame.pts * frame.time_base)
                base = stamp if base is None else base
                time = stamp - base
            if time > previous + _MAX_JUMP and previous > -math.inf:
                report(f"jumps from {previous:.1f} s to {time:.1f} s: used up to the jump")
                return
            if time <= previous:
                backwards += 1
                continue
            # MP4 keeps durations in order of decoding: with an uneven rate they are not those of
            # the pictures, and the last one may be far too long.
            length = min(length, time - previous)
            previous = time
            yield time, length, frame
    if previous == -math.inf:
        return  # the caller says that nothing decodes
    if damaged:
        report(f"{damaged} damaged packets were skipped")
    if backwards:
        report(f"{backwards} frames whose time runs backwards were skipped")
    stated = _stated_duration(container, stream)
    if stated is not None and previous + length < stated - max(1.0, 0.02 * stated):
        report(f"ends at {max(previous + length, 0.0):.1f} s of the stated {stated:.1f} s")


def _packets(container: Any, stream: Any, report: Callable[[str], None]) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except failures() as error:
            report(f"broken off: {reason(error)}")
            return
        if packet is None:
            return
        yield packet


def _first(path: str | Path, timed: Iterator[Timed]) -> Timed:
    head = next(timed, None)
    if head is None:
        raise VideoError("holds no frame that can be decoded", file=path)
    return head


def _painter(path: str | Path, size: tuple[int, int] | None) -> Callable[[Any], NDArray[np.uint8]]:
    orientation: Orientation | None = None

    def paint(frame: Any) -> NDArray[np.uint8]:
        nonlocal orientation
        try:
            orientation = orientation or Orientation(frame)
            return to_rgb(frame, orientation, size)
        except failures() as error:
            raise VideoError(f"a frame cannot be converted: {reason(error)}", file=path) from None

    return paint


def _stated_rate(stream: Any) -> float | None:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate else None


def _stated_duration(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    duration = container.duration / 1e6
    if "matroska" in container.format.name and stream.start_time:
        # Counted there from zero, not from the first frame.
        duration -= float(stream.start_time * stream.time_base)
    return float(duration)


def _ignore(problem: str) -> None:
    """Drop a report: :func:`probe` reads only the beginning."""
