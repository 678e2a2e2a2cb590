"""THUMOS14 with 14 training and 6 test classes (section 5.1.2).

Neither class list nor features of the paper are published: results cannot be compared with its.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from relocal_pyg.data.annotations import Quarantine, Video, read_thumos14
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.datasets.building import (
    all_items,
    assign_videos,
    split_names,
    steps_in,
    tied_classes,
    whole_videos,
)
from relocal_pyg.io.seeding import derive_seed

#: The two falsely annotated test videos that section 5.1.2 leaves out.
EXCLUDED = ("video_test_0000270", "video_test_0001496")

_TEST_CLASSES = 6
_VAL_SHARE = 0.15


def thumos14_videos(root: str | Path, quarantine: Quarantine | None = None) -> dict[str, Video]:
    """Read both annotated subsets without the two excluded videos.

    Args:
        root: Folder of ``temporal_annotations_validation``, ``temporal_annotations_test``,
            ``validation_durations.txt`` and ``test_durations.txt``, as released with
            yjxiong/action-detection.
        quarantine: Takes what cannot be used: 30 actions of the official files lie outside their
            video, all but 8 of them in an excluded one.

    Returns:
        Videos by id: 200 of the validation and 210 of the test subset.
    """
    root, given = Path(root), Quarantine() if quarantine is None else quarantine
    videos: dict[str, Video] = {}
    for subset in ("validation", "test"):
        folder, durations = root / f"temporal_annotations_{subset}", f"{subset}_durations.txt"
        videos |= read_thumos14(folder, root / durations, quarantine=given, clip=True)
    return {video_id: video for video_id, video in videos.items() if video_id not in EXCLUDED}


def thumos14_items(
    videos: Mapping[str, Video],
    num_steps: Callable[[str], int | None] | None = None,
    *,
    seed: int = 0,
) -> dict[str, list[Item]]:
    """Items of THUMOS14; references are whole videos.

    The 14 training and 6 test classes are drawn, those that mostly share their videos together
    (every ``CliffDiving`` is also ``Diving``; cricket bowling and shot). About 15 % of the videos
    with training classes, drawn too, validate; the few videos with classes of both sides are left
    out. So splits share no video, and the test split no class.

    Args:
        videos: See :func:`thumos14_videos`.
        num_steps: Gives the steps of a video, None where it has no features; steps of 16 frames at
            30 frames per second where not given.
        seed: Names the draws.

    Returns:
        Items by split ``"train"``, ``"val"``, ``"test"``.
    """
    labels = {segment.label for video in videos.values() for segment in video.segments}
    sizes = {"train": len(labels) - _TEST_CLASSES, "test": _TEST_CLASSES}
    classes = split_names(labels, sizes, seed, tied_classes(videos.values()))
    assigned, _ = assign_videos(videos.values(), classes)
    ranked = sorted(assigned["train"], key=lambda video: derive_seed(seed, "val", video.video_id))
    cut = round(_VAL_SHARE * len(ranked))
    splits = {"train": ranked[cut:], "val": ranked[:cut], "test": assigned["test"]}

    def by_duration(video_id: str) -> int:
        return max(1, int((videos[video_id].duration or 0) * 30 // 16))

    return {split: all_items(group, num_steps or by_duration) for split, group in splits.items()}


def thumos14(
    root: str | Path, features: FeatureStore, *, seed: int = 0, proposals: str | Path | None = None
) -> Protocol:
    """THUMOS14 with classes drawn 14/6, see :func:`thumos14_items`.

    Proposals are those of a TAG list; sliding windows as long as training moments where None.

    Raises:
        AnnotationError: A file is missing or malformed.
        FeatureError: No video of a split has features.
        ProposalError: The list is malformed.
    """
    quarantine = Quarantine()
    videos = thumos14_videos(root, quarantine)
    items = thumos14_items(videos, steps_in(features), seed=seed)
    return whole_videos(
        "thumos14",
        items,
        features,
        proposals,
        seed=seed,
        set_aside=len(quarantine),
        excluded_videos=list(EXCLUDED),
        videos={name: len({item.video_id for item in group}) for name, group in items.items()},
    )
