"""Does a reference hold the action at all? How well scores and probabilities tell."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from relocal_pyg.evaluation.results import Estimate, Evaluation, NullRecord, PairRecord
from relocal_pyg.evaluation.statistics import auroc_interval

#: The row that a model has to beat where references of the two kinds differ in length.
LENGTH = "Length of the reference"
#: Most bins of a calibration error.
MAX_BINS = 10
_LEAST_IN_BIN = 10

_Record = PairRecord | NullRecord


@dataclass(frozen=True)
class CalibrationError:
    """How far probabilities are from frequencies, see :func:`calibration_error`.

    Attributes:
        value: The error.
        by_chance: What so many answers show on average where every probability is exact.
    """

    value: float
    by_chance: float


@dataclass(frozen=True)
class PresenceRow:
    """One line of the table.

    Attributes:
        title: Name of the model.
        by: What tells: the score of the best answer, the probability, or a length.
        auroc: Chance that a reference with the action ranks above one without, ties counted half.
        num_pairs: References that hold the action.
        num_nulls: References that do not.
        presence_error: Calibration error of the probability that the reference holds the action.
        moment_error: Calibration error of the probability that the best answer is right (tIoU above
            0.5), over both kinds of references.
    """

    title: str
    by: Literal["score", "probability", "length"]
    auroc: Estimate
    num_pairs: int
    num_nulls: int
    presence_error: CalibrationError | None = None
    moment_error: CalibrationError | None = None


def presence_rows(
    evaluations: Mapping[str, Sequence[Evaluation]], *, samples: int = 1000, seed: int = 0
) -> tuple[PresenceRow, ...]:
    """The table: a row for scores, one for probabilities where there are any, lengths at the end.

    Args:
        evaluations: By title, one a training seed; those that met no reference without the action
            are left out.
        samples: How often to resample source videos and seeds.
        seed: Seed of the draws.

    Returns:
        Rows by falling AUROC; none where no model met such references.
    """
    asked = {t: runs for t, runs in evaluations.items() if all(run.nulls for run in runs)}
    rows = []
    for title, runs in asked.items():
        rows.append(_row(title, "score", runs, _score, samples, seed))
        if all(record.presence is not None for run in runs for record in run.nulls):
            rows.append(_row(title, "probability", runs, _presence, samples, seed))
    rows.sort(key=lambda row: (-row.auroc.value, row.title, row.by))
    for runs in list(asked.values())[:1]:
        rows.append(_row(LENGTH, "length", runs[:1], _length, samples, seed))
    return tuple(rows)


def calibration_error(
    probabilities: Tensor, outcomes: Tensor, *, draws: int = 200, seed: int = 0
) -> CalibrationError:
    """Expected calibration error over bins of equal count.

    Answers are sorted by probability and cut into at most ten bins of ten answers or more; the
    error is the mean over bins, by size, of the distance between mean probability and frequency. It
    is never 0 for few answers, which is why the error by chance stands beside it.

    Args:
        probabilities: ``[N]``, at least one.
        outcomes: ``[N]`` of 0 and 1.
        draws: How often outcomes are drawn from the probabilities, for the error by chance.
        seed: Seed of these draws.

    Example:
        >>> calibration_error(torch.full((20,), 0.5), torch.tensor([1.0, 0.0] * 10)).value
        0.0
    """
    values, order = probabilities.double().sort(stable=True)
    bins = max(1, min(MAX_BINS, len(values) // _LEAST_IN_BIN))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(draws, len(values), generator=generator, dtype=torch.float64) < values
    both = torch.cat([outcomes.double()[order][None], drawn.double()])
    gaps = [part.sum(dim=1).abs() for part in (both - values).tensor_split(bins, dim=1)]
    errors = torch.stack(gaps).sum(dim=0) / len(values)
    return CalibrationError(errors[0].item(), errors[1:].mean().item())


def _row(
    title: str,
    by: Literal["score", "probability", "length"],
    runs: Sequence[Evaluation],
    tell: Callable[[_Record], float],
    samples: int,
    seed: int,
) -> PresenceRow:
    first = runs[0]
    held, empty = (
        torch.tensor([[tell(r) for r in getattr(run, side)] for run in runs], dtype=torch.float64)
        for side in ("records", "nulls")
    )
    places = [record.video_id for record in first.nulls]
    value, low, high = auroc_interval(
        held, empty, first.clusters, places, samples=samples, seed=seed
    )
    auroc = Estimate.known(value, low, high)
    row = PresenceRow(title, by, auroc, len(first), len(first.nulls))
    if by != "probability":
        return row
    return replace(
        row,
        presence_error=_mean_error(runs, _presence, lambda record: True),
        moment_error=_mean_error(runs, _probability, lambda record: record.tiou > 0.5),
    )


def _mean_error(
    runs: Sequence[Evaluation],
    tell: Callable[[_Record], float],
    happened: Callable[[PairRecord], bool],
) -> CalibrationError:
    errors = []
    for run in runs:
        # Probabilities are fitted on as many references that hold the action as that do not.
        asked = {null.query_id for null in run.nulls}
        held = [record for record in run.records if record.query_id in asked]
        every: list[_Record] = [*held, *run.nulls]
        values = torch.tensor([tell(record) for record in every])
        outcomes = [float(happened(record)) for record in held] + [0.0] * len(run.nulls)
        errors.append(calibration_error(values, torch.tensor(outcomes)))
    return CalibrationError(
        statistics.fmean(error.value for error in errors),
        statistics.fmean(error.by_chance for error in errors),
    )


def _score(record: _Record) -> float:
    if isinstance(record, PairRecord):
        return record.scores[0] if record.scores else -torch.inf
    return -torch.inf if record.score is None else record.score


def _presence(record: _Record) -> float:
    return record.presence or 0.0


def _probability(record: _Record) -> float:
    return record.probability or 0.0


def _length(record: _Record) -> float:
    return float(record.reference_steps)
