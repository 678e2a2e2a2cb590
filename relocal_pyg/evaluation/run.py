"""The one loop that answers pairs: evaluation, validation and calibration go through it."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from relocal_pyg import __version__
from relocal_pyg.data.items import Pair, Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.data.proposals import WindowProposals
from relocal_pyg.errors import RelocalError, UsageError, ascii_line, check_number
from relocal_pyg.evaluation.metrics import best_tiou, oracle, recall_by_budget
from relocal_pyg.evaluation.results import Evaluation, PairRecord, Span
from relocal_pyg.io.seeding import generator
from relocal_pyg.models.base import Ranking, Relocalizer, evaluating
from relocal_pyg.moments import Moment

#: Packages whose version can change a result.
PACKAGES = (
    "torch",
    "torch-geometric",
    "lightning-fabric",
    "torchmetrics",
    "numpy",
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


@dataclass(frozen=True)
class Answer:
    """What a model answered to one pair; all tensors in main memory.

    Attributes:
        pair: The query and the reference.
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]``, or None where the model was not shown it.
        proposals: ``[M, 2]`` in steps of the reference, M may be 0.
        rankings: By way to refine where every one was asked for, else the model's own alone; none
            where there are no proposals.
        seconds: Time that the model took to rank, features already read.
    """

    pair: Pair
    query: Tensor
    reference: Tensor
    query_video: Tensor | None
    proposals: Tensor
    rankings: Mapping[str, Ranking]
    seconds: float

    @property
    def ranking(self) -> Ranking | None:
        """The first of the rankings, where there is one."""
        return next(iter(self.rankings.values()), None)


def answer_pairs(
    model: Relocalizer,
    protocol: Protocol,
    pairs: Iterable[Pair],
    *,
    surroundings: bool = True,
    every_way: bool = False,
) -> Iterator[Answer]:
    """Answer pairs one after the other, without gradients or dropout.

    Args:
        model: Any model; a module is in evaluation mode meanwhile.
        protocol: Gives features and proposals.
        pairs: What is asked.
        surroundings: Whether the model is shown the video around the query.
        every_way: Rank by each of the model's ways to refine, not only by its own.

    Yields:
        An :class:`Answer` a pair, in their order.

    Raises:
        RelocalError: The model's answer is no ranking; the pair is named.
        FeatureError: The model takes features of another width.
    """
    model.check_width(protocol.features.dim, f"protocol {protocol.name}")
    with evaluating(model):
        for pair in pairs:
            proposals = protocol.proposals(pair.reference, pair.query).float()
            query, reference = protocol.query(pair.query), protocol.reference(pair.reference)
            around = protocol.reference(pair.query) if surroundings else None
            rankings: dict[str, Ranking] = {}
            start = time.perf_counter()
            if len(proposals):
                # Not inference mode: what a model caches must stay trainable.
                with torch.no_grad():
                    ask = model.rankings if every_way else model.rank
                    given = ask(query, reference, proposals, query_video=around)
                # Reading numbers waits for the device, so that its work is inside the time.
                ways = given if isinstance(given, dict) else {"": given}
                rankings = {way: ranking.cpu() for way, ranking in ways.items()}
            seconds = time.perf_counter() - start
            for ranking in rankings.values():
                place = f"query {pair.query.item_id}, reference {pair.reference.item_id}"
                check_ranking(ranking, f"{model.title}: {place}")
            yield Answer(pair, query, reference, around, proposals, rankings, seconds)


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

    Raises:
        RelocalError: The list is empty, or the model's answer is no ranking; the pair is named.
        UsageError: A list is of another protocol, ``top_k`` is below 1, or ``nms_threshold``
            outside 0 to 1.
    """
    name = title or model.title
    for drawn in (pairs, pairs if nulls is None else nulls):
        check_protocol("the pair list", drawn.protocol, protocol)
    check_number(top_k, "top_k", least=1, whole=True)
    check_number(nms_threshold, "nms_threshold", least=0, most=1)
    if not pairs.pairs:
        raise RelocalError("there is no pair: one takes two videos of a class", record=pairs.split)
    if not all(pair.reference.moments for pair in pairs.pairs):
        raise UsageError("references without the action among the pairs: give them as nulls")
    asked = (*pairs.pairs, *(() if nulls is None else nulls.pairs))
    bar = tqdm(asked, desc=ascii_line(name), unit="pair", disable=None if progress else True)
    listed = not isinstance(protocol.propose, WindowProposals)
    records = tuple(
        _record(answer, top_k, nms_threshold, listed)
        for answer in answer_pairs(model, protocol, bar, surroundings=surroundings)
    )
    records, empty_handed = records[: len(pairs)], records[len(pairs) :]
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
        records=records,
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
        nulls=empty_handed,
        nulls_sha256=None if nulls is None else nulls.sha256,
    )


def stacked(found: Sequence[Moment]) -> tuple[Tensor, Tensor]:
    """Answers as arrays, float64: moments ``[A, 2]``, in their unit, and scores ``[A]``."""
    rows = torch.tensor([(m.start, m.end, m.score) for m in found], dtype=torch.float64)
    return rows.reshape(-1, 3)[:, :2], rows.reshape(-1, 3)[:, 2]


def overlaps_by_way(
    model: Relocalizer, protocol: Protocol, pairs: Sequence[Pair]
) -> dict[str, Tensor]:
    """Overlap ``[N]`` of the best answer to each pair, by way to refine, from none to the most."""
    found = {way: torch.zeros(len(pairs), dtype=torch.float64) for way in model.refinements}
    for number, answer in enumerate(answer_pairs(model, protocol, pairs, every_way=True)):
        truths = torch.tensor([answer.pair.reference.truths])
        for way, ranking in answer.rankings.items():
            best, _ = stacked(ranking.best(len(answer.reference), 1))
            if len(best):
                found[way][number] = best_tiou(best, truths)[0]
    return found


def replay(model: Relocalizer, like: Evaluation) -> Evaluation:
    """Answer the pairs of another evaluation with a model that looks at lengths alone.

    This is how the trivial predictors of a table are made: no feature is read. Each pair is shown
    features of its own, so that a predictor seeded by them draws anew for each.
    """
    records = []
    kept = like.settings.get("top_k", 5), like.settings.get("nms_threshold", 0.5)
    for number, record in enumerate(like.records):
        query = torch.full((record.query_steps, 1), float(number))
        reference = torch.zeros(record.reference_steps, 1)
        ranking = model.rank(query, reference, torch.tensor([[0.0, record.reference_steps]]))
        truths = torch.tensor(record.truths, dtype=torch.float64)
        answer = _scored(ranking, len(reference), truths, *kept)
        records.append(replace(record, seconds=0.0, **answer))
    return replace(
        like,
        title=model.title,
        records=tuple(records),
        reconstructed=model.reconstructed,
        seed=None,
        nulls=(),
        nulls_sha256=None,
    )


def _record(answer: Answer, top_k: int, nms_threshold: float, listed: bool) -> PairRecord:
    """What is kept of an answer; proposals that are not ``listed`` by rank count in any order."""
    query, item, proposals = answer.pair.query, answer.pair.reference, answer.proposals
    if not listed:
        proposals = proposals[generator(0, "recall", item.item_id).permutation(len(proposals))]
    truths = torch.tensor(item.truths, dtype=torch.float64).reshape(-1, 2)
    return PairRecord(
        query_id=query.item_id,
        reference_id=item.item_id,
        label=query.label,
        video_id=item.video_id,
        seconds_per_step=item.seconds_per_step,
        reference_steps=item.num_steps,
        query_steps=query.query_steps,
        truths=_spans(truths),
        truth_seconds=item.query_steps * item.seconds_per_step,
        recall=tuple(map(tuple, recall_by_budget(proposals, truths).tolist())),
        oracle=oracle(answer.proposals, truths).item(),
        num_proposals=len(answer.proposals),
        seconds=answer.seconds,
        **_scored(answer.ranking, item.num_steps, truths, top_k, nms_threshold),
    )


def _scored(
    ranking: Ranking | None, num_steps: int, truths: Tensor, top_k: int, nms_threshold: float
) -> dict[str, Any]:
    """The part of a record that depends on the ranking; without truths nothing overlaps."""
    given = [] if ranking is None else ranking.best(num_steps, top_k, nms_threshold=nms_threshold)
    moments, scores = stacked(given)
    best = given[0] if given else Moment(0.0, 0.0, 0.0)
    told = len(truths) > 0
    before = torch.tensor([best.proposal]) if told and best.proposal else None
    return {
        "moments": _spans(moments),
        "scores": tuple(scores.tolist()),
        "tious": tuple(best_tiou(moments[None], truths[None])[0].tolist())
        if told and given
        else (),
        "before": best.proposal,
        "tiou_before": None if before is None else best_tiou(before, truths[None]).item(),
        "probability": best.probability,
        "presence": best.presence,
    }


def check_protocol(what: str, name: str, protocol: Protocol) -> None:
    """Refuse a list that was drawn from a protocol of another name: its items may differ.

    Raises:
        UsageError: It was.
    """
    if name != protocol.name:
        raise UsageError(f"{what} is of protocol {name}, not of {protocol.name}")


def check_ranking(ranking: Ranking, place: str) -> None:
    """Refuse an answer that is no ranking.

    Raises:
        RelocalError: Shapes do not fit, or a number is not finite.
    """
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


def _spans(moments: Tensor) -> tuple[Span, ...]:
    return tuple((start, end) for start, end in moments.tolist())
