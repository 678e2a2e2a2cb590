"""Similarity of steps: the one place where rows are centred and compared.

Everything that compares steps stands on :func:`centres` and cosines of centred rows: the contrast
matcher, the network over similarities, the first stage of a search, probabilities and pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.pair_data import nearest_steps

#: Rows in memory at once: an hour of features need not be there, nor a copy of it.
BLOCK = 512


class Rows(Protocol):
    """Rows ``[n, F]`` taken a block at a time: a tensor, or rows kept in a file."""

    def __len__(self) -> int: ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Blocks of ``size`` rows, in order, the last one shorter."""


def on_cpu(rows: Any) -> Any:
    """A tensor on the CPU; rows in a file, and None, as they are."""
    return rows.cpu() if isinstance(rows, Tensor) else rows


def mean_row(rows: Rows) -> Tensor:
    """Mean ``[F]`` of rows ``[n, F]``, a block in memory at a time.

    In float64: what stands still differs from its mean by nothing, not by a rounding error that
    would pass for a direction.
    """
    sums = [(block.sum(dim=0, dtype=torch.float64), block.dtype) for block in rows.split(BLOCK)]
    return (torch.stack([total for total, _ in sums]).sum(dim=0) / len(rows)).to(sums[0][1])


def own_centres(
    reference: Rows, query_video: Rows | None = None, background: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a query and a reference are centred by where both have surroundings: their videos.

    A bare clip (``query_video`` None, or empty) is centred by the reference; both sides by the row
    of ``background`` instead, where there is one.
    """
    if background is not None:
        return background, background
    mean = mean_row(reference)
    if query_video is None or len(query_video) == 0:
        return mean, mean
    return mean_row(query_video), mean


def centres(
    query: Tensor,
    means: Tensor,
    lengths: Tensor,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""What is taken away from a query and from each reference before they are compared.

    A video's own mean :math:`\bar r`: what all of it looks like (place, camera, person) goes, what
    sets its moments apart stays. The query is centred by the video it was cut from; a bare clip,
    whose video is unknown, by the reference.

    The mean of a video that holds little but the action *is* the action, and taking it away leaves
    noise. How much of a video one action fills is at most its share :math:`m / n` of the query's
    length, so that the centre of a side moves by :math:`\lambda = \min(1, \max(0, 2 m / n - 1))`
    from the video's own mean to ``background``: not at all for a video of twice the query's length,
    all the way for one that the query covers. Without a background that is to nothing. A bare clip
    says nothing of its surroundings: where there is a background, it and the references are centred
    by that.

    Args:
        query: ``[m, F]``.
        means: Mean row ``[V, F]`` of each reference.
        lengths: Steps ``[V]`` of each reference.
        query_video: ``[v, F]``, or None (or empty) for a bare clip.
        background: Mean row ``[F]`` of a library that the videos belong to, where there is one.

    Returns:
        Centres of the query, ``[V, F]`` or ``[1, F]`` where all references share one, and of the
        references, ``[V, F]``.
    """
    if query_video is not None and len(query_video) == 0:
        query_video = None
    if background is not None and query_video is None:
        both = background.to(means)[None]
        return both, both.expand_as(means)
    goal = torch.zeros_like(means[0]) if background is None else background.to(means)
    if query_video is not None:
        lengths = torch.cat([lengths, lengths.new_tensor([len(query_video)])])
    share = (2 * len(query) / lengths.double() - 1).clamp(0, 1).to(means)[:, None]
    reference = torch.lerp(means, goal.expand_as(means), share[: len(means)])
    if query_video is None:
        return reference, reference
    own = mean_row(query_video).to(means)[None]
    return torch.lerp(own, goal[None], share[len(means) :]), reference


def cosine_blocks(rows: Tensor, reference: Rows, centre: Tensor) -> Iterator[Tensor]:
    """Inner products ``[k, b]`` of rows ``[k, F]`` with unit centred steps, a block at a time.

    The rows are of unit length for cosines. A step that is the ``centre`` ``[F]`` has cosine 0.
    """
    for block in reference.split(BLOCK):
        yield rows @ functional.normalize(block.to(rows) - centre, dim=1).T


def alike_as_wholes(query: Tensor, video: Tensor, background: Tensor) -> float:
    """How alike a clip and a whole video are, where both hold nothing but an action: at most 3.

    The sum of three cosines: of the mean rows less that of the library, what all of it looks like;
    and, less each one's own mean, of each step of either and the step of the other that is nearest,
    on average: what goes on, whoever does it and wherever.

    Args:
        query: ``[m, F]``.
        video: ``[n, F]``.
        background: Mean row ``[F]`` of the library.
    """
    means = torch.stack([mean_row(query), mean_row(video)])
    looks = functional.cosine_similarity(means[0] - background, means[1] - background, dim=0)
    own = functional.normalize(query - means[0], dim=1)
    nearest, total = own.new_full((len(own),), -torch.inf), 0.0
    for table in cosine_blocks(own, video, means[1]):
        nearest = torch.maximum(nearest, table.amax(dim=1))
        total += float(table.amax(dim=0).sum())
    return float(looks + nearest.mean()) + total / len(video)


def best_cosines(rows: Tensor, reference: Rows, centre: Tensor) -> Tensor:
    """The largest of the products of :func:`cosine_blocks` at each step, ``[n]``."""
    # Kept in one piece: many small ones between the blocks would hold on to the memory of those.
    found, start = rows.new_empty(len(reference)), 0
    for block in cosine_blocks(rows, reference, centre):
        found[start : start + block.shape[1]] = block.amax(dim=0)
        start += block.shape[1]
    return found


def pair_centres(
    query: Tensor,
    reference: Rows,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`centres` ``[F]`` of a query and of one reference."""
    lengths = torch.tensor([len(reference)], device=query.device)
    both = centres(query, mean_row(reference).to(query)[None], lengths, query_video, background)
    return both[0][0], both[1][0]


def step_similarity(
    query: Tensor,
    reference: Rows,
    query_video: Rows | None = None,
    *,
    background: Tensor | None = None,
    centre_query: bool = True,
) -> Tensor:
    r"""Similarity of every reference step to the query, each side centred by :func:`centres`.

    .. math:: s_t = \mathrm{unit}(r_t - c_r) \cdot d, \quad
        d = \mathrm{unit}\bigl(\mathrm{mean}_i (q_i - c_q)\bigr)

    Our matcher; the paper has none without training but the frame-level one.

    Args:
        query: Features of the clip, ``[m, F]``.
        reference: Features of the long video, ``[n, F]``; of rows in a file a block is in memory at
            a time.
        query_video: Features of the whole video that the query was cut from, ``[v, F]``.
        background: Mean row ``[F]`` of a library, see :func:`centres`.
        centre_query: False leaves the query as it is (:math:`c_q = 0`): for a clip of which the
            video holds nothing but the action, so that its own mean is the action itself.

    Returns:
        ``[n]`` values in ``[-1, 1]``, one a step.
    """
    query_centre, centre = pair_centres(query, reference, query_video, background)
    direction = mean_row(query) - (query_centre if centre_query else 0)
    direction = functional.normalize(direction, dim=0)
    return best_cosines(direction[None], reference, centre)


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

    rows: Rows
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
                yield local_rows(kept, self.half, self.deviation)[context:ready]
                drop = max(ready - reach, 0)
                kept, context = kept[drop:], ready - drop


def narrow(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows ``[n, F]`` by some channels at a time, so that copies in float64 take 16 MB at most."""
    return rows.split(max(1, min(2048, 2**21 // len(rows))), dim=1)


# Steps to either side whose changes a change of shot is compared with.
_NEAR = 3


def local_rows(rows: Tensor, half: int, deviation: bool) -> Tensor:
    """:class:`LocalRows` of rows ``[n, F]`` that are in memory, all at once."""
    shots = []
    for shot in torch.tensor_split(rows, shot_changes(rows).tolist()):
        parts = []
        for part in narrow(shot):
            # In float64, because a difference of squares loses digits; what is left of them where
            # nothing changes is no motion.
            double = part.double().T
            values = torch.stack([double, double.square()] if deviation else [double])
            size = 2 * half + 1
            mean = functional.avg_pool1d(values, size, 1, half, count_include_pad=False)
            if deviation:
                mean = (mean[1:] * (1 - 1e-10) - mean[:1].square()).clamp(min=0).sqrt()
            parts.append(mean[0].T.to(rows.dtype))
        shots.append(torch.cat(parts, dim=1))
    return torch.cat(shots)


def shot_changes(rows: Tensor) -> Tensor:
    """Steps ``[C]`` of rows ``[n, F]`` at which a new shot begins: twice the change of those near.

    What is local must not reach over a cut: its jump is no motion, and ends would be blurred.
    """
    if len(rows) < 2:
        return torch.zeros(0, dtype=torch.long)
    changes = (rows[1:] - rows[:-1]).norm(dim=1)
    near = functional.pad(changes, (_NEAR, _NEAR)).unfold(0, 2 * _NEAR + 1, 1).clone()
    near[:, _NEAR] = 0
    # Of the changes near it the largest may be the next cut.
    return (changes > 2 * near.topk(2, dim=1).values[:, 1]).nonzero()[:, 0] + 1


def motion_rows(rows: Rows, seconds_per_step: float | None) -> tuple[tuple[float, Rows], ...]:
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
    reference: Rows,
    query_video: Rows | None = None,
    *,
    seconds_per_step: float | None = None,
    background: Tensor | None = None,
    centre_query: bool = True,
) -> Tensor:
    """:func:`step_similarity` of :func:`motion_rows`: each centred by itself, ``[n]``.

    Arguments as there; ``seconds_per_step`` is that of all three, and None compares rows as they
    are. Nobody knows how much the steps of a library, ``background``, change.
    """
    return sum_of_kinds(
        query,
        reference,
        query_video,
        seconds_per_step,
        background,
        lambda clip, long, video, usual: step_similarity(
            clip, long, video, background=usual, centre_query=centre_query
        ),
    )


def sum_of_kinds(
    query: Tensor,
    reference: Rows,
    query_video: Rows | None,
    seconds_per_step: float | None,
    background: Tensor | None,
    compared: Callable[[Tensor, Rows, Rows | None, Tensor | None], Tensor],
) -> Tensor:
    """What ``compared`` gives of each kind of :func:`motion_rows`, by the share that it counts."""
    sides = [
        motion_rows(rows, seconds_per_step)
        for rows in (query, reference, query if query_video is None else query_video)
    ]
    total = query.new_zeros(())
    for number, ((share, clip), (_, long), (_, video)) in enumerate(zip(*sides, strict=True)):
        whole = torch.cat(list(clip.split(BLOCK)))
        around, usual = None if query_video is None else video, background if number == 0 else None
        total = total + share * compared(whole, long, around, usual)
    return total


def contrast_scores(similarity: Tensor, windows: Tensor, contrast: float = 0.5) -> Tensor:
    r"""Mean similarity inside each window minus a share of the mean around it.

    For a window ``[a, b)`` and ``L = max(1, round((b - a) / 2))``

    .. math:: \mathrm{mean}\, s_{[a, b)} - \mathrm{contrast} \cdot
        \mathrm{mean}\, s_{[a - L, a) \cup [b, b + L)}

    where "around" is one pool of both sides, clipped to the video, and 0 where it is empty. A
    window inside the action, or one that leaks out of it, has action around it or background inside
    and scores lower. Prefix sums make it ``O(n + M)``.

    Args:
        similarity: ``[..., n]``, of :func:`step_similarity`.
        windows: ``[M, 2]`` in steps, moved to the :func:`nearest_steps`.
        contrast: Weight of the second term; 0 leaves the mean similarity.

    Returns:
        ``[..., M]`` scores of the dtype of ``similarity``.

    Example:
        >>> similarity = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
        >>> windows = torch.tensor([[2.0, 4.0], [2.0, 3.0], [1.0, 4.0]])
        >>> contrast_scores(similarity, windows).tolist()
        [1.0, 0.75, 0.6666666865348816]
    """
    inside, around = inside_and_around(similarity, windows)
    return (inside - contrast * around).to(similarity.dtype)


def inside_and_around(
    similarity: Tensor,
    windows: Tensor,
    *,
    first: Tensor | int = 0,
    num_steps: Tensor | int | None = None,
) -> tuple[Tensor, Tensor]:
    """The two means of :func:`contrast_scores`, float64 ``[..., M]`` each.

    Args:
        similarity: ``[..., n]``; several videos may stand one after the other.
        windows: ``[M, 2]`` in steps of their own video.
        first: Where the video of each window begins, ``[M]``.
        num_steps: Steps of the video of each window, ``[M]``; all of ``n`` where None.
    """
    last = torch.as_tensor(
        similarity.shape[-1] if num_steps is None else num_steps, device=similarity.device
    )
    start, end = nearest_steps(windows, last).unbind(dim=-1)
    # In float64: differences of long prefix sums lose digits, and ties should stay ties.
    total = functional.pad(similarity.double().cumsum(dim=-1), (1, 0))
    side = torch.round((end - start) / 2).long().clamp(min=1)
    before, after = (start - side).clamp(min=0), torch.minimum(end + side, last)
    inside = total[..., first + end] - total[..., first + start]
    around = total[..., first + after] - total[..., first + before] - inside
    length = end - start
    return inside / length, around / ((after - before) - length).clamp(min=1)


def matching_statistics(
    query: Tensor,
    reference: Rows,
    moments: Tensor,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> Tensor:
    """How well steps match inside and outside moments: means of best cosines of centred steps.

    Arguments as of :func:`step_similarity`; moments ``[A, 2]`` in steps.

    Returns:
        ``[A, 4]``: over query steps the best inside the moment; over the moment's steps the best in
        the query; the same two for what is outside, NaN where nothing is.
    """
    query_centre, centre = pair_centres(query, reference, query_video, background)
    rows, count = functional.normalize(query - query_centre, dim=1), len(reference)
    start = moments[:, :1].round().clamp(0, count - 1)
    end = torch.maximum(moments[:, 1:].round(), start + 1)
    steps = torch.arange(count, device=moments.device)
    inside = (steps >= start) & (steps < end)
    sides = torch.stack([inside, ~inside], dim=1)
    found = rows.new_full((*sides.shape[:2], len(rows)), -torch.inf)
    match, first = rows.new_empty(count), 0
    for table in cosine_blocks(rows, reference, centre):
        match[first : first + table.shape[1]] = table.amax(dim=0)
        part = sides[..., first : first + table.shape[1]]
        first += table.shape[1]
        # One after the other: tables of all answers at once would take gigabytes.
        best = [table.masked_fill(~side[:, None], -torch.inf).amax(dim=2) for side in part]
        found = torch.maximum(found, torch.stack(best))
    share = sides.to(rows)
    back = (share @ match) / share.sum(dim=2)
    forth = found.mean(dim=2)
    forth = torch.where(forth.isinf(), torch.nan, forth)
    return torch.stack([forth, back], dim=2).flatten(1)
