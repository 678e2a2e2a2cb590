"""Layers: no file, no dataset, no argument parsing."""

from relocal_pyg.nn.encoder import PairEncoder
from relocal_pyg.nn.fusion import MultiGraphFusion
from relocal_pyg.nn.heads import OffsetHead, ScoreHead
from relocal_pyg.nn.losses import (
    ListwiseLoss,
    OffsetLoss,
    TripletLoss,
    listwise_loss,
    offset_loss,
    triplet_loss,
)
from relocal_pyg.nn.multi_graph_conv import MultiGraphConv
from relocal_pyg.nn.sum_conv import SumConv

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
