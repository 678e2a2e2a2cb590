"""A local web page to find moments in videos: the extra ``relocal_pyg[serve]``.

Made for one person on one machine: it listens on the loopback address, answers only to requests
that name it, and keeps what is uploaded in a folder of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.apps.serve.app import make_app
    from relocal_pyg.apps.serve.jobs import SearchQueue
    from relocal_pyg.apps.serve.library import Collection, Library
    from relocal_pyg.apps.serve.running import run

_WHERE = {
    "Collection": "library",
    "Library": "library",
    "SearchQueue": "jobs",
    "make_app": "app",
    "run": "running",
}

__all__ = ["Collection", "Library", "SearchQueue", "make_app", "run"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
