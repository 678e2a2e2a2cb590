"""``relocal find``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from relocal_pyg.apps.cli.exports import (
    EXAMPLE,
    ExportOptions,
    exporting,
    place_name,
    read_feedback,
    read_saved,
    write_all,
    write_answers,
    write_explanation,
)
from relocal_pyg.apps.cli.options import (
    OUT_FILE,
    SHIPPED,
    UNNAMED,
    BackboneOptions,
    Count,
    DeviceName,
    Model,
    Output,
    Probability,
    Rate,
    Seconds,
    StepSeconds,
    choose_matcher,
    is_features,
    load_network,
    number,
    paths_of,
    same_video,
    say,
    split_place,
)
from relocal_pyg.errors import FeatureError, UsageError, ascii_line
from relocal_pyg.formats import Source
from relocal_pyg.formats.clips import DOUBT, clock, presence_line
from relocal_pyg.io.write import also_reads

if TYPE_CHECKING:
    from torch import Tensor

    from relocal_pyg.models import Calibrated
    from relocal_pyg.models.examples import Example
    from relocal_pyg.moments import Moment
    from relocal_pyg.search.index import Hit
    from relocal_pyg.video.extract import Progress
    from relocal_pyg.video.find import Found
    from relocal_pyg.video.query import Judged, StillQuery, VideoQuery


@dataclass(frozen=True)
class QueryOptions:
    """What is looked for, and with which model.

    Attributes:
        model: A trained run or checkpoint; "pretrained", which "relocal find" takes where none is
            named (docs/pretrained.md); or "contrast", the training-free matcher, which searches of
            an index take.
        query_start: Seconds at which the clip starts inside QUERY.
        query_end: Seconds at which the clip ends inside QUERY.
        query_text: Videos: look for what these words say, in the place of QUERY; --backbone has to
            read text.
        query_image: Videos: look for what this picture shows, in the place of QUERY.
        also: One more example of what is looked for; may be given several times.
        unlike: What is not meant; may be given several times.
        feedback: Judged answers: the JSON that --json wrote, with "good": true or false at some
            moments. They are examples and counter-examples; those with a yes come first, those with
            a no are left out.
        seconds_per_step: Features: duration of one step.
        key: Features: name of the array inside a video's group; features or c3d_features if left
            out.
    """

    model: Model = None
    query_start: Seconds = None
    query_end: Seconds = None
    query_text: str | None = None
    query_image: Path | None = None
    also: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(name="query", metavar="FILE[:FROM-TO]"),
    ] = ()
    unlike: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(name="not", metavar="FILE[:FROM-TO]"),
    ] = ()
    feedback: Path | None = None
    seconds_per_step: StepSeconds = 1.0
    key: str | None = None

    def opened(self, query: str | None) -> tuple[str | None, QueryOptions]:
        """The clip and the examples of a saved query, a JSON of answers, in its place.

        All that is named is read, and no output may be one of them.
        """
        asked = self
        if query is not None and Path(query).suffix.lower() == ".json":
            if (self.query_start, self.query_end) != (None, None):
                raise UsageError(f"{query} says where its clip is: leave --query-start, -end out")
            query, options, said = read_saved(Path(query))
            also = (*(text for text, shows in said if shows), *self.also)
            unlike = (*(text for text, shows in said if not shows), *self.unlike)
            usual = QueryOptions()  # what was said here goes before what was saved
            options = {k: v for k, v in options.items() if getattr(self, k) == getattr(usual, k)}
            asked = replace(self, **options, also=also, unlike=unlike)
        also_reads(paths_of([query, *(place for place, *_ in asked.said())]))
        return query, asked

    def name(self, query: str | None) -> str:
        """What is looked for is called, of a query as it was given: a file's name or the words."""
        return self.query_text or place_name(str(self.query_image or query))

    def said(self) -> list[tuple[str, float | None, float | None, bool]]:
        """Further examples and what is not meant: a file, seconds of it, whether it shows it."""
        from relocal_pyg.io.read import parse_stretch

        if both := sorted({*self.also} & {*self.unlike}):
            raise UsageError("is an example and what is not meant: leave one out", file=both[0])
        texts = [*((text, True) for text in self.also), *((text, False) for text in self.unlike)]
        return [(*parse_stretch(text), good) for text, good in texts]

    def plain(self) -> list[dict[str, Any]]:
        """What :meth:`said` gives, as the JSON of answers has it."""
        return [dict(zip(EXAMPLE, each, strict=True)) for each in self.said()]

    def rows(
        self, place: str, channels: int, *stretch: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """Features of a stretch (the clip's where none is said), and of all where that is more."""
        around = read_features(place, self.key)
        if around.shape[1] != channels:
            reason = f"has {around.shape[1]} channels and not {channels}, as what is looked in"
            raise FeatureError(f"{reason}: extract both with the same backbone", file=place)
        start, end = stretch or (self.query_start, self.query_end)
        if start is None and end is None:
            return around, None
        from relocal_pyg.moments import seconds_to_steps

        length = len(around) * self.seconds_per_step
        first, last = start or 0.0, length if end is None else end
        if not 0 <= first < min(last, length):
            reason = f"the stretch {first:g}-{last:g} s is not inside its {length:g} s"
            raise UsageError(reason, file=place)
        begin, stop = seconds_to_steps([first, last], self.seconds_per_step, len(around)).tolist()
        rows = around[begin:stop]
        return rows, around if len(rows) < len(around) else None

    def span(self, steps: int) -> tuple[float, float]:
        """Seconds of a clip of features, in an array of so many steps."""
        end = steps * self.seconds_per_step
        return self.query_start or 0.0, end if self.query_end is None else min(self.query_end, end)

    def examples(self, channels: int) -> list[Example]:
        """Features of further examples and of what is not meant."""
        from relocal_pyg.models.examples import Example

        return [
            Example(*self.rows(place, channels, *when), good) for place, *when, good in self.said()
        ]

    def refuse_films(self, network: BackboneOptions) -> None:
        """Refuse what is asked of pictures, where there are features alone."""
        if (self.query_text, self.query_image, network) != (None, None, BackboneOptions()):
            options = "--query-text, --query-image, --backbone, --pool, --weights and --pca"
            raise UsageError(f"{options} need video files, these are features")

    def refuse_features(self) -> None:
        """Refuse what is asked of features, where there are films."""
        if (self.seconds_per_step, self.key) != (1.0, None):
            raise UsageError("--seconds-per-step and --key are of features, these are video files")

    def none_of(self, reference: str) -> list[tuple[float, float]]:
        """Seconds of a reference that are not meant."""
        return [
            (start or 0.0, math.inf if end is None else end)
            for place, start, end, good in self.said()
            if not good and (start, end) != (None, None) and same_video(place, reference)
        ]

    def stretches(self) -> tuple[list[VideoQuery], list[VideoQuery]]:
        """Further examples, and what is not meant, as stretches of video files."""
        from relocal_pyg.video.query import VideoQuery

        said = [(VideoQuery(Path(place), *when), good) for place, *when, good in self.said()]
        return [clip for clip, good in said if good], [clip for clip, good in said if not good]

    def video(self, query: str | None) -> VideoQuery | StillQuery:
        """The clip as a stretch of a video file, or the words or the picture in its place."""
        from relocal_pyg.video.query import StillQuery, VideoQuery

        if query is not None and self.query_text is None and self.query_image is None:
            return VideoQuery(Path(query), self.query_start, self.query_end)
        if query is not None or (self.query_start, self.query_end) != (None, None):
            raise UsageError(
                "--query-text and --query-image stand in the place of QUERY: leave it out"
            )
        return StillQuery(self.query_text, self.query_image)


@dataclass(frozen=True)
class LookOptions:
    """Videos: what is looked at.

    Attributes:
        rate: Frames per second looked at; that of the run's own videos, or what follows from the
            clip's length, where left out.
        stream: Number of the video stream of REFERENCE; the default one where left out.
        exhaustive: Look at every step of a long reference; --no-exhaustive looks at its key frames
            first and then only around the places that they speak for, two to three times as fast,
            may miss the best answer and gives no probabilities.
        include_query: Where the clip is a stretch of REFERENCE itself, let it be an answer.
    """

    rate: Rate = None
    stream: Annotated[int | None, number("N", whole=True, least=0, most=1e6)] = None
    exhaustive: bool = True
    include_query: bool = False


@dataclass(frozen=True)
class Answer:
    """What a search gave, whatever it was in."""

    moments: list[Moment]
    facts: dict[str, Any]
    seconds_per_step: float
    contributions: Tensor | None
    source: Callable[[], Source]
    found: Found | None = None


@dataclass(frozen=True)
class Wanted:
    """How many answers are wanted, how probable, and whether explained."""

    top_k: int
    every: bool
    least: float
    explain: bool


def find(
    query: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")],
    reference: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")
    ] = None,
    asked: QueryOptions = QueryOptions(),  # noqa: B008 - frozen
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    look: LookOptions = LookOptions(),  # noqa: B008 - frozen
    exports: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    *,
    device: DeviceName = "auto",
    top_k: Count = 5,
    every: Annotated[bool, tyro.conf.arg(name="all")] = False,
    min_probability: Probability = None,
    cache: Annotated[Path | None, Output()] = None,
    explain: Annotated[Path | None, OUT_FILE] = None,
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False,
) -> None:
    """Find the moments of REFERENCE that mean the same as QUERY.

    QUERY and REFERENCE are video files, or both features: an array "x.npy" of [steps, channels] or
    one video of a feature file as "features.h5::VIDEO_ID".

    Args:
        query: The clip, or with --query-start/--query-end the longer video that it is part of
            (better: what surrounds the clip says what is special about it); or a saved query, what
            --json wrote: its clip, its examples, and the moments that say "good". With --query-text
            or --query-image there is none: REFERENCE alone.
        reference: The long video.
        asked: What is looked for, and with which model.
        network: Videos: which network turns frames into features; that of the run's own videos
            where left out.
        look: Videos: what is looked at.
        exports: What is written of the moments, and how.
        device: Where networks run; "auto" is cuda where there is one.
        top_k: How many moments at most.
        every: Give every moment, each once, and their count, in the place of the best TOP_K; looks
            at every step.
        min_probability: Leave out moments that are less probable to be right; with --all .5 where
            left out.
        cache: Videos: keep features in this folder, for the next search.
        explain: Write here (JSON) what each meeting of a query step with a reference step added to
            the score of the best moment.
        verbose: Say what was looked at, and how.
    """
    exports.formats()  # a wrong name is said before anything is searched
    clip: str | None = query
    if reference is None:  # words or a picture stand in the place of QUERY
        clip, reference = None, query
        if asked.query_text is None and asked.query_image is None:
            raise UsageError("REFERENCE is missing: QUERY and REFERENCE wanted")
    label = asked.name(clip)
    clip, asked = asked.opened(clip)
    if clip is not None and is_features(clip) != is_features(reference):
        raise UsageError("give two video files or two features, not one of each")
    if is_features(reference):
        exports.refuse_films()
        asked.refuse_films(network)
        if cache is not None or replace(look, include_query=False) != LookOptions():
            raise UsageError("--rate, --stream, --no-exhaustive and --cache are of video files")
        exports.try_on(Source(place_name(reference)))
        places = [str(clip), reference, *(place for place, *_ in asked.said())]
        if asked.key is not None and not any(split_place(place)[1] for place in places):
            raise UsageError("--key is of feature files, such as x.h5::ID: these are arrays")
    elif exports.export:
        from relocal_pyg.video.cut import describe_source

        exports.try_on(describe_source(reference))
    wanted = explain is not None or exports.report is not None
    least = (0.5 if every else 0.0) if min_probability is None else min_probability
    how = Wanted(top_k, every, least, wanted)
    if clip is not None and is_features(clip):
        own = look.include_query
        answer = find_in_features(clip, reference, asked, how, device, include_query=own)
    else:
        asked.refuse_features()
        look_for = asked.video(clip)
        answer = find_in_video(look_for, reference, asked, network, look, how, cache, device)
    print_answer(answer, verbose, least)
    facts = answer.facts
    moments = [each for each in answer.moments if likely(each, least)]

    def ranked() -> list[tuple[Source, Moment]]:
        source = answer.source()
        return [(source, moment) for moment in moments]

    def write_json(path: Path) -> None:
        write_answers(path, [(place_name(reference), moment) for moment in moments], **facts)

    def write_page(path: Path) -> None:
        from relocal_pyg.video.page import write_found_page

        assert answer.found is not None  # of features no page is asked for
        write_found_page(path, replace(answer.found, moments=moments), why=facts["matcher"])
        say(f"report: {path}")

    tasks: list[Callable[[], None]] = []
    if explain is not None:
        told = answer.contributions, answer.seconds_per_step, facts
        tasks.append(partial(write_explanation, explain, moments, *told))
    write_all([*tasks, *exporting(exports, ranked, label, write_json, write_page, look.stream)])


def find_in_features(
    query: str,
    reference: str,
    asked: QueryOptions,
    how: Wanted,
    device: DeviceName = "auto",
    choose: Callable[..., tuple[Calibrated, str]] = choose_matcher,
    include_query: bool = False,
) -> Answer:
    """Search one array of features for another; ``choose`` gives the model."""
    from relocal_pyg.models.examples import ByExamples
    from relocal_pyg.models.matcher import is_large
    from relocal_pyg.models.occurrences import APART, ROOM, occurrences, same_answer, same_place

    if asked.feedback is not None:
        raise UsageError("--feedback needs video files: give features as --query and --not")
    video, step = read_features(reference, asked.key), asked.seconds_per_step
    clip, whole = asked.rows(query, video.shape[1])
    span, nos = asked.span(len(clip if whole is None else whole)), asked.none_of(reference)
    part = (asked.query_start, asked.query_end) != (None, None)
    left_out = part and not include_query and same_video(query, reference)
    usual = "contrast" if is_large(clip, len(video)) else "pretrained"
    matcher, why = choose(asked.model, device, usual)
    examples, count = asked.examples(video.shape[1]), None
    if examples:
        matcher = type(matcher)(ByExamples(matcher.model, examples))
    if how.every:
        known = [*((*no, False) for no in nos), *[(*span, True)] * left_out]
        found, count = occurrences(
            matcher,
            clip,
            video,
            query_video=whole,
            examples=examples,
            seconds_per_step=step,
            least=how.least,
            without=[(a / step, b / step, c) for a, b, c in known],
        )
        moments = [replace(m, start=m.start * step, end=m.end * step) for m in found]
    else:
        room = how.top_k + ROOM * (len(nos) + left_out)
        found = matcher.localize(
            clip, video, top_k=room, seconds_per_step=step, query_video=whole, nms_threshold=APART
        )
        found = [m for m in found if not any(same_answer((m.start, m.end), no) for no in nos)]
        if left_out:  # nothing is known about the rest
            found = [m for m in found if not same_place((m.start, m.end), span)]
            found = [replace(moment, probability=None, presence=None) for moment in found]
        moments = found[: how.top_k]
    moments = [replace(m, start=round(m.start, 6), end=round(m.end, 6)) for m in moments]
    contributions = None
    best = next((moment for moment in moments if likely(moment, how.least)), None)
    if how.explain and best is not None:
        start, end = matcher.scored_span(best)
        contributions = matcher.explain(clip, video, (start / step, end / step), whole, step)
    facts = {
        "query": query,
        "query_span": span,
        "settings": {"seconds_per_step": step, "key": asked.key, "query_left_out": left_out},
        "examples": asked.plain(),
        "reference": reference,
        "matcher": why,
        "count": count,
    }
    source = Source(place_name(reference), len(video) * step, id=place_name(reference))
    return Answer(moments, facts, step, contributions, lambda: source)


def find_in_video(
    query: VideoQuery | StillQuery,
    reference: str,
    asked: QueryOptions,
    network: BackboneOptions,
    look: LookOptions,
    how: Wanted,
    cache: Path | None,
    device: DeviceName = "auto",
) -> Answer:
    """Search a video file with bars on the terminal; damage in the files is printed."""
    from relocal_pyg.models import MultiGraphMatcher
    from relocal_pyg.video.cut import describe_source
    from relocal_pyg.video.decode import probe
    from relocal_pyg.video.find import find_moments
    from relocal_pyg.video.query import VideoQuery
    from relocal_pyg.video.rows import FeatureCache

    file = query.path if isinstance(query, VideoQuery) else query.image
    if file is not None:
        probe(file)  # a wrong name is said before a network is loaded
    probe(reference, look.stream)
    also, unlike = asked.stretches()
    judged: list[Judged] = []
    examples = asked.plain()
    for video, place, (start, end, good) in read_feedback(asked.feedback):
        here = same_video(place, reference) if place else video in (None, place_name(reference))
        if not (here or place):
            raise UsageError(f"{video} is no file that is there", file=asked.feedback)
        shown = reference if here else str(place)
        examples.append(dict(zip(EXAMPLE, (shown, start, end, good), strict=True)))
        if here:
            judged.append((start, end, good))
        else:
            (also if good else unlike).append(VideoQuery(Path(shown), start, end))
    for example in (*also, *unlike):
        probe(example.path)
    matcher, why = None, ""  # the length of the reference decides
    if asked.model is not None:
        matcher, why = choose_matcher(asked.model, device)
    backbone, rate = load_network(network, look.rate, asked.model, matcher, device)
    with bars_on_terminal() as bar:
        found = find_moments(
            query,
            reference,
            model=matcher,
            backbone=backbone,
            top_k=how.top_k,
            every=how.every,
            least=how.least,
            also=also,
            unlike=unlike,
            judged=judged,
            rate_hz=rate,
            cache=None if cache is None else FeatureCache(cache, needed=False),
            progress=bar,
            explain=how.explain,
            exhaustive=look.exhaustive,
            include_query=look.include_query,
            stream=look.stream,
        )
    for problem in found.problems:
        say(f"damaged: {problem}")
    if matcher is None:
        shipped = found.matcher.startswith(MultiGraphMatcher.title)
        why = f"{found.matcher} (of so long a video --model pretrained takes much memory)"
        why = f"{MultiGraphMatcher.title}, {SHIPPED}{UNNAMED})" if shipped else why
    return Answer(
        found.moments,
        {
            "query": query.title,
            "reference": reference,
            "matcher": why,
            "query_span": list(found.span),
            "examples": examples,
            "settings": found.settings,
            "count": found.count,
        },
        found.seconds_per_step,
        found.explanation,
        lambda: describe_source(reference, duration=found.reference_seconds),
        found,
    )


def likely(moment: Moment | Hit, least: float) -> bool:
    """Whether a moment is as probable as is wanted; what is not known is not left out."""
    return moment.probability is None or moment.probability >= least


def print_answer(answer: Answer, verbose: bool, least: float = 0.0) -> None:
    """Print how was searched and what was found; what is less probable than ``least`` is not."""
    facts, moments = answer.facts, answer.moments
    say(f"matcher: {facts['matcher']}")
    if answer.found is not None:
        (start, end), settings = answer.found.span, answer.found.settings
        still = "" if hasattr(answer.found.query, "path") else f"{ascii_line(facts['query'])}, "
        print(
            f"query: {still}{start:.2f} to {end:.2f} s, centred by {settings['query_centred_by']}; "
            f"{settings['frames_per_second']:g} frames a second"
        )
        share = f"{settings['share_seen']:.0%} of the pictures of an exhaustive search"
        if settings["share_seen"] < 1:
            print(f"looked at {settings['looked_at']}: {share}")
        for name, value in settings.items() if verbose else ():
            say(f"  {name.replace('_', ' ')}: {value}")
    if facts["settings"]["query_left_out"]:
        print("the query's own stretch is left out (--include-query keeps it)")
    presence = moments[0].presence if moments else None
    if presence is not None:
        facts["presence"] = presence
        print(presence_line(presence) + ("" if presence >= DOUBT else "; the best guesses:"))
    if facts.get("count") is not None:
        print(f"found: {facts['count']}")
    print(moments_table([moment for moment in moments if likely(moment, least)]))
    if left := sum(not likely(moment, least) for moment in moments):
        print(f"left out: {left} below --min-probability {least:g}")
    if least > 0 and any(moment.probability is None for moment in moments):
        print("how probable they are is not known: --min-probability leaves none of these out")


@contextmanager
def bars_on_terminal() -> Iterator[Callable[[str], Progress]]:
    """A function that gives a file's progress a bar of its own."""
    from relocal_pyg.video.extract import progress_bar

    with ExitStack() as bars:
        yield lambda title: bars.enter_context(progress_bar(title))


def moments_table(moments: Sequence[Moment | Hit], videos: Sequence[str] = ()) -> str:
    """Ranked moments as lines of text, in seconds and by the clock, with the video of each."""
    named = ["video", *videos] if videos else [""] * (len(moments) + 1)
    names = [ascii_line(name) for name in named]
    width = max(map(len, names)) + bool(videos)
    judged = any(moment.probability is not None for moment in moments)
    heads = f"{'start s':>10} {'end s':>10} {'start':>13} {'end':>13} {'score':>7}"
    lines = [f"{'rank':>4} {names[0]:<{width}}{heads}" + (" probability" if judged else "")]
    lines += [
        f"{rank:>4} {name:<{width}}{moment.start:>10.2f} {moment.end:>10.2f} "
        f"{clock(moment.start):>13} {clock(moment.end):>13} {moment.score:>7.3f}"
        + ("" if moment.probability is None else f" {moment.probability:>11.2f}")
        for rank, (name, moment) in enumerate(zip(names[1:], moments, strict=True), start=1)
    ]
    return "\n".join(lines)


def read_features(place: str, key: str | None) -> Tensor:
    """Read ``x.npy`` or ``features.h5::VIDEO_ID`` as float32 ``[n, F]``."""
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.io.read import read_array
    from relocal_pyg.models.base import as_features

    name, video_id = split_place(place)
    if video_id:
        return FeatureStore(name, key=key).read(video_id)
    return as_features(read_array(place, FeatureError), place)
