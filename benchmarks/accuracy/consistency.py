"""A fourth table: how far steps and clips disagree, and who gains where they do."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.accuracy import sets
from benchmarks.accuracy.rows import Cell, answers
from relocal_pyg.evaluation.consistency import disagreement, halves
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.statistics import bootstrap_interval
from relocal_pyg.training.recipe import draw_pairs

HEADER = (
    "| data | split | seeds / pairs | disagreement (95 %) | recipe | ahead of the matcher at .5, "
    "they agree | they differ | more where they differ (95 %) |\n" + "|---" * 8 + "|"
)


@dataclass(frozen=True)
class Line:
    """One recipe on both halves of the pairs of a split, over seeds.

    Attributes:
        amount: Mean disagreement with the ends of its 95 % interval.
        agree: How far the recipe is ahead of the contrast matcher on the half of smaller amounts.
        differ: On the other half.
        gain: Their difference with its interval.
    """

    data: str
    split: str
    seeds: int
    pairs: int
    amount: list[float]
    recipe: str
    agree: float
    differ: float
    gain: list[float]

    def text(self) -> str:
        """The line as a row of markdown, in percent."""
        amount, low, high = self.amount
        gain, less, more = (100 * value for value in self.gain)
        return (
            f"| {self.data} | {self.split} | {self.seeds} / {self.pairs} "
            f"| {amount:.2f} ({low:.2f} to {high:.2f}) | {self.recipe} | {100 * self.agree:+.1f} "
            f"| {100 * self.differ:+.1f} | {gain:+.1f} ({less:+.1f} to {more:+.1f}) |"
        )


def consistency_lines(cells: list[Cell], data: Path | None, out: Path) -> list[Line]:
    """Lines for every recipe whose rows were made."""
    protocols, amounts = {}, {}
    grouped: dict[tuple[str, str, str], list[tuple[int, Tensor, Tensor, list[str]]]]
    grouped = defaultdict(list)
    for cell in cells:
        for split, trained, matcher in answers(cell, out):
            place = cell.data, cell.seed, split
            if place not in amounts:
                if place[:2] not in protocols:
                    protocols = {place[:2]: sets.load(*place[:2], data, out / "features")}
                protocol = protocols[place[:2]]
                amounts[place] = disagreement(protocol, draw_pairs(protocol, split, cell.pairs))
            hits = [above(run.tious, (0.5,)).double()[:, 0] for run in (trained, matcher)]
            part = cell.seed, amounts[place], hits[0] - hits[1], trained.clusters
            grouped[cell.data, split, cell.recipe].append(part)
    found = []
    for (name, split, recipe), parts in grouped.items():
        values = torch.cat([amount for _, amount, _, _ in parts])
        lead = torch.cat([each for _, _, each, _ in parts])
        split_up = [halves(amount, each) for _, amount, each, _ in parts]
        larger, more = (torch.cat(column) for column in zip(*split_up, strict=True))
        runs = [seed for seed, amount, _, _ in parts for _ in amount]
        clusters = [video for *_, videos in parts for video in videos]
        table = torch.stack([values, more], dim=1)
        low, high = bootstrap_interval(table, clusters, runs)
        (amount, gain) = torch.stack([table.mean(dim=0), low, high], dim=1).tolist()
        sides = [float(lead[side].mean()) for side in (~larger, larger)]
        found.append(Line(name, split, len(parts), len(lead), amount, recipe, *sides, gain))
    return found
