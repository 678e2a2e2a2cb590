"""Cutting a moment out of a video file, and what other programs need to know to do so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from relocal_pyg.errors import OutputError, UsageError, VideoError
from relocal_pyg.formats.clips import Source
from relocal_pyg.formats.rows import TIMELINE_RATES, timeline_rate
from relocal_pyg.io.read import parse_time
from relocal_pyg.io.write import replace_file
from relocal_pyg.video.container import (
    check_file,
    codec_name,
    failures,
    import_av,
    open_video,
    palette_apart,
    reason,
    seek_before,
)
from relocal_pyg.video.decode import (
    Orientation,
    filtered,
    packets_of,
    pictures,
    probe,
    restarts,
    unreported,
)

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
        packets = islice(packets_of(container, stream, unreported), _SAMPLE)
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
    shown = None if rate is None or length is None else (length - info.start) * float(rate)
    # An edit list may leave out some of the frames that the header counts.
    if shown is not None and (variable or not count or abs(count - shown) > 1):
        count = round(shown)
    return Source(
        path=str(path),
        duration=length,
        frame_rate=rate,
        frame_count=count or None,
        timecode=next((tag[key] for tag in tags for key in tag if key.lower() == "timecode"), None),
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
    stream: int | None = None,
    check: Callable[[Path], object] = lambda written: None,
) -> tuple[float, float]:
    """Write a part of a video as a file of its own.

    Without ``reencode`` the compressed picture and sound are copied: fast and without loss, but the
    clip begins with the last key frame at or before ``start``, which may be seconds earlier, and a
    few frames after ``end`` may stay. With it every picture on the screen during ``[start, end)``,
    and no other, is encoded anew (H.264, HEVC where there are more than 8 bits, MPEG-4 where this
    FFmpeg has neither), with its colours, pixel aspect and rotation; sound is left out and an odd
    last row or column is dropped. Other sizes are scaled to that of the first; fields stay woven.

    Args:
        source: The video file.
        start: Seconds, as in :func:`relocal_pyg.video.decode.frames`.
        end: Seconds, exclusive; cut at the end of the video.
        target: The clip; its suffix (``.mp4``, ``.mkv``, ...) says the container. Written all or
            nothing.
        reencode: Exact instead of fast.
        stream: Number of the video stream; the default one where None.
        check: With ``reencode`` given the unfinished file at each picture; what it raises ends it.

    Returns:
        Start and end, in seconds of ``source``, of what the clip shows.

    Raises:
        VideoError: ``source`` cannot be read, or shows nothing between ``start`` and ``end``.
        OutputError: ``target`` cannot be written, or its container does not take this codec.
        UsageError: The range is empty or negative, ``target`` is ``source``, or PyAV is missing.
    """
    start, end = parse_time(start, "start"), parse_time(end, "end")
    if not 0 <= start < end:
        raise UsageError(f"the range {start} to {end} seconds is empty or negative")
    if Path(target).exists() and Path(target).samefile(check_file(source)):
        raise UsageError("the clip would overwrite the video it is cut from", file=target)
    with replace_file(target, "video") as temporary:
        given = (source, start, end, temporary, target, stream)
        return _encode(*given, check) if reencode else _copy(*given)


def _copy(
    source: str | Path, start: float, end: float, clip: Path, target: str | Path, number: int | None
) -> tuple[float, float]:
    if restarts(source, number):
        raise VideoError("its clock starts again on the way: re-encode", file=source)
    shown = None
    # Seeking saves reading what comes before; where it leads past the key frame, all is read.
    for seeking in (True, False) if start > 0 else (False,):
        with open_video(source, number) as (container, stream):
            if stream.start_time is None:
                raise VideoError("holds no timestamps to cut by: re-encode", file=source)
            if palette_apart(stream.codec_context):
                raise VideoError("its palette lies with its first picture: re-encode", file=source)
            if seeking and not seek_before(container, stream, start):
                continue
            try:
                shown = _remux(container, stream, start, end, clip, seeking)
            except failures() as error:
                why = f"does not take this video as it is ({reason(error)}): re-encode it"
                raise OutputError(why, file=target) from None
        if shown is not None:
            break
    if shown is None or shown[1] <= start:
        raise VideoError(f"shows no frame between {start} s and {end} s", file=source)
    return shown


def _remux(
    container: Any, video: Any, start: float, end: float, temporary: Path, exact: bool
) -> tuple[float, float] | None:
    """Copy from the key frame before ``start``; the seconds copied, or None where nothing was."""
    origin = Fraction(container.start_time or 0, 1_000_000)
    first = last = None
    picture: Any = None
    streams = [video, *container.streams.audio[:1]]
    going = {stream.index for stream in streams}
    packets = _with_decoding_times(container.demux(streams), video)
    try:
        output = import_av().open(str(temporary), "w")
    except ValueError:  # FFmpeg writes none of that suffix, such as .tod: what the source is
        if temporary.suffix != Path(container.name).suffix:
            raise
        kind = container.format.name.partition(",")[0]
        output = import_av().open(str(temporary), "w", format=kind)
    with output:
        copies = {s.index: _copy_of(s, container, output) for s in streams}
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
                if index == video.index and output.format.name == "mxf":
                    raise ValueError("its pictures are numbered, none may be left out")
                continue
            if index == video.index:
                last = max(last, time + base * (packet.duration or 0))
                picture = _picture(video, packet) if picture is None else picture
            shift = round(first / base)
            packet.dts -= shift
            if packet.pts is not None:
                packet.pts -= shift
            packet.stream = copies[index]
            output.mux(packet)
    if first is None or last is None:
        return None
    same = False
    with contextlib.suppress(VideoError), open_video(temporary) as (clip, copy):
        same = np.array_equal(picture, _picture(copy, next(clip.demux(copy))))
        same &= (video.sample_aspect_ratio or 1) == (copy.sample_aspect_ratio or 1)
    if picture is None or not same:
        raise ValueError("its pictures come out otherwise")  # such as without their palette
    return float(first - origin), float(last - origin)


def _picture(stream: Any, packet: Any) -> Any:
    """What a key frame shows, turned; nothing where it cannot be decoded alone."""
    decode = stream.codec_context.decode
    with contextlib.suppress(*failures()):
        frame = [*decode(packet), *decode(None)][0]
        alone = frame.key_frame or frame.pict_type not in (2, 3)  # P and B change others
        return Orientation(frame).apply(frame.to_ndarray(format="rgb24")) if alone else None


def _copy_of(stream: Any, container: Any, output: Any) -> Any:
    """A stream for the packets of another: found by codec, whatever decoder reads it."""
    copy = output.add_stream_from_template(stream, opaque=True)
    copy.disposition = stream.disposition
    if stream.type == "video":
        # The aspect may be known to the container alone; MXF cannot do without the rate.
        copy.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio or 0
        copy.codec_context.framerate = stream.average_rate or 0
    kind = output.format.name.replace("mov", "mp4").replace("ipod", "mp4")
    if stream.type == "video" and kind in ("mp4", "avi", "nut", "matroska"):
        # Apple's players refuse HEVC that is not called hvc1; elsewhere the name is the source's:
        # of raw pictures it says how they are stored.
        tag = stream.codec_context.codec_tag if kind in container.format.name else ""
        if not tag.strip("\0") and (kind, codec_name(stream.codec_context)) == ("mp4", "hevc"):
            tag = "hvc1"
        if tag.strip("\0"):
            copy.codec_context.codec_tag = tag
    return copy


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
    """Matroska does not say when the first pictures have to be decoded: evenly before the next.

    Program streams stamp the wrong picture now and then, and no container takes what goes back.
    """
    waiting: list[Any] = []
    following: dict[int, int] = {}
    for packet in packets:
        index, of_video = packet.stream.index, packet.stream.index == video.index
        if packet.dts is None and packet.pts is None:
            if of_video and packet.size:
                raise ValueError("some pictures have no time stamps")
            continue  # the end mark of a stream
        if of_video and packet.dts is None:
            waiting.append(packet)
            continue
        if of_video and waiting:
            _fill(waiting, packet.dts)
            yield from waiting
            waiting = []
        if packet.dts is not None:
            least = following.get(index, packet.dts)
            if packet.dts < least < packet.dts + 1 / packet.time_base:
                packet.dts = least
                packet.pts = packet.pts and max(packet.pts, least)
            following[index] = packet.dts + 1
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
    source: str | Path,
    start: float,
    end: float,
    clip: Path,
    target: str | Path,
    number: int | None,
    check: Callable[[Path], object],
) -> tuple[float, float]:
    av, info = import_av(), probe(source, number)
    step = min(1 / (info.fps_nominal or 25.0), 0.1)
    shown = pictures(source, start, end, stream=number, report=unreported)
    first: float | None = None
    until, held = start, None
    try:
        with av.open(str(clip), "w") as output:
            for time, gone, frame in shown:
                check(clip)
                if first is None:
                    # What is still on the screen belongs to the clip, if it is there to be seen.
                    if time < start - float(_EPSILON) and min(gone, end) - start < step:
                        continue
                    first = start and max(time, start)  # from 0 the first picture of all stands
                    with open_video(source, number) as (_, original):
                        fit = _Fit(frame, original)
                        stream = fit.add_stream(output, step)
                begin, until = max(time, start) if held else first, min(gone, end)
                held = fit(frame)
                output.mux(stream.encode(_at(held, begin - first)))
            if first is None or held is None:
                raise VideoError(f"shows no frame between {start:g} s and {end:g} s", file=source)
            if until - begin > 1.5 * step:  # the encoder would forget how long the last one stays
                output.mux(stream.encode(_at(held, until - step - first)))
            output.mux(stream.encode())
    except failures() as error:
        raise OutputError(f"cannot be encoded ({reason(error)})", file=target) from None
    return first, until


def _at(frame: Any, seconds: float) -> Any:
    frame.pts, frame.time_base = round(seconds / _TIME_BASE), _TIME_BASE
    frame.pict_type = 0  # the encoder decides
    return frame


class _Fit:
    """How pictures are encoded: as deep as they are, tagged with their colours and shape."""

    def __init__(self, frame: Any, original: Any) -> None:
        self.width, self.height = (side - side % 2 for side in (frame.width, frame.height))
        if not (self.width and self.height):
            raise ValueError("one pixel wide or high")
        codecs, shape = import_av().codecs_available, frame.format
        deep = max(part.bits for part in shape.components) > 8 and not shape.is_rgb
        self.codec = next(
            (name for name in ("libx265" if deep else "", "libx264") if name in codecs), "mpeg4"
        )
        kept = ("yuv420p", "yuvj420p") if self.codec == "libx264" else ("yuv420p",)
        self.format = shape.name if shape.name in kept else "yuv420p"
        if deep and self.codec != "mpeg4":
            self.format = "yuv420p10le"
        names = ("color_primaries", "color_trc", "colorspace", "color_range")
        self.colours = {name: int(getattr(frame, name)) for name in names}
        if shape.is_rgb or shape.name.startswith(("gray", "pal", "mono")):
            self.colours |= {"colorspace": 6, "color_range": 1}  # what swscale makes of them
        self.aspect = original.sample_aspect_ratio or original.codec_context.sample_aspect_ratio
        self.matrix = Orientation(frame).matrix
        # Two fields in one: players show them apart. Scaling would mix them and forget the order.
        as_it_is = self.codec == "libx264" and self.format == shape.name
        self.woven = as_it_is and frame.interlaced_frame
        self._crop: Any = None

    def add_stream(self, output: Any, step: float) -> Any:
        """The stream of the clip."""
        options = {
            "libx264": {"crf": "18", "preset": "veryfast"},
            "libx265": {"crf": "18", "preset": "veryfast", "x265-params": "log-level=error"},
            "mpeg4": {"qmin": "2", "qmax": "4"},
        }
        rate = Fraction(1 / step).limit_denominator(1001)
        stream = output.add_stream(self.codec, rate=rate, options=options[self.codec])
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.format
        context = stream.codec_context
        context.time_base = _TIME_BASE
        if self.codec == "libx265":
            context.codec_tag = "hvc1"
        if self.woven:
            context.flags |= import_av().codec.context.Flags.interlaced_dct
        if output.format.name in ("avi", "asf"):
            context.max_b_frames = 0  # pictures that wait for others would all be shown late
        for name, value in self.colours.items():
            setattr(context, name, value)
        if self.aspect:
            context.sample_aspect_ratio = self.aspect
        if self.matrix is not None:
            stream.set_display_matrix(self.matrix)
        return stream

    def __call__(self, frame: Any) -> Any:
        """A picture as the encoder takes it: an odd last row or column is left out."""
        even = frame.width - frame.width % 2, frame.height - frame.height % 2
        if even == (self.width, self.height) != (frame.width, frame.height):
            crop = "crop", f"{self.width}:{self.height}:0:0:exact=1"
            self._crop = self._crop or filtered(frame, crop)
            frame = self._crop(frame)
        same = (frame.width, frame.height) == (self.width, self.height)
        if same and frame.format.name == self.format:
            return frame
        size, tagged = (self.width, self.height), self.colours["color_range"] or None
        return frame.reformat(*size, self.format, interpolation="BICUBIC", dst_color_range=tagged)
