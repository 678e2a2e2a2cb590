"""From scored proposals to answers: as they are, moved by the regression head, or cut finer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from relocal_pyg.models.base import Ranking, Relocalizer
from relocal_pyg.moments import decode_offsets, nms

#: ``"none"``: proposals as they are; ``"offsets"``: moved by the regression head (section 4.8);
#: ``"windows"``: finer windows around the best proposals are scored too.
Refinement = Literal["none", "offsets", "windows"]

REFINEMENTS: tuple[Refinement, ...] = ("none", "offsets", "windows")

#: Proposals, no two of one place, whose surroundings are searched.
SEEDS = 5
#: How far either end of such a proposal is moved in each round, as shares of its length.
ROUNDS = ((0.15, 0.3), (0.05, 0.1))


def refine(
    way: Refinement,
    proposals: Tensor,
    raw: Tensor,
    offsets: Tensor,
    score: Callable[[Tensor], Tensor],
    num_steps: int,
) -> Ranking:
    """Rank scored proposals of one reference, refined in one way.

    Args:
        way: How.
        proposals: ``[M, 2]`` in steps.
        raw: Their scores ``[M]`` before the last tanh.
        offsets: Output of the regression head, ``[M, 2]``.
        score: Gives the scores of further windows, likewise.
        num_steps: Length of the reference.

    Returns:
        The :class:`Ranking`; its proposals are what the moments were made of.
    """
    moments, origins = proposals, proposals
    if way == "offsets":
        moments = decode_offsets(proposals, offsets)
    elif way == "windows":
        for shares in ROUNDS:
            best = nms(moments, raw, 0.5, limit=SEEDS)
            finer, seed = finer_windows(moments[best], num_steps, shares)
            if len(finer) == 0:  # ends of very short moments stay where they are
                continue
            moments = torch.cat([moments, finer])
            origins = torch.cat([origins, origins[best][seed]])
            raw = torch.cat([raw, score(finer)])
    return Ranking.sort(moments, torch.tanh(raw), origins)


class FinerWindows(Relocalizer):
    """Any model that scores windows, and finer windows around its best ones scored as well.

    Args:
        model: It ranks the proposals, and whatever else it is shown.
    """

    title = "Finer windows"

    def __init__(self, model: Relocalizer) -> None:
        self.model = model

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Rank the proposals (in steps) and what :func:`finer_windows` makes of the best."""
        ranking = self.model.rank(query, reference, proposals, query_video=query_video)
        moments, scores = ranking.moments, ranking.scores
        origins = moments if ranking.proposals is None else ranking.proposals
        for shares in ROUNDS:
            best = nms(moments, scores, 0.5, limit=SEEDS)
            finer, seed = finer_windows(moments[best], len(reference), shares)
            if len(finer) == 0:
                continue
            found = self.model.rank(query, reference, finer, query_video=query_video)
            # Rankings are sorted: which of the windows, all different, is each?
            which = (found.moments[:, None] == finer).all(dim=2).int().argmax(dim=1)
            moments = torch.cat([moments, found.moments])
            scores = torch.cat([scores, found.scores])
            origins = torch.cat([origins, origins[best][seed[which]]])
        return Ranking.sort(moments, scores, origins)


def finer_windows(
    moments: Tensor, num_steps: int, shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Windows whose ends lie near those of some moments.

    Each end stays or is moved either way, to whole steps inside the video; what is empty, and the
    moments themselves, are left out.

    Args:
        moments: ``[S, 2]`` in steps.
        num_steps: Length of the video.
        shares: How far, as shares of a moment's length.

    Returns:
        ``[M, 2]`` without duplicates, and ``[M]``: which moment each comes from, the first where
        there are several.

    Example:
        >>> windows, seed = finer_windows(torch.tensor([[4.0, 8.0]]), 9, [0.25])
        >>> windows.tolist(), seed.tolist()
        ([[3.0, 7.0], [3.0, 8.0], [3.0, 9.0], [4.0, 7.0], [4.0, 9.0], \
[5.0, 7.0], [5.0, 8.0], [5.0, 9.0]], [0, 0, 0, 0, 0, 0, 0, 0])
    """
    length = moments[:, 1:] - moments[:, :1]
    moved = length * moments.new_tensor([-share for share in shares] + [0.0, *shares])
    # Half a step moves an end as well: rounding to even would leave it.
    moved = moved.sign() * (moved.abs() + 0.5).floor()
    ends = (moments[..., None].round() + moved[:, None]).clamp(0, num_steps)
    count = moved.shape[1]
    windows = torch.stack(
        [
            ends[:, 0, :, None].expand(-1, -1, count),
            ends[:, 1, None, :].expand(-1, count, -1),
        ],
        dim=-1,
    ).view(len(moments), -1, 2)
    seed = torch.arange(len(moments), device=moments.device)[:, None].expand(windows.shape[:2])
    new = (windows[..., 0] < windows[..., 1]) & (windows != moments[:, None]).any(dim=-1)
    windows, seed = windows[new], seed[new]
    unique, number = torch.unique(windows, dim=0, return_inverse=True)
    first = seed.new_full((len(unique),), len(moments))
    return unique, first.scatter_reduce(0, number, seed, "amin")
