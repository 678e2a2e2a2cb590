"""Losses of a batch of lists; the paper trains on triplets, see ``multi_graph``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from relocal_pyg.models.pair_inputs import random_rotation
from relocal_pyg.nn.distributed import mean_over_ranks
from relocal_pyg.nn.losses import listwise_loss, offset_loss

if TYPE_CHECKING:
    from relocal_pyg.models.multi_graph import MultiGraphRelocalizer

#: Proposals above this tIoU teach the regression head.
OFFSET_TIOU = 0.4


def listwise_losses(model: MultiGraphRelocalizer, batch: Batch) -> dict[str, Tensor]:
    """Cross entropy of each list and the error of the offsets of its good proposals.

    Args:
        model: The network in training.
        batch: Samples of :class:`relocal_pyg.data.samples.ListDataset`.
    """
    samples = batch.to_data_list()
    parts = [_list_losses(model, sample) for sample in samples]
    ranking = torch.stack([ranking for ranking, _ in parts]).mean()
    errors = [error for _, error in parts if error is not None]
    total = torch.stack(errors).sum() if errors else ranking * 0
    regression = mean_over_ranks(total, len(errors))
    return {"loss": ranking + regression, "ranking": ranking, "regression": regression}


def _list_losses(model: MultiGraphRelocalizer, sample: Data) -> tuple[Tensor, Tensor | None]:
    """Ranking loss of a list, and error of its offsets where a proposal is good enough."""
    rotation = None
    if model.network_config.rotation:
        rotation = random_rotation(model.in_channels, sample.reference)

    def score(reference: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        return model.raw_list_scores(
            sample.query, reference, proposals, sample.query_video, rotation
        )

    raw, offsets = score(sample.reference, sample.proposals)
    near = sample.overlap > OFFSET_TIOU
    error = offset_loss(offsets[near], sample.offsets[near]) if near.any() else None
    overlap = sample.overlap.to(raw)
    if "far_proposals" in sample and len(sample.far_proposals):
        far, _ = score(sample.far_reference, sample.far_proposals)
        raw = torch.cat([raw, far])
        overlap = torch.cat([overlap, sample.far_overlap.to(raw)])
    loss = listwise_loss(raw[None], overlap[None], target_temperature=float(sample.temperature))
    return loss, error
