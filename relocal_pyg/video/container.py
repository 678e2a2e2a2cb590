"""Opening a video file: which of its streams, and the clock by which its pictures are shown.

PyAV is the extra ``relocal_pyg[video]`` and is imported when the first file is opened.
"""

from __future__ import annotations

import math
import re
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
# Pictures that a decoder may hold back.
_REORDERED = 16
# A jump beyond this, and beyond the end that the file states, is a damaged time stamp.
MAX_JUMP = 3600.0
_DURATION = r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d*)?)"
# Formats whose headers may count the time before the file's clock begins; of these and of what
# they state, FFmpeg knows no more than the length of the whole.
_COUNTING = ("asf", "flv", "matroska,webm", "nut", "wtv")


@contextmanager
def open_video(path: str | Path, stream: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Open a file and one of its video streams.

    Args:
        path: The video file.
        stream: Number of the stream in the file; the one :func:`choose_stream` takes where None.

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
        "format_whitelist": ",".join(av.formats_available - INDIRECT_FORMATS),
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
            raise VideoError(f"{context.width} x {context.height} pixels are too many", file=path)
        context.options = {"max_pixels": str(MAX_PIXELS)}
        chosen.thread_type, context.thread_count = "NONE", 1
        yield container, chosen


def choose_stream(container: Any, path: str | Path, number: int | None) -> tuple[Any, str]:
    """The video stream to look at: the default one, else the largest; no still, no part of one.

    Returns:
        The stream, and words that say which one and why.

    Raises:
        VideoError: There is no video stream.
        UsageError: ``number`` is none.
    """
    kinds = import_av().stream.Disposition
    stills = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image | kinds.dependent
    streams = list(container.streams.video)
    moving = [stream for stream in streams if not stream.disposition & stills]
    if number is not None:
        for stream in streams:
            if stream.index == number:
                return stream, f"{_stream_words(stream)}: as asked for"
        known = ", ".join(str(stream.index) for stream in streams) or "none"
        raise UsageError(f"has no video stream {number} (its video streams: {known})", file=path)
    if not moving:
        tiled = any(stream.disposition & kinds.dependent for stream in streams)
        why = "is a picture in tiles: save it as JPEG or PNG" if tiled else "has no video stream"
        raise VideoError(why, file=path)
    sizes = {s: s.codec_context.width * s.codec_context.height for s in moving if s.codec_context}
    best = max(moving, key=lambda s: (bool(s.disposition & kinds.default), sizes.get(s, 0)))
    if len(moving) == 1:
        why = "the only video stream" if len(streams) == 1 else "the only one that is no still"
    elif best.disposition & kinds.default:
        why = f"the default one of {len(moving)} video streams"
    else:
        why = f"the largest of {len(moving)} video streams"
    return best, f"{_stream_words(best)}: {why}"


def _stream_words(stream: Any) -> str:
    context = stream.codec_context
    if context is None:
        return f"stream {stream.index}"
    return f"stream {stream.index} ({codec_name(context)}, {context.width} x {context.height})"


def codec_name(context: Any) -> str:
    """FFmpeg's name of a codec, not of the decoder that reads it."""
    return str(context.codec.canonical_name)


def palette_apart(context: Any) -> bool:
    """Whether the palette of all pictures may lie with the first one alone."""
    return context.pix_fmt == "pal8" and codec_name(context) not in ("gif", "png")


def zero(container: Any) -> float:
    """Where the file's own clock stands at its beginning, in the seconds of its time stamps."""
    return (container.start_time or 0) / 1e6


def seek_before(container: Any, stream: Any, seconds: float) -> bool:
    """Go to the key frame at or before a time of the file's clock; False where that is impossible.

    Some containers land elsewhere all the same: look at what comes.
    """
    if stream.start_time is None or palette_apart(stream.codec_context):
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


class Clock:
    """Seconds of a file's own clock for its packets and pictures, in the order they come.

    Presentation time stamps are believed until they run backwards more often than those of
    decoding do (AVI with B-frames), as FFmpeg's "best effort" has it. Where files were joined and
    the clock starts again, it goes on instead.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.restarting, self.backwards, self._torn = False, 0, False
        self.jump: tuple[float, float] | None = None
        self._jumped = 0.0
        self._waiting: list[Any] = []
        self._most = max(stated_ends(container, stream), default=0.0) + 1.0
        self.length = 1 / rate if (rate := stated_rate(stream)) else 0.0
        self._base = float(stream.time_base)
        self._zero = zero(container)
        # These keep times of decoding alone; those of presentation are FFmpeg's guess.
        name, delayed = container.format.name, stream.codec_context.has_b_frames
        self._guessed = name == "avi" or (name == "asf" and not delayed)
        # Of presentation and of decoding.
        self._last, self._faults = [-math.inf, -math.inf], [0, 0]
        self._decoding = self._previous = -math.inf
        self._skipping = stream.codec_context.skip_frame != "DEFAULT"
        self._latest: tuple[float, int, bool] = -math.inf, 0, False

    def note(self, packet: Any) -> None:
        """Look at the packet that comes next, decoded or not."""
        if packet.dts is not None:
            self._torn = packet.is_corrupt
            stamp = packet.dts * self._base
            # Times of decoding only rise, but for single stamps that are wrong.
            if stamp < self._decoding - self._reach():
                self.restarting, self._latest = True, (-math.inf, 0, False)
            self._decoding = stamp
        if packet.pts is not None and not packet.is_discard:
            shown = packet.pts, packet.duration or 0, self._skipping or not packet.size
            self._latest = max(self._latest, shown)

    @property
    def stays(self) -> float:
        """Seconds until which the last picture or one that was not decoded is shown, if known."""
        stamp, duration, known = self._latest  # an empty packet shows the same picture again
        end = stamp * self._base + (duration * self._base or self.length) - self._zero
        return end if known else -math.inf

    def has_read_all(self, stream: Any) -> bool:
        """Whether the last packet that the header lists was read whole (MP4 lists them all).

        Some decoders give nothing, and no error, from damage on: then it was not.
        """
        listed = stream.index_entries
        done = stream.frames > 0 and len(listed) > 0 and not self._torn
        late = (self._latest[0] - max(self._last)) * self._base
        done &= self._skipping or late <= self._reach()
        if done and stream.container.format.name == "avi":  # without a list one is made on the way
            done = (stream.duration or 0) >= stream.frames
        return done and self._decoding >= listed[-1].timestamp * self._base

    def place(self, frame: Any) -> Iterator[tuple[float, Any]]:
        """Pictures whose time is known now that this frame was decoded; None where none is left.

        Stamps that stand still or go back by no more than a decoder holds back are wrong (program
        streams stamp the wrong picture): those pictures share the time up to the next good stamp.
        """
        stamp = None if frame is None else self._best(frame.pts, frame.dts)
        if stamp is None:
            yield from self._spread(math.inf)
            if frame is not None:  # of a raw stream: the durations its own headers give are summed
                begun = self._previous > -math.inf
                yield self._set(self._previous + (self.length or 0.04) if begun else 0.0, frame)
            return
        time = stamp * self._base - self._zero
        if self._jumped and self._previous < time + self._jumped < self._previous + MAX_JUMP:
            self._zero, time, self._jumped = self._zero - self._jumped, time + self._jumped, 0.0
        far = -math.inf < self._previous < time - MAX_JUMP and time > self._most
        if far or (self.restarting and time <= self._previous):
            yield from self._spread(math.inf)
            following = self._previous + self.length
            if far:
                self.jump, self._jumped = self.jump or (self._previous, time), time - following
            self._zero += time - following
            time, self.restarting = following, False
        if time > self._previous:
            yield from self._spread(time)
            yield self._set(time, frame)
        elif time > self._previous - self._reach() and len(self._waiting) < _REORDERED:
            self._waiting.append(frame)
        else:
            self.backwards += 1

    def _reach(self) -> float:
        """Seconds by which a stamp goes back where only pictures were reordered."""
        return min(max(0.1, _REORDERED * self.length), 1.0)

    def _spread(self, until: float) -> Iterator[tuple[float, Any]]:
        step = min((until - self._previous) / (len(self._waiting) + 1), self.length or 0.04)
        while self._waiting:
            yield self._set(self._previous + step, self._waiting.pop(0))

    def _set(self, time: float, frame: Any) -> tuple[float, Any]:
        if frame.duration:
            self.length = float(frame.duration * frame.time_base)
        if self._previous > -math.inf:
            # Containers keep durations in order of decoding: those of pictures may be shorter.
            self.length = min(self.length or math.inf, time - self._previous)
        self._previous = time
        return time, frame

    def _best(self, pts: int | None, dts: int | None) -> int | None:
        for kind, stamp in enumerate((pts, dts)):
            self._faults[kind] += stamp is not None and stamp <= self._last[kind]
            either = next((each for each in (stamp, pts, dts) if each is not None), None)
            self._last[kind] = self._last[kind] if either is None else either
        believed = not self._guessed and self._faults[0] <= self._faults[1]
        return pts if pts is not None and (believed or dts is None) else dts


def stated_rate(stream: Any) -> float | None:
    """Frames per second that the header states, or None."""
    rates = stream.average_rate, stream.guessed_rate, stream.base_rate
    # Where FFmpeg knows none it may give the ticks of the clock.
    return next((float(rate) for rate in rates if rate and rate <= 1000), None)


def stated_ends(container: Any, stream: Any) -> list[float]:
    """Seconds of the file's clock at which the header says that the pictures end, if it does.

    Two, the lower first, where it may count what is before the clock begins, or not.
    """
    begin = zero(container)
    avi = container.format.name == "avi"
    if avi and stream.frames >= 1 << 30:
        return []  # written into a pipe: a number that was to be corrected at the end
    # Matroska keeps it as a tag: 00:00:17.046000000
    told = re.fullmatch(_DURATION, stream.metadata.get("DURATION", ""))
    if stream.duration:
        # Of a piece of an AVI it is the length of the piece; its header counts all pictures.
        end = float(max(stream.duration, stream.frames if avi else 0) * stream.time_base)
        if container.format.name not in _COUNTING:
            end += float((stream.start_time or 0) * stream.time_base) - begin
    elif told is not None:
        end = 3600 * int(told[1]) + 60 * int(told[2]) + float(told[3])
    else:
        end = (container.duration or 0) / 1e6
    ends = {end, end - begin} if container.format.name in _COUNTING else {end}
    return sorted(each for each in ends if each > 0)


def likely_end(container: Any, stream: Any) -> float | None:
    """The one of :func:`stated_ends` that the pictures bear out; the place in the file is lost."""
    ends = stated_ends(container, stream)
    return ends[_lasts(container, stream, sum(ends) / 2)] if len(ends) > 1 else (*ends, None)[0]


def missing_end(container: Any, stream: Any, until: float) -> float | None:
    """The end that the header states, where pictures end well before; the place is lost."""
    end = min(stated_ends(container, stream), default=0.0)
    late = end - max(1.0, 0.02 * end)
    if until >= late:
        return None
    # Where only the length of the whole is known, sound may go on after the pictures.
    alone = container.format.name not in _COUNTING or _lasts(container, stream, late)
    return end if alone or not _lasts(container, None, late) else None


def _lasts(container: Any, stream: Any, seconds: float) -> bool:
    """Whether anything of a stream (of any where None) is as late as that."""
    start = zero(container)
    for place in (seconds, seconds / 2):  # some formats give nothing after their last key frame
        try:
            container.seek(round((place + start) * 1e6))
            found = container.demux() if stream is None else container.demux(stream)
            last = max(float(p.pts * p.time_base) for p in found if p.pts is not None)
            return last >= seconds + start
        except failures():
            continue
    return False
