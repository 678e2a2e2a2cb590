"""``relocal find``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from relocal_pyg.apps.cli.exports import (
    ExportOptions,
    cut_moments,
    place_name,
    write_exports,
)
from relocal_pyg.apps.cli.options import (
    OUT_FILE,
    BackboneOptions,
    Count,
    Output,
    Rate,
    Seconds,
    StepSeconds,
    load_network,
)
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.formats import Source
from relocal_pyg.formats.clips import clock, presence_line

if TYPE_CHECKING:
    from torch import Tensor

    from relocal_pyg.models.base import Relocalizer
    from relocal_pyg.moments import Moment
    from relocal_pyg.video.backbones import Backbone
    from relocal_pyg.video.find import Found, VideoQuery


def find(
    query: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")],
    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")],
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    exports: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    *,
    model: Path | None = None,
    query_start: Seconds = None,
    query_end: Seconds = None,
    top_k: Count = 5,
    rate: Rate = None,
    cache: Annotated[Path | None, Output()] = None,
    json_file: Annotated[Path | None, OUT_FILE, tyro.conf.arg(name="json")] = None,
    csv_file: Annotated[Path | None, OUT_FILE, tyro.conf.arg(name="csv")] = None,
    srt_file: Annotated[Path | None, OUT_FILE, tyro.conf.arg(name="srt")] = None,
    export: Annotated[tuple[Path, ...], OUT_FILE, tyro.conf.arg(metavar="FILE...")] = (),
    report: Annotated[Path | None, OUT_FILE] = None,
    explain: Annotated[Path | None, OUT_FILE] = None,
    cut: Annotated[Path | None, Output()] = None,
    reencode: bool = False,
    seconds_per_step: StepSeconds = 1.0,
    key: str = "c3d_features",
) -> None:
    """Find the moments of REFERENCE that mean the same as QUERY.

    QUERY and REFERENCE are video files, or both features: an array "x.npy" of [steps, channels] or
    one video of a feature file as "features.h5::VIDEO_ID".

    Args:
        query: The clip, or with --query-start/--query-end the longer video that it is part of
            (better: what surrounds the clip says what is special about it).
        reference: The long video.
        network: Videos: which network turns frames into features; that of the run's own videos
            where left out.
        exports: How moments are written for other programs.
        model: A trained run or checkpoint; the training-free contrast matcher where left out.
        query_start: Seconds at which the clip starts inside QUERY.
        query_end: Seconds at which the clip ends inside QUERY.
        top_k: How many moments at most.
        rate: Videos: frames per second looked at; that of the run's own videos, or what
            follows from the clip's length, where left out.
        cache: Videos: keep features in this folder, for the next search.
        json_file: Write the moments here as JSON.
        csv_file: Write the moments here as CSV.
        srt_file: Write the moments here as subtitles of REFERENCE.
        export: Write the moments into these files for other programs, in the format of their
            suffix: players (.vtt .srt .txt .ffmeta), editors (.otio .edl .xml .fcpxml .llc),
            annotation tools (.eaf .tsv .json .textgrid), tables (.csv).
        report: Videos: write a page with pictures here (HTML, one file).
        explain: Write here (JSON) what each meeting of a query step with a reference step added to
            the score of the best moment.
        cut: Videos: write each moment as a clip into this folder.
        reencode: With --cut: exact to the frame, instead of copied from the key frame before.
        seconds_per_step: Features: duration of one step.
        key: Features: name of the array inside a video's group of an HDF5 file.
    """
    exports.formats(export)  # a wrong name is said before anything is searched
    matcher, why = choose_matcher(model)
    moments: list[Moment]
    contributions: Tensor | None = None
    length: float | None = None
    facts: dict[str, object] = {"query": query, "reference": reference, "matcher": why}
    if is_features(query) and is_features(reference):
        for name, value in (("--report", report), ("--cut", cut)):
            if value is not None:
                raise UsageError(f"{name} needs video files, these are features")
        around = read_features(query, key)
        clip = cut_steps(around, query_start, query_end, seconds_per_step)
        video = read_features(reference, key)
        length = len(video) * seconds_per_step
        whole = around if len(clip) < len(around) else None
        moments = matcher.localize(
            clip,
            video,
            top_k=top_k,
            seconds_per_step=seconds_per_step,
            query_video=whole,
        )
        if explain is not None and moments:
            start, end = matcher.scored_span(moments[0])
            place = start / seconds_per_step, end / seconds_per_step
            contributions = matcher.explain(clip, video, place, whole)
        print(f"matcher: {why}")
    elif is_features(query) or is_features(reference):
        raise UsageError("give two video files or two features, not one of each")
    else:
        from relocal_pyg.video.decode import probe
        from relocal_pyg.video.find import VideoQuery

        for file in (query, reference):  # a wrong name is said before a network is loaded
            probe(file)
        stretch = VideoQuery(Path(query), query_start, query_end)
        backbone, rate = load_network(network, rate, model, matcher)
        wanted = explain is not None or report is not None
        found = search(stretch, reference, backbone, matcher, top_k, rate, cache, wanted)
        moments, contributions = found.moments, found.explanation
        seconds_per_step = found.seconds_per_step
        start, end = found.span
        facts |= {"query_span": [start, end], "settings": found.settings}
        print(f"matcher: {why}")
        print(
            f"query: {start:.2f} to {end:.2f} s, centred by {found.settings['query_centred_by']}; "
            f"{found.settings['frames_per_second']:g} frames a second"
        )
    print(moments_table(moments))
    if moments and moments[0].presence is not None:
        facts["presence"] = moments[0].presence
        print(presence_line(moments[0].presence))
    if json_file is not None:
        write_moments_json(json_file, moments, **facts)
    if explain is not None:
        write_explanation(explain, moments, contributions, seconds_per_step, facts)
    if export or csv_file is not None or srt_file is not None or cut is not None:
        if length is None:
            from relocal_pyg.video.cut import describe_source

            source = describe_source(reference, duration=found.reference_seconds)
        else:
            source = Source(place_name(reference), length)
        ranked = [(source, moment) for moment in moments]
        write_exports(ranked, place_name(query), exports, export, csv_file, srt_file)
        if cut is not None:
            cut_moments(ranked, cut, reencode, exports.padding or 0.0)
    if report is not None:
        from relocal_pyg.video.page import write_found_page

        write_found_page(report, found, why=why)
        print(f"report: {report}")


def write_explanation(
    path: Path,
    moments: list[Moment],
    contributions: Tensor | None,
    seconds_per_step: float,
    facts: dict[str, object],
) -> None:
    """Write what made the score of the best moment, a row a query step.

    Raises:
        UsageError: There is no answer, the model cannot say, or there are too many steps.
    """
    from relocal_pyg.io.write import write_json

    if contributions is None:
        raise UsageError("--explain: no answer, or one that cannot be explained step by step")
    best = {"start": moments[0].start, "end": moments[0].end, "score": moments[0].score}
    content = {"unit": "seconds", "moment": best, "seconds_per_step": seconds_per_step}
    write_json(path, {**facts, **content, "contributions": contributions.tolist()})


def search(
    query: VideoQuery,
    reference: str,
    backbone: Backbone,
    matcher: Relocalizer,
    top_k: int,
    rate: float | None,
    cache: Path | None,
    explain: bool = False,
) -> Found:
    """Search a video file with bars on the terminal; damage in the files becomes a warning."""
    from contextlib import ExitStack

    from relocal_pyg.video.extract import Progress, progress_bar
    from relocal_pyg.video.find import find_moments
    from relocal_pyg.video.rows import FeatureCache

    with ExitStack() as bars:

        def bar(title: str) -> Progress:
            return bars.enter_context(progress_bar(title))

        found = find_moments(
            query,
            reference,
            model=matcher,
            backbone=backbone,
            top_k=top_k,
            rate_hz=rate,
            cache=None if cache is None else FeatureCache(cache),
            progress=bar,
            explain=explain,
        )
    for problem in found.problems:
        print(f"damaged: {problem}")
    return found


def choose_matcher(model: Path | None) -> tuple[Relocalizer, str]:
    """The model to search with, and words that say which one and why.

    A run whose validation spoke for the training-free matcher is answered by the matcher.
    """
    from relocal_pyg.models import Calibrated, ContrastMatcher, load_model

    if model is None:
        return ContrastMatcher(), f"{ContrastMatcher.title} (no training needed; no --model given)"
    from relocal_pyg.models.calibrated import FILE, read_confidence
    from relocal_pyg.training.choice import read_choice

    loaded, choice = load_model(model), read_choice(model)
    if choice is None:
        return loaded, f"{loaded.title}, from {model}"
    if choice.use_matcher:
        # A checkpoint named by itself (RUN/best) is used whatever validation said.
        matcher: Relocalizer = ContrastMatcher()
        confidence = read_confidence(model / FILE).get("matcher")
        if confidence is not None:
            matcher = Calibrated(matcher, confidence)
        return matcher, f"{ContrastMatcher.title}, not {model}: {choice}"
    return loaded, f"{loaded.title}, from {model}: {choice}"


def moments_table(moments: list[Moment]) -> str:
    """Ranked moments as lines of text, in seconds and by the clock."""
    judged = any(moment.probability is not None for moment in moments)
    heads = f"{'rank':>4} {'start s':>10} {'end s':>10} {'start':>13} {'end':>13} {'score':>7}"
    lines = [heads + (" probability" if judged else "")]
    lines += [
        f"{rank:>4} {moment.start:>10.2f} {moment.end:>10.2f} {clock(moment.start):>13} "
        f"{clock(moment.end):>13} {moment.score:>7.3f}"
        + (f" {moment.probability:>11.2f}" if judged else "")
        for rank, moment in enumerate(moments, start=1)
    ]
    return "\n".join(lines)


def write_moments_json(path: Path, moments: list[Moment], **facts: Any) -> None:
    """Write moments, in seconds, and what they were found with; probabilities where known."""
    from relocal_pyg.io.write import write_json

    judged = any(moment.probability is not None for moment in moments)
    unknown = set() if judged else {"probability", "presence"}
    plain = [
        {name: value for name, value in asdict(moment).items() if name not in unknown}
        for moment in moments
    ]
    write_json(path, {**facts, "unit": "seconds", "moments": plain})


def is_features(place: str) -> bool:
    """Whether a place names features rather than a video file.

    Example:
        >>> is_features("x.npy"), is_features("features.h5::v_1"), is_features("x.mp4")
        (True, True, False)
    """
    return place.endswith(".npy") or "::" in place


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
    try:
        array = np.load(name, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(f"cannot be read ({error})", file=name) from None
    return as_features(array, name)


def cut_steps(
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
