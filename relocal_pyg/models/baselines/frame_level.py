"""The frame-level baseline: the best diagonal block of the table of step distances."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.errors import UsageError, check_number
from relocal_pyg.models.base import Ranking, Relocalizer, Surroundings, arguments

Variant = Literal["average", "chou", "block"]


class Paths(NamedTuple):
    """Alignment paths, one for each reference step that a path can end at (or one a window).

    Attributes:
        moments: int64 ``[P, 2]``, the half-open steps of the reference that a path covers.
        scores: ``[P]``, larger is better.
    """

    moments: Tensor
    scores: Tensor


class FrameLevel(Relocalizer):
    r"""Frame-level dynamic programming; nothing is trained (section 5.3.1 of the paper).

    With rows brought to unit length, :math:`D_{ij} = \lVert q_i - r_j \rVert_2^2` is the table of
    distances, and the answer is the part of the reference under "the diagonal block with the
    smallest average distances searched by dynamic programming". The paper gives no recurrence;
    three readings are offered:

    * ``"average"`` (default): over all monotone paths that start in the first query row and end in
      the last, by steps down, right or both, the one of least mean distance, exactly:
      :func:`least_average_paths`.
    * ``"chou"``: the pattern search of Chou, Chen and Lee (IEEE TMM 2015) on similarities,
      :func:`pattern_paths`. As that paper's detection thresholds are left out, there always is an
      answer, and as similarities are not negative it likes long ones.
    * ``"block"``: straight diagonals of fixed slope, :func:`diagonal_blocks`.

    Nothing stops the exact optimum from being one step long; ``min_steps`` does.

    Args:
        variant: Which reading.
        min_steps: Shorter answers are dropped, unless there are no others.
        max_steps: Longer answers are dropped likewise; None allows any length.
    """

    title = "Frame-level DP"

    def __init__(
        self, variant: Variant = "average", *, min_steps: int = 1, max_steps: int | None = None
    ) -> None:
        self._config = arguments(locals())
        if variant not in ("average", "chou", "block"):
            raise UsageError(f"variant is {variant!r}: average, chou or block wanted")
        if max_steps is not None:
            check_number(max_steps, "max_steps", least=min_steps, whole=True)
        self.variant: Variant = variant
        self.min_steps, self.max_steps = min_steps, max_steps

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Rank the best path of each end step (``"block"``: each window); proposals are ignored.

        Scores are minus the mean distance, for ``"chou"`` the accumulated similarity.
        """
        distance = step_distances(query, reference)
        if self.variant == "average":
            paths = least_average_paths(distance)
        elif self.variant == "chou":
            # Cosine plus one, in [0, 2], from the squared distance of unit rows.
            paths = pattern_paths(2 - distance / 2)
        else:
            paths = diagonal_blocks(distance)
        length = paths.moments[:, 1] - paths.moments[:, 0]
        fits = length >= self.min_steps
        if self.max_steps is not None:
            fits &= length <= self.max_steps
        if not fits.any():
            fits = torch.ones_like(fits)
        moments = paths.moments[fits].to(reference.dtype)
        return Ranking.sort(moments, paths.scores[fits].to(reference.dtype))


def step_distances(query: Tensor, reference: Tensor) -> Tensor:
    """Squared distances ``D`` of unit rows, float64 ``[m, n]`` in ``[0, 4]``.

    Example:
        >>> step_distances(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([[0., 2.]], dtype=torch.float64)
    """
    rows, columns = (functional.normalize(x.double(), dim=1) for x in (query, reference))
    norms = rows.square().sum(1)[:, None] + columns.square().sum(1)[None]
    return (norms - 2 * rows @ columns.T).clamp(min=0)


def least_average_paths(distance: Tensor) -> Paths:
    r"""Exact paths of least mean cost, by Dinkelbach's method.

    A path starts at any ``(0, s)``, ends at any ``(m - 1, e)``, steps by ``(1, 0)``, ``(0, 1)`` or
    ``(1, 1)`` and answers ``[s, e + 1)``. For a guess :math:`\lambda` of the least mean

    .. math:: S_{ij} = D_{ij} - \lambda + \min(S_{i-1,j}, S_{i,j-1}, S_{i-1,j-1})

    (with 0 also allowed in the minimum of row 0) finds the path of least
    :math:`\sum (D - \lambda)`; its mean is the next guess, until none is smaller. The recurrence
    along a row is a running minimum of prefix sums, so only rows are looped over: ``O(m n)`` a
    round, a few rounds.

    Returns:
        For every end step ``e`` the best path at the last guess; the best of all is the exact
        optimum. Scores are minus the mean cost.
    """
    guess = distance.mean()
    while True:
        total, start, cells = _least_paths(distance - guess)
        mean = guess + total / cells
        best = mean[total.argmin()]
        # A guess is the mean of a path, so only rounding can keep it from being reached again.
        if not best < guess - 1e-12 * guess.abs():  # nor where something is NaN
            break
        guess = best
    end = torch.arange(1, distance.shape[1] + 1, device=distance.device)
    return Paths(torch.stack([start, end], dim=1), -mean)


def _least_paths(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least total, its start column and its number of cells for each end column of the last row."""
    columns = torch.arange(cost.shape[1], device=cost.device)
    prefix = cost.cumsum(dim=1)
    # What enters row i at column j, before moving right; any column of row 0 is entered for free.
    entry, start, cells = torch.zeros_like(cost[0]), columns, torch.zeros_like(columns)
    for i in range(len(cost)):
        least, origin = (entry - prefix[i] + cost[i]).cummin(dim=0)
        total = least + prefix[i]
        start, cells = start[origin], cells[origin] + columns - origin + 1
        # The next row is entered from above or from above left.
        left = functional.pad(total[:-1], (1, 0), value=torch.inf)
        above = total <= left
        source = torch.where(above, columns, columns - 1)
        entry = torch.where(above, total, left)
        if i + 1 < len(cost):
            start, cells = start[source], cells[source]
    return total, start, cells


def pattern_paths(
    similarity: Tensor, *, min_similarity: float = 1.0, discontinue: int = 3
) -> Paths:
    r"""Heaviest local alignment paths with the weights of Chou, Chen and Lee (TMM 2015, Eq. 5).

    .. math:: M_{ij} = \max(M_{i-1,j-1} + s_{ij},\;
        M_{i-1,j} + s_{ij} / 2,\; M_{i,j-1} + s_{ij} / 2)

    with 0 for a missing neighbour. A path that has passed more than ``discontinue`` cells in a row
    of similarity below ``min_similarity`` is not extended: it counts as missing. Cells of one
    anti-diagonal do not depend on each other, so only anti-diagonals are looped over. From
    similarities ``[m, n]``, cosines plus one; a path survives ``discontinue`` low cells in a row.

    Returns:
        For every end step the heaviest path that ends there, in any query row. Scores are ``M``.
    """
    num_rows, num = similarity.shape
    rows = torch.arange(num_rows, device=similarity.device)
    low = (similarity < min_similarity).long()
    # One slot a row, as of its latest anti-diagonal: weight, first column, low cells in a row. Row
    # i - 1 is at column j when row i is, an anti-diagonal later; `older` is one diagonal before.
    empty = similarity.new_zeros(num_rows)
    none = torch.zeros_like(rows)
    newer = older = (empty, none, none)
    share = similarity.new_tensor([[1.0], [0.5], [0.5]])
    best = similarity.new_full((num,), -torch.inf)
    origin = torch.zeros(num, dtype=torch.long, device=similarity.device)
    for diagonal in range(num_rows + num - 1):
        column = diagonal - rows
        inside = (column >= 0) & (column < num)
        safe = column.clamp(0, num - 1)
        gain = similarity[rows, safe]
        above = tuple(functional.pad(part[:-1], (1, 0)) for part in newer)
        corner = tuple(functional.pad(part[:-1], (1, 0)) for part in older)
        # In the order of preference on ties: diagonal, down, right. What is missing or gave up
        # weighs 0, and along the diagonal that is where a new path starts.
        weights, firsts, runs = (
            torch.stack(parts) for parts in zip(corner, above, newer, strict=True)
        )
        alive = (weights > 0) & (runs <= discontinue)
        weights = torch.where(alive, weights, 0.0)
        firsts = torch.where(alive, firsts, safe)
        runs = torch.where(alive, runs, 0)
        value, choice = (weights + gain * share).max(dim=0)
        first = firsts.gather(0, choice[None])[0]
        run = runs.gather(0, choice[None])[0]
        run = (run + 1) * low[rows, safe]
        value = torch.where(inside, value, 0.0)
        older, newer = newer, (value, first, run)
        # Every cell of a diagonal has its own column.
        at = column[inside]
        better = value[inside] > best[at]
        best[at] = torch.where(better, value[inside], best[at])
        origin[at] = torch.where(better, first[inside], origin[at])
    end = torch.arange(1, num + 1, device=similarity.device)
    return Paths(torch.stack([origin, end], dim=1), best)


def diagonal_blocks(distance: Tensor, scales: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Paths:
    """Mean cost of straight diagonals over windows of fixed multiples of the query's length.

    The diagonal of a window of ``L`` steps visits ``P = max(m, L)`` cells
    ``(floor(t m / P), s + floor(t L / P))``.

    Args:
        distance: ``[m, n]``.
        scales: Window lengths as multiples of ``m``, cut to ``n``.

    Returns:
        Every window at every start step. Scores are minus the mean cost.
    """
    num_rows, num = distance.shape
    moments, scores = [], []
    for length in sorted({min(max(1, round(scale * num_rows)), num) for scale in scales}):
        count = max(num_rows, length)
        cell = torch.arange(count, device=distance.device)
        start = torch.arange(num - length + 1, device=distance.device)
        column = start[:, None] + cell * length // count
        scores.append(-distance[cell * num_rows // count, column].mean(dim=1))
        moments.append(torch.stack([start, start + length], dim=1))
    return Paths(torch.cat(moments), torch.cat(scores))
