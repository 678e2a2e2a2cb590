"""Search: one query against many proposals, and against many videos."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.search.index import Hit, SearchIndex, add_videos, build_index, judge_hits
    from relocal_pyg.search.scorer import PairScorer
    from relocal_pyg.search.shards import score_shard, score_shards

_WHERE = {
    "Hit": "index",
    "PairScorer": "scorer",
    "SearchIndex": "index",
    "add_videos": "index",
    "build_index": "index",
    "judge_hits": "index",
    "score_shard": "shards",
    "score_shards": "shards",
}

__all__ = [
    "Hit",
    "PairScorer",
    "SearchIndex",
    "add_videos",
    "build_index",
    "judge_hits",
    "score_shard",
    "score_shards",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
