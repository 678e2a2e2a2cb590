"""Few-shot temporal localization: a few examples of a class, every moment of it in a video.

The protocol of the common-localization line (PengWan-Yang/commonLocalization, sauradip/fewshotQAT,
MICLAB-BUPT/VAL-VLM). Published rows share no protocol; nothing here is comparable with them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.errors import AnnotationError, UsageError, check_number
from relocal_pyg.evaluation.run import check_protocol, check_ranking, stacked
from relocal_pyg.evaluation.statistics import Estimate
from relocal_pyg.evaluation.tables import percent, pipe_table
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import sha256_json
from relocal_pyg.io.seeding import generator
from relocal_pyg.io.write import write_json
from relocal_pyg.models.base import Ranking, Relocalizer, evaluating
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.moments import tiou

#: Thresholds of ActivityNet's average: .5 to .95.
THRESHOLDS = tuple(round(0.5 + 0.05 * number, 2) for number in range(10))

#: Detections of one episode at most, and what of a ranking is looked at for them.
CAP = 100
LOOKED_AT = 1000

Instances = Literal["single", "multi", "superset"]


@dataclass(frozen=True)
class Episode:
    """Examples of a class and a video to search.

    Attributes:
        episode_id: Unique in a list.
        label: The class.
        supports: Trimmed examples, of videos other than the reference's.
        reference: The item whose context is searched; its ``truths`` are what there is to find.
    """

    episode_id: str
    label: str
    supports: tuple[Item, ...]
    reference: Item


@dataclass(frozen=True)
class EpisodeList:
    """Episodes, how they were drawn, and their hash.

    Attributes:
        episodes: In the order of their numbers.
        protocol: Name of the protocol.
        split: Name of the split.
        shots: Supports of an episode.
        instances: ``"single"``: references with one moment; ``"multi"``: with two or more;
            ``"superset"``: any.
        seed: Seed of the draw.
    """

    episodes: tuple[Episode, ...]
    protocol: str
    split: str
    shots: int
    instances: str
    seed: int

    def __len__(self) -> int:
        return len(self.episodes)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the list as canonical JSON."""
        return sha256_json(asdict(self))

    def save(self, path: str | Path) -> None:
        """Write the list as JSON with its hash."""
        write_json(path, {"sha256": self.sha256, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> EpisodeList:
        """Read what :meth:`save` wrote.

        Raises:
            AnnotationError: Missing, no such list, or changed since.
        """
        content = read_json(path, AnnotationError)
        try:
            digest = content.pop("sha256")
            rows = [
                Episode(
                    row["episode_id"],
                    row["label"],
                    tuple(Item.from_json(fields) for fields in row["supports"]),
                    Item.from_json(row["reference"]),
                )
                for row in content.pop("episodes")
            ]
            found = cls(tuple(rows), **content)
            intact = found.sha256 == digest
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AnnotationError(f"is no list of episodes ({error!r})", file=path) from None
        if not intact:
            raise AnnotationError("was changed after it was written: draw it anew", file=path)
        return found


def draw_episodes(
    protocol: Protocol,
    split: str,
    *,
    shots: int = 1,
    count: int = 1000,
    instances: Instances = "single",
    seed: int = 6,
) -> EpisodeList:
    """Draw episodes: a class, a reference, examples of other videos, each uniformly.

    An episode depends on the seed and its number alone, and its first example is that of the same
    episode with one shot: lists of one shot are nested in those of five, but for the episodes of a
    class without five other videos, which are of another class there.

    Raises:
        UsageError: No such split, or a number below 1.
        AnnotationError: No class has a fitting reference and ``shots`` other videos.
    """
    if split not in protocol.splits:
        raise UsageError(f"no such split: {split!r}, one of {', '.join(protocol.splits)} wanted")
    check_number(shots, "shots", least=1, whole=True)
    check_number(count, "count", least=1, whole=True)
    if instances not in ("single", "multi", "superset"):
        raise UsageError(f"instances is {instances!r}: single, multi or superset wanted")
    by_label: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in sorted(protocol.splits[split]):
        by_label[item.label][item.video_id].append(item)
    references: dict[str, list[Item]] = {}
    for label, videos in by_label.items():
        if len(videos) > 1:
            first = {
                (item.video_id, item.context): item for v in videos.values() for item in v[::-1]
            }
            fitting = [
                item
                for item in first.values()
                if instances in ("superset", "single" if len(item.moments) == 1 else "multi")
            ]
            if fitting:
                references[label] = sorted(fitting)
    if not any(len(by_label[label]) > shots for label in references):
        kind = "" if instances == "superset" else f"{instances}-instance "
        raise AnnotationError(f"no class of {split} has a {kind}reference and {shots} other videos")
    labels = sorted(references)
    episodes = []
    for number in range(count):
        rng = generator(seed, "episode", number)
        label = labels[int(rng.integers(len(labels)))]
        while len(by_label[label]) <= shots:
            label = labels[int(rng.integers(len(labels)))]
        reference = references[label][int(rng.integers(len(references[label])))]
        others = [video for video in by_label[label] if video != reference.video_id]
        supports = []
        for place in rng.permutation(len(others))[:shots]:
            own = by_label[label][others[place]]
            # A stream a video: more shots change no earlier example.
            drawn = generator(seed, "support", number, others[place]).integers(len(own))
            supports.append(own[int(drawn)])
        episodes.append(Episode(f"{number:05d}", label, tuple(supports), reference))
    return EpisodeList(tuple(episodes), protocol.name, split, shots, instances, seed)


@dataclass(frozen=True)
class Detection:
    """An answer in an episode, ``[start, end)`` in steps of the reference."""

    episode_id: str
    label: str
    start: float
    end: float
    score: float


def average_precision(
    detections: Sequence[Detection],
    truths: Mapping[str, Sequence[tuple[float, float]]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> Tensor:
    """Average precision of one class over all episodes by threshold, as ActivityNet counts it.

    Detections of all episodes in one list by falling score; each takes the free truth of its
    episode with the largest tIoU if that is ``>=`` the threshold, else it is a false positive. The
    area is that under the precision's envelope. Ties keep their order.

    Raises:
        UsageError: A number of a detection is not finite: it has no place in the list.
    """
    for found in detections:
        if not all(map(math.isfinite, (found.start, found.end, found.score))):
            raise UsageError(f"{found} is not finite")
    right, _ = _hits(detections, truths, thresholds)
    total = sum(map(len, truths.values()))
    return torch.from_numpy(_areas(right, np.ones(len(right)), total))


def _hits(
    detections: Sequence[Detection],
    truths: Mapping[str, Sequence[tuple[float, float]]],
    thresholds: Sequence[float],
) -> tuple[NDArray[np.float64], list[str]]:
    """Which detections, best first, take a truth ``[N, len(thresholds)]``, and their episodes."""
    ordered = sorted(detections, key=lambda found: -found.score)
    right = np.zeros((len(ordered), len(thresholds)))
    free = [{e: set(range(len(moments))) for e, moments in truths.items()} for _ in thresholds]
    nothing = torch.zeros(0, 2, dtype=torch.float64)
    known = {e: nothing.new_tensor(own).view(-1, 2) for e, own in truths.items()}
    for number, found in enumerate(ordered):
        own = known.get(found.episode_id, nothing)
        span = torch.tensor([[found.start, found.end]], dtype=torch.float64)
        overlap = tiou(span.expand_as(own), own).tolist()
        for column, threshold in enumerate(thresholds):
            left = free[column].get(found.episode_id, set())
            best = max(left, key=lambda place: overlap[place], default=None)
            if best is not None and overlap[best] >= threshold:
                left.remove(best)
                right[number, column] = 1
    return right, [found.episode_id for found in ordered]


def _areas(
    right: NDArray[np.float64], weights: NDArray[np.float64], total: float
) -> NDArray[np.float64]:
    """Area under the envelope of each column, detections counted as often as their weights say."""
    hits = (right * weights[:, None]).cumsum(axis=0)
    precision = hits / np.maximum(weights.cumsum(), 1e-12)[:, None]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    found: NDArray[np.float64] = (envelope * right * weights[:, None]).sum(axis=0) / max(total, 1)
    return found


def evaluate_few_shot(
    model: Relocalizer,
    protocol: Protocol,
    episodes: EpisodeList,
    *,
    pool: Literal["class", "agnostic"] = "class",
    combine: Literal["mean", "max"] = "mean",
    score: Literal["raw", "probability"] = "raw",
    nms_threshold: float = 0.5,
    samples: int = 200,
) -> dict[str, Estimate]:
    """Average precision of a model over episodes.

    Every candidate is scored by each example, the scores are averaged, and one non-maximum
    suppression follows. Scores have to mean the same in every episode: their list is global.

    Args:
        model: Any system.
        protocol: Where features and proposals come from.
        episodes: What is asked.
        pool: One list a class and the mean over classes, or one list for all.
        combine: How scores of several examples are combined.
        score: The list is ordered by the scores as they are, or by the probabilities of a
            calibrated model, averaged over the examples.
        nms_threshold: Of two answers with a larger tIoU only the better is kept.
        samples: How often videos are drawn for the intervals; 0 for none.

    Returns:
        ``"map"`` (mean of .5 to .95), ``"map@0.5"`` and ``"map@0.75"``, each with its 95 %
        interval over the references' videos.

    Raises:
        RelocalError: The model's answer is no ranking; the query and the episode are named.
        UsageError: The list is of another protocol or empty, probabilities are asked of a model
            that has none, a word is unknown, or a number out of range.
    """
    check_protocol("the list of episodes", episodes.protocol, protocol)
    if not episodes.episodes:
        raise UsageError("there is no episode")
    check_number(samples, "samples", least=0, whole=True)
    check_number(nms_threshold, "nms_threshold", least=0, most=1)
    known = ("class", "agnostic"), ("mean", "max"), ("raw", "probability")
    for asked, words in zip((pool, combine, score), known, strict=True):
        if asked not in words:
            raise UsageError(f"{asked!r}: {' or '.join(words)} wanted")
    found: dict[str, list[Detection]] = defaultdict(list)
    truths: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(dict)
    for episode in episodes.episodes:
        name = episode.label if pool == "class" else ""
        truths[name][episode.episode_id] = episode.reference.truths
        reference = protocol.reference(episode.reference)
        rankings = []
        for support in episode.supports:
            proposals = protocol.proposals(episode.reference, support).float()
            if len(proposals):
                around = protocol.reference(support)
                with evaluating(model), torch.no_grad():
                    ranking = model.rank(
                        protocol.query(support), reference, proposals, query_video=around
                    )
                place = f"{model.title}: query {support.item_id}, episode {episode.episode_id}"
                check_ranking(ranking, place)
                rankings.append(ranking.cpu())
        if not rankings:
            continue
        together = Ranking(*combined(rankings, combine))
        moments, scores = stacked(together.best(len(reference), CAP, nms_threshold=nms_threshold))
        if score == "probability":
            told = [each.probabilities for each in rankings if each.probabilities is not None]
            if len(told) < len(rankings):
                raise UsageError("the model is not calibrated: it has no probabilities")
            parts = [tell(moments, scores)[0].double().cpu() for tell in told]
            scores = torch.stack(parts).mean(dim=0)
        for (start, end), value in zip(moments.tolist(), scores.tolist(), strict=True):
            found[name].append(Detection(episode.episode_id, name, start, end, value))
    tables = {name: _hits(found[name], truths[name], THRESHOLDS) for name in truths}
    video = {e.episode_id: e.reference.video_id for e in episodes.episodes}

    def scores_of(times: Mapping[str, float]) -> list[float]:
        areas = []
        for name, (right, ids) in tables.items():
            total = sum(times[video[e]] * len(own) for e, own in truths[name].items())
            if total > 0:
                weights = np.array([times[video[e]] for e in ids], dtype=np.float64)
                areas.append(_areas(right, weights, total))
        mean = np.mean(areas, axis=0)
        return [float(mean.mean()), float(mean[0]), float(mean[5])]

    videos = sorted(set(video.values()))
    rng = generator(episodes.seed, "bootstrap")
    shares, draws = np.full(len(videos), 1 / len(videos)), samples if len(videos) > 1 else 0
    counts = rng.multinomial(len(videos), shares, size=draws)
    drawn = [scores_of(dict(zip(videos, row, strict=True))) for row in counts]
    values = scores_of(dict.fromkeys(videos, 1.0))
    ends = np.quantile(drawn, [0.025, 0.975], axis=0).T if drawn else [(None, None)] * len(values)
    return {
        name: Estimate(value, *(end if end is None else float(end) for end in span))
        for name, value, span in zip(("map", "map@0.5", "map@0.75"), values, ends, strict=True)
    }


def few_shot_table(
    models: Mapping[str, Relocalizer], protocol: Protocol, lists: Sequence[EpisodeList]
) -> list[dict[str, Any]]:
    """Every system on every list, trivial predictors among them, the best first in each list.

    A calibrated system has a row by its scores and one by its probabilities.

    Returns:
        Rows of ``title``, ``shots``, ``instances``, ``episodes``, ``sha256``, and the
        :class:`~relocal_pyg.evaluation.statistics.Estimate` of each score by name.
    """
    rows = []
    for episodes in lists:
        facts = {
            "shots": episodes.shots,
            "instances": episodes.instances,
            "episodes": len(episodes),
            "sha256": episodes.sha256,
        }
        found: list[dict[str, Any]] = []
        for title, model in models.items():
            ways: tuple[Literal["raw", "probability"], ...] = ("raw", "probability")
            for way in ways if isinstance(model, Calibrated) else ways[:1]:
                scores = evaluate_few_shot(model, protocol, episodes, score=way)
                name = title if way == "raw" else f"{title}, by probability"
                found.append({"title": name, **facts, **scores})
        rows += sorted(found, key=lambda row: -row["map@0.5"].value)
    return rows


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :func:`few_shot_table`, in percent with half of each 95 % interval."""
    cells = [["shots", "moments", "episodes", "system", ".5", ".75", "mean of .5 to .95"]]
    for row in rows:
        words = [str(row[key]) for key in ("shots", "instances", "episodes", "title")]
        scores = [percent(row[key], interval=True) for key in ("map@0.5", "map@0.75", "map")]
        cells.append(words + scores)
    return "\n".join([*pipe_table(cells, 4), ""])


def combined(
    rankings: Sequence[Ranking], combine: Literal["mean", "max"] = "mean"
) -> tuple[Tensor, Tensor]:
    """Every candidate ``[M, 2]`` of several rankings of one reference, and one score each.

    Where a ranking does not hold a candidate, its nearest one with a tIoU above .7 stands for it,
    else its lowest score.
    """
    short = [Ranking(r.moments[:LOOKED_AT], r.scores[:LOOKED_AT]) for r in rankings]
    if len(short) == 1:
        return short[0].moments, short[0].scores
    moments = torch.unique(torch.cat([ranking.moments for ranking in short]), dim=0)
    columns = []
    for ranking in short:
        overlap = tiou(moments[:, None], ranking.moments[None])
        near, place = overlap.max(dim=1)
        columns.append(torch.where(near > 0.7, ranking.scores[place], ranking.scores.min()))
    table = torch.stack(columns)
    return moments, table.mean(dim=0) if combine == "mean" else table.amax(dim=0)
