"""One file per system, one interface: :class:`relocal_pyg.models.base.Relocalizer`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.models.aft_srm import AFTSRM
    from relocal_pyg.models.base import Ranking, Relocalizer, TrainableRelocalizer
    from relocal_pyg.models.checkpoint import load_model
    from relocal_pyg.models.contrast import ContrastMatcher, CosineMatcher
    from relocal_pyg.models.cross_gated import CrossGated
    from relocal_pyg.models.frame_level import FrameLevel
    from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
    from relocal_pyg.models.network_config import NetworkConfig
    from relocal_pyg.models.sst import SST
    from relocal_pyg.models.trivial import CentreHalf, Chance, RandomMoment, WholeReference
    from relocal_pyg.models.video_level import VideoLevel

_WHERE = {
    "AFTSRM": "aft_srm",
    "CrossGated": "cross_gated",
    "SST": "sst",
    "VideoLevel": "video_level",
    "Ranking": "base",
    "Relocalizer": "base",
    "TrainableRelocalizer": "base",
    "load_model": "checkpoint",
    "ContrastMatcher": "contrast",
    "CosineMatcher": "contrast",
    "FrameLevel": "frame_level",
    "MultiGraphRelocalizer": "multi_graph",
    "NetworkConfig": "network_config",
    "CentreHalf": "trivial",
    "Chance": "trivial",
    "RandomMoment": "trivial",
    "WholeReference": "trivial",
}

__all__ = [
    "AFTSRM",
    "CrossGated",
    "SST",
    "VideoLevel",
    "CentreHalf",
    "Chance",
    "ContrastMatcher",
    "CosineMatcher",
    "FrameLevel",
    "MultiGraphRelocalizer",
    "NetworkConfig",
    "RandomMoment",
    "Ranking",
    "Relocalizer",
    "TrainableRelocalizer",
    "WholeReference",
    "load_model",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
