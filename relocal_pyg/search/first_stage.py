"""Which proposals of an index are worth a look by the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.errors import UsageError
from relocal_pyg.models.matchers import nearest_steps
from relocal_pyg.search.engines import Engine
from relocal_pyg.search.index_files import Shard

#: Videos, proposals of each, and queries that the fit looks at.
VIDEOS, PROPOSALS, QUERIES = 64, 16, 8


def terms(inside: Tensor, around: Tensor, lengths: Tensor) -> Tensor:
    """Columns ``[M, 9]`` of the quadratic.

    Args:
        inside: Mean similarity inside each proposal, ``[M]``.
        around: Mean similarity around it, ``[M]``.
        lengths: In steps, ``[M]``.
    """
    log = lengths.clamp(min=1).log()
    columns = [inside, around, inside**2, around**2, inside * around]
    columns += [log, inside * log, around * log, torch.ones_like(log)]
    return torch.stack(columns, dim=1)


def fit_surrogate(engine: Engine, shards: Sequence[Shard]) -> Tensor:
    """Coefficients ``[9]`` of :func:`terms` for the scores before their last tanh.

    Proposals of the index serve as queries. The same index gives the same numbers.

    Args:
        engine: The network, whose vectors hold what is inside a proposal, then what is around it.
        shards: The index.
    """
    rng = np.random.default_rng(0)
    places = [(shard, number) for shard in shards for number in range(len(shard.ids))]
    videos, proposals, vectors, means = [], [], [], []
    for place in rng.permutation(len(places))[:VIDEOS]:
        shard, number = places[place]
        first, past = shard.first_proposal[number : number + 2]
        rows = np.sort(first + rng.permutation(past - first)[:PROPOSALS])
        videos.append(shard.rows("features", *shard.first_step[number : number + 2]))
        proposals.append(shard.take("proposals", rows))
        vectors.append(shard.take("vectors", rows).float())
        means.append(shard.rows("means", number, number + 1))
    inside, around = torch.cat(vectors).chunk(2, dim=1)
    windows, known = torch.cat(proposals), torch.cat(means)
    columns, wanted = [], []
    for video, some in list(zip(videos, proposals, strict=True))[:QUERIES]:
        start, end = nearest_steps(some[rng.integers(len(some))][None], len(video))[0].tolist()
        _, scores, owners = engine.answer(video[start:end], videos, proposals, None)
        direction = engine.pooling.directions(video[start:end], None, known)[owners]
        within, beside = ((part * direction).sum(dim=1) for part in (inside, around))
        columns.append(terms(within, beside, windows[:, 1] - windows[:, 0]))
        wanted.append(scores.clamp(-1 + 1e-6, 1 - 1e-6).atanh())
    matrix, target = torch.cat(columns).double(), torch.cat(wanted).double()
    return torch.linalg.lstsq(matrix, target[:, None]).solution[:, 0].float()


#: Pooled vectors read at once by a scan.
BLOCK = 65_536


class FirstStage:
    """Scores of a matcher without a network for every proposal of an index.

    Args:
        shards: The shards of the index.
        engine: The model.
    """

    def __init__(self, shards: Sequence[Shard], engine: Engine) -> None:
        self.shards, self.engine = shards, engine
        counts = [int(shard.first_proposal[-1]) for shard in shards]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._faiss: Any = None
        self._surrogate: Tensor | None = None

    def best(
        self,
        query: Tensor,
        count: int,
        query_video: Tensor | None = None,
        *,
        use_faiss: bool = False,
    ) -> list[np.ndarray]:
        """Rows of the best proposals, for each shard.

        Args:
            query: ``[m, F]``.
            count: How many in all.
            query_video: ``[v, F]`` around the query; a bare clip is centred by each video.
            use_faiss: Search approximately instead of scanning.

        Raises:
            UsageError: faiss is not installed.
        """
        if count >= self.first[-1]:
            rows = np.arange(self.first[-1])
        else:
            rows = (self._search if use_faiss else self._scan)(query, query_video, count)
        shard = np.searchsorted(self.first, rows, side="right") - 1
        return [rows[shard == number] - self.first[number] for number in range(len(self.shards))]

    def _scan(self, query: Tensor, query_video: Tensor | None, count: int) -> np.ndarray:
        best_scores, best_rows = torch.empty(0), torch.empty(0, dtype=torch.long)
        for number, shard in enumerate(self.shards):
            means = shard.rows("means", 0, len(shard.ids))
            directions = self.engine.pooling.directions(query, query_video, means)
            video = np.repeat(np.arange(len(shard.ids)), np.diff(shard.first_proposal))
            total = int(shard.first_proposal[-1])
            for start in range(0, total, BLOCK):
                end = min(start + BLOCK, total)
                beside = directions if len(directions) == 1 else directions[video[start:end]]
                scores = self._scores(shard, start, end, beside)
                rows = torch.arange(start, end) + int(self.first[number])
                best_scores = torch.cat([best_scores, scores])
                best_rows = torch.cat([best_rows, rows])
                if len(best_rows) > count:
                    best_scores, kept = best_scores.topk(count)
                    best_rows = best_rows[kept]
        return best_rows.numpy()

    def _scores(self, shard: Shard, start: int, end: int, directions: Tensor) -> Tensor:
        """Scores of some rows in directions ``[., F]``, one for each or one for all."""
        vectors = shard.rows("vectors", start, end).float()
        if not self.engine.pooling.apart:
            return (vectors * directions).sum(dim=1)
        if self._surrogate is None:
            self._surrogate = fit_surrogate(self.engine, self.shards)
        inside, around = ((part * directions).sum(dim=1) for part in vectors.chunk(2, dim=1))
        windows = shard.rows("proposals", start, end)
        return terms(inside, around, windows[:, 1] - windows[:, 0]) @ self._surrogate

    def _search(self, query: Tensor, query_video: Tensor | None, count: int) -> np.ndarray:
        if self._faiss is None:
            self._faiss = self._train()
        means = torch.cat([shard.rows("means", 0, len(shard.ids)) for shard in self.shards])
        probe = self.engine.pooling.probe(query, query_video, means)[None].numpy()
        rows: np.ndarray = self._faiss.search(probe, min(count, int(self.first[-1])))[1][0]
        # faiss fills up with -1 where it finds fewer.
        return rows[rows >= 0]

    def _train(self) -> Any:
        """Inverted lists of 8-bit codes, filled shard by shard."""
        try:
            import faiss
        except ImportError:
            raise UsageError(
                "first_stage='faiss' needs faiss: pip install relocal_pyg[search]"
            ) from None
        total = int(self.first[-1])
        width = self._extended(self.shards[0], 0, 1).shape[1]
        lists = max(1, min(4096, int(total**0.5)))
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            coarse, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        share = max(1, total // (64 * lists))
        sample = np.concatenate(
            [self._extended(s, 0, int(s.first_proposal[-1]), share) for s in self.shards]
        )
        index.train(sample)
        for shard in self.shards:
            for start in range(0, int(shard.first_proposal[-1]), BLOCK):
                end = min(start + BLOCK, int(shard.first_proposal[-1]))
                index.add(self._extended(shard, start, end))
        index.nprobe = max(8, lists // 8)
        return index

    def _extended(self, shard: Shard, start: int, end: int, stride: int = 1) -> np.ndarray:
        """Vectors with what is taken off as one more channel, float32."""
        rows = np.arange(start, end, stride)
        vectors = shard.take("vectors", rows).float()
        extended = torch.cat([vectors, shard.take("shifts", rows)[:, None]], dim=1)
        out: np.ndarray = np.ascontiguousarray(extended.numpy())
        return out
