"""A protocol over anyone's own data: one feature file and one annotation file."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from relocal_pyg.data.annotations import Quarantine, Video, read_annotations
from relocal_pyg.data.checks import usable_videos
from relocal_pyg.data.features import FeatureStore, scan
from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.proposals import WindowProposals
from relocal_pyg.datasets.building import file_facts, listed_or, split_names, video_items
from relocal_pyg.errors import AnnotationError, UsageError, check_number
from relocal_pyg.io.seeding import derive_seed


def custom(
    features: str | Path | FeatureStore,
    annotations: str | Path,
    *,
    key: str | None = None,
    name: str = "custom",
    unseen_classes: int | Sequence[str] = 0,
    holdout: Literal["subject", "video"] | None = None,
    test_share: float = 0.2,
    val_share: float = 0.1,
    background: str | None = "background",
    seed: int = 0,
    seconds_per_step: float | None = None,
    lengths: Sequence[int] | None = None,
    stride: float = 1 / 3,
    proposals: str | Path | None = None,
    clip: bool = False,
    check_values: bool = True,
    quarantine: Quarantine | None = None,
) -> Protocol:
    """Make a protocol of an HDF5 feature file and annotations, with held-out people and classes.

    Splits: ``"train"``, ``"val"``, ``"test_seen"`` (training classes, held-out subjects) and, with
    ``unseen_classes``, ``"test_unseen"``. Queries and references of a test split come from held-out
    subjects alone; only where an unseen class occurs in fewer than two held-out videos does
    ``"test_unseen"`` take all videos (``about["test_unseen_from"]`` says so). Note that actions of
    unseen classes in training videos are seen there as background. A reference is a whole video,
    and every action of its class in it counts as a truth.

    Args:
        features: HDF5 file ``<video id>/<key>`` ``[n, F]``, or an open store of it.
        annotations: A file that :func:`relocal_pyg.data.read_annotations` reads; seconds.
        key: Name of the data set inside each group.
        name: Name of the protocol in tables.
        unseen_classes: How many classes (drawn) or which ones are never trained on.
        holdout: What no two splits share: ``"subject"`` or ``"video"``; subjects where every video
            names one, if None.
        test_share: Share of the subjects (or videos) held out for testing.
        val_share: Share of the subjects (or videos) held out for validation. They are dealt so that
            each training class has two validation videos and keeps two for training, where that can
            be; for this up to twice the share is taken, and more where no class has two yet.
        background: Label that is no action.
        seed: Names the draws.
        seconds_per_step: Duration of a step; each video's duration divided by its steps where None.
        lengths: Window lengths in steps; from the 2nd to the 98th percentile of the training
            moments, each 1.3 times the last, where None.
        stride: Stride of the windows as a share of their length.
        proposals: A proposal list to use instead of windows.
        clip: Cut actions that leave their video at its borders instead of setting them aside.
        check_values: Read all features once and set videos with NaN, infinities or wrong checksums
            aside; otherwise they fail when they are used.
        quarantine: Takes what cannot be used; where None, a warning counts it.

    Raises:
        UsageError: A share or a class makes no sense.
        AnnotationError: The annotations cannot be used, or are too few to be split.
        FeatureError: The features cannot be used, or fit no annotation.
    """
    if seconds_per_step is not None:
        check_number(seconds_per_step, "seconds_per_step", above=0)
    if isinstance(features, FeatureStore):
        if key not in (None, features.key):
            raise UsageError(f"key is {key!r}, the store that was given reads {features.key!r}")
        store = copy.copy(features)  # its width is set below: the caller's stays as it is
    else:
        store = FeatureStore(features, key=key)
    given = Quarantine() if quarantine is None else quarantine
    videos = read_annotations(annotations, quarantine=given, clip=clip)
    records = scan(store.path, store.key, max_bytes=store.max_bytes, values=check_values)
    found = [record for record in records if record is not None]
    usable = usable_videos(
        videos,
        found,
        store.path,
        annotations,
        given,
        None if seconds_per_step is None else seconds_per_step / store.subsample,
        clip,
    )
    unknown = [] if seconds_per_step else [v for v in usable if videos[v].duration is None]
    for video_id in unknown if len(unknown) < len(usable) else []:  # else all are asked for
        reason = "the duration is not known: give seconds_per_step"
        given.add(annotations, video_id, reason)
        del usable[video_id]
    if quarantine is None and len(given):
        warnings.warn(given.summary(), stacklevel=2)
    store.width = next(iter(usable.values())).dim  # of most videos, not of the first in the file
    steps = {video_id: -(-usable[video_id].num_steps // store.subsample) for video_id in usable}
    items, about = split_custom(
        {video_id: videos[video_id] for video_id in usable},
        steps,
        unseen_classes=unseen_classes,
        holdout=holdout,
        test_share=test_share,
        val_share=val_share,
        background=background,
        seed=seed,
        seconds_per_step=seconds_per_step,
    )
    windows = (
        WindowProposals.fit(items["train"], stride=stride)
        if lengths is None
        else WindowProposals(lengths, stride)
    )
    files = store.path, annotations, proposals
    return Protocol(
        name=name,
        splits={split: tuple(group) for split, group in items.items()},
        features=store,
        propose=listed_or(windows, proposals, store),
        about={"files": file_facts(*files), "set_aside": len(given), "seed": seed, **about},
    )


def split_custom(
    videos: Mapping[str, Video],
    num_steps: Mapping[str, int],
    *,
    unseen_classes: int | Sequence[str] = 0,
    holdout: Literal["subject", "video"] | None = None,
    test_share: float = 0.2,
    val_share: float = 0.1,
    background: str | None = "background",
    seed: int = 0,
    seconds_per_step: float | None = None,
) -> tuple[dict[str, list[Item]], dict[str, object]]:
    """Split annotated videos, of so many steps, as :func:`custom` describes; no feature is needed.

    Returns:
        Items by split; and classes, held-out groups and counts as plain values.

    Raises:
        UsageError: A share or a class makes no sense.
        AnnotationError: There are too few videos, subjects or classes.
    """
    labels = {segment.label for video in videos.values() for segment in video.segments}
    labels.discard(background or "")
    seen, unseen = _classes(labels, unseen_classes, seed)
    groups, holdout = _groups(videos, holdout)
    shown = {
        group: Counter(
            label
            for name in names
            for label in {segment.label for segment in videos[name].segments} & set(seen)
        )
        for group, names in groups.items()
    }
    held = _hold_out(groups, shown, test_share, val_share, holdout, seed)
    used = {split: sorted(v for n in names for v in groups[n]) for split, names in held.items()}

    def items(ids: Sequence[str], wanted: Sequence[str]) -> list[Item]:
        return [
            item
            for video_id in ids
            for item in video_items(
                videos[video_id],
                num_steps[video_id],
                seconds_per_step=seconds_per_step,
                labels=wanted,
            )
        ]

    splits = {split: items(used[split], seen) for split in ("train", "val")}
    splits["test_seen"] = items(used["test"], seen)
    about: dict[str, object] = {
        "holdout": holdout,
        "groups": {split: sorted(names) for split, names in held.items()},
        "classes": {"seen": seen, "unseen": unseen},
    }
    if unseen:
        splits["test_unseen"] = items(used["test"], unseen)
        seen_in = defaultdict(set)
        for item in splits["test_unseen"]:
            seen_in[item.label].add(item.video_id)
        enough = all(len(seen_in[label]) > 1 for label in unseen)
        if not enough:
            splits["test_unseen"] = items(sorted(videos), unseen)
        about["test_unseen_from"] = f"held-out {holdout}s" if enough else "all videos"
    for split, group in splits.items():
        if not group:
            raise AnnotationError(f"split {split!r} has no action: give more videos", record=split)
    about["items"] = {split: len(group) for split, group in splits.items()}
    return splits, about


def _classes(
    labels: set[str], unseen: int | Sequence[str], seed: int
) -> tuple[list[str], list[str]]:
    if not isinstance(unseen, Iterable):
        unseen = int(check_number(unseen, "unseen_classes", least=0, whole=True))
        if unseen >= max(len(labels), 1):
            raise UsageError(f"unseen_classes is {unseen}: there are {len(labels)} classes")
        dealt = split_names(labels, {"unseen": unseen, "seen": len(labels) - unseen}, seed)
        return dealt["seen"], dealt["unseen"]
    named = {unseen} if isinstance(unseen, str) else set(unseen)
    unknown = sorted(named - labels)
    if unknown or named >= labels:
        why = f"no such class: {unknown[0]!r}" if unknown else "every class is to be unseen"
        raise UsageError(why)
    return sorted(labels - named), sorted(named)


def _groups(
    videos: Mapping[str, Video], holdout: Literal["subject", "video"] | None
) -> tuple[dict[str, list[str]], Literal["subject", "video"]]:
    anonymous = next((v.video_id for v in videos.values() if not v.subject), None)
    if holdout is None:
        holdout = "video" if anonymous else "subject"
    if holdout not in ("subject", "video"):
        raise UsageError(f"holdout is {holdout!r}: 'subject' or 'video' wanted")
    if holdout == "subject" and anonymous:
        raise AnnotationError("names no subject: hold out videos instead", record=anonymous)
    groups = defaultdict(list)
    for video in videos.values():
        group = str(video.subject) if holdout == "subject" else video.video_id
        groups[group].append(video.video_id)
    return dict(groups), holdout


def _hold_out(
    groups: Mapping[str, list[str]],
    shown: Mapping[str, Counter[str]],
    test_share: float,
    val_share: float,
    holdout: str,
    seed: int,
) -> dict[str, list[str]]:
    """Deal groups of videos out; every held-out part gets two at least, so that it has pairs.

    ``shown`` says how many videos of each group show each training class. Shares are of the groups:
    those for testing are drawn, and one more where no class has two videos, those for validation
    dealt by class, see :func:`custom`.
    """
    given = {"test": test_share, "val": val_share}
    if sum(check_number(share, f"{name}_share", above=0) for name, share in given.items()) >= 1:
        raise UsageError(f"shares are {given}: above 0 and together below 1 wanted")
    left = sorted(groups, key=lambda name: derive_seed(seed, "holdout", name))
    held: dict[str, list[str]] = {"test": [], "val": []}

    def full(split: str, share: float) -> bool:
        names = held[split]
        enough = len(names) >= round(share * len(groups))
        return enough and sum(len(groups[name]) for name in names) >= 2

    while left and not full("test", test_share):
        held["test"].append(left.pop(0))
    tested = sum((shown[name] for name in held["test"]), Counter())
    remain = sum((shown[name] for name in left), Counter())
    mates = (name for name in left if any(remain[label] > 2 for label in shown[name] & tested))
    if max(tested.values(), default=2) < 2 and len(left) > 5 and (mate := next(mates, None)):
        left.remove(mate)  # no class had a pair; five are left, to train on and to validate
        held["test"].append(mate)
        remain -= shown[mate]
    have: Counter[str] = Counter()

    def worth(name: str) -> tuple[bool, int]:
        """Whether training keeps two videos of each class; what validation gains towards two."""
        counts = shown[name].items()
        spared = all(remain[label] - num >= 2 for label, num in counts)
        # The second video of a class makes pairs, the first alone makes none.
        value = (0, 1, 3)
        gain = (value[min(have[k] + num, 2)] - value[min(have[k], 2)] for k, num in counts)
        return spared, sum(gain)

    while left:
        best = max(left, key=worth)  # of equals the first
        spared, gain = worth(best)
        paired = max(have.values(), default=0) >= 2
        # The first pair is worth more than what training keeps.
        wanted = (spared and gain > 0) or (gain >= 2 and not paired)
        if full("val", val_share) and (not wanted or (paired and full("val", 2 * val_share))):
            break
        left.remove(best)
        held["val"].append(best)
        have, remain = have + shown[best], remain - shown[best]
    if sum(len(groups[name]) for name in left) < 2:
        raise AnnotationError(
            f"{len(groups)} {holdout}s cannot be split into training, validation and test with two "
            "videos each: give more"
        )
    return {"train": left, **held}
