"""From two video files to ranked moments: the whole way, in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.matchers import Blocks, ContrastMatcher, mean_row, step_similarity
from relocal_pyg.moments import Moment, seconds_to_steps
from relocal_pyg.video.backbones import Backbone, EfficientNetLite0
from relocal_pyg.video.decode import VideoInfo, probe
from relocal_pyg.video.extract import (
    FeatureCache,
    Progress,
    VideoFeatures,
    extract_video,
    sampling_rate,
)

#: Rows and columns of the largest similarity map.
MAP_ROWS, MAP_COLUMNS = 64, 640
#: Meetings of a query step with a reference step that are explained at most: 40 MB.
MAX_EXPLAINED = 10_000_000
#: Windows of the contrast matcher: at every step for an hour at 5 Hz, sparser beyond.
MAX_WINDOWS = 100_000


@dataclass(frozen=True)
class VideoQuery:
    """A clip to look for: a video file, or the stretch of one.

    Attributes:
        path: The video file.
        start: Seconds at which the clip starts in it; its beginning where None.
        end: Seconds at which it ends; the end of the file where None.

    Raises:
        UsageError: The stretch is empty or negative.
    """

    path: Path
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        first = 0.0 if self.start is None else self.start
        last = float("inf") if self.end is None else self.end
        if not (0 <= first < last) or first == float("inf"):
            raise UsageError(f"the query range {first:g} to {last:g} s is empty or negative")


@dataclass(frozen=True)
class Found:
    """What :func:`find_moments` gives.

    Attributes:
        moments: Best first, in seconds of the reference.
        query: What was looked for.
        reference: Where.
        span: Start and end of the clip in seconds of the query's file.
        similarity: float32 ``[n]``, similarity of each reference step to the query in ``[-1, 1]``
            (:func:`relocal_pyg.models.matchers.step_similarity`), whichever model ranked.
        step_map: float32 ``[a, b]``: cosine of centred query rows with centred reference rows. Long
            videos are pooled: neighbouring query steps are averaged, of neighbouring reference
            steps the most similar is kept.
        seconds_per_step: Duration of a reference step.
        query_seconds: Length of the query's whole file.
        reference_seconds: Length of the reference.
        matcher: Title of the model.
        settings: Everything else that decided the answer, plain values.
        problems: Damage met in the files, one line each.
        explanation: ``[m, n]``, what each meeting of a query step with a reference step added to
            the score of the best moment; None where it was not asked for, or nobody can say.
    """

    moments: list[Moment]
    query: VideoQuery
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


def find_moments(
    query: str | Path | VideoQuery,
    reference: str | Path,
    *,
    model: Relocalizer | None = None,
    backbone: Backbone | None = None,
    top_k: int = 5,
    rate_hz: float | None = None,
    nms_threshold: float = 0.2,
    cache: FeatureCache | None = None,
    progress: Callable[[str], Progress] | None = None,
    explain: bool = False,
) -> Found:
    """Find the moments of a video that mean the same as a clip.

    Both are decoded at a rate that follows the clip's length
    (:func:`relocal_pyg.video.extract.sampling_rate`) and turned into features by one backbone.
    Where the clip is a stretch of a longer video, the whole of that is decoded: what surrounds the
    clip says what is special about it, and is worth a fifth more right answers.

    Args:
        query: The clip: a video file, or a :class:`VideoQuery` for a stretch of one.
        reference: The long video.
        model: The training-free :class:`relocal_pyg.models.ContrastMatcher` where None.
        backbone: EfficientNet-Lite0 where None. A trained model needs the one it was trained with.
        top_k: How many moments at most.
        rate_hz: Frames per second given to the backbone, instead of what follows from the query.
        nms_threshold: Of two moments with a larger tIoU only the better is given. Low, because
            people want other places, not other cuts of one place.
        cache: Features of videos met before.
        progress: Called with a title for each file; what it gives is told the seconds done.
        explain: Say which steps made the score of the best moment; no more than
            :data:`MAX_EXPLAINED` meetings of steps are explained.

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
    if top_k < 1:
        raise UsageError(f"top_k is {top_k}, at least 1 wanted")
    clip = query if isinstance(query, VideoQuery) else VideoQuery(Path(query))
    # Before anything takes long.
    known = probe(clip.path), probe(reference)
    backbone = EfficientNetLite0() if backbone is None else backbone
    matcher = ContrastMatcher() if model is None else model
    check_width(matcher, backbone)
    rate = _rate(clip, known, backbone) if rate_hz is None else rate_hz
    problems: list[str] = []

    def extract(path: Path) -> VideoFeatures:
        return extract_video(
            path,
            backbone,
            rate,
            cache=cache,
            progress=None if progress is None else progress(path.name),
            report=lambda problem: problems.append(f"{path}: {problem}"),
        )

    around = extract(Path(clip.path))
    same = Path(clip.path).resolve() == Path(reference).resolve()
    long = around if same else extract(Path(reference))
    first, last = clip_steps(clip, around)
    rows = around.features[first:last]
    whole = around if len(rows) < len(around.features) else None
    video = None if whole is None else whole.blocks
    moments = _localize(matcher, rows, long, whole, top_k, nms_threshold)
    return Found(
        moments=moments,
        query=clip,
        reference=Path(reference),
        span=(
            clip.start or 0.0,
            around.duration if clip.end is None else min(clip.end, around.duration),
        ),
        similarity=step_similarity(rows, long.blocks, video),
        step_map=_step_map(rows, long.blocks, video),
        seconds_per_step=long.seconds_per_step,
        query_seconds=around.duration,
        reference_seconds=long.duration,
        matcher=matcher.title,
        settings={
            "backbone": backbone.name,
            "frames_per_second": rate,
            "seconds_per_step": long.seconds_per_step,
            "query_steps": len(rows),
            "reference_steps": len(long.features),
            "query_centred_by": "its own video" if video is not None else "the reference",
        },
        problems=tuple(problems),
        explanation=_explain(matcher, rows, long, whole, moments) if explain else None,
    )


def check_width(
    model: Relocalizer, backbone: Backbone, checkpoint: str | Path | None = None
) -> None:
    """Refuse a model that takes other features than a backbone gives.

    Args:
        model: The model.
        backbone: The network that its features come from.
        checkpoint: Where the model came from, named in the error.

    Raises:
        FeatureError: The widths differ.
    """
    wanted = getattr(model, "in_channels", None)
    if wanted is not None and wanted != backbone.dim:
        raise FeatureError(
            f"the model was trained on {wanted} channels, {backbone.name} gives {backbone.dim}: "
            "use the backbone (and PCA) of its training",
            file=checkpoint,
        )


def _rate(clip: VideoQuery, known: tuple[VideoInfo, VideoInfo], backbone: Backbone) -> float:
    """One rate for both files, no finer than the slower."""
    nominal = [info.fps_nominal for info in known if info.fps_nominal]
    slower = min(nominal, default=None)
    if backbone.clip_frames > 1:
        # A clip network has learned what motion looks like at full rate.
        return min(max(slower or 25.0, 1.0), 120.0)
    end = known[0].duration if clip.end is None else clip.end
    if end is None:  # a stream that states no length
        return sampling_rate(10.0, slower)
    return sampling_rate(max(end - (clip.start or 0.0), 0.1), slower)


def clip_steps(clip: VideoQuery, video: VideoFeatures) -> tuple[int, int]:
    """The steps ``[first, last)`` of a clip inside its file.

    Raises:
        UsageError: The clip begins after the end of the file.
    """
    if clip.start is None and clip.end is None:
        return 0, len(video.features)
    first = clip.start or 0.0
    if first >= video.duration:
        raise UsageError(
            f"the query starts at {first:g} s, its video ends at {video.duration:g} s",
            file=clip.path,
        )
    last = video.duration if clip.end is None else clip.end
    span = torch.tensor([first, last], dtype=torch.float64)
    begin, stop = seconds_to_steps(span, video.seconds_per_step, len(video.features)).tolist()
    return begin, stop


def _localize(
    matcher: Relocalizer,
    rows: Tensor,
    long: VideoFeatures,
    around: VideoFeatures | None,
    top_k: int,
    nms_threshold: float,
) -> list[Moment]:
    steps = len(long.features)
    # In steps, and turned to seconds in double precision: 4.16, not 4.15999985.
    if isinstance(matcher, ContrastMatcher):
        # A window costs it nothing, and it takes rows from their file.
        proposals = default_proposals(steps, len(rows), limit=MAX_WINDOWS)
        video = None if around is None else around.blocks
        ranking = matcher.rank(rows, long.blocks, proposals, query_video=video)
        found = ranking.best(steps, top_k, nms_threshold=nms_threshold)
        found = matcher.judge(ranking, found, rows, long.blocks, video)
    else:
        found = matcher.localize(
            rows,
            long.features,
            proposals=default_proposals(steps, len(rows)),
            top_k=top_k,
            query_video=None if around is None else around.features,
            nms_threshold=nms_threshold,
        )
    step = long.seconds_per_step

    def seconds(steps: float) -> float:
        return round(min(steps * step, long.duration), 6)

    return [
        replace(
            moment,
            start=seconds(moment.start),
            end=seconds(moment.end),
            proposal=moment.proposal and (seconds(moment.proposal[0]), seconds(moment.proposal[1])),
        )
        for moment in found
    ]


def _explain(
    matcher: Relocalizer,
    rows: Tensor,
    long: VideoFeatures,
    around: VideoFeatures | None,
    moments: list[Moment],
) -> Tensor | None:
    if not moments or len(rows) * len(long.features) > MAX_EXPLAINED:
        return None
    start, end = matcher.scored_span(moments[0])
    place = start / long.seconds_per_step, end / long.seconds_per_step
    video = None if around is None else around.features
    return matcher.explain(rows, long.features, place, video)


def _step_map(rows: Tensor, reference: Tensor | Blocks, video: Tensor | Blocks | None) -> Tensor:
    mean = mean_row(reference)
    centre = mean if video is None else mean_row(video)
    height, count = min(len(rows), MAP_ROWS), len(reference)
    queries = functional.normalize(
        functional.adaptive_avg_pool1d((rows - centre).T, height).T, dim=1
    )
    # The columns of adaptive_max_pool1d, filled block by block: column c holds the steps from
    # floor(c n / C) to ceil((c + 1) n / C), so a step between two columns counts in both.
    columns = min(count, MAP_COLUMNS)
    pooled = torch.full((height, columns), -torch.inf)
    first = 0
    for block in reference.split(512):
        similarity = queries @ functional.normalize(block - mean, dim=1).T
        steps = torch.arange(first, first + len(block))
        first += len(block)
        column = steps * columns // count
        pooled.scatter_reduce_(1, column.expand_as(similarity), similarity, "amax")
        following = (column + 1).clamp(max=columns - 1)
        shared = following * count // columns <= steps
        similarity, following = similarity[:, shared], following[shared]
        pooled.scatter_reduce_(1, following.expand_as(similarity), similarity, "amax")
    return pooled
