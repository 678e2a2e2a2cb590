"""``python -m benchmarks.accuracy``: train and test every row that is missing, print the table.

Interrupted, it goes on where it stopped. Weights are selected on validation pairs alone; a test
split is answered once a row and never again. Without real data, give ``--sets synthetic sparse``.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
import tyro

from benchmarks.accuracy.consistency import HEADER as CONSISTENCY
from benchmarks.accuracy.consistency import consistency_lines
from benchmarks.accuracy.presence import HEADER as PRESENCE
from benchmarks.accuracy.presence import presence_lines
from benchmarks.accuracy.recipes import FREE, systems
from benchmarks.accuracy.rivals import header, rival_lines
from benchmarks.accuracy.rows import MOST_PAIRS, Cell, run
from benchmarks.accuracy.sets import SETS
from benchmarks.accuracy.table import HEADER, lines
from benchmarks.measuring import machine
from relocal_pyg.errors import UsageError
from relocal_pyg.io.write import write_json


def main(
    out: Path,
    data: Path | None = None,
    sets: tuple[str, ...] = SETS,
    recipes: tuple[str, ...] = ("recommended", "paper"),
    sizes: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    splits: tuple[str, ...] = (),
    nulls: bool = False,
    steps: int | None = None,
    pairs: int = MOST_PAIRS,
    consistency: bool = False,
) -> None:
    """Fill the table.

    Args:
        out: Folder for runs, answers and the table; give it again to go on.
        data: Folder of the real data.
        sets: Which data sets.
        recipes: Which recipes, by their names in benchmarks/accuracy/recipes.py; the first is set
            beside the others.
        sizes: Training items of a class at most, beside the whole training set.
        seeds: Each draws a split of its own and the weights.
        splits: Test splits of new rows; all where none is named.
        nulls: New rows are also asked about references that do not hold the action.
        steps: Optimiser steps of new rows at most, with batches of 16 at most.
        pairs: Test pairs of a split at most, and with --steps half as many to validate.
        consistency: Tell too how far steps and clips disagree, and who gains where they do.
    """
    unknown = (set(sets) - set(SETS)) | (set(recipes) - {*systems(), *FREE})
    if unknown:
        raise UsageError(f"no such set or recipe: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # these networks are small: a second thread costs more than it gives
    cells = [
        Cell(name, recipe, size, seed, splits, nulls, steps, pairs)
        for recipe, size, name, seed in product(recipes, (None, *sizes), sets, seeds)
    ]
    made = []
    for cell in cells:
        print(cell, flush=True)
        if run(cell, data, out):
            made.append(cell)
    found = lines(made, out)
    print("\n".join([HEADER, *(line.text() for line in found)]))
    presence = presence_lines(made, out)
    if presence:
        print("\n".join(["", PRESENCE, *(line.text() for line in presence)]))
    rivals = rival_lines(made, out, recipes[0], free=True)
    if rivals:
        print("\n".join(["", header(recipes[0]), *(line.text() for line in rivals)]))
    halves = consistency_lines(made, data, out) if consistency else []
    if halves:
        print("\n".join(["", CONSISTENCY, *(line.text() for line in halves)]))
    write_json(
        out / "table.json",
        {
            "machine": machine(),
            "lines": [asdict(line) for line in found],
            "presence": [asdict(line) for line in presence],
            "rivals": [asdict(line) for line in rivals],
            "consistency": [asdict(line) for line in halves],
        },
    )


if __name__ == "__main__":
    tyro.cli(main)
