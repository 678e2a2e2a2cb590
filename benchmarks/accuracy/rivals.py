"""Who is ahead? A third table: the first recipe beside every other one, pair by pair."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.accuracy.rows import Cell, answers
from benchmarks.accuracy.table import THRESHOLDS
from relocal_pyg.evaluation import Evaluation
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.run import replay
from relocal_pyg.evaluation.statistics import bootstrap_interval
from relocal_pyg.evaluation.tables import ORACLE
from relocal_pyg.models import CentreHalf, ContrastMatcher, RandomMoment, WholeReference


@dataclass(frozen=True)
class Line:
    """One recipe beside the first one, on the seeds that both were run with.

    Attributes:
        first: mAP@1 of the first recipe at each threshold.
        other: That of this recipe.
        width: Half of the 95 % interval of ``other``.
        lead: First minus other with the ends of its 95 % interval, paired.
    """

    data: str
    split: str
    size: str
    recipe: str
    seeds: int
    pairs: int
    first: list[float]
    other: list[float]
    width: list[float]
    lead: list[list[float]]

    def text(self) -> str:
        """The line as a row of markdown, in percent."""
        cells = [self.data, self.split, self.size, self.recipe, f"{self.seeds} / {self.pairs}"]
        columns = zip(self.first, self.other, self.width, self.lead, strict=True)
        for ours, theirs, width, (_, low, high) in columns:
            span = f"{100 * low:+.1f} to {100 * high:+.1f}"
            cells.append(f"{100 * theirs:.1f} ± {100 * width:.1f} | {100 * ours:.1f} ({span})")
        return "| " + " | ".join(cells) + " |"


def header(first: str) -> str:
    """The head of the table."""
    columns = "".join(f"| .{t * 10:.0f} | {first} (ahead by, 95 %) " for t in THRESHOLDS)
    return (
        "| data | split | items a class | recipe | seeds / pairs "
        f"{columns}|\n" + "|---" * (5 + 2 * len(THRESHOLDS)) + "|"
    )


def rival_lines(cells: list[Cell], out: Path, first: str, *, free: bool = False) -> list[Line]:
    """A line for every recipe that shares seeds of a data set with the first one.

    Args:
        cells: Rows that were made.
        out: Where their answers are.
        first: The recipe that the others are set beside.
        free: Give lines to the contrast matcher, the trivial predictors and the oracle too.
    """
    found: dict[tuple[str, str, str], dict[str, dict[int, Evaluation]]]
    found = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        for split, evaluation, matcher in answers(cell, out):
            recipes = found[cell.data, split, cell.items]
            recipes[cell.recipe][cell.seed] = evaluation
            if free:
                for title, run in _free(matcher).items():
                    recipes[title].setdefault(cell.seed, run)
    lines = []
    for (data, split, size), recipes in found.items():
        for recipe, runs in recipes.items():
            shared = sorted(set(runs) & set(recipes.get(first, {})))
            if recipe != first and shared:
                pairs = [(recipes[first][seed], runs[seed]) for seed in shared]
                lines.append(_line((data, split, size, recipe), shared, pairs))
    return lines


def _free(matcher: Evaluation) -> dict[str, Evaluation]:
    """What was answered on the matcher's pairs without training, the best proposals too."""
    trivial = (WholeReference(), CentreHalf(), RandomMoment())
    best = [replace(each, tious=(each.oracle,)) for each in matcher.records]
    return {
        ContrastMatcher.title: matcher,
        **{model.title: replay(model, matcher) for model in trivial},
        ORACLE: replace(matcher, title=ORACLE, records=tuple(best)),
    }


def _line(
    place: tuple[str, str, str, str], seeds: list[int], pairs: list[tuple[Evaluation, Evaluation]]
) -> Line:
    if any(ours.pairs_sha256 != theirs.pairs_sha256 for ours, theirs in pairs):
        raise ValueError(f"{place}: answers to different pairs")
    ours, theirs = (
        torch.cat([above(pair[side].tious, THRESHOLDS).double() for pair in pairs])
        for side in (0, 1)
    )
    clusters = [name for first, _ in pairs for name in first.clusters]
    runs = [seed for seed, (first, _) in zip(seeds, pairs, strict=True) for _ in first.clusters]
    count = len(THRESHOLDS)
    low, high = bootstrap_interval(torch.cat([ours - theirs, theirs], dim=1), clusters, runs)
    lead = torch.stack([(ours - theirs).mean(dim=0), low[:count], high[:count]], dim=1).tolist()
    width = ((high[count:] - low[count:]) / 2).tolist()
    means = [side.mean(dim=0).tolist() for side in (ours, theirs)]
    return Line(*place, len(seeds), len(ours), *means, width, lead)
