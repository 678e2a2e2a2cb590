"""What one model answered on one pair list: its scores, and how they are kept on disk."""

from __future__ import annotations

import csv
import statistics
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relocal_pyg.errors import RelocalError
from relocal_pyg.evaluation.metrics import class_mean, length_buckets
from relocal_pyg.evaluation.overlaps import above
from relocal_pyg.evaluation.records import CSV_COLUMNS, NullRecord, PairRecord
from relocal_pyg.evaluation.scores import Estimate, estimate_scores
from relocal_pyg.evaluation.thresholds import BUDGETS, RECALL_THRESHOLDS, THRESHOLDS
from relocal_pyg.reading import read_json
from relocal_pyg.storage import replace_file, write_json

_FORMAT = 1


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
    nulls: tuple[NullRecord, ...] = ()
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
        values = [record.tiou_before for record in self.records]
        if all(value is None for value in values):
            return None
        filled = [
            record.tiou if value is None else value
            for record, value in zip(self.records, values, strict=True)
        ]
        return torch.tensor(filled, dtype=torch.float64)

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
    def average_recall(self) -> dict[int, float]:
        """AR@AN of the proposals by number of proposals, see :func:`average_recall`."""
        recall = torch.cat([torch.tensor(r.recall, dtype=torch.float64) for r in self.records], 1)
        passed = above(recall, RECALL_THRESHOLDS).double().mean(dim=(1, 2))
        return dict(zip(BUDGETS, passed.tolist(), strict=True))

    def by_length(self) -> dict[str, dict[str, Any]]:
        """Pairs, mAP@1 and mIoU by length of the truth; scores are None where there is no pair."""
        lengths = torch.tensor([record.truth_seconds for record in self.records])
        return {name: self._part(inside) for name, inside in length_buckets(lengths).items()}

    def by_label(self) -> dict[str, dict[str, Any]]:
        """Pairs, mAP@1 and mIoU by class, in the order of the alphabet."""
        labels = [record.label for record in self.records]
        return {
            label: self._part(torch.tensor([other == label for other in labels]))
            for label in sorted(set(labels))
        }

    def summary(self, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Every score with its 95 % interval, for JSON.

        Intervals resample the references' source videos, each with all of its pairs.

        Args:
            samples: How often to resample.
            seed: Seed of the draws.
        """
        labels = [record.label for record in self.records]
        before, best_of_5, met = self.tious_before, self.best_of_5, self.instances_met
        scores = estimate_scores(
            self.tious[None],
            self.clusters,
            best_of_5=None if best_of_5 is None else best_of_5[None],
            instances=None if met is None else met[None],
            before=None if before is None else before[None],
            samples=samples,
            seed=seed,
        )
        limits = estimate_scores(self.oracle_tious[None], self.clusters, samples=samples, seed=seed)
        macro = class_mean(above(self.tious, THRESHOLDS), labels).tolist()
        times = [record.seconds for record in self.records]
        proposals = [record.num_proposals for record in self.records]
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
            "scores": _plain(scores),
            "macro_mAP@1": {f"{t:g}": v for t, v in zip(THRESHOLDS, macro, strict=True)},
            "oracle": _plain(limits),
            "AR@AN": {str(budget): value for budget, value in self.average_recall.items()},
            "by_length": self.by_length(),
            "by_label": self.by_label(),
            "proposals_per_reference": statistics.fmean(proposals),
            "pairs_without_proposals": proposals.count(0),
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
            writer.writerow(CSV_COLUMNS)
            writer.writerows(record.csv_row() for record in self.records)

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
            values["records"] = tuple(map(PairRecord.from_json, values["records"]))
            values["nulls"] = tuple(NullRecord(**null) for null in values.get("nulls", ()))
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise RelocalError(f"not an evaluation ({error!r})", file=path) from None

    def _part(self, inside: Tensor) -> dict[str, Any]:
        """Scores of some of the pairs; None where there are none."""
        tious = self.tious[inside]
        if len(tious) == 0:
            return {"pairs": 0, "mAP@1@0.5": None, "mAP@1@0.7": None, "mIoU": None}
        half, most = above(tious, (0.5, 0.7)).double().mean(dim=0).tolist()
        return {
            "pairs": len(tious),
            "mAP@1@0.5": half,
            "mAP@1@0.7": most,
            "mIoU": tious.mean().item(),
        }


def _plain(scores: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: asdict(score) for name, score in scores.items()}
