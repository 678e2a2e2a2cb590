"""Whether features and annotations fit together: what ``relocal check`` and ``custom`` look at."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from relocal_pyg.data.annotations import Quarantine, Rejected, Video, read_annotations
from relocal_pyg.data.features import MAX_BYTES, Record, check_key, scan, spellings
from relocal_pyg.errors import FeatureError


def probe_features(
    path: str | Path,
    key: str = "c3d_features",
    *,
    max_bytes: int = MAX_BYTES,
    values: bool = True,
    time_limit: float = 10.0,
) -> list[Record]:
    """Look at every video of a feature file in a child process.

    Args:
        path: The HDF5 file.
        key: Name of the data set inside each group.
        max_bytes: Largest array that a video may declare.
        values: Read all values too: checksums, NaN and infinities.
        time_limit: Seconds without a sign of life after which the child is killed.

    Returns:
        One record per video, sorted by name.

    Raises:
        FeatureError: The file as a whole cannot be used, or reading it hangs or crashes.
    """
    check_key(key)
    command = [sys.executable, "-m", __name__, os.path.abspath(path), key]
    command += [str(max_bytes), str(int(values))]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )
    records, done = [], False
    try:
        for line in _lines(child, path, time_limit):
            if "error" in line:
                raise FeatureError(line["error"], file=path, record=line["record"])
            if "name" in line:
                records.append(Record(**line))
            done = done or "done" in line
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    if not done:
        raise FeatureError("crashes the HDF5 reader: do not use this file", file=path)
    return records


def _lines(
    child: subprocess.Popen[bytes], path: str | Path, time_limit: float
) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    pending = b""
    while True:
        if not select.select([child.stdout], [], [], time_limit)[0]:
            raise FeatureError(
                f"hangs the HDF5 reader (no progress in {time_limit:g} s): do not use this file",
                file=path,
            )
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from map(json.loads, lines)


def main() -> None:
    """Be the child."""
    path, key, max_bytes, values = sys.argv[1:]
    try:
        for record in scan(path, key, max_bytes=int(max_bytes), values=values == "1"):
            print(json.dumps(asdict(record) if record else {}), flush=True)
        print('{"done": true}', flush=True)
    except FeatureError as error:
        print(json.dumps({"error": error.reason, "record": error.record}), flush=True)


if __name__ == "__main__":
    main()


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
        annotations: A file that :func:`relocal_pyg.data.read_annotations` reads.
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
