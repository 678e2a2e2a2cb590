from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import (
    Comparison,
    Evaluation,
    bootstrap_interval,
    compare,
    evaluate,
    to_html,
    to_json,
    to_latex,
    to_markdown,
    to_text,
)
from relocal_pyg.evaluation.tables import COLUMNS
from relocal_pyg.models.base import Ranking
from relocal_pyg.models.matchers import Chance, ContrastMatcher, WholeReference


class Cells(HTMLParser):
    """Collects the text of table cells, and every tag and attribute seen."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


@pytest.fixture
def perfect(small_protocol: Protocol, small_pairs: PairList, scripted: Any) -> Evaluation:
    """The truth three times of four, rebuilt from nothing."""
    answers = [[[10.0, 20.0]], [[0.0, 10.0]], [[0.0, 40.0]], [[0.0, 1.0]]]
    rankings = [Ranking(torch.tensor(a), torch.ones(1)) for a in answers]
    evaluation = evaluate(scripted(rankings), small_protocol, small_pairs, progress=False)
    return replace(
        evaluation,
        title="Perfect <script>alert('x')</script> 50% & a_b|c\x1b[31m",
        reconstructed=True,
    )


@pytest.fixture
def comparison(
    small_protocol: Protocol, small_pairs: PairList, longest: Any, perfect: Evaluation
) -> Comparison:
    seeded = [
        replace(evaluate(Chance(seed), small_protocol, small_pairs, progress=False), seed=seed)
        for seed in (4, 2)
    ]
    other = evaluate(longest, small_protocol, small_pairs, progress=False)
    return compare([*seeded, other, perfect], samples=200)


def test_trivial_rows_and_the_oracle_are_always_there(comparison: Comparison) -> None:
    kinds = [row.kind for row in comparison.rows]
    assert kinds == ["model"] * 2 + ["trivial"] * 4 + ["oracle"]
    titles = {row.title for row in comparison.rows}
    assert {"Whole reference", "Centre half", "Random moment", "Proposal oracle"} <= titles
    for kind in ("model", "trivial"):
        values = [row.scores["mAP@1@0.5"].value for row in comparison.rows if row.kind == kind]
        assert values == sorted(values, reverse=True)
    assert comparison.leader.scores["mAP@1@0.95"].value == 0.75
    # The windows hit 10-20 and 0-10 exactly; of 40 and 30 steps they hold a quarter and a third.
    assert comparison.oracle.scores["mAP@1@0.95"].value == 0.5
    assert comparison.oracle.scores["mIoU"].value == pytest.approx((2 + 1 / 4 + 1 / 3) / 4)


def test_trivial_rows_are_what_the_models_answer(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    first = evaluate(longest, small_protocol, small_pairs, progress=False)
    real = evaluate(WholeReference(), small_protocol, small_pairs, progress=False)
    added, given = compare([first], samples=20), compare([first, real], samples=20)
    assert len(added.rows) == len(given.rows)
    for one, other in zip(added.rows, given.rows, strict=True):
        assert (one.title, one.scores) == (other.title, other.scores)
    timed = {row.title: row.seconds for row in given.rows}
    assert timed["Whole reference"] is not None
    assert timed["Centre half"] is None


def test_random_moments_differ_between_pairs_of_one_shape(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    first = evaluate(longest, small_protocol, small_pairs, progress=False)
    same = first.records[0]
    many = replace(first, records=(same,) * 40)
    run = compare([many], samples=20).evaluations["Random moment"][0]
    assert len({record.moments[0] for record in run.records}) > 20


def test_seeds_are_averaged_and_resampled(comparison: Comparison) -> None:
    row = next(row for row in comparison.rows if row.title == "Chance")
    runs = comparison.evaluations["Chance"]
    assert row.seeds == (2, 4)
    tious = torch.stack([run.tious for run in runs])
    assert row.scores["mIoU"].value == pytest.approx(tious.mean().item())
    names = [record.video_id for record in runs[0].records]
    low, high = bootstrap_interval(tious.reshape(-1), names * 2, [0] * 4 + [1] * 4, samples=200)
    assert (row.scores["mIoU"].low, row.scores["mIoU"].high) == (low.item(), high.item())
    assert "seeds of the models 2, 4" in comparison.header()
    assert any("averaged over them" in line for line in comparison.footnotes())


def test_differences_are_paired(comparison: Comparison) -> None:
    assert comparison.leader.behind is None
    assert comparison.oracle.behind is None
    row = next(row for row in comparison.rows if row.title == "Longest")
    hits = (comparison.evaluations["Longest"][0].tious > 0.5).double()
    best = (comparison.evaluations[comparison.leader.title][0].tious > 0.5).double()
    assert row.behind.value == pytest.approx((hits - best).mean().item())
    assert row.behind.low <= row.behind.value <= row.behind.high


def test_the_gain_over_the_matcher_is_paired(comparison: Comparison, perfect: Evaluation) -> None:
    assert all(row.gain is None for row in comparison.rows)  # it was not asked
    longest = comparison.evaluations["Longest"][0]
    table = compare([perfect, replace(longest, title=ContrastMatcher.title)], samples=50)
    gains = {row.title: row.gain for row in table.rows}
    hits = (perfect.tious > 0.5).double() - (longest.tious > 0.5).double()
    assert gains[perfect.title].value == hits.mean().item() > 0
    assert gains[ContrastMatcher.title] is gains["Proposal oracle"] is None
    column = next(column for column in COLUMNS if column.heading == "gain .5")
    assert column.show(table.rows[0]).startswith("+")


def test_an_evaluation_by_hand_is_set_beside_the_trivial_predictors(perfect: Evaluation) -> None:
    wanted = [row.scores for row in compare([perfect], samples=2).rows]
    bare = compare([replace(perfect, settings={}, environment={})], samples=2)
    assert [row.scores for row in bare.rows] == wanted


def test_only_one_pair_list_fits_in_a_table(perfect: Evaluation) -> None:
    for change in ({"pairs_sha256": "0" * 64}, {"split": "val"}, {"protocol": "other"}):
        with pytest.raises(UsageError, match="same pairs"):
            compare([perfect, replace(perfect, title="b", **change)])
    with pytest.raises(UsageError, match="number of pairs"):
        compare([perfect, replace(perfect, title="b", records=perfect.records[:1])])
    with pytest.raises(UsageError, match="its own seed or title"):
        compare([perfect, perfect])
    with pytest.raises(UsageError, match="at least one"):
        compare([])


def test_json_holds_every_score(comparison: Comparison) -> None:
    table = json.loads(to_json(comparison))
    assert [row["title"] for row in table["rows"]] == [row.title for row in comparison.rows]
    for plain, row in zip(table["rows"], comparison.rows, strict=True):
        assert {name: s["value"] for name, s in plain["scores"].items()} == {
            name: score.value for name, score in row.scores.items()
        }
    assert table["pairs_sha256"] == comparison.first.pairs_sha256
    assert table["about"] == {"made": "here"}
    assert "torch" in table["environment"]["packages"]


def test_text_is_aligned_and_cannot_steer_a_terminal(comparison: Comparison) -> None:
    text = to_text(comparison)
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Model"))
    ends = [lines[first].index("s/query") + len("s/query")]
    rows = [line for line in lines[first:] if re.search(r"  4  +\S+$", line)]
    assert len(rows) == len(comparison.rows)
    assert {len(row) for row in rows} == set(ends)
    assert "\x1b" not in text
    assert comparison.first.pairs_sha256[:12] in lines[0]
    assert "oracle mAP@1 50.0 at .5" in lines[0]


def test_markdown_has_one_cell_a_column(comparison: Comparison) -> None:
    rows = [line for line in to_markdown(comparison).splitlines() if line.startswith("|")]
    assert len(rows) == len(comparison.rows) + 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == len(COLUMNS) + 1
    assert "<script>" not in to_markdown(comparison)
    assert "| avg_mAP@1 |" in rows[0]


def test_latex_escapes_and_balances(comparison: Comparison) -> None:
    text = to_latex(comparison)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and " & " in line]
    assert len(rows) == len(comparison.rows) + 1
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(COLUMNS) - 1
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    for special in "%_$#":
        without_maths = text.replace(r"$\pm$", "")
        assert not re.search(rf"(?<!\\)\{special}", without_maths)
    assert r"50\% \& a\_b|c" in text
    assert r"\begin{tabular}{l" + "r" * (len(COLUMNS) - 1) + "}" in text


def test_html_shows_the_same_cells_and_runs_nothing(comparison: Comparison) -> None:
    page = Cells()
    page.feed(to_html(comparison))
    body = page.rows[2:]
    assert body == [
        [column.show(row).replace("\x1b", "\\x1b") for column in COLUMNS] for row in comparison.rows
    ]
    assert set(page.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert page.attributes.count(("scope", "row")) == len(comparison.rows)
    assert page.attributes.count(("scope", "col")) == len(COLUMNS)


def test_figures_carry_their_footnotes(comparison: Comparison, perfect: Evaluation) -> None:
    for text in (to_text(comparison), to_markdown(comparison), to_latex(comparison)):
        assert "not comparable with the tables printed there" in text
    assert any("†" in line for line in comparison.footnotes())
    plain = replace(
        perfect,
        title="Plain",
        reconstructed=False,
        settings={**perfect.settings, "queries_without_reference": 3},
        records=(*perfect.records[1:], replace(perfect.records[0], num_proposals=0)),
    )
    lines = compare([plain], samples=10).footnotes()
    assert not any("†" in line for line in lines)
    assert any(line.startswith("1 of the pairs have no proposals") for line in lines)
    assert any(line.startswith("3 further queries have no reference") for line in lines)
    assert not any("raining videos" in line for line in lines)
    for split, told in (("test_unseen", True), ("test_seen", False)):
        mixed = replace(plain, split=split, about={"test_unseen_from": "all videos"})
        shown = to_text(compare([mixed], samples=10))
        assert ("Training videos are among the videos of this split" in shown) == told


def test_no_interval_is_printed_where_nothing_varies(comparison: Comparison) -> None:
    whole = next(row for row in comparison.rows if row.title == "Whole reference")
    columns = {column.heading: column for column in COLUMNS}
    shown = columns[".5"].show(whole)
    assert whole.scores["mAP@1@0.5"].half_width is not None
    sure = replace(
        whole, scores={"mAP@1@0.5": replace(whole.scores["mAP@1@0.5"], low=0.5, high=0.5)}
    )
    assert "±" in shown
    assert "±" not in columns[".5"].show(sure)
    assert columns[".6"].show(sure) == "-"
