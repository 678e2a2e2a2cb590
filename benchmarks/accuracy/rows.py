"""One row: train (or take the finished run), test once, keep every answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.accuracy import recipes, sets
from relocal_pyg.data.items import Protocol
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import Evaluation, evaluate
from relocal_pyg.io.write import write_json
from relocal_pyg.models import Calibrated, ContrastMatcher
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.training.recipe import CALIBRATION_PAIRS, draw_nulls, draw_pairs, train_all
from relocal_pyg.training.validation import calibrate

#: Test pairs of a split at most, where no other number is given.
MOST_PAIRS = 300


@dataclass(frozen=True)
class Cell:
    """What a row is made of.

    Attributes:
        data: One of :data:`benchmarks.accuracy.sets.SETS`.
        recipe: Its name in :mod:`benchmarks.accuracy.recipes`.
        size: Training items of a class at most; all where None.
        seed: Draws the split, what is simulated, and the weights.
        splits: Test splits; all where none is named.
        nulls: Calibrate on validation pairs, and ask about references without the action as well.
        steps: Optimiser steps at most, instead of the recipe's own number.
        pairs: Test pairs of a split at most, drawn at random from the hashed list.
    """

    data: str
    recipe: str
    size: int | None
    seed: int
    splits: tuple[str, ...] = ()
    nulls: bool = False
    steps: int | None = None
    pairs: int = MOST_PAIRS

    def folder(self, out: Path) -> Path:
        """Where its answers are kept."""
        name = self.recipe.replace(" ", "-").replace("'", "").replace(",", "")
        return out / "answers" / self.data / f"{name}-{self.items}-seed{self.seed}"

    @property
    def items(self) -> str:
        """Training items of a class, as tables say it."""
        return "all" if self.size is None else str(self.size)


def run(cell: Cell, data: Path | None, out: Path) -> bool:
    """Make a row, unless it was made before: a test split is looked at once.

    Returns:
        Whether the data set has so many items a class that the row exists.
    """
    folder = cell.folder(out)
    if (folder / "row.json").is_file():
        return True
    protocol = sets.with_items(
        sets.load(cell.data, cell.seed, data, out / "features"), cell.size, cell.seed
    )
    if protocol is None:
        return False
    splits = [name for name in protocol.test_splits() if not cell.splits or name in cell.splits]
    matcher = ContrastMatcher()
    _test(matcher, protocol, splits, folder / "matcher", "contrast matcher", cell)
    started = time.process_time()
    model = _model(cell, protocol, out / "runs")
    seconds = time.process_time() - started
    _test(model, protocol, splits, folder / "trained", cell.recipe, cell)
    write_json(
        folder / "row.json",
        {**dataclasses.asdict(cell), "training_seconds": seconds, "about": protocol.about},
    )
    return True


def _model(cell: Cell, protocol: Protocol, runs: Path) -> Relocalizer:
    if cell.recipe in recipes.FREE:
        return recipes.FREE[cell.recipe]()
    system = recipes.systems()[cell.recipe]
    if cell.steps is not None:
        system = recipes.short(system, cell.steps, cell.pairs)
    if cell.recipe == recipes.TUNED:  # what a run starts from is no part of its name
        runs /= "tuned"
    return next(train_all([system], protocol, [cell.seed], runs)).model


def answers(cell: Cell, out: Path) -> Iterator[tuple[str, Evaluation, Evaluation]]:
    """Split, evaluation of the trained model and of the matcher on the same pairs."""
    folder = cell.folder(out)
    for split in sorted(path.name for path in (folder / "trained").iterdir()):
        yield (
            split,
            Evaluation.load(folder / "trained" / split),
            Evaluation.load(folder / "matcher" / split),
        )


@torch.no_grad()
def _test(
    model: Relocalizer, protocol: Protocol, splits: list[str], folder: Path, title: str, cell: Cell
) -> None:
    if cell.nulls:
        with suppress(UsageError):  # too few validation pairs: scores alone are compared
            model = Calibrated(model, calibrate(model, protocol, limit=CALIBRATION_PAIRS))
    for split in splits:
        pairs = draw_pairs(protocol, split, cell.pairs)
        nulls = draw_nulls(protocol, pairs) if cell.nulls else None
        evaluate(model, protocol, pairs, nulls=nulls, title=title, seed=cell.seed).save(
            folder / split
        )
