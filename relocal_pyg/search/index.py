"""Many videos on disk, one query: which moments of which videos mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import CheckpointError, FeatureError, SearchIndexError, UsageError
from relocal_pyg.models.base import Relocalizer, as_features, as_proposals
from relocal_pyg.moments import clip_moments, decode_offsets, nms
from relocal_pyg.proposals.sliding import geometric_lengths, sliding_windows
from relocal_pyg.reading import id_problem, read_json
from relocal_pyg.search.engines import engine_of, fingerprint, pooled_vectors
from relocal_pyg.search.first_stage import FirstStage
from relocal_pyg.search.shard_files import FORMAT, Shard, VideoEntry, write_shard
from relocal_pyg.storage import write_json

#: A shard is written when its videos take so many bytes: bounds the memory of building.
SHARD_BYTES = 128 * 2**20

#: Encoded proposals read and scored at once.
BLOCK = 512

Videos = Iterable[tuple[str, ArrayLike, float]]
FirstStageName = Literal["scan", "faiss"]


@dataclass(frozen=True)
class Hit:
    """A moment of a video of the index.

    Attributes:
        video_id: The video.
        start: Start in seconds.
        end: End in seconds, exclusive.
        score: The model's score.
    """

    video_id: str
    start: float
    end: float
    score: float


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
    record = _read_index(folder, fingerprint(model))
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


class SearchIndex:
    """An index opened for queries.

    Args:
        folder: What :func:`build_index` wrote.
        model: The model that it was built with.
        dtype: Arithmetic per pair of a network.
        verify: Compare every file with its checksum first, which reads all of the index.

    Raises:
        SearchIndexError: No index there, damaged, of a newer format, or made with another model.
    """

    def __init__(
        self,
        folder: str | Path,
        model: Relocalizer,
        *,
        dtype: torch.dtype = torch.float32,
        verify: bool = True,
    ) -> None:
        folder = Path(folder)
        record = _read_index(folder, fingerprint(model))
        self.channels: int = record["channels"]
        self.engine = engine_of(model, dtype)
        self.shards = [
            Shard(folder / shard["name"], record["fingerprint"], verify=verify)
            for shard in record["shards"]
        ]
        self.first_stage = FirstStage(self.shards)

    def __len__(self) -> int:
        return sum(len(shard.ids) for shard in self.shards)

    def search(
        self,
        query: ArrayLike,
        top_k: int = 10,
        *,
        first_stage: FirstStageName | None = "scan",
        candidates: int = 1000,
        nms_threshold: float = 0.5,
        query_video: ArrayLike | None = None,
    ) -> list[Hit]:
        """Find the moments of all videos that mean the same as a query.

        Args:
            query: Features of the clip, ``[m, F]``.
            top_k: How many moments at most.
            first_stage: ``"scan"``: score every proposal by the training-free matcher, in one pass
                over the pooled vectors, and look at the best with the model; ``"faiss"``: find them
                with an approximate nearest-neighbour index; None: look at every proposal with the
                model.
            candidates: How many proposals the model looks at after a first stage.
            nms_threshold: Of two answers of one video with a larger tIoU only the better is given.
            query_video: Features ``[v, F]`` of the whole video around the query, where known.

        Returns:
            At most ``top_k`` hits in seconds, best first.

        Raises:
            FeatureError: The query is unusable or of another width.
            UsageError: faiss is asked for and not installed.
        """
        clip = as_features(query, "query")
        if not self.shards:
            return []
        if clip.shape[1] != self.channels:
            raise FeatureError(
                f"has {clip.shape[1]} channels, the index {self.channels}: extract both with the "
                "same backbone",
                record="query",
            )
        around = None if query_video is None else as_features(query_video, "query_video")
        if first_stage is None:
            rows = [np.arange(int(shard.first_proposal[-1])) for shard in self.shards]
        else:
            rows = self.first_stage.best(clip, candidates, around, use_faiss=first_stage == "faiss")
        parts = [
            self._score(clip, around, number, chosen)
            for number, chosen in enumerate(rows)
            if len(chosen)
        ]
        shard, video, moments, scores = (torch.cat(column) for column in zip(*parts, strict=True))
        # Far apart on one axis, moments of different videos never overlap.
        line = moments.double() + (shard * 2**20 + video)[:, None].double() * 2**24
        kept = nms(line, scores, nms_threshold)[:top_k].tolist()
        return [self._hit(int(shard[i]), int(video[i]), moments[i], float(scores[i])) for i in kept]

    def recall(
        self, queries: Sequence[ArrayLike], top_k: int = 10, **options: int | FirstStageName
    ) -> float:
        """Share of the exhaustive answers that a first stage finds; options of :meth:`search`."""
        found = wanted = 0
        for query in queries:
            exhaustive = {
                (hit.video_id, hit.start, hit.end)
                for hit in self.search(query, top_k, first_stage=None)
            }
            quick = self.search(query, top_k, **options)  # type: ignore[arg-type]
            found += len(exhaustive & {(hit.video_id, hit.start, hit.end) for hit in quick})
            wanted += len(exhaustive)
        return found / max(wanted, 1)

    def _hit(self, number: int, video: int, moment: Tensor, score: float) -> Hit:
        shard = self.shards[number]
        start, end = (moment * shard.seconds_per_step[video]).tolist()
        return Hit(shard.ids[video], start, end, score)

    def _score(
        self, query: Tensor, around: Tensor | None, number: int, rows: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shard, video, refined moments in steps, and scores of some proposals of a shard."""
        shard = self.shards[number]
        rows = np.sort(rows)
        video = np.searchsorted(shard.first_proposal, rows, side="right") - 1
        proposals = shard.take("proposals", rows)
        if self.engine.keeps_states:
            parts = [
                self.engine.score(query, shard.take("states", part), shard.take("lengths", part))
                for part in np.array_split(rows, max(1, len(rows) // BLOCK))
            ]
            scores, offsets = (torch.cat(column) for column in zip(*parts, strict=True))
            moments = decode_offsets(proposals, offsets)
            steps = torch.from_numpy(np.diff(shard.first_step)[video])
            moments = torch.minimum(moments.clamp(min=0), steps[:, None].to(moments))
        else:
            found = []
            for which in np.unique(video):
                start, end = shard.first_step[which : which + 2]
                features = shard.rows("features", start, end)
                ranking = self.engine.rank(query, features, proposals[video == which], around)
                found.append(
                    (clip_moments(ranking.moments, end - start), ranking.scores, int(which))
                )
            moments = torch.cat([moments for moments, _, _ in found])
            scores = torch.cat([scores for _, scores, _ in found])
            video = np.repeat([w for _, _, w in found], [len(s) for _, s, _ in found])
        return torch.full((len(scores),), number), torch.from_numpy(video), moments, scores


def _read_index(folder: Path, wanted: str) -> dict:
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
