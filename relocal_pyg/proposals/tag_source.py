"""Proposals of a protocol by actionness and grouping, as section 5.2.1 makes them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from relocal_pyg.data.items import Item
from relocal_pyg.datasets.protocol import FeatureSource
from relocal_pyg.proposals.actionness import ActionnessClassifier
from relocal_pyg.proposals.sliding import geometric_lengths, sliding_windows
from relocal_pyg.proposals.tag import PAPER, TagConfig, group


class TagSource:
    """A :data:`~relocal_pyg.datasets.protocol.ProposalSource`: classifier, then grouping.

    The proposals of a context are made once and kept; they do not depend on the query.

    Args:
        classifier: Trained on the same kind of features.
        features: Where the features of a video are read.
        config: Settings of the grouping.
    """

    def __init__(
        self,
        classifier: ActionnessClassifier,
        features: FeatureSource,
        config: TagConfig = PAPER,
    ) -> None:
        self.classifier, self.features, self.config = classifier, features, config
        self._known: dict[tuple[str, tuple[int, int]], Tensor] = {}

    def __call__(self, reference: Item, query_steps: int = 0) -> Tensor:
        """Proposals float32 ``[M, 2]`` in steps of the reference's context, best first."""
        key = reference.video_id, reference.context
        if key not in self._known:
            features = self.features.read(reference.video_id, *reference.context)
            proposals, _ = tag_proposals(
                self.classifier, features, self.config, name=reference.video_id
            )
            self._known[key] = proposals
        return self._known[key]


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

    Args:
        classifier: Trained on the same kind of features.
        features: ``[n, F]``, ``n >= 1``.
        config: Settings of the grouping.
        name: What to call the video in the warning.

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
    """Sliding windows of lengths 1/32 of the video to all of it, 1.3 times longer each.

    Each moves by a third of its length.

    Returns:
        float32 ``[M, 2]`` in steps.
    """
    return sliding_windows(num_steps, geometric_lengths(max(1, num_steps // 32), num_steps))
