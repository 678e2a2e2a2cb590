"""Lists of pairs: a query and the reference it is looked for in, which may not hold it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from relocal_pyg.data.items import Item, Pair, Protocol
from relocal_pyg.errors import AnnotationError, UsageError, check_number
from relocal_pyg.formats.rows import table_records, whole
from relocal_pyg.io.read import read_json, read_text, tidy
from relocal_pyg.io.record import sha256_json
from relocal_pyg.io.seeding import check_seed, derive_seed
from relocal_pyg.io.write import write_json

Range = tuple[int, int]

_EXCLUDE = ("none", "item", "video")
#: What a table of pairs has at least.
_COLUMNS = ("query", "query_start", "query_end", "reference", "start", "end")


@dataclass(frozen=True)
class PairList:
    """Queries, each with the one reference it is looked for in.

    Attributes:
        pairs: The pairs, sorted by the query's ``item_id``.
        protocol: Name of the protocol.
        split: Name of the split.
        seed: Seed of the draw.
        exclude: What a query never meets: its ``"video"``, its ``"item"`` or ``"none"``.
        without_reference: ``item_id`` of queries for which no reference exists; no model can be
            asked about them, so they are named here and not scored.
    """

    pairs: tuple[Pair, ...]
    protocol: str
    split: str
    seed: int
    exclude: str
    without_reference: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the list as canonical JSON: equal for equal lists, on every machine."""
        return sha256_json(self._plain())

    def sample(self, limit: int | None) -> PairList:
        """At most ``limit`` of the pairs, in their order; all where None.

        Drawn at random by a hash, so that they are of many videos: neighbours in the list share
        one. The draw depends on the list's seed and its queries alone, and a smaller sample is part
        of a larger one.
        """
        if limit is None or check_number(limit, "limit", least=0, whole=True) >= len(self):
            return self
        drawn = sorted(self.pairs, key=lambda p: derive_seed(self.seed, "sample", p.query.item_id))
        kept = set(drawn[:limit])
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair in kept))

    def save(self, path: str | Path) -> None:
        """Write the list as JSON with its hash."""
        write_json(path, {"sha256": self.sha256, **self._plain()})

    @classmethod
    def load(cls, path: str | Path) -> PairList:
        """Read what :meth:`save` wrote and check its hash.

        Raises:
            AnnotationError: The file is missing, not a pair list, or was changed.
        """
        content = read_json(path, AnnotationError)
        try:
            items = {name: Item.from_json(fields) for name, fields in content["items"].items()}
            pairs = tuple(Pair(items[query], items[other]) for query, other in content["pairs"])
            facts = {key: content[key] for key in ("protocol", "split", "seed", "exclude")}
            result = cls(pairs, without_reference=tuple(content["without_reference"]), **facts)
            intact = result.sha256 == content["sha256"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AnnotationError(f"is not a pair list ({error!r})", file=path) from None
        if not intact:
            raise AnnotationError("was changed after it was written: draw it anew", file=path)
        return result

    def _plain(self) -> dict[str, Any]:
        items = {item.item_id: item for pair in self.pairs for item in (pair.query, pair.reference)}
        return {
            "protocol": self.protocol,
            "split": self.split,
            "seed": self.seed,
            "exclude": self.exclude,
            "without_reference": list(self.without_reference),
            "pairs": [[pair.query.item_id, pair.reference.item_id] for pair in self.pairs],
            "items": {name: asdict(items[name]) for name in sorted(items)},
        }


def read_pairs(path: str | Path, protocol: Protocol, split: str) -> PairList:
    """Read a fixed list: one that :meth:`PairList.save` wrote, or a CSV of others.

    For whoever has such a list, as that of the AFT+SRM line. A CSV has the columns
    ``query,query_start,query_end,reference,start,end`` in steps of the whole videos, and may have
    ``label``; rows of one query and one reference are one pair with several moments.

    Args:
        path: The file; ``.json`` is the former.
        protocol: Its items say which videos there are; the first stretch with a moment is searched.
        split: Name of the split, kept in the list.

    Raises:
        AnnotationError: A column is missing, a video unknown or another one than that of the list,
            a number none or outside its video.
    """
    known: dict[str, list[Item]] = {}
    for item in itertools.chain(*protocol.splits.values()):
        known.setdefault(item.video_id, []).append(item)
    if Path(path).suffix.lower() == ".json":
        made = PairList.load(path)
        for item in (item for pair in made.pairs for item in (pair.query, pair.reference)):
            here = [
                other for other in known.get(item.video_id, ()) if other.context == item.context
            ]
            key = (item.item_id, item.label)
            same = [other for other in here if (other.item_id, other.label) == key]
            if not here or any(other != item for other in same):
                reason = "is not what it is in this data: the list was made from other data"
                raise AnnotationError(reason, file=path, record=item.item_id)
        return made
    moments: dict[tuple[Item, Range, Item, str], set[Range]] = defaultdict(set)
    text = read_text(path, AnnotationError)
    for record, row in table_records(text, path, _COLUMNS, ("label",)):
        for video in (tidy(row["query"]), tidy(row["reference"])):
            if video not in known:
                raise AnnotationError(f"no split has a video {video!r}", file=path, record=record)
        asked, searched = known[tidy(row["query"])], known[tidy(row["reference"])]
        first, last = whole(row["query_start"]), whole(row["query_end"])
        start, end = whole(row["start"]), whole(row["end"])
        if first is None or last is None or start is None or end is None:
            raise AnnotationError("whole numbers of steps wanted", file=path, record=record)
        clip, span = (first, last), (start, end)
        query, reference = _around(asked, clip), _around(searched, span)
        if query is None or reference is None:
            raise AnnotationError("lies outside its video", file=path, record=record)
        moments[query, clip, reference, row["label"]].add(span)
    named: dict[str, Item] = {}

    def placed(around: Item, label: str, *spans: Range) -> Item:
        name = f"{around.video_id}@" + ",".join(f"{start}-{end}" for start, end in spans)
        facts: dict[str, Any] = {"label": label, "moment": spans[0], "moments": spans}
        made = replace(around, item_id=name, **facts)
        if named.setdefault(name, made) != made:  # the same place as another class, say
            made = replace(made, item_id=f"{name} in {made.context[0]}-{made.context[1]} {label}")
        return made

    pairs = [
        Pair(placed(query, label, clip), placed(reference, label, *sorted(spans)))
        for (query, clip, reference, label), spans in moments.items()
    ]
    if not pairs:
        raise AnnotationError("holds no pair", file=path)
    return PairList(tuple(pairs), protocol.name, split, 0, "none")


def _around(items: Iterable[Item], moment: Range) -> Item | None:
    """The first item whose context holds a moment that is not empty."""
    start, end = moment
    return next((i for i in items if i.context[0] <= start < end <= i.context[1]), None)


def make_pairs(
    items: Iterable[Item],
    *,
    split: str,
    protocol: str,
    seed: int = 6,
    exclude: str = "video",
    min_reference: Literal["query"] | None = "query",
) -> PairList:
    """Draw for each query one reference of its class, uniformly (fengyang0317/video_reloc).

    The draw of a query depends on the seed, its ``item_id`` and its candidates alone: the order of
    the items and the machine do not matter. Items that share a reference (video, context, class)
    count once among the candidates.

    Args:
        items: Items of one split; each is a query and may be a reference.
        split: Its name, kept in the list.
        protocol: Name of the protocol, kept in the list.
        seed: Seed of the draw; 6 is that of the published evaluation.
        exclude: What a query never meets: its ``"video"``, its ``"item"`` (with every item that
            shares its reference) or ``"none"``.
        min_reference: ``"query"``: only references at least as long as the query; None: any.

    Returns:
        The list; queries without a candidate are in ``without_reference``.

    Raises:
        UsageError: Unknown ``exclude`` or ``min_reference``.
        AnnotationError: Two items have the same ``item_id``.
    """
    if exclude not in _EXCLUDE:
        raise UsageError(f"exclude is {exclude!r}: one of {', '.join(_EXCLUDE)} wanted")
    if min_reference not in ("query", None):
        raise UsageError(f"min_reference is {min_reference!r}: 'query' or None wanted")
    seed = check_seed(seed)
    ordered = sorted(items, key=lambda item: item.item_id)
    for first, second in zip(ordered, ordered[1:], strict=False):
        if first.item_id == second.item_id:
            raise AnnotationError(
                "two items have this id: name them apart", record=first.item_id or "''"
            )
    references: dict[str, dict[tuple[str, tuple[int, int]], Item]] = defaultdict(dict)
    for item in ordered:
        references[item.label].setdefault((item.video_id, item.context), item)
    pairs, without = [], []
    for query in ordered:
        candidates = [
            other
            for (video_id, context), other in references[query.label].items()
            if (min_reference is None or other.num_steps >= query.query_steps)
            and not (exclude == "video" and video_id == query.video_id)
            and not (exclude == "item" and (video_id, context) == (query.video_id, query.context))
        ]
        if candidates:
            drawn = derive_seed(seed, "pair", query.item_id) % len(candidates)
            pairs.append(Pair(query, candidates[drawn]))
        else:
            without.append(query.item_id)
    return PairList(tuple(pairs), protocol, split, seed, exclude, tuple(without))


def make_null_pairs(protocol: Protocol, split: str, *, seed: int = 6) -> PairList:
    """Draw for each query of a split one reference that does not hold its action.

    The reference is that of an item of another class, from a video in which no split has an action
    of the query's class. Where every video shows the class, it is the longest stretch without that
    class of a reference of the class. Either is at least as long as the query and of another video.
    As in :func:`~relocal_pyg.data.pairs.make_pairs`, a draw depends on the seed, the query's
    ``item_id`` and its candidates alone.

    Such references have no truths (``moments`` is empty). What their ``item_id`` is says of which
    kind they are: ``"<video id>@<start>-<end>"``, and for a stretch ``"... free of <label>"``.

    Returns:
        The list; queries without such a reference are in ``without_reference``.

    Raises:
        UsageError: There is no such split.
    """
    if split not in protocol.splits:
        raise UsageError(f"no split {split!r}: {', '.join(protocol.splits)}")
    seed = check_seed(seed)
    shown: dict[str, dict[str, set[Range]]] = defaultdict(lambda: defaultdict(set))
    for items in protocol.splits.values():
        for item in items:
            shown[item.video_id][item.label].update(item.moments)
    ordered = sorted(protocol.splits[split], key=lambda item: item.item_id)
    references = list({(item.video_id, item.context): item for item in ordered}.values())
    pairs, without = [], []
    for query in ordered:
        length, note = query.query_steps, ""
        candidates = [
            (item, item.context)
            for item in references
            if item.num_steps >= length and query.label not in shown[item.video_id]
        ]
        if not candidates:
            note = f" free of {query.label}"
            free = [
                (item, longest_gap(item.context, shown[item.video_id][query.label]))
                for item in references
                if query.label in shown[item.video_id] and item.video_id != query.video_id
            ]
            candidates = [(item, gap) for item, gap in free if gap[1] - gap[0] >= length]
        if candidates:
            drawn = derive_seed(seed, "null", query.item_id) % len(candidates)
            item, (start, end) = candidates[drawn]
            name = f"{item.video_id}@{start}-{end}{note}"
            place: dict[str, Any] = {"context": (start, end), "moment": (start, start)}
            nothing = replace(item, item_id=name, label="", moments=(), **place)
            pairs.append(Pair(query, nothing))
        else:
            without.append(query.item_id)
    return PairList(tuple(pairs), protocol.name, split, seed, "video", tuple(without))


def longest_gap(context: Range, taken: Iterable[Range]) -> Range:
    """The longest part of a range that meets none of others; the first of equals, maybe empty.

    Example:
        >>> longest_gap((0, 20), [(5, 8), (7, 10), (30, 40)])
        (10, 20)
    """
    best, start = (context[0], context[0]), context[0]
    for first, last in [*sorted(taken), (context[1], context[1])]:
        end = min(first, context[1])
        if end - start > best[1] - best[0]:
            best = (start, end)
        start = max(start, last)
    return best
