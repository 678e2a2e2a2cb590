"""Making a search index on disk and adding to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.models.base import Relocalizer, as_features, as_proposals
from relocal_pyg.proposals.sliding import geometric_lengths, sliding_windows
from relocal_pyg.reading import id_problem
from relocal_pyg.search.engines import engine_of, fingerprint
from relocal_pyg.search.shard_files import VideoEntry, write_shard
from relocal_pyg.search.shard_list import ShardList

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
    if ShardList.exists(folder):
        raise UsageError(f"{folder} holds an index: add to it, or choose another folder")
    kept = str(state_dtype).removeprefix("torch.")
    ShardList(fingerprint(model), model.title, kept).save(folder)
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
    listed = ShardList.load(folder, fingerprint(model))
    engine = engine_of(model, torch.float32)
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
        fault = id_problem(video_id)
        if fault is None and video_id in known:
            fault = "is in the index already"
        if fault is not None:
            raise UsageError(fault, record=video_id)
        known.add(video_id)
        features = as_features(array, video_id)
        if listed.channels not in (0, features.shape[1]):
            raise FeatureError(
                f"has {features.shape[1]} channels, the index {listed.channels}",
                record=video_id,
            )
        listed.channels = features.shape[1]
        windows = as_proposals(proposals(len(features)))
        states, lengths = engine.encode(features, windows)
        vectors, shifts = engine.pooling.pool(features, windows)
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
        waiting += entries[-1].num_bytes
        if waiting >= SHARD_BYTES:
            flush()
            waiting = 0
    if entries:
        flush()
    return added
