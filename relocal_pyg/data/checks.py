"""Whether features and annotations fit together: what ``relocal check`` and ``custom`` look at."""

from __future__ import annotations

import json
import math
import os
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from relocal_pyg.data.annotations import Quarantine, Video, read_annotations
from relocal_pyg.data.features import MAX_BYTES, Record, check_key, scan, spellings
from relocal_pyg.errors import AnnotationError, FeatureError, check_number
from relocal_pyg.io.read import tidy

#: A reader that waits, and does nothing, gets so many times its limit.
_PATIENCE = 6


def probe_features(
    path: str | Path,
    key: str | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    values: bool = True,
    time_limit: float = 10.0,
) -> list[Record]:
    """Look at every video of a feature file in a child process.

    It is killed after so many seconds of the processor without a sign of life; where it does
    nothing, after six times as many on the clock.

    Returns:
        One record per video, sorted by name.

    Raises:
        FeatureError: The file as a whole cannot be used, or reading it hangs or crashes.
    """
    check_key(key)
    check_number(time_limit, "time_limit", above=0)
    command = [sys.executable, "-m", __name__, os.path.abspath(path), key or ""]
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
        began, before = time.monotonic(), _processor_time(child.pid)
        while not select.select([child.stdout], [], [], time_limit / 4)[0]:
            waited = time.monotonic() - began
            spent = _processor_time(child.pid)
            # On a machine that is busy with other work the child gets little of its time.
            worked = waited if spent is None or before is None else spent - before
            if worked >= time_limit or waited >= _PATIENCE * time_limit:
                raise FeatureError(
                    f"hangs the HDF5 reader (no progress in {time_limit:g} s): do not use this "
                    "file",
                    file=path,
                )
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from map(json.loads, lines)


def _processor_time(process: int) -> float | None:
    """Seconds of the processor that another process has had; None where nothing says so."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("ascii", "replace").rpartition(")")[2]
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def main() -> None:
    """Be the child."""
    path, key, max_bytes, values = sys.argv[1:]
    try:
        for record in scan(path, key or None, max_bytes=int(max_bytes), values=values == "1"):
            print(json.dumps(asdict(record) if record else {}), flush=True)
        print('{"done": true}', flush=True)
    except FeatureError as error:
        print(json.dumps({"error": error.reason, "record": error.record}), flush=True)


def check_dataset(
    features: str | Path,
    annotations: str | Path,
    *,
    key: str | None = None,
    max_bytes: int = MAX_BYTES,
    values: bool = True,
    clip: bool = False,
    strict: bool = False,
    seconds_per_step: float | None = None,
    time_limit: float = 10.0,
    quarantine: Quarantine | None = None,
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
        clip: As of :func:`relocal_pyg.data.read_annotations`.
        strict: Make the first unusable record an error.
        seconds_per_step: Duration of a step, where the features are known to be evenly spaced.
        time_limit: Seconds without a sign of life after which reading is given up.
        quarantine: Takes the records, for a caller that wants them after an error too; it says
            itself whether it is ``strict``.

    Returns:
        What cannot be used, and why.

    Raises:
        FeatureError: The feature file as a whole cannot be used, or no annotated video is left.
        AnnotationError: The annotation file as a whole cannot be used.
    """
    quarantine = Quarantine(strict=strict) if quarantine is None else quarantine
    records = probe_features(
        features, key, max_bytes=max_bytes, values=values, time_limit=time_limit
    )
    videos = read_annotations(annotations, quarantine=quarantine, clip=clip)
    usable_videos(videos, records, features, annotations, quarantine, seconds_per_step, clip)
    return quarantine


def usable_videos(
    videos: Mapping[str, Video],
    records: Iterable[Record],
    features: str | Path,
    annotations: str | Path,
    quarantine: Quarantine,
    seconds_per_step: float | None = None,
    clip: bool = False,
) -> dict[str, Record]:
    """Match annotated videos with their features; set aside what does not fit.

    Where nearly all videos have one number of steps a second, one that has another is set aside:
    its features were cut off, or its duration is wrong, and every time of it would be too. Segments
    that begin after the features end are reported, those that end after them where they are not to
    be cut (``clip``), and times that cannot be seconds. What does not fit goes into ``quarantine``.

    Returns:
        The feature record of each video that has actions and features, by the annotation's id.

    Raises:
        FeatureError: No video is left.
        AnnotationError: Two ids mean one video of the file.
    """
    by_name = {tidy(record.name): record for record in records}
    widths = Counter(record.dim for record in by_name.values() if record.problem is None)
    usual = widths.most_common(1)[0][0] if widths else 0
    for record in by_name.values():
        if record.problem is not None:
            quarantine.add(features, record.name, record.problem, FeatureError)
        elif record.dim != usual:
            reason = f"has {record.dim} channels, most videos {usual}"
            quarantine.add(features, record.name, reason, FeatureError)
    usable: dict[str, Record] = {}
    named: dict[str, str] = {}
    for video_id, video in videos.items():
        if not video.segments:
            continue
        found = next((by_name[name] for name in spellings(video_id) if name in by_name), None)
        if found is None:
            quarantine.add(annotations, video_id, f"has no features in {features}", FeatureError)
        elif (other := named.setdefault(found.name, video_id)) != video_id:
            reason = f"has the features of {other!r} too: give one video one id"
            raise AnnotationError(reason, file=annotations, record=video_id)
        elif found.problem is None and found.dim == usual:
            usable[video_id] = found
    for video_id, reason in _wrong_rates(videos, usable, seconds_per_step, clip).items():
        quarantine.add(annotations, video_id, reason, FeatureError)
        del usable[video_id]
    if problem := _times_in_frames(videos, usable):
        quarantine.add(annotations, "times", problem)
    if not usable:
        reason = f"no video of {annotations} has usable features here; {quarantine.summary()}"
        raise FeatureError(reason, file=features)
    return usable


#: Rates within this share of the usual one agree; an outlier is that far off at least.
_SAME_RATE, _OTHER_RATE = 0.03, 0.1
#: Steps that a network of clips leaves out at the end.
_SLACK = 3
#: Fewest steps of a video whose rate says something, and share of videos that have to agree.
_FEW_STEPS, _NEARLY_ALL = 10, 0.7


def _wrong_rates(
    videos: Mapping[str, Video],
    records: Mapping[str, Record],
    seconds_per_step: float | None,
    clip: bool,
) -> dict[str, str]:
    """What is wrong with videos whose number of steps and duration do not go together."""
    rates = {
        video_id: records[video_id].num_steps / duration
        for video_id in records
        if (duration := videos[video_id].duration) is not None
        and records[video_id].num_steps >= _FEW_STEPS
    }
    usual = statistics.median(rates.values()) if rates else 0.0
    if seconds_per_step is not None:
        usual = 1 / check_number(seconds_per_step, "seconds_per_step", above=0)
    else:
        agree = sum(abs(rate / usual - 1) <= _SAME_RATE for rate in rates.values())
        if len(rates) < 3 or agree < max(3, _NEARLY_ALL * len(rates)):
            usual = 0.0  # features of a fixed number of steps, say: nothing to compare with
    wrong = {
        video_id: f"has {records[video_id].num_steps} steps for {videos[video_id].duration:g} s, "
        f"{rate:.3g} a second where others have {usual:.3g}: its features were cut off, or its "
        "duration is wrong"
        for video_id, rate in rates.items()
        if usual and abs(rate / usual - 1) > max(_OTHER_RATE, _SLACK / records[video_id].num_steps)
    }
    for video_id, record in records.items():
        length = record.num_steps / usual if usual else 0.0
        most = math.inf if clip else length + _SLACK / (usual or 1)
        segments = videos[video_id].segments if length else ()
        late = [each for each in segments if each.start >= length or each.end > most]
        if late and video_id not in wrong:
            wrong[video_id] = (
                f"has features for {length:.6g} s, but an action from {late[0].start:g} to "
                f"{late[0].end:g} s"
            )
    return wrong


def _times_in_frames(videos: Mapping[str, Video], records: Mapping[str, Record]) -> str | None:
    """Say so where the times of most videos cannot be seconds."""
    ends = {
        video_id: max(segment.end for segment in videos[video_id].segments)
        for video_id in records
        if videos[video_id].duration is None
    }
    # Even one step in five seconds, which no extractor makes, would not reach that far.
    late = [video_id for video_id, end in ends.items() if end > 5 * records[video_id].num_steps]
    whole = all(
        float(time).is_integer()
        for video_id in late
        for segment in videos[video_id].segments
        for time in (segment.start, segment.end)
    )
    if not late or not whole or 2 * len(late) <= len(ends):
        return None
    return (
        f"look like frames: {late[0]} has {records[late[0]].num_steps} steps and an action that "
        f"ends at {ends[late[0]]:g}; divide them by the frame rate, seconds are wanted"
    )


if __name__ == "__main__":
    main()
