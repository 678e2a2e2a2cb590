"""An index of many videos, searched by a model."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.proposals import SEEDS, default_proposals, finer_windows
from relocal_pyg.errors import FeatureError, SearchIndexError, UsageError, check_number, shorten
from relocal_pyg.models.base import Relocalizer, as_features, as_rows
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.models.examples import ByExamples, Example, checked, has_rest, level_of, trace
from relocal_pyg.models.occurrences import Count, count_of, occurrences
from relocal_pyg.models.presence import judge
from relocal_pyg.models.similarity import alike_as_wholes, mean_row, on_cpu
from relocal_pyg.moments import Moment, nms, seconds_to_steps
from relocal_pyg.search.first_stage import FirstStage
from relocal_pyg.search.storage import Shard, ShardList, fingerprint, plain_model

#: Videos of up to so many lengths of a query may be nothing but its action.
WHOLE = 2.0
#: Likeness of what is one film, encoded again maybe: three cosines of .99.
COPY = 2.97
#: Proposals scored at once, about.
BLOCK = 512
#: Windows of a hit's video that its probability is made of.
GLANCE = 500

FirstStageName = Literal["scan", "faiss"]


@dataclass(frozen=True)
class Hit:
    """A moment of a video of the index.

    Attributes:
        video_id: The video.
        start: Start in seconds.
        end: End in seconds, exclusive.
        score: The model's score.
        probability: Of the moment being right, where it was asked for
            (:meth:`SearchIndex.with_probabilities`).
        presence: Of the video holding the action at all, likewise.
    """

    video_id: str
    start: float
    end: float
    score: float
    probability: float | None = None
    presence: float | None = None

    @property
    def moment(self) -> Moment:
        """Where it is in its video, and how probable."""
        return Moment(
            self.start, self.end, self.score, None, self.probability, presence=self.presence
        )


class _Found(NamedTuple):
    """Scored moments: numbers of shard and video ``[M]``, moments ``[M, 2]`` in steps, ``[M]``."""

    shard: Tensor
    video: Tensor
    moments: Tensor
    scores: Tensor

    @classmethod
    def join(cls, parts: Iterable[_Found]) -> _Found:
        """What several looks found."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))


class SearchIndex:
    """An index opened for queries.

    Args:
        folder: What :func:`relocal_pyg.search.build_index` wrote.
        model: The model that it was built with.
        verify: Compare every file with its checksum and look at every number first, which reads all
            of the index.

    Attributes:
        background: Mean step ``[F]`` of all its videos: a clip, or a video that is all action, has
            no surroundings of its own to be told apart from.
        places: The shard of each video, and its number there, by its id.

    Raises:
        SearchIndexError: No index there, damaged, of another format, or made with another model.
    """

    def __init__(self, folder: str | Path, model: Relocalizer, *, verify: bool = True) -> None:
        folder = Path(folder)
        listed = ShardList.load(folder, fingerprint(model))
        self.channels = listed.channels
        self.calibrated, self.model = model, plain_model(model)
        if isinstance(self.model, torch.nn.Module):
            self.model.eval()
        if listed.shards and self.model.in_channels not in (None, listed.channels):
            taken = self.model.in_channels
            reason = f"says that it holds {listed.channels} channels, and its model takes {taken}"
            raise SearchIndexError(reason, file=folder)
        states = (0, 0)  # (T, d) of what the model keeps of a proposal
        if listed.shards:
            one = torch.zeros(1, listed.channels), torch.tensor([[0.0, 1.0]])
            if (kept := self.model.encode(*one)) is not None:
                states = kept[0].shape[1], kept[0].shape[2]
        self.shards = [Shard(folder, one, listed, states, verify=verify) for one in listed.shards]
        self.places = {name: (s, n) for s in self.shards for n, name in enumerate(s.ids)}
        total, steps = torch.zeros(listed.channels, dtype=torch.float64), 0.0
        for shard in self.shards:
            count = torch.from_numpy(np.diff(shard.first_step)).double()
            total += count @ shard.rows("means").double()
            steps += float(count.sum())
        self.background = (total / max(steps, 1)).float()
        self.first_stage = FirstStage(self.shards, self.model, self.background)

    def __len__(self) -> int:
        return len(self.places)

    def search(
        self,
        query: ArrayLike,
        top_k: int = 10,
        *,
        first_stage: FirstStageName | None = "scan",
        candidates: int = 1000,
        nms_threshold: float = 0.5,
        lengths: tuple[float, float] = (0.0, float("inf")),
        query_video: ArrayLike | None = None,
        examples: Sequence[Example] = (),
    ) -> list[Hit]:
        """Find the moments of all videos that mean the same as a query.

        Where the network validated best with finer windows, it looks at those near answers last.
        Videos of up to :data:`WHOLE` lengths of the query share out their scores by what all of
        each shows, so that in a folder of clips the file itself is first.

        Args:
            query: Features of the clip, ``[m, F]``.
            top_k: How many moments at most.
            first_stage: ``"scan"``: score every proposal by a quadratic that stands for the model
                (:class:`relocal_pyg.search.first_stage.FirstStage`) in one pass over the features,
                and look at the best with the model; ``"faiss"``: find them with an approximate
                nearest-neighbour index; None: look at every proposal with the model.
            candidates: How many proposals the model looks at after a first stage; then it looks at
                as many others of the videos that gave the best answers.
            nms_threshold: Of two answers of one video with a larger tIoU only the better is given.
            lengths: Steps of the shortest and of the longest answers; of others there are some
                where there are none of these.
            query_video: Features ``[v, F]`` of the whole video around the query, where known.
            examples: Further examples and counter-examples; what states of proposals the index
                keeps is then not used.

        Returns:
            At most ``top_k`` hits in seconds, best first.

        Raises:
            FeatureError: The query is unusable or of another width.
            UsageError: An argument is out of range, or faiss is asked for and not installed.
        """
        check_number(top_k, "top_k", least=1, whole=True)
        check_number(candidates, "candidates", least=1, whole=True)
        check_number(nms_threshold, "nms_threshold", least=0, most=1)
        try:
            shortest, longest = map(float, lengths)
        except (TypeError, ValueError):
            shortest = longest = math.nan
        if not 0 <= shortest <= longest:
            raise UsageError(f"lengths are {shorten(lengths)}: the shortest and the longest wanted")
        if first_stage not in ("scan", "faiss", None):
            raise UsageError(f"first_stage is {first_stage!r}, 'scan', 'faiss' or None wanted")
        clip, around, examples = self._sides(query, query_video, examples)
        if not self.shards:
            return []
        given = [Example(clip, around), *examples]
        shown = [each for each in given if each.good]
        if first_stage is None:
            rows = [np.arange(int(shard.first_proposal[-1])) for shard in self.shards]
        else:
            faiss = first_stage == "faiss"
            lists = [
                self.first_stage.best(one.rows, candidates, one.video, use_faiss=faiss)
                for one in shown
            ]
            lists += [self._nearest(one.rows, top_k) for one in shown]
            rows = [np.unique(np.concatenate(parts)) for parts in zip(*lists, strict=True)]
        model = ByExamples(self.model, examples) if examples else self.model
        found = self._look(model, given[0], rows)
        best = partial(self._best, lengths=lengths, threshold=nms_threshold, top_k=top_k)
        if first_stage is not None:
            more = self._others(found, best(found), rows, candidates)
            if any(map(len, more)):
                found = _Found.join([found, self._look(model, given[0], more)])
        for shares in model.rounds:
            # Several of one place, as in one video: the best may lie near a window that is behind.
            seeds = best(found, threshold=max(nms_threshold, 0.5), top_k=SEEDS * top_k)
            found = self._look_closer(model, given[0], found, seeds, shares)
        found = self._as_wholes(given, found)
        hits = []
        for place in best(found):
            shard, number = self.shards[int(found.shard[place])], int(found.video[place])
            step, span = shard.seconds_per_step[number], found.moments[place].tolist()
            start, end = (round(each * step, 6) for each in span)
            hits.append(Hit(shard.ids[number], start, end, float(found.scores[place])))
        return hits

    def _sides(
        self, query: ArrayLike, query_video: ArrayLike | None, examples: Sequence[Example]
    ) -> tuple[Tensor, Tensor | None, tuple[Example, ...]]:
        """The query, its video and examples, as wide as the features of the index."""
        clip = as_features(query, "query")
        if self.shards and clip.shape[1] != self.channels:
            reason = f"has {clip.shape[1]} channels, the index {self.channels}: use one backbone"
            raise FeatureError(reason, record="query")
        around = None
        if query_video is not None:
            around = cast(Tensor, as_rows(query_video, "query_video", clip.shape[1]))
        return clip, around, checked([Example(clip, around), *examples])[1:]

    def video(self, video_id: str) -> tuple[Tensor, float]:
        """Features ``[n, F]`` of a video, and the seconds of a step; errors as :meth:`duration`."""
        shard, number = self._place(video_id)
        return shard.video(number), float(shard.seconds_per_step[number])

    def duration(self, video_id: str, less: int = 0) -> float:
        """Seconds of a video, less some steps at its end; ``SearchIndexError`` for one not held."""
        shard, row = self._place(video_id)
        return (int(np.diff(shard.first_step)[row]) - less) * float(shard.seconds_per_step[row])

    def _place(self, video_id: str) -> tuple[Shard, int]:
        if video_id not in self.places:
            raise SearchIndexError("is not in the index", record=video_id)
        return self.places[video_id]

    def example(self, video_id: str, start: float, end: float, good: bool) -> Example:
        """A stretch of a video, in seconds, that somebody said yes or no to.

        Raises:
            SearchIndexError: The index does not hold the video.
            UsageError: The stretch is empty, or begins outside the video.
        """
        video, step = self.video(video_id)
        if not 0 <= start < min(end, len(video) * step):
            reason = f"the stretch {start:g}-{end:g} s is not inside its {len(video) * step:g} s"
            raise UsageError(reason, record=video_id)
        first, last = seconds_to_steps([start, end], step, len(video)).tolist()
        return Example(video[first:last], video, good, alone=False)

    def occurrences(
        self,
        query: ArrayLike,
        *,
        query_video: ArrayLike | None = None,
        examples: Sequence[Example] = (),
        least: float = 0.5,
        without: Sequence[tuple[str, tuple[float, float, bool]]] = (),
    ) -> tuple[list[Hit], Count]:
        """Every occurrence in every video, most probable first, and how many there are in all.

        Arguments as of :func:`relocal_pyg.models.occurrences.occurrences`; ``without`` is by the id
        of the video, in seconds.
        """
        check_number(least, "least", least=0, most=1)
        clip, around, examples = self._sides(query, query_video, examples)
        wanted = (Example(clip, around), *examples)
        videos = [(name, *self.video(name)) for name in self.places]
        traces = [trace(wanted, video, None, self.background) for _, video, _ in videos]
        if traces and not any(map(has_rest, wanted)):
            # One level for all: each video by itself has steps that are more similar than others.
            both = level_of(torch.cat([each.similarity for each in traces]))
            traces = [replace(both, similarity=each.similarity) for each in traces]
        hits, rule = [], ""
        for (name, video, step), seen in zip(videos, traces, strict=True):
            moments, count = occurrences(
                Calibrated(self.model) if examples else self.calibrated,
                clip,
                video,
                query_video=around,
                examples=examples,
                background=self.background,
                least=0,
                without=[(a / step, b / step, c) for other, (a, b, c) in without if other == name],
                seen=seen,
            )
            rule = count.rule
            for each in moments:
                start, end = (round(edge * step, 6) for edge in (each.start, each.end))
                chance = each.probability or 0.0
                hits.append((chance, Hit(name, start, end, each.score, chance, each.presence)))
        hits.sort(key=lambda told: -told[0])
        count = count_of([chance for chance, _ in hits], least, rule)
        return [hit for _, hit in hits[: count.number]], count

    def recall(self, queries: Sequence[ArrayLike], top_k: int = 10, **options: Any) -> float:
        """Share of the exhaustive answers that a first stage finds; options of :meth:`search`."""
        found = wanted = 0
        for query in queries:
            # Where they lie, without the last bits that depend on what else was in a batch.
            quick, exhaustive = (
                {(hit.video_id, round(hit.start, 2), round(hit.end, 2)) for hit in hits}
                for stage in ({}, {"first_stage": None})
                for hits in [self.search(query, top_k, **{**options, **stage})]
            )
            found += len(exhaustive & quick)
            wanted += len(exhaustive)
        return found / max(wanted, 1)

    def _look(self, model: Relocalizer, asked: Example, rows: Sequence[np.ndarray]) -> _Found:
        """Score some proposals of each shard."""
        some = [each for each in enumerate(rows) if len(each[1])]
        return _Found.join(self._score(model, asked, *each) for each in some)

    def _look_closer(
        self,
        model: Relocalizer,
        asked: Example,
        found: _Found,
        kept: Sequence[int],
        shares: Sequence[float],
    ) -> _Found:
        """What was found, and finer windows around the moments that were kept."""
        parts, videos = [found], [(int(found.shard[i]), int(found.video[i])) for i in kept]
        for number, video in sorted(set(videos)):
            own = [i for i, place in zip(kept, videos, strict=True) if place == (number, video)]
            steps = int(np.diff(self.shards[number].first_step)[video])
            windows = finer_windows(found.moments[own], steps, shares)[0]
            if len(windows):
                owner = np.full(len(windows), video)
                parts.append(self._answer(model, asked, number, owner, windows))
        return _Found.join(parts)

    def _nearest(self, query: Tensor, count: int) -> list[np.ndarray]:
        """Rows of the short videos whose means are nearest to the clip's, such as itself."""
        mean = on_cpu(mean_row(query)) - self.background
        found: list[tuple[float, int, int]] = []
        for number, shard in enumerate(self.shards):
            short = np.flatnonzero(np.diff(shard.first_step) <= WHOLE * len(query))
            alike = functional.cosine_similarity(shard.rows("means")[short] - self.background, mean)
            found += zip(alike.tolist(), itertools.repeat(number), short.tolist(), strict=False)
        rows = [[np.empty(0, np.int64)] for _ in self.shards]
        for _, number, place in heapq.nlargest(count, found):
            rows[number].append(np.arange(*self.shards[number].first_proposal[place : place + 2]))
        return [np.concatenate(parts) for parts in rows]

    def _as_wholes(self, given: Sequence[Example], found: _Found) -> _Found:
        """What was found, with the best scores of short videos dealt out by what all of each shows.

        Short is up to :data:`WHOLE` times the query: such a clip holds little but its action. The
        mean likeness to the examples that show it counts; a copy of a counter-example comes last.
        """
        owners = torch.stack([found.shard, found.video], dim=1)
        videos, which = torch.unique(owners, dim=0, return_inverse=True)
        clips, good = [on_cpu(each.rows) for each in given], [each.good for each in given]
        likeness = torch.full((len(videos), len(clips)), -torch.inf)
        for place, (number, video) in enumerate(videos.tolist()):
            shard = self.shards[number]
            if np.diff(shard.first_step[video : video + 2]) <= WHOLE * len(clips[0]):
                rows = shard.video(video)
                told = [alike_as_wholes(clip, rows, self.background) for clip in clips]
                likeness[place] = torch.tensor(told)
        short = likeness[:, 0].isfinite().nonzero()[:, 0]
        if not len(short):
            return found
        copies, shows = likeness[short] > COPY, torch.tensor(good)
        alike = likeness[short][:, shows].mean(dim=1)
        alike[copies[:, ~shows].any(dim=1)] = -torch.inf
        alike[copies[:, shows].any(dim=1)] = torch.inf
        alike, order = alike.sort(descending=True, stable=True)
        short = short[order]
        best = found.scores.new_full((len(videos),), -torch.inf)
        best.scatter_reduce_(0, which, found.scores, "amax")
        first = best.max() + 1e-6 * best.max().abs().clamp(min=1)  # no longer video comes before it
        dealt = torch.where(alike.isposinf(), first, best[short].sort(descending=True).values)
        more = torch.zeros_like(best)
        more[short] = dealt - best[short]
        return found._replace(scores=found.scores + more[which])

    def _best(
        self, found: _Found, lengths: tuple[float, float], threshold: float, top_k: int
    ) -> list[int]:
        steps = (found.moments[:, 1] - found.moments[:, 0]).round(decimals=3)
        fits = (steps >= lengths[0]) & (steps <= lengths[1])
        some = (fits if fits.any() else steps.isfinite()).nonzero()[:, 0]
        # Far apart on one axis, moments of different videos never overlap.
        firsts = torch.tensor([0] + [len(shard.ids) for shard in self.shards]).cumsum(dim=0)
        place = (firsts[found.shard] + found.video).double() * (float(found.moments.max()) + 1)
        line = found.moments.double() + place[:, None]
        return list(some[nms(line[some], found.scores[some], threshold, limit=top_k)].tolist())

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

    def _score(self, model: Relocalizer, asked: Example, number: int, rows: np.ndarray) -> _Found:
        """Score some proposals of a shard."""
        shard, rows = self.shards[number], np.sort(rows)
        video, proposals = shard.video_of_proposal[rows], shard.take("proposals", rows)
        found, start = [], 0
        while start < len(rows):
            # Whole videos, one or more.
            end = int(np.searchsorted(video, video[min(start + BLOCK, len(rows)) - 1], "right"))
            part = video[start:end], proposals[start:end]
            if model is self.model and shard.rows("states", 0, 1).shape[1]:
                states = shard.take("states", rows[start:end])
                lengths = shard.take("lengths", rows[start:end])
                moments, scores = self.model.score_encoded(asked.rows, states, lengths, part[1])
                found.append(self._found(number, part[0], moments, scores))
            else:
                found.append(self._answer(model, asked, number, *part))
            start = end
        return _Found.join(found)

    def _answer(
        self, model: Relocalizer, asked: Example, number: int, video: np.ndarray, proposals: Tensor
    ) -> _Found:
        """Score proposals ``[M, 2]`` (steps) of a shard's videos, whose numbers are in order."""
        shard = self.shards[number]
        numbers, counts = np.unique(video, return_counts=True)
        videos = [shard.video(each) for each in numbers]
        rankings = model.rank_videos(
            asked.rows,
            videos,
            proposals.split(counts.tolist()),
            query_video=asked.video,
            background=self.background,
        )
        moments = torch.cat([ranking.moments for ranking in rankings])
        scores = torch.cat([ranking.scores for ranking in rankings])
        owners = np.repeat(numbers, [len(ranking.scores) for ranking in rankings])
        return self._found(number, owners, moments, scores)

    def _found(self, number: int, video: np.ndarray, moments: Tensor, scores: Tensor) -> _Found:
        """Moments of a shard's videos, cut to these."""
        steps = torch.from_numpy(np.diff(self.shards[number].first_step)[video, None])
        moments = moments.cpu().clamp(min=0)
        moments = torch.minimum(moments, steps.to(moments))
        shard = torch.full((len(scores),), number)
        return _Found(shard, torch.from_numpy(video), moments, scores.cpu())

    def with_probabilities(
        self,
        hits: Sequence[Hit],
        query: ArrayLike,
        query_video: ArrayLike | None = None,
        examples: Sequence[Example] = (),
    ) -> list[Hit]:
        """Hits with their probabilities; as they are where the model is not calibrated.

        The facts of a hit are those of its own video, over as many windows as a glance takes.

        Args:
            hits: Answers of :meth:`search`, in any order, which is kept.
            query: ``[m, F]``.
            query_video: ``[v, F]`` or None.
            examples: Those that they were found with.
        """
        if not isinstance(self.calibrated, Calibrated):
            return list(hits)
        clip, around, examples = self._sides(query, query_video, examples)
        # What was learned on labels is of one query's scores, not of several examples'.
        confidence = None if examples else self.calibrated.confidence
        told: dict[Hit, Hit] = {}
        for video_id in dict.fromkeys(hit.video_id for hit in hits):
            own = [hit for hit in hits if hit.video_id == video_id]
            features, step = self.video(video_id)
            spans = torch.tensor([[hit.start, hit.end] for hit in own], dtype=torch.float64) / step
            if confidence is None:
                chances, presence = judge(clip, features, spans, around, self.background)
            else:
                windows = default_proposals(len(features), len(clip), limit=GLANCE)
                known = {"query_video": around, "background": self.background}
                ranking = self.calibrated.rank(clip, features, windows, **known)
                scores = torch.tensor([hit.score for hit in own], dtype=torch.float64)
                assert ranking.probabilities is not None
                chances, presence = ranking.probabilities(spans, scores)
            for hit, chance in zip(own, chances.tolist(), strict=True):
                told[hit] = replace(hit, probability=chance, presence=presence)
        return [told[hit] for hit in hits]
