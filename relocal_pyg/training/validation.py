"""The number that model selection looks at."""

from __future__ import annotations

import torch

from relocal_pyg.data.pairs import PairList
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.moments import clip_moments, tiou

#: Thresholds whose mean mAP@1 selects a model: wide, so that a small set still tells models apart.
SELECTION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.no_grad()
def validate(
    model: Relocalizer, protocol: Protocol, pairs: PairList, limit: int | None = None
) -> dict[str, float]:
    """Mean mAP@1 over :data:`SELECTION_THRESHOLDS` on validation pairs.

    Args:
        model: The model; a module is put in evaluation mode and back.
        protocol: Where features and proposals are.
        pairs: Validation pairs, never those of a test split.
        limit: Use the first ``limit`` pairs only.

    Returns:
        ``"score"`` after refinement, ``"score_before"`` before it (equal where nothing is refined)
        and ``"tiou"``, the mean tIoU of the first answer after refinement.
    """
    module = model if isinstance(model, torch.nn.Module) else None
    was_training = module is not None and module.training
    if module is not None:
        module.eval()
    after, before = [], []
    for pair in pairs.pairs[:limit]:
        reference = protocol.reference(pair.reference)
        ranking = model.rank(
            protocol.query(pair.query),
            reference,
            protocol.proposals(pair.reference, pair.query),
            query_video=protocol.reference(pair.query),
        )
        truths = torch.tensor(pair.reference.truths, dtype=torch.float32)
        first = clip_moments(ranking.moments[0], len(reference))
        after.append(tiou(first, truths).max())
        before.append(
            after[-1]
            if ranking.proposals is None
            else tiou(clip_moments(ranking.proposals[0], len(reference)), truths).max()
        )
    if module is not None:
        module.train(was_training)
    return {
        "score": _mean_map(torch.stack(after)),
        "score_before": _mean_map(torch.stack(before)),
        "tiou": float(torch.stack(after).mean()),
    }


def _mean_map(overlap: torch.Tensor) -> float:
    thresholds = torch.tensor(SELECTION_THRESHOLDS)
    return float((overlap[:, None] > thresholds).float().mean())
