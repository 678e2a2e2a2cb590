"""``relocal find``."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from relocal_pyg.errors import FeatureError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from relocal_pyg.models.base import Relocalizer
    from relocal_pyg.moments import Moment


def find(
    query: Annotated[str, tyro.conf.Positional],
    reference: Annotated[str, tyro.conf.Positional],
    *,
    model: Path | None = None,
    query_start: float | None = None,
    query_end: float | None = None,
    top_k: int = 5,
    seconds_per_step: float = 1.0,
    key: str = "c3d_features",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    csv_file: Annotated[Path | None, tyro.conf.arg(name="csv")] = None,
) -> None:
    """Find the moments of REFERENCE that mean the same as QUERY.

    QUERY and REFERENCE are features: an array "x.npy" of [steps, channels], or one video of a
    feature file as "features.h5::VIDEO_ID".

    Args:
        query: The clip, or with --query-start/--query-end the longer video that it is part of.
        reference: The long video.
        model: A trained run or checkpoint; the training-free contrast matcher where left out.
        query_start: Seconds at which the clip starts inside QUERY.
        query_end: Seconds at which the clip ends inside QUERY.
        top_k: How many moments at most.
        seconds_per_step: Duration of one feature step.
        key: Name of the feature array inside a video's group of an HDF5 file.
        json_file: Write the moments here as JSON.
        csv_file: Write the moments here as CSV.
    """
    matcher, why = choose_matcher(model)
    around = read_features(query, key)
    clip = cut(around, query_start, query_end, seconds_per_step)
    moments = matcher.localize(
        clip,
        read_features(reference, key),
        top_k=top_k,
        seconds_per_step=seconds_per_step,
        query_video=around if len(clip) < len(around) else None,
    )
    print(why)
    print_moments(moments)
    if json_file is not None:
        write_moments_json(json_file, moments, query=query, reference=reference, matcher=why)
    if csv_file is not None:
        write_moments_csv(csv_file, moments)


def choose_matcher(model: Path | None) -> tuple[Relocalizer, str]:
    """The model to search with, and a line that says which one and why."""
    from relocal_pyg.models import ContrastMatcher, load_model

    if model is None:
        return ContrastMatcher(), "matcher: Contrast matcher (no --model given, none is needed)"
    loaded = load_model(model)
    return loaded, f"matcher: {loaded.title}, from {model}"


def read_features(place: str, key: str) -> Tensor:
    """Read ``x.npy`` or ``features.h5::VIDEO_ID`` as float32 ``[n, F]``.

    Raises:
        FeatureError: No such file or video, or not an array of finite numbers.
    """
    import numpy as np

    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.models.base import as_features

    name, _, video_id = place.partition("::")
    if video_id:
        return FeatureStore(name, key=key).read(video_id)
    if Path(name).suffix != ".npy":
        raise FeatureError("not a feature file: x.npy or features.h5::VIDEO_ID wanted", file=name)
    try:
        array = np.load(name, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(f"cannot be read ({error})", file=name) from None
    return as_features(array, name)


def cut(
    features: Tensor, start: float | None, end: float | None, seconds_per_step: float
) -> Tensor:
    """The steps that ``[start, end)`` seconds touch; all of them where both are None.

    Raises:
        UsageError: The range is empty or outside the features.
    """
    if start is None and end is None:
        return features
    first = 0.0 if start is None else start
    last = len(features) * seconds_per_step if end is None else end
    if not 0 <= first < last or first >= len(features) * seconds_per_step:
        raise UsageError(
            f"the query range {first:g}-{last:g} s is not inside its "
            f"{len(features) * seconds_per_step:g} s"
        )
    from relocal_pyg.moments import seconds_to_steps

    begin, stop = seconds_to_steps([first, last], seconds_per_step, len(features)).tolist()
    return features[begin:stop]


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.mmm.

    Example:
        >>> clock(3723.5)
        '1:02:03.500'
    """
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def print_moments(moments: list[Moment]) -> None:
    """Print ranked moments, in seconds and by the clock."""
    print(f"{'rank':>4} {'start s':>10} {'end s':>10} {'start':>13} {'end':>13} {'score':>7}")
    for rank, moment in enumerate(moments, start=1):
        print(
            f"{rank:>4} {moment.start:>10.2f} {moment.end:>10.2f} {clock(moment.start):>13} "
            f"{clock(moment.end):>13} {moment.score:>7.3f}"
        )


def write_moments_json(path: Path, moments: list[Moment], **facts: str) -> None:
    """Write moments and what they were found with as JSON."""
    from relocal_pyg.storage import write_json

    write_json(path, {**facts, "unit": "seconds", "moments": [asdict(m) for m in moments]})


def write_moments_csv(path: Path, moments: list[Moment]) -> None:
    """Write moments as CSV: rank, start and end in seconds, score."""
    from relocal_pyg.storage import replace_file

    with replace_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["rank", "start", "end", "score"])
        for rank, moment in enumerate(moments, start=1):
            writer.writerow([rank, moment.start, moment.end, moment.score])
