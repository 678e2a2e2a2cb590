"""What one model answered on one pair list: its scores, its presence, how it is kept on disk."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relocal_pyg.errors import RelocalError, shorten
from relocal_pyg.evaluation.metrics import (
    AVERAGED,
    BUDGETS,
    RECALL_THRESHOLDS,
    SHOWN,
    THRESHOLDS,
    MomentMAP,
    above,
    length_buckets,
    map_at_1,
)
from relocal_pyg.evaluation.statistics import (
    Estimate,
    auroc_interval,
    bootstrap_interval,
    calibration_error,
)
from relocal_pyg.io.read import read_json
from relocal_pyg.io.write import replace_file, write_json
from relocal_pyg.moments import tiou


def estimate_scores(
    tious: Tensor,
    clusters: Sequence[Hashable],
    *,
    best_of_5: Tensor | None = None,
    instances: Tensor | None = None,
    before: Tensor | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every score that is a mean over queries, each with its interval.

    Several runs of one system (training seeds) are averaged; their interval resamples source
    videos and runs, see :func:`bootstrap_interval`.

    Args:
        tious: ``[R, N]`` tIoU of the best answer, R runs over the same N pairs.
        clusters: N source videos of the references.
        best_of_5: ``[R, N]`` best tIoU of the first five answers.
        instances: ``[R, N]`` share of the reference's truths met by the first five answers.
        before: ``[R, N]`` tIoU of the best answer before boundary refinement.
        samples: How often to resample.
        seed: Seed of the draws.

    Returns:
        By name: ``mAP@1@<threshold>``, ``avg_mAP@1``, ``mIoU``, ``R@5@<threshold>``,
        ``all@5@0.5`` and the first three with ``before/`` in front.
    """
    columns: dict[str, Tensor] = {}
    counted: dict[str, Tensor] = {}
    for prefix, overlaps in (("", tious), ("before/", before), ("R@5@", best_of_5)):
        if overlaps is None:
            continue
        recall = prefix == "R@5@"
        shown = THRESHOLDS if recall else SHOWN
        metric = MomentMAP(shown, average=True)
        metric.update(overlaps.flatten())
        values, passed = metric.compute(), above(overlaps, shown).double()
        for number, threshold in enumerate(shown):
            name = f"{prefix}{'' if recall else 'mAP@1@'}{threshold:g}"
            columns[name], counted[name] = passed[..., number], values[threshold]
        if not recall:
            name = f"{prefix}avg_mAP@1"
            columns[name] = above(overlaps, AVERAGED).double().mean(dim=-1)
            counted[name] = values["avg_mAP@1"]
            columns[f"{prefix}mIoU"] = overlaps
    if instances is not None:
        columns["all@5@0.5"] = instances
    num_runs, num_pairs = tious.shape
    table = torch.stack([column.reshape(-1) for column in columns.values()], dim=1).double()
    runs = torch.arange(num_runs).repeat_interleave(num_pairs).tolist()
    low, high = bootstrap_interval(
        table, list(clusters) * num_runs, runs, samples=samples, seed=seed
    )
    return {
        name: Estimate.known(counted.get(name, table[:, number].mean()), low[number], high[number])
        for number, name in enumerate(columns)
    }


Span = tuple[float, float]


@dataclass(frozen=True)
class PairRecord:
    """The answer to one query on one reference, which holds its action or, without truths, not.

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
        truths: Every moment of the reference that counts as right; none where the reference does
            not hold the action (:func:`relocal_pyg.data.pairs.make_null_pairs`).
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
        """Overlap of the best answer; 0 where there is none, or nothing to find."""
        return self.tious[0] if self.tious else 0.0

    @property
    def score(self) -> float:
        """Score of the best answer; minus infinity where there is none."""
        return self.scores[0] if self.scores else -math.inf

    @property
    def instances_met(self) -> float:
        """Share of the truths that one of the first five answers meets with a tIoU above 0.5.

        It is 0 where there is nothing to find.
        """
        if not self.truths:
            return 0.0
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

    def csv_row(self) -> dict[str, object]:
        """A row of ``pairs.csv``, in seconds of the reference; what is None stays empty there."""
        start, end = self.moments_seconds[0] if self.moments else (None, None)
        return {
            "query_id": self.query_id,
            "reference_id": self.reference_id,
            "label": self.label,
            "video_id": self.video_id,
            "start_seconds": start,
            "end_seconds": end,
            "score": self.scores[0] if self.scores else None,
            "tiou": self.tiou,
            "tiou_before": self.tiou_before,
            "oracle_tiou": self.oracle,
            "num_proposals": self.num_proposals,
            "rank_seconds": self.seconds,
            "truths_seconds": " ".join(f"{s:g}-{e:g}" for s, e in self.truths_seconds),
            "probability": self.probability,
            "presence": self.presence,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PairRecord:
        """Rebuild a record from its JSON form: lists become tuples again, further keys are left.

        Raises:
            KeyError: A field is missing.
            TypeError: One is of another kind.
            ValueError: A list is of another shape, or an overlap is none.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        known["truths"], known["moments"] = (_rows(known[x], 2) for x in ("truths", "moments"))
        known["recall"] = _rows(known["recall"], len(known["truths"]))
        for name in ("scores", "tious"):
            (known[name],) = _rows([known[name]], len(known["moments"] if known[name] else ()))
        if known["before"] is not None:
            (known["before"],) = _rows([known["before"]], 2)
        record = cls(**known)
        _check_kinds(record)
        told = record.oracle, record.tiou_before or 0.0, *record.tious
        if not all(0 <= overlap <= 1 for overlap in told):
            raise ValueError(f"tIoU {told}")
        if len(record.recall) != len(BUDGETS) or len(record.scores) != len(record.moments):
            raise ValueError(f"{record.query_id} in {record.reference_id}: lists differ in length")
        return record

    def _in_seconds(self, spans: Sequence[Span]) -> list[Span]:
        scale = self.seconds_per_step
        return [(start * scale, end * scale) for start, end in spans]


_KINDS = {"str": str, "int": int, "float": int | float, "bool": bool, "dict[str, Any]": dict}


def _check_kinds(made: PairRecord | Evaluation) -> None:
    """Refuse what a file made where a plain field is of another kind than its annotation."""
    for each in fields(made):
        wanted, _, absent = str(each.type).partition(" | ")
        value = getattr(made, each.name)
        if wanted in _KINDS and not (absent and value is None):
            right = isinstance(value, _KINDS[wanted])
            if not right or isinstance(value, bool) != (wanted == "bool"):
                raise TypeError(f"{each.name} is {shorten(value)}")


def _rows(values: Any, width: int) -> tuple[Any, ...]:
    """Lists of so many numbers as tuples."""
    found = torch.tensor(values, dtype=torch.float64)
    if found.shape not in ((len(values), width), (0,)):
        raise ValueError(f"{shorten(values)}: rows of {width} numbers wanted")
    return tuple(map(tuple, found.tolist()))


_FORMAT = 2


@dataclass(frozen=True)
class Evaluation:
    """One model on one pair list.

    Attributes:
        title: Name of the model in tables.
        protocol: Name of the protocol.
        split: The split that was tested.
        pairs_sha256: Hash of the pair list: only evaluations of one list belong in one table.
        pairs_seed: Seed of the pair list.
        exclude: What a query never met: ``"video"``, ``"item"`` or ``"none"``.
        records: One a pair, in the order of the list.
        reconstructed: Whether the model was rebuilt without its source.
        seed: Seed that the model was trained with, where there is one.
        settings: How it was run.
        environment: Versions, see :func:`relocal_pyg.evaluation.environment`.
        about: The protocol's own facts.
        nulls: The answers on references without the action, where they were asked for.
        nulls_sha256: Hash of the list of those.
    """

    title: str
    protocol: str
    split: str
    pairs_sha256: str
    pairs_seed: int
    exclude: str
    records: tuple[PairRecord, ...]
    reconstructed: bool = False
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    nulls: tuple[PairRecord, ...] = ()
    nulls_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def tious(self) -> Tensor:
        """Overlap of the best answers after refinement, float64 ``[N]``."""
        return torch.tensor([record.tiou for record in self.records], dtype=torch.float64)

    @cached_property
    def tious_before(self) -> Tensor | None:
        """The same before refinement; None where the model refines nothing."""
        if all(record.tiou_before in (None, record.tiou) for record in self.records):
            return None
        return torch.tensor(
            [r.tiou if r.tiou_before is None else r.tiou_before for r in self.records],
            dtype=torch.float64,
        )

    @cached_property
    def best_of_5(self) -> Tensor | None:
        """Best overlap of the first five answers, ``[N]``; None where fewer were asked for."""
        if self.settings.get("top_k", 5) < 5:
            return None
        best = [max(record.tious[:5], default=0.0) for record in self.records]
        return torch.tensor(best, dtype=torch.float64)

    @cached_property
    def instances_met(self) -> Tensor | None:
        """Share of each reference's truths that the first five answers meet, as above."""
        if self.settings.get("top_k", 5) < 5:
            return None
        return torch.tensor([r.instances_met for r in self.records], dtype=torch.float64)

    @cached_property
    def oracle_tious(self) -> Tensor:
        """Overlap of the best proposals, ``[N]``."""
        return torch.tensor([record.oracle for record in self.records], dtype=torch.float64)

    @property
    def clusters(self) -> list[str]:
        """Source video of each reference."""
        return [record.video_id for record in self.records]

    @property
    def proposals_per_reference(self) -> float:
        """Mean number of proposals."""
        return statistics.fmean(record.num_proposals for record in self.records)

    @property
    def average_recall(self) -> dict[int, float]:
        """AR@AN: share of the truths met by the first AN proposals, averaged over thresholds.

        As in ActivityNet's task an overlap that equals a threshold meets it.
        """
        recall = torch.cat([torch.tensor(r.recall, dtype=torch.float64) for r in self.records], 1)
        met = above(recall, RECALL_THRESHOLDS, strict=False).double().mean(dim=(1, 2))
        return dict(zip(BUDGETS, met.tolist(), strict=True))

    def by_length(self) -> dict[str, dict[str, Any]]:
        """Pairs, mAP@1 and mIoU by length of the truth; scores are None where there is no pair."""
        lengths = torch.tensor([record.truth_seconds for record in self.records])
        return {name: self._part(inside) for name, inside in length_buckets(lengths).items()}

    def by_label(self) -> dict[str, dict[str, Any]]:
        """Pairs, mAP@1 and mIoU by class, in the order of the alphabet."""
        return {label: self._part(inside) for label, inside in self._by_label().items()}

    def summary(self, *, samples: int = 1000) -> dict[str, Any]:
        """Every score with its 95 % interval from so many ``samples``, for JSON.

        Intervals resample the references' source videos, each with all of its pairs.
        """
        scores = score_runs([self], samples=samples)
        limits = estimate_scores(self.oracle_tious[None], self.clusters, samples=samples)
        classes = [map_at_1(self.tious[inside]) for inside in self._by_label().values()]
        times = [record.seconds for record in self.records]
        return {
            "model": self.title,
            "reconstructed": self.reconstructed,
            "seed": self.seed,
            "protocol": self.protocol,
            "split": self.split,
            "pairs": len(self),
            "pairs_sha256": self.pairs_sha256,
            "pairs_seed": self.pairs_seed,
            "exclude": self.exclude,
            "source_videos": len(set(self.clusters)),
            "scores": {name: asdict(score) for name, score in scores.items()},
            "macro_mAP@1": {f"{t:g}": statistics.fmean(c[t] for c in classes) for t in THRESHOLDS},
            "oracle": {name: asdict(score) for name, score in limits.items()},
            "AR@AN": {str(budget): value for budget, value in self.average_recall.items()},
            "by_length": self.by_length(),
            "by_label": self.by_label(),
            "proposals_per_reference": self.proposals_per_reference,
            "pairs_without_proposals": sum(not record.num_proposals for record in self.records),
            "seconds_per_query": {
                "mean": statistics.fmean(times),
                "median": statistics.median(times),
            },
        }

    def save(self, folder: str | Path) -> None:
        """Write ``evaluation.json`` (all of it), ``metrics.json`` and ``pairs.csv``.

        Args:
            folder: Made where it is missing; files of an earlier call are replaced.

        Raises:
            OutputError: A file could not be written; what was there before is intact.
        """
        folder = Path(folder)
        everything = {"format": _FORMAT, **asdict(self)}
        for plain, record in zip(everything["records"], self.records, strict=True):
            plain["moments_seconds"] = record.moments_seconds
        write_json(folder / "evaluation.json", everything)
        write_json(folder / "metrics.json", self.summary())
        with (
            replace_file(folder / "pairs.csv") as temporary,
            Path(temporary).open("w", encoding="utf-8", errors="surrogatepass", newline="") as file,
        ):
            writer = csv.writer(file)
            rows = [record.csv_row() for record in self.records]
            writer.writerow(rows[0])
            writer.writerows(row.values() for row in rows)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what :meth:`save` wrote.

        Raises:
            RelocalError: The file is missing, damaged, or of another version of the format.
        """
        path = Path(folder) / "evaluation.json"
        values = read_json(path, RelocalError)
        try:
            if values.pop("format") != _FORMAT:
                raise RelocalError("written by another version: evaluate again", file=path)
            for name in ("records", "nulls"):
                values[name] = tuple(map(PairRecord.from_json, values[name]))
            found = cls(**values)
            _check_kinds(found)
            if not found.records or not all(record.truths for record in found.records):
                raise ValueError("no pair, or one with nothing to find")
            return found
        except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as error:
            raise RelocalError(f"not an evaluation ({error!r})", file=path) from None

    def _by_label(self) -> dict[str, Tensor]:
        labels = [record.label for record in self.records]
        return {x: torch.tensor([other == x for other in labels]) for x in sorted(set(labels))}

    def _part(self, inside: Tensor) -> dict[str, Any]:
        """Scores of some of the pairs; None where there are none."""
        tious = self.tious[inside]
        if len(tious) == 0:
            return {"pairs": 0, "mAP@1@0.5": None, "mAP@1@0.7": None, "mIoU": None}
        hits = {f"mAP@1@{t:g}": value for t, value in map_at_1(tious, (0.5, 0.7)).items()}
        return {"pairs": len(tious), **hits, "mIoU": tious.mean().item()}


def score_runs(
    runs: Sequence[Evaluation], *, samples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """:func:`estimate_scores` of runs of one system over the same pairs."""

    def column(name: str) -> Tensor | None:
        values = [getattr(run, name) for run in runs]
        return None if any(value is None for value in values) else torch.stack(values)

    return estimate_scores(
        torch.stack([run.tious for run in runs]),
        runs[0].clusters,
        best_of_5=column("best_of_5"),
        instances=column("instances_met"),
        before=column("tious_before"),
        samples=samples,
        seed=seed,
    )


#: The row that a model has to beat where references of the two kinds differ in length.
LENGTH = "Length of the reference"


@dataclass(frozen=True)
class PresenceRow:
    """One line of the table.

    Attributes:
        title: Name of the model.
        by: What tells: the score of the best answer, the probability, or a length.
        auroc: Chance that a reference with the action ranks above one without, ties counted half.
        num_pairs: References that hold the action.
        num_nulls: References that do not.
        presence_error: Calibration error of the probability that the reference holds the action,
            and that by chance (:func:`~relocal_pyg.evaluation.statistics.calibration_error`).
        moment_error: The same of the probability that the best answer is right (tIoU above 0.5),
            over both kinds of references.
    """

    title: str
    by: Literal["score", "probability", "length"]
    auroc: Estimate
    num_pairs: int
    num_nulls: int
    presence_error: tuple[float, float] | None = None
    moment_error: tuple[float, float] | None = None


def presence_rows(
    evaluations: Mapping[str, Sequence[Evaluation]], *, samples: int = 1000, seed: int = 0
) -> tuple[PresenceRow, ...]:
    """The table: a row for scores, one for probabilities where there are any, lengths at the end.

    Evaluations are by title, one a training seed; those that met no reference without the action
    are left out.
    """
    drawn = {"samples": samples, "seed": seed}
    asked = {t: runs for t, runs in evaluations.items() if all(run.nulls for run in runs)}
    rows = []
    for title, runs in asked.items():
        rows.append(_presence_row(title, "score", runs, lambda r: r.score, **drawn))
        if all(record.presence is not None for run in runs for record in run.nulls):
            rows.append(
                _presence_row(title, "probability", runs, lambda r: r.presence or 0.0, **drawn)
            )
    rows.sort(key=lambda row: (-row.auroc.value, row.title, row.by))
    for runs in list(asked.values())[:1]:
        rows.append(_presence_row(LENGTH, "length", runs[:1], lambda r: r.reference_steps, **drawn))
    return tuple(rows)


def _presence_row(
    title: str,
    by: Literal["score", "probability", "length"],
    runs: Sequence[Evaluation],
    tell: Callable[[PairRecord], float],
    **drawn: int,
) -> PresenceRow:
    first = runs[0]
    held, empty = (
        torch.tensor([[tell(r) for r in getattr(run, side)] for run in runs], dtype=torch.float64)
        for side in ("records", "nulls")
    )
    places = [record.video_id for record in first.nulls]
    auroc = Estimate.known(*auroc_interval(held, empty, first.clusters, places, **drawn))
    row = PresenceRow(title, by, auroc, len(first), len(first.nulls))
    if by != "probability":
        return row
    return replace(
        row,
        presence_error=_mean_error(runs, tell, lambda record: bool(record.truths)),
        moment_error=_mean_error(
            runs, lambda record: record.probability or 0.0, lambda record: record.tiou > 0.5
        ),
    )


def _mean_error(
    runs: Sequence[Evaluation],
    tell: Callable[[PairRecord], float],
    happened: Callable[[PairRecord], bool],
) -> tuple[float, float]:
    errors = []
    for run in runs:
        # Probabilities are fitted on as many references that hold the action as that do not.
        asked = {null.query_id for null in run.nulls}
        every = [r for r in run.records if r.query_id in asked] + list(run.nulls)
        values = torch.tensor([tell(record) for record in every])
        errors.append(calibration_error(values, torch.tensor([happened(r) for r in every])))
    value, by_chance = (statistics.fmean(column) for column in zip(*errors, strict=True))
    return value, by_chance
