"""What all protocols are built with: items of whole videos, and splits that keep classes apart."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from relocal_pyg.data.annotations import Video
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.proposals import TagProposals, WindowProposals, read_proposal_list
from relocal_pyg.errors import AnnotationError, FeatureError, UsageError
from relocal_pyg.io.record import sha256_file
from relocal_pyg.io.seeding import derive_seed
from relocal_pyg.moments import seconds_to_steps


def video_items(
    video: Video,
    num_steps: int,
    *,
    seconds_per_step: float | None = None,
    labels: Iterable[str] | None = None,
) -> list[Item]:
    """Make an item of every action of a video; the whole video is the reference.

    Every action of the same class in the video counts as a truth. Actions of one class that cover
    the same steps are one item.

    Args:
        video: Segments in seconds.
        num_steps: Steps of the video.
        seconds_per_step: Duration of a step; the video's duration divided by its steps where None.
        labels: Classes that become items; all where None.

    Returns:
        Items sorted by start; ``item_id`` is ``<video_id>#<number of the segment>``.

    Raises:
        AnnotationError: Neither the duration nor ``seconds_per_step`` is known.

    Example:
        >>> from relocal_pyg.data.annotations import Segment
        >>> video = Video("v", 10.0, (Segment(1.0, 2.5, "run"), Segment(6.0, 8.0, "run")))
        >>> [(item.item_id, item.moment, item.moments) for item in video_items(video, 20)]
        [('v#0', (2, 5), ((2, 5), (12, 16))), ('v#1', (12, 16), ((2, 5), (12, 16)))]
    """
    if seconds_per_step is None:
        if video.duration is None:
            raise AnnotationError(
                "the duration is not known: give seconds_per_step", record=video.video_id
            )
        seconds_per_step = video.duration / num_steps
    kept = set(labels) if labels is not None else None
    seconds = torch.tensor([(s.start, s.end) for s in video.segments], dtype=torch.float64)
    steps = seconds_to_steps(seconds.reshape(-1, 2), seconds_per_step, num_steps).tolist()
    moments: dict[tuple[str, tuple[int, int]], int] = {}
    for number, (segment, (start, end)) in enumerate(zip(video.segments, steps, strict=True)):
        if kept is None or segment.label in kept:
            moments.setdefault((segment.label, (start, end)), number)
    return [
        Item(
            item_id=f"{video.video_id}#{number}",
            video_id=video.video_id,
            label=label,
            context=(0, num_steps),
            moment=moment,
            moments=tuple(other for name, other in moments if name == label),
            seconds_per_step=seconds_per_step,
            subject=video.subject,
        )
        for (label, moment), number in moments.items()
    ]


def split_names(
    names: Iterable[str], sizes: Mapping[str, int], seed: int, tied: Iterable[Collection[str]] = ()
) -> dict[str, list[str]]:
    """Deal names out to splits at random, the same on every machine; sorted.

    Args:
        names: Such as class names; their order does not matter.
        sizes: How many names each split gets; together all of them.
        seed: Names the draw.
        tied: Groups of names that stay together, see :func:`tied_classes`.

    Raises:
        UsageError: The sizes do not add up to the number of names, or tied groups do not fit.

    Example:
        >>> split_names("abcd", {"train": 3, "test": 1}, seed=0)
        {'train': ['a', 'b', 'c'], 'test': ['d']}
        >>> split_names("abcd", {"train": 2, "test": 2}, seed=0, tied=["ad"])
        {'train': ['b', 'c'], 'test': ['a', 'd']}
    """
    units = [sorted(group) for group in tied]
    units += [[name] for name in set(names).difference(*units)]
    # Sorting by a hash, unlike a library's shuffle, is the same in every version of everything.
    units.sort(key=lambda unit: derive_seed(seed, "split", unit[0]))
    result: dict[str, list[str]] = {split: [] for split in sizes}
    for unit in units:
        # The largest split comes last, where any group still fits.
        for split in sorted(sizes, key=lambda split: sizes[split]):
            if len(result[split]) + len(unit) <= sizes[split]:
                result[split] += unit
                break
    dealt = {split: len(own) for split, own in result.items()}
    if dealt != dict(sizes) or sum(dealt.values()) != sum(map(len, units)):
        raise UsageError(f"{sum(map(len, units))} names cannot be split into {dict(sizes)}")
    return {split: sorted(names) for split, names in result.items()}


def tied_classes(videos: Iterable[Video], share: float = 0.5) -> list[list[str]]:
    """Groups of classes that mostly occur in the same videos, so that splitting loses these.

    They are tied where they share more than ``share`` of the rarer one's videos.

    Example:
        >>> from relocal_pyg.data.annotations import Segment
        >>> both = (Segment(0, 1, "cliff diving"), Segment(0, 1, "diving"))
        >>> tied_classes([Video("a", 9.0, both), Video("b", 9.0, both[1:])])
        [['cliff diving', 'diving']]
    """
    where: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        for segment in video.segments:
            where[segment.label].add(video.video_id)
    group_of = {label: {label} for label in where}
    for first, second in itertools.combinations(sorted(where), 2):
        rarer = min(len(where[first]), len(where[second]))
        if len(where[first] & where[second]) > share * rarer:
            joined = group_of[first] | group_of[second]
            group_of.update(dict.fromkeys(joined, joined))
    groups = {tuple(sorted(group)) for group in group_of.values() if len(group) > 1}
    return [list(group) for group in sorted(groups)]


def assign_videos(
    videos: Iterable[Video], classes: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Video]], list[str]]:
    """Videos by the split of their classes; and ids of those with classes of several, left out."""
    split_of = {label: split for split, labels in classes.items() for label in labels}
    result: dict[str, list[Video]] = {split: [] for split in classes}
    mixed = []
    for video in videos:
        splits = {split_of[segment.label] for segment in video.segments}
        if len(splits) == 1:
            result[splits.pop()].append(video)
        elif splits:
            mixed.append(video.video_id)
    return result, mixed


def all_items(videos: Iterable[Video], num_steps: Callable[[str], int | None]) -> list[Item]:
    """Items of many videos, see :func:`video_items`; those of unknown length are left out."""
    items = []
    for video in videos:
        steps = num_steps(video.video_id)
        if steps and video.duration is not None:
            items += video_items(video, steps)
    return items


def file_facts(*paths: str | Path | None) -> dict[str, str]:
    """Name and SHA-256 of the source files that were given, for ``Protocol.about``."""
    return {Path(path).name: sha256_file(path) for path in paths if path is not None}


def steps_in(features: FeatureStore) -> Callable[[str], int | None]:
    """Steps of a video, None where there are no features of it."""
    return lambda video_id: features.num_steps(video_id) if video_id in features else None


def whole_videos(
    name: str,
    items: Mapping[str, Sequence[Item]],
    features: FeatureStore,
    proposals: str | Path | None,
    *files: str | Path,
    **about: object,
) -> Protocol:
    """A protocol whose references are whole videos.

    Proposals are those of a TAG list; sliding windows as long as training moments where None.

    Raises:
        FeatureError: No video of a split has features.
        ProposalError: The list is malformed.
    """
    for split, group in items.items():
        if not group:
            raise FeatureError(f"no video of split {split!r} has features", file=features.path)
    return Protocol(
        name=name,
        splits={split: tuple(group) for split, group in items.items()},
        features=features,
        propose=listed_or(WindowProposals.fit(items["train"]), proposals, features),
        about={
            "files": file_facts(*files, features.path, proposals),
            "classes": classes_of(items),
            **about,
        },
    )


def listed_or(
    windows: WindowProposals, listed: str | Path | None, features: FeatureStore
) -> TagProposals | WindowProposals:
    """The proposals of a list, windows where there is none."""
    if listed is None:
        return windows
    return TagProposals(read_proposal_list(listed), features.num_steps)


def classes_of(splits: Mapping[str, Sequence[Item]]) -> dict[str, list[str]]:
    """The labels of each split, sorted."""
    return {split: sorted({item.label for item in group}) for split, group in splits.items()}
