"""What one model answered to one query on one reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from relocal_pyg.evaluation.overlaps import above
from relocal_pyg.moments import tiou

Span = tuple[float, float]

#: Columns of ``pairs.csv``; times are seconds of the reference.
CSV_COLUMNS = (
    "query_id",
    "reference_id",
    "label",
    "video_id",
    "start_seconds",
    "end_seconds",
    "score",
    "tiou",
    "tiou_before",
    "oracle_tiou",
    "num_proposals",
    "rank_seconds",
    "truths_seconds",
    "probability",
    "presence",
)


@dataclass(frozen=True)
class NullRecord:
    """The best answer to a query on a reference that does not hold its action.

    Attributes:
        query_id: Item whose moment was the query.
        reference_id: What the reference is, see :func:`relocal_pyg.data.nulls.make_null_pairs`.
        video_id: Source video of the reference; intervals resample these.
        reference_steps: Length of the reference.
        score: Score of the best answer; None where there are no proposals.
        probability: Of the best answer being right, where the model is calibrated.
        presence: Probability that the reference holds the action, likewise.
    """

    query_id: str
    reference_id: str
    video_id: str
    reference_steps: int
    score: float | None
    probability: float | None = None
    presence: float | None = None


@dataclass(frozen=True)
class PairRecord:
    """The answer to one query on one reference.

    Moments are half-open, in steps counted from the start of the reference's context; the
    properties give seconds.

    Attributes:
        query_id: Item whose moment was the query.
        reference_id: Item whose context was the reference.
        label: Their class.
        video_id: Source video of the reference; intervals resample these.
        seconds_per_step: Duration of one step of the reference.
        reference_steps: Length of the reference.
        query_steps: Length of the query.
        truths: Every moment of the reference that counts as right.
        truth_seconds: Length in seconds of the reference item's own moment.
        moments: Best answers after non-maximum suppression, best first.
        scores: Their scores.
        tious: Overlap of each with the truth that it fits best.
        before: The best answer before boundary refinement, None where nothing is refined.
        tiou_before: Its overlap.
        recall: Overlap of each truth with the best of the first 1, 5, 10, 50, 100 proposals.
        oracle: Overlap of the best proposal with the truth that it fits best.
        num_proposals: Number of proposals; 0 counts as a miss.
        seconds: Time that the model took to rank, features already read.
        probability: Of the best answer being right, where the model is calibrated.
        presence: Probability that the reference holds the action, likewise.
    """

    query_id: str
    reference_id: str
    label: str
    video_id: str
    seconds_per_step: float
    reference_steps: int
    query_steps: int
    truths: tuple[Span, ...]
    truth_seconds: float
    moments: tuple[Span, ...]
    scores: tuple[float, ...]
    tious: tuple[float, ...]
    before: Span | None
    tiou_before: float | None
    recall: tuple[tuple[float, ...], ...]
    oracle: float
    num_proposals: int
    seconds: float
    probability: float | None = None
    presence: float | None = None

    @property
    def tiou(self) -> float:
        """Overlap of the best answer; 0 where there is none."""
        return self.tious[0] if self.tious else 0.0

    @property
    def instances_met(self) -> float:
        """Share of the truths that one of the first five answers meets with a tIoU above 0.5."""
        truths = torch.tensor(self.truths, dtype=torch.float64)
        answers = torch.tensor(self.moments[:5], dtype=torch.float64).reshape(-1, 1, 2)
        met = above(tiou(answers, truths[None]), (0.5,)).any(dim=0)
        return met.double().mean().item()

    @property
    def moments_seconds(self) -> list[Span]:
        """Best answers in seconds of the reference."""
        return self._in_seconds(self.moments)

    @property
    def truths_seconds(self) -> list[Span]:
        """Truths in seconds of the reference."""
        return self._in_seconds(self.truths)

    @property
    def before_seconds(self) -> Span | None:
        """The best answer before refinement in seconds of the reference."""
        return None if self.before is None else self._in_seconds([self.before])[0]

    def csv_row(self) -> list[object]:
        """The record in the order of :data:`CSV_COLUMNS`; an absent value is empty."""
        start, end = self.moments_seconds[0] if self.moments else ("", "")
        return [
            self.query_id,
            self.reference_id,
            self.label,
            self.video_id,
            start,
            end,
            self.scores[0] if self.scores else "",
            self.tiou,
            "" if self.tiou_before is None else self.tiou_before,
            self.oracle,
            self.num_proposals,
            self.seconds,
            " ".join(f"{start:g}-{end:g}" for start, end in self.truths_seconds),
            "" if self.probability is None else self.probability,
            "" if self.presence is None else self.presence,
        ]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PairRecord:
        """Rebuild a record from its JSON form: lists become tuples again, further keys are left."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name in ("truths", "moments", "recall"):
            known[name] = tuple(tuple(row) for row in known[name])
        for name in ("scores", "tious"):
            known[name] = tuple(known[name])
        if known["before"] is not None:
            known["before"] = tuple(known["before"])
        return cls(**known)

    def _in_seconds(self, spans: Sequence[Span]) -> list[Span]:
        scale = self.seconds_per_step
        return [(start * scale, end * scale) for start, end in spans]
