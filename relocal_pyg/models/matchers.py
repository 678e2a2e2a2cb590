"""Systems without weights: the contrast matcher, and predictors that every real model must beat."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.pair_data import nearest_steps
from relocal_pyg.data.proposals import look_closer
from relocal_pyg.io.seeding import generator
from relocal_pyg.models.base import Ranking, Relocalizer, Surroundings, Wrapper, arguments
from relocal_pyg.models.similarity import (
    Rows,
    contrast_scores,
    cosine_blocks,
    motion_similarity,
    pair_centres,
    sum_of_kinds,
)


class ContrastMatcher(Relocalizer):
    """Inside minus around: :func:`contrast_scores` of :func:`step_similarity`.

    Needs no training and no choice of classes, and is the default wherever no trained model is
    given. Costs ``O(n F + M)``: no proposal is ever cut out.

    Args:
        contrast: Weight of what lies around a proposal.
        centre_query: See :func:`step_similarity`.
    """

    title = "Contrast matcher"
    by_blocks = True
    max_windows = 100_000  # a window costs next to nothing: at every step for an hour at 5 Hz

    def __init__(self, contrast: float = 0.5, *, centre_query: bool = True) -> None:
        self._config = arguments(locals())
        self.contrast, self.centre_query = contrast, centre_query

    def _rank(
        self, query: Tensor, reference: Rows, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        similarity = motion_similarity(
            query,
            reference,
            around.query_video,
            seconds_per_step=around.seconds_per_step,
            background=around.background,
            centre_query=self.centre_query,
        )
        return Ranking.sort(
            proposals, contrast_scores(similarity, proposals, self.contrast), proposals
        )

    def _explain(
        self, query: Tensor, reference: Rows, window: Tensor, around: Surroundings
    ) -> Tensor:
        """What each pair of steps adds to the score: exact, they sum to it.

        The score is linear in the similarities of the reference's steps, and each of those a sum
        over the steps of the query.
        """
        count = len(reference)
        start, end = nearest_steps(window, count)[0].tolist()
        side = max(1, round((end - start) / 2))
        shares = query.new_zeros(count)
        shares[max(start - side, 0) : end + side] = 1
        shares[start:end] = 0
        shares *= -self.contrast / shares.sum().clamp(min=1)
        shares[start:end] = 1 / (end - start)

        def cosines(clip: Tensor, long: Rows, video: Rows | None, usual: Tensor | None) -> Tensor:
            own, centre = pair_centres(clip, long, video, usual)
            rows = clip - own if self.centre_query else clip
            rows = rows / (len(rows) * rows.mean(dim=0).norm().clamp(min=1e-12))
            return torch.cat(list(cosine_blocks(rows, long, centre)), dim=1)

        known = around.query_video, around.seconds_per_step, None
        return sum_of_kinds(query, reference, *known, cosines) * shares


class CosineMatcher(Relocalizer):
    """Cosine of the query's mean and each proposal's mean, nothing centred.

    The simplest matcher there is. A window inside the action scores as well as the whole of it, so
    it says where, not how long.
    """

    title = "Cosine of means"

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        windows = nearest_steps(proposals, len(reference))
        total = functional.pad(reference.double().cumsum(dim=0), (0, 0, 1, 0))
        # A sum has the direction of its mean.
        sums = functional.normalize(total[windows[:, 1]] - total[windows[:, 0]], dim=1)
        scores = sums @ functional.normalize(query.double().mean(dim=0), dim=0)
        return Ranking.sort(proposals, scores.float(), proposals)


class DiagonalMatcher(Relocalizer):
    """Mean cosine along the diagonal of each proposal: for actions that keep order and pace.

    Query and proposal are read at the same shares of their lengths, each side centred by its own
    video as in :func:`step_similarity`. Our baseline; where order says little it is the worst.
    """

    title = "Mean along the diagonal"
    by_blocks = True

    def __init__(self, num_points: int = 24) -> None:
        self._config = arguments(locals())
        self.num_points = num_points

    def _rank(
        self, query: Tensor, reference: Rows, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        own, centre = pair_centres(query, reference, around.query_video, around.background)
        points = torch.arange(self.num_points, device=query.device)
        shares = (points + 0.5) / self.num_points
        rows = functional.normalize(query[(shares * len(query)).long()] - own, dim=1)
        table = torch.cat(list(cosine_blocks(rows, reference, centre)), dim=1)
        start, end = nearest_steps(proposals, len(reference)).unbind(dim=1)
        steps = start[:, None] + (shares * (end - start)[:, None]).long()
        return Ranking.sort(proposals, table[points, steps].mean(dim=1), proposals)


class FinerWindows(Wrapper):
    """Any model that scores windows, and finer windows around its best ones scored as well.

    Args:
        model: It ranks the proposals, and whatever else it is shown.
    """

    def __init__(self, model: Relocalizer) -> None:
        super().__init__(model)
        self.title = f"{model.title}, finer windows"

    def config(self) -> dict[str, Any]:
        """The model's kind and constructor arguments."""
        return {"model": type(self.model).__name__, **self.model.config()}

    def _rank(
        self, query: Tensor, reference: Rows, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        def score(windows: Tensor) -> Tensor:
            return self.model.rank(query, reference, windows, **vars(around)).scores_of(windows)

        ranking = self.model.rank(query, reference, proposals, **vars(around))
        return Ranking.sort(*look_closer(ranking.moments, ranking.scores, score, len(reference)))


class WholeReference(Relocalizer):
    """Answers ``[0, n)``, the whole reference.

    Example:
        >>> WholeReference().rank(torch.ones(2, 3), torch.ones(8, 3), None).moments.tolist()
        [[0.0, 8.0]]
    """

    title = "Whole reference"
    _share: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        return Ranking(reference.new_tensor([self._share]) * len(reference), reference.new_ones(1))


class CentreHalf(WholeReference):
    """Answers ``[n / 4, 3 n / 4)``, the middle half of the reference.

    Example:
        >>> CentreHalf().rank(torch.ones(2, 3), torch.ones(8, 3), None).moments.tolist()
        [[2.0, 6.0]]
    """

    title = "Centre half"
    _share = (0.25, 0.75)


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
        self._config = arguments(locals())
        self.seed, self.num_moments = seed, num_moments

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
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
    """

    title = "Chance"

    def __init__(self, seed: int = 0) -> None:
        self._config = arguments(locals())
        self.seed = seed

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        draws = _draws(self.seed, self.title, query, reference)
        order = torch.from_numpy(draws.permutation(len(proposals))).to(proposals.device)
        return Ranking(proposals[order], _falling(len(order), reference), proposals[order])


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
