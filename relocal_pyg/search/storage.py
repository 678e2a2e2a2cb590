"""A search index on disk: how it is built, its shards, and the list that says which of them count.

What is read may come from anywhere: checksums show that a file was not damaged, not that it makes
sense, so every count, type, width, range and id is looked at as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.data.proposals import geometric_lengths, sliding_windows
from relocal_pyg.errors import (
    CheckpointError,
    FeatureError,
    ProposalError,
    SearchIndexError,
    UsageError,
    check_number,
)
from relocal_pyg.io.read import id_problem, read_array, read_json
from relocal_pyg.io.record import MANIFEST, sha256_file, verify_manifest
from relocal_pyg.io.write import own_folder, replace_folder, write_json
from relocal_pyg.models.base import Relocalizer, as_features, as_proposals
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.moments import clip_moments

#: Format of an index and its shards, raised when the layout changes. 3: what a first stage needs is
#: made of the features.
FORMAT = 3

#: Arrays of a shard, their dimensions and kinds: rows of every video one after the other.
ARRAYS = {
    "features": (2, "float32"),
    "means": (2, "float32"),
    "proposals": (2, "float32"),
    "lengths": (1, "int32"),
    "states": (3, None),
}
#: Of those, the ones with a row a video, or a step; the others have a row a proposal.
_PER_VIDEO, _PER_STEP = ("means",), ("features",)

#: How states may be kept: names of ``torch``, and what numpy calls them.
STATE_TYPES = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}

#: More steps or proposals of one video, or seconds of a step, are a forgery.
LARGEST = 100_000_000
MOST_CHANNELS = 1_000_000
#: Rows looked at at once.
_BLOCK = 65_536


@dataclass(frozen=True)
class VideoEntry:
    """What an index keeps of one video, as tensors.

    Attributes:
        video_id: Its name.
        seconds_per_step: Duration of a feature step.
        features: ``[n, F]``.
        means: ``[1, F]``, the mean step.
        proposals: ``[M, 2]`` in steps.
        lengths: ``[M]``, steps of each proposal that are not padding for the model.
        states: ``[M, T, d]``, or ``[M, 0, 0]`` where states differ from query to query.
    """

    video_id: str
    seconds_per_step: float
    features: Tensor
    means: Tensor
    proposals: Tensor
    lengths: Tensor
    states: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)


@dataclass(frozen=True)
class ListedShard:
    """A shard as an index lists it.

    Its folder, the SHA-256 of its manifest, which holds that of every file, and its videos.
    """

    name: str
    manifest: str
    ids: list[str]


def write_shard(folder: Path, entries: Sequence[VideoEntry], fingerprint: str) -> ListedShard:
    """Write a shard, all or nothing; what an index has to remember of it.

    Raises:
        OutputError: The folder cannot be written.
    """
    with replace_folder(folder, "shard") as temporary:
        for name in ARRAYS:
            rows = torch.cat([getattr(entry, name) for entry in entries])
            plain = rows.detach().cpu().contiguous()
            if plain.dtype == torch.bfloat16:
                plain = plain.view(torch.uint16)  # its bits: numpy has no such type
            np.save(temporary / f"{name}.npy", plain.numpy(), allow_pickle=False)
        ids = [entry.video_id for entry in entries]
        record = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "ids": ids,
            "seconds_per_step": [entry.seconds_per_step for entry in entries],
            "steps": [len(entry.features) for entry in entries],
            "proposals": [len(entry.proposals) for entry in entries],
        }
        write_json(temporary / "shard.json", record)
    return ListedShard(folder.name, sha256_file(folder / MANIFEST), ids)


class Shard:
    """A shard opened for reading; arrays are mapped, not loaded.

    Args:
        folder: Folder of the index.
        listed: What the index remembers of the shard.
        index: The list that it is from.
        states: Shape ``(T, d)`` of the states that the model keeps, ``(0, 0)`` where none are.
        verify: Compare every file with its checksum and look at every number, which reads all of
            it.

    Raises:
        SearchIndexError: Damaged, of another format, not the shard that the index lists, made with
            another model, or holding what no index holds.
    """

    def __init__(
        self,
        folder: Path,
        listed: ListedShard,
        index: ShardList,
        states: tuple[int, int] = (0, 0),
        *,
        verify: bool = True,
    ) -> None:
        folder = folder / listed.name
        try:
            manifest = sha256_file(folder / MANIFEST)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            raise SearchIndexError(reason, file=folder / MANIFEST) from None
        if manifest != listed.manifest:
            raise SearchIndexError("is not the one that the index lists", file=folder / MANIFEST)
        try:
            if verify:
                verify_manifest(folder, "shard")
        except CheckpointError as error:
            raise SearchIndexError(error.reason, file=error.file, record=error.record) from None
        record = read_json(folder / "shard.json", SearchIndexError)
        self.folder, self.channels = folder, index.channels
        self._check(record, listed.ids, index.fingerprint)
        self.ids: list[str] = record["ids"]
        self.seconds_per_step: list[float] = record["seconds_per_step"]
        self.first_step = _starts(record["steps"])
        self.first_proposal = _starts(record["proposals"])
        self._arrays = {
            name: self._map(name, index.state_dtype, {"states": states}.get(name))
            for name in ARRAYS
        }
        self._check_values(verify)

    @property
    def video_of_proposal(self) -> np.ndarray:
        """Number ``[M]`` of each proposal's video."""
        return np.repeat(np.arange(len(self.ids)), np.diff(self.first_proposal))

    def video(self, number: int) -> Tensor:
        """Features ``[n, F]`` of a video."""
        return self.rows("features", *self.first_step[number : number + 2])

    def rows(self, name: str, start: int = 0, end: int | None = None) -> Tensor:
        """Rows of an array as a tensor of their own."""
        return _tensor(self._arrays[name][start:end])

    def take(self, name: str, rows: np.ndarray) -> Tensor:
        """Rows of an array, in the order asked for."""
        return _tensor(self._arrays[name][rows])

    def _check(self, record: Any, ids: list[str], fingerprint: str) -> None:
        file = self.folder / "shard.json"
        wanted = {"ids", "seconds_per_step", "steps", "proposals", "format", "fingerprint"}
        if not isinstance(record, dict) or not wanted <= set(record):
            raise SearchIndexError("is not a shard of a search index", file=file)
        if record["format"] != FORMAT:
            reason = f"has format {record['format']!r}, this version reads {FORMAT}"
            raise SearchIndexError(reason, file=file)
        if record["fingerprint"] != fingerprint or record["ids"] != ids:
            raise SearchIndexError("is not the one that the index lists", file=file)
        for name in ("seconds_per_step", "steps", "proposals"):
            values, kinds = record[name], (int, float) if name == "seconds_per_step" else (int,)
            sound = isinstance(values, list) and len(values) == len(ids)
            if not sound or not all(type(each) in kinds and 0 < each <= LARGEST for each in values):
                reason = "is damaged: a count is out of range"
                raise SearchIndexError(reason, file=file, record=name)

    def _map(self, name: str, state_type: str, shape: tuple[int, int] | None) -> np.ndarray:
        file, (dimensions, kind) = self.folder / f"{name}.npy", ARRAYS[name]
        array = read_array(file, SearchIndexError, mapped=True)
        count = int(self.first_proposal[-1])
        if name in _PER_STEP:
            count = int(self.first_step[-1])
        elif name in _PER_VIDEO:
            count = len(self.ids)
        width = {"features": (self.channels,), "means": (self.channels,), "proposals": (2,)}
        wanted = (count, *(width.get(name, ()) if shape is None else shape))
        kind = STATE_TYPES[state_type] if kind is None else kind
        if array.ndim != dimensions or array.shape != wanted or array.dtype != np.dtype(kind):
            reason = f"holds {list(array.shape)} {array.dtype.name}, {list(wanted)} {kind} wanted"
            raise SearchIndexError(reason, file=file)
        return array

    @np.errstate(invalid="ignore")  # some kinds of NaN are announced when they are cast
    def _check_values(self, everything: bool) -> None:
        """Refuse numbers that no index holds."""
        windows, steps = self._arrays["proposals"], np.diff(self.first_step)[self.video_of_proposal]
        inside = (windows[:, 0] >= 0) & (windows[:, 0] < windows[:, 1]) & (windows[:, 1] <= steps)
        self._refuse("proposals", inside, "is no window of its video")
        if self._arrays["states"].shape[1]:
            lengths = self._arrays["lengths"]
            sound = (lengths >= 1) & (lengths <= self._arrays["states"].shape[1])
            self._refuse("lengths", sound, "is out of range")
        for name in ("means", *(("features", "states") if everything else ())):
            for start in range(0, len(self._arrays[name]), _BLOCK):
                finite = self.rows(name, start, start + _BLOCK).isfinite().flatten(1).all(dim=1)
                self._refuse(name, finite.numpy(), "is not finite", start)

    def _refuse(self, name: str, sound: np.ndarray, what: str, start: int = 0) -> None:
        if not sound.all():
            row = start + int(np.argmin(sound))
            raise SearchIndexError(f"row {row} {what}", file=self.folder / f"{name}.npy")


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


_NAME = "index.json"


@dataclass
class ShardList:
    """The shards of an index, in the order in which they were added.

    The file carries the SHA-256 of everything else in it and of the manifest of every shard, so
    that one flipped bit anywhere in an index is found.

    Attributes:
        fingerprint: Of the model that the index serves.
        model: Title of that model, for people.
        state_dtype: How the states of proposals are kept: a name of ``torch``.
        channels: Feature channels; 0 until there is a video.
        shards: The shards.
    """

    fingerprint: str
    model: str
    state_dtype: str
    channels: int = 0
    shards: list[ListedShard] = field(default_factory=list)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds an index."""
        return (folder / _NAME).exists()

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> ShardList:
        """Read the list of an index and check that it is whole and belongs to a model.

        Raises:
            SearchIndexError: Missing, damaged, of another format, or made with another model.
        """
        file = folder / _NAME
        if not file.is_file():
            raise SearchIndexError(f"no index here: {_NAME} is missing", file=folder)
        record = read_json(file, SearchIndexError)
        if not isinstance(record, dict) or type(record.get("format")) is not int:
            raise SearchIndexError("is not a search index", file=file)
        layout, told = record.pop("format"), record.pop("sha256", None)
        if layout != FORMAT:
            newer = layout > FORMAT
            age, advice = ("newer", "upgrade relocal_pyg") if newer else ("older", "build it anew")
            reason = f"format {layout} is {age} than this version reads ({FORMAT}): {advice}"
            raise SearchIndexError(reason, file=file)
        if told != _digest(record):
            raise SearchIndexError("is damaged: its SHA-256 is not the one it names", file=file)
        try:
            shards = [ListedShard(**shard) for shard in record.pop("shards")]
            made = cls(**record, shards=shards)
        except (TypeError, KeyError):
            raise SearchIndexError("is not a search index", file=file) from None
        made._check(file)
        if made.fingerprint != fingerprint:
            reason = "was made with another model: search with that one, or build the index anew"
            raise SearchIndexError(reason, file=file)
        return made

    def _check(self, file: Path) -> None:
        """Refuse types, names and ids that no index holds."""
        if not isinstance(self.state_dtype, str) or self.state_dtype not in STATE_TYPES:
            raise SearchIndexError("names an unknown type of numbers", file=file)
        if type(self.channels) is not int or not 0 <= self.channels <= MOST_CHANNELS:
            raise SearchIndexError("is out of range", file=file, record="channels")
        names = [shard.name for shard in self.shards]
        if names != [f"shard-{number:05d}" for number in range(len(names))]:
            raise SearchIndexError("names a shard that does not exist", file=file)
        seen: set[str] = set()
        for shard in self.shards:
            if not isinstance(shard.ids, list) or not shard.ids:
                raise SearchIndexError("lists no videos", file=file, record=shard.name)
            for name in shard.ids:
                fault = id_problem(name) or ("comes twice" if name in seen else None)
                if fault is not None:
                    raise SearchIndexError(f"an id {fault}", file=file, record=shard.name)
                seen.add(name)

    def save(self, folder: Path) -> None:
        """Write the list, all or nothing.

        Raises:
            OutputError: The folder cannot be written.
        """
        record = asdict(self)
        write_json(folder / _NAME, {"format": FORMAT, "sha256": _digest(record), **record})


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


#: A shard is written when its videos take so many bytes: bounds the memory of building.
SHARD_BYTES = 128 * 2**20

Videos = Iterable[tuple[str, ArrayLike, float]]


def index_proposals(num_steps: int) -> Tensor:
    """Windows ``[M, 2]`` of 4 steps to the whole video, each about 1.5 times the last.

    They begin at thirds of a length. The length of a query is not known when a video is indexed; a
    short video may be all action.
    """
    return sliding_windows(num_steps, geometric_lengths(4, max(4, num_steps), 1.5))


def build_index(
    folder: str | Path,
    model: Relocalizer,
    videos: Videos,
    *,
    proposals: Callable[[int], Tensor] = index_proposals,
    state_dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Make a search index, a shard at a time: memory does not grow with the number of videos.

    Args:
        folder: Where to write; must not hold an index.
        model: A network, or a system without training; the index serves this model alone.
        videos: ``(id, features [n, F], seconds per step)`` of each video; read once, one by one.
        proposals: From the number of steps of a video to candidates ``[M, 2]`` in steps.
        state_dtype: How the states of proposals are kept, where the model has any to keep.

    Returns:
        How many videos were added.

    Raises:
        UsageError: The folder holds an index, an argument is out of range, or an id is unusable or
            comes twice.
        FeatureError: Features are unusable or differ in width.
        ProposalError: A video has no proposal inside it.
        OutputError: The folder cannot be written.
    """
    with own_folder(folder, "index") as place:
        if ShardList.exists(place):
            raise UsageError(f"{folder} holds an index: add to it, or choose another folder")
        kept = str(state_dtype).removeprefix("torch.")
        if kept not in STATE_TYPES:
            raise UsageError(f"state_dtype is {kept}, one of {', '.join(STATE_TYPES)} wanted")
        ShardList(fingerprint(model), model.title, kept).save(place)
        return _add(place, model, videos, proposals)


def add_videos(
    folder: str | Path,
    model: Relocalizer,
    videos: Videos,
    *,
    proposals: Callable[[int], Tensor] = index_proposals,
) -> int:
    """Add videos to an index; arguments, result and errors as in :func:`build_index`.

    A shard counts once it is complete: after a kill the index holds what it held, and whole shards.

    Raises:
        SearchIndexError: No index there, damaged, or made with another model.
    """
    with own_folder(folder, "index") as place:
        return _add(place, model, videos, proposals)


def _add(
    folder: Path, model: Relocalizer, videos: Videos, proposals: Callable[[int], Tensor]
) -> int:
    model = plain_model(model)
    listed = ShardList.load(folder, fingerprint(model))
    state_dtype = getattr(torch, listed.state_dtype)
    known = {name for shard in listed.shards for name in shard.ids}
    entries: list[VideoEntry] = []
    added = waiting = 0

    def flush() -> None:
        name = f"shard-{len(listed.shards):05d}"
        listed.shards.append(write_shard(folder / name, entries, listed.fingerprint))
        listed.save(folder)
        entries.clear()

    for video_id, array, seconds_per_step in videos:
        fault = id_problem(video_id) or ("is in the index already" if video_id in known else None)
        if fault is not None:
            raise UsageError(fault, record=video_id)
        check_number(seconds_per_step, f"seconds per step of {video_id}", above=0, most=LARGEST)
        known.add(video_id)
        features = as_features(array, video_id)
        if listed.channels not in (0, features.shape[1]):
            reason = f"has {features.shape[1]} channels, the index {listed.channels}"
            raise FeatureError(reason, record=video_id)
        model.check_width(features.shape[1], video_id)
        listed.channels = features.shape[1]
        windows = clip_moments(as_proposals(proposals(len(features))), len(features))
        windows = windows[windows[:, 0] < windows[:, 1]]
        if not len(windows):
            raise ProposalError("no proposal lies inside the video", record=video_id)
        kept = model.encode(features, windows)
        if kept is None:
            kept = windows.new_zeros(len(windows), 0, 0), windows.new_zeros(len(windows))
        mean, step = features.mean(dim=0, keepdim=True), float(seconds_per_step)
        states, lengths = kept[0].to(state_dtype), kept[1].int()
        if not states.isfinite().all():
            raise FeatureError(f"its states in {state_dtype} are not finite", record=video_id)
        entries.append(VideoEntry(video_id, step, features, mean, windows, lengths, states))
        added += 1
        waiting += entries[-1].num_bytes
        if waiting >= SHARD_BYTES:
            flush()
            waiting = 0
    if entries:
        flush()
    return added


def fingerprint(model: Relocalizer) -> str:
    """SHA-256 of a model's kind, settings and weights.

    Two models with one fingerprint give one answer, so that what was stored for one serves the
    other.
    """
    model = plain_model(model)
    digest = hashlib.sha256(type(model).__name__.encode())
    digest.update(json.dumps(model.config(), sort_keys=True, default=str).encode())
    if isinstance(model, torch.nn.Module):
        for name, value in sorted(model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def plain_model(model: Relocalizer) -> Relocalizer:
    """The model itself, without its probabilities."""
    return model.model if isinstance(model, Calibrated) else model
