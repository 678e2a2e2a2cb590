"""Do steps and clips say the same? The paper's Figure 2, as a number of any data set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.run import answer_pairs
from relocal_pyg.evaluation.statistics import Estimate, bootstrap_interval
from relocal_pyg.evaluation.tables import Comparison, pipe_table
from relocal_pyg.models.matchers import CosineMatcher, DiagonalMatcher


def disagreement(protocol: Protocol, pairs: PairList) -> Tensor:
    """How differently similarity by clip and by step rank the proposals of each pair, ``[N]``.

    One minus Spearman's rank correlation of the cosine of means and the mean cosine of steps at the
    same share of either length: 0 where both order the proposals alike, 1 where one says nothing
    about the other, 2 where they are opposed.
    """
    by_clip = answer_pairs(CosineMatcher(), protocol, pairs.pairs)
    by_step = answer_pairs(DiagonalMatcher(), protocol, pairs.pairs)
    found = []
    for clip, step in zip(by_clip, by_step, strict=True):
        if clip.ranking is None or step.ranking is None or len(clip.proposals) < 2:
            found.append(0.0)
            continue
        places = [_places(each.moments) for each in (clip.ranking, step.ranking)]
        found.append(1 - float(torch.corrcoef(torch.stack(places))[0, 1].nan_to_num()))
    return torch.tensor(found, dtype=torch.float64)


def _places(moments: Tensor) -> Tensor:
    """For the proposals in a fixed order, their place in a ranking ``[M, 2]``."""
    order = torch.unique(moments, dim=0, return_inverse=True)[1].argsort(stable=True)
    return order.double()


def halves(amounts: Tensor, lead: Tensor) -> tuple[Tensor, Tensor]:
    """A lead ``[N]`` where pairs differ more against where they agree more.

    Returns:
        Bool ``[N]``, the half that differs more; and values ``[N]`` whose mean is the difference of
        the two halves' means. They spread as that does when pairs are drawn: what both halves have
        in common is none of their difference, however many pairs of each are drawn.

    Raises:
        UsageError: All pairs disagree alike.
    """
    larger = amounts > amounts.median()
    if not larger.any():
        raise UsageError("all pairs disagree alike: there are no halves")
    differ, agree = lead[larger].mean(), lead[~larger].mean()
    rest = torch.where(larger, lead - differ, agree - lead)
    share = torch.where(larger, larger.double().mean(), (~larger).double().mean())
    return larger, differ - agree + rest / share


class Halves(NamedTuple):
    """A system on the pairs where steps and clips agree more, and where they agree less.

    ``agree`` and ``differ`` are mAP@1 at 0.5 on either half; ``gain`` is how much more it is ahead
    of another system where they differ, with its paired interval over videos.
    """

    title: str
    agree: float
    differ: float
    gain: Estimate

    def cells(self) -> list[str]:
        """The row of a table, in percent."""
        ends = [end for end in (self.gain.low, self.gain.high) if end is not None]
        span = " ({:+.1f} to {:+.1f})".format(*(100 * end for end in ends)) if ends else ""
        shares = [f"{100 * share:.1f}" for share in (self.agree, self.differ)]
        return [self.title, *shares, f"{100 * self.gain.value:+.1f}{span}"]


def by_disagreement(comparison: Comparison, amounts: Tensor, against: str) -> list[Halves]:
    """Whether systems gain where steps and clips disagree more.

    Amounts are those of :func:`disagreement` for the same pairs; all systems are set beside the one
    of title ``against``.

    Raises:
        UsageError: No such system, another number of pairs, or all of them disagree alike.
    """
    if against not in comparison.evaluations:
        raise UsageError(f"no system {against!r}: {', '.join(comparison.evaluations)}")
    first = comparison.evaluations[against][0]
    if len(first.records) != len(amounts):
        raise UsageError(f"{len(amounts)} amounts of disagreement for {len(first.records)} pairs")
    right = {
        title: torch.stack([above(each.tious, (0.5,)).double()[:, 0] for each in runs]).mean(dim=0)
        for title, runs in comparison.evaluations.items()
    }
    rows = []
    for title, hits in right.items():
        larger, lead = halves(amounts, hits - right[against])
        rows.append(
            Halves(
                title,
                float(hits[~larger].mean()),
                float(hits[larger].mean()),
                Estimate.known(lead.mean(), *bootstrap_interval(lead, first.clusters)),
            )
        )
    return rows


def to_markdown(amounts: Tensor, pairs: PairList, rows: list[Halves], against: str) -> str:
    """The page of ``relocal evaluate --consistency``, with the interval over references' videos."""
    videos = [pair.reference.video_id for pair in pairs.pairs]
    mean = Estimate.known(amounts.mean(), *bootstrap_interval(amounts, videos))
    ends = f" (95 % {mean.low:.2f} to {mean.high:.2f})" if mean.low is not None else ""
    told = (
        f"Disagreement of similarity by step and by clip: {mean.value:.2f}{ends}, "
        f"{len(amounts)} pairs; 0 is the same order of the proposals, 1 is unrelated."
    )
    heads = "system, mAP@1 at .5 in %", "they agree", "they differ", f"more ahead of {against}"
    return "\n".join([told, "", *pipe_table([heads, *(row.cells() for row in rows)], 1), ""])
