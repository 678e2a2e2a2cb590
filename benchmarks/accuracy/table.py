"""The table: means over seeds, beside the training-free matcher on the same pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.accuracy.rows import Cell, answers
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.statistics import bootstrap_interval

THRESHOLDS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Line:
    """A recipe on one test split, averaged over seeds.

    Attributes:
        trained: mAP@1 at each threshold, with the ends of its 95 % interval.
        matcher: The same of the contrast matcher.
        gain: Trained minus matcher, paired.
    """

    data: str
    split: str
    size: str
    recipe: str
    seeds: int
    pairs: int
    trained: list[list[float]]
    matcher: list[list[float]]
    gain: list[list[float]]

    def text(self) -> str:
        """The line as a row of markdown, in percent."""
        cells = [self.data, self.split, self.size, self.recipe, f"{self.seeds} / {self.pairs}"]
        for (value, low, high), (other, *_), (_, less, more) in zip(
            self.trained, self.matcher, self.gain, strict=True
        ):
            ratio = f"{value / other:.2f}" if other else "-"
            cells.append(
                f"{100 * value:.1f} ± {50 * (high - low):.1f} | {100 * other:.1f} | {ratio} "
                f"({100 * less:+.1f} to {100 * more:+.1f})"
            )
        return "| " + " | ".join(cells) + " |"


HEADER = (
    "| data | split | items a class | recipe | seeds / pairs "
    + "".join(f"| .{t * 10:.0f} trained | matcher | ratio (gain, 95 %) " for t in THRESHOLDS)
    + "|\n"
    + "|---" * (5 + 3 * len(THRESHOLDS))
    + "|"
)


def lines(cells: list[Cell], out: Path) -> list[Line]:
    """Lines for the cells that were run, in their order; cells that differ in seed are one."""
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.data, cell.recipe, cell.items), []).append(cell)
    found = []
    for (data, recipe, size), members in grouped.items():
        by_split: dict[str, list[tuple[int, torch.Tensor, list[str]]]] = {}
        for cell in members:
            for split, trained, matcher in answers(cell, out):
                columns = [
                    above(evaluation.tious, THRESHOLDS).double()
                    for evaluation in (trained, matcher)
                ]
                table = torch.cat([*columns, columns[0] - columns[1]], dim=1)
                by_split.setdefault(split, []).append((cell.seed, table, trained.clusters))
        for split, parts in by_split.items():
            table = torch.cat([part for _, part, _ in parts])
            clusters = [name for _, _, names in parts for name in names]
            runs = [seed for seed, part, _ in parts for _ in range(len(part))]
            low, high = bootstrap_interval(table, clusters, runs)
            spans = torch.stack([table.mean(dim=0), low, high], dim=1).tolist()
            count = len(THRESHOLDS)
            found.append(
                Line(
                    data,
                    split,
                    size,
                    recipe,
                    len(parts),
                    len(table),
                    spans[:count],
                    spans[count : 2 * count],
                    spans[2 * count :],
                )
            )
    return found
