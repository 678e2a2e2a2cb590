"""Which proposals of an index are worth a look by the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.errors import UsageError
from relocal_pyg.search.shard_files import Shard

#: Pooled vectors read at once by a scan.
BLOCK = 65_536


class FirstStage:
    """Scores of the training-free matcher for every proposal of an index.

    Args:
        shards: The shards of the index.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        counts = [int(shard.first_proposal[-1]) for shard in shards]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._faiss: Any = None

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
        mean = query.mean(dim=0)
        bare = query_video is None
        if query_video is not None:
            mean = mean - query_video.mean(dim=0)
        rows = (self._search if use_faiss else self._scan)(mean, bare, count)
        shard = np.searchsorted(self.first, rows, side="right") - 1
        return [rows[shard == number] - self.first[number] for number in range(len(self.shards))]

    def _scan(self, mean: Tensor, bare: bool, count: int) -> np.ndarray:
        best_scores, best_rows = torch.empty(0), torch.empty(0, dtype=torch.long)
        for number, shard in enumerate(self.shards):
            distance = (shard.rows("means", 0, len(shard.ids)) - mean).norm(dim=1)
            video = np.repeat(np.arange(len(shard.ids)), np.diff(shard.first_proposal))
            total = int(shard.first_proposal[-1])
            for start in range(0, total, BLOCK):
                end = min(start + BLOCK, total)
                scores = shard.rows("vectors", start, end).float() @ mean
                if bare:
                    scores = scores - shard.rows("shifts", start, end)
                    scores = scores / distance[video[start:end]].clamp(min=1e-12)
                rows = torch.arange(start, end) + int(self.first[number])
                best_scores = torch.cat([best_scores, scores])
                best_rows = torch.cat([best_rows, rows])
                if len(best_rows) > count:
                    best_scores, kept = best_scores.topk(count)
                    best_rows = best_rows[kept]
        return best_rows.numpy()

    def _search(self, mean: Tensor, bare: bool, count: int) -> np.ndarray:
        if self._faiss is None:
            self._faiss = self._train()
        probe = torch.cat([mean, -torch.full((1,), float(bare))])[None].numpy()
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
