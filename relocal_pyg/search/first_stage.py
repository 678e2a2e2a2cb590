"""Which proposals of an index are worth a look by the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.pair_data import nearest_steps
from relocal_pyg.errors import UsageError
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.similarity import Rows, centres, contrast_scores, inside_and_around
from relocal_pyg.search.storage import Shard

#: Videos, proposals of each, and queries that the fit looks at.
VIDEOS, PROPOSALS, QUERIES = 32, 16, 4
#: Feature values in memory at once.
VALUES = 8_000_000
#: Coefficients of :func:`terms` where a model scores no windows: those of the contrast matcher.
CONTRAST = (1.0, -0.5, *[0.0] * 7)


class FirstStage:
    """A quadratic that stands for the model's scores of every proposal of an index.

    It is one of mean similarities inside and around a proposal, and its length, fitted to the
    model's own scores of some pairs of the index; for the contrast matcher it is the score itself.
    """

    def __init__(self, shards: Sequence[Shard], model: Relocalizer, background: Tensor) -> None:
        self.shards, self.model, self.background = shards, model, background
        counts = [int(shard.first_proposal[-1]) for shard in shards]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._faiss: Any = None
        self._quadratic: Tensor | None = None

    def best(
        self, query: Tensor, count: int, query_video: Rows | None = None, *, use_faiss: bool = False
    ) -> list[np.ndarray]:
        """Rows of the best proposals, for each shard.

        ``count`` is that of all shards together; ``use_faiss`` searches approximately.

        Raises:
            UsageError: faiss is not installed.
        """
        if count >= self.first[-1]:
            rows = np.arange(self.first[-1])
        elif use_faiss:
            rows = self._search(query, query_video, count)
        else:
            rows = self._scan(query, query_video, count)
            if (most := self.model.max_videos) is not None:  # that the model compares in a search
                firsts = [shard.first_proposal[:-1] for shard in self.shards]
                firsts = [own + first for own, first in zip(firsts, self.first, strict=False)]
                video = np.searchsorted(np.concatenate(firsts), rows, side="right")
                videos, where = np.unique(video, return_index=True)
                rows = rows[np.isin(video, videos[np.argsort(where)[:most]])]
        shard = np.searchsorted(self.first, rows, side="right") - 1
        return [rows[shard == number] - self.first[number] for number in range(len(self.shards))]

    def _scan(self, query: Tensor, query_video: Rows | None, count: int) -> np.ndarray:
        """Rows of the best proposals, best first; the scores of one shard are held at a time."""
        scores, rows = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
        for shard, first in zip(self.shards, self.first, strict=False):
            own = self._scores(shard, query, query_video)
            own, place = own.topk(min(count, len(own)))
            scores, rows = torch.cat([scores, own]), torch.cat([rows, place + int(first)])
            scores, best = scores.topk(min(count, len(scores)))
            rows = rows[best]
        return rows.numpy()

    def _scores(self, shard: Shard, query: Tensor, query_video: Rows | None) -> Tensor:
        """The quadratic ``[M]`` of every proposal of a shard."""
        if self._quadratic is None:
            self._quadratic = self._fit()
        steps, means = torch.from_numpy(np.diff(shard.first_step)), shard.rows("means")
        own, usual = centres(query, means, steps, query_video, self.background)
        directions = functional.normalize(query.mean(dim=0) - own, dim=1)
        parts, size = [], max(1, VALUES // shard.channels)
        for start in range(0, int(shard.first_step[-1]), size):
            rows = shard.rows("features", start, start + size)
            places = np.arange(start, start + len(rows))
            video = torch.from_numpy(np.searchsorted(shard.first_step, places, side="right") - 1)
            rows = rows - usual[video]
            product = (
                rows @ directions[0]
                if len(directions) == 1
                else (rows * directions[video]).sum(dim=1)
            )
            parts.append(product / rows.norm(dim=1).clamp(min=1e-12))
        video = torch.from_numpy(shard.video_of_proposal)
        windows, first = shard.rows("proposals"), torch.from_numpy(shard.first_step)
        found = inside_and_around(
            torch.cat(parts), windows, first=first[:-1][video], num_steps=steps[video]
        )
        return terms(*found, windows[:, 1] - windows[:, 0]) @ self._quadratic

    def _fit(self) -> Tensor:
        """Coefficients ``[9]`` of :func:`terms` for the scores before they are squashed.

        Stretches of the index serve as queries. The same index gives the same numbers.
        """
        rng = np.random.default_rng(0)
        places = [(shard, number) for shard in self.shards for number in range(len(shard.ids))]
        videos, proposals = [], []
        for place in rng.permutation(len(places))[:VIDEOS]:
            shard, number = places[place]
            first, past = shard.first_proposal[number : number + 2]
            rows = np.sort(first + rng.permutation(past - first)[:PROPOSALS])
            videos.append(shard.video(number))
            proposals.append(shard.take("proposals", rows))
        columns, wanted = [], []
        for video, some in list(zip(videos, proposals, strict=True))[:QUERIES]:
            start, end = nearest_steps(some[rng.integers(len(some))][None], len(video))[0].tolist()
            query = video[start:end]
            rankings = self.model.rank_videos(query, videos, proposals, background=self.background)
            if any(ranking.proposals is None for ranking in rankings):
                return torch.tensor(CONTRAST, dtype=torch.float64)
            direction = functional.normalize(query.mean(dim=0) - self.background, dim=0)
            for other, ranking in zip(videos, rankings, strict=True):
                windows = ranking.proposals.cpu()  # type: ignore[union-attr]
                similarity = functional.normalize(other - self.background, dim=1) @ direction
                found = inside_and_around(similarity, windows)
                columns.append(terms(*found, windows[:, 1] - windows[:, 0]))
                wanted.append(self.model.raw_scores(ranking.scores.cpu()))
        matrix, target = torch.cat(columns), torch.cat(wanted).double()
        return torch.linalg.lstsq(matrix, target[:, None]).solution[:, 0]

    def _search(self, query: Tensor, query_video: Rows | None, count: int) -> np.ndarray:
        if self._faiss is None:
            self._faiss = self._train()
        lengths = torch.tensor([len(query)])
        own, _ = centres(query, self.background[None], lengths, query_video, self.background)
        probe = functional.normalize(query.mean(dim=0) - own, dim=1).numpy()
        rows: np.ndarray = self._faiss.search(probe, min(count, int(self.first[-1])))[1][0]
        # faiss fills up with -1 where it finds fewer.
        return rows[rows >= 0]

    def _train(self) -> Any:
        """Inverted lists of 8-bit codes of what is inside less half of what is around."""
        try:
            import faiss
        except ImportError:
            raise UsageError(
                "first_stage='faiss' needs faiss: pip install relocal_pyg[search]"
            ) from None
        total, width = int(self.first[-1]), len(self.background)
        lists = max(1, min(4096, int(total**0.5)))
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            coarse, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        share = max(1, total // (64 * lists))
        index.train(np.concatenate([vectors[::share] for vectors in self._vectors()]))
        for vectors in self._vectors():
            index.add(vectors)
        index.nprobe = max(8, lists // 8)
        return index

    def _vectors(self) -> Iterator[np.ndarray]:
        """Vectors ``[M, F]`` of each video's proposals: with a direction multiplied, scores."""
        for shard in self.shards:
            for number in range(len(shard.ids)):
                rows = functional.normalize(shard.video(number) - self.background, dim=1)
                windows = shard.take(
                    "proposals", np.arange(*shard.first_proposal[number : number + 2])
                )
                # Every channel is a row of similarities of its own.
                yield np.ascontiguousarray(contrast_scores(rows.T, windows).T.numpy())


def terms(inside: Tensor, around: Tensor, lengths: Tensor) -> Tensor:
    """Columns ``[M, 9]`` of the quadratic, float64, from means inside and around, and lengths."""
    log = lengths.double().clamp(min=1).log()
    columns = [inside, around, inside**2, around**2, inside * around]
    columns += [log, inside * log, around * log, torch.ones_like(log)]
    return torch.stack([column.double() for column in columns], dim=1)
