"""A shard of a search index on disk: the videos added together, as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.errors import CheckpointError, SearchIndexError
from relocal_pyg.reading import read_json
from relocal_pyg.storage import replace_folder, verify_manifest, write_json

#: Raised when the layout changes; a newer one is refused.
FORMAT = 1

#: Arrays of a shard: rows of every video one after the other.
ARRAYS = ("features", "means", "proposals", "lengths", "vectors", "shifts", "states")

#: Of those, the ones with a row a video, or a step; the others have a row a proposal.
_PER_VIDEO, _PER_STEP = ("means",), ("features",)


@dataclass(frozen=True)
class VideoEntry:
    """What an index keeps of one video, as tensors.

    Attributes:
        video_id: Its name.
        seconds_per_step: Duration of a feature step.
        features: ``[n, F]``.
        means: ``[1, F]``, the mean step.
        proposals: ``[M, 2]`` in steps.
        lengths: ``[M]``, steps of each proposal that are not padding for the network.
        vectors: ``[M, F]``, pooled proposals for a first stage.
        shifts: ``[M]``, what the first stage takes off.
        states: ``[M, T, d]``, or ``[M, 0, 0]`` where states differ from query to query.
    """

    video_id: str
    seconds_per_step: float
    features: Tensor
    means: Tensor
    proposals: Tensor
    lengths: Tensor
    vectors: Tensor
    shifts: Tensor
    states: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)


def write_shard(folder: Path, entries: Sequence[VideoEntry], fingerprint: str) -> None:
    """Write a shard, all or nothing.

    Raises:
        OutputError: The folder cannot be written.
    """
    with replace_folder(folder) as temporary:
        for name in ARRAYS:
            rows = torch.cat([getattr(entry, name) for entry in entries])
            np.save(temporary / f"{name}.npy", _storable(rows), allow_pickle=False)
        record = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "ids": [entry.video_id for entry in entries],
            "seconds_per_step": [entry.seconds_per_step for entry in entries],
            "steps": [len(entry.features) for entry in entries],
            "proposals": [len(entry.proposals) for entry in entries],
        }
        write_json(temporary / "shard.json", record)


class Shard:
    """A shard opened for reading; arrays are mapped, not loaded.

    Args:
        folder: What :func:`write_shard` wrote.
        fingerprint: Of the model that asks.
        verify: Compare every file with its checksum, which reads all of it.

    Raises:
        SearchIndexError: Damaged, of a newer format, or made with another model.
    """

    def __init__(self, folder: Path, fingerprint: str, *, verify: bool = True) -> None:
        try:
            if verify:
                verify_manifest(folder)
            record = read_json(folder / "shard.json", CheckpointError)
        except CheckpointError as error:
            raise SearchIndexError(error.reason, file=error.file, record=error.record) from None
        self.folder = folder
        self._check(record, fingerprint)
        self.ids: list[str] = record["ids"]
        self.seconds_per_step: list[float] = record["seconds_per_step"]
        self.first_step = _starts(record["steps"])
        self.first_proposal = _starts(record["proposals"])
        self._arrays = {name: self._map(name) for name in ARRAYS}

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows of an array as a tensor of their own."""
        return _tensor(self._arrays[name][start:end])

    def take(self, name: str, rows: np.ndarray) -> Tensor:
        """Rows of an array, in the order asked for."""
        return _tensor(self._arrays[name][rows])

    def _check(self, record: Any, fingerprint: str) -> None:
        file = self.folder / "shard.json"
        wanted = {"ids", "seconds_per_step", "steps", "proposals", "format", "fingerprint"}
        if not isinstance(record, dict) or not wanted <= set(record):
            raise SearchIndexError("is not a shard of a search index", file=file)
        if record["format"] > FORMAT:
            raise SearchIndexError(
                f"format {record['format']} is newer than this version reads ({FORMAT})", file=file
            )
        if record["fingerprint"] != fingerprint:
            raise SearchIndexError(
                "was made with another model: search with that one, or build the index anew",
                file=file,
            )

    def _map(self, name: str) -> np.ndarray:
        file = self.folder / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError:
            try:  # an empty array cannot be mapped
                array = np.load(file, allow_pickle=False)
            except (ValueError, OSError) as error:
                raise SearchIndexError(f"cannot be read ({error})", file=file) from None
        except OSError as error:
            raise SearchIndexError(f"cannot be read ({error})", file=file) from None
        wanted = int(self.first_proposal[-1])
        if name in _PER_STEP:
            wanted = int(self.first_step[-1])
        elif name in _PER_VIDEO:
            wanted = len(self.ids)
        if len(array) != wanted:
            raise SearchIndexError(f"holds {len(array)} rows, {wanted} wanted", file=file)
        return array


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _storable(rows: Tensor) -> np.ndarray:
    """bfloat16 as its bits: numpy has no such type."""
    rows = rows.detach().cpu().contiguous()
    array: np.ndarray = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    return array


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
