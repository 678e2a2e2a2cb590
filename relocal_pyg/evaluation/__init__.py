"""How good answers are: metrics, the harness that runs models, tables and the report page."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.evaluation.bootstrap import bootstrap_interval
    from relocal_pyg.evaluation.comparison import Comparison, Row, compare
    from relocal_pyg.evaluation.harness import evaluate
    from relocal_pyg.evaluation.machine import environment
    from relocal_pyg.evaluation.metrics import (
        MomentMAP,
        average_map_at_1,
        length_buckets,
        macro_map_at_1,
        map_at_1,
        mean_iou,
        recall_at,
    )
    from relocal_pyg.evaluation.overlaps import best_tiou, check_monotone, stack_moments
    from relocal_pyg.evaluation.recall import average_recall, oracle
    from relocal_pyg.evaluation.records import PairRecord
    from relocal_pyg.evaluation.report import write_report
    from relocal_pyg.evaluation.results import Evaluation
    from relocal_pyg.evaluation.scores import Estimate
    from relocal_pyg.evaluation.tables import to_html, to_json, to_latex, to_markdown, to_text

_WHERE = {
    "bootstrap_interval": "bootstrap",
    "Comparison": "comparison",
    "Row": "comparison",
    "compare": "comparison",
    "environment": "machine",
    "evaluate": "harness",
    "MomentMAP": "metrics",
    "average_map_at_1": "metrics",
    "length_buckets": "metrics",
    "macro_map_at_1": "metrics",
    "map_at_1": "metrics",
    "mean_iou": "metrics",
    "recall_at": "metrics",
    "best_tiou": "overlaps",
    "check_monotone": "overlaps",
    "stack_moments": "overlaps",
    "average_recall": "recall",
    "oracle": "recall",
    "PairRecord": "records",
    "write_report": "report",
    "Evaluation": "results",
    "Estimate": "scores",
    "to_html": "tables",
    "to_json": "tables",
    "to_latex": "tables",
    "to_markdown": "tables",
    "to_text": "tables",
}

__all__ = [
    "Comparison",
    "Estimate",
    "Evaluation",
    "MomentMAP",
    "PairRecord",
    "Row",
    "average_map_at_1",
    "average_recall",
    "best_tiou",
    "bootstrap_interval",
    "check_monotone",
    "compare",
    "environment",
    "evaluate",
    "length_buckets",
    "macro_map_at_1",
    "map_at_1",
    "mean_iou",
    "oracle",
    "recall_at",
    "stack_moments",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
