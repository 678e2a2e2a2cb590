"""``relocal index`` and ``relocal search``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from relocal_pyg.apps.cli.exports import (
    EXAMPLE,
    ExportOptions,
    exporting,
    files_of,
    read_feedback,
    write_all,
    write_answers,
)
from relocal_pyg.apps.cli.extract import print_extraction
from relocal_pyg.apps.cli.find import QueryOptions, bars_on_terminal, likely, moments_table
from relocal_pyg.apps.cli.options import (
    OF_FILMS,
    STEP_SECONDS,
    BackboneOptions,
    Count,
    DeviceName,
    Model,
    Output,
    Probability,
    Rate,
    Steps,
    choose_matcher,
    is_features,
    load_network,
    say,
)
from relocal_pyg.errors import FeatureError, UsageError, VideoError
from relocal_pyg.formats import Source

if TYPE_CHECKING:
    from torch import Tensor

    from relocal_pyg.moments import Moment
    from relocal_pyg.search.index import SearchIndex
    from relocal_pyg.video.index import FoundVideos
    from relocal_pyg.video.query import Judged, StillQuery, VideoQuery


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
    seconds_per_step: Annotated[float | None, STEP_SECONDS] = None,
    key: str | None = None,
) -> None:
    """Make FOLDER a search index of the videos of FEATURES, or add them to the one it holds.

    Videos that the index holds already are left out; those whose features are others now are named.

    Args:
        folder: The index.
        features: HDF5 file of features, or a folder of video files or one of them, whose features
            are then kept in FOLDER.features.h5.
        network: Videos: which network turns frames into features; that of the run's own videos
            where left out.
        model: A trained run or checkpoint, "pretrained" (docs/pretrained.md) or "contrast", the
            training-free matcher, which is also what is taken where it is left out.
        rate: Videos: frames per second; where left out that of the run's own videos, or 3.125 (25
            for c3d).
        workers: Videos: how many at a time; all processors where left out.
        device: Where networks run; "auto" is cuda where there is one.
        seconds_per_step: Features: duration of one step; that of the videos that the index holds
            where left out, or 1.
        key: Name of the feature array inside a video's group.
    """
    from relocal_pyg.data.annotations import Quarantine
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.search.index import SearchIndex
    from relocal_pyg.search.storage import add_videos, build_index
    from relocal_pyg.video.folder import VIDEO_SUFFIXES

    matcher, why = choose_matcher(model, device)
    there = folder / "index.json"  # perhaps without a video: a run was killed early
    opened = SearchIndex(folder, matcher, verify=False) if there.exists() else None
    if features.is_dir() or features.suffix.lower() in VIDEO_SUFFIXES:
        if seconds_per_step is not None:
            raise UsageError("--seconds-per-step is of features: videos have --rate")
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
        features, seconds = made.features, backbone.clip_stride / made.rate_hz
    elif (network, rate, workers) != (BackboneOptions(), None, None):
        raise UsageError(f"{OF_FILMS} need video files, these are features")
    elif seconds_per_step is None:
        shards = opened.shards if opened is not None else ()
        clocks = {float(each) for shard in shards for each in shard.seconds_per_step} or {1.0}
        if len(clocks) > 1:
            raise UsageError("--seconds-per-step is needed: the index has several", file=folder)
        (seconds,) = clocks
    else:
        seconds = seconds_per_step
    say(f"matcher: {why}")
    store = FeatureStore(features, key=key)
    changed, unusable = [], Quarantine()

    def videos() -> Iterator[tuple[str, Tensor, float]]:
        for video_id in store.ids:
            try:
                rows = store.read(video_id)
            except FeatureError as error:
                unusable.add(features, video_id, error.reason, error=FeatureError)
                continue
            if opened is None or video_id not in opened.places:
                yield video_id, rows, seconds
                continue
            held, step = opened.video(video_id)
            same = rows.shape == held.shape and abs(step - seconds) <= 1e-6 * seconds
            # Another machine or number type may make a little of them.
            if not same or float((rows.float() - held).norm()) > 0.01 * float(held.norm()):
                changed.append(video_id)

    added = (build_index if opened is None else add_videos)(folder, matcher, videos())
    say(f"{added} videos added, {0 if opened is None else len(opened)} there before: {folder}")
    if 0 < len(unusable) == len(store.ids):
        raise FeatureError(f"no video could be used: {unusable.summary()}", file=features)
    for record in unusable.records:
        say(f"left out: {record.file}: {record.record}: {record.reason}")
    if changed:
        say(f"changed since, and answered as before: {', '.join(changed)}; build the index anew")


def search(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    query: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")] = None,
    asked: QueryOptions = QueryOptions(),  # noqa: B008 - frozen
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    exports: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    *,
    device: DeviceName = "auto",
    top_k: Count = 10,
    every: Annotated[bool, tyro.conf.arg(name="all")] = False,
    min_probability: Probability = None,
    first_stage: Literal["scan", "faiss", "none"] = "scan",
    candidates: Count = 1000,
) -> None:
    """Find the moments of all videos of the index FOLDER that mean the same as QUERY.

    QUERY is a video file where the index was made from video files; else features: an array "x.npy"
    of [steps, channels], or "features.h5::VIDEO_ID".

    Args:
        folder: The index, made by "relocal index".
        query: The clip, or with --query-start/--query-end the longer video that it is part of, or a
            saved query, as for "relocal find"; left out with --query-text or --query-image.
        asked: What is looked for, and the run or checkpoint that the index was made with.
        network: Videos: the network that the index was made with, taken from it where left out.
        exports: What is written of the moments, and how.
        device: Where networks run; "auto" is cuda where there is one.
        top_k: How many moments at most.
        every: Give every moment, each once, and their count, in the place of the best TOP_K; looks
            at all videos.
        min_probability: Leave out moments that are less probable to be right; with --all .5 where
            left out.
        first_stage: Which proposals the model looks at: the best of a scan, those that faiss finds
            (approximate, faster on large indexes), or all of them.
        candidates: How many proposals the model looks at after a first stage.
    """
    from relocal_pyg.search.index import SearchIndex
    from relocal_pyg.video.index import IndexedVideos, find_in_index

    exports.formats()  # a wrong name is said before anything is searched
    if (every or first_stage == "none") and candidates != 1000:
        raise UsageError("--candidates changes nothing with --all or --first-stage none")
    if every and first_stage != "scan":
        raise UsageError("--first-stage changes nothing with --all")
    label = asked.name(query)
    query, asked = asked.opened(query)
    least = (0.5 if every else 0.0) if min_probability is None else min_probability
    told = read_feedback(asked.feedback)
    if any(video is None and place is None for video, place, _ in told):
        raise UsageError('"video" is missing: which of the index?', file=asked.feedback)
    how: dict[str, Any] = {
        "top_k": top_k,
        "first_stage": None if first_stage == "none" else first_stage,
        "candidates": candidates,
        "every": every,
        "least": least,
    }
    rows = query is not None and is_features(query)
    if rows:
        exports.refuse_films()
        exports.try_on(Source(str(folder)))
        asked.refuse_films(network)
    else:  # what no film could change, such as a timecode that is none
        exports.try_on(Source("film", frame_rate=Fraction(60000, 1001), size=(16, 9)))
    wanted = None if rows else look_at(asked, query)
    matcher, why = choose_matcher(asked.model, device)
    opened, files = SearchIndex(folder, matcher), files_of(folder)
    ids = {file: name for name, file in files.items()}
    judged: list[tuple[str, Judged]] = []
    for video, place, stretch in told:
        name = ids.get(os.path.realpath(place)) if place and files else video
        if name not in opened.places:
            raise UsageError(f"{place or video} is not in the index", file=asked.feedback)
        judged.append((str(name), stretch))
    how["judged"] = judged
    if wanted is None:
        found = search_features(opened, str(query), asked, how)
    else:
        made = IndexedVideos.load(folder)
        if network == BackboneOptions():
            network = BackboneOptions.of(made.network)
        backbone, _ = load_network(network, None, asked.model, matcher, device)
        also, unlike = asked.stretches()
        with bars_on_terminal() as bar:
            found = find_in_index(
                wanted, opened, made, backbone, progress=bar, also=also, unlike=unlike, **how
            )
        for problem in found.problems:
            say(f"damaged: {problem}")
    title = found.asked.title
    source = cache(partial(source_of, files=files, opened=opened))
    hits = [hit for hit in found.hits if likely(hit, least)]
    say(f"matcher: {why}")
    if found.count is not None:
        print(f"found: {found.count}")
    print(moments_table(hits, [hit.video_id for hit in hits]))
    if left := len(found.hits) - len(hits):
        print(f"left out: {left} below --min-probability {least:g}")

    def write_json(path: Path) -> None:
        each = [(files.get(name, name), *said) for name, said in judged]
        write_answers(
            path,
            [(hit.video_id, hit) for hit in hits],
            query=title,
            reference=str(folder),
            matcher=why,
            count=found.count,
            settings=found.settings,
            query_span=found.span,
            examples=[*asked.plain(), *(dict(zip(EXAMPLE, one, strict=True)) for one in each)],
        )

    def write_page(path: Path) -> None:
        from relocal_pyg.video.page import write_found_page

        names, answers = (title, str(folder)), replace(found, hits=hits)
        places = {name: Path(file) for name, file in files.items()}
        write_found_page(path, answers, why=why, names=names, files=places)
        say(f"report: {path}")

    def ranked() -> list[tuple[Source, Moment]]:
        return [(source(hit.video_id), hit.moment) for hit in hits]

    write_all(exporting(exports, ranked, label, write_json, write_page))


def look_at(asked: QueryOptions, query: str | None) -> VideoQuery | StillQuery:
    """What is looked for; a wrong name is said before an index is read."""
    from relocal_pyg.video.decode import probe
    from relocal_pyg.video.query import VideoQuery

    asked.refuse_features()
    wanted, (also, unlike) = asked.video(query), asked.stretches()
    for each in (wanted, *also, *unlike):
        file = each.path if isinstance(each, VideoQuery) else each.image
        if file is not None:
            probe(file)
    return wanted


def search_features(
    opened: SearchIndex, query: str, asked: QueryOptions, how: dict[str, Any]
) -> FoundVideos:
    """Search an index for features; ``how`` as for :func:`relocal_pyg.video.index.find_rows`."""
    from relocal_pyg.video.index import FoundVideos, find_rows
    from relocal_pyg.video.query import VideoQuery

    clip, whole = asked.rows(query, opened.channels)
    hits, count = find_rows(clip, opened, whole, asked.examples(opened.channels), **how)
    span = asked.span(len(clip if whole is None else whole))
    settings = {"seconds_per_step": asked.seconds_per_step, "key": asked.key}
    return FoundVideos(hits, VideoQuery(Path(query)), span, settings, clip, whole, count=count)


def source_of(name: str, files: dict[str, str], opened: SearchIndex) -> Source:
    """A video of an index: its file, where the index was made from such and it can be read."""
    from relocal_pyg.video.cut import describe_source

    place, length = files.get(name, name), opened.duration(name)
    with suppress(VideoError):
        if name in files and Path(place).is_file():
            found = describe_source(Path(place), name)
            short = found.duration is None or found.duration <= opened.duration(name, less=1)
            return describe_source(Path(place), name, length) if short else found
    return Source(place, length, id=name)
