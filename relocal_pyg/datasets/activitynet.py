"""Protocols on ActivityNet: the published v1.3 split, and v1.2 with 80/10/10 classes.

Features are not part of either: the published ones are C3D reduced to 500 dimensions by PCA
(``sub_activitynet_v1-3.c3d.hdf5``). Results on other features cannot be compared with the paper's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from relocal_pyg.data.annotations import read_activitynet
from relocal_pyg.data.checks import Quarantine
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Item
from relocal_pyg.data.proposals import TagProposals, WindowProposals, read_proposal_list
from relocal_pyg.data.videos import Video
from relocal_pyg.datasets.anet_vrl import (
    VideoLength,
    build_anet_vrl,
    merge_segments,
    read_anet_vrl,
    read_lengths,
)
from relocal_pyg.datasets.building import (
    all_items,
    assign_videos,
    file_facts,
    split_names,
    tied_classes,
)
from relocal_pyg.datasets.protocol import FeatureSource, Protocol
from relocal_pyg.errors import FeatureError

__all__ = [
    "VideoLength",
    "anet12",
    "anet12_items",
    "anet_vrl",
    "anet_vrl_items",
    "build_anet_vrl",
    "merge_segments",
    "read_anet_vrl",
    "read_lengths",
]

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
    lengths = videos = None
    if annotations is not None:
        lengths = read_lengths(Path(root) / "length.json")
        videos = read_activitynet(annotations, as_published=True)
    return {
        split: read_anet_vrl(Path(root) / f"{split}.json", lengths=lengths, videos=videos)
        for split in ("train", "val", "test")
    }


def anet_vrl(
    root: str | Path, features: FeatureSource, annotations: str | Path | None = None
) -> Protocol:
    """The published re-localization split of ActivityNet v1.3.

    As published, a query may meet its own item or video (``exclude="none"``). Proposals are sliding
    windows as long as training moments.

    Args:
        root: Folder of ``train.json``, ``val.json``, ``test.json`` and ``length.json``.
        features: Steps of 16 frames, such as ``FeatureStore(path, subsample=2)`` of the published
            file.
        annotations: See :func:`anet_vrl_items`.

    Raises:
        AnnotationError: A file is missing or malformed.
        FeatureError: No item of a split has features.
    """
    items = anet_vrl_items(root, annotations)
    splits, missing = _with_features(items, features)
    files = [Path(root) / f"{split}.json" for split in items]
    return Protocol(
        name="anet-vrl",
        splits=splits,
        features=features,
        propose=WindowProposals.fit(splits["train"]),
        exclude="none",
        about={
            "files": file_facts(*files, *([annotations] if annotations else [])),
            "classes": _classes(splits),
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

    Returns:
        Items by split.
    """
    if isinstance(annotations, str | Path):
        annotations = _read_clipped(annotations, Quarantine())
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

    Args:
        annotations: The official JSON.
        features: Features by video; videos without any are left out.
        seed: Names the draw of the classes.
        proposals: A TAG list; sliding windows as long as training moments where None.

    Raises:
        AnnotationError: The file is missing or malformed.
        FeatureError: No item of a split has features.
        ProposalError: The list is malformed.
    """
    quarantine = Quarantine()
    videos = _read_clipped(annotations, quarantine)

    def num_steps(video_id: str) -> int | None:
        return features.num_steps(video_id) if video_id in features else None

    items = anet12_items(videos, num_steps, seed=seed)
    splits, _ = _with_features(items, features)
    files = [annotations, features.path]
    propose: TagProposals | WindowProposals = WindowProposals.fit(splits["train"])
    if proposals is not None:
        propose = TagProposals(read_proposal_list(proposals), features.num_steps)
        files.append(proposals)
    used = {item.video_id for group in splits.values() for item in group}
    return Protocol(
        name="anet12",
        splits=splits,
        features=features,
        propose=propose,
        about={
            "files": file_facts(*files),
            "set_aside": len(quarantine),
            "seed": seed,
            "classes": _classes(splits),
            "videos": len(used),
            "videos_left_out": sum(bool(video.segments) for video in videos.values()) - len(used),
        },
    )


def _read_clipped(path: str | Path, quarantine: Quarantine) -> dict[str, Video]:
    # One action in 58 of the official file ends milliseconds after its video.
    return read_activitynet(path, quarantine=quarantine, clip=True)


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


def _classes(splits: Mapping[str, tuple[Item, ...]]) -> dict[str, list[str]]:
    return {split: sorted({item.label for item in group}) for split, group in splits.items()}
