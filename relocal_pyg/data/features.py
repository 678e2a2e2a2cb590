"""Features on disk: one HDF5 file, one group per video, read step ranges at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.data.hdf5 import (
    MAX_BYTES,
    check_key,
    checked_dataset,
    first_bad_step,
    open_features,
    read_steps,
    video_names,
)
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.reading import id_problem
from relocal_pyg.storage import replace_file

#: Steps per chunk: small enough to read a moment, large enough to read a video quickly.
_CHUNK = 64


class FeatureStore:
    """Feature steps of the videos of an HDF5 file; a ``FeatureSource`` for a protocol.

    The layout is ``<video id>/<key>``, floating point ``[n, F]``. The published file
    ``sub_activitynet_v1-3.c3d.hdf5`` works as it is: its groups are called ``v_<id>``, which
    ``<id>`` finds too, and its rows are 8 frames apart, so that ``subsample=2`` (``feat[::2]``, as
    fengyang0317/video_reloc does) gives the temporal resolution of 16 frames of the paper.

    The file is opened on first use, once per process; a store can be pickled and given to the
    workers of a ``DataLoader`` under every start method. Files that point at other files or declare
    more than they hold are refused.

    Args:
        path: The HDF5 file.
        key: Name of the data set inside each group.
        subsample: Keep every so-many-th row; all numbers of steps count the rows kept.
        max_bytes: Largest array that a video may declare.
        check: Refuse steps that are not finite.

    Raises:
        FeatureError: The file cannot be used.
        UsageError: ``key`` or ``subsample`` makes no sense.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: str = "c3d_features",
        subsample: int = 1,
        max_bytes: int = MAX_BYTES,
        check: bool = True,
    ) -> None:
        check_key(key)
        if subsample < 1:
            raise UsageError(f"subsample is {subsample}: 1 or more wanted")
        self.path, self.key = Path(path), key
        self.subsample, self.max_bytes, self.check = subsample, max_bytes, check
        self._forget()
        self._open()

    _dim: int | None

    @property
    def ids(self) -> list[str]:
        """Names of the videos in the file, sorted."""
        self._open()
        return list(self._names)

    @property
    def dim(self) -> int:
        """Width ``F`` of a step: that of the first video that can be used."""
        if self._dim is None:
            problem = None
            for name in self.ids:
                try:
                    self._dim = int(self._dataset(name).shape[1])
                    break
                except FeatureError as error:
                    problem = problem or error
            else:
                raise problem or FeatureError("holds no videos", file=self.path)
        return self._dim

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and self._find(video_id) is not None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, key={self.key!r})"

    def num_steps(self, video_id: str) -> int:
        """Number of steps of a video.

        Raises:
            FeatureError: No such video, or it cannot be used.
        """
        name = self._name(video_id)
        if name not in self._lengths:
            rows = int(self._dataset(name).shape[0])
            self._lengths[name] = -(-rows // self.subsample)
        return self._lengths[name]

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        """Read steps ``[start, end)`` of a video.

        Args:
            video_id: A video id; ``x`` and ``v_x`` name the same video.
            start: First step.
            end: Step after the last one; the end of the video where None.

        Returns:
            float32 ``[end - start, F]``.

        Raises:
            FeatureError: No such video or range, damaged, of another width than :attr:`dim`, or
                not finite (the first bad step is named).
        """
        name = self._name(video_id)
        num_steps = self.num_steps(name)
        end = num_steps if end is None else end
        if not 0 <= start < end <= num_steps:
            raise FeatureError(
                f"has {num_steps} steps, [{start}, {end}) was asked for",
                file=self.path,
                record=name,
            )
        data = self._dataset(name)
        if data.shape[1] != self.dim:
            raise FeatureError(
                f"has {data.shape[1]} channels, other videos {self.dim}",
                file=self.path,
                record=name,
            )
        first, last = start * self.subsample, (end - 1) * self.subsample
        values = read_steps(data, self.path, name, first, last + 1)[:: self.subsample]
        bad = first_bad_step(values) if self.check else None
        if bad is not None:
            raise FeatureError(f"step {start + bad} is not finite", file=self.path, record=name)
        return torch.from_numpy(np.ascontiguousarray(values))

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._handle is not None:
            self._handle.close()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # A handle cannot travel to another process, and what was learnt through it may be stale.
        names = ("path", "key", "subsample", "max_bytes", "check")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._handle: h5py.File | None = None
        self._pid = -1
        self._names: dict[str, None] = {}
        self._lengths: dict[str, int] = {}
        self._dim = None

    def _open(self) -> h5py.File:
        if self._handle is None or self._pid != os.getpid():
            # After a fork the parent's handle is closed on this side before another is opened:
            # the library would otherwise share one file position between processes.
            self.close()
            self._handle, self._pid = open_features(self.path), os.getpid()
            self._names = dict.fromkeys(video_names(self._handle, self.path))
        return self._handle

    def _find(self, video_id: str) -> str | None:
        self._open()
        return next((name for name in spellings(video_id) if name in self._names), None)

    def _name(self, video_id: str) -> str:
        name = self._find(video_id)
        if name is None:
            problem = id_problem(video_id)
            reason = f"the id {problem}" if problem else "is not among the videos of this file"
            raise FeatureError(reason, file=self.path, record=video_id or "''")
        return name

    def _dataset(self, name: str) -> h5py.Dataset:
        return checked_dataset(self._open(), self.path, name, self.key, self.max_bytes)


def spellings(video_id: str) -> Iterator[str]:
    """Names under which a video may be filed: the id, and without or with a leading ``v_``.

    Example:
        >>> list(spellings("abc")), list(spellings("v_abc"))
        (['abc', 'v_abc'], ['v_abc', 'v_v_abc', 'abc'])
    """
    yield video_id
    yield f"v_{video_id}"
    if video_id.startswith("v_"):
        yield video_id[2:]


def write_features(
    path: str | Path, items: Iterable[tuple[str, ArrayLike]], *, key: str = "c3d_features"
) -> int:
    """Write a feature file that :class:`FeatureStore` reads, all or nothing.

    Each array gets a checksum and is stored as float32 in chunks of 64 steps. Items are taken one
    at a time, so a generator may extract while this writes.

    Args:
        path: The HDF5 file to write.
        items: Video id and features ``[n, F]``; one width throughout.
        key: Name of the data set inside each group.

    Returns:
        Number of videos written.

    Raises:
        FeatureError: An array is not finite, not ``[n, F]`` or of another width; an id is unusable
            or occurs twice; there is no item. Nothing is written then.
        OutputError: The file cannot be written; what was there is intact.
    """
    check_key(key)
    width, written = 0, set()
    with replace_file(path) as temporary, _new_file(temporary) as file:
        for video_id, array in items:
            problem = id_problem(video_id) or ("occurs twice" if video_id in written else None)
            if problem:
                raise FeatureError(f"the id {problem}", record=video_id or "''")
            values = np.asarray(array)
            if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiu":
                raise FeatureError(
                    f"shape {values.shape} of {values.dtype}: numbers [n, F] wanted",
                    record=video_id,
                )
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False)
            bad = first_bad_step(values)
            if bad is not None:
                raise FeatureError(f"step {bad} is not finite", record=video_id)
            width = width or values.shape[1]
            if values.shape[1] != width:
                raise FeatureError(
                    f"has {values.shape[1]} channels, earlier videos {width}", record=video_id
                )
            with _disk_errors():
                chunks = (min(_CHUNK, len(values)), width)
                file.create_dataset(
                    f"{video_id}/{key}", data=values, chunks=chunks, fletcher32=True
                )
            written.add(video_id)
        if not written:
            raise FeatureError("there are no features to write", file=path)
    return len(written)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    # Without a chunk cache a full disk is an error where it happens; with one it goes unnoticed.
    file = h5py.File(path, "w", libver="latest", rdcc_nbytes=0)
    try:
        yield file
    finally:
        with _disk_errors():
            file.close()


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """The library reports some full disks as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error
