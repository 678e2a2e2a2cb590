from __future__ import annotations

import base64
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from relocal_pyg.data.items import Item, Pair, Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import OutputError, UsageError
from relocal_pyg.evaluation import Comparison, compare, evaluate, report, write_report
from relocal_pyg.graph import PairGraph

EVIL = "<script>alert(1)</script>\"'&$\\frac{$\x1b"
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rename(item: Item) -> Item:
    """The item under names that would do harm."""
    return replace(item, item_id=EVIL + item.item_id, label=EVIL + item.label)


@pytest.fixture(scope="module")
def evil_protocol(small_protocol: Protocol) -> Protocol:
    items = tuple(rename(item) for item in small_protocol.splits["test"])
    return replace(small_protocol, name=EVIL, splits={"test": items}, about={EVIL: [EVIL]})


@pytest.fixture(scope="module")
def evil(evil_protocol: Protocol, longest: Any) -> Comparison:
    run_a, run_b, jump_a, jump_b = evil_protocol.splits["test"]
    pairs = PairList((Pair(run_a, run_b), Pair(jump_a, jump_b)), EVIL, "test", 6, "video")
    model = evaluate(longest, evil_protocol, pairs, title=EVIL, progress=False)
    return compare([model, replace(model, title="Other")], samples=20)


@pytest.fixture(scope="module")
def page(
    evil: Comparison, evil_protocol: Protocol, tmp_path_factory: pytest.TempPathFactory
) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    history = [{"step": 0.0, "val_score": 0.1}, {"step": 5.0, "val_score": 0.3, EVIL: 2.0}]
    write_report(
        path,
        evil,
        evil_protocol,
        title=EVIL,
        labels=[EVIL + "run"],
        settings={EVIL: EVIL},
        histories={EVIL: history},
        graphs=[PairGraph(6, 1), PairGraph(6, 2)],
    )
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_what_users_supply_is_inert(page: Page) -> None:
    assert not page.all("script")
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in page.text
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(name.startswith("on") for name in names)
    for attributes in page.all("img"):
        assert "<script>alert(1)</script>" in attributes["alt"] or (
            "threshold" in attributes["alt"] or "Adjacency" in attributes["alt"]
        )


def test_pairs_and_graphs_are_pictured_step_by_step(page: Page) -> None:
    pictured = [attributes["alt"] for attributes in page.all("img")]
    timelines = [alt for alt in pictured if alt.startswith("Timeline")]
    maps = [alt for alt in pictured if alt.startswith("Cosine similarity")]
    assert len(maps) == len(timelines) > 0
    assert [alt for alt in pictured if "k = 1" in alt or "k = 2" in alt] == [
        "Adjacency of the graph k = 1: a band inside each video, a comb across.",
        "Adjacency of the graph k = 2: a band inside each video, a comb across.",
    ]


def test_best_and_worst_are_what_they_are_called(page: Page, evil: Comparison) -> None:
    records = evil.evaluations[evil.leader.title][0].records
    best, worst = sorted(records, key=lambda record: -record.tiou)
    for record, why in ((best, "best"), (worst, "median"), (worst, "worst")):
        place = f"query {record.query_id} in reference {record.reference_id}"
        caption = f"{record.label}: {place} ({why} query of {evil.leader.title})."
        shown = caption.replace("\x1b", "\\x1b") in page.text
        # Of two pairs the lower one is the median as well, and is pictured once.
        assert shown == (why != "worst")
    assert best.tiou > worst.tiou


def test_nothing_is_fetched(page: Page) -> None:
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/svg+xml;base64,")), (tag, name)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}


def test_pictures_are_svg_without_script_or_network(page: Page) -> None:
    sources = [attributes["src"].partition(",")[2] for attributes in page.all("img")]
    # Threshold curve, best and worst of two pairs (the class asked for is one of them), each with
    # its similarity map, two graphs, training.
    assert len(sources) == 8
    for source in sources:
        root = ElementTree.fromstring(base64.b64decode(source))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "script" not in tags
        assert "foreignObject" not in tags
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.rpartition("}")[2] in ("href", "src"):
                    assert value.startswith(("#", "data:"))


def test_the_page_can_be_read_without_eyes_or_mouse(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    anchors = {attributes["id"] for attributes in page.all("h2")}
    links = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    assert anchors
    assert links == anchors
    assert len(page.all("caption")) == len(page.all("table")) >= 6
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert all(len(attributes["alt"]) > 40 for attributes in page.all("img"))
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    assert regions
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_the_page_tells_what_was_measured(page: Page, evil: Comparison) -> None:
    for row in evil.rows:
        assert row.title.replace("\x1b", "\\x1b") in page.text
    assert evil.first.pairs_sha256 in page.text
    assert "not comparable with the tables printed there" in page.text
    assert evil.first.environment["packages"]["torch"] in page.text
    longest_first = evil.evaluations["Other"][0].records[0].moments_seconds[0]
    assert f"{longest_first[0]:.1f} to {longest_first[1]:.1f} s" in page.text
    recall = "".join(f"{100 * value:.1f}" for value in evil.first.average_recall.values())
    assert f"AR@AN{recall}" in page.text


@pytest.mark.slow
def test_the_same_comparison_gives_the_same_page(
    evil: Comparison, evil_protocol: Protocol, tmp_path: Path
) -> None:
    write_report(tmp_path / "a.html", evil, evil_protocol)
    write_report(tmp_path / "b.html", evil, evil_protocol)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert 'id="training"' not in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_report_of_something_else_is_refused(
    evil: Comparison, evil_protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(UsageError, match="not of other"):
        write_report(path, evil, replace(evil_protocol, name="other"))
    with pytest.raises(UsageError, match="no pair of class 'swim'"):
        write_report(path, evil, evil_protocol, labels=["swim"])
    with pytest.raises(UsageError, match="no such item"):
        write_report(path, evil, replace(evil_protocol, splits={}))
    assert not path.exists()
    monkeypatch.setattr(report, "render", lambda *_, **__: "the page")
    with pytest.raises(OutputError):
        write_report(tmp_path, evil, evil_protocol)


@pytest.mark.slow
def test_models_without_an_answer_are_told_apart(
    evil: Comparison, evil_protocol: Protocol, tmp_path: Path
) -> None:
    title = evil.leader.title
    run = evil.evaluations[title][0]
    silent = tuple(
        replace(r, moments=(), scores=(), tious=(), before=None, tiou_before=None)
        for r in run.records
    )
    mute = compare([replace(run, records=silent, title="Mute")], samples=10)
    write_report(tmp_path / "report.html", mute, evil_protocol)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert any("Mute gives no answer" in attributes["alt"] for attributes in page.all("img"))
