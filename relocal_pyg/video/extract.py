"""From a video file to feature rows with times."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.errors import FeatureError, UsageError, VideoError, check_number
from relocal_pyg.io.record import sha256_file
from relocal_pyg.video.backbones import Backbone, Picture, clips_of
from relocal_pyg.video.container import check_file, open_video, seek_before, zero
from relocal_pyg.video.decode import (
    Timed,
    droppable,
    grid,
    packets_of,
    painter,
    pictures,
    probe,
    restarts,
    unreported,
    warn_of,
)
from relocal_pyg.video.rows import BLOCK, MAX_STEPS, FeatureCache, RowFile, RowWriter, VideoFeatures

T = TypeVar("T")

#: Frames per second where no query says how long a moment is: 3 or more steps in every second.
DEFAULT_RATE_HZ = 3.125
#: The usual sampling for a query of a few seconds: every fourth frame of 25.
USUAL_RATE_HZ = 6.25
#: Called with the seconds done and the seconds stated by the header (None where it states none).
Progress = Callable[[float, float | None], None]
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

    Decoding, scaling and the network each have a thread, with short queues between them; several
    stretches of a long video are read at a time, with the same rows. Rows go to
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
        threads: Stretches at a time, of a minute and more each, four at most.

    Returns:
        The :class:`VideoFeatures`.

    Raises:
        VideoError: The file cannot be decoded, or has more than :data:`MAX_STEPS` steps.
        FeatureError: The backbone gave something other than finite ``[B, dim]`` numbers.
        UsageError: ``rate_hz`` or ``batch_frames`` is out of range, or an extra is missing.
        OutputError: The cache or the temporary folder cannot be written.
    """
    check_number(batch_frames, "batch_frames", least=1, whole=True)
    rate = rate_hz
    if rate is None:
        rate = DEFAULT_RATE_HZ
        if backbone.clip_frames > 1:
            rate = min(max(probe(path, stream).fps_nominal or 25.0, 1.0), 120.0)
    rate = float(check_number(rate, "rate_hz", above=0, most=1000))  # 4 and 4.0 are one rate
    settings = _settings(backbone, rate, stream)
    digest = "" if cache is None else file_digest(path, backbone, rate, stream)
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
    return cache.get(file_digest(path, backbone, rate_hz, stream))


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

    Arguments as of :func:`extract_video`, where ``backbone`` is an image network. Given rows ``[k,
    F]`` of the key frames and their seconds ``[k]``, ``choose`` says which steps ``[first, last)``
    to look at, in order and apart from each other; ``max_gap`` are the seconds between key frames
    above which it does not pay.

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
    for (first, last), part in zip(spans, work.dense(spans, tell), strict=True):
        held(done, first)
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
    return video, spans, min(seen / count, 1.0)


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
        self.stream, self.progress = stream, progress
        self.clips_at_once = max(1, batch_frames // backbone.clip_frames)
        self.stated = probe(path, stream).duration
        self.threads = min(threads, 4)  # each has a decoder in memory
        self.caller, self.stopped, self.done = threading.current_thread(), False, 0.0
        self.ends: dict[float, float] = {}

    def run(self, report: Callable[[str], None]) -> tuple[RowFile, Tensor, float]:
        """Rows, when each one's picture appears ``[r]``, and the end of the pictures."""
        problems: list[str] = []
        steps = partial(self.steps, problems.append)
        starts = self.starts()
        spans = list(pairwise(starts))
        try:
            parts = self.side_by_side([*(steps(*span) for span in spans), steps(starts[-1], None)])
            if [len(rows) for rows, _ in parts[:-1]] != [
                round((b - a) * self.rate) for a, b in spans
            ]:
                raise VideoError("breaks off on the way", file=self.path)
        except VideoError:
            if not spans:
                raise
            problems.clear()
            starts, parts = [0.0], [self.rows(steps(0.0, None))]  # in one go
        for problem in problems:
            report(problem)
        self.done = self.stated or self.done
        self.tick()
        return *_in_one(parts), self.ends[starts[-1]]

    def starts(self) -> list[float]:
        """Seconds of the steps at which stretches begin that can be read side by side."""
        length, starts = self.stated or 0.0, [0.0]
        count = min(self.threads, int(length // _LONG)) if self.skip() != "NONKEY" else 1
        if count < 2 or self.backbone.clip_frames > 1:
            return starts  # which of many key frames are taken depends on the first
        with open_video(self.path, self.stream) as (container, stream):
            for number in range(1, count):
                start = int(number * length / count * self.rate) / self.rate
                sought = seek_before(container, stream, start)
                key: Any = next(packets_of(container, stream, unreported), None) if sought else None
                stamp = key and (key.dts if key.pts is None else key.pts)
                if not stamp or not key.is_keyframe:
                    return [0.0]
                if not starts[-1] < float(stamp * key.time_base) - zero(container) <= start:
                    return [0.0]
                starts.append(start)
        return [0.0] if restarts(self.path, self.stream) else starts

    def scan(self, report: Callable[[str], None], max_gap: float) -> tuple[Tensor, Tensor, float]:
        """Rows of the key frames, when each appears, and the end of the pictures.

        Raises:
            TooSparse: They lie further apart than ``max_gap`` seconds.
        """
        end, times = 0.0, array("d")

        def keys() -> Decoded:
            nonlocal end
            options: dict[str, Any] = {"stream": self.stream, "report": report, "skip": "NONKEY"}
            for time, until, frame in pictures(self.path, apart=0.5 * max_gap, **options):
                times.append(time)
                if len(times) in (_KEYS, 4 * _KEYS) and np.median(np.diff(times)) > max_gap:
                    raise TooSparse
                yield time, 1, frame
                end = until

        rows, shown = self.rows(keys())
        if len(times) < _KEYS or np.median(np.diff(times)) > max_gap:
            raise TooSparse
        return rows.range(0, len(rows)), shown, end

    def dense(self, spans: Sequence[Span], report: Callable[[str], None]) -> list[RowFile]:
        """Rows of the steps ``[first, last)``; decoding begins at the key frame before."""
        rate = self.rate
        parts = [self.steps(report, first / rate, last / rate) for first, last in spans]
        return [rows for rows, _ in self.side_by_side(parts)]

    def side_by_side(self, stretches: Sequence[Decoded]) -> list[tuple[RowFile, Tensor]]:
        """Rows of stretches of the video, several at a time."""
        if len(stretches) < 2 or self.threads < 2:
            return [self.rows(each) for each in stretches]
        with ThreadPoolExecutor(self.threads) as pool:
            parts = [pool.submit(self.rows, each) for each in stretches]
            waiting = set(parts)
            try:
                while waiting:
                    ready, waiting = wait(waiting, 0.1, FIRST_COMPLETED)
                    for part in ready:
                        part.result()
                    self.tick()
            finally:
                self.stopped = bool(waiting)
                pool.shutdown(wait=False, cancel_futures=True)
        return [part.result() for part in parts]

    def steps(self, report: Callable[[str], None], start: float, stop: float | None) -> Decoded:
        """The steps of a stretch; :attr:`ends` keeps when its last picture goes, by its start."""
        skip = self.skip()
        options: dict[str, Any] = {"stream": self.stream, "report": report, "skip": skip}

        def watched() -> Iterator[Timed]:
            # Key frames where they are enough, one a step.
            for item in pictures(self.path, start, stop, apart=0.99 / self.rate, **options):
                yield item
                self.ends[start] = item[1]

        early = 0.0 if skip == "DEFAULT" else 0.5 / self.rate
        return grid(watched(), self.rate, start, stop, early)

    def skip(self) -> str:
        """Which frames need not be decoded, see :func:`relocal_pyg.video.decode.droppable`."""
        some = (self.stated or 0.0) >= _LONG and self.backbone.clip_frames == 1
        return droppable(self.path, self.rate, self.stream) if some else "DEFAULT"

    def rows(self, decoded: Decoded) -> tuple[RowFile, Tensor]:
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
            for time, count, clip in clips_of(ready, backbone.clip_frames, backbone.clip_stride):
                self.done += time - (shown[-1] if shown else time)
                if len(waiting) == self.clips_at_once:
                    rows.add(self.forward(waiting), repeats)
                    waiting, repeats = [], []
                    self.tick()
                waiting.append(clip)
                repeats.append(count)
                shown.append(time)
            if waiting:
                rows.add(self.forward(waiting), repeats)
        return rows.finish(), torch.tensor(shown, dtype=torch.float64)

    def tick(self) -> None:
        """Tell how far it is; what the listener raises ends the work, in every thread."""
        if threading.current_thread() is not self.caller:
            if self.stopped:
                raise CancelledError
        elif self.progress is not None:
            self.progress(min(self.done, self.stated or self.done), self.stated)

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


def _in_one(parts: Sequence[tuple[RowFile, Tensor]]) -> tuple[RowFile, Tensor]:
    """Rows of stretches that follow each other; a picture that stays on is one row."""
    if len(parts) == 1:
        return parts[0]
    writer, times, more = RowWriter(parts[0][0].dim), [], 0
    following = [*(shown[0] for _, shown in parts[1:]), math.nan]
    for (rows, shown), after in zip(parts, following, strict=True):
        once, repeats = rows.shortened(1), rows.repeats.copy()
        repeats[0] += more
        count = len(once) - int(shown[-1] == after)
        more = int(repeats[count:].sum())
        for first in range(0, count, BLOCK):
            last = min(first + BLOCK, count)
            writer.add(once.range(first, last), repeats[first:last].tolist())
        times.append(shown[:count])
    return writer.finish(), torch.cat(times)


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


def file_digest(
    path: str | Path, backbone: Backbone, rate_hz: float, stream: int | None = None
) -> str:
    """What a cache calls the features of a file: of its bytes, and of how they are made.

    Raises:
        VideoError: The file cannot be read.
    """
    try:
        content = sha256_file(check_file(path))
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror})", file=path) from None
    text = json.dumps([content, _settings(backbone, rate_hz, stream)], sort_keys=True)
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
