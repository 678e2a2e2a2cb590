"""What is looked for: a clip, words or a picture, as rows of a backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relocal_pyg.errors import UsageError
from relocal_pyg.io.read import parse_time
from relocal_pyg.models.examples import Example
from relocal_pyg.models.occurrences import is_known
from relocal_pyg.moments import Moment, seconds_to_steps
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.decode import probe
from relocal_pyg.video.extract import extract_video
from relocal_pyg.video.named import text_row
from relocal_pyg.video.rows import VideoFeatures

#: Seconds of the clip that words or a picture are looked for as.
STILL_SECONDS = 6.0


@dataclass(frozen=True)
class VideoQuery:
    """A clip to look for: a video file, or the stretch of one.

    Attributes:
        path: The video file.
        start: Seconds at which the clip starts in it, or the time as ``h:mm:ss``; its beginning
            where None.
        end: Seconds at which it ends; the end of the file where None.

    Raises:
        UsageError: A time is none, or the stretch is empty or negative.
    """

    path: str | Path
    start: float | None = None
    end: float | None = None

    @property
    def title(self) -> str:
        """For people."""
        return str(self.path)

    @property
    def whole(self) -> bool:
        """Whether all of the file is meant."""
        return self.start is None and self.end is None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        for name in ("start", "end"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, parse_time(getattr(self, name), name))
        first, last = self.start or 0.0, math.inf if self.end is None else self.end
        if not 0 <= first < last:
            raise UsageError(f"the query range {first:g} to {last:g} s is empty or negative")

    def check_start(self, duration: float) -> None:
        """Refuse a clip that begins after the end of its video, in seconds, with a UsageError."""
        if (start := self.start or 0.0) >= duration:
            why = f"the query starts at {start:g} s, its video ends at {duration:g} s"
            raise UsageError(why, file=self.path)


@dataclass(frozen=True)
class StillQuery:
    """Words or a picture to look for, as a clip of :data:`STILL_SECONDS` that shows nothing else.

    Attributes:
        text: Words, for a backbone that reads (:func:`relocal_pyg.video.named.load_named`).
        image: A picture file, where there are no words.

    Raises:
        UsageError: Not one of the two.
    """

    text: str | None = None
    image: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UsageError("words or a picture wanted to look for")

    @property
    def title(self) -> str:
        """For people."""
        return str(self.image) if self.text is None else f'"{self.text}"'


@dataclass(frozen=True)
class Asked:
    """What is looked for, as rows.

    Attributes:
        rows: Its features ``[m, F]``.
        span: Seconds of its file's clock, or of the clip that it stands for.
        seconds: Length of its file.
        around: Features of its file; None for words or a picture.
        whole: The same, where the clip is a part of it.
        stretch: The clip in seconds of the steps of ``around``.
    """

    rows: Tensor
    span: tuple[float, float]
    seconds: float
    around: VideoFeatures | None = None
    whole: VideoFeatures | None = None
    stretch: tuple[float, float] | None = None

    @classmethod
    def clip(cls, clip: VideoQuery, start: float, around: VideoFeatures) -> Asked:
        """A stretch of a file, of which ``around`` has the features; it starts at so many seconds.

        Raises:
            UsageError: The stretch begins after the end of the file.
        """
        begins = start if clip.start is None else clip.start
        until = around.duration if clip.end is None else clip.end
        ends, step = min(until, around.duration), around.seconds_per_step
        first, last = 0, len(around)
        if not clip.whole:
            clip.check_start(around.duration)
            span = torch.tensor([clip.start or 0.0, until], dtype=torch.float64)
            first, last = seconds_to_steps(span, step, last).tolist()
        # What is before the first picture of a file shows nothing.
        first = min(max(first, math.floor(begins / step + 1e-6)), last - 1)
        rows = around.blocks.range(first, last)
        bare = clip.whole or len(rows) == len(around)
        whole = None if bare else around
        stretch = first * step, last * step
        return cls(rows, (begins, ends), around.duration, around, whole, stretch)

    @classmethod
    def still(cls, query: StillQuery, backbone: Backbone, rate_hz: float) -> Asked:
        """Words or a picture.

        Raises:
            UsageError: The backbone reads no text.
            VideoError: The picture cannot be decoded.
        """
        if query.text is not None:
            row = text_row(backbone, query.text)
        else:
            row = extract_video(str(query.image), backbone, rate_hz).blocks.range(0, 1)
        steps = max(round(STILL_SECONDS * rate_hz / backbone.clip_stride), 1)
        return cls(row.float().repeat(steps, 1), (0.0, STILL_SECONDS), STILL_SECONDS)


def read_examples(
    also: Sequence[str | Path | VideoQuery],
    unlike: Sequence[str | Path | VideoQuery],
    extract: Callable[[Path], VideoFeatures],
) -> list[Example]:
    """Examples and counter-examples as rows; ``extract`` gives the features of a file."""
    examples = []
    for good, clips in ((True, also), (False, unlike)):
        for clip in clips:
            clip = clip if isinstance(clip, VideoQuery) else VideoQuery(Path(clip))
            path = Path(clip.path)
            asked = Asked.clip(clip, probe(path).start, extract(path))
            whole = None if asked.whole is None else asked.whole.blocks
            examples.append(Example(asked.rows, whole, good))
    return examples


#: Start and end in seconds of a reference, and whether it is what was looked for.
Judged = tuple[float, float, bool]


def said_no(
    unlike: Sequence[str | Path | VideoQuery], home_of: Callable[[Path], str | None]
) -> tuple[list[VideoQuery], list[tuple[str, Judged]]]:
    """Counter-examples of other videos, and those that are stretches of what is searched.

    ``home_of`` gives the name of a file that is searched, None of others.
    """
    others, here = [], []
    for each in unlike:
        clip = each if isinstance(each, VideoQuery) else VideoQuery(Path(each))
        home = None if clip.whole else home_of(Path(clip.path))
        if home is None:
            others.append(clip)
        else:
            last = math.inf if clip.end is None else clip.end
            here.append((home, (clip.start or 0.0, last, False)))
    return others, here


def within(judged: Judged, duration: float, video: str) -> Judged:
    """What was judged, as far as its video goes.

    Raises:
        UsageError: It begins after the end.
    """
    start, end, good = judged
    if start >= duration:
        reason = f"what was judged starts at {start:g} s, the video ends at {duration:g} s"
        raise UsageError(reason, file=video)
    return start, min(end, duration), good


def pinned(judged: Sequence[Judged], moments: Sequence[Moment]) -> list[Moment]:
    """What somebody said yes to, as answers above the others."""
    top = max((moment.score for moment in moments), default=1.0)
    presence = moments[0].presence if moments else None
    found: list[Moment] = []
    for start, end, good in judged:
        if good and not any(is_known((m.start, m.end), (start, end, good)) for m in found):
            found.append(Moment(start, end, top, probability=1.0, presence=presence))
    return found
