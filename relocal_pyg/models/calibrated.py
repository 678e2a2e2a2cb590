"""Probabilities beside scores: a wrapper of any model, and the file that keeps what it learned."""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import sha256_file, sha256_json
from relocal_pyg.io.write import replace_folder, write_json
from relocal_pyg.models.base import Ranking, Relocalizer, Wrapper
from relocal_pyg.models.presence import Logistic, judge
from relocal_pyg.models.similarity import Rows, matching_statistics, on_cpu
from relocal_pyg.moments import clip_moments, tiou

#: Where a run or a checkpoint keeps its calibration.
FILE = "confidence.json"
_FORMAT = 1
#: What a probability is made of, in this order; none of them is the length of the reference.
FACTS = (
    "score",
    "deviations",
    "gap",
    "query_in_moment",
    "moment_in_query",
    "query_outside",
    "outside_in_query",
)


@dataclass(frozen=True)
class Confidence:
    """From the facts of an answer to two probabilities, for one model with the weights it has.

    They hold for references like those of the fit, half of which did not hold the action.

    Attributes:
        presence: That the reference holds the action, from the facts of the best answer.
        moment: That a moment has a tIoU above 0.5 with one that is right, from its own facts.
        pairs: Validation pairs that it was fitted to.
        nulls: References without the action that it was fitted to.
        right: How many best answers of the pairs were right.
    """

    presence: Logistic
    moment: Logistic
    pairs: int
    nulls: int
    right: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"facts": list(FACTS), **asdict(self)}

    @classmethod
    def from_json(cls, record: Any) -> Confidence:
        """Rebuild from plain values that may come from anywhere.

        Raises:
            ValueError: They are not those of a confidence over these facts.
        """
        try:
            if record["facts"] != list(FACTS):
                raise ValueError(f"facts {record['facts']}")
            presence, moment = (_logistic(record[name]) for name in ("presence", "moment"))
            counts = [int(record[name]) for name in ("pairs", "nulls", "right")]
            return cls(presence, moment, *counts)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"is no confidence ({error!r})") from None


def answer_facts(
    model: Relocalizer,
    ranking: Ranking,
    moments: Tensor,
    scores: Tensor,
    query: Tensor,
    reference: Rows,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> Tensor:
    """The :data:`FACTS` of some answers.

    They come from the scores of all proposals in ``ranking``, or of many; the answers ``[A, 2]``
    are in steps. Further arguments as of :func:`~relocal_pyg.models.similarity.step_similarity`.

    Returns:
        float64 ``[A, 7]``: the score before squashing; its distance to the mean over the proposals
        in standard deviations; its lead over the best proposal that does not overlap; then four
        :func:`~relocal_pyg.models.similarity.matching_statistics`. NaN where there is nothing to
        compare with.
    """
    places = clip_moments(ranking.moments, len(reference)).double()
    every, own = (model.raw_scores(each.double()) for each in (ranking.scores, scores))
    spread = every.std(correction=0)
    deviations = (own - every.mean()) / spread if spread > 0 else torch.zeros_like(own)
    apart = tiou(moments.double()[:, None], places[None]) == 0
    rival = every.expand_as(apart).masked_fill(~apart, -torch.inf).amax(dim=1)
    lead = torch.where(apart.any(dim=1), own - rival, torch.nan)
    match = matching_statistics(query, reference, moments, query_video, background).double()
    return torch.cat([torch.stack([own, deviations, lead], dim=1), match], dim=1)


#: What the base class has too and is the model's own.
_MODELS = frozenset(
    ("dtype", "trainable", "reconstructed")
    + ("refinements", "rankings", "explain", "scored_span", "raw_scores")
)


class Calibrated(Wrapper):
    """A model whose answers come with probabilities, as scikit-learn's ``CalibratedClassifierCV``.

    All else is the model's own; what this class does not have is looked up there.

    Args:
        model: Any model.
        confidence: What was fitted to it on validation pairs; where None, answers are judged by
            what chance gives on their reference (:mod:`relocal_pyg.models.presence`).

    Example:
        >>> from relocal_pyg.models import ContrastMatcher
        >>> even = Logistic((0.0,) * 7, (1.0,) * 7, (0.0,) * 7, 0.0)
        >>> model = Calibrated(ContrastMatcher(), Confidence(even, even, 20, 20, 15))
        >>> model.localize(torch.rand(4, 8), torch.rand(30, 8), top_k=1)[0].probability
        0.5
    """

    def __init__(self, model: Relocalizer, confidence: Confidence | None = None) -> None:
        super().__init__(model)
        self.confidence = confidence

    def __getattribute__(self, name: str) -> Any:
        return getattr(self.model, name) if name in _MODELS else super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "confidence"):  # a copy under way has neither yet
            raise AttributeError(name)
        value = getattr(self.model, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def call(*args: Any, **options: Any) -> Any:
            found = value(*args, **options)
            return self if found is self.model else found  # such as half(), cuda() and train()

        return call

    def rank(self, query: Tensor, reference: Rows, proposals: Tensor, **known: Any) -> Ranking:
        """The model's ranking, whose answers know their probabilities; arguments as there."""
        ranking = self.model.rank(query, reference, proposals, **known)
        sides = query, reference, known.get("query_video"), known.get("background")

        def probabilities(moments: Tensor, scores: Tensor) -> tuple[Tensor, float]:
            clip, video, *others = map(on_cpu, sides)
            if self.confidence is None:
                return judge(clip, video, moments, *others)
            facts = answer_facts(self.model, ranking.cpu(), moments, scores, clip, video, *others)
            return self.confidence.moment(facts), float(self.confidence.presence(facts[:1]))

        return replace(ranking, probabilities=probabilities)

    def fit(self, *args: Any, **options: Any) -> Any:
        """Train the model, as there; probabilities that were fitted to other weights go."""
        trained = self.model.fit(*args, **options)  # type: ignore[attr-defined]
        self.confidence = None
        return trained

    def eval(self) -> Calibrated:
        """Put the model in evaluation mode, where it has one."""
        if isinstance(self.model, torch.nn.Module):
            self.model.eval()
        return self

    def to(self, *args: Any, **options: Any) -> Calibrated:
        """Move the model, where it has weights; arguments as of ``torch.nn.Module.to``."""
        if isinstance(self.model, torch.nn.Module):
            self.model.to(*args, **options)
        return self

    def save(self, folder: str | Path) -> None:
        """Write the model's checkpoint with the calibration in it; ``load_model`` reads both.

        Raises:
            UsageError: The model has no weights to keep.
            OutputError: The folder cannot be written; what it held is intact.
        """
        if not hasattr(self.model, "write"):
            raise UsageError(f"{self.title} has no weights to keep: make it anew where it is used")
        with replace_folder(Path(folder), "model") as temporary:
            self.write(temporary)
            digest = sha256_file(temporary / "model.safetensors")
            write_confidence(temporary, digest, self.confidence)


def write_confidence(
    folder: Path, weights: str | None, model: Confidence | None, matcher: Confidence | None = None
) -> None:
    """Write ``confidence.json`` of a run or a checkpoint.

    They are those of the model, of the ``weights`` of this SHA-256, and of the contrast matcher on
    the same pairs.

    Raises:
        OutputError: The file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "weights": weights,
        "model": None if model is None else model.to_json(),
        "matcher": None if matcher is None else matcher.to_json(),
    }
    write_json(folder / FILE, {"sha256": sha256_json(content), **content})


def read_confidence(file: Path, weights: str | None = None) -> dict[str, Confidence]:
    """Read what :func:`write_confidence` wrote, by name: ``"model"``, ``"matcher"``.

    Args:
        file: May be missing: then nothing is given.
        weights: SHA-256 of the weights in use. A calibration of other weights, which a resumed run
            has left behind, is not given.

    Raises:
        CheckpointError: Damaged, changed, or of another format.
    """
    if not file.exists():
        return {}
    record = read_json(file, CheckpointError)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CheckpointError(f"is no calibration of format {_FORMAT}", file=file)
    if record.pop("sha256", None) != sha256_json(record):
        raise CheckpointError("was changed after it was written: remove it, or train", file=file)
    names = ["matcher"] if weights not in (None, record.get("weights")) else ["matcher", "model"]
    try:
        return {
            name: Confidence.from_json(record[name])
            for name in names
            if record.get(name) is not None
        }
    except ValueError as error:
        raise CheckpointError(str(error), file=file) from None


def _logistic(record: Any) -> Logistic:
    columns = [tuple(map(float, record[name])) for name in ("mean", "scale", "weights")]
    bias = float(record["bias"])
    if any(len(column) != len(FACTS) for column in columns) or min(columns[1]) <= 0:
        raise ValueError("one mean, positive scale and weight a fact wanted")
    if not all(map(math.isfinite, [*columns[0], *columns[1], *columns[2], bias])):
        raise ValueError("a number is not finite")
    return Logistic(columns[0], columns[1], columns[2], bias)
