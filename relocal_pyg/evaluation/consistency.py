"""Do steps and clips say the same? The paper's Figure 2, as a number of any data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.run import answer_pairs
from relocal_pyg.evaluation.statistics import Estimate, bootstrap_interval
from relocal_pyg.evaluation.tables import Comparison
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


@dataclass(frozen=True)
class Halves:
    """A system on the pairs where steps and clips agree more, and where they agree less.

    Attributes:
        title: Name of the system.
        agree: mAP@1 at 0.5 on the half with the smaller disagreement.
        differ: On the other half.
        gain: How much more it is ahead of the system that it is set beside where they differ: the
            difference of both leads, with its paired interval over videos.
    """

    title: str
    agree: float
    differ: float
    gain: Estimate

    def text(self) -> str:
        """The line as a row of markdown, in percent."""
        ends = (self.gain.value, self.gain.low, self.gain.high)
        value, low, high = (None if end is None else f"{100 * end:+.1f}" for end in ends)
        span = f" ({low} to {high})" if low and high else ""
        return (
            f"| {self.title} | {100 * self.agree:.1f} | {100 * self.differ:.1f} | {value}{span} |"
        )


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
    larger = amounts > amounts.median()
    if not larger.any():
        raise UsageError("all pairs disagree alike: there are no halves")
    # With these weights a mean over all pairs is the difference of the means of both halves.
    weight = torch.where(larger, 1 / larger.double().mean(), -1 / (~larger).double().mean())
    right = {
        title: torch.stack([above(each.tious, (0.5,)).double()[:, 0] for each in runs]).mean(dim=0)
        for title, runs in comparison.evaluations.items()
    }
    rows = []
    for title, hits in right.items():
        lead = (hits - right[against]) * weight
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
    return "\n".join(
        [
            f"Disagreement of similarity by step and by clip: {mean.value:.2f}{ends}, "
            f"{len(amounts)} pairs; 0 is the same order of the proposals, 1 is unrelated.",
            "",
            f"| system, mAP@1 at .5 in % | they agree | they differ | more ahead of {against} |",
            "|---|---|---|---|",
            *(row.text() for row in rows),
            "",
        ]
    )
