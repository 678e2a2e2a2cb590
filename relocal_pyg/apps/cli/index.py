"""``relocal index``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from relocal_pyg.apps.cli.extract import print_extraction
from relocal_pyg.apps.cli.find import choose_matcher
from relocal_pyg.apps.cli.options import (
    BackboneOptions,
    DeviceName,
    Model,
    Output,
    Rate,
    Steps,
    StepSeconds,
    load_network,
)

if TYPE_CHECKING:
    from torch import Tensor


def index(
    folder: Annotated[
        Path, Output(folder="index"), tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")
    ],
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")],
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    model: Model = None,
    rate: Rate = None,
    workers: Steps = None,
    device: DeviceName = "auto",
    seconds_per_step: StepSeconds = 1.0,
    key: str | None = None,
) -> None:
    """Make FOLDER a search index of the videos of FEATURES, or add them to the one it holds.

    Videos that the index holds already are left out.

    Args:
        folder: The index.
        features: HDF5 file of features, or a folder of video files or one of them, whose features
            are then kept in FOLDER.features.h5.
        network: Videos: which network turns frames into features; that of the run's own videos
            where left out.
        model: A trained run or checkpoint, "pretrained" (better on most features, worse on
            Weizmann's videos: docs/pretrained.md) or "contrast", the training-free matcher, which
            is also what is taken where it is left out.
        rate: Videos: frames per second; where left out that of the run's own videos, or 3.125 (25
            for c3d).
        workers: Videos: how many at a time; all processors where left out.
        device: Where networks run; "auto" is cuda where there is one.
        seconds_per_step: Features: duration of one step.
        key: Name of the feature array inside a video's group.
    """
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.search.index import SearchIndex, add_videos, build_index
    from relocal_pyg.video.folder import VIDEO_SUFFIXES

    matcher, why = choose_matcher(model, device)
    if features.is_dir() or features.suffix.lower() in VIDEO_SUFFIXES:
        from relocal_pyg.data.annotations import Quarantine
        from relocal_pyg.video.index import IndexedVideos, index_features

        quarantine = Quarantine()
        if network == BackboneOptions() and IndexedVideos.record_of(folder).is_file():
            network = BackboneOptions.of(IndexedVideos.load(folder).network)
        backbone, rate = load_network(network, rate, model, matcher, device)
        made, done = index_features(
            features,
            folder,
            backbone,
            rate,
            workers=workers,
            quarantine=quarantine,
            key=key,
            network=network.plain(),
        )
        print_extraction(done, quarantine)
        features, seconds_per_step = made.features, backbone.clip_stride / made.rate_hz
    print(f"matcher: {why}")
    store = FeatureStore(features, key=key)
    known: set[str] = set()
    there = (folder / "index.json").exists()  # perhaps without a video: a run was killed early
    if there:
        opened = SearchIndex(folder, matcher, verify=False)
        known = {name for shard in opened.shards for name in shard.ids}

    def videos() -> Iterator[tuple[str, Tensor, float]]:
        for video_id in store.ids:
            if video_id not in known:
                yield video_id, store.read(video_id), seconds_per_step

    added = (add_videos if there else build_index)(folder, matcher, videos())
    print(f"{added} videos added, {len(known)} there before: {folder}")
