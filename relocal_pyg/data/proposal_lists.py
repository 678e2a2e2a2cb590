"""Lists of proposals as files, in the layout released with yjxiong/action-detection."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relocal_pyg.errors import ProposalError
from relocal_pyg.reading import id_problem, read_text
from relocal_pyg.storage import replace_file

Floats = np.ndarray[Any, np.dtype[np.float64]]
Whole = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class ProposalRecord:
    """One video of a proposal list; every time is a fraction of the video.

    Attributes:
        video_id: Its id.
        labels: Class of each proposal ``[M]``: that of the best ground truth, 0 for none.
        moments: Proposals ``[M, 2]``.
        overlaps: ``[M, 2]``: largest tIoU with a ground truth, and the largest share of the
            proposal that lies in one.
        truth_labels: Class of each ground truth ``[G]``, counted from 1.
        truths: Ground truths ``[G, 2]``.
        num_frames: Frames of the video; 1 where the list does not care.
        fps: Frames per second; 1 where the list does not care.
    """

    video_id: str
    labels: Whole
    moments: Floats
    overlaps: Floats
    truth_labels: Whole
    truths: Floats
    num_frames: float = 1
    fps: float = 1


def read_proposal_list(path: str | Path) -> dict[str, ProposalRecord]:
    r"""Read a "normalized proposal list" as released with yjxiong/action-detection.

    Per video: ``# number``, the id, frames, frames per second, the number of ground truths, lines
    ``label start end``, the number of proposals, lines ``label overlap share start end``.

    Args:
        path: The text file.

    Returns:
        Records by video id, in the order of the file. A video may have no proposals.

    Raises:
        ProposalError: The file is missing or malformed; the line is named.

    Example:
        >>> import tempfile
        >>> text = "# 1\nabc\n1\n1\n1\n7 0.1 0.4\n1\n7 0.5 1.0 0.1 0.25\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "list.txt"
        ...     _ = file.write_text(text)
        ...     read_proposal_list(file)["abc"].moments.tolist()
        [[0.1, 0.25]]
    """
    lines = _Lines(path)
    records: dict[str, ProposalRecord] = {}
    while not lines.at_end():
        lines.header()
        video_id = lines.next().strip()
        problem = id_problem(video_id) or ("occurs twice" if video_id in records else None)
        if problem:
            raise lines.error(f"the video id {problem}")
        num_frames, fps = lines.number(), lines.number()
        truths = lines.table(3)
        table = lines.table(5)
        records[video_id] = ProposalRecord(
            video_id=video_id,
            labels=table[:, 0].astype(np.int64),
            moments=table[:, 3:],
            overlaps=table[:, 1:3],
            truth_labels=truths[:, 0].astype(np.int64),
            truths=truths[:, 1:],
            num_frames=num_frames,
            fps=fps,
        )
    if not records:
        raise ProposalError("holds no videos", file=path)
    return records


def write_proposal_list(path: str | Path, records: Iterable[ProposalRecord]) -> None:
    """Write a list that :func:`read_proposal_list` reads back equal, all or nothing.

    Times are written with four decimals as in the released lists, with more where a time needs
    them.

    Args:
        path: The text file to write.
        records: Videos in the wanted order.

    Raises:
        ProposalError: A record's arrays do not fit together, or its id cannot be written.
        OutputError: The file cannot be written; what was there is intact.
    """
    blocks = []
    for number, record in enumerate(records, start=1):
        _check_record(record)
        head = f"# {number}\n{record.video_id}\n{record.num_frames:.17g}\n{record.fps:.17g}\n"
        truths = _rows(record.truth_labels, record.truths)
        table = _rows(record.labels, np.hstack([record.overlaps, record.moments]))
        blocks.append(f"{head}{len(record.truths)}\n{truths}{len(record.moments)}\n{table}")
    with replace_file(path) as temporary:
        temporary.write_text("".join(blocks), encoding="utf-8")


class _Lines:
    """The lines of a list, read one after the other, with errors that name the line."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._lines = read_text(path, ProposalError).rstrip().split("\n")
        self._at = 0

    def error(self, reason: str, line: int | None = None) -> ProposalError:
        """An error at a line, the last one read where None."""
        return ProposalError(reason, file=self.path, record=f"line {line or self._at}")

    def at_end(self) -> bool:
        """Whether there is nothing left."""
        return self._at >= len(self._lines) or self._lines == [""]

    def next(self) -> str:
        """The next line."""
        self._at += 1
        if self._at > len(self._lines):
            raise self.error("the list ends in the middle of a video")
        return self._lines[self._at - 1]

    def header(self) -> None:
        """Skip ``# number``."""
        if not self.next().startswith("#"):
            raise self.error("'# number' wanted, the start of a video")

    def number(self) -> float:
        """A line with one positive number; a whole one stays whole."""
        try:
            value = float(self.next())
        except ValueError:
            raise self.error("a number wanted") from None
        if not (math.isfinite(value) and value > 0):
            raise self.error("a positive number wanted")
        return int(value) if value.is_integer() else value

    def table(self, columns: int) -> Floats:
        """A line with a count, then that many lines of numbers: a class, then fractions."""
        text = self.next()
        if not text.strip().isdigit() or int(text) > len(self._lines) - self._at:
            raise self.error("the number of lines that follow wanted")
        count = int(text)
        rows = [self._row(columns) for _ in range(count)]
        return np.array(rows, dtype=np.float64).reshape(count, columns)

    def _row(self, columns: int) -> list[float]:
        try:
            row = [float(word) for word in self.next().split()]
        except ValueError:
            row = []
        if len(row) != columns or not all(0 <= value < math.inf for value in row):
            raise self.error(f"{columns} numbers wanted, none of them negative")
        if row[-2] > row[-1] or row[0] % 1:
            raise self.error("a whole number for the class and start <= end wanted")
        return row


def _check_record(record: ProposalRecord) -> None:
    problem = id_problem(record.video_id)
    if problem is None and record.video_id.split() != [record.video_id]:
        problem = "holds white space"
    if problem:
        raise ProposalError(f"the id {problem}", record=record.video_id or "''")
    count, truths = len(record.moments), len(record.truths)
    shapes = (record.labels.shape, record.moments.shape, record.overlaps.shape)
    if shapes != ((count,), (count, 2), (count, 2)):
        raise ProposalError(f"shapes {shapes} do not fit", record=record.video_id)
    if (record.truth_labels.shape, record.truths.shape) != ((truths,), (truths, 2)):
        raise ProposalError("ground truths and their labels do not fit", record=record.video_id)


def _rows(labels: Whole, values: Floats) -> str:
    return "".join(
        f"{label} {' '.join(map(_decimal, row))}\n"
        for label, row in zip(labels.tolist(), values.tolist(), strict=True)
    )


def _decimal(value: float) -> str:
    text = f"{value:.4f}"
    exact = float(text) == value
    return text if exact else np.format_float_positional(value, unique=True, min_digits=4)
