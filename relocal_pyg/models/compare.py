"""A query and a reference compared step by step: all that the pretrained matcher ever sees.

Features enter here and only similarities leave, so that a network on top takes any backbone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.pair_data import nearest_steps
from relocal_pyg.models.similarity import (
    contrast_scores,
    local_rows,
    mean_row,
    narrow,
    own_centres,
    pair_centres,
)

#: The five tables, see :func:`similarity_tables`.
TABLES = ("centred", "smoothed", "motion", "alike", "local")
#: What a window is given a number for in each table, see :meth:`Comparison.measure`.
MEASURES = ("contrast", "diagonal", "near diagonal", "path", "coverage")
#: Places along query and window at which a window's own table is looked at.
PLACES = 16
#: Numbers of :meth:`Comparison.measure` and :attr:`Comparison.kind`.
NUM_MEASURES = len(TABLES) * len(MEASURES)
NUM_KIND = 8 * len(TABLES) + 9
#: Channels of a node: mean, best and standardised mean of each table, and :func:`own_channels`.
NUM_NODE = 3 * len(TABLES) + 3
#: Channels of a node that depend on the window: inside flag, place, and each table's diagonal.
NUM_PLACED = 2 + 2 * len(TABLES)

#: Windows of the query's length that tell what chance gives on this reference, at most.
_GRID = 64
#: Standard scores are cut here: one odd value must not decide.
_CUT = 6.0
#: Windows whose tables are in memory at once.
_CHUNK = 2048
#: Channels of the narrowest rows taken as they are, and to how many narrower ones are brought.
_NARROWEST, _WIDENED = 5, 16
#: Mean cosine of order alone from which on the same is done in the same way, the fewest steps that
#: have an order, and from which difference of lengths (logarithm) on the pace is another.
_IN_ORDER, _ORDERED, _SAME_PACE = 0.5, 8, 0.15


def similarity_tables(
    query: Tensor,
    reference: Tensor,
    query_video: Tensor | None = None,
    background: Tensor | None = None,
    seconds_per_step: float | None = None,
) -> Tensor:
    r"""Similarity of every query step with every reference step, in five ways.

    * ``centred``: cosine of rows, each side centred by its own video: what all of a video looks
      like (place, camera, person) goes.
    * ``smoothed``: the same of rows averaged over a second around each, within their shot; where a
      step lasts that long, or nobody knows how long, over a quarter of the query.
    * ``motion``: cosine of the local standard deviations over such stretches, centred likewise:
      what changes, whatever it looks like.
    * ``alike``: cosine of rows as they are, corrected for chance, :math:`1 - (1 - \cos) / (1 -
      c)`: 1 for the same picture, 0 for two pictures of the reference on average (:math:`c =
      \lVert \bar r \rVert^2`), or of a library by ``background``, whatever the backbone's
      cosines.
    * ``local``: cosine of query rows less the query's mean with reference rows less their moving
      mean over the query's length: order and change only, no look at all.

    Args:
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]``, the video that the query was cut from; None for a bare clip, which
            is centred like the reference.
        background: Row ``[F]`` that both sides are centred by where nothing better is at hand:
            that of a library, for references that hold nothing but an action.
        seconds_per_step: Duration of a step of all of them, where known.

    Returns:
        ``[5, m, n]``, in the order of :data:`TABLES`.
    """
    half = 0 if seconds_per_step is None else round(0.5 / seconds_per_step)
    half = half or max(1, round(len(query) / 8))
    query, reference, query_video, background = widened(query, reference, query_video, background)

    query_centre, centre = own_centres(reference, query_video, background)
    rows, columns = query - query_centre, reference - centre
    change, changes = local_rows(rows, half, True), local_rows(columns, half, True)
    around = None
    if query_video is not None and len(query_video) > 0:
        around = local_rows(query_video, half, True)
    # Nobody knows how much a library changes: of a clip that is all action nothing is taken away.
    query_change, usual_change = pair_centres(change, changes, around)
    direction = functional.normalize(reference, dim=1)
    if background is None:
        chance = direction.mean(dim=0).square().sum()
    else:
        chance = (direction @ functional.normalize(background, dim=0)).mean().square()
    return torch.stack(
        [
            cosines(rows, columns),
            cosines(local_rows(rows, half, False), local_rows(columns, half, False)),
            cosines(change - query_change, changes - usual_change),
            (1 - (1 - cosines(query, reference)) / (1 - chance).clamp(min=0.01)).clamp(min=-3),
            cosines(query - mean_row(query), columns - _moving_mean(columns, len(query))),
        ]
    )


def widened(*sides: Tensor | None) -> tuple[Any, ...]:
    """Rows ``[n, F]`` of few channels beside those of the steps around them; others as they are.

    A step of two or three channels says next to nothing, its course does (delay embedding; Takens,
    1981). Training showed none of so few. Ends are repeated; a row ``[F]`` stands for all steps.

    Example:
        >>> widened(torch.arange(3.0)[:, None].expand(3, 4), None)[0][:, 4:16:4].tolist()
        [[0.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 2.0]]
    """
    made: list[Tensor | None] = []
    for rows in sides:
        if rows is not None and rows.shape[-1] < _NARROWEST:
            half = math.ceil((_WIDENED / rows.shape[-1] - 1) / 2)
            delay = torch.arange(-half, half + 1, device=rows.device)
            if rows.dim() == 1:
                rows = rows.repeat(len(delay))
            elif len(rows) > 0:
                step = torch.arange(len(rows), device=rows.device)[:, None] + delay
                rows = rows[step.clamp(0, len(rows) - 1)].flatten(1)
        made.append(rows)
    return tuple(made)


def own_channels(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """What a step shows without the other video: where its own video changes, moves, stands out.

    Returns:
        ``[3, n]`` of the reference ``[n, F]`` and ``[3, m]`` of the query ``[m, F]``: cosine of
        what comes before and after a step; how much rows change around it and how far it lies from
        the reference's mean, as logarithms of their ratio to the reference's average.
    """
    width = max(2, round(len(query) / 6))
    mean = mean_row(reference)
    sides = [reference - mean, query - mean]
    # In their own unit: what is too little to count does not depend on the scale of features.
    unit = torch.cat(sides).norm(dim=1).amax().clamp(min=1e-30)
    parts = []
    for rows in (side / unit for side in sides):
        average = _moving_mean(rows, width)
        step = torch.arange(len(rows), device=rows.device)
        before = average[(step - (width + 1) // 2).clamp(min=0)]
        after = average[(step + width // 2).clamp(max=len(rows) - 1)]
        change = (after - before).norm(dim=1)
        both = (before * after).sum(dim=1) / (before.norm(dim=1) * after.norm(dim=1) + 1e-6)
        parts.append((both, change, rows.norm(dim=1)))
    scales = [value.mean().clamp(min=1e-6) for value in parts[0][1:]]
    made = []
    for both, *sizes in parts:
        logs = [(v / s + 0.05).log() / 2 for v, s in zip(sizes, scales, strict=True)]
        made.append(torch.stack([both, *logs]))
    return made[0], made[1]


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines ``[m, n]`` of rows ``[m, F]`` with rows ``[n, F]``; 0 for a zero row."""
    return functional.normalize(rows, dim=1) @ functional.normalize(columns, dim=1).T


def _moving_mean(rows: Tensor, width: int) -> Tensor:
    """Mean ``[n, F]`` over ``width`` steps around each, cut at the ends."""
    count = len(rows)
    step = torch.arange(count, device=rows.device)
    first = (step - width // 2).clamp(min=0)
    past = (step - width // 2 + width).clamp(max=count)
    parts = []
    for part in narrow(rows):
        total = functional.pad(part.double().cumsum(dim=0), (0, 0, 1, 0))
        parts.append(((total[past] - total[first]) / (past - first)[:, None]).to(rows.dtype))
    return torch.cat(parts, dim=1)


class Comparison:
    """One query and one reference, compared before any window is looked at.

    Args:
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]``, or None for a bare clip.
        background: ``[F]`` or None.
        seconds_per_step: Duration of a step, or None.
        tables: Their :func:`similarity_tables`, where they are at hand.

    Attributes:
        tables: ``[5, m, n]``, of :func:`similarity_tables`.
        places: ``[5, P, n]``, the same at places spread over the query.
        near: ``[5, P, n]``, the best of neighbouring places.
        similarity: ``[5, n]``, mean similarity of each reference step to the query.
        reference_nodes: ``[n, 18]``.
        query_nodes: ``[m, 18]``.
        centre: ``[25]``, mean of each measure over windows of the query's length: what chance gives
            on this reference.
        scale: ``[25]``, their standard deviation.
        kind: ``[49]``, which kind of pair this is: how far the measures spread, how far the best
            windows stand out, and what is lost along diagonals when the query runs backwards.
    """

    def __init__(
        self,
        query: Tensor,
        reference: Tensor,
        query_video: Tensor | None = None,
        background: Tensor | None = None,
        seconds_per_step: float | None = None,
        tables: Tensor | None = None,
    ) -> None:
        sides = widened(query, reference, query_video, background)
        query, reference, query_video, background = sides
        known = query_video, background, seconds_per_step
        if tables is None:
            tables = similarity_tables(query, reference, *known)
        self.tables, (rows, columns) = tables, tables.shape[1:]
        place = (torch.arange(PLACES, device=tables.device) * 2 + 1) * rows // (2 * PLACES)
        self.places = tables.index_select(1, place)
        self.near = functional.max_pool2d(self.places, (3, 1), stride=1, padding=(1, 0))

        # Of centred rows, the similarity to the query's mean direction.
        centred = query - own_centres(reference, query_video, background)[0]
        shares = centred.norm(dim=1) / (rows * centred.mean(dim=0).norm().clamp(min=1e-12))
        means = tables.mean(dim=1)[1:]
        self.similarity = torch.cat([(shares @ tables[0])[None], means])
        own, query_own = own_channels(query, reference)
        best = tables.amax(dim=1)
        self.reference_nodes = torch.cat([self.similarity, best, _standard(self.similarity), own]).T
        back = tables.mean(dim=2)
        self.query_nodes = torch.cat([back, tables.amax(dim=2), _standard(back), query_own]).T

        # Windows of the query's length spread over the reference tell what chance gives.
        length = min(rows, columns)
        count = min(columns - length + 1, _GRID)
        start = torch.linspace(0, columns - length, count, device=query.device).round()
        grid = torch.stack([start, start + length], dim=1)
        measures = self.measure(grid)
        self.centre = measures.mean(dim=0)
        self.scale = measures.std(dim=0, correction=0).clamp(min=0.02)
        peaks = (measures.amax(dim=0) - self.centre) / self.scale
        turned = tables.index_select(1, rows - 1 - place)
        backwards = _along(turned, _columns(grid, columns)).amax(dim=1)
        diagonal = slice(1, None, len(MEASURES))
        order = (measures[:, diagonal].amax(dim=0) - backwards) / self.scale[diagonal]
        self.kind = torch.cat(
            [
                self.scale.view(len(TABLES), -1)[:, [0, 1, 3]].flatten() * 5,
                peaks.view(len(TABLES), -1)[:, [0, 1, 3]].flatten() / 3,
                order / 2,
                tables.std(dim=(1, 2), correction=0) * 3,
                _facts(query, reference, *known),
            ]
        ).clamp(-_CUT, _CUT)

    def measure(self, windows: Tensor) -> Tensor:
        """Measure windows against the query.

        For each table: inside minus around of the similarities
        (:func:`relocal_pyg.models.similarity.contrast_scores`), mean along the diagonal of the
        window's own table, the same with the best of neighbouring query places, mean along the best
        monotone path through it, and the mean over query places of the best step inside.

        Args:
            windows: ``[M, 2]`` in steps.

        Returns:
            ``[M, 25]``, the measures of one table side by side.
        """
        found = []
        for part in windows.split(_CHUNK):
            columns = _columns(part, self.tables.shape[2])
            # [5, P of the query, M, P of the window]
            own = self.places.index_select(2, columns.flatten())
            own = own.view(len(TABLES), PLACES, -1, PLACES)
            measures = [
                contrast_scores(self.similarity, part),
                own.diagonal(dim1=1, dim2=3).mean(dim=2),
                _along(self.near, columns),
                best_path(own.transpose(1, 2)),
                own.amax(dim=3).mean(dim=1),
            ]
            found.append(torch.stack(measures, dim=1).flatten(0, 1))
        return torch.cat(found, dim=1).T

    def quick(self, windows: Tensor) -> Tensor:
        """Contrast and diagonal of each table, ``[M, 10]``: for very many windows."""
        found = []
        for part in windows.split(_CHUNK):
            columns = _columns(part, self.tables.shape[2])
            both = contrast_scores(self.similarity, part), _along(self.places, columns)
            found.append(torch.stack(both, dim=1).flatten(0, 1).T)
        return torch.cat(found)

    def aligned(self, windows: Tensor) -> Tensor:
        """Windows ``[M, 2]`` moved to where they run along with the query, where that is near.

        Where the very same is repeated, or shown again, order tells to the step where it begins.
        Moved by up to a quarter of its length, a window takes the query's, or keeps it where it
        says another pace.
        """
        rows, columns = self.tables.shape[1:]
        if rows < _ORDERED:
            return windows
        length = windows[:, 1:] - windows[:, :1]
        kept = torch.where((length / rows).log().abs() < _SAME_PACE, rows, length)
        lengths = torch.stack([kept, torch.full_like(length, rows)], dim=1)  # [M, 2, 1]
        shares = torch.arange(-PLACES, PLACES + 1, device=windows.device) / (4 * PLACES)
        start = windows.mean(dim=1)[:, None, None] - lengths / 2 + length[..., None] * shares
        ends = functional.pad(lengths[..., None], (1, 0))
        tried = (start.round()[..., None] + ends).flatten(1, 2)
        # By order and by centred rows: the first alone takes other paces for the query's.
        both = self.places[[TABLES.index("local"), TABLES.index("centred")]]
        along = _along(both, _columns(tried.view(-1, 2), columns)).view(2, *tried.shape[:2])
        best = along.mean(dim=0).argmax(dim=1, keepdim=True)
        moved = nearest_steps(tried.take_along_dim(best[..., None], dim=1)[:, 0], columns)
        order = along[0].take_along_dim(best, dim=1)
        return torch.where(order >= _IN_ORDER, moved.to(windows), windows)

    def scalars(self, windows: Tensor) -> Tensor:
        """What the head is told of windows ``[M, 2]``: ``[M, 52]``.

        Measures as they are, standardised by what chance gives, and two lengths.
        """
        measures = self.measure(windows)
        standard = ((measures - self.centre) / self.scale).clamp(-_CUT, _CUT)
        length = (windows[:, 1] - windows[:, 0])[:, None]
        rows, columns = self.tables.shape[1:]
        return torch.cat([standard, measures, (length / rows).log(), length / columns], dim=1)

    def placed(self, windows: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Channels ``[M, T, 12]`` of the steps that are shown of each window.

        Args:
            windows: ``[M, 2]`` in steps.
            positions: ``[M, T]``, which steps; they may lie outside the window.
            mask: ``[M, T]``, False at padding.
        """
        length = (windows[:, 1:] - windows[:, :1]).clamp(min=1)
        share = (positions + 0.5 - windows[:, :1]) / length
        inside = (share > 0) & (share < 1) & mask
        row = (share * PLACES).floor().clamp(0, PLACES - 1).long()
        cell = (row * self.tables.shape[2] + positions).flatten()
        found = torch.cat([self.places, self.near]).flatten(1).index_select(1, cell)
        found = found.view(-1, *positions.shape).permute(1, 2, 0) * inside[..., None]
        flags = torch.stack([inside.to(found), (share - 0.5).clamp(-1, 1) * mask], dim=-1)
        return torch.cat([flags, found], dim=-1)


def _standard(values: Tensor) -> Tensor:
    """Standard scores along the last dimension, cut and halved."""
    scale = values.std(dim=-1, keepdim=True, correction=0).clamp(min=0.01)
    return ((values - values.mean(dim=-1, keepdim=True)) / scale).clamp(-_CUT, _CUT) / 2


def _facts(
    query: Tensor,
    reference: Tensor,
    query_video: Tensor | None,
    background: Tensor | None,
    seconds_per_step: float | None,
) -> Tensor:
    """Lengths, how much a query's steps differ, and which of the surroundings are known."""
    unit = functional.normalize(query - mean_row(reference), dim=1)
    together = unit.mean(dim=0).square().sum()
    change = functional.normalize(query - mean_row(query), dim=1)
    following = (change[1:] * change[:-1]).sum(dim=1).mean() if len(query) > 1 else together * 0
    video = query_video is not None and len(query_video) > 0
    lengths = query.new_tensor([len(query), len(reference)]).log()
    ratio = lengths[1:] - lengths[:1]
    fine = seconds_per_step is not None and round(0.5 / seconds_per_step) > 0
    lasts = math.log(len(query) * seconds_per_step) / 2 if fine and seconds_per_step else 0.0
    flags = query.new_tensor([float(video), float(background is not None), float(fine), lasts])
    parts = [lengths / 3 - 1, ratio / 2, flags, together[None], following[None]]
    return torch.cat(parts)


def _columns(windows: Tensor, num_steps: int) -> Tensor:
    """Reference steps ``[M, P]`` at places spread over windows ``[M, 2]``."""
    windows = nearest_steps(windows, num_steps)
    share = torch.arange(PLACES, device=windows.device) * 2 + 1
    return windows[:, :1] + share * (windows[:, 1:] - windows[:, :1]) // (2 * PLACES)


def _along(places: Tensor, columns: Tensor) -> Tensor:
    """Mean along the diagonals ``[K, M]`` of windows in tables ``[K, P, n]``."""
    cell = torch.arange(PLACES, device=places.device) * places.shape[2] + columns
    found = places.flatten(1).index_select(1, cell.flatten())
    return found.view(len(places), -1, PLACES).mean(dim=2)


def best_path(tables: Tensor) -> Tensor:
    r"""Mean ``[...]`` along the best monotone path across tables ``[..., P, P]``, corner to corner.

    The symmetric recurrence of dynamic time warping (Sakoe and Chiba, 1978): a step along the
    diagonal counts twice, so that every path weighs ``2 P`` and the mean is exact,

    .. math:: S_{ij} = \max(S_{i-1,j} + s_{ij},\; S_{i,j-1} + s_{ij},\; S_{i-1,j-1} + 2 s_{ij})
    """
    prefix = tables.cumsum(dim=-1)
    # Row 0 is reached from its first cell alone, which counts twice.
    total = prefix[..., 0, :] + tables[..., 0, :1]
    for row in range(1, tables.shape[-2]):
        gain, along = tables[..., row, :], prefix[..., row, :]
        corner = functional.pad(total[..., :-1], (1, 0), value=-torch.inf) + gain
        entry = torch.maximum(total, corner) + gain
        # Moving on along the row adds its cells: a running maximum of what entered before.
        total = (entry - along).cummax(dim=-1).values + along
    return total[..., -1] / (tables.shape[-1] + tables.shape[-2])
