"""The number that model selection looks at."""

from __future__ import annotations

from typing import cast

import torch
from lightning_fabric import Fabric

from relocal_pyg.data.pairs import PairList
from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.moments import clip_moments, tiou

#: Thresholds whose mean mAP@1 selects a model: wide, so that a small set still tells models apart.
SELECTION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.no_grad()
def validate(
    model: Relocalizer,
    protocol: Protocol,
    pairs: PairList,
    limit: int | None = None,
    *,
    fabric: Fabric | None = None,
) -> dict[str, float]:
    """Mean mAP@1 over :data:`SELECTION_THRESHOLDS` on validation pairs.

    Args:
        model: The model; a module is put in evaluation mode and back.
        protocol: Where features and proposals are.
        pairs: Validation pairs, never those of a test split.
        limit: Use the first ``limit`` pairs only.
        fabric: Where given, its processes share the pairs out, each pair once.

    Returns:
        ``"score"`` after refinement, ``"score_before"`` before it (equal where nothing is refined)
        and ``"tiou"``, the mean tIoU of the first answer after refinement.
    """
    module = model if isinstance(model, torch.nn.Module) else None
    was_training = module is not None and module.training
    if module is not None:
        module.eval()
    chosen = pairs.pairs[:limit]
    first, stride = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    # Zero where another process answers, so that a sum over processes is every answer once.
    overlaps = torch.zeros(2, len(chosen))
    for number in range(first, len(chosen), stride):
        pair = chosen[number]
        reference = protocol.reference(pair.reference)
        ranking = model.rank(
            protocol.query(pair.query),
            reference,
            protocol.proposals(pair.reference, pair.query),
            query_video=protocol.reference(pair.query),
        )
        truths = torch.tensor(pair.reference.truths, dtype=torch.float32)
        answers = [ranking.moments[0], ranking.moments[0]]
        if ranking.proposals is not None:
            answers[1] = ranking.proposals[0]
        moments = clip_moments(torch.stack(answers), len(reference))
        overlaps[:, number] = tiou(moments[:, None], truths[None]).amax(dim=1)
    if fabric is not None and fabric.world_size > 1:
        shared = fabric.all_reduce(overlaps, reduce_op="sum")
        overlaps = cast(torch.Tensor, shared).cpu()
    if module is not None:
        module.train(was_training)
    after, before = overlaps
    return {
        "score": _mean_map(after),
        "score_before": _mean_map(before),
        "tiou": float(after.mean()),
    }


def _mean_map(overlap: torch.Tensor) -> float:
    thresholds = torch.tensor(SELECTION_THRESHOLDS)
    return float((overlap[:, None] > thresholds).float().mean())
