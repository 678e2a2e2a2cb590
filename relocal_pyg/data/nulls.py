"""References that do not hold what is looked for: can a model tell that nothing is there?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from relocal_pyg.data.items import Item, Pair
from relocal_pyg.data.pairs import PairList
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.errors import UsageError
from relocal_pyg.seeding import derive_seed

Range = tuple[int, int]


def make_null_pairs(protocol: Protocol, split: str, *, seed: int = 6) -> PairList:
    """Draw for each query of a split one reference that does not hold its action.

    The reference is that of an item of another class, from a video in which no split has an action
    of the query's class. Where every video shows the class, it is the longest stretch without that
    class of a reference of the class. Either is at least as long as the query and of another video.
    As in :func:`~relocal_pyg.data.pairs.make_pairs`, a draw depends on the seed, the query's
    ``item_id`` and its candidates alone.

    Such references have no truths (``moments`` is empty). What their ``item_id`` is says of which
    kind they are: ``"<video id>@<start>-<end>"``, and for a stretch ``"... free of <label>"``.

    Args:
        protocol: Its items say what each video shows.
        split: The split that queries and references are taken from.
        seed: Seed of the draws.

    Returns:
        The list; queries without such a reference are in ``without_reference``.

    Raises:
        UsageError: There is no such split.
    """
    if split not in protocol.splits:
        raise UsageError(f"no split {split!r}: {', '.join(protocol.splits)}")
    shown: dict[str, dict[str, set[Range]]] = defaultdict(lambda: defaultdict(set))
    for items in protocol.splits.values():
        for item in items:
            shown[item.video_id][item.label].update(item.moments)
    ordered = sorted(protocol.splits[split], key=lambda item: item.item_id)
    references = list({(item.video_id, item.context): item for item in ordered}.values())
    pairs, without = [], []
    for query in ordered:
        length = query.query_steps
        note = ""
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
            candidates = [
                (item, (start, end)) for item, (start, end) in free if end - start >= length
            ]
        if candidates:
            drawn = derive_seed(seed, "null", query.item_id) % len(candidates)
            pairs.append(Pair(query, _null(*candidates[drawn], note)))
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


def _null(item: Item, context: Range, note: str) -> Item:
    """The reference of an item, or a stretch of it, as one in which there is nothing to find."""
    start, end = context
    return Item(
        item_id=f"{item.video_id}@{start}-{end}{note}",
        video_id=item.video_id,
        label="",
        context=context,
        moment=(start, start),
        moments=(),
        seconds_per_step=item.seconds_per_step,
        subject=item.subject,
    )
