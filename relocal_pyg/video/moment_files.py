"""Moments as text: by the clock, as JSON, CSV and subtitles."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relocal_pyg.io.write import replace_file, write_json

if TYPE_CHECKING:
    from relocal_pyg.moments import Moment

#: Below this probability a reference may not hold what is looked for.
DOUBT = 0.5


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
    judged = _judged(moments)
    heads = f"{'rank':>4} {'start s':>10} {'end s':>10} {'start':>13} {'end':>13} {'score':>7}"
    lines = [heads + (" probability" if judged else "")]
    lines += [
        f"{rank:>4} {moment.start:>10.2f} {moment.end:>10.2f} {clock(moment.start):>13} "
        f"{clock(moment.end):>13} {moment.score:>7.3f}"
        + (f" {moment.probability:>11.2f}" if judged else "")
        for rank, moment in enumerate(moments, start=1)
    ]
    return "\n".join(lines)


def presence_line(presence: float) -> str:
    """Whether the reference holds the action at all, in words.

    Example:
        >>> presence_line(0.8)
        'probability that the reference holds it: 0.80'
        >>> presence_line(0.2)
        'the reference may not hold it: probability 0.20, below 0.5'
    """
    if presence < DOUBT:
        return f"the reference may not hold it: probability {presence:.2f}, below {DOUBT:g}"
    return f"probability that the reference holds it: {presence:.2f}"


def write_moments_json(path: str | Path, moments: Sequence[Moment], **facts: Any) -> None:
    """Write moments, in seconds, and what they were found with; probabilities where known.

    Raises:
        OutputError: The file cannot be written.
    """
    unknown = set() if _judged(moments) else {"probability", "presence"}
    plain = [
        {name: value for name, value in asdict(moment).items() if name not in unknown}
        for moment in moments
    ]
    write_json(path, {**facts, "unit": "seconds", "moments": plain})


def write_moments_csv(path: str | Path, moments: Sequence[Moment]) -> None:
    """Write moments as a table: rank, start and end in seconds, score, probability where known.

    Raises:
        OutputError: The file cannot be written.
    """
    judged = ["probability"] if _judged(moments) else []
    with replace_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = ["start", "end", "score", *judged]
        writer.writerow(["rank", *names])
        for rank, moment in enumerate(moments, start=1):
            writer.writerow([rank, *(getattr(moment, name) for name in names)])


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


def _judged(moments: Sequence[Moment]) -> bool:
    return any(moment.probability is not None for moment in moments)


def _srt_time(seconds: float) -> str:
    hours, rest = clock(seconds).split(":", 1)
    return f"{int(hours):02d}:{rest.replace('.', ',')}"
