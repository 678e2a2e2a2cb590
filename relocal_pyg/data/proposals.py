"""Where the proposals of a reference come from: a list, or windows like training moments."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.data.features import spellings
from relocal_pyg.data.items import Item
from relocal_pyg.errors import ProposalError, UsageError, check_number
from relocal_pyg.io.read import MAX_LINES, id_problem, lines_of, read_text, tidy
from relocal_pyg.io.write import replace_text
from relocal_pyg.moments import nms

#: Window lengths of :func:`default_proposals` as multiples of the query's length.
QUERY_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)


def sliding_windows(
    num_steps: int, lengths: Sequence[int], stride_fraction: float = 1 / 3
) -> Tensor:
    """Windows ``[M, 2]`` (steps) of several lengths, each moved by a fraction of its own length.

    The last window of every length ends with the video. Lengths over ``num_steps`` give one window,
    the whole video; there is always at least that one.

    Args:
        num_steps: Steps of the reference, at least 1.
        lengths: Window lengths in steps.
        stride_fraction: Stride as a share of the window's length; at least one step.

    Example:
        >>> sliding_windows(5, [3], 1 / 3).tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        >>> sliding_windows(2, [4]).tolist()
        [[0.0, 2.0]]
    """
    num_steps = int(check_number(num_steps, "num_steps", least=1, whole=True))
    grids = []
    for length in {min(max(int(length), 1), num_steps) for length in lengths} or {num_steps}:
        stride = max(1, round(length * stride_fraction))
        starts = torch.arange(0, num_steps - length + 1, stride)
        starts = torch.cat([starts, torch.tensor([num_steps - length])])
        grids.append(torch.stack([starts, starts + length], dim=1))
    return torch.unique(torch.cat(grids), dim=0).float()


def geometric_lengths(shortest: int, longest: int, ratio: float = 1.3) -> list[int]:
    """Whole window lengths from ``shortest`` to ``longest``, each about ``ratio`` times the last.

    Raises:
        UsageError: ``shortest`` is below 1 or ``ratio`` not above 1.

    Example:
        >>> geometric_lengths(4, 16, 2.0)
        [4, 8, 16]
    """
    if shortest < 1 or ratio <= 1:
        raise UsageError(f"shortest={shortest}, ratio={ratio}: at least 1 and above 1 wanted")
    lengths, length = [], float(shortest)
    while length < longest:
        lengths.append(round(length))
        length *= ratio
    return sorted({*lengths, longest})


def default_proposals(num_steps: int, query_steps: int, limit: int = 4000) -> Tensor:
    """Windows ``[M, 2]`` of the query's length times each of :data:`QUERY_SCALES`, at every step.

    In a long video they are thinned to about ``limit``: strides grow until they fit, but never past
    a window's own length, so that no step is left out.
    """
    per_scale = max(1, limit // len(QUERY_SCALES))
    stride = max(1, -(-num_steps // per_scale))
    lengths = [max(1, round(scale * query_steps)) for scale in QUERY_SCALES]
    grids = [
        sliding_windows(num_steps, [length], stride_fraction=stride / max(length, stride))
        for length in lengths
    ]
    return torch.unique(torch.cat(grids), dim=0)


def finer_windows(
    moments: Tensor, num_steps: int, shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Windows whose ends lie near those of some moments ``[S, 2]``, in steps.

    Each end stays or is moved either way by such shares of the moment's length, to whole steps
    inside the video; what is empty, and the moments themselves, are left out.

    Returns:
        ``[M, 2]`` without duplicates, and ``[M]``: which moment each comes from, the first where
        there are several.

    Example:
        >>> windows, seed = finer_windows(torch.tensor([[4.0, 8.0]]), 9, [0.25])
        >>> windows.tolist(), seed.tolist()
        ([[3.0, 7.0], [3.0, 8.0], [3.0, 9.0], [4.0, 7.0], [4.0, 9.0], \
[5.0, 7.0], [5.0, 8.0], [5.0, 9.0]], [0, 0, 0, 0, 0, 0, 0, 0])
    """
    length = moments[:, 1:] - moments[:, :1]
    moved = length * moments.new_tensor([-share for share in shares] + [0.0, *shares])
    # Half a step moves an end as well: rounding to even would leave it.
    moved = moved.sign() * (moved.abs() + 0.5).floor()
    ends = (moments[..., None].round() + moved[:, None]).clamp(0, num_steps)
    count = moved.shape[1]
    windows = torch.stack(
        [ends[:, 0, :, None].expand(-1, -1, count), ends[:, 1, None, :].expand(-1, count, -1)],
        dim=-1,
    ).view(len(moments), -1, 2)
    seed = torch.arange(len(moments), device=moments.device)[:, None].expand(windows.shape[:2])
    new = (windows[..., 0] < windows[..., 1]) & (windows != moments[:, None]).any(dim=-1)
    windows, seed = windows[new], seed[new]
    unique, number = torch.unique(windows, dim=0, return_inverse=True)
    first = seed.new_full((len(unique),), len(moments))
    return unique, first.scatter_reduce(0, number, seed, "amin")


#: Moments, no two of one place, whose surroundings are searched.
SEEDS = 5
#: How far either end of such a moment is moved in each round, as shares of its length.
ROUNDS = ((0.15, 0.3), (0.05, 0.1))


def look_closer(
    proposals: Tensor, scores: Tensor, score: Callable[[Tensor], Tensor], num_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Score finer windows around the best proposals ``[M, 2]`` too, in :data:`ROUNDS`; in steps.

    Returns:
        Moments ``[N, 2]``, proposals first, their scores ``[N]``, and the proposals ``[N, 2]`` that
        they were made of.
    """
    moments, origins = proposals, proposals
    for shares in ROUNDS:
        best = nms(moments, scores, 0.5, limit=SEEDS)
        finer, seed = finer_windows(moments[best], num_steps, shares)
        if len(finer) == 0:  # ends of very short moments stay where they are
            continue
        moments = torch.cat([moments, finer])
        origins = torch.cat([origins, origins[best][seed]])
        scores = torch.cat([scores, score(finer)])
    return moments, scores, origins


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
    while lines.left:
        if not lines.next().startswith("#"):
            raise lines.error("'# number' wanted, the start of a video")
        video_id = tidy(lines.next())
        problem = id_problem(video_id) or ("occurs twice" if video_id in records else None)
        if problem:
            raise lines.error(f"the video id {problem}")
        num_frames, fps = lines.number(), lines.number()
        truths, table = lines.table(3), lines.table(5)
        records[video_id] = ProposalRecord(
            video_id,
            table[:, 0].astype(np.int64),
            table[:, 3:],
            table[:, 1:3],
            truths[:, 0].astype(np.int64),
            truths[:, 1:],
            num_frames,
            fps,
        )
    if not records:
        raise ProposalError("holds no videos", file=path)
    return records


def write_proposal_list(path: str | Path, records: Iterable[ProposalRecord]) -> None:
    """Write a list that :func:`read_proposal_list` reads back equal, all or nothing.

    Times are written with four decimals as in the released lists, with more where a time needs
    them.

    Raises:
        ProposalError: There is no record, or what is in one could not be read back.
        OutputError: The file cannot be written; what was there is intact.
    """
    blocks: list[str] = []
    written: set[str] = set()
    for number, record in enumerate(records, start=1):
        _check_record(record, written)
        head = f"# {number}\n{record.video_id}\n{record.num_frames:.17g}\n{record.fps:.17g}\n"
        truths = _rows(record.truth_labels, record.truths)
        table = _rows(record.labels, np.hstack([record.overlaps, record.moments]))
        blocks.append(f"{head}{len(record.truths)}\n{truths}{len(record.moments)}\n{table}")
    if not blocks:
        raise ProposalError("there are no videos to write", file=path)
    replace_text(path, "".join(blocks))


class _Lines:
    """The lines of a list, read one after the other, with errors that name the line."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        text = read_text(path, ProposalError).rstrip()
        self.left = text.count("\n") + bool(text)
        if self.left > MAX_LINES:
            raise ProposalError(f"has over {MAX_LINES:,} lines: split it", file=path)
        self._lines, self._at = lines_of(text), 0

    def error(self, reason: str) -> ProposalError:
        """An error at the line read last."""
        return ProposalError(reason, file=self.path, record=f"line {self._at}")

    def next(self) -> str:
        """The next line."""
        self._at += 1
        if not self.left:
            raise self.error("the list ends in the middle of a video")
        self.left -= 1
        return next(self._lines).rstrip("\n")

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
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or int(text) > self.left:
            raise self.error("the number of lines that follow wanted")
        table = np.empty((int(text), columns), dtype=np.float64)
        for row in table:
            try:
                values = [float(word) for word in self.next().split()]
            except ValueError:
                values = []
            if len(values) != columns or not all(0 <= value < math.inf for value in values):
                raise self.error(f"{columns} numbers wanted, none of them negative")
            if values[-2] > values[-1] or values[0] % 1:
                raise self.error("a whole number for the class and start <= end wanted")
            row[:] = values
        return table


def _check_record(record: ProposalRecord, written: set[str]) -> None:
    name = tidy(record.video_id)
    problem = id_problem(name)
    if problem is None and (name.splitlines() != [name] or name in written):
        problem = "occurs twice" if name in written else "is of several lines"
    if problem:
        raise ProposalError(f"the id {problem}", record=record.video_id or "''")
    written.add(name)
    count, truths = len(record.moments), len(record.truths)
    shapes = (record.labels.shape, record.moments.shape, record.overlaps.shape)
    if shapes != ((count,), (count, 2), (count, 2)):
        raise ProposalError(f"shapes {shapes} do not fit", record=record.video_id)
    if (record.truth_labels.shape, record.truths.shape) != ((truths,), (truths, 2)):
        raise ProposalError("ground truths and their labels do not fit", record=record.video_id)
    counts = np.concatenate([record.labels, record.truth_labels])
    spans = np.concatenate([record.moments, record.truths])
    every = np.concatenate([counts, spans.ravel(), record.overlaps.ravel()])
    sound = ((every >= 0) & (every < math.inf)).all() and not (counts % 1).any()
    if not sound or (spans[:, 0] > spans[:, 1]).any():
        reason = "finite numbers from 0 on, whole classes and start <= end wanted"
        raise ProposalError(reason, record=record.video_id)
    for what in ("num_frames", "fps"):
        if not 0 < getattr(record, what) < math.inf:
            raise ProposalError(f"{what} above 0 wanted", record=record.video_id)


def _rows(labels: Whole, values: Floats) -> str:
    return "".join(
        f"{label:.0f} {' '.join(np.format_float_positional(v, min_digits=4) for v in row)}\n"
        for label, row in zip(labels.tolist(), values.tolist(), strict=True)
    )


class TagProposals:
    """Proposals from a list as a ``ProposalSource``: cut to an item's context, empty ones dropped.

    A video that the list does not have, or a context that no proposal reaches, gets
    :func:`~relocal_pyg.data.proposals.default_proposals` instead; the first such case is warned
    about.

    Args:
        records: Records by video id, see :func:`read_proposal_list`.
        num_steps: Gives the number of steps of a whole video, such as ``FeatureStore.num_steps``
            or ``lengths.__getitem__``.
    """

    def __init__(
        self, records: Mapping[str, ProposalRecord], num_steps: Callable[[str], int]
    ) -> None:
        self.records, self.num_steps = records, num_steps
        self._warned = False

    def __call__(self, item: Item, query_steps: int) -> Tensor:
        """Proposals of a reference, float32 ``[M, 2]`` in steps of its context, each once.

        They are in the order of the list, which names the best first.

        Windows that are made instead depend on the length of the query.
        """
        names = (name for name in spellings(item.video_id) if name in self.records)
        name = next(names, None)
        if name is not None:
            steps = torch.from_numpy(self.records[name].moments) * self.num_steps(item.video_id)
            moments = (steps - item.context[0]).clamp(0, item.num_steps).float()
            moments = moments[moments[:, 1] > moments[:, 0]]
            if len(moments):
                return moments[np.sort(np.unique(moments, axis=0, return_index=True)[1])]
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the list has no proposals for {item.item_id}: sliding windows are used there "
                "(said once)",
                stacklevel=2,
            )
        return default_proposals(item.num_steps, query_steps or item.num_steps)


@dataclass(frozen=True)
class WindowProposals:
    """Sliding windows of fixed lengths as a ``ProposalSource``.

    Attributes:
        lengths: Window lengths in steps.
        stride: Stride as a share of a window's length.
    """

    lengths: Sequence[int]
    stride: float = 1 / 3

    def __post_init__(self) -> None:
        check_number(self.stride, "stride", least=0)
        given = tuple(self.lengths) if isinstance(self.lengths, Iterable) else ()
        if not given:
            raise UsageError(f"lengths is {self.lengths!r}: some wanted, such as (8, 12)")
        whole = (check_number(n, "a window's length", least=1, whole=True) for n in given)
        object.__setattr__(self, "lengths", tuple(map(int, whole)))

    @classmethod
    def fit(
        cls, items: Sequence[Item], *, ratio: float = 1.3, stride: float = 1 / 3
    ) -> WindowProposals:
        """Take lengths between the 2nd and 98th percentile of the items' moments, ``ratio`` apart.

        Raises:
            ProposalError: There are no items.
        """
        if not items:
            raise ProposalError("window lengths come from training moments; there are none")
        low, high = np.percentile([item.query_steps for item in items], [2, 98])
        lengths = geometric_lengths(max(1, math.floor(low)), max(1, math.ceil(high)), ratio)
        return cls(tuple(lengths), stride)

    def __call__(self, item: Item, query_steps: int) -> Tensor:
        """Give the windows of a reference, float32 ``[M, 2]`` in steps of its context."""
        return sliding_windows(item.num_steps, self.lengths, self.stride)
