"""How good answers are: metrics, the harness that runs models, tables and the report page."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.evaluation.metrics import (
        MomentMAP,
        average_map_at_1,
        average_recall,
        best_tiou,
        check_monotone,
        length_buckets,
        macro_map_at_1,
        map_at_1,
        mean_iou,
        oracle,
        recall_at,
        stack_moments,
    )
    from relocal_pyg.evaluation.report import write_report
    from relocal_pyg.evaluation.results import Estimate, Evaluation, PairRecord
    from relocal_pyg.evaluation.run import environment, evaluate
    from relocal_pyg.evaluation.statistics import bootstrap_interval
    from relocal_pyg.evaluation.tables import (
        Comparison,
        Row,
        compare,
        to_html,
        to_json,
        to_latex,
        to_markdown,
        to_text,
    )

_WHERE = {
    "bootstrap_interval": "statistics",
    "Comparison": "tables",
    "Row": "tables",
    "compare": "tables",
    "environment": "run",
    "evaluate": "run",
    "MomentMAP": "metrics",
    "average_map_at_1": "metrics",
    "length_buckets": "metrics",
    "macro_map_at_1": "metrics",
    "map_at_1": "metrics",
    "mean_iou": "metrics",
    "recall_at": "metrics",
    "best_tiou": "metrics",
    "check_monotone": "metrics",
    "stack_moments": "metrics",
    "average_recall": "metrics",
    "oracle": "metrics",
    "PairRecord": "results",
    "write_report": "report",
    "Evaluation": "results",
    "Estimate": "results",
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
