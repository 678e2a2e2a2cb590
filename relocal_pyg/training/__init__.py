"""Presets, the training loop and its checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.training.loop import FitResult, fit
    from relocal_pyg.training.presets import PAPER, PRESETS, RECOMMENDED, Preset, TrainingConfig

_WHERE = {
    "FitResult": "loop",
    "fit": "loop",
    "PAPER": "presets",
    "PRESETS": "presets",
    "RECOMMENDED": "presets",
    "Preset": "presets",
    "TrainingConfig": "presets",
}

__all__ = [
    "PAPER",
    "PRESETS",
    "RECOMMENDED",
    "FitResult",
    "Preset",
    "TrainingConfig",
    "fit",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
