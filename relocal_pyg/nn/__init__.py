"""Layers: no file, no dataset, no argument parsing."""

from relocal_pyg.nn.conv import MultiGraphConv, SumConv
from relocal_pyg.nn.losses import listwise_loss, offset_loss, triplet_loss
from relocal_pyg.nn.network import MultiGraphFusion, OffsetHead, PairEncoder, ScoreHead

__all__ = [
    "MultiGraphConv",
    "MultiGraphFusion",
    "OffsetHead",
    "PairEncoder",
    "ScoreHead",
    "SumConv",
    "listwise_loss",
    "offset_loss",
    "triplet_loss",
]
