"""From files to tensors: features, annotations, proposals, pairs of clips as graphs.

Names are imported when they are first used, so that looking into a feature file needs no torch.
The function ``resample`` is imported from its module, whose name it shares.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "FeatureStore": "features",
    "Item": "items",
    "ListDataset": "samples",
    "Pair": "items",
    "PairData": "pair_data",
    "PairList": "pairs",
    "ProposalRecord": "proposals",
    "Quarantine": "checks",
    "Segment": "annotations",
    "TagProposals": "proposals",
    "TripletDataset": "samples",
    "Video": "annotations",
    "WindowProposals": "proposals",
    "check_dataset": "checks",
    "make_pairs": "pairs",
    "read_activitynet": "annotations",
    "read_annotations": "annotations",
    "read_csv": "annotations",
    "read_proposal_list": "proposals",
    "read_thumos14": "annotations",
    "resample_windows": "pair_data",
    "write_features": "features",
    "write_proposal_list": "proposals",
}

__all__ = list(_EXPORTS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
