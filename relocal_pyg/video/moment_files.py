"""Moments as text: by the clock, as JSON, CSV and subtitles."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relocal_pyg.storage import replace_file, write_json

if TYPE_CHECKING:
    from relocal_pyg.moments import Moment


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.mmm.

    Example:
        >>> clock(3723.5)
        '1:02:03.500'
    """
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def moments_table(moments: Sequence[Moment]) -> str:
    """Ranked moments as lines of text, in seconds and by the clock."""
    lines = [f"{'rank':>4} {'start s':>10} {'end s':>10} {'start':>13} {'end':>13} {'score':>7}"]
    lines += [
        f"{rank:>4} {moment.start:>10.2f} {moment.end:>10.2f} {clock(moment.start):>13} "
        f"{clock(moment.end):>13} {moment.score:>7.3f}"
        for rank, moment in enumerate(moments, start=1)
    ]
    return "\n".join(lines)


def write_moments_json(path: str | Path, moments: Sequence[Moment], **facts: Any) -> None:
    """Write moments, in seconds, and what they were found with.

    Raises:
        OutputError: The file cannot be written.
    """
    write_json(path, {**facts, "unit": "seconds", "moments": [asdict(m) for m in moments]})


def write_moments_csv(path: str | Path, moments: Sequence[Moment]) -> None:
    """Write moments as a table: rank, start and end in seconds, score.

    Raises:
        OutputError: The file cannot be written.
    """
    with replace_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["rank", "start", "end", "score"])
        for rank, moment in enumerate(moments, start=1):
            writer.writerow([rank, moment.start, moment.end, moment.score])


def write_moments_srt(path: str | Path, moments: Sequence[Moment]) -> None:
    """Write moments as subtitles (SubRip) of the reference, in order of time.

    Raises:
        OutputError: The file cannot be written.
    """
    ranked = sorted(enumerate(moments, start=1), key=lambda item: (item[1].start, item[0]))
    cues = [
        f"{number}\n{_srt_time(moment.start)} --> {_srt_time(moment.end)}\n"
        f"moment {rank}, score {moment.score:.3f}\n"
        for number, (rank, moment) in enumerate(ranked, start=1)
    ]
    with replace_file(path) as temporary:
        temporary.write_text("\n".join(cues), encoding="utf-8")


def _srt_time(seconds: float) -> str:
    hours, rest = clock(seconds).split(":", 1)
    return f"{int(hours):02d}:{rest.replace('.', ',')}"
