"""``relocal index``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from relocal_pyg.cli.find import choose_matcher

if TYPE_CHECKING:
    from torch import Tensor


def index(
    folder: Annotated[Path, tyro.conf.Positional],
    features: Annotated[Path, tyro.conf.Positional],
    *,
    model: Path | None = None,
    seconds_per_step: float = 1.0,
    key: str = "c3d_features",
) -> None:
    """Make FOLDER a search index of the videos of FEATURES, or add them to the one it holds.

    Videos that the index holds already are left out.

    Args:
        folder: The index.
        features: HDF5 file of features.
        model: A trained run or checkpoint; the training-free contrast matcher where left out.
        seconds_per_step: Duration of one feature step.
        key: Name of the feature array inside a video's group.
    """
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.search.index import SearchIndex, add_videos, build_index

    matcher, why = choose_matcher(model)
    print(f"matcher: {why}")
    store = FeatureStore(features, key=key)
    known: set[str] = set()
    if (folder / "index.json").exists():
        opened = SearchIndex(folder, matcher, verify=False)
        known = {name for shard in opened.shards for name in shard.ids}

    def videos() -> Iterator[tuple[str, Tensor, float]]:
        for video_id in store.ids:
            if video_id not in known:
                yield video_id, store.read(video_id), seconds_per_step

    added = (add_videos if known else build_index)(folder, matcher, videos())
    print(f"{added} videos added, {len(known)} there before: {folder}")
