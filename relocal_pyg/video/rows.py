"""Feature rows of one video, in a file: written as they are made, read a block at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import threading
import warnings
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from relocal_pyg.errors import FeatureError, OutputError
from relocal_pyg.io.tensors import save_blocks
from relocal_pyg.io.write import claim_folder, replace_file, writing
from relocal_pyg.models.similarity import shot_changes

#: Rows read or written at once.
BLOCK = 512
_BLOCK_BYTES = 8 * 2**20
#: Steps of one video: nine days at 6.25 a second. A forged time stamp must not take the machine.
MAX_STEPS = 5_000_000
# Bytes of repeated rows that are put into memory for models that do not take blocks.
_MAX_BYTES = 2 * 2**30
Whole = NDArray[np.int64]
# What a cache calls its files.
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")


class RowFile:
    """Float32 rows ``[n, F]`` in an open file, where a row that repeats is kept once.

    A block is read, used and let go, so that memory does not grow with the number of rows. A mapped
    tensor alone would not do: pages once looked at count as the memory of the process.

    Args:
        file: Open for reading; kept open.
        offset: Byte at which the rows begin.
        dim: Channels F.
        repeats: How many steps each row in the file stands for, at least 1.
    """

    def __init__(self, file: BinaryIO, offset: int, dim: int, repeats: Whole) -> None:
        self._file, self._offset, self.dim = file, offset, dim
        self.repeats = repeats
        self._ends = repeats.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Steps n and channels F."""
        return len(self), self.dim

    def split(self, size: int, /) -> Iterator[Tensor]:
        """Give the rows in blocks of ``size``, the last one shorter, as ``torch.Tensor.split``.

        Blocks of wide rows are shorter: none takes more than 8 MiB.
        """
        size = max(1, min(size, _BLOCK_BYTES // (4 * self.dim)))
        for first in range(0, len(self), size):
            yield self.range(first, min(first + size, len(self)))

    def range(self, first: int, last: int) -> Tensor:
        """Rows ``[last - first, F]`` of the steps ``[first, last)``."""
        if last <= first:
            return torch.empty(0, self.dim)
        index = np.searchsorted(self._ends, np.arange(first, last), side="right")
        low, count = int(index[0]), int(index[-1] - index[0]) + 1
        block = np.empty((count, self.dim), np.float32)
        # Not by the file's own position, which is that of every reader.
        place = self._offset + 4 * low * self.dim
        if os.preadv(self._file.fileno(), [block.data], place) < block.nbytes:
            raise OSError("the file of feature rows ends early")
        return torch.from_numpy(block if count == len(index) else block[index - low])

    def tensor(self) -> Tensor:
        """All rows: mapped, so that what is looked at is read, or in memory where some repeat.

        Raises:
            FeatureError: They would take more than 2 GiB.
        """
        if len(self) == len(self.repeats):
            mapped = np.memmap(self._file, np.float32, "c", self._offset, self.shape)
            return torch.from_numpy(mapped)
        if 4 * len(self) * self.dim > _MAX_BYTES:
            raise FeatureError(
                f"{len(self)} steps are too many for this model: lower the frames per second"
            )
        return self.range(0, len(self))

    def shortened(self, limit: int) -> RowFile:
        """The same rows, none repeated more than ``limit`` times."""
        return RowFile(self._file, self._offset, self.dim, np.minimum(self.repeats, limit))


class RowWriter:
    """Appends rows to a temporary file, which goes away with the last that uses it.

    Args:
        dim: Channels of a row.

    Raises:
        OutputError: The temporary folder cannot be written, or is full.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._repeats = array("q")
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the rows)
        except OSError as error:
            raise self._cannot(error) from None

    def add(self, rows: Tensor, repeats: Iterable[int]) -> None:
        """Append rows ``[b, F]``, each standing for as many steps as ``repeats`` says."""
        try:
            self._file.write(rows.contiguous().numpy().data)
        except OSError as error:
            raise self._cannot(error) from None
        self._repeats.extend(repeats)

    def finish(self) -> RowFile:
        """Give what was written."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._cannot(error) from None
        return RowFile(self._file, 0, self._dim, np.array(self._repeats, dtype=np.int64))

    @staticmethod
    def _cannot(error: OSError) -> OutputError:
        return OutputError(
            f"feature rows cannot be kept ({error.strerror}): set TMPDIR to a folder with space",
            file=tempfile.gettempdir(),
        )


@dataclass(frozen=True)
class VideoFeatures:
    """Features of one video.

    Attributes:
        blocks: The features, float32 ``[n, F]``, to be taken in blocks with ``split``: without all
            of them in memory.
        shown: float64 ``[r]``, seconds at which the (first) frame of each row kept appears.
        seconds_per_step: Step k stands for ``[k, k + 1) * seconds_per_step`` seconds of the file's
            own clock.
        duration: Seconds of that clock at which the pictures that could be decoded end.
        digest: SHA-256 of the file's bytes and the settings together; empty where no cache wanted
            to know.
        settings: What the features were made with, plain values.
        problems: Damage met on the way, one line each.
        reused: Read from a :class:`FeatureCache`, not computed now.
    """

    blocks: RowFile
    shown: Tensor
    seconds_per_step: float
    duration: float
    digest: str
    settings: dict[str, Any]
    problems: tuple[str, ...] = ()
    reused: bool = field(default=False, compare=False)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def features(self) -> Tensor:
        """All features ``[n, F]``, mapped from their file where none repeats."""
        return self.blocks.tensor()

    @property
    def times(self) -> Tensor:
        """float64 ``[n]``, seconds at which the (first) frame of each step appears."""
        return self.shown.repeat_interleave(torch.from_numpy(self.blocks.repeats))


# Rows to either side of a change that say whether it is one of shots.
_AROUND = 4


def twice_as_often(video: VideoFeatures) -> VideoFeatures:
    """Steps half as long: between two pictures the mean of their rows.

    A row stands on at the end of its shot, and where its picture stays on the screen anyway.

    Args:
        video: Of an image network; when its pictures appear is not kept.
    """
    once, repeats = video.blocks.shortened(1), video.blocks.repeats
    step, count, steps = video.seconds_per_step / 2, len(once), 2 * len(video.blocks)
    writer, size = RowWriter(once.dim), max(1, min(BLOCK, _BLOCK_BYTES // (4 * once.dim)))
    for first in range(0, count, size):
        low, last = max(first - _AROUND, 0), min(first + size, count)
        near = once.range(low, min(last + _AROUND, count))
        many = repeats[low : low + len(near)]
        stays = many > 1
        stays[shot_changes(near).numpy() - 1] = True
        stays[-1] = True  # the last of all; others are no more than neighbours
        own = slice(first - low, last - low)
        kept = np.stack([stays | True, ~stays], 1)[own]
        both = torch.stack([near, (near + near.roll(-1, 0)) / 2], 1)[own]
        lasting = np.stack([np.where(stays, 2 * many, 1), many], 1)[own][kept]
        if last == count:  # half a step of before may be all that is left at the end
            lasting[-1] -= steps > max(math.ceil((video.duration - 1e-3) / step), 1)
        writer.add(both[torch.from_numpy(kept)], lasting.tolist())
    return replace(
        video, blocks=writer.finish(), shown=video.shown[:0], seconds_per_step=step, digest=""
    )


class FeatureCache:
    """Features that need not be computed again, one safetensors file a video.

    A file is written all or nothing and carries a checksum: what was interrupted or damaged is not
    found, and extracted again.

    Args:
        folder: Made where it does not exist.
        most: Bytes to keep, of the files used last; everything where None.
        needed: Where False, features that cannot be kept are a warning, not an error.

    Raises:
        OutputError: The folder cannot be made, or holds what no cache holds.
    """

    def __init__(self, folder: str | Path, most: int | None = None, *, needed: bool = True) -> None:
        self.most, self.needed = most, needed
        # Caches of before have no manifest.
        before = Path(folder).is_dir() and all(map(_ENTRY.fullmatch, os.listdir(folder)))
        with writing(force=before):
            self.folder = claim_folder(folder, "cache")
        self._locks: dict[str, threading.Lock] = {}

    def lock(self, digest: str) -> threading.Lock:
        """Held by the thread that computes a digest, so that another waits and finds it done."""
        return self._locks.setdefault(digest, threading.Lock())

    def get(self, digest: str) -> VideoFeatures | None:
        """Give what was stored under a digest, or None where nothing whole is there."""
        try:
            if not self._file(digest).is_file():  # opening a pipe would wait for a writer
                return None
            with safe_open(self._file(digest), framework="pt") as stored:
                content = json.loads((stored.metadata() or {})["content"])
                shown, repeats = stored.get_tensor("shown"), stored.get_tensor("repeats")
            rows = _open_rows(self._file(digest), repeats.numpy())
            if content.pop("checksum") != _checksum(rows, shown, content):
                return None
            content["problems"] = tuple(content["problems"])
            if self.most is not None:
                os.utime(self._file(digest))
            return VideoFeatures(rows, shown, **content, reused=True)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        except (AttributeError, RecursionError):  # JSON that is none of ours
            return None

    def put(self, video: VideoFeatures) -> None:
        """Store features under their digest."""
        kept = ("seconds_per_step", "duration", "digest", "settings", "problems")
        content = {name: getattr(video, name) for name in kept}
        content["checksum"] = _checksum(video.blocks, video.shown, content)
        rows, count = video.blocks.shortened(1), len(video.blocks.repeats)
        blocks = (each.numpy().tobytes() for each in rows.split(BLOCK))
        tensors = {
            "shown": ("F64", [count], [video.shown.numpy().tobytes()]),
            "repeats": ("I64", [count], [video.blocks.repeats.tobytes()]),
            "features": ("F32", [count, rows.dim], blocks),
        }
        try:
            # What is there is damaged: whole features would have been found.
            with writing(force=True), replace_file(self._file(video.digest)) as temporary:
                save_blocks(temporary, tensors, {"content": json.dumps(content)})
        except OutputError as error:
            if self.needed:
                raise
            warnings.warn(f"{self.folder}: features are not kept: {error.reason}", stacklevel=3)
        if self.most is not None:
            # Other threads put too; another process may take away what was listed.
            with self.lock(""), suppress(FileNotFoundError):
                entries = [each for each in self.folder.iterdir() if _ENTRY.fullmatch(each.name)]
                stored = sorted((-s.st_mtime, s.st_size, e) for e in entries for s in [e.stat()])
                for (_, _, old), size in zip(
                    stored, accumulate(s for _, s, _ in stored), strict=True
                ):
                    if size > self.most:
                        old.unlink()

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _open_rows(path: Path, repeats: Whole) -> RowFile:
    """The features in a safetensors file whose header was found to be sound."""
    file = path.open("rb")
    length = int.from_bytes(file.read(8), "little")
    entry = json.loads(file.read(length))["features"]
    count, width = entry["shape"]
    if entry["dtype"] != "F32" or repeats.shape != (count,) or repeats.dtype != np.int64:
        raise ValueError("not rows of this package")
    if width < 1 or (repeats < 1).any() or repeats.sum() > MAX_STEPS:
        raise ValueError("impossible sizes")
    return RowFile(file, 8 + length + entry["data_offsets"][0], width, repeats)


def _checksum(rows: RowFile, shown: Tensor, content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())  # as in older caches
    digest.update(f"features torch.float32 {[len(rows.repeats), rows.dim]}".encode())
    for block in rows.shortened(1).split(BLOCK):
        digest.update(block.numpy().data)
    digest.update(rows.repeats.tobytes())
    digest.update(f"shown {shown.dtype} {list(shown.shape)}".encode())
    digest.update(shown.numpy().tobytes())
    return digest.hexdigest()
