"""Run a model over a pair list and keep what it answered."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.data.items import Item, Pair
from relocal_pyg.errors import RelocalError
from relocal_pyg.evaluation.metrics import best_tiou, oracle, recall_by_budget
from relocal_pyg.evaluation.results import Evaluation, NullRecord, PairRecord
from relocal_pyg.models.base import Ranking, Relocalizer
from relocal_pyg.moments import Moment, clip_moments, nms
from relocal_pyg.version import __version__

if TYPE_CHECKING:
    from relocal_pyg.data.items import Protocol
    from relocal_pyg.data.pairs import PairList


#: Packages whose version can change a result.
PACKAGES = (
    "torch",
    "torch-geometric",
    "lightning-fabric",
    "torchmetrics",
    "numpy",
    "pandas",
    "h5py",
    "safetensors",
    "torch-scatter",
    "av",
    "scikit-learn",
    "faiss-cpu",
)


def environment() -> dict[str, object]:
    """Facts to keep beside a result, for JSON.

    Returns:
        ``relocal_pyg``, ``python``, ``platform`` (system and processor kind), ``device``,
        ``threads``, ``cpus`` and ``packages``: version by name of those installed. Nothing names
        the host, the user or a folder.

    Example:
        >>> environment()["packages"]["torch"] == metadata.version("torch")
        True
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "relocal_pyg": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def evaluate(
    model: Relocalizer,
    protocol: Protocol,
    pairs: PairList,
    *,
    nulls: PairList | None = None,
    top_k: int = 5,
    nms_threshold: float = 0.5,
    surroundings: bool = True,
    title: str | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Answer every pair of a list and score the answers (section 5.2.3).

    A pair without proposals is a miss, whatever the model, and is warned about.

    Args:
        model: Any model; a module is put in evaluation mode and back.
        protocol: Gives features and proposals.
        pairs: The pair list.
        nulls: References without the action, to be answered as well
            (:func:`relocal_pyg.data.pairs.make_null_pairs`).
        top_k: How many answers a pair are kept; R@5 needs 5.
        nms_threshold: Of two answers with a larger tIoU only the better is kept.
        surroundings: Whether the model is shown the video around the query. Some models use it;
            no model is told where in it the query lies.
        title: Name in tables; the model's own where None.
        seed: Seed that the model was trained with: evaluations that differ in it alone are
            averaged by :func:`relocal_pyg.evaluation.compare`.
        progress: Show a progress bar.

    Returns:
        The :class:`Evaluation`.

    Raises:
        RelocalError: The list is empty, or the model's answer is no ranking; the pair is named.
    """
    name = title or model.title
    if not pairs.pairs:
        raise RelocalError("the pair list is empty: nothing to evaluate", record=pairs.split)
    hidden = None if progress else True
    with _evaluation_mode(model):
        records = [
            _run_pair(model, protocol, pair, surroundings, top_k, nms_threshold)
            for pair in tqdm(pairs.pairs, desc=name, unit="pair", disable=hidden)
        ]
        empty_handed = [
            _run_null(model, protocol, pair, surroundings)
            for pair in (() if nulls is None else nulls.pairs)
        ]
    empty = sum(record.num_proposals == 0 for record in records)
    if empty:
        warnings.warn(
            f"{empty} of {len(records)} pairs have no proposals and count as misses", stacklevel=2
        )
    return Evaluation(
        title=name,
        protocol=protocol.name,
        split=pairs.split,
        pairs_sha256=pairs.sha256,
        pairs_seed=pairs.seed,
        exclude=pairs.exclude,
        records=tuple(records),
        reconstructed=model.reconstructed,
        seed=seed,
        settings={
            "top_k": top_k,
            "nms_threshold": nms_threshold,
            "surroundings": surroundings,
            "queries_without_reference": len(pairs.without_reference),
        },
        environment=environment(),
        about=dict(protocol.about),
        nulls=tuple(empty_handed),
        nulls_sha256=None if nulls is None else nulls.sha256,
    )


def replay(model: Relocalizer, like: Evaluation) -> Evaluation:
    """Answer the pairs of another evaluation with a model that looks at lengths alone.

    This is how the trivial predictors of a table are made: no feature is read. Each pair is shown
    features of its own, so that a predictor seeded by them draws anew for each.

    Args:
        model: A model that ignores content and proposals.
        like: The evaluation whose pairs are answered.
    """
    top_k, threshold = like.settings["top_k"], like.settings["nms_threshold"]
    records = []
    with _evaluation_mode(model):
        for number, record in enumerate(like.records):
            query = torch.full((record.query_steps, 1), float(number))
            reference = torch.zeros(record.reference_steps, 1)
            proposals = torch.tensor([[0.0, record.reference_steps]])
            start = time.perf_counter()
            ranking = model.rank(query, reference, proposals)
            seconds = time.perf_counter() - start
            truths = torch.tensor(record.truths)
            _check(ranking, model.title)
            answer = _judge(ranking, len(reference), truths, top_k, threshold)
            answer |= {"seconds": seconds, "probability": None, "presence": None}
            records.append(replace(record, **answer))
    return replace(
        like,
        title=model.title,
        records=tuple(records),
        reconstructed=model.reconstructed,
        seed=None,
        nulls=(),
        nulls_sha256=None,
    )


@dataclass(frozen=True)
class _Answer:
    """What a model answered to a pair.

    Attributes:
        proposals: ``[M, 2]`` in steps.
        ranking: None where there are no proposals.
        best: The best answer in steps, with its probabilities where they are known.
        seconds: Time that the model took.
    """

    proposals: Tensor
    ranking: Ranking | None = None
    best: Moment | None = None
    seconds: float = 0.0


def _answer(model: Relocalizer, protocol: Protocol, pair: Pair, surroundings: bool) -> _Answer:
    item = pair.reference
    proposals = protocol.proposals(item, pair.query).float()
    if len(proposals) == 0:
        return _Answer(proposals)
    query, reference = protocol.query(pair.query), protocol.reference(item)
    around = protocol.reference(pair.query) if surroundings else None
    start = time.perf_counter()
    ranking = model.rank(query, reference, proposals, query_video=around)
    # Reading a number waits for the device, so that its work is inside the time.
    ranking = Ranking(
        ranking.moments.cpu(),
        ranking.scores.cpu(),
        None if ranking.proposals is None else ranking.proposals.cpu(),
    )
    seconds = time.perf_counter() - start
    _check(ranking, f"{model.title}: query {pair.query.item_id}, reference {item.item_id}")
    best = model.judge(ranking, ranking.best(item.num_steps, 1), query, reference, around)
    return _Answer(proposals, ranking, best[0], seconds)


def _run_pair(
    model: Relocalizer,
    protocol: Protocol,
    pair: Pair,
    surroundings: bool,
    top_k: int,
    nms_threshold: float,
) -> PairRecord:
    item = pair.reference
    truths = torch.tensor(item.truths, dtype=torch.float64)
    given = _answer(model, protocol, pair, surroundings)
    return PairRecord(
        query_id=pair.query.item_id,
        reference_id=item.item_id,
        label=pair.query.label,
        video_id=item.video_id,
        seconds_per_step=item.seconds_per_step,
        reference_steps=item.num_steps,
        query_steps=pair.query.query_steps,
        truths=_spans(truths),
        truth_seconds=_truth_seconds(item),
        recall=tuple(tuple(row) for row in recall_by_budget(given.proposals, truths).tolist()),
        oracle=oracle(given.proposals, truths).item(),
        num_proposals=len(given.proposals),
        seconds=given.seconds,
        probability=None if given.best is None else given.best.probability,
        presence=None if given.best is None else given.best.presence,
        **_judge(given.ranking, item.num_steps, truths, top_k, nms_threshold),
    )


def _run_null(model: Relocalizer, protocol: Protocol, pair: Pair, surroundings: bool) -> NullRecord:
    best = _answer(model, protocol, pair, surroundings).best
    return NullRecord(
        query_id=pair.query.item_id,
        reference_id=pair.reference.item_id,
        video_id=pair.reference.video_id,
        reference_steps=pair.reference.num_steps,
        score=None if best is None else best.score,
        probability=None if best is None else best.probability,
        presence=None if best is None else best.presence,
    )


def _check(ranking: Ranking, place: str) -> None:
    """Refuse an answer that is no ranking."""
    moments, scores, before = ranking.moments, ranking.scores, ranking.proposals
    shape = (len(scores), 2)
    if scores.ndim != 1 or moments.shape != shape or len(scores) == 0:
        raise RelocalError(
            f"moments {list(moments.shape)}, scores {list(scores.shape)}: [M, 2], [M] wanted",
            record=place,
        )
    if before is not None and before.shape != shape:
        raise RelocalError(f"proposals {list(before.shape)}: one a moment wanted", record=place)
    if not (torch.isfinite(moments).all() and torch.isfinite(scores).all()):
        raise RelocalError("an answer or a score is not finite", record=place)


def _judge(
    ranking: Ranking | None,
    num_steps: int,
    truths: Tensor,
    top_k: int,
    nms_threshold: float,
) -> dict[str, Any]:
    """The part of a record that depends on the ranking."""
    if ranking is None:
        return {"moments": (), "scores": (), "tious": (), "before": None, "tiou_before": None}
    moments, scores = ranking.moments.double(), ranking.scores.double()
    before = ranking.proposals
    moments = clip_moments(moments, num_steps)
    kept = nms(moments, scores, nms_threshold)[:top_k]
    first = None if before is None else before[kept[:1]].double()
    return {
        "moments": _spans(moments[kept]),
        "scores": tuple(scores[kept].tolist()),
        "tious": tuple(best_tiou(moments[kept][None], truths[None])[0].tolist()),
        "before": None if first is None else _spans(first)[0],
        "tiou_before": None if first is None else best_tiou(first, truths[None]).item(),
    }


@contextmanager
def _evaluation_mode(model: Relocalizer) -> Iterator[None]:
    """No gradients, no dropout. Not inference mode: what a model caches must stay trainable."""
    module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def _truth_seconds(item: Item) -> float:
    return item.query_steps * item.seconds_per_step


def _spans(moments: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple((start, end) for start, end in moments.tolist())
