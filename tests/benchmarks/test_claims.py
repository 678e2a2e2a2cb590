"""The differences that the paper's claims are about, on cells whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import claims  # noqa: E402
from relocal_pyg.evaluation.results import Evaluation, PairRecord  # noqa: E402


def cell(n: int, k: int, graph: bool) -> float:
    """Each layer adds 2, the graphs add 3 and then 1, the graph itself 5 (percent of tIoU)."""
    return (2 * n + (3 if k > 1 else 0) + (1 if k > 2 else 0) + (5 if graph else 0)) / 100


@pytest.mark.slow
def test_planted_effects_come_back(tmp_path, capsys):
    for n in (1, 2, 3):
        for k in (1, 2, 3):
            for graph in (True, False):
                for seed in (0, 1):
                    title = f"n={n}, k={k}{'' if graph else ', CNN'}"
                    answer(title, seed, cell(n, k, graph)).save(
                        tmp_path / "answers" / f"{n}-{k}-{graph}-{seed}"
                    )
    answer("Contrast matcher", None, 0.1).save(tmp_path / "answers" / "matcher")
    cells, clusters = claims.read_cells(tmp_path)
    assert len(cells) == 18
    found = {
        name: claims.estimate(values, clusters)[2]
        for name, values in claims.contrasts(cells).items()
    }
    expected = {
        "graph - CNN, all cells": 5,
        "k=2 - k=1": 3,
        "k=3 - k=2": 1,
        "k=3 - k=1": 4,
        "n=2 - n=1": 2,
        "n=3 - n=2": 2,
        "n=3 - n=1": 4,
        "second step of k - first step of k": -2,
    }
    assert {name: mean for name, (mean, _, _) in found.items()} == pytest.approx(expected)
    for mean, low, high in found.values():  # every pair and seed shows the same effect
        assert low == pytest.approx(mean)
        assert high == pytest.approx(mean)
    claims.main((tmp_path,))
    assert "| graph - CNN, all cells | +0.0 (+0.0 to +0.0) |" in capsys.readouterr().out


def answer(title: str, seed: int | None, effect: float) -> Evaluation:
    """Three pairs of three videos, each of its own difficulty."""
    records = tuple(
        PairRecord(
            query_id=f"q{number}",
            reference_id=f"r{number}",
            label="a",
            video_id=f"v{number}",
            seconds_per_step=1.0,
            reference_steps=10,
            query_steps=3,
            truths=((2.0, 5.0),),
            truth_seconds=3.0,
            moments=((2.0, 5.0),),
            scores=(1.0,),
            tious=(0.1 * number + effect,),
            before=None,
            tiou_before=None,
            recall=((0.5,),) * 5,
            oracle=0.9,
            num_proposals=4,
            seconds=0.0,
        )
        for number in range(3)
    )
    return Evaluation(title, "p", "test", "0" * 64, 0, "video", records, seed=seed)


def test_a_grid_in_part_is_read_over_the_seeds_that_all_cells_have(tmp_path):
    for name, title, seed in (("a", "n=1, k=1", 0), ("b", "n=1, k=1", 1), ("c", "n=1, k=2", 1)):
        answer(title, seed, 0.0).save(tmp_path / "answers" / name)
    cells, _ = claims.read_cells(tmp_path)
    assert {place: len(values) for place, values in cells.items()} == {
        (1, 1, True): 1,
        (1, 2, True): 1,
    }
    assert torch.equal(cells[1, 1, True], cells[1, 2, True])
