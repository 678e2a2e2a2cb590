"""``relocal extract``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from relocal_pyg.cli.video_options import BackboneOptions, load_backbone

if TYPE_CHECKING:
    from relocal_pyg.data.quarantine import Quarantine
    from relocal_pyg.video.folder import Extraction


def extract(
    videos: Annotated[Path, tyro.conf.Positional],
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    rate: float | None = None,
    workers: int = 1,
    cache: Path | None = None,
    key: str = "c3d_features",
    report: Path | None = None,
    strict: bool = False,
) -> None:
    """Extract features of a folder of videos into one HDF5 file; run it again to go on.

    Args:
        videos: A folder, searched with its subfolders, or one video file.
        network: Which network turns frames into features.
        output: The HDF5 file to write: VIDEO_ID/c3d_features and VIDEO_ID/times.
        rate: Frames per second; 3.125 for efficientnet-lite0, the video's own for c3d if left out.
        workers: Videos at a time.
        cache: Folder of finished videos; OUTPUT.cache where left out.
        key: Name of the feature array inside a video's group.
        report: Write the videos that could not be used as JSON here.
        strict: Stop at the first bad video with exit code 2.
    """
    from relocal_pyg.data.quarantine import Quarantine
    from relocal_pyg.video.folder import extract_folder

    quarantine = Quarantine(strict=strict)
    backbone = load_backbone(network)
    try:
        done = extract_folder(
            videos,
            output,
            backbone,
            rate,
            workers=workers,
            cache=cache,
            quarantine=quarantine,
            key=key,
        )
    finally:
        if report is not None:
            quarantine.save(report)
    print_extraction(done, quarantine)
    print(f"features: {output} ({backbone.name}, {backbone.dim} channels)")


def print_extraction(done: Extraction, quarantine: Quarantine) -> None:
    """Print how many videos were extracted, reused and left out, and which."""
    print(f"{done.computed} videos extracted, {done.reused} reused")
    for record in quarantine.records:
        print(f"left out: {record.file}: {record.reason}")
