"""How proposals are made: sliding windows, and actionness grouped into candidate moments."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relocal_pyg.proposals.actionness import ActionnessClassifier, fit_actionness
    from relocal_pyg.proposals.tag import (
        PAPER,
        SSN_CODE,
        TagConfig,
        TagSource,
        group,
        propose,
        tag_proposals,
    )

_HOMES = {
    "ActionnessClassifier": "actionness",
    "fit_actionness": "actionness",
    "propose": "tag",
    "PAPER": "tag",
    "SSN_CODE": "tag",
    "TagConfig": "tag",
    "group": "tag",
    "TagSource": "tag",
    "tag_proposals": "tag",
}

__all__ = [
    "PAPER",
    "SSN_CODE",
    "ActionnessClassifier",
    "TagConfig",
    "TagSource",
    "fit_actionness",
    "group",
    "propose",
    "tag_proposals",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
