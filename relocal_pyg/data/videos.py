"""Videos and their actions, and the checks that every annotation format shares. Seconds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocal_pyg.data.quarantine import Quarantine
from relocal_pyg.errors import AnnotationError
from relocal_pyg.reading import id_problem


@dataclass(frozen=True, order=True)
class Segment:
    """One action of a video.

    Attributes:
        start: Start in seconds.
        end: End in seconds, exclusive.
        label: Class name.
    """

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Video:
    """What is known about one video.

    Attributes:
        video_id: Key of the video in the feature file.
        duration: Seconds, or None where the annotation does not say.
        segments: Actions, sorted by start.
        subset: Official subset such as ``"training"``; may be empty.
        subject: Who performs, where the annotation says so.
    """

    video_id: str
    duration: float | None
    segments: tuple[Segment, ...]
    subset: str = ""
    subject: str | None = None


class VideoCollector:
    """Checks videos one by one and sets aside what cannot be used.

    Args:
        path: The annotation file, for messages.
        quarantine: Takes what is set aside; where None, a warning counts it at the end.
        clip: Cut segments that leave the video at its borders instead of setting them aside.
        as_published: Check only that times are finite and labels text.
    """

    def __init__(
        self,
        path: str | Path,
        quarantine: Quarantine | None,
        clip: bool,
        as_published: bool = False,
    ) -> None:
        self.path, self.clip, self.as_published = path, clip, as_published
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self._warn = quarantine is None
        self._videos: dict[str, Video] = {}
        self._segments = 0
        self._rejected = 0

    def reject(self, record: str, reason: str) -> None:
        """Set a record aside."""
        self._rejected += 1
        self.quarantine.add(self.path, record, reason)

    def video(
        self,
        video_id: str,
        duration: Any,
        rows: Sequence[tuple[Any, Any, Any]],
        *,
        subset: str,
        subject: str | None = None,
        names: Sequence[str] | None = None,
        needs_duration: bool = True,
    ) -> None:
        """Check a video and add what is usable of it.

        Args:
            video_id: Its id.
            duration: Seconds, as the file gives them.
            rows: Start, end (seconds) and label of each segment, as the file gives them.
            subset: Official subset.
            subject: Who performs.
            names: What to call each row in the report; numbered where None.
            needs_duration: Whether a missing duration is a defect.
        """
        problem = id_problem(video_id)
        if problem:
            self.reject(video_id or "''", f"the id {problem}")
            return
        if not needs_duration and duration is None:
            length = math.inf
        elif not _is_number(duration) or not duration > 0:
            self.reject(video_id, f"the duration is {_show(duration)}: seconds wanted")
            return
        else:
            length = float(duration)
        kept: dict[Segment, None] = {}
        for number, (start, end, label) in enumerate(rows):
            name = f"{video_id} segment {number}"
            if names is not None:
                name = f"{names[number]} ({video_id})"
            problem = self._problem(start, end, label, length)
            if problem:
                self.reject(name, problem)
                continue
            if self.as_published:
                segment = Segment(float(start), float(end), label)
            else:
                segment = Segment(max(float(start), 0.0), min(float(end), length), label)
            if segment in kept and not self.as_published:
                self.quarantine.add(self.path, name, "is a duplicate: counted once")
                continue
            kept[segment] = None
        self._segments += len(kept)
        self._videos[video_id] = Video(
            video_id,
            None if math.isinf(length) else length,
            tuple(sorted(kept)),
            subset,
            subject,
        )

    def finish(self) -> dict[str, Video]:
        """Give the videos.

        Raises:
            AnnotationError: There is no usable action.
        """
        if not self._segments:
            reason = "holds no action"
            if self._rejected:
                first = self.quarantine.records[-self._rejected]
                reason = f"no record can be used; the first: {first.record}: {first.reason}"
            raise AnnotationError(reason, file=self.path)
        if self._warn and self.quarantine.records:
            warnings.warn(self.quarantine.summary(), stacklevel=3)
        return self._videos

    def _problem(self, start: Any, end: Any, label: Any, length: float) -> str | None:
        if not _is_number(start) or not _is_number(end):
            return f"times are {_show(start)}, {_show(end)}: two numbers of seconds wanted"
        if not isinstance(label, str) or not label.strip():
            return f"the label is {_show(label)}: text wanted"
        if self.as_published:
            return None
        if start >= end:
            return f"start {start} is not before end {end}"
        if start >= length or end <= 0:
            return f"[{start}, {end}) lies outside the video of {length} s"
        if not self.clip and (start < 0 or end > length):
            return f"[{start}, {end}) leaves the video of {length} s: clip to accept it"
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of float
        return False


def _show(value: Any) -> str:
    return repr(value)[:40]
