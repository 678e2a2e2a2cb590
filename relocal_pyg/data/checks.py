"""Whether features and annotations fit together: what ``relocal check`` and ``custom`` look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from relocal_pyg.data.annotations import read_annotations
from relocal_pyg.data.features import spellings
from relocal_pyg.data.hdf5 import MAX_BYTES, Record
from relocal_pyg.data.probe import probe_features
from relocal_pyg.data.quarantine import Quarantine, Rejected
from relocal_pyg.data.videos import Video
from relocal_pyg.errors import FeatureError

__all__ = ["Quarantine", "Rejected", "check_dataset", "usable_videos"]


def check_dataset(
    features: str | Path,
    annotations: str | Path,
    *,
    key: str = "c3d_features",
    max_bytes: int = MAX_BYTES,
    values: bool = True,
    clip: bool = False,
    strict: bool = False,
    time_limit: float = 10.0,
) -> Quarantine:
    """Check a feature file and its annotations without trusting either.

    The feature file is opened in a child process, so that one that hangs or crashes its reader
    gives an error here.

    Args:
        features: The HDF5 file.
        annotations: ActivityNet-style JSON, or a ``.csv`` table.
        key: Name of the data set inside each group.
        max_bytes: Largest array that a video may declare.
        values: Read all values too: checksums, NaN and infinities.
        clip: Cut segments that leave the video at its borders instead of setting them aside.
        strict: Make the first unusable record an error.
        time_limit: Seconds without a sign of life after which reading is given up.

    Returns:
        What cannot be used, and why.

    Raises:
        FeatureError: The feature file as a whole cannot be used, or no annotated video is left.
        AnnotationError: The annotation file as a whole cannot be used.
    """
    quarantine = Quarantine(strict=strict)
    records = probe_features(
        features, key, max_bytes=max_bytes, values=values, time_limit=time_limit
    )
    videos = read_annotations(annotations, quarantine=quarantine, clip=clip)
    usable_videos(videos, records, features, annotations, quarantine)
    return quarantine


def usable_videos(
    videos: Mapping[str, Video],
    records: Iterable[Record],
    features: str | Path,
    annotations: str | Path,
    quarantine: Quarantine,
) -> dict[str, Record]:
    """Match annotated videos with their features; set aside what does not fit.

    Args:
        videos: Annotated videos by id.
        records: What the feature file holds.
        features: Its name, for messages.
        annotations: Name of the annotation file, for messages.
        quarantine: Takes videos without usable features.

    Returns:
        The feature record of each video that has actions and features, by the annotation's id.

    Raises:
        FeatureError: No video is left.
    """
    by_name = {record.name: record for record in records}
    widths = Counter(record.dim for record in by_name.values() if record.problem is None)
    usual = widths.most_common(1)[0][0] if widths else 0
    for record in by_name.values():
        if record.problem is not None:
            quarantine.add(features, record.name, record.problem, FeatureError)
        elif record.dim != usual:
            reason = f"has {record.dim} channels, most videos {usual}"
            quarantine.add(features, record.name, reason, FeatureError)
    usable = {}
    for video_id, video in videos.items():
        if not video.segments:
            continue
        found = next((by_name[name] for name in spellings(video_id) if name in by_name), None)
        if found is None:
            quarantine.add(annotations, video_id, f"has no features in {features}", FeatureError)
        elif found.problem is None and found.dim == usual:
            usable[video_id] = found
    if not usable:
        raise FeatureError(
            f"no video of {annotations} has usable features here; {quarantine.summary()}",
            file=features,
        )
    return usable
