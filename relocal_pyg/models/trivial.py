"""Predictors that look at no content: what every real model has to beat."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.models.base import Ranking, Relocalizer
from relocal_pyg.seeding import generator


class WholeReference(Relocalizer):
    """Answers ``[0, n)``, the whole reference.

    Example:
        >>> WholeReference().rank(torch.ones(2, 3), torch.ones(8, 3), None).moments.tolist()
        [[0.0, 8.0]]
    """

    title = "Whole reference"

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor | None,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Give the one moment ``[0, n)`` in steps; ``query`` and ``proposals`` are ignored."""
        return _single(reference, 0.0, 1.0)


class CentreHalf(Relocalizer):
    """Answers ``[n / 4, 3 n / 4)``, the middle half of the reference.

    Example:
        >>> CentreHalf().rank(torch.ones(2, 3), torch.ones(8, 3), None).moments.tolist()
        [[2.0, 6.0]]
    """

    title = "Centre half"

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor | None,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Give the one moment ``[n / 4, 3 n / 4)`` in steps; the rest is ignored."""
        return _single(reference, 0.25, 0.75)


class RandomMoment(Relocalizer):
    """Answers moments drawn uniformly from all ``n (n + 1) / 2`` whole-step ranges ``[s, e)``.

    The draw depends on the seed and on the features alone: the order in which pairs are asked
    changes nothing, and another seed gives an independent draw.

    Args:
        seed: Names the draw.
        num_moments: Draws (with replacement) in a ranking; the first is the answer, the others
            exist so that R@5 can be computed.
    """

    title = "Random moment"

    def __init__(self, seed: int = 0, num_moments: int = 10) -> None:
        self.seed = seed
        self.num_moments = num_moments

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor | None,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Draw moments; ``proposals`` are ignored. Scores fall with the order of the draws."""
        draws = _draws(self.seed, self.title, query, reference)
        boundaries = len(reference) + 1
        # Two different boundaries, uniformly: the second skips the first.
        first = draws.integers(boundaries, size=self.num_moments)
        second = draws.integers(boundaries - 1, size=self.num_moments)
        second = second + (second >= first)
        pair = np.sort(np.stack([first, second], axis=1), axis=1)
        moments = torch.from_numpy(pair).to(reference.device, torch.float32)
        return Ranking(moments, _falling(len(moments), reference))


class Chance(Relocalizer):
    """Answers a proposal drawn uniformly from those given: a matcher that knows nothing.

    This is our definition. The paper has a row of this name in Table 1 and does not define it.
    The draw depends on the seed, the features and the number of proposals alone.

    Args:
        seed: Names the draw.
    """

    title = "Chance"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Give the proposals in a uniformly random order."""
        draws = _draws(self.seed, self.title, query, reference)
        order = torch.from_numpy(draws.permutation(len(proposals))).to(proposals.device)
        return Ranking(proposals[order], _falling(len(order), reference), proposals[order])


def _single(reference: Tensor, start: float, end: float) -> Ranking:
    moment = reference.new_tensor([[start, end]]) * len(reference)
    return Ranking(moment, reference.new_ones(1))


def _falling(count: int, like: Tensor) -> Tensor:
    """Scores in (0, 1] that fall with the position."""
    return 1 - torch.arange(count, device=like.device, dtype=torch.float32) / max(count, 1)


def _draws(seed: int, name: str, query: Tensor, reference: Tensor) -> np.random.Generator:
    digest = hashlib.sha256()
    for features in (query, reference):
        array = features.detach().cpu().float().contiguous().numpy()
        digest.update(repr(array.shape).encode())
        digest.update(array.tobytes())
    return generator(seed, name, digest.hexdigest())
