"""``python -m benchmarks.claims OUT/<split> ...``: what an n x k grid of ``relocal ablate`` says.

Each argument is the folder of one table. Differences are paired: the same pairs, the same training
seeds, averaged over the cells that both sides have; intervals resample source videos and seeds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from benchmarks.accuracy import sets
from relocal_pyg.data.pairs import PairList
from relocal_pyg.evaluation import Evaluation
from relocal_pyg.evaluation.consistency import disagreement, halves
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.statistics import bootstrap_interval

#: Columns of every table.
COLUMNS = ("mAP@1 .5", "mAP@1 .7", "mIoU")

#: n, k, and whether the cell has graphs.
Cell = tuple[int, int, bool]


def read_cells(folder: Path) -> tuple[dict[Cell, Tensor], list[str]]:
    """Values ``[seeds, pairs, columns]`` of each cell of a table, and the pairs' source videos."""
    found: dict[Cell, dict[int, Tensor]] = {}
    clusters: list[str] = []
    for path in sorted((folder / "answers").iterdir()):
        run = Evaluation.load(path)
        named = re.fullmatch(r"n=(\d+), k=(\d+)(, CNN)?", run.title)
        if named and run.seed is not None:
            tious = run.tious.double()
            values = torch.cat([above(tious, (0.5, 0.7)).double(), tious[:, None]], dim=1)
            cell = int(named[1]), int(named[2]), named[3] is None
            found.setdefault(cell, {})[run.seed] = values
            clusters = list(run.clusters)
    # Over the seeds that every cell has: an unfinished grid is read as far as it goes.
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    return {
        cell: torch.stack([runs[seed] for seed in seeds]) for cell, runs in found.items()
    }, clusters


def estimate(values: Tensor, clusters: list[str]) -> list[tuple[float, float, float]]:
    """Mean and 95 % interval of each column of ``[seeds, pairs, columns]``, in percent."""
    seeds, pairs, _ = values.shape
    runs = [seed for seed in range(seeds) for _ in range(pairs)]
    low, high = bootstrap_interval(values.flatten(0, 1), clusters * seeds, runs)
    ends = torch.stack([values.mean(dim=(0, 1)), low, high], dim=1)
    return [(100 * a, 100 * b, 100 * c) for a, b, c in ends.tolist()]


def contrasts(cells: dict[Cell, Tensor]) -> dict[str, Tensor]:
    """Differences that the paper's claims are about, averaged over cells."""
    layers, graphs = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))

    def mean(chosen: list[Cell]) -> Tensor:
        return torch.stack([cells[cell] for cell in chosen]).mean(dim=0)

    by_k = {k: mean([(n, k, True) for n in layers]) for k in graphs}
    by_n = {n: mean([(n, k, True) for k in graphs]) for n in layers}
    with_graphs, without = (
        mean([(n, k, graph) for n in layers for k in graphs]) for graph in (True, False)
    )
    found = {"graph - CNN, all cells": with_graphs - without}
    for axis, group in (("k", by_k), ("n", by_n)):
        names = list(group)
        for a, b in zip(names, names[1:], strict=False):
            found[f"{axis}={b} - {axis}={a}"] = group[b] - group[a]
        if len(names) > 2:
            found[f"{axis}={names[-1]} - {axis}={names[0]}"] = group[names[-1]] - group[names[0]]
    if len(graphs) == 3:
        one, two, three = (by_k[k] for k in graphs)
        found["second step of k - first step of k"] = (three - two) - (two - one)
    return found


def main(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    protocol: str | None = None,
    data: Path | None = None,
) -> None:
    """Print the grid and the differences.

    Args:
        folders: Of ``results.md``, ``pairs.json`` and ``answers``.
        protocol: A set of benchmarks/accuracy/sets.py that the tables are of, to tell too whether
            graphs gain more where similarity by step and by clip disagree more.
        data: Folder of the real data.
    """
    for folder in folders:
        cells, clusters = read_cells(folder)
        seeds, pairs, _ = next(iter(cells.values())).shape
        print(f"{folder}: {pairs} pairs from {len(set(clusters))} videos, {seeds} seeds\n")
        print(f"| cell | {' | '.join(COLUMNS)} |\n" + "|---" * (1 + len(COLUMNS)) + "|")
        for (n, k, graph), values in sorted(cells.items(), key=lambda item: item[0]):
            row = estimate(values, clusters)
            shown = " | ".join(f"{mean:.1f} ± {(high - low) / 2:.1f}" for mean, low, high in row)
            print(f"| n={n}, k={k}{'' if graph else ', CNN'} | {shown} |")
        print(f"\n| difference | {' | '.join(COLUMNS)} |\n" + "|---" * (1 + len(COLUMNS)) + "|")
        found = contrasts(cells)
        if protocol is not None:
            made = sets.load(protocol, 0, data, folder)
            weight = halves(disagreement(made, PairList.load(folder / "pairs.json")))
            graph = found["graph - CNN, all cells"]
            found["the same, where they differ - where they agree"] = graph * weight[None, :, None]
        for name, values in found.items():
            row = estimate(values, clusters)
            shown = " | ".join(f"{m:+.1f} ({low:+.1f} to {high:+.1f})" for m, low, high in row)
            print(f"| {name} | {shown} |")
        print()


if __name__ == "__main__":
    tyro.cli(main)
