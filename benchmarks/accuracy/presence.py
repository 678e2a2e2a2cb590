"""Does a reference hold the action at all? A second table, for rows that were asked."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.rows import Cell, answers
from relocal_pyg.evaluation.results import presence_rows

HEADER = (
    "| data | split | items a class | recipe | seeds / pairs / without | who | by | AUROC "
    "| of each seed | ECE held (by chance) | ECE right (by chance) |\n" + "|---" * 11 + "|"
)


@dataclass(frozen=True)
class Line:
    """One way to tell, on one test split, averaged over seeds.

    Attributes:
        who: ``"trained"``, ``"matcher"``, or the length of the reference.
        by: Its score, its probability, or a length.
        auroc: One a seed.
        errors: Calibration errors and what chance alone would show, ``[held, right]``, averaged
            over seeds; empty where nothing is a probability.
    """

    data: str
    split: str
    size: str
    recipe: str
    pairs: int
    nulls: int
    who: str
    by: str
    auroc: list[float]
    errors: list[tuple[float, float]]

    def text(self) -> str:
        """The line as a row of markdown, in percent."""
        errors = [f"{100 * value:.1f} ({100 * chance:.1f})" for value, chance in self.errors]
        cells = [
            self.data,
            self.split,
            self.size,
            self.recipe,
            f"{len(self.auroc)} / {self.pairs} / {self.nulls}",
            self.who,
            self.by,
            f"{100 * statistics.fmean(self.auroc):.1f}",
            ", ".join(f"{100 * value:.1f}" for value in self.auroc),
            *(errors or ["", ""]),
        ]
        return "| " + " | ".join(cells) + " |"


def presence_lines(cells: list[Cell], out: Path) -> list[Line]:
    """Lines for the cells that were asked about references without the action."""
    grouped = defaultdict(list)
    for cell in cells:
        for split, trained, matcher in answers(cell, out):
            if trained.nulls and matcher.nulls:
                place = cell.data, split, cell.items, cell.recipe
                # Each seed has a split of its own: areas are taken one by one, then averaged.
                rows = presence_rows({"trained": [trained], "matcher": [matcher]}, samples=2)
                grouped[place].append({(row.title, row.by): row for row in rows})
    found = []
    for place, tables in grouped.items():
        for who, by in tables[0]:
            rows = [table[who, by] for table in tables if (who, by) in table]
            kinds = [[row.presence_error, row.moment_error] for row in rows]
            errors = [
                (
                    statistics.fmean(each[0] for each in column if each),
                    statistics.fmean(each[1] for each in column if each),
                )
                for column in zip(*kinds, strict=True)
                if all(column)
            ]
            pairs, nulls = (sum(getattr(r, n) for r in rows) for n in ("num_pairs", "num_nulls"))
            areas = [row.auroc.value for row in rows]
            found.append(Line(*place, pairs, nulls, who, by, areas, errors))
    return found
