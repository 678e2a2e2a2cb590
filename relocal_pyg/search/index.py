"""Probabilities for the answers of an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.data.proposals import default_proposals, geometric_lengths, sliding_windows
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.io.read import id_problem
from relocal_pyg.io.write import own_folder
from relocal_pyg.models.base import Relocalizer, as_features, as_proposals
from relocal_pyg.models.refining import ROUNDS, finer_windows
from relocal_pyg.moments import Moment, decode_offsets, nms
from relocal_pyg.search.engines import engine_of, fingerprint
from relocal_pyg.search.first_stage import FirstStage
from relocal_pyg.search.index_files import Shard, ShardList, VideoEntry, write_shard

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
    with own_folder(folder, "index") as place:
        if ShardList.exists(place):
            raise UsageError(f"{folder} holds an index: add to it, or choose another folder")
        kept = str(state_dtype).removeprefix("torch.")
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


#: Encoded proposals read and scored at once.
BLOCK = 512

FirstStageName = Literal["scan", "faiss"]


@dataclass(frozen=True)
class Hit:
    """A moment of a video of the index.

    Attributes:
        video_id: The video.
        start: Start in seconds.
        end: End in seconds, exclusive.
        score: The model's score.
        probability: Of the moment being right, where it was judged
            (:func:`relocal_pyg.search.judge_hits`).
        presence: Of the video holding the action at all, where it was judged.
    """

    video_id: str
    start: float
    end: float
    score: float
    probability: float | None = None
    presence: float | None = None


@dataclass(frozen=True)
class _Found:
    """Scored moments.

    Attributes:
        shard: Number of the shard, ``[M]``.
        video: Number of the video in its shard, ``[M]``.
        moments: ``[M, 2]`` in steps.
        scores: ``[M]``.
    """

    shard: Tensor
    video: Tensor
    moments: Tensor
    scores: Tensor

    def join(self, other: _Found) -> _Found:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Found(*(torch.cat(pair) for pair in pairs))


class SearchIndex:
    """An index opened for queries.

    Args:
        folder: What :func:`relocal_pyg.search.build_index` wrote.
        model: The model that it was built with.
        dtype: Arithmetic per pair of a network.
        verify: Compare every file with its checksum first, which reads all of the index.

    Raises:
        SearchIndexError: No index there, damaged, of another format, or made with another model.
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
        listed = ShardList.load(folder, fingerprint(model))
        self.channels = listed.channels
        self.engine = engine_of(model, dtype)
        self.shards = [
            Shard(folder, shard, listed.fingerprint, verify=verify) for shard in listed.shards
        ]
        self.first_stage = FirstStage(self.shards, self.engine)

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

        Where the network validated best with finer windows, those around the answers are looked at
        last.

        Args:
            query: Features of the clip, ``[m, F]``.
            top_k: How many moments at most.
            first_stage: ``"scan"``: score every proposal by the training-free matcher, or by a
                quadratic that stands for a network that compares steps (``search.first_stage``), in
                one pass over the pooled vectors, and look at the best with the model; ``"faiss"``:
                find them with an approximate nearest-neighbour index; None: look at every proposal
                with the model.
            candidates: How many proposals the model looks at after a first stage; then it looks at
                as many others of the videos that gave the best answers.
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
        found = self._look(clip, around, rows)
        kept = self._best(found, nms_threshold, top_k)
        if first_stage is not None:
            more = self._others(found, kept, rows, candidates)
            if any(map(len, more)):
                found = found.join(self._look(clip, around, more))
                kept = self._best(found, nms_threshold, top_k)
        for shares in ROUNDS if self.engine.looks_closer else ():
            found = self._look_closer(clip, around, found, kept, shares)
            kept = self._best(found, nms_threshold, top_k)
        return [self._hit(found, place) for place in kept]

    def recall(
        self, queries: Sequence[ArrayLike], top_k: int = 10, **options: int | FirstStageName
    ) -> float:
        """Share of the exhaustive answers that a first stage finds; options of :meth:`search`."""
        found = wanted = 0
        for query in queries:
            exhaustive = _places(self.search(query, top_k, first_stage=None))
            quick = _places(self.search(query, top_k, **options))  # type: ignore[arg-type]
            found += len(exhaustive & quick)
            wanted += len(exhaustive)
        return found / max(wanted, 1)

    def _look(self, query: Tensor, around: Tensor | None, rows: Sequence[np.ndarray]) -> _Found:
        """Score some proposals of each shard with the model."""
        parts = [
            self._score(query, around, number, chosen)
            for number, chosen in enumerate(rows)
            if len(chosen)
        ]
        return _Found(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _look_closer(
        self,
        query: Tensor,
        around: Tensor | None,
        found: _Found,
        kept: Sequence[int],
        shares: Sequence[float],
    ) -> _Found:
        """What was found, and finer windows around the moments that were kept."""
        parts = []
        for number in sorted(set(found.shard[kept].tolist())):
            shard = self.shards[number]
            own = [place for place in kept if int(found.shard[place]) == number]
            windows, videos = [], []
            for video in sorted(set(found.video[own].tolist())):
                best = [place for place in own if int(found.video[place]) == video]
                steps = int(shard.first_step[video + 1] - shard.first_step[video])
                windows.append(finer_windows(found.moments[best], steps, shares)[0])
                videos.append(np.full(len(windows[-1]), video))
            everything = np.concatenate(videos), torch.cat(windows)
            if len(everything[0]):
                moments, scores, of_video = self._answer(query, around, shard, *everything)
                parts.append((torch.full((len(scores),), number), of_video, moments, scores))
        columns = zip(vars(found).values(), *parts, strict=True)
        return _Found(*(torch.cat(column) for column in columns))

    def _best(self, found: _Found, threshold: float, top_k: int) -> list[int]:
        # Far apart on one axis, moments of different videos never overlap.
        firsts = torch.tensor([0] + [len(shard.ids) for shard in self.shards]).cumsum(dim=0)
        place = (firsts[found.shard] + found.video).double() * (float(found.moments.max()) + 1)
        line = found.moments.double() + place[:, None]
        kept: list[int] = nms(line, found.scores, threshold, limit=top_k).tolist()
        return kept

    def _others(
        self, found: _Found, kept: Sequence[int], rows: Sequence[np.ndarray], limit: int
    ) -> list[np.ndarray]:
        """Rows of the best videos that were not looked at, ``limit`` or a video more at most."""
        videos = dict.fromkeys((int(found.shard[i]), int(found.video[i])) for i in kept)
        others: list[list[np.ndarray]] = [[] for _ in self.shards]
        count = 0
        for number, video in videos:
            if count >= limit:
                break
            every = np.arange(*self.shards[number].first_proposal[video : video + 2])
            others[number].append(np.setdiff1d(every, rows[number]))
            count += len(others[number][-1])
        return [np.concatenate([np.empty(0, np.int64), *parts]) for parts in others]

    def _hit(self, found: _Found, place: int) -> Hit:
        shard, video = self.shards[int(found.shard[place])], int(found.video[place])
        start, end = (found.moments[place] * shard.seconds_per_step[video]).tolist()
        return Hit(shard.ids[video], start, end, float(found.scores[place]))

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
            found, start = [], 0
            while start < len(rows):
                # Whole videos, one or more.
                end = int(np.searchsorted(video, video[min(start + BLOCK, len(rows)) - 1], "right"))
                found.append(
                    self._answer(query, around, shard, video[start:end], proposals[start:end])
                )
                start = end
            moments, scores, videos = (torch.cat(column) for column in zip(*found, strict=True))
            video = videos.numpy()
        return torch.full((len(scores),), number), torch.from_numpy(video), moments, scores

    def _answer(
        self,
        query: Tensor,
        around: Tensor | None,
        shard: Shard,
        video: np.ndarray,
        proposals: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments inside their videos, scores and videos of proposals.

        Args:
            query: ``[m, F]``.
            around: ``[v, F]`` or None.
            shard: Where the videos are.
            video: Number of each proposal's video, ``[M]``, in order.
            proposals: ``[M, 2]`` in steps.
        """
        numbers, counts = np.unique(video, return_counts=True)
        videos = [shard.rows("features", *shard.first_step[n : n + 2]) for n in numbers]
        split = proposals.split(counts.tolist())
        moments, scores, owners = self.engine.answer(query, videos, split, around)
        steps = torch.tensor([len(features) for features in videos])[owners]
        inside = torch.minimum(moments.clamp(min=0), steps[:, None].to(moments))
        return inside, scores, torch.from_numpy(numbers)[owners]


def _places(hits: Sequence[Hit]) -> set[tuple[str, float, float]]:
    """Where hits lie, without the last bits that depend on what else was in a batch."""
    return {(hit.video_id, round(hit.start, 2), round(hit.end, 2)) for hit in hits}


#: Windows of a hit's video that its probability is made of.
JUDGED_WINDOWS = 500


def judge_hits(
    hits: list[Hit],
    index: SearchIndex,
    model: Relocalizer,
    query: Tensor,
    query_video: Tensor | None = None,
) -> list[Hit]:
    """Hits with their probabilities; as they are where the model is not calibrated.

    The facts of a hit are those of its own video, over as many windows as a glance takes.

    Args:
        hits: Answers of the index, in any order, which is kept.
        index: The index.
        model: The model that it was opened with.
        query: ``[m, F]``.
        query_video: ``[v, F]`` or None.
    """
    if model.calibration is None:
        return hits
    places = {
        name: (shard, number) for shard in index.shards for number, name in enumerate(shard.ids)
    }
    judged: dict[Hit, Hit] = {}
    for video_id in dict.fromkeys(hit.video_id for hit in hits):
        shard, number = places[video_id]
        features = shard.rows("features", *shard.first_step[number : number + 2])
        windows = default_proposals(len(features), len(query), limit=JUDGED_WINDOWS)
        ranking = model.rank(query, features, windows, query_video=query_video)
        own = [hit for hit in hits if hit.video_id == video_id]
        moments = [Moment(hit.start, hit.end, hit.score) for hit in own]
        step = float(shard.seconds_per_step[number])
        found = model.judge(ranking, moments, query, features, query_video, step)
        for hit, moment in zip(own, found, strict=True):
            judged[hit] = replace(hit, probability=moment.probability, presence=moment.presence)
    return [judged[hit] for hit in hits]
