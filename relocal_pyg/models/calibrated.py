"""Fit a :class:`Confidence` on validation pairs and keep it beside a run's weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.items import Pair, Protocol
from relocal_pyg.data.pairs import make_null_pairs, make_pairs
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import sha256_file
from relocal_pyg.io.write import write_json
from relocal_pyg.models.base import Ranking, Relocalizer
from relocal_pyg.models.matchers import Blocks, ContrastMatcher, mean_row
from relocal_pyg.moments import Moment, clip_moments, nms, tiou

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
#: Outcomes of either kind below which nothing is fitted.
FEWEST = 10
#: Strengths of the L2 penalty to choose from: a fact is expected to move the log odds by 1 to 0.1 a
#: deviation.
PENALTIES = (1.0, 4.0, 16.0, 64.0)
#: Parts of the data that a penalty is chosen on, one left out at a time.
FOLDS = 5


@dataclass(frozen=True)
class Logistic:
    """Log odds, linear in standardised facts.

    Attributes:
        mean: Means of the facts it was fitted to; an unknown fact counts as its mean.
        scale: Their standard deviations.
        weights: One a fact.
        bias: Log odds at the mean.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, facts: Tensor, outcomes: Tensor, penalty: float) -> Logistic:
        """Fit by penalised maximum likelihood; the bias is not penalised.

        Args:
            facts: float64 ``[N, V]``; NaN where unknown.
            outcomes: ``[N]`` of 0 and 1.
            penalty: Half of it times the squared weights is added to the summed loss.
        """
        mean = facts.nanmean(dim=0).nan_to_num()
        known = torch.where(facts.isnan(), mean, facts)
        spread = known.std(dim=0, correction=0)
        scale = torch.where(spread > 1e-9, spread, 1.0)
        rows, wanted = (known - mean) / scale, outcomes.to(facts)
        free = torch.zeros(facts.shape[1] + 1, dtype=facts.dtype, requires_grad=True)
        solver = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            odds = rows @ free[:-1] + free[-1]
            cost = functional.binary_cross_entropy_with_logits(odds, wanted, reduction="sum")
            total: Tensor = cost + penalty / 2 * free[:-1].square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            solver.step(loss)
        *weights, bias = free.tolist()
        return cls(tuple(mean.tolist()), tuple(scale.tolist()), tuple(weights), bias)

    @classmethod
    def fit_best(cls, facts: Tensor, outcomes: Tensor, groups: Tensor) -> Logistic:
        """Fit with the penalty that predicts best what was left out of the fit.

        Args:
            facts: float64 ``[N, V]``; NaN where unknown.
            outcomes: ``[N]`` of 0 and 1.
            groups: ``[N]``, numbers; rows of one group are left out together.
        """
        fold = groups % FOLDS
        losses = []
        for penalty in PENALTIES:
            total = 0.0
            for number in range(FOLDS):
                out = fold == number
                if out.all() or not out.any():
                    continue
                fitted = cls.fit(facts[~out], outcomes[~out], penalty)
                guess = fitted(facts[out]).clamp(1e-6, 1 - 1e-6)
                total += functional.binary_cross_entropy(
                    guess, outcomes[out].to(guess), reduction="sum"
                ).item()
            losses.append(total)
        return cls.fit(facts, outcomes, PENALTIES[losses.index(min(losses))])

    def __call__(self, facts: Tensor) -> Tensor:
        """Probabilities ``[N]`` of facts ``[N, V]``."""
        mean, scale, weights = facts.new_tensor([self.mean, self.scale, self.weights])
        rows = (torch.where(facts.isnan(), mean, facts) - mean) / scale
        return torch.sigmoid(rows @ weights + self.bias)


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

    def judge(
        self,
        model: Relocalizer,
        ranking: Ranking,
        moments: Sequence[Moment],
        query: Tensor,
        reference: Tensor | Blocks,
        query_video: Tensor | Blocks | None = None,
        seconds_per_step: float = 1.0,
    ) -> list[Moment]:
        """The answers with their probabilities.

        Args:
            model: The model that ranked.
            ranking: Scores of all proposals of the reference, or of many.
            moments: Answers in seconds, best first; not empty.
            query: ``[m, F]``.
            reference: ``[n, F]``.
            query_video: ``[v, F]`` or None.
            seconds_per_step: Duration of a step of the reference.
        """
        spans = torch.tensor([[each.start, each.end] for each in moments], dtype=torch.float64)
        scores = torch.tensor([each.score for each in moments], dtype=torch.float64)
        facts = answer_facts(
            model, ranking, spans / seconds_per_step, scores, query, reference, query_video
        )
        presence = float(self.presence(facts[:1]))
        return [
            replace(each, probability=probability, presence=presence)
            for each, probability in zip(moments, self.moment(facts).tolist(), strict=True)
        ]

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
    reference: Tensor | Blocks,
    query_video: Tensor | Blocks | None = None,
) -> Tensor:
    """The :data:`FACTS` of some answers.

    Args:
        model: The model that ranked; says what its scores were before they were squashed.
        ranking: Scores of all proposals of the reference, or of many.
        moments: The answers ``[A, 2]`` in steps.
        scores: Their scores ``[A]``.
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]`` or None.

    Returns:
        float64 ``[A, 7]``: the score before squashing; its distance to the mean over the proposals
        in standard deviations; its lead over the best proposal that does not overlap; then four
        mean similarities (:func:`meetings`). NaN where there is nothing to compare with.
    """
    places = clip_moments(ranking.moments, len(reference)).double()
    every, own = (model.raw_scores(each.double()) for each in (ranking.scores, scores))
    spread = every.std(correction=0)
    deviations = (own - every.mean()) / spread if spread > 0 else torch.zeros_like(own)
    apart = tiou(moments.double()[:, None], places[None]) == 0
    rival = every.expand_as(apart).masked_fill(~apart, -torch.inf).amax(dim=1)
    lead = torch.where(apart.any(dim=1), own - rival, torch.nan)
    met = meetings(query, reference, moments, query_video).double()
    return torch.cat([torch.stack([own, deviations, lead], dim=1), met], dim=1)


def meetings(
    query: Tensor,
    reference: Tensor | Blocks,
    moments: Tensor,
    query_video: Tensor | Blocks | None = None,
) -> Tensor:
    """How well steps meet inside and outside moments: means of best cosines of centred steps.

    Each side is centred by its own video, as in
    :func:`~relocal_pyg.models.matchers.step_similarity`.

    Args:
        query: ``[m, F]``.
        reference: ``[n, F]``.
        moments: ``[A, 2]`` in steps.
        query_video: ``[v, F]`` or None.

    Returns:
        ``[A, 4]``: over query steps the best inside the moment; over the moment's steps the best in
        the query; the same two for what is outside, NaN where nothing is.
    """
    mean, count = mean_row(reference), len(reference)
    centre = mean if query_video is None else mean_row(query_video)
    rows = functional.normalize(query - centre, dim=1)
    start = moments[:, :1].round().clamp(0, count - 1)
    end = torch.maximum(moments[:, 1:].round(), start + 1)
    sides = torch.stack([(steps := torch.arange(count)) >= start, steps < end]).all(dim=0)
    sides = torch.stack([sides, ~sides], dim=1)
    found = rows.new_full((*sides.shape[:2], len(rows)), -torch.inf)
    met, first = [], 0
    for block in reference.split(512):
        table = rows @ functional.normalize(block - mean, dim=1).T
        met.append(table.amax(dim=0))
        part = sides[..., first : first + len(block)]
        first += len(block)
        best = table.masked_fill(~part[:, :, None], -torch.inf).amax(dim=3)
        found = torch.maximum(found, best)
    share = sides.to(rows)
    back = (share @ torch.cat(met)) / share.sum(dim=2)
    forth = found.mean(dim=2)
    forth = torch.where(forth.isinf(), torch.nan, forth)
    return torch.stack([forth, back], dim=2).flatten(1)


def _logistic(record: Any) -> Logistic:
    columns = [tuple(map(float, record[name])) for name in ("mean", "scale", "weights")]
    bias = float(record["bias"])
    if any(len(column) != len(FACTS) for column in columns) or min(columns[1]) <= 0:
        raise ValueError("one mean, positive scale and weight a fact wanted")
    if not all(map(math.isfinite, [*columns[0], *columns[1], *columns[2], bias])):
        raise ValueError("a number is not finite")
    return Logistic(columns[0], columns[1], columns[2], bias)


FILE = "confidence.json"
_FORMAT = 1
#: Answers of a pair that the probability of a moment is fitted to.
_ANSWERS = 5


@torch.no_grad()
def calibrate(model: Relocalizer, protocol: Protocol, *, limit: int | None = None) -> Confidence:
    """Fit on the pairs of the ``"val"`` split and on references of it without the action.

    Args:
        model: Any model; a module is put in evaluation mode and back.
        protocol: Its test splits are not touched.
        limit: At most so many pairs, the first of the hashed list, and as many without the action.

    Raises:
        UsageError: There are fewer than 10 outcomes of some kind.
    """
    split = "val"
    items, exclude = protocol.splits[split], protocol.exclude
    pairs = make_pairs(items, split=split, protocol=protocol.name, exclude=exclude).pairs[:limit]
    nulls = make_null_pairs(protocol, split).pairs[:limit]
    for what, count in (("pairs", len(pairs)), ("references without the action", len(nulls))):
        if count < FEWEST:
            raise UsageError(f"no calibration: {count} validation {what}, {FEWEST} wanted")
    module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    was_training = module.training
    module.eval()
    try:
        answers = [_answers(model, protocol, pair) for pair in (*pairs, *nulls)]
    finally:
        module.train(was_training)
    right = int(sum(float(hits[0]) for _, hits in answers))
    for count, what in ((right, "right"), (len(answers) - right, "wrong")):
        if count < FEWEST:
            raise UsageError(
                f"no calibration: {count} best answers on validation are {what}, {FEWEST} wanted"
            )
    asked = [pair.query.item_id for pair in (*pairs, *nulls)]
    order = {name: number for number, name in enumerate(dict.fromkeys(asked))}
    query = torch.tensor([order[name] for name in asked])
    held = torch.arange(len(answers)) < len(pairs)
    first = torch.stack([facts[0] for facts, _ in answers])
    every, hits = (torch.cat(column) for column in zip(*answers, strict=True))
    counts = torch.tensor([len(found) for _, found in answers])
    return Confidence(
        Logistic.fit_best(first, held, query),
        Logistic.fit_best(every, hits, query.repeat_interleave(counts)),
        len(pairs),
        len(nulls),
        right,
    )


def _answers(model: Relocalizer, protocol: Protocol, pair: Pair) -> tuple[Tensor, Tensor]:
    """Facts ``[A, 7]`` of the best answers to a pair, and whether each is right."""
    proposals = protocol.proposals(pair.reference, pair.query).float()
    query, reference = protocol.query(pair.query), protocol.reference(pair.reference)
    around = protocol.reference(pair.query)
    ranking = model.rank(query, reference, proposals, query_video=around)
    moments = clip_moments(ranking.moments, len(reference)).double()
    kept = nms(moments, ranking.scores, 0.5, limit=_ANSWERS)
    facts = answer_facts(
        model, ranking, moments[kept], ranking.scores[kept], query, reference, around
    )
    truths = torch.tensor(pair.reference.truths, dtype=torch.float64).reshape(-1, 2)
    overlap = tiou(moments[kept][:, None], truths[None])
    return facts, (overlap > 0.5).any(dim=1).double()


def calibrate_run(
    model: Relocalizer, protocol: Protocol, run: Path, *, limit: int | None = None
) -> str:
    """Calibrate a trained model, and the contrast matcher for comparison, into a run's folder.

    Args:
        model: The weights of the run's ``best``; takes its calibration.
        protocol: What it was trained on.
        run: The run folder.
        limit: See :func:`calibrate`.

    Returns:
        One line that says what came of it.

    Raises:
        OutputError: ``confidence.json`` cannot be written.
    """
    found: dict[str, Confidence] = {}
    said = "calibrated"
    for name, each in (("matcher", ContrastMatcher()), ("model", model)):
        try:
            found[name] = calibrate(each, protocol, limit=limit)
        except UsageError as problem:
            said = problem.reason
    model.calibration = found.get("model")
    digest = sha256_file(run / "best" / "model.safetensors")
    write_confidence(run, digest, model.calibration, found.get("matcher"))
    if model.calibration is None:
        return said
    return (
        f"calibrated on {model.calibration.pairs} validation pairs and "
        f"{model.calibration.nulls} references without the action: {run / FILE}"
    )


def write_confidence(
    folder: Path, weights: str | None, model: Confidence | None, matcher: Confidence | None = None
) -> None:
    """Write ``confidence.json``.

    Args:
        folder: A run or a checkpoint.
        weights: SHA-256 of the ``model.safetensors`` that it holds for.
        model: That of the trained model.
        matcher: That of the contrast matcher on the same pairs.

    Raises:
        OutputError: The file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "weights": weights,
        "model": None if model is None else model.to_json(),
        "matcher": None if matcher is None else matcher.to_json(),
    }
    write_json(folder / FILE, {"sha256": _digest(content), **content})


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
    if record.pop("sha256", None) != _digest(record):
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


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
