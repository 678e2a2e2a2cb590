"""Fit a :class:`Confidence` on validation pairs and keep it beside a run's weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relocal_pyg.data.items import Pair
from relocal_pyg.data.nulls import make_null_pairs
from relocal_pyg.data.pairs import make_pairs
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.confidence import FEWEST, Confidence, Logistic, answer_facts
from relocal_pyg.models.contrast import ContrastMatcher
from relocal_pyg.moments import clip_moments, nms, tiou
from relocal_pyg.reading import read_json
from relocal_pyg.storage import sha256_file, write_json

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
