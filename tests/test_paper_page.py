"""The page on the paper names code that exists, and says of its tables what they hold."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from relocal_pyg.evaluation.metrics import THRESHOLDS, check_monotone
from relocal_pyg.graph import PairGraph

PAGE = Path(__file__).resolve().parents[1] / "docs" / "paper.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(relocal_pyg[\w.]*)`", TEXT)))

WORDS = {5: "five", 6: "six", 7: "seven", 8: "eight"}
#: Table 3 of the paper: number of layers, number of graphs, mAP@1 at the eight thresholds.
TABLE_3 = {
    (1, 1): (48.62, 47.89, 48.63, 42.19, 35.61, 28.21, 21.05, 9.38),
    (1, 2): (48.74, 48.21, 48.99, 43.22, 36.64, 28.53, 21.47, 9.44),
    (1, 3): (46.87, 46.29, 47.10, 42.23, 34.57, 27.85, 21.05, 9.30),
    (2, 1): (49.18, 48.42, 48.74, 42.90, 37.27, 30.27, 21.41, 8.71),
    (2, 2): (49.22, 48.42, 48.61, 43.87, 37.39, 28.92, 21.91, 8.84),
    (2, 3): (49.28, 49.05, 49.30, 44.01, 37.46, 29.59, 22.07, 9.92),
    (3, 1): (43.10, 42.96, 42.69, 37.03, 30.61, 24.90, 15.81, 6.80),
    (3, 2): (45.99, 44.48, 44.61, 40.56, 30.76, 25.20, 17.38, 7.67),
    (3, 3): (44.02, 43.63, 44.39, 39.94, 32.76, 23.70, 18.05, 6.83),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_code_on_the_page_exists(name: str) -> None:
    module, attributes = name, []
    while True:
        try:
            found = import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            assert module, f"{name} does not exist"
            attributes.insert(0, last)
    for attribute in attributes:
        found = getattr(found, attribute)


def test_links_inside_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links
    assert set(links) <= anchors


def said(sentence: str) -> bool:
    """Whether the page says it, wherever its lines break."""
    return " ".join(sentence.split()) in " ".join(TEXT.split())


def test_the_page_counts_the_rows_that_rise_as_the_code_does() -> None:
    def refused(row: tuple[float, ...], thresholds: tuple[int, ...]) -> bool:
        try:
            check_monotone({THRESHOLDS[i]: row[i] for i in thresholds})
        except ValueError:
            return True
        return False

    rise, more = (
        WORDS[sum(refused(row, places) for row in TABLE_3.values())] for places in ((1, 2), (0, 2))
    )
    assert said(f"In Table 3 {rise} of nine rows rise from .6 to .7, and {more} have more at .7")
    assert all(refused(row, tuple(range(8))) for row in list(TABLE_3.values())[:6])
    assert said("Table 1 has 49.28 / 49.05 / **49.30**")
    assert TABLE_3[2, 3][:3] == (49.28, 49.05, 49.30)


def test_the_page_says_which_k_is_best_as_the_table_does() -> None:
    best = {
        layers: [max((1, 2, 3), key=lambda k: TABLE_3[layers, k][column]) for column in range(8)]
        for layers in (1, 2, 3)
    }
    assert said(f"holds for two layers, in {WORDS[best[2].count(3)]} of eight columns")
    assert said("With one layer `k = 2` is the best in every column")
    assert best[1].count(2) == 8
    assert said(f"with three layers in {WORDS[best[3].count(2)]} of eight")
    first, second = (TABLE_3[2, k + 1][7] - TABLE_3[2, k][7] for k in (1, 2))
    assert said(f"the gain from 1 to 2 graphs is {first:.2f} points and from 2 to 3 it is")
    assert said(f"from 2 to 3 it is {second:.2f}")


def test_what_is_said_of_edges() -> None:
    for k, edges, between in ((1, "3,436", "3,200"), (2, "1,988", "1,600"), (3, "1,604", "1,068")):
        matrix = PairGraph(40, k).dense()
        assert f"{int(matrix.sum()):,}" == edges
        assert f"{int(2 * matrix[:40, 40:].sum()):,}" == between
        assert edges in TEXT
        assert between in TEXT
