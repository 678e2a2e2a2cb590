"""``relocal search``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relocal_pyg.cli.find import choose_matcher, cut_steps, is_features, read_features
from relocal_pyg.cli.video_options import BackboneOptions, load_backbone

if TYPE_CHECKING:
    from torch import Tensor


def search(
    folder: Annotated[Path, tyro.conf.Positional],
    query: Annotated[str, tyro.conf.Positional],
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    model: Path | None = None,
    query_start: float | None = None,
    query_end: float | None = None,
    top_k: int = 10,
    first_stage: Literal["scan", "faiss", "none"] = "scan",
    candidates: int = 1000,
    seconds_per_step: float = 1.0,
    key: str = "c3d_features",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Find the moments of all videos of the index FOLDER that mean the same as QUERY.

    QUERY is a video file where the index was made from video files; else features: an array "x.npy"
    of [steps, channels], or "features.h5::VIDEO_ID".

    Args:
        folder: The index, made by "relocal index".
        query: The clip, or with --query-start/--query-end the longer video that it is part of.
        network: Videos: the network that the index was made with.
        model: The run or checkpoint that the index was made with.
        query_start: Seconds at which the clip starts inside QUERY.
        query_end: Seconds at which the clip ends inside QUERY.
        top_k: How many moments at most.
        first_stage: Which proposals the model looks at: the best of a scan, those that faiss finds
            (approximate, faster on large indexes), or all of them.
        candidates: How many proposals the model looks at after a first stage.
        seconds_per_step: Features: duration of one step of QUERY.
        key: Name of the feature array inside a video's group of an HDF5 file.
        json_file: Write the answers here as JSON.
    """
    from relocal_pyg.search.index import SearchIndex
    from relocal_pyg.storage import write_json

    matcher, why = choose_matcher(model)
    if is_features(query):
        around = read_features(query, key)
    else:
        around, seconds_per_step = read_video(query, folder, network)
    clip = cut_steps(around, query_start, query_end, seconds_per_step)
    hits = SearchIndex(folder, matcher).search(
        clip,
        top_k,
        first_stage=None if first_stage == "none" else first_stage,
        candidates=candidates,
        query_video=around if len(clip) < len(around) else None,
    )
    print(f"matcher: {why}")
    width = max([len(hit.video_id) for hit in hits] + [5])
    print(
        f"{'rank':>4} {'video':<{width}} {'start s':>10} {'end s':>10} {'start':>13} {'score':>7}"
    )
    for rank, hit in enumerate(hits, start=1):
        print(
            f"{rank:>4} {hit.video_id:<{width}} {hit.start:>10.2f} {hit.end:>10.2f} "
            f"{hit.score:>7.3f}"
        )
    if json_file is not None:
        facts = {"query": query, "matcher": why, "unit": "seconds"}
        write_json(json_file, {**facts, "hits": [asdict(hit) for hit in hits]})


def read_video(query: str, folder: Path, network: BackboneOptions) -> tuple[Tensor, float]:
    """Features of a video file made as those of the index, and the duration of a step.

    Raises:
        SearchIndexError: The index was made otherwise.
        VideoError: The file cannot be decoded.
    """
    from relocal_pyg.video.extract import extract_video, progress_bar
    from relocal_pyg.video.indexing import IndexedVideos

    made, backbone = IndexedVideos.load(folder), load_backbone(network)
    made.check(backbone)
    with progress_bar(Path(query).name) as bar:
        video = extract_video(query, backbone, made.rate_hz, progress=bar)
    return video.features, video.seconds_per_step
