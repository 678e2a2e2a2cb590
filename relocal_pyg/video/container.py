"""Opening a video file: which of its streams, and the clock by which its pictures are shown.

PyAV is the extra ``relocal_pyg[video]`` and is imported when the first file is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from relocal_pyg.errors import UsageError, VideoError

#: Containers that point at other files or addresses; a stranger's video must not open those.
INDIRECT_FORMATS = frozenset(
    [
        *("concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp", "tty", "vobsub"),
        *("alsa", "fbdev", "kmsgrab", "oss", "video4linux2,v4l2", "webm_dash_manifest", "x11grab"),
    ]
)
#: Frames larger than this many pixels are refused: a forged header must not take the memory.
MAX_PIXELS = 8192 * 8192
# Pictures of this size and more are decoded by two threads.
_LARGE = 640 * 480


@contextmanager
def open_video(
    path: str | Path, stream: int | None = None, threads: int = 1
) -> Iterator[tuple[Any, Any]]:
    """Open a file and one of its video streams.

    Args:
        path: The video file.
        stream: Number of the stream in the file; the one :func:`choose_stream` takes where None.
        threads: Threads of the decoder, for large pictures only.

    Yields:
        The ``av`` container and stream.

    Raises:
        VideoError: Missing, empty, not a regular file, not a video, or without a video stream.
        UsageError: ``stream`` is no video stream of the file, or PyAV is not installed.
    """
    av = import_av()
    file = check_file(path)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _readable_formats(),
        "max_pixels": str(MAX_PIXELS),  # looked at before a picture's memory is taken
    }
    try:
        # "file:" keeps a colon in the name from being read as a protocol; tags may be in any
        # encoding and are of no use here.
        container = av.open(f"file:{file}", metadata_errors="ignore", options=options)
    except failures() as error:
        raise VideoError(f"is not a video FFmpeg reads: {reason(error)}", file=path) from None
    with container:
        chosen, _ = choose_stream(container, path, stream)
        context = chosen.codec_context
        if context is None:
            raise VideoError("its codec is not known to this FFmpeg", file=path)
        if context.width * context.height > MAX_PIXELS:
            size = f"{context.width} x {context.height}"
            raise VideoError(f"{size} pixels are too many", file=path)
        context.options = {"max_pixels": str(MAX_PIXELS)}
        # At small sizes the decoder is faster without threads of its own.
        large = threads > 1 and context.width * context.height >= _LARGE
        chosen.thread_type = "FRAME" if large else "NONE"
        context.thread_count = threads if large else 1
        yield container, chosen


def choose_stream(container: Any, path: str | Path, number: int | None) -> tuple[Any, str]:
    """The video stream to look at: the default one, else the largest, never a still picture.

    Returns:
        The stream, and words that say which one and why.

    Raises:
        VideoError: There is no video stream.
        UsageError: ``number`` is none.
    """
    kinds = import_av().stream.Disposition
    stills = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image
    streams = list(container.streams.video)
    moving = [stream for stream in streams if not stream.disposition & stills]
    if number is not None:
        for stream in streams:
            if stream.index == number:
                return stream, f"{_stream_words(stream)}: as asked for"
        known = ", ".join(str(stream.index) for stream in streams) or "none"
        raise UsageError(f"has no video stream {number} (its video streams: {known})", file=path)
    if not moving:
        raise VideoError("has no video stream", file=path)
    best = max(moving, key=lambda s: (bool(s.disposition & kinds.default), _pixels(s)))
    if len(moving) == 1:
        why = "the only video stream" if len(streams) == 1 else "the only one that is no still"
    elif best.disposition & kinds.default:
        why = f"the default one of {len(moving)} video streams"
    else:
        why = f"the largest of {len(moving)} video streams"
    return best, f"{_stream_words(best)}: {why}"


def _pixels(stream: Any) -> int:
    context = stream.codec_context
    return 0 if context is None else int(context.width * context.height)


def _stream_words(stream: Any) -> str:
    context = stream.codec_context
    if context is None:
        return f"stream {stream.index}"
    return f"stream {stream.index} ({codec_name(context)}, {context.width} x {context.height})"


def codec_name(context: Any) -> str:
    """FFmpeg's name of a codec, not of the decoder that reads it."""
    return str(context.codec.canonical_name)


def zero(container: Any) -> float:
    """Where the file's own clock stands at its beginning, in the seconds of its time stamps."""
    return (container.start_time or 0) / 1e6


def seek_before(container: Any, stream: Any, seconds: float) -> bool:
    """Go to the key frame at or before a time of the file's clock; False where that is impossible.

    Some containers land elsewhere all the same: look at what comes.
    """
    if stream.start_time is None:
        return False
    try:
        # Half a millisecond more, so that rounding does not lead to the key frame before.
        offset = math.floor((seconds + zero(container) + 5e-4) / stream.time_base)
        container.seek(offset, stream=stream, backward=True)
    except failures():
        return False
    return True


def check_file(path: str | Path) -> Path:
    """Give the absolute path of a regular file that exists and is not empty.

    Raises:
        VideoError: It is not such a file.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise VideoError("is a directory, a video file wanted", file=path)
        if not file.exists():
            raise VideoError("no such file", file=path)
        if not file.is_file():
            raise VideoError("is no regular file", file=path)
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


class Clock:
    """Seconds of a file's own clock for its packets and pictures, in the order they come.

    Presentation time stamps are believed until they run backwards more often than those of
    decoding do (AVI with B-frames), as FFmpeg's "best effort" has it. Where files were joined and
    the clock starts again, it goes on instead.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.restarting = False
        self.length = 1 / rate if (rate := stated_rate(stream)) else 0.0
        self._base = float(stream.time_base)
        self._zero = zero(container)
        self._decoding = -math.inf
        self._last: dict[str, float] = {"pts": -math.inf, "dts": -math.inf}
        self._faults = {"pts": 0, "dts": 0}
        self._previous = -math.inf

    def note(self, packet: Any) -> None:
        """Look at the packet that is decoded next."""
        if packet.dts is None:
            return
        stamp = packet.dts * self._base
        # Times of decoding only rise; a tenth of a second is what FFmpeg forgives.
        self.restarting |= stamp < self._decoding - 0.1
        self._decoding = stamp

    def has_read(self, stamp: int) -> bool:
        """Whether the packet to be decoded at a time stamp has been noted."""
        return self._decoding >= stamp * self._base

    def time(self, frame: Any) -> float | None:
        """Seconds at which a decoded frame appears; None where it cannot be told."""
        stamps = {"pts": frame.pts, "dts": frame.dts}
        if all(stamp is None for stamp in stamps.values()):
            # A raw stream: the durations its own headers give are summed.
            time = 0.0 if self._previous == -math.inf else self._previous + self.length
        else:
            time = self._best(stamps) * self._base - self._zero
        if self.restarting and time <= self._previous:
            self._zero -= self._previous + self.length - time
            time, self.restarting = self._previous + self.length, False
        if self._previous - self.length < time <= self._previous:
            time = self._previous + self.length / 2  # one stamp for two pictures
        if time <= self._previous:
            return None
        if frame.duration:
            self.length = float(frame.duration * frame.time_base)
        if self._previous > -math.inf:
            # Containers keep durations in order of decoding: those of pictures may be shorter.
            self.length = min(self.length or math.inf, time - self._previous)
        self._previous = time
        return time

    def _best(self, stamps: dict[str, int | None]) -> int:
        for kind, other in (("dts", "pts"), ("pts", "dts")):
            stamp = stamps[kind]
            if stamp is None:
                stamp = stamps[other]
            elif stamp <= self._last[kind]:
                self._faults[kind] += 1
            if stamp is not None:
                self._last[kind] = stamp
        believed = self._faults["pts"] <= self._faults["dts"] or stamps["dts"] is None
        kind = "pts" if believed and stamps["pts"] is not None else "dts"
        stamp = stamps[kind]
        assert stamp is not None
        return stamp


def stated_rate(stream: Any) -> float | None:
    """Frames per second that the header states, or None."""
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate else None


def stated_end(container: Any, stream: Any) -> float | None:
    """Seconds of the file's clock at which the header says that the pictures end, or None."""
    if stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - zero(
            container
        )
    told = stream.metadata.get("DURATION")  # Matroska keeps it as a tag: 00:00:17.046000000
    try:
        hours, minutes, seconds = str(told).split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - zero(container)
    except ValueError:
        pass
    return container.duration / 1e6 if container.duration else None
