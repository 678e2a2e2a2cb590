"""From two video files to ranked moments: the whole way, in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.errors import check_number
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.models.checkpoint import load_model
from relocal_pyg.models.examples import ByExamples, Example
from relocal_pyg.models.matcher import MultiGraphMatcher, is_large
from relocal_pyg.models.matchers import ContrastMatcher
from relocal_pyg.models.occurrences import APART, ROOM, Count, is_known, occurrences, same_place
from relocal_pyg.models.similarity import (
    Rows,
    best_cosines,
    cosine_blocks,
    mean_row,
    motion_similarity,
    pair_centres,
    step_similarity,
)
from relocal_pyg.moments import Moment, seconds_to_steps
from relocal_pyg.video.backbones import Backbone, EfficientNetLite0
from relocal_pyg.video.container import check_file
from relocal_pyg.video.decode import VideoInfo, probe
from relocal_pyg.video.extract import (
    Progress,
    Span,
    TooSparse,
    extract_places,
    extract_video,
    sampling_rate,
    stored_video,
)
from relocal_pyg.video.query import (
    STILL_SECONDS,
    Asked,
    Judged,
    StillQuery,
    VideoQuery,
    pinned,
    read_examples,
    said_no,
    within,
)
from relocal_pyg.video.rows import FeatureCache, VideoFeatures, twice_as_often

#: Rows and columns of the largest similarity map.
MAP_ROWS, MAP_COLUMNS = 64, 640
#: Meetings of a query step with a reference step that are explained at most: 40 MB.
MAX_EXPLAINED = 10_000_000
#: Seconds of a reference from which on key frames say where to look.
COARSE_FROM = 120.0
#: Places then looked at: so many, twice as many as answers, or what is this share of a reference.
PLACES, PLACES_SHARE = 10, 0.2
#: Seconds of a file from which on the network sees a picture every second step only, and how many
#: of the clip that has to leave.
SPARSE_FROM, SPARSE_PICTURES = 60.0, 8
#: Steps beyond which a picture that stays on is shortened to what the query can need.
_MANY_STEPS = 100_000


@dataclass(frozen=True)
class Found:
    """What :func:`find_moments` gives.

    Attributes:
        moments: Best first, in seconds of the reference.
        query: What was looked for.
        reference: Where.
        span: Start and end of the clip in seconds of the query's file.
        similarity: float32 ``[n]``, similarity of each reference step to the query in ``[-1, 1]``
            (:func:`relocal_pyg.models.similarity.motion_similarity`), whichever model ranked.
        step_map: float32 ``[a, b]``: cosine of centred query rows with centred reference rows. Long
            videos are pooled: neighbouring query steps are averaged, of neighbouring reference
            steps the most similar is kept.
        seconds_per_step: Duration of a reference step.
        query_seconds: Length of the query's whole file; of words or a picture that of the clip.
        reference_seconds: Length of the reference.
        matcher: Title of the model.
        settings: Everything else that decided the answer, plain values.
        problems: Damage met in the files, one line each.
        explanation: ``[m, n]``, what each meeting of a query step with a reference step added to
            the score of the best moment; None where it was not asked for, or nobody can say.
        count: How many there are, where all were asked for.
        stream: Number of the video stream of the reference, where one was asked for.
    """

    moments: list[Moment]
    query: VideoQuery | StillQuery
    reference: Path
    span: tuple[float, float]
    similarity: Tensor
    step_map: Tensor
    seconds_per_step: float
    query_seconds: float
    reference_seconds: float
    matcher: str
    settings: dict[str, Any]
    problems: tuple[str, ...] = field(default=())
    explanation: Tensor | None = None
    count: Count | None = None
    stream: int | None = None


@dataclass(frozen=True)
class _Looked:
    """A reference, the steps looked at where not all were, the share of pictures, how, in words."""

    video: VideoFeatures
    spans: list[Span] | None = None
    share: float = 1.0
    words: str = "every step"


def find_moments(
    query: str | Path | VideoQuery | StillQuery,
    reference: str | Path,
    *,
    model: Relocalizer | str | Path | None = None,
    backbone: Backbone | None = None,
    top_k: int = 5,
    rate_hz: float | None = None,
    nms_threshold: float = APART,
    cache: FeatureCache | str | Path | None = None,
    progress: Callable[[str], Progress] | None = None,
    explain: bool = False,
    exhaustive: bool = True,
    include_query: bool = False,
    stream: int | None = None,
    also: Sequence[str | Path | VideoQuery] = (),
    unlike: Sequence[str | Path | VideoQuery] = (),
    judged: Sequence[Judged] = (),
    every: bool = False,
    least: float | None = None,
) -> Found:
    """Find the moments of a video that mean the same as a clip.

    Both are decoded at a rate that follows the clip's length
    (:func:`relocal_pyg.video.extract.sampling_rate`) and turned into features by one backbone.
    Where the clip is a stretch of a longer video, the whole of that is decoded: what surrounds the
    clip says what is special about it, and is worth a fifth more right answers.

    Every step of the reference is looked at, unless :attr:`exhaustive` is off: ``settings`` says
    how it was (``looked_at``) and what share of the pictures the backbone saw (``share_seen``).
    If a file is longer than :data:`SPARSE_FROM` seconds and :data:`SPARSE_PICTURES` of the clip are
    left, a picture of both files is looked at every second step, and between two stands their mean.

    Args:
        query: The clip: a video file, or a :class:`VideoQuery` for a stretch of one; or words or a
            picture (:class:`StillQuery`), whose answers come without probabilities.
        reference: The long video.
        model: A model or its folder; where None, ``MultiGraphMatcher.pretrained()``, of a reference
            too long for it the training-free :class:`relocal_pyg.models.ContrastMatcher`; judged by
            what chance gives on the reference (:mod:`relocal_pyg.models.presence`).
        backbone: EfficientNet-Lite0 where None. A trained model needs the one it was trained with.
        top_k: How many moments at most.
        rate_hz: Frames per second given to the backbone, instead of what follows from the query.
        nms_threshold: Of two moments with a larger tIoU only the better is given.
        cache: Features of videos met before, or the folder that keeps them.
        progress: Called with a title for each file; what it gives is told the seconds done.
        explain: Say which steps made the score of the best moment (of probability ``least`` or
            more, where that is given), where all were looked at; no more than
            :data:`MAX_EXPLAINED` meetings of steps are explained.
        exhaustive: False looks, in a reference longer than :data:`COARSE_FROM` seconds, at its key
            frames first and then around the places that they speak for, a fifth of a long one,
            unless key frames lie further apart than the clip is long: faster, and the best answer
            of an exhaustive search is among them two to four times in five only. No probabilities.
        include_query: Where the clip is a stretch of the reference, let it be an answer; it is left
            out otherwise.
        stream: Number of the video stream in the reference; the default one where None.
        also: Further examples of what is looked for.
        unlike: Counter-examples: what is not meant; a stretch of the reference is no answer.
        judged: Stretches of the reference that somebody said yes or no to. Those with a yes come
            first, those with a no are no answers, and all are examples.
        every: Give all moments, however many, and their count
            (:mod:`relocal_pyg.models.occurrences`); ``top_k`` then says nothing, and every step of
            the reference is looked at.
        least: The probability from which on :attr:`every` gives a moment; .5 where None.

    Returns:
        The :class:`Found`.

    Raises:
        VideoError: A file cannot be decoded.
        FeatureError: The model takes other features than the backbone gives.
        UsageError: An argument is out of range, or the query range lies outside its file.

    Example:
        >>> from relocal_pyg.video import VideoQuery, find_moments
        >>> find_moments("goal.mp4", "match.mp4")  # doctest: +SKIP
        >>> find_moments(VideoQuery("match1.mp4", 62, 68), "match2.mp4").moments  # doctest: +SKIP
    """
    check_number(top_k, "top_k", least=1, whole=True)
    check_number(nms_threshold, "nms_threshold", least=0, most=1)
    if rate_hz is not None:
        check_number(rate_hz, "rate_hz", above=0, most=1000)
    if least is not None:
        check_number(least, "least", least=0, most=1)
    model = load_model(model) if isinstance(model, str | Path) else model
    cache = FeatureCache(cache) if isinstance(cache, str | Path) else cache
    asked_for = query if isinstance(query, VideoQuery | StillQuery) else VideoQuery(Path(query))
    clip = asked_for if isinstance(asked_for, VideoQuery) else None
    known = [probe(reference, stream)]  # before anything takes long
    same = clip is not None and check_file(clip.path).samefile(reference)
    if clip is not None:
        known.append(probe(clip.path, stream if same else None))
    backbone = EfficientNetLite0() if backbone is None else backbone
    if model is not None:
        model.check_width(backbone.dim, backbone.name)
    rate, sparse = (rate_hz, False) if rate_hz is not None else _rates(clip, known, backbone)
    # What was kept of every step is as good.
    sparse &= not (cache and stored_video(reference, backbone, rate, cache, stream))
    hertz = rate / 2 if sparse else rate  # of pictures
    problems: list[str] = []

    def options(path: Path, number: int | None) -> dict[str, Any]:
        return {
            "progress": None if progress is None else progress(path.name),
            "report": lambda problem: problems.append(f"{path}: {problem}"),
            "stream": number,
            "threads": os.cpu_count() or 1,
        }

    def read(path: Path, number: int | None = None) -> VideoFeatures:
        video = extract_video(path, backbone, hertz, cache=cache, **options(path, number))
        return twice_as_often(video) if sparse else video

    if isinstance(asked_for, StillQuery):
        asked = Asked.still(asked_for, backbone, rate)
    else:
        around = read(Path(asked_for.path), stream if same else None)
        asked = Asked.clip(asked_for, known[1].start, around)
    rows, whole = asked.rows, asked.whole
    here = Path(reference)
    unlike, nos = said_no(unlike, lambda path: "" if check_file(path).samefile(here) else None)
    judged = [*judged, *(stretch for _, stretch in nos)]
    examples = read_examples(also, unlike, read)
    # Key frames first can pay where much more is there than what will be looked at.
    length = known[0].duration or 0.0
    coarse = backbone.clip_frames == 1 and length >= max(COARSE_FROM, 25 * len(rows) / rate)
    if same and asked.around is not None:
        looked = _Looked(asked.around)
    elif exhaustive or every or not coarse:
        looked = _Looked(read(Path(reference), stream))
    else:
        more = options(Path(reference), stream)
        places = max(PLACES, 2 * top_k, round(length / 3 * PLACES_SHARE * rate / len(rows)))
        looked = _look(reference, backbone, rate, hertz, rows, whole, places, cache, more)
    own = asked.stretch if same and whole is not None and not include_query else None
    long = looked.video
    matcher = model
    if matcher is None:
        blocks = is_large(rows, len(long))
        usual = ContrastMatcher() if blocks else MultiGraphMatcher.pretrained()
        matcher = Calibrated(usual)
    # What stands still says nothing of motion.
    pace = None if clip is None else long.seconds_per_step
    judged = [within(each, long.duration, str(reference)) for each in judged]
    for start, end, good in judged:
        span = seconds_to_steps([start, end], long.seconds_per_step, len(long)).tolist()
        examples.append(Example(long.blocks.range(*span), long.blocks, good, alone=False))
    if examples:
        plain = matcher.model if isinstance(matcher, Calibrated) else matcher
        matcher = Calibrated(ByExamples(plain, examples))
    count = None
    if every:
        limit = 0.5 if least is None else least
        moments, count = _every(matcher, rows, long, whole, examples, pace, limit, own, judged)
    else:
        wanted = top_k + ROOM * len(judged)
        moments = _localize(matcher, rows, looked, whole, wanted, nms_threshold, own, pace)
        moments = [m for m in moments if not any(is_known((m.start, m.end), j) for j in judged)]
    moments = [*pinned(judged, moments), *moments]
    moments = moments if every else moments[:top_k]
    if clip is None:
        moments = [replace(moment, probability=None, presence=None) for moment in moments]
    video = None if whole is None else whole.blocks
    likely = [
        each for each in moments if each.probability is None or each.probability >= (least or 0)
    ]
    return Found(
        moments=moments,
        query=asked_for,
        reference=Path(reference),
        span=asked.span,
        similarity=motion_similarity(rows, long.blocks, video, seconds_per_step=pace),
        step_map=_step_map(rows, long.blocks, video),
        seconds_per_step=long.seconds_per_step,
        query_seconds=asked.seconds,
        reference_seconds=long.duration,
        matcher=matcher.title,
        settings={
            "backbone": backbone.name,
            "stream": known[0].stream,
            "frames_per_second": hertz,
            "seconds_per_step": long.seconds_per_step,
            "query_steps": len(rows),
            "reference_steps": len(long),
            "query_centred_by": "its own video" if video is not None else "the reference",
            "looked_at": looked.words,
            "share_seen": round(looked.share, 4),
            "query_left_out": own is not None,
            "examples": 1 + sum(example.good for example in examples),
            "counter_examples": sum(not example.good for example in examples),
        },
        problems=tuple(problems),
        explanation=_explain(matcher, rows, looked, whole, likely, pace) if explain else None,
        count=count,
        stream=stream,
    )


def _look(
    reference: str | Path,
    backbone: Backbone,
    rate: float,
    hertz: float,
    rows: Tensor,
    whole: VideoFeatures | None,
    places: int,
    cache: FeatureCache | None,
    options: dict[str, Any],
) -> _Looked:
    """Key frames first, and every step around the places that they speak for."""
    made = twice_as_often if hertz < rate else lambda video: video
    if cache is not None:
        stored = stored_video(reference, backbone, hertz, cache, options["stream"])
        if stored is not None:
            return _Looked(made(stored))
    video = None if whole is None else whole.blocks
    length = len(rows) / rate

    def choose(keys: Tensor, times: Tensor) -> list[Span]:
        own, centre = pair_centres(rows, keys, video)
        usual = step_similarity(rows, keys, video)
        best = best_cosines(functional.normalize(rows - own, dim=1), keys, centre)
        reach = 1.5 * length  # a moment as long as the clip, and what lies around it
        taken: list[float] = []
        orders = [each.argsort(descending=True).tolist() for each in (usual, best)]
        for key in (key for pair in zip(*orders, strict=True) for key in pair):
            time = float(times[key])
            if all(abs(time - other) > length for other in taken):
                taken.append(time)
            if len(taken) == places:
                break
        return _joined([(time - reach, time + reach) for time in taken], hertz)

    try:
        found, spans, share = extract_places(
            reference, backbone, hertz, choose, max_gap=length, **options
        )
    except TooSparse:
        found = extract_video(reference, backbone, hertz, cache=cache, **options)
        return _Looked(made(found), words="every step (key frames lie too far apart to say where)")
    seconds = sum(last - first for first, last in spans) / hertz
    words = f"every key frame, and every step of {seconds:.0f} of {found.duration:.0f} s"
    found, each = made(found), round(rate / hertz)
    spans = [(each * first, min(each * last, len(found))) for first, last in spans]
    return _Looked(found, spans, share, words)


def _joined(stretches: list[tuple[float, float]], rate: float) -> list[Span]:
    """Stretches in seconds as steps, in order, those that touch made one."""
    spans: list[Span] = []
    for start, end in sorted(stretches):
        first, last = max(0, math.floor(start * rate)), math.ceil(end * rate)
        if spans and first <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(last, spans[-1][1])
        else:
            spans.append((first, last))
    return spans


def _rates(
    clip: VideoQuery | None, known: list[VideoInfo], backbone: Backbone
) -> tuple[float, bool]:
    """Steps a second, no more than the slower file has pictures; whether pictures are sparse."""
    nominal = [info.fps_nominal for info in known if info.fps_nominal]
    slower = min(nominal, default=None)
    if backbone.clip_frames > 1:
        # A clip network has learned what motion looks like at full rate.
        return min(max(slower or 25.0, 1.0), 120.0), False
    seconds = STILL_SECONDS
    if clip is not None:
        end = known[1].duration if clip.end is None else clip.end
        # 10 s of a stream that states no length.
        seconds = 10.0 if end is None else max(end - (clip.start or 0.0), 0.1)
    rate = sampling_rate(seconds, slower)
    enough = clip is not None and round(seconds * rate / 2, 3) >= SPARSE_PICTURES
    return rate, enough and any((info.duration or 0.0) >= SPARSE_FROM for info in known)


def _localize(
    matcher: Relocalizer,
    rows: Tensor,
    looked: _Looked,
    around: VideoFeatures | None,
    top_k: int,
    nms_threshold: float,
    own: tuple[float, float] | None,
    pace: float | None,
) -> list[Moment]:
    """Moments in seconds; ``own`` is the query's stretch where it shall be no answer.

    ``pace`` is the duration of a step where motion counts.
    """
    long, step = looked.video, looked.video.seconds_per_step
    limit = matcher.max_windows
    blocks: Any = long.blocks
    edges, background, ends, shifts = None, None, np.zeros(1), np.zeros(1)
    if looked.spans:
        # A key frame stands until the next: it says what a film looks like, not how it moves.
        background = mean_row(blocks)
        blocks = torch.cat([long.blocks.range(a, b) for a, b in looked.spans])
        ends = np.cumsum([0, *(b - a for a, b in looked.spans)])
        shifts = np.array([a for a, _ in looked.spans]) - ends[:-1]
        share = max(limit // len(looked.spans), 100)
        proposals = torch.cat(
            [
                default_proposals(b - a, len(rows), limit=share) + int(end)
                for (a, b), end in zip(looked.spans, ends, strict=False)
            ]
        )
    else:
        if len(blocks) > _MANY_STEPS:
            # Films that stand still for hours: no longer than any window looks.
            blocks = blocks.shortened(6 * len(rows) + 16)
            edges = [np.append(0, each.repeats.cumsum()) for each in (blocks, long.blocks)]
        proposals = default_proposals(len(blocks), len(rows), limit=limit)
    video = None if around is None else around.blocks
    wanted = top_k if own is None else top_k + ROOM
    # In steps, and turned to seconds in double precision: 4.16, not 4.15999985.
    ranking = matcher.rank(
        rows, blocks, proposals, query_video=video, seconds_per_step=pace, background=background
    )
    found = ranking.best(len(blocks), wanted, nms_threshold=nms_threshold)

    def seconds(stretch: tuple[float, float]) -> tuple[float, float]:
        steps = np.array(stretch)
        if edges is not None:
            steps = np.interp(steps, edges[0], edges[1])
        elif looked.spans:  # inside the span that holds its middle
            span = int(np.searchsorted(ends[1:-1], steps.mean(), side="right"))
            steps = steps.clip(ends[span], ends[span + 1]) + shifts[span]
        first, last = (round(min(float(each) * step, long.duration), 6) for each in steps)
        return first, last

    answers = []
    for moment in found:
        start, end = seconds((moment.start, moment.end))
        before = moment.proposal and seconds(moment.proposal)
        answers.append(replace(moment, start=start, end=end, proposal=before))
    if own is None and not looked.spans:
        return answers[:top_k]
    # Where the clip itself is in the reference and left out, nothing is known about the rest; and
    # among places that were chosen because they look like the clip none stands out.
    if own is not None:
        answers = [each for each in answers if not same_place((each.start, each.end), own)]
    return [replace(moment, probability=None, presence=None) for moment in answers[:top_k]]


def _every(
    matcher: Relocalizer,
    rows: Tensor,
    long: VideoFeatures,
    around: VideoFeatures | None,
    examples: Sequence[Example],
    pace: float | None,
    least: float,
    own: tuple[float, float] | None,
    judged: Sequence[Judged],
) -> tuple[list[Moment], Count]:
    """All moments in seconds; those that were judged are left out, and counted where it was a yes.

    Arguments as of :func:`_localize`.
    """
    step = long.seconds_per_step
    known = [*judged, *([] if own is None else [(*own, True)])]
    found, count = occurrences(
        matcher,
        rows,
        long.blocks,
        query_video=None if around is None else around.blocks,
        examples=examples,
        seconds_per_step=pace,
        least=least,
        without=[(start / step, end / step, good) for start, end, good in known],
    )
    moments = [
        replace(
            each,
            start=round(min(each.start * step, long.duration), 6),
            end=round(min(each.end * step, long.duration), 6),
        )
        for each in found
    ]
    return moments, count.more(len(pinned(judged, ())))


def _explain(
    matcher: Relocalizer,
    rows: Tensor,
    looked: _Looked,
    around: VideoFeatures | None,
    moments: list[Moment],
    pace: float | None,
) -> Tensor | None:
    long = looked.video
    if not moments or looked.spans or len(rows) * len(long) > MAX_EXPLAINED:
        return None
    start, end = matcher.scored_span(moments[0])
    place = start / long.seconds_per_step, end / long.seconds_per_step
    video = None if around is None else around.blocks
    return matcher.explain(rows, long.blocks, place, video, pace)


def _step_map(rows: Tensor, reference: Rows, video: Rows | None) -> Tensor:
    own, centre = pair_centres(rows, reference, video)
    height, count = min(len(rows), MAP_ROWS), len(reference)
    queries = functional.normalize(functional.adaptive_avg_pool1d((rows - own).T, height).T, dim=1)
    # The columns of adaptive_max_pool1d, filled block by block: column c holds the steps from
    # floor(c n / C) to ceil((c + 1) n / C), so a step between two columns counts in both.
    columns = min(count, MAP_COLUMNS)
    pooled = torch.full((height, columns), -torch.inf)
    first = 0
    for similarity in cosine_blocks(queries, reference, centre):
        steps = torch.arange(first, first + similarity.shape[1])
        first += similarity.shape[1]
        column = steps * columns // count
        pooled.scatter_reduce_(1, column.expand_as(similarity), similarity, "amax")
        following = (column + 1).clamp(max=columns - 1)
        shared = following * count // columns <= steps
        similarity, following = similarity[:, shared], following[shared]
        pooled.scatter_reduce_(1, following.expand_as(similarity), similarity, "amax")
    return pooled
