"""``relocal ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from relocal_pyg.cli.options import DataOptions, load_protocol
from relocal_pyg.cli.train import PresetName, choose_preset, spare_threads


def ablate(
    out: Annotated[Path, tyro.conf.Positional],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    grid: Literal["layers-graphs", "weights"] = "layers-graphs",
    layers: tuple[int, ...] = (1, 2, 3),
    graphs: tuple[int, ...] = (1, 2, 3),
    preset: PresetName = "recommended",
    steps: int | None = None,
    seeds: tuple[int, ...] = (0,),
    split: str | None = None,
    limit: int | None = None,
) -> None:
    """Train the n x k grid of the paper's Table 3, or the three edge weights, and print the table.

    Finished cells are kept in OUT; run the same line again after an interrupt to go on.

    Args:
        out: Folder for runs and tables.
        data: Which data.
        grid: "layers-graphs" for n x k, "weights" for the edge weights of section 4.4.
        layers: Values of n, the number of multi-graph layers.
        graphs: Values of k: a cell uses the graphs 1..k.
        preset: What every cell shares.
        steps: Optimiser steps at most, instead of the preset's.
        seeds: Training seeds.
        split: Test split; the first one where left out.
        limit: Use the first LIMIT pairs of the hashed list only.
    """
    from relocal_pyg.cli.evaluate import draw_pairs, evaluate_trained, publish
    from relocal_pyg.training.sweep import ablation, edge_weights, train_all

    protocol = load_protocol(data)
    chosen = choose_preset(preset, steps)
    spare_threads(chosen)
    cells = ablation(chosen, layers, graphs) if grid == "layers-graphs" else edge_weights(chosen)
    trained = train_all(cells, protocol, seeds, out / "runs")
    name = split or protocol.test_splits()[0]
    pairs = draw_pairs(protocol, name, limit)
    publish(evaluate_trained(protocol, pairs, list(trained)), pairs, out / name, protocol)
