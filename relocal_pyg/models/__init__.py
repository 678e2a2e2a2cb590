"""One file per system, one interface: :class:`relocal_pyg.models.base.Relocalizer`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.models.base import Ranking, Relocalizer, TrainableRelocalizer
    from relocal_pyg.models.baselines.aft_srm import AFTSRM
    from relocal_pyg.models.baselines.cross_gated import CrossGated
    from relocal_pyg.models.baselines.frame_level import FrameLevel
    from relocal_pyg.models.baselines.sst import SST
    from relocal_pyg.models.baselines.video_level import VideoLevel
    from relocal_pyg.models.checkpoint import load_model
    from relocal_pyg.models.matcher import MultiGraphMatcher
    from relocal_pyg.models.matchers import (
        CentreHalf,
        Chance,
        ContrastMatcher,
        CosineMatcher,
        DiagonalMatcher,
        RandomMoment,
        WholeReference,
    )
    from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
    from relocal_pyg.models.network_config import NetworkConfig
    from relocal_pyg.models.refining import FinerWindows

_WHERE = {
    "AFTSRM": "baselines.aft_srm",
    "CrossGated": "baselines.cross_gated",
    "SST": "baselines.sst",
    "VideoLevel": "baselines.video_level",
    "Ranking": "base",
    "Relocalizer": "base",
    "TrainableRelocalizer": "base",
    "load_model": "checkpoint",
    "ContrastMatcher": "matchers",
    "CosineMatcher": "matchers",
    "DiagonalMatcher": "matchers",
    "FinerWindows": "refining",
    "FrameLevel": "baselines.frame_level",
    "MultiGraphMatcher": "matcher",
    "MultiGraphRelocalizer": "multi_graph",
    "NetworkConfig": "network_config",
    "CentreHalf": "matchers",
    "Chance": "matchers",
    "RandomMoment": "matchers",
    "WholeReference": "matchers",
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
    "DiagonalMatcher",
    "FinerWindows",
    "FrameLevel",
    "MultiGraphMatcher",
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
