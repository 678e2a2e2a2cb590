"""Proposals of a whole data set, written as a list that other tools read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Protocol
from relocal_pyg.data.proposals import (
    Floats,
    ProposalRecord,
    Whole,
    geometric_lengths,
    sliding_windows,
    write_proposal_list,
)
from relocal_pyg.errors import FeatureError, ProposalError, UsageError, check_number
from relocal_pyg.moments import nms, tiou, to_tensor
from relocal_pyg.proposals.actionness import ActionnessClassifier

#: Shares that are equal on paper must not differ by rounding error.
_SLACK = 1e-9


@dataclass(frozen=True)
class TagConfig:
    """Settings of :func:`group`.

    Attributes:
        thresholds: A step belongs to a run where its actionness is above the threshold.
        tolerances: Largest share of steps below the threshold that a group may have up to the run
            it takes in last (one minus the gamma of the ICCV 2017 paper).
        sigma: Standard deviation, in steps, of the Gaussian that smooths the signal; 0 for none.
        nms_threshold: Of two proposals with a larger tIoU only the better is kept.
        score: ``"mean"`` actionness inside the proposal, or the ``"sum"`` of the raw action logits,
            which prefers long proposals.
        compat: Reproduce the deviations of the released code (yjxiong/action-detection, listed in
            :func:`group`), for comparison with it.
    """

    thresholds: tuple[float, ...]
    tolerances: tuple[float, ...]
    sigma: float
    nms_threshold: float
    score: Literal["mean", "sum"] = "mean"
    compat: bool = False

    def __post_init__(self) -> None:
        if not self.thresholds or not self.tolerances:
            raise UsageError("grouping needs at least one threshold and one tolerance")
        for name in ("thresholds", "tolerances"):
            for value in getattr(self, name):
                check_number(value, name, least=0, most=1)
        check_number(self.sigma, "sigma", least=0)
        check_number(self.nms_threshold, "nms_threshold", least=0, most=1)
        if self.score not in ("mean", "sum"):
            raise UsageError(f"score is {self.score!r}: 'mean' or 'sum' wanted")


_GRID = tuple(k / 20 for k in range(1, 20))

#: The published setting: even grids of step 0.05 and suppression at 0.95. Smoothing covers the same
#: time as the released code's (3 snippets of 5 frames) on steps of 16 frames.
PAPER = TagConfig(_GRID, _GRID, sigma=3 * 5 / 16, nms_threshold=0.95)

#: The setting of the released code, made for one snippet every 5 frames.
SSN_CODE = TagConfig(
    thresholds=(0.01, 0.05, 0.1, 0.15, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    tolerances=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    sigma=3.0,
    nms_threshold=0.9,
    score="sum",
    compat=True,
)


def group(actionness: ArrayLike, config: TagConfig = PAPER) -> tuple[Tensor, Tensor]:
    """Group the steps of one video into proposals (section 3.2).

    With ``config.compat`` the deviations of the released code are kept: a proposal ends one step
    late, so that it may pass the end of the video; lengths count one step more during suppression;
    a group that reaches back to the first run is scored from the start of the video and two steps
    late; a group ending with the video counts one step fewer below the threshold.

    Args:
        actionness: Probabilities ``[n]``, or logits ``[n, 2]`` in the order (background, action).
        config: Thresholds, tolerances and the rest: :data:`PAPER`, :data:`SSN_CODE` or your own.

    Returns:
        Proposals float32 ``[M, 2]``, half-open, in steps, without duplicates, best first, and
        their scores float32 ``[M]``. Both are empty where no step passes any threshold.

    Raises:
        FeatureError: The signal has another shape or is not finite.
        UsageError: ``score="sum"`` was asked for and probabilities were given.

    Example:
        >>> proposals, scores = group([0., 0., 1., 1., 1., 0.],
        ...                           TagConfig((0.5,), (0.2,), sigma=0, nms_threshold=0.95))
        >>> proposals.tolist(), scores.tolist()
        ([[2.0, 5.0]], [1.0])
    """
    probability, logit = _signals(actionness)
    smooth = smooth_signal(probability, config.sigma)
    if config.score == "mean":
        weight = smooth
    elif logit is not None:
        weight = logit
    else:
        raise UsageError("score='sum' adds logits [n, 2]; probabilities [n] were given")
    boxes = [_boxes_at(smooth > threshold, config) for threshold in config.thresholds]
    start, end, summed = np.concatenate(boxes, axis=1)
    total = np.concatenate([[0.0], np.cumsum(weight)])
    late = int(config.compat)
    # What is scored may reach further than the proposal: see _boxes_at.
    first, last = np.where(summed > 0, 0, start), np.minimum(end + late * (1 + summed), len(smooth))
    score = total[last] - total[first]
    if config.score == "mean":
        score = score / (last - first)
    end = end + late
    # Twins are dropped here, the best one stays; suppression would drop them too, only slower.
    order = np.argsort(-score, kind="stable")
    key = (start * (len(smooth) + 2) + end)[order]
    chosen = order[np.unique(key, return_index=True)[1]]
    proposals = torch.from_numpy(np.stack([start, end], axis=1)[chosen]).double()
    scores = torch.from_numpy(score[chosen])
    inclusive = proposals + torch.tensor([0.0, float(late)])
    kept = nms(inclusive, scores, config.nms_threshold)
    return proposals[kept].float(), scores[kept].float()


def smooth_signal(signal: Floats, sigma: float) -> Floats:
    """Convolve ``[n]`` with a Gaussian cut at four standard deviations; the ends are mirrored.

    The same numbers as ``scipy.ndimage.gaussian_filter1d`` with its defaults.
    """
    if sigma == 0:
        return signal
    radius = int(4 * sigma + 0.5)
    offset = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    padded = np.pad(signal, radius, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def _signals(actionness: ArrayLike) -> tuple[Floats, Floats | None]:
    """Probability of action per step and, where logits were given, the raw action logit."""
    array = to_tensor(actionness, FeatureError, "actionness").detach().cpu().double().numpy()
    if array.ndim not in (1, 2) or array.size == 0 or (array.ndim == 2 and array.shape[1] != 2):
        raise FeatureError(f"shape {array.shape}, [n] or [n, 2] wanted", record="actionness")
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise FeatureError(f"step {int(np.argmin(finite))} is not finite", record="actionness")
    if array.ndim == 1:
        inside = (array >= 0) & (array <= 1 + _SLACK)
        if not inside.all():  # one logit a step, or percent
            first = int(np.argmin(inside))
            raise FeatureError(
                f"step {first} is {array[first]:g}: probabilities from 0 to 1, or logits [n, 2]",
                record="actionness",
            )
        return array, None
    # Two-way softmax, written so that exp never overflows.
    difference = array[:, 1] - array[:, 0]
    tail = np.exp(-np.abs(difference))
    return np.where(difference >= 0, 1.0, tail) / (1 + tail), array[:, 1]


def _boxes_at(above: npt.NDArray[np.bool_], config: TagConfig) -> Whole:
    """Groups of runs at one threshold, for every tolerance, forward and backward: ``[3, B]``.

    Rows are start, exclusive end, and 1 for a backward group that reaches the first run in compat
    mode (its score starts at 0 and runs one step further).
    """
    length = len(above)
    edges = np.diff(above.astype(np.int8), prepend=0, append=0)
    up, down = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    tolerance = np.asarray(config.tolerances)[:, None]
    level: Floats
    if config.compat:
        # Inclusive counts of steps below; one past the end the code has no count and steps by
        # minus the tolerance alone. The order of operations matters for ties.
        level = np.cumsum(~above) - tolerance * np.arange(length)
        level = np.concatenate([level, level[:, -1:] - tolerance], axis=1)
        slack = 0.0
    else:
        below = np.concatenate([[0], np.cumsum(~above)])
        level = below - tolerance * np.arange(length + 1)
        slack = _SLACK
    # Forward from u_x: stop before the first later run whose gap count rises above the tolerance.
    stop = _first_above(level[:, up], slack)
    forward = [np.broadcast_to(up, stop.shape), down[stop - 1], np.zeros_like(stop)]
    # Backward from d_x: the same thing mirrored, zeros counted to the left.
    runs = len(up)
    mirror = _first_above(-level[:, down][:, ::-1], slack)[:, ::-1]
    reached = (mirror == runs) & config.compat
    backward = [up[runs - mirror], np.broadcast_to(down, mirror.shape), reached]
    return np.concatenate(
        [np.stack([part.ravel() for part in side]) for side in (forward, backward)], axis=1
    ).astype(np.int64)


def _first_above(level: Floats, slack: float) -> Whole:
    """For each position of each row the first later one that lies higher, or the row's length.

    Running maxima over 1, 2, 4, ... positions are descended from the widest: R log R a row.

    Example:
        >>> _first_above(np.array([[3.0, 1.0, 2.0, 5.0]]), 0.0).tolist()
        [[3, 2, 3, 4]]
    """
    count = level.shape[1]
    padded = np.concatenate([level, np.full((len(level), 1), np.inf)], axis=1)
    tables = [padded]
    while 2 ** len(tables) <= count:
        reach = 2 ** (len(tables) - 1)
        shifted = np.full_like(padded, np.inf)
        shifted[:, :-reach] = tables[-1][:, reach:]
        tables.append(np.maximum(tables[-1], shifted))
    limit = level + slack
    found = np.broadcast_to(np.arange(1, count + 1), level.shape).copy()
    for power in range(len(tables) - 1, -1, -1):
        # Entries that reach past the end are infinite and never skipped.
        skip = np.take_along_axis(tables[power], found, axis=1) <= limit
        found += skip * 2**power
    return found


def tag_proposals(
    classifier: ActionnessClassifier,
    features: Tensor,
    config: TagConfig = PAPER,
    *,
    name: str = "video",
) -> tuple[Tensor, Tensor]:
    """Proposals of one video; there is always at least one.

    Where actionness passes no threshold anywhere, a warning names the video and sliding windows
    (:func:`fallback_windows`) take the place of the groups, each with score 0.

    Returns:
        Proposals float32 ``[M, 2]`` in steps, inside ``[0, n]``, best first, and scores ``[M]``.
    """
    num_steps = len(features)
    logits = classifier.actionness(features)
    proposals, scores = group(logits, config)
    if len(proposals) == 0:
        highest = float(torch.softmax(logits, dim=1)[:, 1].max())
        warnings.warn(
            f"{name}: actionness reaches {highest:.3f} and passes no threshold "
            f"(lowest {min(config.thresholds)}); sliding windows are used instead",
            UserWarning,
            stacklevel=2,
        )
        windows = fallback_windows(num_steps)
        return windows, torch.zeros(len(windows))
    if config.compat:
        # The released code lets proposals end one step after the video, which makes twins here.
        proposals = proposals.clamp(max=num_steps)
        twins = (proposals[:, None] == proposals[None]).all(dim=2).tril(diagonal=-1).any(dim=1)
        proposals, scores = proposals[~twins], scores[~twins]
    return proposals, scores


def fallback_windows(num_steps: int) -> Tensor:
    """Sliding windows ``[M, 2]`` of 1/32 of the video to all of it, 1.3 times longer each.

    Each moves by a third of its length.
    """
    return sliding_windows(num_steps, geometric_lengths(max(1, num_steps // 32), num_steps))


def propose(
    source: Protocol | FeatureStore,
    classifier: ActionnessClassifier,
    out: str | Path,
    *,
    config: TagConfig = PAPER,
    show_progress: bool = False,
) -> list[ProposalRecord]:
    """Make the proposals of every video and write them as a list (section 5.2.1).

    The list has the layout released with yjxiong/action-detection: times are shares of the whole
    video, best proposals first. From a protocol it also names the ground truths, with classes
    numbered from 1 in alphabetical order over all splits; from features alone it names none.
    A video that cannot be read is left out with a warning.

    Returns:
        What was written, sorted by video id.

    Raises:
        FeatureError: The features have another width than the classifier was trained on.
        ProposalError: No video could be used.
        OutputError: The file cannot be written; what was there is intact.
    """
    if isinstance(source, Protocol):
        features, truths = source.features, _truths(source)
    else:
        features, truths = source, {video_id: [] for video_id in source.ids}
    if features.dim != classifier.in_channels:
        raise FeatureError(
            f"the features are {features.dim} wide, the actionness classifier wants "
            f"{classifier.in_channels}: train it on the same features"
        )
    records = []
    for video_id in tqdm(sorted(truths), desc="Proposals", unit="video", disable=not show_progress):
        try:
            steps = features.read(video_id)
        except FeatureError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        proposals, _ = tag_proposals(classifier, steps, config, name=video_id)
        records.append(describe(video_id, proposals, len(steps), truths[video_id]))
    if not records:
        raise ProposalError("no video could be used, so no list was written", file=out)
    write_proposal_list(out, records)
    return records


def describe(
    video_id: str, proposals: Tensor, num_steps: int, truths: Iterable[tuple[int, int, int]] = ()
) -> ProposalRecord:
    """Put proposals ``[M, 2]`` beside truths ``(class number, start, end)`` of their video; steps.

    Returns:
        A record in shares of the video. Each proposal carries the class of the ground truth of
        largest tIoU (0 where none overlaps), that tIoU, and the share of it inside that truth.

    Example:
        >>> record = describe("v", torch.tensor([[0.0, 4.0], [8.0, 10.0]]), 10, [(3, 2, 4)])
        >>> record.labels.tolist(), record.overlaps.tolist(), record.moments.tolist()
        ([3, 0], [[0.5, 0.5], [0.0, 0.0]], [[0.0, 0.4], [0.8, 1.0]])
    """
    table = torch.tensor(sorted(set(truths)), dtype=torch.float64).reshape(-1, 3)
    found = proposals.double()
    labels = torch.zeros(len(found), dtype=torch.long)
    overlaps = torch.zeros(len(found), 2, dtype=torch.float64)
    if len(table):
        best, which = tiou(found[:, None], table[None, :, 1:]).max(dim=1)
        nearest = table[which]
        shared = torch.minimum(found[:, 1], nearest[:, 2]) - torch.maximum(
            found[:, 0], nearest[:, 1]
        )
        share = shared.clamp(min=0) / (found[:, 1] - found[:, 0])
        overlaps = torch.stack([best, share], dim=1)
        labels = torch.where(best > 0, nearest[:, 0], 0.0).long()
    return ProposalRecord(
        video_id=video_id,
        labels=labels.numpy(),
        moments=found.numpy() / num_steps,
        overlaps=overlaps.numpy(),
        truth_labels=table[:, 0].numpy().astype(np.int64),
        truths=table[:, 1:].numpy() / num_steps,
    )


def _truths(protocol: Protocol) -> dict[str, list[tuple[int, int, int]]]:
    """Ground truths of every video of a protocol, in steps, with numbered classes."""
    items = [item for split in protocol.splits.values() for item in split]
    number = {label: i for i, label in enumerate(sorted({item.label for item in items}), start=1)}
    truths: dict[str, list[tuple[int, int, int]]] = {}
    for item in items:
        known = truths.setdefault(item.video_id, [])
        known += [(number[item.label], *moment) for moment in item.moments]
    return truths
