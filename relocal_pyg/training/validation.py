"""What validation pairs are for: weights are selected on them, and probabilities fitted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.items import Pair, Protocol
from relocal_pyg.data.pairs import PairList, make_null_pairs, make_pairs
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation.metrics import above, map_at_1
from relocal_pyg.evaluation.run import Answer, answer_pairs, overlaps_by_way, stacked
from relocal_pyg.evaluation.statistics import Estimate, bootstrap_interval
from relocal_pyg.io.record import sha256_file
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.calibrated import FILE, Confidence, answer_facts, write_confidence
from relocal_pyg.models.matchers import ContrastMatcher
from relocal_pyg.models.presence import Logistic
from relocal_pyg.moments import tiou

#: Thresholds whose mean mAP@1 selects a model: wide, so that a small set still tells models apart.
SELECTION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: Fewest validation videos that can tell a gain from chance: one of three ahead on all three by
#: luck is one in eight.
FEWEST_VIDEOS = 4


def draw_pairs(protocol: Protocol, split: str, limit: int | None = None) -> PairList:
    """The hashed pair list of a split, the same on every machine, or a sample of it.

    Raises:
        UsageError: There is no such split.
    """
    if split not in protocol.splits:
        raise UsageError(f"no split {split!r}: {', '.join(protocol.splits)}")
    return make_pairs(
        protocol.splits[split], split=split, protocol=protocol.name, exclude=protocol.exclude
    ).sample(limit)


def validate(
    model: Relocalizer, protocol: Protocol, pairs: Sequence[Pair], fabric: Fabric | None = None
) -> dict[str, Tensor]:
    """Overlap of the best answer to each validation pair by every way to refine, float64 ``[N]``.

    Where there is a fabric, its processes share the pairs out, each pair once.
    """
    if fabric is None or fabric.world_size == 1:
        return overlaps_by_way(model, protocol, pairs)
    own = slice(fabric.global_rank, None, fabric.world_size)
    found = {}
    for way, overlaps in overlaps_by_way(model, protocol, pairs[own]).items():
        # Zero where another process answers, so that a sum over processes is every answer once.
        shared = torch.zeros(len(pairs), dtype=torch.float64)
        shared[own] = overlaps
        found[way] = cast(Tensor, fabric.all_reduce(shared, reduce_op="sum")).cpu()
    return found


def selection_score(overlaps: Tensor) -> float:
    """The number that selects weights: mean mAP@1 over :data:`SELECTION_THRESHOLDS`."""
    return statistics.fmean(map_at_1(overlaps, SELECTION_THRESHOLDS).values())


def passed(overlaps: Tensor) -> Tensor:
    """Share of :data:`SELECTION_THRESHOLDS` that each answer ``[N]`` passes; its mean is the score.

    Example:
        >>> passed(torch.tensor([0.2, 1.0])).tolist()
        [0.0, 1.0]
    """
    return above(overlaps, SELECTION_THRESHOLDS).double().mean(dim=1)


def paired_gain(ours: Sequence[float], start: Sequence[float], pairs: Sequence[Pair]) -> Estimate:
    """Gain in the score over the start, paired, with its 95 % interval over reference videos.

    Both are what each pair passes (:func:`passed`).

    Returns:
        The gain; without an interval where there are fewer than :data:`FEWEST_VIDEOS` videos.
    """
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(start, dtype=torch.float64)
    videos = [pair.reference.video_id for pair in pairs]
    if len(set(videos)) < FEWEST_VIDEOS:
        return Estimate(difference.mean().item())
    return Estimate.known(difference.mean(), *bootstrap_interval(difference, videos))


#: Outcomes of either kind below which nothing is fitted.
FEWEST = 10
#: Strengths of the L2 penalty to choose from: a fact is expected to move the log odds by 1 to 0.1 a
#: deviation.
PENALTIES = (1.0, 4.0, 16.0, 64.0)
#: Parts of the data that a penalty is chosen on, one left out at a time.
FOLDS = 5
#: Answers of a pair that the probability of a moment is fitted to.
_ANSWERS = 5


def calibrate(model: Relocalizer, protocol: Protocol, *, limit: int | None = None) -> Confidence:
    """Fit on the pairs of the ``"val"`` split and on references of it without the action.

    Args:
        model: Any model; a module is put in evaluation mode and back.
        protocol: Its test splits are not touched.
        limit: At most so many pairs, drawn from the hashed list, and as many without the action.

    Raises:
        UsageError: There are fewer than 10 outcomes of some kind.
    """
    split = "val"
    pairs = draw_pairs(protocol, split, limit).pairs
    nulls = make_null_pairs(protocol, split).sample(limit).pairs
    for what, count in (("pairs", len(pairs)), ("references without the action", len(nulls))):
        if count < FEWEST:
            raise UsageError(f"no calibration: {count} validation {what}, {FEWEST} wanted")
    asked = (*pairs, *nulls)
    answers = [_facts(model, answer) for answer in answer_pairs(model, protocol, asked)]
    right = int(sum(float(hits[0]) for _, hits in answers))
    for count, what in ((right, "right"), (len(answers) - right, "wrong")):
        if count < FEWEST:
            raise UsageError(
                f"no calibration: {count} best answers on validation are {what}, {FEWEST} wanted"
            )
    names = [pair.query.item_id for pair in asked]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    query = torch.tensor([order[name] for name in names])
    held = torch.arange(len(answers)) < len(pairs)
    first = torch.stack([facts[0] for facts, _ in answers])
    facts, hits = (torch.cat(column) for column in zip(*answers, strict=True))
    counts = torch.tensor([len(found) for _, found in answers])
    return Confidence(
        fit_best(first, held, query),
        fit_best(facts, hits, query.repeat_interleave(counts)),
        len(pairs),
        len(nulls),
        right,
    )


def _facts(model: Relocalizer, answer: Answer) -> tuple[Tensor, Tensor]:
    """Facts ``[A, 7]`` of the best answers to a pair, and whether each is right."""
    ranking, reference = answer.ranking, answer.reference
    if ranking is None:
        raise UsageError("no calibration: a validation pair has no proposals")
    moments, scores = stacked(ranking.best(len(reference), _ANSWERS))
    if len(scores) == 0:
        raise UsageError("no calibration: all answers to a validation pair lie past its reference")
    facts = answer_facts(
        model, ranking, moments, scores, answer.query, reference, answer.query_video
    )
    truths = torch.tensor(answer.pair.reference.truths, dtype=torch.float64).reshape(-1, 2)
    overlap = tiou(moments[:, None], truths[None])
    return facts, (overlap > 0.5).any(dim=1).double()


def calibrate_run(
    model: Relocalizer, protocol: Protocol, run: Path, *, limit: int | None = None
) -> str:
    """Calibrate a run's ``best``, and the contrast matcher beside it; what came of it, in a line.

    Arguments as of :func:`calibrate`.

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
    own = found.get("model")
    digest = sha256_file(run / "best" / "model.safetensors")
    write_confidence(run, digest, own, found.get("matcher"))
    if own is None:
        return said
    return (
        f"calibrated on {own.pairs} validation pairs and {own.nulls} references without the "
        f"action: {run / FILE}"
    )


@torch.inference_mode(False)
@torch.enable_grad()
def fit_logistic(facts: Tensor, outcomes: Tensor, penalty: float) -> Logistic:
    """Fit by penalised maximum likelihood; the bias is not penalised.

    Half the penalty times the squared weights is added to the summed loss; facts may be NaN where
    unknown.
    """
    mean = facts.nanmean(dim=0).nan_to_num()
    known = torch.where(facts.isnan(), mean, facts)
    spread = known.std(dim=0, correction=0)
    scale = torch.where(spread > 1e-9, spread, 1.0)
    rows, wanted = ((known - mean) / scale).detach(), outcomes.detach().clone().to(facts)
    free = torch.zeros(facts.shape[1] + 1, dtype=facts.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        odds = rows @ free[:-1] + free[-1]
        cost = functional.binary_cross_entropy_with_logits(odds, wanted, reduction="sum")
        total: Tensor = cost + penalty / 2 * free[:-1].square().sum()
        total.backward()
        return total

    solver.step(loss)
    *weights, bias = free.tolist()
    return Logistic(tuple(mean.tolist()), tuple(scale.tolist()), tuple(weights), bias)


def fit_best(facts: Tensor, outcomes: Tensor, groups: Tensor) -> Logistic:
    """Fit with the penalty that predicts best what was left out of the fit.

    Rows of one group are left out together; facts may be NaN where unknown.
    """
    fold = groups % FOLDS
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for number in range(FOLDS):
            out = fold == number
            if out.all() or not out.any():
                continue
            fitted = fit_logistic(facts[~out], outcomes[~out], penalty)
            guess = fitted(facts[out]).clamp(1e-6, 1 - 1e-6)
            total += functional.binary_cross_entropy(
                guess, outcomes[out].to(guess), reduction="sum"
            ).item()
        losses.append(total)
    return fit_logistic(facts, outcomes, PENALTIES[losses.index(min(losses))])
