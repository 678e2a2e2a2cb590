"""Making a search index on disk and adding to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import CheckpointError, FeatureError, SearchIndexError, UsageError
from relocal_pyg.models.base import Relocalizer, as_features, as_proposals
from relocal_pyg.proposals.sliding import geometric_lengths, sliding_windows
from relocal_pyg.reading import id_problem, read_json
from relocal_pyg.search.engines import engine_of, fingerprint, pooled_vectors
from relocal_pyg.search.shard_files import FORMAT, VideoEntry, write_shard
from relocal_pyg.storage import write_json

#: A shard is written when its videos take so many bytes: bounds the memory of building.
SHARD_BYTES = 128 * 2**20

Videos = Iterable[tuple[str, ArrayLike, float]]


def index_proposals(num_steps: int) -> Tensor:
    """Windows of 4 steps to half the video, each about 1.5 times the last, at thirds of a length.

    The length of a query is not known when a video is indexed.

    Args:
        num_steps: Steps of the video.

    Returns:
        ``[M, 2]`` in steps.
    """
    longest = max(4, num_steps // 2)
    return sliding_windows(num_steps, geometric_lengths(4, longest, 1.5))


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
        model: The network, or a system without training; the index serves this model alone.
        videos: ``(id, features [n, F], seconds per step)`` of each video; read once, one by one.
        proposals: From the number of steps of a video to candidates ``[M, 2]`` in steps.
        state_dtype: How the states of proposals are kept, where the model has any to keep.

    Returns:
        How many videos were added.

    Raises:
        UsageError: The folder holds an index, or an id is unusable or comes twice.
        FeatureError: Features are unusable or differ in width.
        OutputError: The folder cannot be written.
    """
    folder = Path(folder)
    if (folder / "index.json").exists():
        raise UsageError(f"{folder} holds an index: add to it, or choose another folder")
    record = {
        "format": FORMAT,
        "fingerprint": fingerprint(model),
        "model": model.title,
        "state_dtype": str(state_dtype).removeprefix("torch."),
        "channels": 0,
        "shards": [],
    }
    write_json(folder / "index.json", record)
    return add_videos(folder, model, videos, proposals=proposals)


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
    folder = Path(folder)
    record = read_index(folder, fingerprint(model))
    engine = engine_of(model, torch.float32)
    state_dtype = getattr(torch, record["state_dtype"])
    known = {name for shard in record["shards"] for name in shard["ids"]}
    entries: list[VideoEntry] = []
    added = 0

    def flush() -> None:
        name = f"shard-{len(record['shards']):05d}"
        write_shard(folder / name, entries, record["fingerprint"])
        ids = [entry.video_id for entry in entries]
        record["shards"].append({"name": name, "ids": ids})
        write_json(folder / "index.json", record)
        entries.clear()

    for video_id, array, seconds_per_step in videos:
        fault = id_problem(video_id)
        if fault is None and video_id in known:
            fault = "is in the index already"
        if fault is not None:
            raise UsageError(fault, record=video_id)
        known.add(video_id)
        features = as_features(array, video_id)
        if record["channels"] not in (0, features.shape[1]):
            raise FeatureError(
                f"has {features.shape[1]} channels, the index {record['channels']}",
                record=video_id,
            )
        record["channels"] = features.shape[1]
        windows = as_proposals(proposals(len(features)))
        states, lengths = engine.encode(features, windows)
        vectors, shifts = pooled_vectors(features, windows)
        entries.append(
            VideoEntry(
                video_id,
                float(seconds_per_step),
                features,
                features.mean(dim=0, keepdim=True),
                windows,
                lengths.int(),
                vectors.half(),
                shifts,
                states.to(state_dtype),
            )
        )
        added += 1
        if sum(entry.num_bytes for entry in entries) >= SHARD_BYTES:
            flush()
    if entries:
        flush()
    return added


def read_index(folder: Path, wanted: str) -> dict[str, Any]:
    """Read and check ``index.json`` of an index that belongs to a fingerprint.

    Raises:
        SearchIndexError: Missing, damaged, of a newer format, or made with another model.
    """
    file = folder / "index.json"
    if not file.is_file():
        raise SearchIndexError("no index here: index.json is missing", file=folder)
    try:
        record = read_json(file, CheckpointError)
    except CheckpointError as error:
        raise SearchIndexError(error.reason, file=error.file) from None
    keys = {"format", "fingerprint", "state_dtype", "channels", "shards"}
    if not isinstance(record, dict) or not keys <= set(record):
        raise SearchIndexError("is not a search index", file=file)
    if record["format"] > FORMAT:
        raise SearchIndexError(
            f"format {record['format']} is newer than this version reads ({FORMAT})", file=file
        )
    if record["state_dtype"] not in ("bfloat16", "float16", "float32"):
        raise SearchIndexError("names an unknown type of numbers", file=file)
    if record["fingerprint"] != wanted:
        raise SearchIndexError(
            "was made with another model: search with that one, or build the index anew", file=file
        )
    names = [shard["name"] for shard in record["shards"]]
    if names != [f"shard-{number:05d}" for number in range(len(names))]:
        raise SearchIndexError("names a shard that does not exist", file=file)
    return record
