"""Cutting a moment out of a video file, and what other programs need to know to do so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from relocal_pyg.errors import OutputError, UsageError, VideoError
from relocal_pyg.formats.clips import TIMELINE_RATES, Source, timeline_rate
from relocal_pyg.io.write import replace_file
from relocal_pyg.video.container import (
    check_file,
    failures,
    import_av,
    open_video,
    reason,
    seek_before,
)
from relocal_pyg.video.decode import frames, packets_of, probe

# Exact for the usual frame rates and for milliseconds, and not too fine for MPEG-4.
_TIME_BASE = Fraction(1, 60_000)
# Seconds given as floats should not miss a frame by rounding.
_EPSILON = Fraction(1, 2000)
# Packets that are looked at to learn whether pictures are evenly spaced, and how many of the last
# are left aside: pictures shown between them may come after.
_SAMPLE, _REORDERED = 1000, 32


def describe_source(path: str | Path, video_id: str = "", duration: float | None = None) -> Source:
    """What a format for editors or annotators needs to know of a video file.

    The frame rate is the header's, exact; where that is no rate of a timeline, the nearest nominal
    one that FFmpeg gives.

    Args:
        path: The video file.
        video_id: What annotations call it; the name without its suffix where empty.
        duration: Seconds that decoding it gave, where known; what the header states elsewhere.

    Raises:
        VideoError: It cannot be read.
        UsageError: PyAV is missing.
    """
    info = probe(path)
    with open_video(path) as (container, stream):
        packets = islice(packets_of(container, stream, lambda problem: None), _SAMPLE)
        stamps = sorted({packet.pts for packet in packets if packet.pts is not None})
        stated = [stream.average_rate, stream.guessed_rate, stream.base_rate, info.fps_nominal]
        tags = [each.metadata for each in (stream, *container.streams, container)]
        audio, count, base = bool(container.streams.audio), int(stream.frames), stream.time_base
    stamps = stamps[:-_REORDERED] if len(stamps) > 2 * _REORDERED else stamps
    gaps = [float((after - before) * base) for before, after in pairwise(stamps)]
    rates = [timeline_rate(Fraction(rate)) for rate in stated if rate]
    rate = next((each for each in rates if each in TIMELINE_RATES), rates[0] if rates else None)
    usual = median(gaps) if gaps else 0.0
    variable = any(not 0.5 * usual < gap < 1.5 * usual for gap in gaps)
    variable |= bool(gaps and rate) and not 0.98 < usual * float(rate or 0) < 1.02
    length = info.duration
    if duration is not None and (length is None or abs(duration - length) > 1):
        length, count = duration, 0  # such as a clock that starts again
    if rate is not None and length is not None and (variable or not count):
        count = round((length - info.start) * float(rate))
    return Source(
        path=str(path),
        duration=length,
        frame_rate=rate,
        frame_count=count or None,
        timecode=next((tag["timecode"] for tag in tags if "timecode" in tag), None),
        size=(info.width, info.height),
        audio=audio,
        variable_rate=variable,
        first_picture=info.start,
        id=video_id,
    )


def cut_clip(
    source: str | Path,
    start: float,
    end: float,
    target: str | Path,
    reencode: bool = False,
) -> tuple[float, float]:
    """Write a part of a video as a file of its own.

    Without ``reencode`` the compressed picture and sound are copied: fast and without loss, but the
    clip begins with the last key frame at or before ``start``, which may be seconds earlier, and a
    few frames after ``end`` may stay. With it every frame of ``[start, end)``, and no other, is
    encoded anew (H.264, or MPEG-4 where this FFmpeg has no H.264 encoder); sound is left out, the
    picture is turned upright and an odd last row or column is dropped.

    Args:
        source: The video file.
        start: Seconds, as in :func:`relocal_pyg.video.decode.frames`.
        end: Seconds, exclusive; cut at the end of the video.
        target: The clip; its suffix (``.mp4``, ``.mkv``, ...) says the container. Written all or
            nothing.
        reencode: Exact instead of fast.

    Returns:
        Start and end, in seconds of ``source``, of what the clip shows.

    Raises:
        VideoError: ``source`` cannot be read, or shows nothing between ``start`` and ``end``.
        OutputError: ``target`` cannot be written, or its container does not take this codec.
        UsageError: The range is empty or negative, ``target`` is ``source``, or PyAV is missing.
    """
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise UsageError(f"the range {start} to {end} seconds is empty or negative")
    if Path(target).exists() and Path(target).samefile(check_file(source)):
        raise UsageError("the clip would overwrite the video it is cut from", file=target)
    with replace_file(target) as temporary:
        write = _encode if reencode else _copy
        return write(source, start, end, temporary, target)


def _copy(
    source: str | Path, start: float, end: float, temporary: Path, target: str | Path
) -> tuple[float, float]:
    shown = None
    # Seeking saves reading what comes before; where it leads past the key frame, all is read.
    for seeking in (True, False) if start > 0 else (False,):
        with open_video(source) as (container, stream):
            if stream.start_time is None:
                raise VideoError("holds no timestamps to cut by: re-encode", file=source)
            if seeking and not seek_before(container, stream, start):
                continue
            try:
                shown = _remux(container, stream, start, end, temporary, seeking)
            except failures() as error:
                raise OutputError(
                    f"does not take this video as it is ({reason(error)}): re-encode or use .mkv",
                    file=target,
                ) from None
        if shown is not None:
            break
    if shown is None or shown[1] <= start:
        raise VideoError(f"shows no frame between {start} s and {end} s", file=source)
    return shown


def _remux(
    container: Any, video: Any, start: float, end: float, temporary: Path, exact: bool
) -> tuple[float, float] | None:
    """Copy from the key frame before ``start``; the seconds copied, or None where nothing was."""
    origin = video.start_time * video.time_base
    first = last = None
    streams = [video, *container.streams.audio[:1]]
    going = {stream.index for stream in streams}
    packets = _with_decoding_times(container.demux(streams), video)
    with import_av().open(str(temporary), "w") as output:
        copies = {s.index: output.add_stream_from_template(s) for s in streams}
        for packet in _from_key_frame(packets, video, origin + Fraction(start) + _EPSILON, exact):
            index, base = packet.stream.index, packet.time_base
            if index not in going:
                continue
            time = _time(packet)
            if first is None or last is None:
                first = last = time
            if packet.dts * base >= origin + Fraction(end) - _EPSILON:
                going.remove(index)
                if not going:
                    break
                continue
            if time < first:
                # Sound before the cut, or pictures stored after the key frame but shown before
                # it: what they are predicted from is not in the clip.
                continue
            if index == video.index:
                last = max(last, time + base * (packet.duration or 0))
            shift = round(first / base)
            packet.dts -= shift
            if packet.pts is not None:
                packet.pts -= shift
            packet.stream = copies[index]
            output.mux(packet)
    return None if first is None or last is None else (float(first - origin), float(last - origin))


def _from_key_frame(
    packets: Iterable[Any], video: Any, start: Fraction, exact: bool
) -> Iterator[Any]:
    """Packets from the last key frame at or before ``start``, on their own clock.

    Where there is none: nothing if ``exact``, else from the first key frame on.
    """
    held: list[Any] = []
    passed = False
    for packet in packets:
        if passed:
            yield packet
            continue
        of_video = packet.stream.index == video.index
        if of_video and packet.is_keyframe and (_time(packet) <= start or not (held or exact)):
            held = [packet]
        elif held:
            held.append(packet)
        # From here on nothing can be shown before start: times of decoding only rise.
        if of_video and packet.dts * packet.time_base > start and (held or exact):
            passed = True
            yield from held
            if not held:
                return
    if not passed:
        yield from held


def _with_decoding_times(packets: Iterable[Any], video: Any) -> Iterator[Any]:
    """Matroska does not say when the first pictures have to be decoded: evenly before the next."""
    waiting: list[Any] = []
    for packet in packets:
        of_video = packet.stream.index == video.index
        if packet.dts is None and packet.pts is None:
            continue  # the end mark of a stream
        if of_video and packet.dts is None:
            waiting.append(packet)
            continue
        if of_video and waiting:
            _fill(waiting, packet.dts)
            yield from waiting
            waiting = []
        if packet.dts is not None:
            yield packet
    _fill(waiting, min((packet.pts for packet in waiting), default=0))
    yield from waiting


def _fill(packets: list[Any], following: int) -> None:
    step = max((packet.duration or 1 for packet in packets), default=1)
    for position, packet in enumerate(packets):
        packet.dts = following - step * (len(packets) - position)


def _time(packet: Any) -> Fraction:
    return Fraction(packet.time_base * (packet.dts if packet.pts is None else packet.pts))


def _encode(
    source: str | Path, start: float, end: float, temporary: Path, target: str | Path
) -> tuple[float, float]:
    av = import_av()
    rate = Fraction(probe(source).fps_nominal or 25).limit_denominator(1001)
    shown = frames(source, start=start, end=end)
    first, picture = next(shown)
    height, width = (side - side % 2 for side in picture.shape[:2])
    if not (height and width):
        raise VideoError("is one pixel wide or high: nothing to encode", file=source)
    last, step = first, float(1 / rate)
    try:
        with av.open(str(temporary), "w") as output:
            if "libx264" in av.codecs_available:
                options = {"crf": "18", "preset": "veryfast"}
                stream = output.add_stream("libx264", rate=rate, options=options)
            else:
                stream = output.add_stream("mpeg4", rate=rate, bit_rate=8_000_000)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = _TIME_BASE
            for time, rgb in chain([(first, picture)], shown):
                even = np.ascontiguousarray(rgb[:height, :width])
                frame = av.VideoFrame.from_ndarray(even, format="rgb24")
                frame.pts, frame.time_base = round((time - first) / _TIME_BASE), _TIME_BASE
                output.mux(stream.encode(frame))
                step = time - last if time > last else step
                last = time
            output.mux(stream.encode())
    except failures() as error:
        raise OutputError(f"cannot be encoded ({reason(error)})", file=target) from None
    return first, min(last + step, end)
