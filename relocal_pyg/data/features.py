"""Features on disk: one HDF5 file, one group per video, read step ranges at a time."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import ArrayLike

from relocal_pyg.errors import TOO_LARGE, FeatureError, UsageError, check_number
from relocal_pyg.io.read import id_problem, refuse_twins, tidy
from relocal_pyg.io.write import replace_file

if TYPE_CHECKING:
    from torch import Tensor

#: Largest array that a record may declare, unless the caller says otherwise.
MAX_BYTES = 8 << 30

#: Names of the data set inside a video's group, of which the first that is there is read: ours,
#: and that of the published C3D features.
KEYS = ("features", "c3d_features")

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
    refuse_twins(names, path, FeatureError)
    return names


def _all_names(file: h5py.File, path: str | Path) -> list[str]:
    try:
        return sorted(os.fsdecode(name) for name in file)  # bytes where they are no UTF-8
    except H5_ERRORS as error:
        raise FeatureError(f"cannot be read ({error})", file=path) from None


def check_key(key: str | None) -> None:
    """Refuse what is no plain name of a data set; None stands for :data:`KEYS`."""
    problem = None if key is None else id_problem(key)
    if problem:
        raise UsageError(f"the name of a data set {problem}: a plain name wanted", record=key)


def checked_dataset(
    file: h5py.File, path: str | Path, name: str, key: str | None, max_bytes: int
) -> h5py.Dataset:
    """Get ``<name>/<key>`` after every check that needs no values.

    ``name`` is one of :func:`video_names`, and ``key`` one of :data:`KEYS` where None.

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
            raise refuse(f"is not a group: a group with data set {key or KEYS[0]!r} wanted")
        if key is None:
            key = next((each for each in KEYS if group.get(each, getlink=True)), KEYS[0])
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
    """Read rows ``[start, end)`` of a checked data set as float32."""
    try:
        with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is reported
            return np.asarray(data[start:end]).astype(np.float32, copy=False)
    except H5_ERRORS as error:
        raise FeatureError(f"cannot be read ({error})", file=path, record=name) from None


def check_values(
    values: np.ndarray[Any, Any], record: str, file: str | Path | None = None, start: int = 0
) -> None:
    """Refuse rows with a NaN, an infinity or a number too large; they begin at step ``start``.

    Raises:
        FeatureError: The first bad step is named.
    """
    good = ((values < TOO_LARGE) & (values > -TOO_LARGE)).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        reason = "too large" if np.isfinite(values[first]).all() else "not finite"
        raise FeatureError(f"step {start + first} is {reason}", file=file, record=record)


@dataclass(frozen=True)
class Record:
    """What :func:`scan` found out about one video: its size, or why it cannot be used."""

    name: str
    num_steps: int = 0
    dim: int = 0
    problem: str | None = None


def scan(
    path: str | Path, key: str | None, *, max_bytes: int = MAX_BYTES, values: bool = True
) -> Iterator[Record | None]:
    """Look at every record of a feature file.

    Where ``values``, all of them are read too: checksums, NaN and infinities.

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
                    check_values(block, name, start=start)
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
    if link is None:
        raise FeatureError("is not in the file", file=path, record=record)
    if not isinstance(link, h5py.HardLink):
        kind = type(link).__name__
        raise UnsafeFeatureError(f"is a {kind}: links are not followed", file=path, record=record)
    return parent[name]


#: Steps per chunk: small enough to read a moment, large enough to read a video quickly.
_CHUNK = 64


class FeatureStore:
    """Feature steps of the videos of an HDF5 file; a ``FeatureSource`` for a protocol.

    The layout is ``<video id>/<key>``, floating point ``[n, F]``. Ids are found in whatever Unicode
    form they are asked for. The published file
    ``sub_activitynet_v1-3.c3d.hdf5`` works as it is: its groups are called ``v_<id>``, which
    ``<id>`` finds too, and its rows are 8 frames apart, so that ``subsample=2`` (``feat[::2]``, as
    fengyang0317/video_reloc does) gives the temporal resolution of 16 frames of the paper.

    The file is opened on first use, once per process; a store can be pickled and given to the
    workers of a ``DataLoader`` under every start method. Files that point at other files or declare
    more than they hold are refused.

    Args:
        path: The HDF5 file.
        key: Name of the data set inside each group; the first of :data:`KEYS` there where None.
        subsample: Keep every so-many-th row; all numbers of steps count the rows kept.
        max_bytes: Largest array that a video may declare.
        check: Refuse steps that are not finite.

    Attributes:
        width: Width ``F`` of a step, where it is known to be another than that of the first video.

    Raises:
        FeatureError: The file cannot be used.
        UsageError: ``key`` or ``subsample`` makes no sense.
    """

    width: int | None = None

    def __init__(
        self,
        path: str | Path,
        *,
        key: str | None = None,
        subsample: int = 1,
        max_bytes: int = MAX_BYTES,
        check: bool = True,
    ) -> None:
        check_key(key)
        check_number(subsample, "subsample", least=1, whole=True)
        self.path, self.key = Path(path), key
        self.subsample, self.max_bytes, self.check = subsample, max_bytes, check
        self._forget()
        self._open()

    _dim: int | None

    @property
    def ids(self) -> list[str]:
        """Names of the videos in the file, sorted."""
        self._open()
        return sorted(self._names.values())

    @property
    def dim(self) -> int:
        """Width ``F`` of a step: :attr:`width`, or that of the first video that can be used."""
        if self.width is not None:
            return self.width
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
        """Number of steps of a video."""
        name = self._name(video_id)
        if name not in self._lengths:
            rows = int(self._dataset(name).shape[0])
            self._lengths[name] = -(-rows // self.subsample)
        return self._lengths[name]

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        """Read steps ``[start, end)`` of a video, all where not given, float32 ``[n, F]``.

        ``x`` and ``v_x`` name the same video.

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
        if self.check:
            check_values(values, name, self.path, start)
        import torch  # looking into a file needs none

        return torch.from_numpy(np.ascontiguousarray(values))

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._handle is not None:
            self._handle.close()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # A handle cannot travel to another process, and what was learnt through it may be stale.
        names = ("path", "key", "subsample", "max_bytes", "check", "width")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._handle: h5py.File | None = None
        self._pid = -1
        self._names: dict[str, str] = {}  # by their composed form
        self._lengths: dict[str, int] = {}
        self._dim = None

    def _open(self) -> h5py.File:
        if self._handle is None or self._pid != os.getpid():
            # After a fork the parent's handle is closed on this side before another is opened:
            # the library would otherwise share one file position between processes.
            self.close()
            self._handle, self._pid = open_features(self.path), os.getpid()
            names = video_names(self._handle, self.path)
            self._names = {tidy(name): name for name in names}
        return self._handle

    def _find(self, video_id: str) -> str | None:
        self._open()
        names = (self._names.get(name) for name in spellings(video_id))
        return next((name for name in names if name is not None), None)

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

    Composed (Unicode NFC): names of files and ids of tables come in either form.

    Example:
        >>> list(spellings("abc")), list(spellings("v_abc"))
        (['abc', 'v_abc'], ['v_abc', 'v_v_abc', 'abc'])
    """
    video_id = tidy(video_id)
    yield video_id
    yield f"v_{video_id}"
    if video_id.startswith("v_"):
        yield video_id[2:]


def write_features(
    path: str | Path, items: Iterable[tuple[str, ArrayLike]], *, key: str | None = None
) -> int:
    """Write a feature file that :class:`FeatureStore` reads, all or nothing.

    Each array gets a checksum and is stored as float32 in chunks of 64 steps. Items are taken one
    at a time, so a generator may extract while this writes.

    Args:
        path: The HDF5 file to write.
        items: Video id and features ``[n, F]``; one width throughout.
        key: Name of the data set inside each group; the first of :data:`KEYS` where None.

    Raises:
        FeatureError: An array is not finite, not ``[n, F]`` or of another width; an id is unusable
            or occurs twice; there is no item. Nothing is written then.
        OutputError: The file cannot be written; what was there is intact.
    """
    from relocal_pyg.moments import to_tensor  # torch: looking into a file needs none

    check_key(key)
    width, written = 0, set[str]()
    with replace_file(path, "features") as temporary, _new_file(temporary) as file:
        for video_id, array in items:
            twice = "occurs twice" if tidy(video_id) in written else None
            problem = id_problem(video_id) or twice
            if problem:
                raise FeatureError(f"the id {problem}", record=video_id or "''")
            rows = to_tensor(array, FeatureError, video_id).detach().cpu()
            if rows.ndim != 2 or 0 in rows.shape or rows.dtype == bool or rows.is_complex():
                reason = f"shape {tuple(rows.shape)} of {rows.dtype}: numbers [n, F] wanted"
                raise FeatureError(reason, record=video_id)
            values = rows.float().numpy()
            check_values(values, video_id)
            width = width or values.shape[1]
            if values.shape[1] != width:
                raise FeatureError(
                    f"has {values.shape[1]} channels, earlier videos {width}", record=video_id
                )
            with _disk_errors():
                chunks = (min(_CHUNK, len(values)), width)
                file.create_dataset(
                    f"{video_id}/{key or KEYS[0]}", data=values, chunks=chunks, fletcher32=True
                )
            written.add(tidy(video_id))
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
