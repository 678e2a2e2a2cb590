"""From a video file to feature rows with times."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.errors import FeatureError, UsageError, VideoError
from relocal_pyg.io.record import sha256_file
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.container import check_file
from relocal_pyg.video.decode import (
    Timed,
    check_rate,
    droppable,
    grid,
    painter,
    pictures,
    probe,
    warn_of,
)
from relocal_pyg.video.rows import MAX_STEPS, FeatureCache, RowFile, RowWriter, VideoFeatures

T = TypeVar("T")

#: Frames per second where no query says how long a moment is: 3 or more steps in every second.
DEFAULT_RATE_HZ = 3.125
#: The usual sampling for a query of a few seconds: every fourth frame of 25.
USUAL_RATE_HZ = 6.25
#: Called with the seconds done and the seconds stated by the header (None where it states none).
Progress = Callable[[float, float | None], None]
Picture = NDArray[np.uint8]
Decoded = Generator[tuple[float, int, Any], None, None]  # of relocal_pyg.video.decode.grid
Span = tuple[int, int]

# Raised whenever the same settings begin to give other numbers: stored features are then not found.
_VERSION = 3
# Key frames after which their distance is known well enough.
_KEYS = 8
# Seconds of a video from which on it pays to have threads and to find out what need not be decoded.
_LONG = 60.0
# Pictures, and frames of the decoder, that wait for the next thread.
_WAITING = 8


def sampling_rate(query_seconds: float, fps: float | None = None, min_steps: int = 16) -> float:
    """Frames per second for a query of a given length and the references it is looked for in.

    6.25 Hz is halved as long as the query keeps ``min_steps`` steps and the rate stays above 1 Hz,
    and doubled once where the query would have fewer than half as many. A fixed rate would leave a
    short query a handful of steps, or make a long one needlessly dear; halving, not any number,
    lets queries of about one length share the features of a reference.

    Args:
        query_seconds: Length of the query in seconds.
        fps: Nominal rate of the slower video; sampling is not finer than that.
        min_steps: Steps the query should have.

    Returns:
        Frames per second, to be used for both the query and the reference.

    Raises:
        UsageError: ``query_seconds`` is not above 0.

    Example:
        >>> sampling_rate(1.2), sampling_rate(2.4), sampling_rate(6.0), sampling_rate(60.0)
        (12.5, 6.25, 3.125, 1.5625)
        >>> sampling_rate(2.4, fps=5.0)
        5.0
    """
    if not query_seconds > 0:
        raise UsageError(f"the query lasts {query_seconds} s, more than 0 wanted")
    rate = USUAL_RATE_HZ
    if query_seconds * rate < min_steps / 2:
        rate *= 2
    while rate / 2 >= 1 and query_seconds * rate / 2 >= min_steps:
        rate /= 2
    return rate if fps is None else min(rate, max(fps, 1.0))


def extract_video(
    path: str | Path,
    backbone: Backbone,
    rate_hz: float | None = None,
    *,
    batch_frames: int = 32,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    stream: int | None = None,
    threads: int = 1,
) -> VideoFeatures:
    """Decode a video and run a backbone over it, a batch of frames in memory at a time.

    Decoding, scaling and the network each have a thread, with short queues between them. Rows go to
    a temporary file as they are made, so that memory does not grow with the length of the video. A
    picture that stays on the screen for several steps is computed and kept once. Of a video of more
    than a minute, frames that no step needs are not decoded
    (:func:`relocal_pyg.video.decode.droppable`); a step then shows the nearest one that was.

    Args:
        path: The video file.
        backbone: See :class:`relocal_pyg.video.backbones.Backbone`.
        rate_hz: Frames per second given to the backbone. Where None: :data:`DEFAULT_RATE_HZ` for an
            image network, the video's nominal rate for a clip network.
        batch_frames: Frames given to the backbone at once.
        cache: Looked in before and written to after.
        progress: Called after each batch and several times a second; what it raises ends the work.
        report: Called with one line for each kind of damage met; where None, a
            :class:`relocal_pyg.video.decode.VideoWarning` that names the file.
        stream: Number of the stream in the file; the default one where None.
        threads: Threads of the decoder, for a video of a minute and more.

    Returns:
        The :class:`VideoFeatures`.

    Raises:
        VideoError: The file cannot be decoded, or has more than :data:`MAX_STEPS` steps.
        FeatureError: The backbone gave something other than finite ``[B, dim]`` numbers.
        UsageError: ``rate_hz`` or ``batch_frames`` is out of range, or an extra is missing.
        OutputError: The cache or the temporary folder cannot be written.
    """
    if batch_frames < 1:
        raise UsageError(f"batch_frames is {batch_frames}, at least 1 wanted")
    rate = _frame_rate(path, backbone, rate_hz, stream)
    check_rate(rate)
    settings = _settings(backbone, rate, stream)
    digest = "" if cache is None else _digest(path, settings)
    with nullcontext() if cache is None else cache.lock(digest):
        video = None if cache is None else cache.get(digest)
        if video is None:
            problems: list[str] = []
            work = _Work(path, backbone, rate, batch_frames, progress, stream, threads)
            rows, shown, duration = work.run(problems.append)
            video = VideoFeatures(
                blocks=rows,
                shown=shown,
                seconds_per_step=backbone.clip_stride / rate,
                duration=duration,
                digest=digest,
                settings=settings,
                problems=tuple(problems),
            )
            if cache is not None:
                cache.put(video)
    for problem in video.problems:
        (report or warn_of(path))(problem)
    return video


def stored_video(
    path: str | Path,
    backbone: Backbone,
    rate_hz: float,
    cache: FeatureCache,
    stream: int | None = None,
) -> VideoFeatures | None:
    """Features of all steps where a cache holds them; arguments of :func:`extract_video`."""
    return cache.get(_digest(path, _settings(backbone, rate_hz, stream)))


class TooSparse(Exception):
    """The key frames of a video lie too far apart to say where to look."""


def extract_places(
    path: str | Path,
    backbone: Backbone,
    rate_hz: float,
    choose: Callable[[Tensor, Tensor], list[Span]],
    *,
    max_gap: float,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    stream: int | None = None,
    threads: int = 1,
) -> tuple[VideoFeatures, list[Span], float]:
    """Look at the key frames of a video, and at every step only where they say that it pays.

    Arguments as in :func:`extract_video`, and:

    Args:
        path: The video file.
        backbone: An image network.
        rate_hz: Steps per second.
        choose: Given rows ``[k, F]`` of the key frames and their seconds ``[k]``, says which steps
            ``[first, last)`` to look at, in order and apart from each other.
        max_gap: Seconds between key frames above which it does not pay.
        progress: As there.
        report: As there.
        stream: As there.
        threads: As there.

    Returns:
        Features of all steps (where only key frames were looked at, each stands until the next),
        the steps that were looked at, and the share of pictures that the backbone saw.

    Raises:
        TooSparse: The key frames lie further apart than ``max_gap``.
        VideoError: The file cannot be decoded.
    """
    tell = report or warn_of(path)
    work = _Work(path, backbone, rate_hz, 32, progress, stream, threads)
    keys, times, end = work.scan(tell, max_gap)
    count = max(math.ceil((end - 1e-3) * rate_hz), 1)
    spans = [(first, min(last, count)) for first, last in choose(keys, times) if first < count]
    # The first key frame also stands for what is before it.
    starts = np.ceil((times.numpy() - 1e-3) * rate_hz).astype(int).clip(0, count)
    starts[0] = 0
    rows, seen = RowWriter(backbone.dim), len(keys)

    def held(first: int, last: int) -> None:
        """Key frames for the steps ``[first, last)``."""
        ends = np.append(starts[1:], count)
        repeats = np.minimum(ends, last) - np.maximum(starts, first)
        some = np.flatnonzero(repeats > 0)
        rows.add(keys[some], repeats[some].tolist())

    done = 0
    for first, last in spans:
        held(done, first)
        part = work.dense(first, last, tell)
        fresh = part.range(0, min(len(part), last - first))
        seen += len(part.repeats)
        rows.add(fresh, [1] * len(fresh))
        held(first + len(fresh), last)
        done = last
    held(done, count)
    video = VideoFeatures(
        blocks=rows.finish(),
        shown=torch.zeros(0, dtype=torch.float64),
        seconds_per_step=1 / rate_hz,
        duration=end,
        digest="",
        settings=_settings(backbone, rate_hz, stream),
    )
    return video, spans, seen / count


class _Work:
    """One video on its way through decoder, scaler and network."""

    def __init__(
        self,
        path: str | Path,
        backbone: Backbone,
        rate: float,
        batch_frames: int,
        progress: Progress | None,
        stream: int | None,
        threads: int,
    ) -> None:
        self.path, self.backbone, self.rate = path, backbone, rate
        self.stream = stream
        self.clips_at_once = max(1, batch_frames // backbone.clip_frames)
        self.progress = progress
        self.stated = probe(path, stream).duration
        self.long = (self.stated or 0.0) >= _LONG
        # Threads lose a few pictures where the last packets are damaged.
        self.threads = threads if self.long else 1
        self.done = 0.0

    def run(self, report: Callable[[str], None]) -> tuple[RowFile, Tensor, float]:
        """Rows, when each one's picture appears ``[r]``, and the end of the pictures."""
        end = 0.0

        def watched() -> Iterator[Timed]:
            nonlocal end
            for item in self.pictures(report, self.skip()):
                yield item
                end = item[1]

        rows, shown = self.rows(grid(watched(), self.rate, early=self.early()))
        return rows, shown, end

    def scan(self, report: Callable[[str], None], max_gap: float) -> tuple[Tensor, Tensor, float]:
        """Rows of the key frames, when each appears, and the end of the pictures.

        Raises:
            TooSparse: They lie further apart than ``max_gap`` seconds.
        """
        end, times = 0.0, array("d")

        def keys() -> Decoded:
            nonlocal end
            for time, until, frame in self.pictures(report, "NONKEY", apart=0.5 * max_gap):
                times.append(time)
                if len(times) in (_KEYS, 4 * _KEYS) and np.median(np.diff(times)) > max_gap:
                    raise TooSparse
                yield time, 1, frame
                end = until

        rows, shown = self.rows(keys())
        if len(times) < _KEYS or np.median(np.diff(times)) > max_gap:
            raise TooSparse
        return rows.range(0, len(rows)), shown, end

    def dense(self, first: int, last: int, report: Callable[[str], None]) -> RowFile:
        """Rows of the steps ``[first, last)``; decoding begins at the key frame before."""
        start, end = first / self.rate, last / self.rate
        shown = self.pictures(report, self.skip(), start, end)
        return self.rows(grid(shown, self.rate, start, end, self.early()))[0]

    def skip(self) -> str:
        """Which frames need not be decoded, see :func:`relocal_pyg.video.decode.droppable`."""
        some = self.long and self.backbone.clip_frames == 1
        return droppable(self.path, self.rate, self.stream) if some else "DEFAULT"

    def early(self) -> float:
        """See :func:`relocal_pyg.video.decode.grid`."""
        return 0.0 if self.skip() == "DEFAULT" else 0.5 / self.rate

    def pictures(
        self,
        report: Callable[[str], None],
        skip: str,
        start: float = 0.0,
        end: float | None = None,
        apart: float | None = None,
    ) -> Iterator[Timed]:
        """Decoded pictures of a stretch; key frames where they are enough, one a step."""
        apart = 0.99 / self.rate if apart is None else apart
        more: dict[str, Any] = {"stream": self.stream, "skip": skip, "threads": self.threads}
        return pictures(self.path, start, end, report=report, apart=apart, **more)

    def rows(
        self, decoded: Generator[tuple[float, int, Any], None, None]
    ) -> tuple[RowFile, Tensor]:
        """Rows of what :func:`relocal_pyg.video.decode.grid` gives, and when each appears."""
        backbone, shown = self.backbone, array("d")
        interpolation = getattr(backbone, "interpolation", "AREA")
        paint = painter(self.path, backbone.size, interpolation)

        def painted() -> Generator[tuple[float, int, Picture], None, None]:
            steps = 0
            with closing(_ahead(decoded, _WAITING)) as frames:
                for time, count, frame in frames:
                    steps += count
                    if steps > MAX_STEPS * backbone.clip_stride:
                        raise VideoError(
                            f"has more than {MAX_STEPS} steps at {self.rate:g} Hz: lower the rate",
                            file=self.path,
                        )
                    yield time, count, paint(frame)

        rows = RowWriter(backbone.dim)
        waiting: list[list[Picture]] = []
        repeats: list[int] = []
        with closing(_ahead(painted(), _WAITING, self.tick)) as ready:
            for time, count, clip in _clips(ready, backbone.clip_frames, backbone.clip_stride):
                self.done = max(self.done, time)
                if len(waiting) == self.clips_at_once:
                    rows.add(self.forward(waiting), repeats)
                    waiting, repeats = [], []
                    self.tick()
                waiting.append(clip)
                repeats.append(count)
                shown.append(time)
            if waiting:
                rows.add(self.forward(waiting), repeats)
        self.done = self.stated or self.done
        self.tick()
        return rows.finish(), torch.tensor(shown, dtype=torch.float64)

    def tick(self) -> None:
        """Tell how far it is; what the listener raises ends the work."""
        if self.progress is not None:
            self.progress(self.done, self.stated)

    def forward(self, clips: list[list[Picture]]) -> Tensor:
        """Run the backbone over a batch."""
        backbone = self.backbone
        batch = np.stack([np.stack(clip) if len(clip) > 1 else clip[0] for clip in clips])
        rows = backbone(torch.from_numpy(batch))
        if not isinstance(rows, Tensor) or tuple(rows.shape) != (len(clips), backbone.dim):
            shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise FeatureError(
                f"backbone {backbone.name} gave {shape}, [{len(clips)}, {backbone.dim}] wanted",
                file=self.path,
            )
        rows = rows.detach().float().cpu()
        if not torch.isfinite(rows).all():
            raise FeatureError(
                f"backbone {backbone.name} gave values that are not finite", file=self.path
            )
        return rows


def _ahead(
    items: Generator[T, None, None], size: int, tick: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, at most ``size`` items ahead.

    No wait is without a limit: ten times a second ``tick`` is called, which may raise. Closing this
    generator ends the thread, after the item it is at.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    stop = threading.Event()

    def put(more: bool, value: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put((more, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        end: BaseException | None = None
        try:
            with closing(items):
                for item in items:
                    if not put(True, item):
                        return
        except BaseException as error:
            end = error
        put(False, end)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            try:
                more, value = waiting.get(timeout=0.1)
            except queue.Empty:
                more, value = True, None
                if tick is not None:
                    tick()
                continue
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        thread.join(timeout=0.3)


def _frame_rate(
    path: str | Path, backbone: Backbone, rate_hz: float | None, stream: int | None
) -> float:
    if rate_hz is not None:
        return rate_hz
    if backbone.clip_frames == 1:
        return DEFAULT_RATE_HZ
    return min(max(probe(path, stream).fps_nominal or 25.0, 1.0), 120.0)


def _settings(backbone: Backbone, rate_hz: float, stream: int | None) -> dict[str, Any]:
    """What decides the numbers besides the file."""
    return {
        "backbone": backbone.name,
        "dim": backbone.dim,
        "size": list(backbone.size),
        "clip_frames": backbone.clip_frames,
        "clip_stride": backbone.clip_stride,
        "rate_hz": rate_hz,
        "version": _VERSION,
    } | ({} if stream is None else {"stream": stream})


def _digest(path: str | Path, settings: dict[str, Any]) -> str:
    try:
        content = sha256_file(check_file(path))
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror})", file=path) from None
    text = json.dumps([content, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar with the time left, for the ``progress`` of :func:`extract_video`; silent in a file.

    Args:
        title: Shown before the bar.

    Yields:
        The callback.
    """
    with tqdm(desc=title, unit="s", unit_scale=True, disable=None, leave=False) as bar:

        def show(done: float, total: float | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _clips(
    shown: Iterable[tuple[float, int, Picture]], length: int, stride: int
) -> Iterator[tuple[float, int, list[Picture]]]:
    """Time, repeats and pictures of each clip; the last picture fills up an unfinished last clip.

    A clip of nothing but one picture that was the clip before is not given again but counted.
    """
    if length == stride == 1:
        for time, count, picture in shown:
            yield time, count, [picture]
        return
    waiting: tuple[float, int, list[Picture]] | None = None
    for time, clip in _windows(shown, length, stride):
        if waiting is not None and all(a is b for a, b in zip(clip, waiting[2], strict=True)):
            waiting = waiting[0], waiting[1] + 1, clip
            continue
        if waiting is not None:
            yield waiting
        waiting = time, 1, clip
    if waiting is not None:
        yield waiting


def _windows(
    shown: Iterable[tuple[float, int, Picture]], length: int, stride: int
) -> Iterator[tuple[float, list[Picture]]]:
    window: list[tuple[float, Picture]] = []
    fresh = skip = 0
    for time, count, picture in shown:
        for _ in range(count):
            if skip:
                skip -= 1
                continue
            window.append((time, picture))
            fresh += 1
            if len(window) == length:
                yield window[0][0], [each for _, each in window]
                window, fresh, skip = window[stride:], 0, max(0, stride - length)
    if fresh:
        clip = [each for _, each in window]
        yield window[0][0], clip + clip[-1:] * (length - len(clip))
