"""The number that model selection looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from lightning_fabric import Fabric

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.moments import clip_moments, tiou

#: Thresholds whose mean mAP@1 selects a model: wide, so that a small set still tells models apart.
SELECTION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Validation:
    """What a validation came to.

    Attributes:
        scores: Mean mAP@1 by each way to refine, from none to the most.
    """

    scores: dict[str, float]

    @property
    def best(self) -> str:
        """The way to refine that validates best; of equal ones the one that refines least."""
        return max(self.scores, key=lambda way: self.scores[way])

    @property
    def score(self) -> float:
        """The score by the best way."""
        return self.scores[self.best]


@torch.no_grad()
def validate(
    model: Relocalizer,
    protocol: Protocol,
    pairs: PairList,
    limit: int | None = None,
    *,
    fabric: Fabric | None = None,
) -> Validation:
    """Mean mAP@1 over :data:`SELECTION_THRESHOLDS` on validation pairs, by every way to refine.

    Args:
        model: The model; a module is put in evaluation mode and back.
        protocol: Where features and proposals are.
        pairs: Validation pairs, never those of a test split.
        limit: Use the first ``limit`` pairs only.
        fabric: Where given, its processes share the pairs out, each pair once.

    Returns:
        The :class:`Validation`.
    """
    module = model if isinstance(model, torch.nn.Module) else None
    was_training = module is not None and module.training
    if module is not None:
        module.eval()
    chosen = pairs.pairs[:limit]
    first, stride = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    # Zero where another process answers, so that a sum over processes is every answer once.
    overlaps = torch.zeros(len(model.refinements), len(chosen))
    for number in range(first, len(chosen), stride):
        pair = chosen[number]
        reference = protocol.reference(pair.reference)
        rankings = model.rankings(
            protocol.query(pair.query),
            reference,
            protocol.proposals(pair.reference, pair.query),
            query_video=protocol.reference(pair.query),
        )
        truths = torch.tensor(pair.reference.truths, dtype=torch.float32)
        answers = torch.stack([rankings[way].moments[0] for way in model.refinements])
        moments = clip_moments(answers, len(reference))
        overlaps[:, number] = tiou(moments[:, None], truths[None]).amax(dim=1)
    if fabric is not None and fabric.world_size > 1:
        shared = fabric.all_reduce(overlaps, reduce_op="sum")
        overlaps = cast(torch.Tensor, shared).cpu()
    if module is not None:
        module.train(was_training)
    thresholds = torch.tensor(SELECTION_THRESHOLDS)
    means = (overlaps[..., None] > thresholds).float().mean(dim=(1, 2)).tolist()
    return Validation(dict(zip(model.refinements, means, strict=True)))
