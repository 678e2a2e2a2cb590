"""Proposals of a whole data set, written as a list that other tools read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.proposal_lists import ProposalRecord, write_proposal_list
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.errors import FeatureError, ProposalError
from relocal_pyg.moments import tiou
from relocal_pyg.proposals.actionness import ActionnessClassifier
from relocal_pyg.proposals.tag import PAPER, TagConfig
from relocal_pyg.proposals.tag_source import tag_proposals


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

    Args:
        source: A protocol, whose videos of every split are taken, or a feature file.
        classifier: Trained on the same features.
        out: The text file to write.
        config: Settings of the grouping.
        show_progress: Show a progress bar.

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
    video_id: str,
    proposals: Tensor,
    num_steps: int,
    truths: Iterable[tuple[int, int, int]] = (),
) -> ProposalRecord:
    """Put proposals beside the ground truths of their video, as the released lists do.

    Args:
        video_id: Its id.
        proposals: ``[M, 2]`` in steps.
        num_steps: Steps of the whole video.
        truths: ``(class number, start, end)``, in steps.

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
