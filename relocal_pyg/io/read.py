"""Reading what strangers wrote: every defect becomes one error with its file and line."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from relocal_pyg.errors import RelocalError, UsageError, check_number, shorten

#: Larger text files are refused before they are read, and texts that take more memory.
MAX_BYTES = 64 << 20
MAX_TEXT_MEMORY = 128 << 20
#: Lines of a list that is read by them.
MAX_LINES = 1_500_000
#: What the values of a JSON text may take in memory, estimated from its marks before it is parsed:
#: an object, a list, an item and half a text.
MAX_JSON_MEMORY = 192 << 20
_MARK_MEMORY = {"{": 300, "[": 100, ",": 40, '"': 35}

#: Arrays above this size have to be stored, not only declared: this many bytes a byte on the disk.
_SMALL, _MAX_RATIO = 16 << 20, 4
#: Bytes of an array's header.
_MAX_HEADER = 1 << 16

#: Where JSON is nested too deep for Python, the line that first reaches this depth is named.
_DEPTH = 500
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s"{}\[\],:]+')
_COLON = re.compile(r"\s*:")

#: What shows nothing at the ends of a name: blanks, and marks that come along when it is copied.
NOTHING = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200e\u200f\u2060\ufeff"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,6}):(?=\d\d:))?(\d{1,6}):([0-5]\d(?:[.,]\d*)?)", re.ASCII)


def read_text(path: str | Path, error: type[RelocalError]) -> str:
    """Read a UTF-8 text file, or a UTF-16 one that says so; a byte order mark is dropped.

    Raises:
        RelocalError: Of kind ``error``: missing, not a regular file, too large, or not UTF-8.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise error("is not a regular file", file=path)
        if status.st_size > MAX_BYTES:
            raise error(f"is over {MAX_BYTES} bytes of text: split it", file=path)
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise error("does not exist", file=path) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"cannot be read ({reason})", file=path) from None
    # What spreadsheets call Unicode text begins with the byte order mark of UTF-16.
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    # One character of another script makes every character of a Python text wider.
    width = 4 if re.search(rb"[\xf0-\xff]", data) else 2 if re.search(rb"[\xc4-\xef]", data) else 1
    if width * len(data) > MAX_TEXT_MEMORY:
        raise error(f"takes over {MAX_TEXT_MEMORY >> 20} MiB as text: split it", file=path)
    try:
        text = data.decode(encoding)
        return text if "\n" in text else text.replace("\r", "\n")  # lines of an old Macintosh
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        reason = "is not UTF-8 text: save it as that"
        raise error(reason, file=path, record=f"line {line}") from None


def read_json(path: str | Path, error: type[RelocalError], *, allow_nan: bool = False) -> Any:
    """Read JSON strictly: duplicate keys and numbers that are not finite are errors.

    With ``allow_nan`` ``NaN``, ``Infinity`` and overflowing numbers are let through, for a caller
    that checks each number itself.

    Raises:
        RelocalError: Of kind ``error``, naming the line; or as :func:`read_text`.
    """
    text = read_text(path, error)
    if not text or text.isspace():
        raise error("is empty", file=path)
    if json_memory(text) > MAX_JSON_MEMORY:
        reason = f"holds more values than fit {MAX_JSON_MEMORY >> 20} MiB: split it"
        raise error(reason, file=path)
    hooks: dict[str, Any] = {"object_pairs_hook": _unique}
    if not allow_nan:
        hooks |= {"parse_constant": _finite, "parse_float": _finite}
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError as problem:
        reason, line = f"is not JSON: {problem.msg}", problem.lineno
    except (ValueError, RecursionError) as problem:
        reason, line = _locate(text, allow_nan) or (str(problem), 0)
    raise error(reason, file=path, record=f"line {line}" if line else None)


def json_memory(text: str) -> int:
    """Bytes that the values of a JSON text may take in memory."""
    return sum(text.count(mark) * size for mark, size in _MARK_MEMORY.items())


def lines_of(text: str) -> Iterator[str]:
    r"""Lines of a text one after the other, each with its end: a list of all takes more memory.

    Example:
        >>> list(lines_of("a\n\nb"))
        ['a\n', '\n', 'b']
    """
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def read_lines(path: str | Path, error: type[RelocalError]) -> Iterator[str]:
    """Lines of a text file, without the blanks around them.

    Raises:
        RelocalError: Of kind ``error``: see :func:`read_text`, or there are too many.
    """
    text = read_text(path, error)
    if text.count("\n") >= MAX_LINES:
        raise error(f"has over {MAX_LINES:,} lines: split it", file=path)
    return map(str.strip, lines_of(text))


def read_array(
    path: str | Path, error: type[RelocalError], *, mapped: bool = False
) -> np.ndarray[Any, Any]:
    """Read an array that ``numpy.save`` wrote; what it declares has to be there, and no pickle is.

    Where ``mapped``, its rows stay on the disk, to be read where they are needed.

    Returns:
        Plain numbers in this machine's byte order.

    Raises:
        RelocalError: Of kind ``error``: missing, no such file, damaged, of another type than plain
            numbers, or declaring more than is stored.
    """
    if not Path(path).is_file():
        raise error("does not exist or is not a regular file", file=path)
    try:
        rows = map_array(path)
        stored = os.stat(path).st_blocks * 512
    except Exception as problem:  # numpy raises whatever the parser of its header meets
        raise error(f"is not a readable .npy file of numbers ({problem})", file=path) from None
    if rows.dtype.kind not in "biuf":
        raise error(f"holds {shorten(rows.dtype)}: plain numbers wanted", file=path)
    if rows.nbytes > max(_SMALL, _MAX_RATIO * stored):
        raise error(f"declares {rows.nbytes} bytes and stores {stored}", file=path)
    if mapped and rows.dtype.isnative:
        return rows
    return np.array(rows, dtype=rows.dtype.newbyteorder("="))


def map_array(path: str | Path) -> np.ndarray[Any, Any]:
    """An array file, mapped: one that declares more than it holds is refused, nothing allocated.

    Raises:
        Exception: Whatever numpy raises that meets a damaged header.
    """
    with open(path, "rb") as file:
        head = file.read(12)
    # Version 1 keeps the length of its header in two bytes. numpy reads four gigabytes of header
    # before it refuses them.
    if head[6:7] > b"\x01" and int.from_bytes(head[8:12], "little") > _MAX_HEADER:
        raise ValueError(f"a header of over {_MAX_HEADER} bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's advice about headers of Python 2
        return np.lib.format.open_memmap(path, mode="r")


def parse_number(text: str) -> float:
    """A number as people write it: decimal digits, a point, an exponent.

    Raises:
        UsageError: Anything else, such as what Python alone takes for a number (``1_0``, ``nan``).
    """
    plain = text.strip()
    if not _NUMBER.fullmatch(plain):
        raise UsageError(f" is {shorten(text)!r}, a number wanted")
    return int(plain) if plain.lstrip("+-").isdigit() and len(plain) < 30 else float(plain)


def parse_time(text: object, name: str = "time") -> float:
    """Seconds from seconds, ``m:ss`` or ``h:mm:ss``, each with or without a fraction.

    Args:
        text: As a person or a file wrote it, and as this package prints it.
        name: What it is called where it came from.

    Raises:
        UsageError: Not such a time, or not finite.

    Example:
        >>> parse_time("4.5"), parse_time("0:04"), parse_time("1:02:03.500")
        (4.5, 4.0, 3723.5)
    """
    number: float = math.nan
    if isinstance(text, int | float) and not isinstance(text, bool):
        number = text
    elif _NUMBER.fullmatch(plain := str(text).strip()):
        number = float(plain)
    elif (match := _CLOCK.fullmatch(plain)) and (not match[1] or int(match[2]) < 60):
        number = int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3].replace(",", "."))
    try:
        return float(check_number(number, name))
    except UsageError:
        wanted = "seconds or h:mm:ss wanted, such as 83.5 or 1:23.5"
        raise UsageError(f"{name} is {shorten(text)!r}, {wanted}") from None


_STRETCH = re.compile(r"(.+?):([0-9:.,]+)-([0-9:.,]+)", re.DOTALL)


def parse_stretch(text: str) -> tuple[str, float | None, float | None]:
    """A file, and seconds of it where ``FILE:FROM-TO`` says so; a file of that name comes first.

    Raises:
        UsageError: FROM or TO is no time.

    Example:
        >>> parse_stretch("a.mp4:1:02-1:05.5"), parse_stretch("a.mp4")
        (('a.mp4', 62.0, 65.5), ('a.mp4', None, None))
    """
    match = None if os.path.exists(text) else _STRETCH.fullmatch(text)
    if match is None:
        return text, None, None
    start, end = (parse_time(each, f"a time of {text!r}") for each in match.groups()[1:])
    return match[1], start, end


def version_of(file: str | Path) -> tuple[int, int] | None:
    """Size in bytes and time of change in nanoseconds of a file; None where there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # ValueError: no name of a file
        return None
    return status.st_size, status.st_mtime_ns


def id_problem(video_id: Any) -> str | None:
    r"""Say why a video id must not be used as a name, or None where it may.

    Example:
        >>> id_problem("../etc/passwd")
        "holds '/'"
        >>> id_problem("répas-01") is None
        True
    """
    if not isinstance(video_id, str):
        return "is no text"
    if video_id == "":
        return "is empty"
    if video_id in (".", ".."):
        return "is a folder name"
    for char in "/\\\0":
        if char in video_id:
            return f"holds {char!r}"
    try:
        size = len(video_id.encode("utf-8"))
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    return "is over 255 bytes" if size > 255 else None


def tidy(text: str) -> str:
    """Composed text (Unicode NFC) without what shows nothing at its ends: blanks, marks, BOMs."""
    return unicodedata.normalize("NFC", text.strip(NOTHING))


def refuse_twins(ids: Iterable[str], path: str | Path, error: type[RelocalError]) -> None:
    """Refuse ids that look the same on screen.

    Raises:
        RelocalError: Of kind ``error``: two ids differ in Unicode normalisation alone.
    """
    seen: dict[str, str] = {}
    for video_id in ids:
        plain = tidy(video_id)
        if plain in seen:
            reason = "two ids look the same and differ in blanks or Unicode normalisation: "
            reason += f"{seen[plain]!a} and {video_id!a}"
            raise error(reason, file=path, record=video_id)
        seen[plain] = video_id


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is too large")
    return value


def _locate(text: str, allow_nan: bool) -> tuple[str, int] | None:
    """The first defect, other than of syntax, that the parser met in a text, and its line."""
    digits = sys.get_int_max_str_digits() or math.inf
    seen: list[set[str]] = []
    for match in _TOKEN.finditer(text):
        token, reason = match.group(), None
        if token in "{[":
            seen.append(set())
            if len(seen) > _DEPTH:
                reason = "is nested too deep"
        elif token in "}]":
            seen.pop()
        elif token[0] == '"':
            if _COLON.match(text, match.end()):
                key = json.loads(token, strict=False)
                if key in seen[-1]:
                    reason = f"key {key[:100]!r} occurs twice in one object"
                seen[-1].add(key)
        elif token.lstrip("-").isdigit():
            if len(token.lstrip("-")) > digits:
                reason = f"a number has {len(token)} digits"
        elif not (allow_nan or token in ("true", "false", "null")) and not _is_finite(token):
            reason = f"{token[:40]} is not a finite number"
        if reason:
            return reason, text.count("\n", 0, match.start()) + 1
    return None


def _is_finite(token: str) -> bool:
    try:
        return math.isfinite(float(token))
    except ValueError:
        return False
