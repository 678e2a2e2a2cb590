"""Streaming video decoding with PyAV: pictures and the times at which they are shown.

Every time is one of the file's own clock, as ``ffmpeg -ss`` and players count it: 0 is where the
container begins, which may be before its first picture. It is never a frame number over a frame
rate, so variable rates, dropped frames and wrong headers do not shift it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice, pairwise, repeat
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocal_pyg.errors import UsageError, VideoError, check_number
from relocal_pyg.video.container import (
    MAX_JUMP,
    MAX_PIXELS,
    Clock,
    check_file,
    choose_stream,
    codec_name,
    failures,
    import_av,
    likely_end,
    missing_end,
    open_video,
    reason,
    seek_before,
    stated_ends,
    stated_rate,
    zero,
)

# AVFMT_TS_DISCONT: formats made for joining, whose clock may start again.
_JOINABLE = 0x0200


class Orientation:
    """How a video's pictures are turned and mirrored, as its first frame says.

    The display matrix belongs to the stream. It is read once also because a frame asked for its
    side data lives on until the garbage collector runs: asking every frame took 200 MB.

    Args:
        frame: An ``av.VideoFrame``.

    Attributes:
        matrix: FFmpeg's nine 32-bit numbers, row by row; None where nothing is turned.
        swaps_axes: Whether width and height change places.
    """

    def __init__(self, frame: Any) -> None:
        try:
            sides = frame.side_data
        except ValueError:  # beside it lies what PyAV has no name for, such as EXIF
            named = len(import_av().sidedata.sidedata.Type)
            others = [("sidedata", f"mode=delete:type={kind}") for kind in range(named, 64)]
            sides = filtered(frame, *others)(frame).side_data
        data = sides.get("DISPLAYMATRIX")
        self.matrix = None if data is None else np.frombuffer(bytes(data), np.int32).tolist()
        # The upper left 2 x 2 turns and mirrors.
        a, b, _, c, d = (self.matrix or [1, 0, 0, 0, 1])[:5]
        self._turn = a, b, c, d
        self.swaps_axes = abs(b) + abs(c) > abs(a) + abs(d)

    @property
    def rotation(self) -> int:
        """Clockwise degrees (0, 90, 180, 270) by which a player turns the stored picture."""
        a, b, c, d = self._turn
        if a * d - b * c < 0:  # mirrored: the turn that follows the mirroring
            a, b = -a, -b
        return round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360

    def apply(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn and mirror a stored picture ``[H, W, 3]``; the result is contiguous."""
        a, b, c, d = self._turn
        # The stored pixel (x, y) is shown at (a x + c y, b x + d y), y pointing down.
        if self.swaps_axes:
            stored = stored.transpose(1, 0, 2)
            flip_x, flip_y = c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return np.ascontiguousarray(stored[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def filtered(like: Any, *steps: tuple[str, str]) -> Callable[[Any], Any]:
    """Give a function that puts frames of one shape through FFmpeg's filters (names, arguments)."""
    graph = import_av().filter.Graph()
    size = {"width": like.width, "height": like.height, "format": like.format}
    source = graph.add_buffer(**size, time_base=Fraction(1, 1000))
    graph.link_nodes(source, *(graph.add(*step) for step in steps), graph.add("buffersink"))
    graph.configure()

    def run(frame: Any) -> Any:
        graph.push(frame)
        return graph.pull()

    return run


# Some containers (Matroska) keep whole milliseconds: a frame due at .1667 s is stamped .167 s.
_TOLERANCE = 1e-3
# Packets that are looked at to learn a file's rate, and what may be left undecoded.
_SAMPLE = 60

Timed = tuple[float, float, Any]  # seconds at which a picture appears and goes, PyAV frame
Shown = tuple[float, NDArray[np.uint8]]
Painter = Callable[[Any], NDArray[np.uint8]]


class VideoWarning(UserWarning):
    """A video is damaged or incomplete; what could be decoded is used."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first pictures say about a video; times are of the file's clock.

    Attributes:
        duration: Seconds at which the pictures end as the header states, or None; an estimate.
        fps_nominal: Frames per second of the first pictures where they follow each other fastest
            (a picture that stays on does not make a file slow); the header's where there are no
            time stamps, or None.
        width: Pixels, as displayed (after rotation).
        height: Pixels, as displayed (after rotation).
        rotation: Clockwise degrees (0, 90, 180, 270) that a player turns the stored picture.
        num_frames_estimate: Frame count of the header, or duration times rate, or None.
        codec: FFmpeg's name of the codec.
        start: Seconds at which the first picture appears.
        stream: Which stream this is of, and why.
        zero: Time stamp, in seconds, of what is 0 here.
    """

    duration: float | None
    fps_nominal: float | None
    width: int
    height: int
    rotation: int
    num_frames_estimate: int | None
    codec: str
    start: float = 0.0
    stream: str = ""
    zero: float = 0.0


def probe(path: str | Path, stream: int | None = None) -> VideoInfo:
    """Describe a video; its first frame is decoded, so a file that passes holds at least one.

    Args:
        path: The video file.
        stream: Number of the stream in the file; the default one where None.

    Raises:
        VideoError: Missing, empty, not a video, without a video stream, or nothing decodes.
        UsageError: No such stream, or PyAV is not installed.
    """
    with open_video(path, stream) as (container, video):
        why = choose_stream(container, path, stream)[1]
        begin, _, frame = _first(path, timed(container, video, unreported))
        orientation = Orientation(frame)
        width, height = (frame.width, frame.height)[:: -1 if orientation.swaps_axes else 1]
    with open_video(path, stream) as (container, video):
        rate = _real_rate(container, video)
        duration = likely_end(container, video)
        count: int | None = int(video.frames) or None
        if count is None and duration is not None and rate is not None:
            count = round((duration - begin) * rate)
        codec, begins = codec_name(video.codec_context), zero(container)
    turned = orientation.rotation
    return VideoInfo(duration, rate, width, height, turned, count, codec, begin, why, begins)


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
    stream: int | None = None,
) -> Iterator[Shown]:
    """Decode a video one frame at a time, in memory that does not grow with its length.

    With ``rate_hz`` item k is the picture on the screen at ``start + k / rate_hz``: a picture that
    stays on longer is given again (the same array), one that is too short is left out, and k times
    the step is a time in seconds whatever the frame rate does; before the first picture appears it
    is that one. With ``every`` each n-th decoded frame is given; with neither, every frame.

    Args:
        path: The video file.
        rate_hz: Items per second.
        every: Keep each n-th frame; excludes ``rate_hz``.
        start: Seconds of the file's own clock; decoding begins at the key frame before it.
        end: Seconds, exclusive; the end of the video where None.
        size: Height and width to scale to (the whole picture, its aspect is not kept); the
            displayed size where None.
        report: Called with one line for each kind of damage met; where None, a
            :class:`VideoWarning` that names the file.
        stream: Number of the stream in the file; the default one where None.

    Yields:
        Time in seconds at which the picture appears, and RGB uint8 ``[height, width, 3]``, turned
        as a player would turn it. A yielded array is never written to again.

    Raises:
        VideoError: As :func:`probe`, or no frame lies between ``start`` and ``end``.
        UsageError: An argument is out of range, or PyAV is not installed.
    """
    if rate_hz is not None and every is not None:
        raise UsageError("give rate_hz or every, not both")
    if rate_hz is not None:
        check_number(rate_hz, "rate_hz", above=0, most=1000)
    if every is not None:
        check_number(every, "every", least=1, whole=True)
    if not (math.isfinite(start) and start >= 0) or (end is not None and not end > start):
        raise UsageError(f"the range {start} to {end} seconds is empty or negative")
    if size is not None:
        check_size(size)
    check_file(path)
    shown = pictures(path, start, end, stream=stream, report=report or warn_of(path))
    paint = painter(path, size)
    if rate_hz is None:
        return _each(path, shown, every or 1, start, paint)
    runs = grid(shown, rate_hz, start, end)
    # Converted only when it is wanted, and once however often it is shown.
    return (item for time, count, frame in runs for item in repeat((time, paint(frame)), count))


def check_size(size: tuple[int, int]) -> None:
    """Refuse what is no height and width.

    Raises:
        UsageError: Not two whole numbers from 1 to 8192.
    """
    sides = list(size) if isinstance(size, Iterable) else [size]
    if len(sides) != 2 or not all(isinstance(s, Integral) and 1 <= s <= 8192 for s in sides):
        raise UsageError(f"size is {size}, height and width of 1 to 8192 pixels wanted")


def _each(
    path: str | Path, shown: Iterator[Timed], every: int, start: float, paint: Painter
) -> Iterator[Shown]:
    seen = 0
    for time, _, frame in shown:
        if time < start - _TOLERANCE:
            continue
        if seen % every == 0:
            yield time, paint(frame)
        seen += 1
    if seen == 0:
        raise VideoError(f"shows no frame from {start:g} s on", file=path)


def grid(
    shown: Iterator[Timed],
    rate_hz: float,
    start: float = 0.0,
    end: float | None = None,
    early: float = 0.0,
) -> Generator[tuple[float, int, Any], None, None]:
    """What is on the screen at ``start + k / rate_hz``, as runs: a picture and how many steps.

    Args:
        shown: Of :func:`pictures`.
        rate_hz: Steps per second.
        start: Seconds of the first step.
        end: Seconds, exclusive.
        early: Where frames between these were left out, the next one counts as shown so many
            seconds earlier, or from the middle between two on: the nearest instead of the one
            before.

    Yields:
        Time in seconds at which the picture appears, steps (at least 1), and the PyAV frame.
    """
    stop = math.inf if end is None else end
    step = 0

    def steps_until(time: float) -> int:
        return math.ceil((min(time, stop) - _TOLERANCE - start) * rate_hz)

    item: Timed | None = None
    for item in shown:
        past = steps_until(item[1] - min(early, (item[1] - item[0]) / 2))
        if past > step:
            yield item[0], past - step, item[2]
            step = past
    if item is not None and steps_until(item[1]) > step:
        yield item[0], steps_until(item[1]) - step, item[2]


def pictures(
    path: str | Path,
    start: float = 0.0,
    end: float | None = None,
    *,
    stream: int | None = None,
    report: Callable[[str], None],
    skip: str = "DEFAULT",
    apart: float = 0.0,
) -> Iterator[Timed]:
    """Every picture on the screen during a stretch, as it is.

    Args:
        path: The video file.
        start: Seconds of the file's clock.
        end: Seconds, exclusive; the end of the video where None.
        stream: As in :func:`open_video`.
        report: Called with one line for each kind of damage met.
        skip: FFmpeg's ``skip_frame``: which frames are not decoded, see :func:`droppable`.
        apart: With ``skip="NONKEY"``, seconds that key frames have to lie apart to be decoded.

    Yields:
        Seconds at which it appears and goes, and the PyAV frame. The first may have appeared
        before ``start``.

    Raises:
        VideoError: Nothing decodes, or nothing is shown during the stretch.
        UsageError: No such stream.
    """
    found = False
    for item in _timed_from(path, start, stream, report, skip, apart):
        if end is not None and item[0] >= end - _TOLERANCE and found:
            break
        if item[1] > start + _TOLERANCE:
            if end is not None and item[0] >= end - _TOLERANCE:
                break
            found = True
            yield item
    if not found:
        raise VideoError(f"shows no frame between {start:g} s and {end or 'its end'}", file=path)


def _timed_from(
    path: str | Path,
    start: float,
    number: int | None,
    report: Callable[[str], None],
    skip: str,
    apart: float,
) -> Iterator[Timed]:
    """Pictures from the key frame before ``start`` on; never later than that."""
    for sought in (start > 0 and not restarts(path, number), False):
        with open_video(path, number) as (container, stream):
            stream.codec_context.skip_frame = skip
            if sought and not seek_before(container, stream, start):
                continue
            found = timed(container, stream, report, apart if skip == "NONKEY" else None)
            head = next(found, None) if sought else _first(path, found)
            # Some containers seek past the mark, or to what has no stamp; an index may be wrong.
            bare = head is None or head[2].pts is head[2].dts is None
            if head is not None and not (sought and (bare or head[0] > start + _TOLERANCE)):
                yield head
                yield from found
                return


def restarts(path: str | Path, number: int | None) -> bool:
    """Whether the clock of a file that may be joined of several starts again somewhere."""
    return _restarts_of(*_as_it_is(path), number)


def _as_it_is(path: str | Path) -> tuple[str, int, int]:
    """A file's name, size and time of change: what is known of it holds until they differ."""
    state = os.stat(check_file(path))
    return os.fspath(path), state.st_size, state.st_mtime_ns


@lru_cache(maxsize=64)
def _restarts_of(path: str, size: int, changed: int, number: int | None) -> bool:
    with open_video(path, number) as (container, stream):
        if not container.format.flags & _JOINABLE:
            return False
        clock = Clock(container, stream)
        for packet in packets_of(container, stream, unreported):
            clock.note(packet)
            if clock.restarting:
                return True
    return False


def timed(
    container: Any, stream: Any, report: Callable[[str], None], apart: float | None = None
) -> Iterator[Timed]:
    """Pictures with the seconds at which they appear and go, in order; damage is reported.

    Packets are decoded one by one, because a damaged packet ends ``container.decode``.

    Args:
        container: Of :func:`open_video`; where it was sought to, pictures follow from there.
        stream: Its stream.
        report: Called with one line for each kind of damage met.
        apart: Decode key frames only, and of those only such as lie so many seconds after the last.
    """
    due = -math.inf
    clock = Clock(container, stream)
    held: tuple[float, Any] | None = None
    damaged = 0
    try:
        for packet in chain(packets_of(container, stream, report), [None]):
            if packet is not None:
                clock.note(packet)
            if apart is not None and packet is not None and packet.pts is not None:
                stamp = float(packet.pts * stream.time_base)
                if not packet.is_keyframe or due - apart <= stamp < due - 1e-6:
                    continue
                due = stamp + apart
            decoded: list[Any] = [None] * (packet is None)
            try:
                # Where the file broke off, nothing has emptied the decoder yet.
                decoded = [*stream.decode(packet), *decoded]
            except failures():
                # An empty packet shows the same picture again; without a time it ends the stream.
                damaged += packet is not None and (packet.size > 0 or packet.dts is None)
            for frame in decoded:
                for time, placed in clock.place(frame):
                    if held is not None:
                        yield held[0], time, held[1]
                    held = time, placed
        if held is None:
            return  # the caller says that nothing decodes
        whole = not damaged and clock.has_read_all(stream)
        until = _last_end(clock, held, max(stated_ends(container, stream), default=None), whole)
        yield held[0], until, held[1]
    finally:  # also where the rest is not wanted
        if held is not None and damaged:
            report(f"{damaged} damaged packets were skipped")
        if held is not None and clock.backwards:
            report(f"{clock.backwards} frames whose time runs backwards were skipped")
    if clock.jump:
        report("its clock jumps from {:.1f} s to {:.1f} s: it goes on instead".format(*clock.jump))
    elif not whole and (stated := missing_end(container, stream, until)) is not None:
        report(f"ends at {max(until, 0.0):.1f} s of the stated {stated:.1f} s")


def packets_of(container: Any, stream: Any, report: Callable[[str], None]) -> Iterator[Any]:
    """Packets of a stream until its end; a file that breaks off is reported."""
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


def _last_end(clock: Clock, held: tuple[float, Any], stated: float | None, whole: bool) -> float:
    """When the last picture goes: it may stay on for long, as the file says."""
    time, frame = held
    if whole and stated is not None and stated > time + _TOLERANCE:
        return stated
    own = float(frame.duration * frame.time_base) if frame.duration else clock.length
    # Believed where the header bears it out; where there is none, for an hour.
    most = time + MAX_JUMP if stated is None else max(stated, time + clock.length)
    return max(min(max(time + own, clock.stays), most), time + 2 * _TOLERANCE)


@lru_cache(maxsize=64)
def _droppable(path: str, size: int, changed: int, number: int | None, rate_hz: float) -> str:
    whole = _trial(path, number, "DEFAULT")
    for skip in ("NONKEY", "BIDIR", "NONREF"):
        kept = _trial(path, number, skip)
        times = sorted([*kept, max(whole, default=0.0)])
        gaps = [after - before for before, after in pairwise(times)]
        if (
            (len(kept) < len(whole) or skip == "NONKEY")
            and max(gaps, default=math.inf) <= 1.1 / rate_hz
            and all(stamp in whole and np.array_equal(whole[stamp], kept[stamp]) for stamp in kept)
        ):
            return skip
    return "DEFAULT"


def droppable(path: str | Path, rate_hz: float, stream: int | None = None) -> str:
    """Which frames need not be decoded for so many pictures a second: FFmpeg's ``skip_frame``.

    Frames that no other is predicted from cost half of the decoding. What can be left out differs
    from file to file, so the beginning is decoded with and without: the pictures that stay have to
    be the same, and no further apart than a step.

    Args:
        path: The video file.
        rate_hz: Pictures per second wanted.
        stream: As in :func:`relocal_pyg.video.container.open_video`.
    """
    return _droppable(*_as_it_is(path), stream, rate_hz)


def _trial(path: str, number: int | None, skip: str) -> dict[float, NDArray[np.uint8]]:
    """Small pictures of the first packets, by their time stamps in seconds."""
    found: dict[float, NDArray[np.uint8]] = {}
    small = {"format": "gray", "width": 64, "height": 64, "interpolation": "AREA"}
    with open_video(path, number) as (container, stream):
        stream.codec_context.skip_frame = skip
        packets = islice(packets_of(container, stream, unreported), _SAMPLE)
        for packet in chain(packets, [None]):  # None: what is still inside the decoder
            try:
                decoded = stream.decode(packet)
            except failures():
                return {}
            for frame in decoded:
                if frame.pts is None:
                    return {}
                found[float(frame.pts * stream.time_base)] = frame.to_ndarray(**small)
    return found


def _real_rate(container: Any, stream: Any) -> float | None:
    """Frames per second where the first pictures follow each other fastest."""
    packets = islice(packets_of(container, stream, unreported), 2 * _SAMPLE)
    stamps = sorted({packet.pts for packet in packets if packet.pts is not None})
    gaps = sorted(float((after - before) * stream.time_base) for before, after in pairwise(stamps))
    # The fastest tenth: one odd gap decides nothing.
    return 1 / gaps[len(gaps) // 10] if gaps else stated_rate(stream)


def _first(path: str | Path, found: Iterator[Timed]) -> Timed:
    head = next(found, None)
    if head is None:
        most = f"of at most {MAX_PIXELS:,} pixels"  # decoders do not say which of the two it was
        raise VideoError(f"holds no frame {most} that can be decoded", file=path)
    return head


def painter(
    path: str | Path, size: tuple[int, int] | None, interpolation: str = "BICUBIC"
) -> Painter:
    """Give a function that scales PyAV frames of one video, turns them and makes them RGB.

    It gives uint8 ``[height, width, 3]``, contiguous and owned by the caller.

    Args:
        path: The video file.
        size: Height and width after turning; the displayed size where None.
        interpolation: FFmpeg's: ``"BICUBIC"`` keeps detail, ``"AREA"`` is a third faster.

    Raises:
        VideoError: A frame cannot be converted, or is larger than :data:`MAX_PIXELS`.
    """
    orientation: Orientation | None = None

    def paint(frame: Any) -> NDArray[np.uint8]:
        nonlocal orientation
        try:
            if frame.width * frame.height > MAX_PIXELS:
                raise ValueError(f"{frame.width} x {frame.height} pixels are too many")
            orientation = orientation or Orientation(frame)
            wanted: dict[str, Any] = {"interpolation": interpolation}
            if size is not None:
                height, width = reversed(size) if orientation.swaps_axes else size
                wanted |= {"width": width, "height": height}
            return orientation.apply(frame.to_ndarray(format="rgb24", **wanted))
        except failures() as error:
            raise VideoError(f"a frame cannot be converted: {reason(error)}", file=path) from None

    return paint


def unreported(problem: str) -> None:
    """A report that is not wanted: only a part is looked at, or it was made before."""
