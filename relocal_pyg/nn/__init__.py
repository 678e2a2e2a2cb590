"""Layers: no file, no dataset, no argument parsing."""

from relocal_pyg.nn.conv import MultiGraphConv, SumConv
from relocal_pyg.nn.losses import (
    ListwiseLoss,
    OffsetLoss,
    TripletLoss,
    listwise_loss,
    offset_loss,
    triplet_loss,
)
from relocal_pyg.nn.network import MultiGraphFusion, OffsetHead, PairEncoder, ScoreHead

__all__ = [
    "ListwiseLoss",
    "MultiGraphConv",
    "MultiGraphFusion",
    "OffsetHead",
    "OffsetLoss",
    "PairEncoder",
    "ScoreHead",
    "SumConv",
    "TripletLoss",
    "listwise_loss",
    "offset_loss",
    "triplet_loss",
]
