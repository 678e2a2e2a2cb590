"""From a video file to feature rows with times."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.errors import FeatureError, OutputError, UsageError, VideoError
from relocal_pyg.io.record import sha256_file
from relocal_pyg.io.write import replace_file
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.container import check_file
from relocal_pyg.video.decode import Shown, frames, probe, warn_of

#: Copies of one row written at once: a picture may stay on the screen for hours.
_COPIES = 1024


class RowFile:
    """Float32 rows ``[n, F]`` in an open file.

    A block is read, used and let go, so that memory does not grow with the number of rows. A mapped
    tensor alone would not do: pages once looked at count as the memory of the process.

    Args:
        file: Open for reading; kept open.
        offset: Byte at which the rows begin.
        shape: Number of rows and of channels.
    """

    def __init__(self, file: BinaryIO, offset: int, shape: tuple[int, int]) -> None:
        self._file = file
        self._offset = offset
        self._lock = threading.Lock()
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int, /) -> Iterator[Tensor]:
        """Give the rows in blocks of ``size``, the last one shorter, as ``torch.Tensor.split``.

        Raises:
            OSError: The file ends early or cannot be read.
        """
        count, width = self.shape
        for first in range(0, count, size):
            wanted = min(size, count - first)
            with self._lock:
                self._file.seek(self._offset + 4 * first * width)
                block = np.fromfile(self._file, np.float32, wanted * width)
            if block.size < wanted * width:
                raise OSError("the file of feature rows ends early")
            yield torch.from_numpy(block.reshape(wanted, width))

    def tensor(self) -> Tensor:
        """Map all rows: what is looked at is read from the file; changes stay in memory."""
        mapped = np.memmap(self._file, np.float32, "c", self._offset, self.shape)
        return torch.from_numpy(mapped)


class RowWriter:
    """Appends rows to a temporary file, which goes away with the last that uses it.

    Args:
        dim: Channels of a row.

    Raises:
        OutputError: The temporary folder cannot be written.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._count = 0
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the rows)
        except OSError as error:
            raise self._cannot(error) from None

    def add(self, rows: Tensor, repeats: list[int]) -> None:
        """Append each row of ``[b, F]`` as many times as ``repeats`` says.

        Raises:
            OutputError: The disk is full.
        """
        try:
            for row, times in zip(rows.numpy(), repeats, strict=True):
                for first in range(0, times, _COPIES):
                    self._file.write(row.tobytes() * min(_COPIES, times - first))
        except OSError as error:
            raise self._cannot(error) from None
        self._count += sum(repeats)

    def finish(self) -> RowFile:
        """Give what was written.

        Raises:
            OutputError: The disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise self._cannot(error) from None
        return RowFile(self._file, 0, (self._count, self._dim))

    @staticmethod
    def _cannot(error: OSError) -> OutputError:
        return OutputError(
            f"feature rows cannot be kept ({error.strerror}): set TMPDIR to a folder with space",
            file=tempfile.gettempdir(),
        )


#: Rows read or written at once.
BLOCK = 512


@dataclass(frozen=True)
class VideoFeatures:
    """Features of one video.

    Attributes:
        features: float32 ``[n, F]``, mapped from a file where ``rows`` is given: at 1,280 channels
            5 KiB a step, so an hour at 3.125 Hz is 58 MB once all of it is looked at.
        times: float64 ``[n]``, seconds at which the (first) frame of each step appears.
        seconds_per_step: Step k stands for ``[k, k + 1) * seconds_per_step`` seconds.
        duration: Seconds that could be decoded.
        digest: SHA-256 of the file's bytes and the settings together.
        settings: What the features were made with, plain values.
        problems: Damage met on the way, one line each.
        reused: Read from a :class:`FeatureCache`, not computed now.
        rows: The file that the features are mapped from.
    """

    features: Tensor
    times: Tensor
    seconds_per_step: float
    duration: float
    digest: str
    settings: dict[str, Any]
    problems: tuple[str, ...] = ()
    reused: bool = False
    rows: RowFile | None = field(default=None, repr=False, compare=False)

    @property
    def blocks(self) -> RowFile | Tensor:
        """The features, to be taken in blocks with ``split``: without all of them in memory."""
        return self.features if self.rows is None else self.rows


class FeatureCache:
    """Features that need not be computed again, one safetensors file a video.

    A file is written all or nothing and carries a checksum: what was interrupted or damaged is not
    found, and extracted again.

    Args:
        folder: Made where it does not exist.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be made ({error.strerror})", file=folder) from None
        self._locks: dict[str, threading.Lock] = {}

    def lock(self, digest: str) -> threading.Lock:
        """Held by the thread that computes a digest, so that another waits and finds it done."""
        return self._locks.setdefault(digest, threading.Lock())

    def get(self, digest: str) -> VideoFeatures | None:
        """Give what was stored under a digest, or None where nothing whole is there."""
        try:
            with safe_open(self._file(digest), framework="pt") as stored:
                content = json.loads((stored.metadata() or {})["content"])
                times = stored.get_tensor("times")
            rows = _open_rows(self._file(digest))
            if content.pop("checksum") != _checksum(rows, times, content):
                return None
            content["problems"] = tuple(content["problems"])
            return VideoFeatures(rows.tensor(), times, **content, reused=True, rows=rows)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def put(self, video: VideoFeatures) -> None:
        """Store features under their digest.

        Raises:
            OutputError: The file cannot be written.
        """
        content: dict[str, Any] = {
            "seconds_per_step": video.seconds_per_step,
            "duration": video.duration,
            "digest": video.digest,
            "settings": video.settings,
            "problems": list(video.problems),
        }
        content["checksum"] = _checksum(video.blocks, video.times, content)
        with replace_file(self._file(video.digest)) as temporary, temporary.open("wb") as file:
            file.write(_header(video, {"content": json.dumps(content)}))
            file.write(video.times.numpy().tobytes())
            for block in video.blocks.split(BLOCK):
                file.write(block.numpy().tobytes())

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _header(video: VideoFeatures, metadata: dict[str, str]) -> bytes:
    """Beginning of a safetensors file: its own writer wants every tensor in memory, twice."""
    shape = list(video.features.shape)
    middle, end = 8 * shape[0], 8 * shape[0] + 4 * shape[0] * shape[1]
    header = {
        "__metadata__": metadata,
        "times": {"dtype": "F64", "shape": shape[:1], "data_offsets": [0, middle]},
        "features": {"dtype": "F32", "shape": shape, "data_offsets": [middle, end]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _open_rows(path: Path) -> RowFile:
    """The features in a safetensors file whose header was found to be sound."""
    file = path.open("rb")
    length = int.from_bytes(file.read(8), "little")
    entry = json.loads(file.read(length))["features"]
    count, width = entry["shape"]
    if entry["dtype"] != "F32":
        raise ValueError("features are kept as float32")
    return RowFile(file, 8 + length + entry["data_offsets"][0], (count, width))


def _checksum(features: RowFile | Tensor, times: Tensor, content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(f"features torch.float32 {list(features.shape)}".encode())
    for block in features.split(BLOCK):
        digest.update(block.numpy().tobytes())
    digest.update(f"times {times.dtype} {list(times.shape)}".encode())
    digest.update(times.numpy().tobytes())
    return digest.hexdigest()


#: Frames per second where no query says how long a moment is: 3 or more steps in every second.
DEFAULT_RATE_HZ = 3.125
#: The finest sampling that :func:`sampling_rate` gives: every second frame of 25.
MAX_RATE_HZ = 12.5
#: Called with the seconds done and the seconds stated by the header (None where it states none).
Progress = Callable[[float, float | None], None]
Pictures = list[NDArray[np.uint8]]

# Raised whenever the same settings begin to give other numbers: stored features are then not found.
_VERSION = 1


def sampling_rate(query_seconds: float, fps: float | None = None, min_steps: int = 32) -> float:
    """Frames per second for a query of a given length and the references it is looked for in.

    12.5 Hz is halved as long as the query keeps ``min_steps`` steps and the rate stays above 1 Hz.
    A fixed rate would leave a short query a handful of steps, or make a long one needlessly dear;
    halving, not any number, lets queries of about one length share the features of a reference.

    Args:
        query_seconds: Length of the query in seconds.
        fps: Nominal rate of the slower video; sampling is not finer than that.
        min_steps: Steps the query should have.

    Returns:
        Frames per second, to be used for both the query and the reference.

    Raises:
        UsageError: ``query_seconds`` is not above 0.

    Example:
        >>> sampling_rate(2.4), sampling_rate(6.0), sampling_rate(60.0)
        (12.5, 6.25, 1.5625)
        >>> sampling_rate(2.4, fps=10.0)
        10.0
    """
    if not query_seconds > 0:
        raise UsageError(f"the query lasts {query_seconds} s, more than 0 wanted")
    rate = MAX_RATE_HZ
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
) -> VideoFeatures:
    """Decode a video and run a backbone over it, a batch of frames in memory at a time.

    Feature rows go to a temporary file as they are made, so that memory does not grow with the
    length of the video. A picture that stays on the screen for several steps is computed once.

    Args:
        path: The video file.
        backbone: See :class:`relocal_pyg.video.backbones.Backbone`.
        rate_hz: Frames per second given to the backbone. Where None: :data:`DEFAULT_RATE_HZ` for an
            image network, the video's nominal rate for a clip network.
        batch_frames: Frames given to the backbone at once.
        cache: Looked in before and written to after.
        progress: Called after each batch.
        report: Called with one line for each kind of damage met; where None, a
            :class:`relocal_pyg.video.decode.VideoWarning` that names the file.

    Returns:
        The :class:`VideoFeatures`.

    Raises:
        VideoError: The file cannot be decoded.
        FeatureError: The backbone gave something other than finite ``[B, dim]`` numbers.
        UsageError: ``rate_hz`` or ``batch_frames`` is out of range, or an extra is missing.
        OutputError: The cache or the temporary folder cannot be written.
    """
    if batch_frames < 1:
        raise UsageError(f"batch_frames is {batch_frames}, at least 1 wanted")
    rate = _frame_rate(path, backbone, rate_hz)
    settings = _settings(backbone, rate)
    digest = _digest(path, settings)
    with nullcontext() if cache is None else cache.lock(digest):
        video = None if cache is None else cache.get(digest)
        if video is None:
            problems: list[str] = []
            rows, times, duration = _compute(
                path, backbone, rate, batch_frames, progress, problems.append
            )
            video = VideoFeatures(
                features=rows.tensor(),
                times=times,
                seconds_per_step=backbone.clip_stride / rate,
                duration=duration,
                digest=digest,
                settings=settings,
                problems=tuple(problems),
                rows=rows,
            )
            if cache is not None:
                cache.put(video)
    for problem in video.problems:
        (report or warn_of(path))(problem)
    return video


def _compute(
    path: str | Path,
    backbone: Backbone,
    rate: float,
    batch_frames: int,
    progress: Progress | None,
    report: Callable[[str], None],
) -> tuple[RowFile, Tensor, float]:
    """Features ``[n, F]``, the time of each ``[n]``, and the duration."""
    stated = probe(path).duration
    num_frames = 0

    def counted() -> Iterator[Shown]:
        nonlocal num_frames
        for item in frames(path, rate_hz=rate, size=backbone.size, report=report):
            num_frames += 1
            yield item

    times = array("d")
    rows = RowWriter(backbone.dim)
    repeats: list[int] = []
    waiting: list[Pictures] = []
    last: Pictures = []
    clips_at_once = max(1, batch_frames // backbone.clip_frames)
    for time, clip in _clips(counted(), backbone.clip_frames, backbone.clip_stride):
        times.append(time)
        if last and all(new is old for new, old in zip(clip, last, strict=True)):
            repeats[-1] += 1
            continue
        if len(waiting) == clips_at_once:
            rows.add(_run(path, backbone, waiting), repeats)
            waiting, repeats = [], []
            if progress is not None:
                progress(time, stated)
        waiting.append(clip)
        repeats.append(1)
        last = clip
    rows.add(_run(path, backbone, waiting), repeats)
    # The header's duration where the decoded frames bear it out, else that of the frames.
    end = num_frames / rate
    duration = stated if stated is not None and end - 1 / rate < stated <= end else end
    if progress is not None:
        progress(duration, duration)
    return rows.finish(), torch.tensor(times, dtype=torch.float64), duration


def _frame_rate(path: str | Path, backbone: Backbone, rate_hz: float | None) -> float:
    if rate_hz is not None:
        return rate_hz
    if backbone.clip_frames == 1:
        return DEFAULT_RATE_HZ
    return min(max(probe(path).fps_nominal or 25.0, 1.0), 120.0)


def _settings(backbone: Backbone, rate_hz: float) -> dict[str, Any]:
    """What decides the numbers besides the file."""
    return {
        "backbone": backbone.name,
        "dim": backbone.dim,
        "size": list(backbone.size),
        "clip_frames": backbone.clip_frames,
        "clip_stride": backbone.clip_stride,
        "rate_hz": rate_hz,
        "version": _VERSION,
    }


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


def _clips(shown: Iterable[Shown], length: int, stride: int) -> Iterator[tuple[float, Pictures]]:
    """The time and the pictures of each clip; the last picture fills up an unfinished last clip."""
    window: list[Shown] = []
    fresh = skip = 0
    for item in shown:
        if skip:
            skip -= 1
            continue
        window.append(item)
        fresh += 1
        if len(window) == length:
            yield window[0][0], [picture for _, picture in window]
            window, fresh, skip = window[stride:], 0, max(0, stride - length)
    if fresh:
        pictures = [picture for _, picture in window]
        yield window[0][0], pictures + pictures[-1:] * (length - len(pictures))


def _run(path: str | Path, backbone: Backbone, clips: list[Pictures]) -> Tensor:
    batch = np.stack([np.stack(clip) if len(clip) > 1 else clip[0] for clip in clips])
    rows = backbone(torch.from_numpy(batch))
    if not isinstance(rows, Tensor) or tuple(rows.shape) != (len(clips), backbone.dim):
        shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise FeatureError(
            f"backbone {backbone.name} gave {shape}, [{len(clips)}, {backbone.dim}] wanted",
            file=path,
        )
    rows = rows.detach().float().cpu()
    if not torch.isfinite(rows).all():
        raise FeatureError(f"backbone {backbone.name} gave values that are not finite", file=path)
    return rows
