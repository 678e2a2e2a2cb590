"""Predictors that look at no content: what every real model has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.io.seeding import generator
from relocal_pyg.models.base import Ranking, Relocalizer

#: Rows in memory at once: an hour of features need not be there, nor a copy of it.
_BLOCK = 512


class Blocks(Protocol):
    """Rows ``[n, F]`` taken a block at a time: a tensor, or rows kept in a file."""

    def __len__(self) -> int: ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Blocks of ``size`` rows, in order, the last one shorter."""


def step_similarity(
    query: Tensor,
    reference: Tensor | Blocks,
    query_video: Tensor | Blocks | None = None,
    *,
    centre_query: bool = True,
) -> Tensor:
    r"""Similarity of every reference step to the query, each side centred by its own video.

    .. math:: s_t = \hat r_t \cdot d, \quad \hat r_t = \mathrm{unit}(r_t - \bar r), \quad
        d = \mathrm{unit}\bigl(\mathrm{mean}_i (q_i - c)\bigr)

    with :math:`\bar r` the mean of the reference and :math:`c` the mean of the query's whole video;
    where that is unknown (a bare clip), the mean of the reference. Centring takes away what all of
    a video looks like and leaves what sets its moments apart. A zero row has similarity 0.
    Our matcher; the paper has none without training but the frame-level one.

    Args:
        query: Features of the clip, ``[m, F]``.
        reference: Features of the long video, ``[n, F]``; of :class:`Blocks` one is in memory at a
            time.
        query_video: Features of the whole video that the query was cut from, ``[l, F]``.
        centre_query: False leaves the query as it is (``c = 0``): for a clip of which the video
            holds nothing but the action, so that its own mean is the action itself.

    Returns:
        ``[n]`` values in ``[-1, 1]``, one a step.
    """
    mean = mean_row(reference)
    direction = query.mean(dim=0)
    if centre_query:
        direction = direction - (mean if query_video is None else mean_row(query_video))
    direction = functional.normalize(direction, dim=0)
    blocks = [
        functional.normalize(block - mean, dim=1) @ direction for block in reference.split(_BLOCK)
    ]
    return torch.cat(blocks)


def mean_row(rows: Tensor | Blocks) -> Tensor:
    """Mean ``[F]`` of rows ``[n, F]``, a block in memory at a time."""
    if isinstance(rows, Tensor) and len(rows) <= _BLOCK:
        return rows.mean(dim=0)
    total = torch.zeros((), dtype=torch.float64)
    for block in rows.split(_BLOCK):
        total = total.to(block.device) + block.sum(dim=0, dtype=torch.float64)
    return (total / len(rows)).to(block.dtype)


#: What the local standard deviation counts beside the smoothed row, see :func:`motion_similarity`.
MOTION = 0.5


@dataclass(frozen=True)
class LocalRows:
    """Mean or standard deviation of the steps around each, within its shot, made block by block.

    Args:
        rows: ``[n, F]``.
        half: Steps to either side that count, fewer at the ends of a shot (:func:`shot_changes`).
        deviation: The standard deviation instead of the mean.
    """

    rows: Tensor | Blocks
    half: int
    deviation: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, size: int, /) -> Iterator[Tensor]:
        """Blocks of about ``size`` rows, in order."""
        kept: Tensor | None = None
        context, left = 0, len(self.rows)
        reach = self.half + _NEAR + 1
        for block in self.rows.split(size):
            kept = block if kept is None else torch.cat([kept, block])
            left -= len(block)
            ready = len(kept) if left == 0 else len(kept) - reach
            if ready > context:
                yield self._local(kept)[context:ready]
                drop = max(ready - reach, 0)
                kept, context = kept[drop:], ready - drop

    def _local(self, rows: Tensor) -> Tensor:
        parts = torch.tensor_split(rows, shot_changes(rows).tolist())
        return torch.cat([self._around(part) for part in parts])

    def _around(self, rows: Tensor) -> Tensor:
        def mean(values: Tensor) -> Tensor:
            return functional.avg_pool1d(
                values.T[None], 2 * self.half + 1, 1, self.half, count_include_pad=False
            )[0].T

        # In float64, because a difference of squares loses digits; what is left of them where
        # nothing changes is no motion.
        double = rows.double()
        average = mean(double)
        if self.deviation:
            square = mean(double.square())
            average = (square * (1 - 1e-10) - average.square()).clamp(min=0).sqrt()
        return average.to(rows.dtype)


# Steps to either side whose changes a change of shot is compared with.
_NEAR = 3


def shot_changes(rows: Tensor) -> Tensor:
    """Steps ``[C]`` at which a new shot begins: twice as large a change as those near it.

    What is local must not reach over a cut: its jump is no motion, and ends would be blurred.

    Args:
        rows: ``[n, F]``.
    """
    if len(rows) < 2:
        return torch.zeros(0, dtype=torch.long)
    changes = (rows[1:] - rows[:-1]).norm(dim=1)
    near = functional.pad(changes, (_NEAR, _NEAR)).unfold(0, 2 * _NEAR + 1, 1).clone()
    near[:, _NEAR] = 0
    # Of the changes near it the largest may be the next cut.
    return (changes > 2 * near.topk(2, dim=1).values[:, 1]).nonzero()[:, 0] + 1


def motion_rows(
    rows: Tensor | Blocks, seconds_per_step: float | None
) -> tuple[tuple[float, Tensor | Blocks], ...]:
    """Rows that see motion: steps smoothed over a second, and how much they change meanwhile.

    Chosen on Weizmann, where it is worth .12 of recall on bare clips and .06 on cut ones; windows
    of .4 to 2 s and weights of .25 to 1 all gain. Ours, the paper has nothing like it.

    Args:
        rows: ``[n, F]``.
        seconds_per_step: Duration of a step; where it is a second or more, or None, rows stay as
            they are.

    Returns:
        What each kind of row counts, and the rows, ``[n, F]`` each.
    """
    half = 0 if seconds_per_step is None else round(0.5 / seconds_per_step)
    if half == 0:
        return ((1.0, rows),)
    shares = 1 / (1 + MOTION), MOTION / (1 + MOTION)
    return (shares[0], LocalRows(rows, half)), (shares[1], LocalRows(rows, half, deviation=True))


def motion_similarity(
    query: Tensor,
    reference: Tensor | Blocks,
    query_video: Tensor | Blocks | None = None,
    *,
    seconds_per_step: float | None = None,
    centre_query: bool = True,
) -> Tensor:
    """:func:`step_similarity` of :func:`motion_rows`: each kind of row centred by itself.

    Args:
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[l, F]`` or None.
        seconds_per_step: Of all three; None compares rows as they are.
        centre_query: See :func:`step_similarity`.

    Returns:
        ``[n]`` values in ``[-1, 1]``, one a step.
    """
    sides = [
        motion_rows(rows, seconds_per_step)
        for rows in (query, reference, query if query_video is None else query_video)
    ]
    total = torch.zeros(())
    for (share, clip), (_, long), (_, video) in zip(*sides, strict=True):
        clip = torch.cat(list(clip.split(_BLOCK)))
        around = None if query_video is None else video
        total = total + share * step_similarity(clip, long, around, centre_query=centre_query)
    return total


def nearest_steps(proposals: Tensor, num_steps: Tensor | int) -> Tensor:
    """Whole-step windows nearest to proposals, each at least one step and inside the video.

    Args:
        proposals: ``[..., M, 2]`` in steps.
        num_steps: Length of the video; a tensor ``[...]`` where it differs over leading dimensions.

    Returns:
        int64 ``[..., M, 2]``, half-open.

    Example:
        >>> nearest_steps(torch.tensor([[1.6, 4.2], [7.0, 12.0], [3.1, 3.2]]), 10).tolist()
        [[2, 4], [7, 10], [3, 4]]
    """
    last = torch.as_tensor(num_steps, device=proposals.device).unsqueeze(-1)
    start, end = torch.round(proposals).long().unbind(dim=-1)
    start = torch.minimum(start.clamp(min=0), last - 1)
    return torch.stack([start, torch.minimum(torch.maximum(end, start + 1), last)], dim=-1)


def contrast_scores(
    similarity: Tensor,
    proposals: Tensor,
    contrast: float = 0.5,
    *,
    num_steps: Tensor | None = None,
) -> Tensor:
    r"""Mean similarity inside each proposal minus a share of the mean around it.

    For a proposal ``[a, b)`` and ``L = max(1, round((b - a) / 2))``

    .. math:: \mathrm{mean}\, s_{[a, b)} - \mathrm{contrast} \cdot
        \mathrm{mean}\, s_{[a - L, a) \cup [b, b + L)}

    where "around" is one pool of both sides, clipped to the video, and 0 where it is empty. A
    window inside the action, or one that leaks out of it, has action around it or background inside
    and scores lower. Prefix sums make it ``O(n + M)``.

    Args:
        similarity: ``[..., n]``, of :func:`step_similarity`.
        proposals: ``[..., M, 2]`` in steps, moved to the :func:`nearest_steps`.
        contrast: Weight of the second term; 0 leaves the mean similarity.
        num_steps: Whole numbers ``[...]``: length of each video where ``similarity`` is padded at
            the end to a common ``n``.

    Returns:
        ``[..., M]`` scores of the dtype of ``similarity``.

    Example:
        >>> similarity = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
        >>> windows = torch.tensor([[2.0, 4.0], [2.0, 3.0], [1.0, 4.0]])
        >>> contrast_scores(similarity, windows).tolist()
        [1.0, 0.75, 0.6666666865348816]
    """
    num = similarity.shape[-1]
    lengths = torch.as_tensor(num if num_steps is None else num_steps, device=similarity.device)
    last = lengths.unsqueeze(-1)
    start, end = nearest_steps(proposals, lengths).unbind(dim=-1)
    # In float64: differences of long prefix sums lose digits, and ties should stay ties.
    total = functional.pad(similarity.double().cumsum(dim=-1), (1, 0))

    def sums(first: Tensor, past: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(first.shape[:-1], total.shape[:-1])
        source = total.expand(*shape, num + 1)
        first, past = (ends.expand(*shape, ends.shape[-1]) for ends in (first, past))
        return source.gather(-1, past) - source.gather(-1, first)

    side = torch.round((end - start) / 2).long().clamp(min=1)
    before, after = (start - side).clamp(min=0), torch.minimum(end + side, last)
    inside = sums(start, end)
    around = sums(before, after) - inside
    inside = inside / (end - start)
    around = around / ((after - before) - (end - start)).clamp(min=1)
    return (inside - contrast * around).to(similarity.dtype)


class ContrastMatcher(Relocalizer):
    """Inside minus around: :func:`contrast_scores` of :func:`step_similarity`.

    Needs no training and no choice of classes, and is the default wherever no trained model is
    given. Costs ``O(n F + M)``: no proposal is ever cut out.

    Args:
        contrast: Weight of what lies around a proposal.
        centre_query: See :func:`step_similarity`.
    """

    title = "Contrast matcher"

    def __init__(self, contrast: float = 0.5, *, centre_query: bool = True) -> None:
        self.contrast = contrast
        self.centre_query = centre_query

    def config(self) -> dict[str, float | bool]:
        """Constructor arguments: what decides its answers."""
        return {"contrast": self.contrast, "centre_query": self.centre_query}

    def rank(
        self,
        query: Tensor,
        reference: Tensor | Blocks,
        proposals: Tensor,
        *,
        query_video: Tensor | Blocks | None = None,
        seconds_per_step: float | None = None,
    ) -> Ranking:
        """Rank the proposals (in steps) by inside minus around.

        Where it is known how long a step lasts, motion counts: :func:`motion_similarity`.
        """
        similarity = motion_similarity(
            query,
            reference,
            query_video,
            seconds_per_step=seconds_per_step,
            centre_query=self.centre_query,
        )
        scores = contrast_scores(similarity, proposals, self.contrast)
        return Ranking.sort(proposals, scores, proposals)

    def explain(
        self,
        query: Tensor,
        reference: Tensor,
        moment: tuple[float, float],
        query_video: Tensor | None = None,
        seconds_per_step: float | None = None,
    ) -> Tensor:
        """What each meeting of two steps adds to the score: exact, they sum to it.

        The score is linear in the similarities of the reference's steps, and each of those a sum
        over the steps of the query.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            moment: Start and end in steps.
            query_video: ``[v, F]`` or None.
            seconds_per_step: As it was ranked with.

        Returns:
            ``[m, n]``.
        """
        count = len(reference)
        start, end = nearest_steps(torch.tensor([moment]), count)[0].tolist()
        side = max(1, round((end - start) / 2))
        shares = torch.zeros(count)
        shares[max(start - side, 0) : end + side] = 1
        shares[start:end] = 0
        shares *= -self.contrast / shares.sum().clamp(min=1)
        shares[start:end] = 1 / (end - start)
        videos = (query, reference, query if query_video is None else query_video)
        total = torch.zeros(len(query), count)
        for kinds in zip(*(motion_rows(rows, seconds_per_step) for rows in videos), strict=True):
            clip, long = (torch.cat(list(rows.split(_BLOCK))) for _, rows in kinds[:2])
            mean = mean_row(long)
            if self.centre_query:
                clip = clip - (mean if query_video is None else mean_row(kinds[2][1]))
            clip = clip / (len(clip) * clip.mean(dim=0).norm().clamp(min=1e-12))
            total += kinds[0][0] * (clip @ functional.normalize(long - mean, dim=1).T)
        return total * shares


class CosineMatcher(Relocalizer):
    """Cosine of the query's mean and each proposal's mean, nothing centred.

    The simplest matcher there is. A window inside the action scores as well as the whole of it, so
    it says where, not how long.
    """

    title = "Cosine of means"

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Rank the proposals (in steps) by cosine; ``query_video`` is ignored."""
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

    Args:
        num_points: Points along the diagonal.
    """

    title = "Mean along the diagonal"

    def __init__(self, num_points: int = 24) -> None:
        self.num_points = num_points

    def rank(
        self,
        query: Tensor,
        reference: Tensor | Blocks,
        proposals: Tensor,
        *,
        query_video: Tensor | Blocks | None = None,
    ) -> Ranking:
        """Rank the proposals (in steps), moved to the :func:`nearest_steps`."""
        mean = mean_row(reference)
        points = torch.arange(self.num_points, device=query.device)
        shares = (points + 0.5) / self.num_points
        rows = query[(shares * len(query)).long()]
        rows = rows - (mean if query_video is None else mean_row(query_video))
        rows = functional.normalize(rows, dim=1)
        table = torch.cat(
            [
                rows @ functional.normalize(block - mean, dim=1).T
                for block in reference.split(_BLOCK)
            ],
            dim=1,
        )
        start, end = nearest_steps(proposals, len(reference)).unbind(dim=1)
        steps = start[:, None] + (shares * (end - start)[:, None]).long()
        return Ranking.sort(proposals, table[points, steps].mean(dim=1), proposals)


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
