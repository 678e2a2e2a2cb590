"""What a network that compares steps mostly likes, as a quadratic of two similarities.

Such a network sees how similar the steps inside and around a proposal are to the query. Most of its
score follows from the two means and the length of the proposal; the few numbers that say how are
fitted to its scores of some pairs of an index, within a second, and score every other pair for next
to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.models.contrast import nearest_steps
from relocal_pyg.search.engines import Engine
from relocal_pyg.search.shard_files import Shard

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
