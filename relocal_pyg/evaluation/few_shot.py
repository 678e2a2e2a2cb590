"""Few-shot temporal localization: a few examples of a class, every moment of it in a video.

The protocol of the common-localization line (PengWan-Yang/commonLocalization,
sauradip/fewshotQAT, MICLAB-BUPT/VAL-VLM). Published rows do not share one protocol; nothing here is
comparable with them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.errors import AnnotationError, UsageError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.seeding import generator
from relocal_pyg.io.write import write_json
from relocal_pyg.models.base import Ranking, Relocalizer
from relocal_pyg.moments import clip_moments, nms, tiou

#: Thresholds of ActivityNet's average: .5 to .95.
THRESHOLDS = tuple(round(0.5 + 0.05 * number, 2) for number in range(10))

#: Detections of one episode at most, and what of a ranking is looked at for them.
CAP = 100
LOOKED_AT = 1000

Instances = Literal["single", "multi", "superset"]
_ITEM_RANGES = ("context", "moment")


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
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

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
                    tuple(_item(fields) for fields in row["supports"]),
                    _item(row["reference"]),
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
    episode with one shot: lists of one shot are nested in those of five.

    Args:
        protocol: Its items are drawn from.
        split: One of its splits.
        shots: Examples an episode, of as many videos.
        count: Episodes.
        instances: Which references, see :class:`EpisodeList`.
        seed: Seed of the draw.

    Raises:
        UsageError: No such split, or a number below 1.
        AnnotationError: No class has a fitting reference and ``shots`` other videos.
    """
    if split not in protocol.splits:
        raise UsageError(f"no such split: {split!r}, one of {', '.join(protocol.splits)} wanted")
    if shots < 1 or count < 1 or instances not in ("single", "multi", "superset"):
        raise UsageError("shots and count must be 1 or more, instances single, multi or superset")
    by_label: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in sorted(protocol.splits[split]):
        by_label[item.label][item.video_id].append(item)
    references: dict[str, list[Item]] = {}
    for label, videos in by_label.items():
        if len(videos) > shots:
            first = {
                (item.video_id, item.context): item for v in videos.values() for item in v[::-1]
            }
            fitting = [i for i in first.values() if _fits(len(i.moments), instances)]
            if fitting:
                references[label] = sorted(fitting)
    if not references:
        raise AnnotationError(f"no class of {split} has a reference and {shots} other videos")
    labels = sorted(references)
    episodes = []
    for number in range(count):
        rng = generator(seed, "episode", number)
        label = labels[int(rng.integers(len(labels)))]
        reference = references[label][int(rng.integers(len(references[label])))]
        others = [video for video in by_label[label] if video != reference.video_id]
        drawn = [others[place] for place in rng.permutation(len(others))[:shots]]
        # A stream a place: more shots change no earlier example.
        supports = [
            by_label[label][video][
                int(generator(seed, "support", number, video).integers(len(by_label[label][video])))
            ]
            for video in drawn
        ]
        episodes.append(Episode(f"{number:05d}", label, tuple(supports), reference))
    return EpisodeList(tuple(episodes), protocol.name, split, shots, instances, seed)


def read_pair_list(
    path: str | Path, items: Iterable[Item], *, protocol: str, split: str
) -> EpisodeList:
    """Read a fixed list of others: query, reference and their times, one shot an episode.

    For whoever has such a list, as the one of the AFT+SRM line: a CSV with the columns
    ``query,query_start,query_end,reference,start,end`` in steps of the whole videos, and a label in
    ``label`` where known. Rows of one query and reference are one episode with several moments.

    Args:
        path: The CSV.
        items: Items of the videos, for their contexts.
        protocol: Name of the protocol, kept in the list.
        split: Name of the split, kept in the list.

    Raises:
        AnnotationError: A column is missing, a video unknown, or a number none.
    """
    import csv

    from relocal_pyg.io.read import read_text

    contexts = {item.video_id: item for item in items}
    groups: dict[tuple[str, int, int, str], list[tuple[int, int]]] = defaultdict(list)
    names: dict[tuple[str, int, int, str], str] = {}
    for number, row in enumerate(csv.DictReader(read_text(path, AnnotationError).splitlines()), 2):
        try:
            key = (row["query"], int(row["query_start"]), int(row["query_end"]), row["reference"])
            span = (int(row["start"]), int(row["end"]))
            whole = [contexts[key[0]], contexts[key[3]]]
        except (KeyError, TypeError, ValueError) as error:
            raise AnnotationError(
                f"cannot be used ({error})", file=path, record=f"line {number}"
            ) from None
        for item, (start, end) in zip(whole, (key[1:3], span), strict=True):
            if not item.context[0] <= start < end <= item.context[1]:
                raise AnnotationError("lies outside its video", file=path, record=f"line {number}")
        groups[key].append(span)
        names[key] = row.get("label") or ""
    episodes = []
    for number, (key, spans) in enumerate(groups.items()):
        moments = tuple(sorted(spans))
        support = replace(contexts[key[0]], moment=key[1:3], moments=(key[1:3],), label=names[key])
        reference = replace(contexts[key[3]], moment=moments[0], moments=moments, label=names[key])
        episodes.append(Episode(f"{number:05d}", names[key], (support,), reference))
    return EpisodeList(tuple(episodes), protocol, split, 1, "superset", 0)


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
    """Average precision of one class over all episodes, as ActivityNet counts it.

    Detections of all episodes in one list by falling score; each takes the free truth of its
    episode with the largest tIoU if that is ``>=`` the threshold, else it is a false positive. The
    area is that under the precision's envelope. Ties keep their order.

    Args:
        detections: All answers.
        truths: For each episode its moments, in steps.
        thresholds: Of tIoU.

    Returns:
        float64 ``[len(thresholds)]``.
    """
    total = sum(map(len, truths.values()))
    ordered = sorted(detections, key=lambda found: -found.score)
    overlaps = []
    for found in ordered:
        own = torch.tensor(truths.get(found.episode_id, ()), dtype=torch.float64).view(-1, 2)
        span = torch.tensor([[found.start, found.end]], dtype=torch.float64)
        overlaps.append(tiou(span.expand(len(own), 2), own).tolist())
    areas = []
    for threshold in thresholds:
        free = {episode: set(range(len(moments))) for episode, moments in truths.items()}
        right = np.zeros(len(ordered))
        for number, (found, overlap) in enumerate(zip(ordered, overlaps, strict=True)):
            left = free.get(found.episode_id, set())
            best = max(left, key=lambda place: overlap[place], default=None)
            if best is not None and overlap[best] >= threshold:
                left.remove(best)
                right[number] = 1
        hits = right.cumsum()
        precision = hits / np.arange(1, len(ordered) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        areas.append(float((envelope * right).sum()) / max(total, 1))
    return torch.tensor(areas, dtype=torch.float64)


def evaluate_few_shot(
    model: Relocalizer,
    protocol: Protocol,
    episodes: EpisodeList,
    *,
    pool: Literal["class", "agnostic"] = "class",
    combine: Literal["mean", "max"] = "mean",
    nms_threshold: float = 0.5,
) -> dict[str, float]:
    """Average precision of a model over episodes.

    Every candidate is scored by each example, the scores are averaged, and one non-maximum
    suppression follows. Scores have to mean the same in every episode: their list is global.

    Args:
        model: Any system.
        protocol: Where features and proposals come from.
        episodes: What is asked.
        pool: One list a class and the mean over classes, or one list for all.
        combine: How scores of several examples are combined.
        nms_threshold: Of two answers with a larger tIoU only the better is kept.

    Returns:
        ``"map"`` (mean of .5 to .95), ``"map@0.5"``, ``"map@0.75"`` and ``"episodes"``.
    """
    found: dict[str, list[Detection]] = defaultdict(list)
    truths: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(dict)
    for episode in episodes.episodes:
        name = episode.label if pool == "class" else ""
        truths[name][episode.episode_id] = episode.reference.truths
        reference = protocol.reference(episode.reference)
        rankings = []
        for support in episode.supports:
            proposals = protocol.proposals(episode.reference, support)
            around = protocol.reference(support)
            rankings.append(
                model.rank(protocol.query(support), reference, proposals, query_video=around)
            )
        moments, scores = combined(rankings, combine)
        moments = clip_moments(moments, len(reference))
        for place in nms(moments, scores, nms_threshold, limit=CAP).tolist():
            start, end = moments[place].tolist()
            found[name].append(
                Detection(episode.episode_id, name, start, end, float(scores[place]))
            )
    areas = torch.stack([average_precision(found[name], truths[name]) for name in sorted(truths)])
    mean = areas.mean(dim=0).tolist()
    return {
        "map": sum(mean) / len(mean),
        "map@0.5": mean[0],
        "map@0.75": mean[5],
        "episodes": float(len(episodes)),
    }


def combined(
    rankings: Sequence[Ranking], combine: Literal["mean", "max"] = "mean"
) -> tuple[Tensor, Tensor]:
    """One score for every candidate of several rankings of one reference.

    Where a ranking does not hold a candidate, its nearest one with a tIoU above .7 stands for it,
    else its lowest score.

    Returns:
        Moments ``[M, 2]`` and scores ``[M]``.
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


def _fits(moments: int, instances: Instances) -> bool:
    return instances == "superset" or (moments == 1) == (instances == "single")


def _item(fields: dict[str, Any]) -> Item:
    ranges = {name: _pair(fields[name]) for name in _ITEM_RANGES}
    return Item(**{**fields, **ranges, "moments": tuple(_pair(m) for m in fields["moments"])})


def _pair(value: Sequence[int]) -> tuple[int, int]:
    start, end = value
    return int(start), int(end)
