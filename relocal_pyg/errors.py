"""Every error that bad input can cause, under one base class, each naming file and record."""

from __future__ import annotations

import math
import numbers
from functools import partial
from pathlib import Path

#: Characters of a record's name and of a reason that are shown: some come from the file.
_LONG_RECORD, _LONG_REASON = 300, 2000


class RelocalError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as one line.

    Args:
        reason: What is wrong and what to do, in one line.
        file: The file concerned, where there is one.
        record: The record inside the file (a video id, a key, a line number).

    Example:
        >>> str(RelocalError("holds no steps", file="a.h5", record="v_1"))
        'a.h5: v_1: holds no steps'
    """

    def __init__(
        self, reason: str, *, file: str | Path | None = None, record: str | None = None
    ) -> None:
        self.reason = " ".join(str(reason).split())
        self.file = None if file is None else str(file)
        self.record = None if record is None else str(record)
        parts = (self.file, (self.record or "")[:_LONG_RECORD], self.reason[:_LONG_REASON])
        super().__init__(": ".join(ascii_line(part) for part in parts if part))

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), self.reason, file=self.file, record=self.record), ()


def ascii_line(text: str) -> str:
    r"""Make ``text`` safe to print on one line: control characters and surrogates are escaped.

    Example:
        >>> ascii_line("a\nb")
        'a\\nb'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


#: Features from which on sums of squares overflow.
TOO_LARGE = 1e15


def check_number(
    value: float,
    name: str,
    *,
    least: float = -math.inf,
    most: float = 1e12,
    above: float | None = None,
    whole: bool = False,
) -> float:
    """Let a number through that a caller, a command line, a request or a file gave, or say why not.

    Args:
        value: The number, as it came.
        name: What it is called where it came from.
        least: Smallest value allowed.
        most: Largest value allowed.
        above: Value that is too small, and what is above it by less than 1e-9.
        whole: Refuse fractions.

    Raises:
        UsageError: Not a number, not finite, not whole or out of range.

    Example:
        >>> check_number(3, "top_k", least=1, whole=True)
        3
        >>> check_number(float("nan"), "rate", above=0)
        Traceback (most recent call last):
        relocal_pyg.errors.UsageError: rate is nan, a number above 0 wanted
    """
    kind = numbers.Integral if whole else numbers.Real
    try:
        fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        fits = fits and least <= value <= most and (above is None or value >= above + 1e-9)
    except OverflowError:
        fits = False
    if fits:
        return int(value) if whole else value
    wanted = "a whole number" if whole else "a number"
    if above is not None:
        wanted += f" above {above:g}"
    elif least > -math.inf:
        wanted += f" of at least {least:g}"
    if isinstance(value, int | float) and value > most:
        wanted += f" and at most {most:g}"
    raise UsageError(f"{name} is {shorten(value)}, {wanted} wanted")


def check_switch(value: bool, name: str) -> None:
    """Refuse what is neither True nor False with a ``UsageError``: the text "no" would be True."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shorten(value)}, true or false wanted")


def shorten(value: object) -> str:
    """What was given, for an error's text: at most 40 characters, whatever it is."""
    huge = isinstance(value, int) and abs(value) > 10**40  # Python refuses to print all its digits
    return f"{'-' if value < 0 else ''}10^40 and more" if huge else str(value)[:40]  # type: ignore[operator]


class UsageError(RelocalError, ValueError):
    """The call itself is wrong: an unknown name, an option out of range, a missing argument.

    As everywhere in Python, a wrong argument is a ``ValueError`` too.
    """


class FeatureError(RelocalError):
    """A feature file or a feature array cannot be used."""


class AnnotationError(RelocalError):
    """An annotation file or one of its records cannot be used."""


class ProposalError(RelocalError):
    """A proposal list or a set of proposals cannot be used."""


class VideoError(RelocalError):
    """A video file cannot be decoded."""


class CheckpointError(RelocalError):
    """A checkpoint is damaged, incomplete, of a newer version or of another model."""


class SearchIndexError(RelocalError):
    """A search index is damaged or was made by another model."""


class OutputError(RelocalError):
    """A result could not be written; what was there before is intact."""


class RunError(RelocalError):
    """A run failed although its input was good, such as a loss that stopped being finite."""
