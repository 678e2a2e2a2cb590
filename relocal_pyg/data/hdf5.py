"""Reading feature files that strangers made: what is refused, and why, before anything is read.

An HDF5 file can point at other files (links, external storage, virtual data sets) and can declare
terabytes that it does not hold. Nothing here follows such a pointer or allocates such an array.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.reading import id_problem, refuse_look_alikes

#: Largest array that a record may declare, unless the caller says otherwise.
MAX_BYTES = 8 << 30

#: Arrays below this size are not checked for compression bombs.
_SMALL = 16 << 20
#: Declared bytes per stored byte; compressed real features stay below ten.
_MAX_RATIO = 200
#: Steps read at once when all values are looked at.
_BLOCK = 4096

#: What h5py raises on damaged files, depending on where the damage is.
H5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


class UnsafeFeatureError(FeatureError):
    """A record that no honest writer makes: the whole file is refused, not just the record."""


def open_features(path: str | Path) -> h5py.File:
    """Open a feature file for reading.

    Raises:
        FeatureError: Missing, a folder, empty, not HDF5, or truncated.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise FeatureError("does not exist", file=path) from None
    except (OSError, ValueError) as error:
        raise FeatureError(f"cannot be read ({error})", file=path) from None
    if not stat.S_ISREG(status.st_mode):
        raise FeatureError("is not a file", file=path)
    if status.st_size == 0:
        raise FeatureError("is empty", file=path)
    try:
        # The chunk cache of a file is small on purpose: reads rarely hit it, and it is per record.
        return h5py.File(path, "r", rdcc_nbytes=1 << 20, locking="best-effort")
    except H5_ERRORS as error:
        raise FeatureError(f"is not a readable HDF5 file ({error})", file=path) from None


def video_names(file: h5py.File, path: str | Path) -> list[str]:
    """Names of the records, sorted; names that are not usable as ids are left out.

    Raises:
        FeatureError: The file is damaged, has no record, or has two whose names look the same.
    """
    names = [name for name in _all_names(file, path) if id_problem(name) is None]
    if not names:
        raise FeatureError("holds no videos: one group per video wanted", file=path)
    refuse_look_alikes(names, path, FeatureError)
    return names


def _all_names(file: h5py.File, path: str | Path) -> list[str]:
    try:
        return sorted(os.fsdecode(name) for name in file)  # bytes where they are no UTF-8
    except H5_ERRORS as error:
        raise FeatureError(f"cannot be read ({error})", file=path) from None


def check_key(key: str) -> None:
    """Check the name of the data set inside each group.

    Raises:
        UsageError: It is not a plain name.
    """
    problem = id_problem(key)
    if problem:
        raise UsageError(f"the name of a data set {problem}: a plain name wanted", record=key)


def checked_dataset(
    file: h5py.File, path: str | Path, name: str, key: str, max_bytes: int
) -> h5py.Dataset:
    """Get ``<name>/<key>`` after every check that needs no values.

    Args:
        file: The open file.
        path: Its name, for messages.
        name: One of :func:`video_names`.
        key: Name of the data set, already checked by :func:`check_key`.
        max_bytes: Largest array that may be declared.

    Returns:
        A stored data set ``[n >= 1, F >= 1]`` of real floating-point numbers.

    Raises:
        UnsafeFeatureError: A link, external storage, a virtual data set, or a shape bomb.
        FeatureError: Missing, of another shape or type, or damaged.
    """

    def refuse(reason: str, kind: type[FeatureError] = FeatureError) -> FeatureError:
        return kind(reason, file=path, record=name)

    try:
        group = _hard_linked(file, name, path, name)
        if not isinstance(group, h5py.Group):
            raise refuse(f"is not a group: a group with data set {key!r} wanted")
        if group.get(key, getlink=True) is None:
            held = ", ".join(sorted(map(str, group))[:3]) or "nothing"
            raise refuse(f"has no data set {key!r}, it holds {held}: choose the key")
        data = _hard_linked(group, key, path, name)
        if not isinstance(data, h5py.Dataset):
            raise refuse(f"{key!r} is not a data set")
        if data.is_virtual or data.external:
            raise refuse("reads other files: copy the values into the file", UnsafeFeatureError)
        if data.dtype.kind != "f":
            raise refuse(f"holds {data.dtype}: floating-point numbers wanted")
        if data.ndim != 2 or data.shape is None:
            raise refuse(f"has shape {data.shape}: [steps, channels] wanted")
        if 0 in data.shape:
            raise refuse(f"holds no steps: shape {data.shape}")
        # A chunk is inflated whole even when the array is small.
        numbers = max(math.prod(data.shape), math.prod(data.chunks or (0,)))
        declared = numbers * data.dtype.itemsize
        stored = data.id.get_storage_size()
        if declared > max_bytes:
            raise refuse(f"declares {declared} bytes, over {max_bytes}", UnsafeFeatureError)
        if declared > max(_SMALL, _MAX_RATIO * stored):
            raise refuse(f"declares {declared} bytes, stores {stored}", UnsafeFeatureError)
    except FeatureError:
        raise
    except H5_ERRORS as error:
        raise refuse(f"cannot be read ({error})") from None
    return data


def read_steps(
    data: h5py.Dataset, path: str | Path, name: str, start: int, end: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read rows ``[start, end)`` of a checked data set as float32.

    Raises:
        FeatureError: A checksum is wrong or the file is damaged.
    """
    try:
        with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is reported
            return np.asarray(data[start:end]).astype(np.float32, copy=False)
    except H5_ERRORS as error:
        raise FeatureError(f"cannot be read ({error})", file=path, record=name) from None


def first_bad_step(values: np.ndarray[Any, Any]) -> int | None:
    """Position of the first row with a NaN or an infinity, or None."""
    finite = np.isfinite(values).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


@dataclass(frozen=True)
class Record:
    """What :func:`scan` found out about one video.

    Attributes:
        name: The record's name in the file.
        num_steps: Rows; 0 where there is a problem.
        dim: Width; 0 where there is a problem.
        problem: Why it cannot be used, or None.
    """

    name: str
    num_steps: int = 0
    dim: int = 0
    problem: str | None = None


def scan(
    path: str | Path, key: str, *, max_bytes: int = MAX_BYTES, values: bool = True
) -> Iterator[Record | None]:
    """Look at every record of a feature file.

    Args:
        path: The file.
        key: Name of the data set inside each group.
        max_bytes: Largest array that may be declared.
        values: Read all values too: checksums, NaN and infinities.

    Yields:
        A :class:`Record` for each video, and None after each block of values (signs of life).

    Raises:
        FeatureError: The file as a whole cannot be used.
    """
    check_key(key)
    with open_features(path) as file:
        for name in video_names(file, path):
            try:
                data = checked_dataset(file, path, name, key, max_bytes)
                for start in range(0, len(data) if values else 0, _BLOCK):
                    block = read_steps(data, path, name, start, min(start + _BLOCK, len(data)))
                    bad = first_bad_step(block)
                    if bad is not None:
                        raise FeatureError(f"step {start + bad} is not finite")
                    yield None
                yield Record(name, int(data.shape[0]), int(data.shape[1]))
            except UnsafeFeatureError:
                raise
            except FeatureError as error:
                yield Record(name, problem=error.reason)
        for name in _all_names(file, path):
            problem = id_problem(name)
            if problem:
                yield Record(name, problem=f"the id {problem}")


def _hard_linked(parent: h5py.Group, name: str, path: str | Path, record: str) -> Any:
    link = parent.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = type(link).__name__
        raise UnsafeFeatureError(f"is a {kind}: links are not followed", file=path, record=record)
    return parent[name]
