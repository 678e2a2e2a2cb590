"""Protocols on ActivityNet: the published v1.3 split, and v1.2 with 80/10/10 classes.

Features are part of neither: the published ones are C3D reduced to 500 dimensions by PCA. Results
on other features cannot be compared with the paper's.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from relocal_pyg.data.annotations import Quarantine, Segment, Video, read_activitynet
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import FeatureSource, Item, Protocol
from relocal_pyg.data.proposals import WindowProposals
from relocal_pyg.datasets.building import (
    all_items,
    assign_videos,
    classes_of,
    file_facts,
    split_names,
    steps_in,
    tied_classes,
    whole_videos,
)
from relocal_pyg.errors import AnnotationError, FeatureError
from relocal_pyg.io.read import read_array, read_json
from relocal_pyg.io.seeding import derive_seed

#: Frames per step of the published features (after ``feat[::2]``).
FRAMES_PER_STEP = 16
#: Where the class permutation is cut: 160, 20 and 20 classes.
_CUTS = {"train": (0, 160), "val": (160, 180), "test": (180, 200)}


@dataclass(frozen=True)
class VideoLength:
    """Length of a video: frames, and feature steps of 16 frames."""

    num_frames: int
    num_steps: int


def read_lengths(path: str | Path) -> dict[str, VideoLength]:
    """Read ``length.json`` of fengyang0317/video_reloc: ``{<id>: {"n_frames", "n_feat"}}``."""
    content = read_json(path, AnnotationError)
    try:
        return {
            video_id: VideoLength(int(entry["n_frames"]), int(entry["n_feat"]))
            for video_id, entry in content.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f"is not a list of lengths ({error!r})", file=path) from None


def build_anet_vrl(
    annotations: str | Path | Mapping[str, Video],
    lengths: str | Path | Mapping[str, VideoLength],
    permutation: str | Path | Sequence[int],
    *,
    max_steps: int = 300,
    max_moment: int = 32,
    seed: int = 0,
) -> dict[str, list[Item]]:
    """Build the items of ``anet-vrl`` from ActivityNet v1.3.

    As ``create_dataset.py`` of fengyang0317/video_reloc does, except that the crop of a context
    over ``max_steps`` is drawn per item, so that it does not depend on the order of the videos.

    Args:
        annotations: The official JSON, or its videos (read with ``as_published=True``).
        lengths: ``length.json`` or its content; videos without a length are left out.
        permutation: ``perm.npy`` or its content: positions in the sorted class names, of which the
            first 160 train, 20 validate and 20 test.
        max_steps: Longest context in steps.
        max_moment: Longest action in steps.
        seed: Names the draw of the crops.

    Returns:
        Items by split ``"train"``, ``"val"``, ``"test"``, sorted.

    Raises:
        AnnotationError: A file is missing or malformed, or the permutation does not fit the
            classes.
    """
    if isinstance(annotations, str | Path):
        annotations = read_activitynet(annotations, as_published=True)
    if isinstance(lengths, str | Path):
        lengths = read_lengths(lengths)
    if isinstance(permutation, str | Path):
        permutation = read_permutation(permutation)
    names = sorted({segment.label for video in annotations.values() for segment in video.segments})
    if sorted(permutation) != list(range(len(names))):
        raise AnnotationError(
            f"the permutation has {len(permutation)} entries, the annotations {len(names)} classes"
        )
    split_of = {
        names[position]: split
        for split, (first, last) in _CUTS.items()
        for position in permutation[first:last]
    }
    result: dict[str, list[Item]] = {split: [] for split in _CUTS}
    for video_id, video in sorted(annotations.items()):
        segments, length = merge_segments(video.segments), lengths.get(video_id)
        if segments is None or length is None or video.duration is None:
            continue
        by_split = defaultdict(list)
        for number, segment in enumerate(segments):
            split = split_of.get(segment.label)
            item = _item(video, length, segments, number, max_steps, max_moment, seed)
            if split is not None and item is not None:
                by_split[split].append(item)
        for split, items in by_split.items():
            result[split] += _numbered(items)
    return result


def read_anet_vrl(path: str | Path) -> list[Item]:
    """Read published items: a list of ``{"id", "label", "location", "groundtruth"}``.

    That is ``train.json``, ``val.json`` or ``test.json`` of fengyang0317/video_reloc. Labels are
    class numbers, and a step counts as one second.
    """
    content = read_json(path, AnnotationError)
    items = []
    try:
        for entry in content:
            first, last = map(int, entry["location"])
            start, end = map(int, entry["groundtruth"])
            moment = (first + start, first + end)
            if not 0 <= first <= moment[0] < moment[1] <= last:
                raise ValueError(f"ranges of {entry['id']} are out of order")
            items.append(
                Item(
                    item_id="",
                    video_id=str(entry["id"]),
                    label=str(entry["label"]),
                    context=(first, last),
                    moment=moment,
                    moments=(moment,),
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f"is not a list of items ({error!r})", file=path) from None
    by_video = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.video_id, item.moment)):
        by_video[item.video_id].append(item)
    return [item for group in by_video.values() for item in _numbered(group)]


def read_permutation(path: str | Path) -> list[int]:
    """Read ``perm.npy``: a permutation of class positions."""
    values = read_array(path, AnnotationError).reshape(-1)
    if values.dtype.kind not in "iu":
        raise AnnotationError(f"holds {values.dtype}: whole numbers wanted", file=path)
    return [int(value) for value in values]


def merge_segments(segments: Iterable[Segment]) -> list[Segment] | None:
    """Join overlapping actions of one class; None where actions of two classes overlap.

    Segments that touch overlap.

    Example:
        >>> merged = merge_segments([Segment(0, 5, "a"), Segment(4, 9, "a"), Segment(10, 12, "b")])
        >>> merged == [Segment(0, 9, "a"), Segment(10, 12, "b")]
        True
        >>> merge_segments([Segment(0, 5, "a"), Segment(4, 9, "b")]) is None
        True
    """
    merged: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: segment.start):
        if not merged or segment.start > merged[-1].end:
            merged.append(segment)
        elif segment.label != merged[-1].label:
            return None
        else:
            merged[-1] = replace(merged[-1], end=max(merged[-1].end, segment.end))
    return merged


def _item(
    video: Video,
    length: VideoLength,
    segments: Sequence[Segment],
    number: int,
    max_steps: int,
    max_moment: int,
    seed: int,
) -> Item | None:
    duration = video.duration or 0.0

    def first_step(seconds: float) -> int:
        return int(length.num_frames * seconds / duration // FRAMES_PER_STEP)

    def end_step(seconds: float) -> int:
        return min(length.num_steps, first_step(seconds) + 1)

    segment = segments[number]
    start, end = first_step(segment.start), end_step(segment.end)
    if not 0 < end - start <= max_moment:
        return None
    earlier = [other.end for other in segments[:number] if other.label == segment.label]
    later = [other.start for other in segments[number + 1 :] if other.label == segment.label]
    first = first_step(earlier[-1]) if earlier else 0
    last = end_step(later[0] if later else duration)
    if last - first > max_steps:
        lowest, highest = max(end - max_steps, first), min(start, last - max_steps)
        drawn = derive_seed(seed, "crop", video.video_id, start, end)
        first = lowest + drawn % (highest - lowest + 1)
        last = first + max_steps
    return Item(
        item_id="",
        video_id=video.video_id,
        label=segment.label,
        context=(first, last),
        moment=(start, end),
        moments=((start, end),),
        seconds_per_step=FRAMES_PER_STEP * duration / length.num_frames,
        subject=video.subject,
    )


def _numbered(items: Iterable[Item]) -> list[Item]:
    return [replace(item, item_id=f"{item.video_id}#{number}") for number, item in enumerate(items)]


def _named(
    items: Sequence[Item], lengths: Mapping[str, VideoLength], videos: Mapping[str, Video]
) -> list[Item]:
    """Items with the names of their classes and the right ``seconds_per_step``."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        video = videos.get(item.video_id)
        labels = {segment.label for segment in video.segments} if video else set()
        if len(labels) == 1:
            votes[item.label][labels.pop()] += 1
    names = {label: counter.most_common(1)[0][0] for label, counter in votes.items()}
    result = []
    for item in items:
        video, length = videos.get(item.video_id), lengths.get(item.video_id)
        seconds = item.seconds_per_step
        if video is not None and video.duration is not None and length is not None:
            seconds = FRAMES_PER_STEP * video.duration / length.num_frames
        label = names.get(item.label, item.label)
        result.append(replace(item, label=label, seconds_per_step=seconds))
    return result


_SHARES = {"val": 0.1, "test": 0.1}


def anet_vrl_items(
    root: str | Path, annotations: str | Path | None = None
) -> dict[str, list[Item]]:
    """Read the published items of Feng et al. (ECCV 2018), fengyang0317/video_reloc.

    Args:
        root: Folder of ``train.json``, ``val.json``, ``test.json`` and ``length.json``.
        annotations: JSON of ActivityNet v1.3; without it labels are class numbers and a step
            counts as one second.

    Returns:
        Items by split: 7,593, 829 and 978.
    """
    items = {split: read_anet_vrl(Path(root) / f"{split}.json") for split in _CUTS}
    if annotations is None:
        return items
    lengths = read_lengths(Path(root) / "length.json")
    videos = read_activitynet(annotations, as_published=True)
    return {split: _named(group, lengths, videos) for split, group in items.items()}


def anet_vrl(
    root: str | Path, features: FeatureSource, annotations: str | Path | None = None
) -> Protocol:
    """The published re-localization split of ActivityNet v1.3.

    As published, a query may meet its own item or video (``exclude="none"``). Proposals are sliding
    windows as long as training moments.

    Features are steps of 16 frames, such as ``FeatureStore(path, subsample=2)`` of the published
    file; ``root`` and ``annotations`` are those of :func:`anet_vrl_items`.

    Raises:
        AnnotationError: A file is missing or malformed.
        FeatureError: No item of a split has features.
    """
    items = anet_vrl_items(root, annotations)
    splits, missing = _with_features(items, features)
    files = [Path(root) / f"{split}.json" for split in items]
    path = features.path if isinstance(features, FeatureStore) else None
    return Protocol(
        name="anet-vrl",
        splits=splits,
        features=features,
        propose=WindowProposals.fit(splits["train"]),
        exclude="none",
        about={
            "files": file_facts(*files, annotations, path),
            "classes": classes_of(splits),
            "items_without_features": missing,
        },
    )


def anet12_items(
    annotations: str | Path | Mapping[str, Video],
    num_steps: Callable[[str], int | None],
    *,
    seed: int = 0,
) -> dict[str, list[Item]]:
    """Items of ActivityNet v1.2, its classes dealt out 80/10/10 (section 5.1.1).

    The paper gives no class list, so classes are drawn. Splits share neither class nor video: the
    few videos whose classes fall into several splits are left out. References are whole videos.

    Args:
        annotations: The official JSON, or its videos.
        num_steps: Gives the steps of a video, None where it has no features, such as
            ``{"video": 120}.get``.
        seed: Names the draw of the classes.
    """
    if isinstance(annotations, str | Path):
        annotations = read_activitynet(annotations, quarantine=Quarantine(), clip=True)
    labels = {segment.label for video in annotations.values() for segment in video.segments}
    sizes = {split: round(share * len(labels)) for split, share in _SHARES.items()}
    sizes = {"train": len(labels) - sum(sizes.values()), **sizes}
    classes = split_names(labels, sizes, seed, tied_classes(annotations.values()))
    videos, _ = assign_videos(annotations.values(), classes)
    return {split: all_items(videos[split], num_steps) for split in classes}


def anet12(
    annotations: str | Path,
    features: FeatureStore,
    *,
    seed: int = 0,
    proposals: str | Path | None = None,
) -> Protocol:
    """ActivityNet v1.2 with classes drawn 80/10/10, see :func:`anet12_items`.

    Proposals are those of a TAG list; sliding windows as long as training moments where None.

    Raises:
        AnnotationError: The file is missing or malformed.
        FeatureError: No item of a split has features.
        ProposalError: The list is malformed.
    """
    quarantine = Quarantine()
    # One action in 58 of the official file ends milliseconds after its video.
    videos = read_activitynet(annotations, quarantine=quarantine, clip=True)
    items = anet12_items(videos, steps_in(features), seed=seed)
    used = {item.video_id for group in items.values() for item in group}
    return whole_videos(
        "anet12",
        items,
        features,
        proposals,
        annotations,
        seed=seed,
        set_aside=len(quarantine),
        videos=len(used),
        videos_left_out=sum(bool(video.segments) for video in videos.values()) - len(used),
    )


def _with_features(
    items: Mapping[str, list[Item]], features: FeatureSource
) -> tuple[dict[str, tuple[Item, ...]], int]:
    """Leave out items that a feature store does not hold; other sources are taken at their word."""
    splits, missing = {}, 0
    for split, group in items.items():
        kept = group
        if isinstance(features, FeatureStore):
            kept = [
                item
                for item in group
                if item.video_id in features
                and item.context[1] <= features.num_steps(item.video_id)
            ]
        if not kept:
            raise FeatureError(f"no item of split {split!r} has features")
        missing += len(group) - len(kept)
        splits[split] = tuple(kept)
    if missing:
        warnings.warn(f"{missing} items have no features and are left out", stacklevel=3)
    return splits, missing
