"""From annotated video files to what a protocol of one's own is made of."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from relocal_pyg.data.annotations import read_annotations
from relocal_pyg.data.quarantine import Quarantine
from relocal_pyg.errors import AnnotationError
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.extract import sampling_rate
from relocal_pyg.video.folder import Extraction, extract_folder, find_videos


def features_from_videos(
    videos: str | Path,
    annotations: str | Path,
    output: str | Path,
    backbone: Backbone,
    rate_hz: float | None = None,
    *,
    workers: int = 1,
    background: str | None = "background",
    quarantine: Quarantine | None = None,
    key: str = "c3d_features",
) -> tuple[Extraction, float]:
    """Extract the features of the annotated videos of a folder, resumable.

    Args:
        videos: A folder of video files.
        annotations: ActivityNet-style JSON or CSV; ids are names of files without their suffix.
        output: The HDF5 file to write; finished videos wait in ``<output>.cache``.
        backbone: See :class:`relocal_pyg.video.backbones.Backbone`.
        rate_hz: Frames per second; where None, what
            :func:`relocal_pyg.video.extract.sampling_rate` gives for half the median action, so
            that short actions keep steps too (a clip network: 25, so that every step is as long).
        workers: Videos at a time.
        background: Label that is no action.
        quarantine: Collects videos that cannot be used.
        key: Name of the feature array.

    Returns:
        What was extracted, and the duration of a step in seconds.

    Raises:
        AnnotationError: The annotations cannot be used, or name no file of the folder.
        VideoError: No video could be used.
        UsageError: No videos, or two with one id.
    """
    # What is wrong with annotations is reported where the protocol reads them.
    annotated = read_annotations(annotations, quarantine=Quarantine())
    files = find_videos(videos)
    wanted = [file for name, file in files.items() if name in annotated]
    if not wanted:
        raise AnnotationError(
            f"names no video of {videos}: an id is a file's name without its suffix, such as "
            f"{next(iter(files))!r}",
            file=annotations,
        )
    if rate_hz is None:
        lengths = [
            segment.end - segment.start
            for video in annotated.values()
            for segment in video.segments
            if segment.label != background
        ]
        clips = backbone.clip_frames > 1
        rate_hz = 25.0 if clips or not lengths else sampling_rate(median(lengths) / 2)
    done = extract_folder(
        wanted, output, backbone, rate_hz, workers=workers, quarantine=quarantine, key=key
    )
    return done, backbone.clip_stride / rate_hz
