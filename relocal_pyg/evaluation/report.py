"""Pages from templates, all that is not a template's own escaped; the page of a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation.plots import (
    adjacency,
    recall_curve,
    render,
    similarity_map,
    timeline,
    training_curves,
)
from relocal_pyg.evaluation.results import Span
from relocal_pyg.evaluation.run import check_protocol
from relocal_pyg.evaluation.tables import (
    ABSENT,
    COLUMNS,
    ORACLE,
    Comparison,
    Row,
    percent,
    presence_cells,
)
from relocal_pyg.io.write import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from relocal_pyg.data.items import Item, Protocol
    from relocal_pyg.data.pairs import PairList
    from relocal_pyg.graph import PairGraph


def to_html(comparison: Comparison) -> Markup:
    """For a page: a ``table`` with a caption and headed rows and columns, and its footnotes."""
    return render("results.html", comparison=comparison, columns=COLUMNS)


#: More models than this are too many for one timeline.
MAX_MODELS = 6


def write_report(
    path: str | Path,
    comparison: Comparison,
    protocol: Protocol,
    *,
    title: str = "Video relocalization",
    labels: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    histories: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    graphs: Sequence[PairGraph] = (),
    pairs: PairList | None = None,
) -> None:
    """Write the page: table, curves, timelines, settings and versions; no network, no script.

    Timelines and similarity maps show the leading model's best, median and worst query, and the
    median query of each class asked for.

    Args:
        path: The HTML file.
        comparison: From :func:`relocal_pyg.evaluation.compare`.
        protocol: The protocol that was evaluated: proposals of the pictured pairs are read again.
        title: Heading of the page.
        labels: Classes to picture as well.
        settings: What to list beside the versions: configurations, command line.
        histories: Training history by name of the model, as :func:`relocal_pyg.training.fit`
            gives it.
        graphs: The network's graphs, to picture as the paper's Figures 4 to 6 do.
        pairs: The list that was asked, where its items are not those of the protocol's split.

    Raises:
        UsageError: ``protocol`` is another one or lacks a pictured pair, or a class has no pair.
        OutputError: The page could not be written; what was there before is intact.
    """
    check_protocol("the comparison", comparison.first.protocol, protocol)
    count = sum(row.kind == "model" for row in comparison.rows)
    content = render(
        "report.html",
        title=title,
        lead="Find the moment of a long reference video that means the same as a query clip: "
        f"{count} {'model' if count == 1 else 'models'} on the {len(comparison.first)} pairs of "
        f"protocol {protocol.name}, split {comparison.first.split}.",
        comparison=comparison,
        results=to_html(comparison),
        curve=_curve(comparison),
        differences=_differences(comparison),
        lengths=_by_length(comparison),
        classes=_by_label(comparison),
        presence=_table(*presence_cells(comparison)) if comparison.presence else None,
        oracle=percent(comparison.oracle.scores["mIoU"], interval=True),
        recall=_recall(comparison),
        pairs=_pairs(comparison, protocol, labels, pairs),
        graphs=[(graph, adjacency(graph)) for graph in graphs],
        histories={name: training_curves(each) for name, each in (histories or {}).items()},
        settings=_settings(comparison, settings or {}),
    )
    replace_text(path, content)


def _table(caption: str, cells: Sequence[Sequence[object]]) -> dict[str, Any]:
    """What the template's ``table`` takes; the first of the cells are the headings."""
    return {"caption": caption, "heads": cells[0], "rows": cells[1:]}


def _curve(comparison: Comparison) -> Figure:
    tious = {
        row.title: comparison.evaluations[row.title][0].tious
        for row in comparison.rows
        if row.kind != "oracle"
    }
    tious[ORACLE] = comparison.first.oracle_tious
    muted = [row.title for row in comparison.rows if row.kind == "trivial"]
    return recall_curve(tious, muted=muted)


def _differences(comparison: Comparison) -> dict[str, Any]:
    leader = comparison.leader.title
    cells = [("Model", "difference", "95 % interval")]
    for row in comparison.rows:
        if row.behind is None:
            continue
        low, high = row.behind.low, row.behind.high
        known = low is not None and high is not None
        ends = f"{100 * (low or 0):+.1f} to {100 * (high or 0):+.1f}" if known else ABSENT
        cells.append((row.title, f"{100 * row.behind.value:+.1f}", ends))
    return _table(
        f"mAP@1 at .5 minus that of {leader}, in points, on the same pairs. An interval that "
        "does not hold 0 shows a difference that the choice of videos does not explain.",
        cells,
    )


def _by_length(comparison: Comparison) -> dict[str, Any]:
    shown = [row for row in comparison.rows if row.kind != "oracle"]
    parts = {row.title: _mean_parts(comparison, row, "by_length") for row in shown}
    buckets = parts[shown[0].title]
    heads = ["Model", *(f"{name} (N = {part['pairs']:.0f})" for name, part in buckets.items())]
    rows = [
        (title, *(_cell(part["mAP@1@0.5"]) for part in by_length.values()))
        for title, by_length in parts.items()
    ]
    return _table("mAP@1 at .5 (%) by length of the true moment in seconds", [heads, *rows])


def _by_label(comparison: Comparison) -> dict[str, Any]:
    leader = comparison.leader
    rows = [
        (
            label,
            f"{part['pairs']:.0f}",
            *(_cell(part[key]) for key in ("mAP@1@0.5", "mAP@1@0.7", "mIoU")),
        )
        for label, part in _mean_parts(comparison, leader, "by_label").items()
    ]
    heads = ("Class", "N", "mAP@1 .5", "mAP@1 .7", "mIoU")
    return _table(f"{leader.title}, in percent", [heads, *rows])


def _mean_parts(
    comparison: Comparison, row: Row, method: str
) -> dict[str, dict[str, float | None]]:
    """Scores by part of the pairs, averaged over the seeds of a row."""
    runs = [getattr(run, method)() for run in comparison.evaluations[row.title]]
    return {
        name: {
            key: None if value is None else sum(run[name][key] for run in runs) / len(runs)
            for key, value in part.items()
        }
        for name, part in runs[0].items()
    }


def _cell(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def _recall(comparison: Comparison) -> dict[str, Any]:
    recall = comparison.first.average_recall
    return _table(
        "Average recall (%) of the truths by the first proposals of each reference (sliding "
        "windows, which have no order: by some of them at random), over the thresholds .5 to .95",
        [
            ("Proposals", *(f"first {budget}" for budget in recall)),
            ("AR@AN", *(_cell(value) for value in recall.values())),
        ],
    )


def _pairs(
    comparison: Comparison, protocol: Protocol, labels: Sequence[str], pairs: PairList | None
) -> list[dict[str, object]]:
    if pairs is None:
        asked: Iterable[Item] = protocol.splits.get(comparison.first.split, ())
    else:
        asked = (item for pair in pairs.pairs for item in (pair.query, pair.reference))
    items = {item.item_id: item for item in asked}
    shown = []
    for position, why in _choose(comparison, labels).items():
        record = comparison.first.records[position]
        for item_id in (record.query_id, record.reference_id):
            if item_id not in items:
                raise UsageError(
                    f"protocol {protocol.name} has no such item: evaluate it again", record=item_id
                )
        shown.append(_pair(comparison, protocol, items, position, why))
    return shown


def _choose(comparison: Comparison, labels: Sequence[str]) -> dict[int, str]:
    """Positions of the pairs to picture, each with why it was chosen."""
    leader = comparison.evaluations[comparison.leader.title][0]
    order = sorted(range(len(leader)), key=lambda i: (-leader.records[i].tiou, i))
    chosen: dict[int, str] = {}
    for place, why in ((0, "best"), (len(order) // 2, "median"), (len(order) - 1, "worst")):
        chosen.setdefault(order[place], f"{why} query of {leader.title}")
    for label in labels:
        inside = [i for i in order if leader.records[i].label == label]
        if not inside:
            known = ", ".join(sorted({record.label for record in leader.records}))
            raise UsageError(f"no pair of class {label!r}: one of {known} wanted")
        chosen.setdefault(inside[len(inside) // 2], "median query of its class")
    return chosen


def _pair(
    comparison: Comparison, protocol: Protocol, items: Mapping[str, Item], position: int, why: str
) -> dict[str, object]:
    """One pair in pictures: what the template's ``pair`` takes."""
    models = [row.title for row in comparison.rows if row.kind == "model"][:MAX_MODELS]
    titles = models or [comparison.leader.title]
    answers = {title: comparison.evaluations[title][0].records[position] for title in titles}
    record = next(iter(answers.values()))
    query, reference = items[record.query_id], items[record.reference_id]
    step = reference.seconds_per_step
    proposals = (protocol.proposals(reference, query).double() * step).tolist()
    figure = timeline(
        query.query_steps * query.seconds_per_step,
        reference.num_steps * step,
        record.truths_seconds,
        {title: answer.moments_seconds for title, answer in answers.items()},
        proposals=[(start, end) for start, end in proposals],
    )
    truths = ", ".join(map(_seconds, record.truths_seconds))
    told = "; ".join(
        f"{title} answers {_seconds(answer.moments_seconds[0])}, tIoU {answer.tiou:.2f}"
        if answer.moments
        else f"{title} gives no answer"
        for title, answer in answers.items()
    )
    place = f"query {record.query_id} in reference {record.reference_id}"
    leader, best = next(iter(answers.items()))
    steps = similarity_map(
        protocol.query(query),
        protocol.reference(reference),
        best.moments_seconds[0] if best.moments else None,
        truths=record.truths_seconds,
        seconds_per_step=step,
        query_seconds_per_step=query.seconds_per_step,
    )
    return {
        "timeline": figure,
        "steps": steps,
        "told": f"Timeline of {place}. The truth is {truths}; {told}.",
        "label": record.label,
        "place": place,
        "why": why,
        "leader": leader,
        "answers": [
            (
                title,
                _seconds(answer.moments_seconds[0]) if answer.moments else ABSENT,
                f"{answer.tiou:.3f}",
                _seconds(answer.before_seconds) if answer.before_seconds else ABSENT,
                ABSENT if answer.tiou_before is None else f"{answer.tiou_before:.3f}",
                f"{answer.oracle:.3f}",
            )
            for title, answer in answers.items()
        ],
    }


def _settings(comparison: Comparison, settings: Mapping[str, object]) -> list[dict[str, Any]]:
    first = comparison.first
    groups: list[tuple[str, Mapping[str, object]]] = [
        ("Settings", settings),
        ("Evaluation", {"pair list": first.pairs_sha256, **first.settings}),
        ("Protocol", first.about),
        ("Versions and machine", first.environment),
    ]
    return [
        _table(caption, [("Name", "Value"), *((k, _plain(v)) for k, v in facts.items())])
        for caption, facts in groups
        if facts
    ]


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _seconds(span: Span) -> str:
    return f"{span[0]:.1f} to {span[1]:.1f} s"
