from .metrics import (
    MomentMAP,
    best_tiou,
    check_monotone,
    length_buckets,
    map_at_1,
    oracle,
    stack_moments,
)
from .report import to_html, write_report
from .results import Evaluation, PairRecord
from .run import answer_pairs, environment, evaluate
from .statistics import Estimate, bootstrap_interval
from .tables import Comparison, Row, compare, to_json, to_latex, to_markdown, to_text

__all__ = [
    "Comparison",
    "Estimate",
    "Evaluation",
    "MomentMAP",
    "PairRecord",
    "Row",
    "answer_pairs",
    "best_tiou",
    "bootstrap_interval",
    "check_monotone",
    "compare",
    "environment",
    "evaluate",
    "length_buckets",
    "map_at_1",
    "oracle",
    "stack_moments",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_report",
]
