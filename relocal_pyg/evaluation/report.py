"""One HTML page that shows and explains a comparison, complete in one file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from relocal_pyg.errors import UsageError, ascii_line
from relocal_pyg.evaluation.plots import (
    adjacency,
    recall_curve,
    similarity_map,
    svg_text,
    timeline,
    training_curves,
)
from relocal_pyg.evaluation.results import PairRecord, Span
from relocal_pyg.evaluation.tables import (
    ABSENT,
    ORACLE,
    Comparison,
    Row,
    percent,
    presence_cells,
    to_html,
)
from relocal_pyg.io.write import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from relocal_pyg.data.items import Item, Protocol
    from relocal_pyg.graph import PairGraph


_STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --line: #c8c8c8; --soft: #f4f4f1; --link: #0b5394; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem 1.5rem 4rem; background: #fff;
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 3px solid var(--link);
  outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8125rem; }
caption { text-align: left; padding-bottom: .5rem; color: #444; }
th, td { padding: .2rem .5rem; text-align: right; white-space: nowrap; }
th[scope=row], tr > th:first-child, .names td, .names th { text-align: left; }
.names td { white-space: normal; overflow-wrap: anywhere; }
th[scope=colgroup] { text-align: center; border-bottom: 1px solid var(--line); }
thead tr:last-child > *, tbody + tbody > tr:first-child > * { border-bottom: 1px solid var(--ink); }
tbody + tbody > tr:first-child > * { border-bottom: 0; border-top: 1px solid var(--ink); }
tbody.trivial > tr, tbody.oracle > tr { background: var(--soft); }
th[scope=row] { font-weight: 600; }
.footnotes { font-size: .875rem; color: #444; padding-left: 1.2rem; }
figure { margin: 1rem 0 2rem; break-inside: avoid; }
figure img { width: min(100%, 56rem); height: auto; display: block; }
figcaption { font-size: .9rem; color: #333; }
@page { size: landscape; margin: 1.2cm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  .wide { overflow: visible; }
  table, .footnotes, figcaption { font-size: 7.5pt; }
  figure img { width: 17cm; }
  th, td { padding: .1rem .25rem; }
}
"""


def text(value: object) -> str:
    """Make a value inert and printable in HTML, inside an element or a quoted attribute.

    Example:
        >>> text('<script>"')
        '&lt;script&gt;&quot;'
    """
    return html.escape(ascii_line(str(value)))


def page(
    title: str, lead: str, sections: Iterable[tuple[str, str, str]], *, style: str = ""
) -> str:
    """A whole page: no script, nothing fetched; the policy in its head forbids both.

    Args:
        title: Plain text.
        lead: Plain text under the title.
        sections: Anchor, heading (plain text) and body (HTML) of each.
        style: More CSS; never from data.
    """
    parts = [(anchor, text(heading), body) for anchor, heading, body in sections if body]
    links = "".join(f'<li><a href="#{anchor}">{head}</a></li>' for anchor, head, _ in parts)
    bodies = "\n".join(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{head}</h2>\n{body}\n</section>'
        for anchor, head, body in parts
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<a class="skip" href="#results">Skip to the results</a>
<header>
<h1>{text(title)}</h1>
<p>{text(lead)}</p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{bodies}
</main>
</body>
</html>
"""


def scrolling(body: str, label: str) -> str:
    """Let wide content scroll on its own, also by keyboard."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{text(label)}">{body}</div>'


def table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], *, names: bool = False
) -> str:
    """A table whose first column names the rows.

    Args:
        caption: Plain text.
        heads: Headings of the columns, plain text.
        rows: Cells, plain values.
        names: Whether cells are words, aligned to the left and broken where they are long.
    """
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    )
    kind = ' class="names"' if names else ""
    return (
        f"<table{kind}><caption>{text(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    )


def details(summary: str, body: str) -> str:
    """Content that opens on demand."""
    return f"<details><summary>{text(summary)}</summary>\n{body}\n</details>"


def picture(figure: Figure, description: str, caption: str = "") -> str:
    """A picture inside the page, with words for those who cannot see it.

    As an image of its own the SVG can run nothing, whatever its labels say.
    """
    data = base64.b64encode(svg_text(figure).encode()).decode()
    note = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img alt="{text(description)}" src="data:image/svg+xml;base64,{data}">'
        f"{note}</figure>"
    )


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

    Raises:
        UsageError: ``protocol`` is another one or lacks a pictured pair, or a class has no pair.
        OutputError: The page could not be written; what was there before is intact.
    """
    if protocol.name != comparison.first.protocol:
        raise UsageError(
            f"the comparison is of protocol {comparison.first.protocol}, not of {protocol.name}"
        )
    sections = [
        ("results", "Results", scrolling(to_html(comparison), "Results table")),
        ("curve", "Every threshold", _curve(comparison)),
        ("differences", "Differences to the leading model", _differences(comparison)),
        ("lengths", "By length of the truth", _by_length(comparison)),
        ("classes", "By class", _by_label(comparison)),
        ("presence", "Does the reference hold it at all?", _presence(comparison)),
        ("proposals", "What the proposals allow", _recall(comparison)),
        ("timelines", "Answers on the time axis", _timelines(comparison, protocol, labels)),
        ("graphs", "Graphs of the network", _graphs(graphs)),
        ("training", "Training", _training(histories or {})),
        ("settings", "Settings and versions", _settings(comparison, settings or {})),
    ]
    count = sum(row.kind == "model" for row in comparison.rows)
    lead = (
        "Find the moment of a long reference video that means the same as a query clip: "
        f"{count} {'model' if count == 1 else 'models'} on the {len(comparison.first)} pairs of "
        f"protocol {protocol.name}, split {comparison.first.split}."
    )
    content = page(title, lead, sections)
    with replace_file(path) as temporary:
        Path(temporary).write_text(content, encoding="utf-8")


def _curve(comparison: Comparison) -> str:
    tious = {
        row.title: comparison.evaluations[row.title][0].tious
        for row in comparison.rows
        if row.kind != "oracle"
    }
    tious[ORACLE] = comparison.first.oracle_tious
    muted = [row.title for row in comparison.rows if row.kind == "trivial"]
    return picture(
        recall_curve(tious, muted=muted),
        "Share of queries above each tIoU threshold, one line a row of the results table; the "
        "table gives the figures at eight thresholds.",
        "mAP@1 at every threshold. Of a model with several seeds the first is drawn.",
    )


def _differences(comparison: Comparison) -> str:
    leader = comparison.leader.title
    rows = []
    for row in comparison.rows:
        if row.behind is None:
            continue
        low, high = row.behind.low, row.behind.high
        known = low is not None and high is not None
        ends = f"{100 * (low or 0):+.1f} to {100 * (high or 0):+.1f}" if known else ABSENT
        rows.append((row.title, f"{100 * row.behind.value:+.1f}", ends))
    return table(
        f"mAP@1 at .5 minus that of {leader}, in points, on the same pairs. An interval that "
        "does not hold 0 shows a difference that the choice of videos does not explain.",
        ("Model", "difference", "95 % interval"),
        rows,
    )


def _by_length(comparison: Comparison) -> str:
    shown = [row for row in comparison.rows if row.kind != "oracle"]
    parts = {row.title: _mean_parts(comparison, row, "by_length") for row in shown}
    buckets = parts[shown[0].title]
    heads = ["Model", *(f"{name} (N = {part['pairs']:.0f})" for name, part in buckets.items())]
    rows = [
        (title, *(_cell(part["mAP@1@0.5"]) for part in by_length.values()))
        for title, by_length in parts.items()
    ]
    return table("mAP@1 at .5 (%) by length of the true moment in seconds", heads, rows)


def _by_label(comparison: Comparison) -> str:
    leader = comparison.leader
    rows = [
        (
            label,
            f"{part['pairs']:.0f}",
            *(_cell(part[key]) for key in ("mAP@1@0.5", "mAP@1@0.7", "mIoU")),
        )
        for label, part in _mean_parts(comparison, leader, "by_label").items()
    ]
    body = table(
        f"{leader.title}, in percent", ("Class", "N", "mAP@1 .5", "mAP@1 .7", "mIoU"), rows
    )
    return details(f"{len(rows)} classes", body)


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


def _presence(comparison: Comparison) -> str:
    if not comparison.presence:
        return ""
    caption, (heads, *rows) = presence_cells(comparison)
    return scrolling(table(caption, heads, rows), "Table of references without the action")


def _cell(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def _recall(comparison: Comparison) -> str:
    recall = comparison.average_recall
    scores = comparison.oracle.scores
    facts = table(
        "Average recall (%) of the truths by the first proposals of each reference, over the "
        "thresholds .5 to .95",
        ("Proposals", *(f"first {budget}" for budget in recall)),
        [("AR@AN", *(_cell(value) for value in recall.values()))],
    )
    best = percent(scores["mIoU"], interval=True)
    return (
        f"<p>The best of {comparison.proposals_per_reference:.1f} proposals per reference has a "
        f"mean tIoU of {best} %.</p>{facts}"
    )


def _timelines(comparison: Comparison, protocol: Protocol, labels: Sequence[str]) -> str:
    split = protocol.splits.get(comparison.first.split, ())
    items = {item.item_id: item for item in split}
    parts = []
    for position, why in _choose(comparison, labels).items():
        record = comparison.first.records[position]
        for item_id in (record.query_id, record.reference_id):
            if item_id not in items:
                raise UsageError(
                    f"protocol {protocol.name} has no such item: evaluate it again", record=item_id
                )
        parts.append(_timeline(comparison, protocol, items, position, why))
    return "\n".join(parts)


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


def _timeline(
    comparison: Comparison,
    protocol: Protocol,
    items: Mapping[str, Item],
    position: int,
    why: str,
) -> str:
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
    return "\n".join(
        [
            picture(
                figure,
                f"Timeline of {place}. The truth is {truths}; {told}.",
                f"{record.label}: {place} ({why}).",
            ),
            picture(
                steps,
                f"Cosine similarity of every query step with every reference step, {place}.",
                f"The same pair, step by step; the answer is that of {leader}.",
            ),
            details("Figures", _answers(answers)),
        ]
    )


def _answers(answers: Mapping[str, PairRecord]) -> str:
    rows = [
        (
            title,
            _seconds(answer.moments_seconds[0]) if answer.moments else ABSENT,
            f"{answer.tiou:.3f}",
            _seconds(answer.before_seconds) if answer.before_seconds else ABSENT,
            ABSENT if answer.tiou_before is None else f"{answer.tiou_before:.3f}",
            f"{answer.oracle:.3f}",
        )
        for title, answer in answers.items()
    ]
    heads = ("Model", "answer", "tIoU", "before refinement", "its tIoU", "oracle tIoU")
    return table("Best answers, in seconds of the reference", heads, rows)


def _graphs(graphs: Sequence[PairGraph]) -> str:
    return "\n".join(
        picture(
            adjacency(graph),
            f"Adjacency of the graph k = {graph.k}: a band inside each video, a comb across.",
            f"k = {graph.k}: each step is joined with its {2 * graph.k} nearest of its own video "
            f"and with steps of the other video, {graph.k} apart.",
        )
        for graph in graphs
    )


def _training(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    return "\n".join(
        picture(
            training_curves(history),
            f"Training of {title}: losses and validation scores by optimiser step.",
            title,
        )
        for title, history in histories.items()
    )


def _settings(comparison: Comparison, settings: Mapping[str, object]) -> str:
    first = comparison.first
    groups: list[tuple[str, Mapping[str, object]]] = [
        ("Settings", settings),
        ("Evaluation", {"pair list": first.pairs_sha256, **first.settings}),
        ("Protocol", first.about),
        ("Versions and machine", first.environment),
    ]
    return "\n".join(
        table(caption, ("Name", "Value"), [(k, _plain(v)) for k, v in facts.items()], names=True)
        for caption, facts in groups
        if facts
    )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _seconds(span: Span) -> str:
    return f"{span[0]:.1f} to {span[1]:.1f} s"
