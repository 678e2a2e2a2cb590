"""One results table in five forms: terminal text, Markdown, JSON, LaTeX and HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from relocal_pyg.errors import ascii_line
from relocal_pyg.evaluation.comparison import Comparison, Row
from relocal_pyg.evaluation.scores import Estimate
from relocal_pyg.evaluation.thresholds import THRESHOLDS

#: What stands where there is no figure.
ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """One column: how it is headed and what it shows of a row.

    Attributes:
        group: Heading shared with the columns beside it; empty where there is none.
        heading: Short heading under the group.
        full: The heading said in full.
        show: Gives the text of a cell.
    """

    group: str
    heading: str
    full: str
    show: Callable[[Row], str]


def percent(score: Estimate | None, *, interval: bool = False) -> str:
    """A share as percent with one decimal, and half its interval where asked for.

    Example:
        >>> percent(Estimate(0.4928, 0.46, 0.53), interval=True)
        '49.3 ±3.5'
        >>> percent(None)
        '-'
    """
    if score is None:
        return ABSENT
    # Where every pair passes, or none, resampling shows no spread, which is not certainty.
    half = score.half_width if interval else None
    return f"{100 * score.value:.1f}" + (f" ±{100 * half:.1f}" if half else "")


def _score(name: str, interval: bool = False) -> Callable[[Row], str]:
    return lambda row: percent(row.scores.get(name), interval=interval)


#: The columns, the model's name first.
COLUMNS = (
    Column("", "Model", "Model", lambda row: row.title + (" †" if row.reconstructed else "")),
    *(
        Column(
            "mAP@1 (%)",
            f"{t:g}".removeprefix("0"),
            f"mAP@1 at {t:g}",
            _score(f"mAP@1@{t:g}", interval=t in (0.5, 0.7)),
        )
        for t in THRESHOLDS
    ),
    Column("", "avg_mAP@1", "avg_mAP@1", _score("avg_mAP@1")),
    Column("", "mIoU", "mIoU", _score("mIoU")),
    Column("", "R@5 .5", "R@5 at 0.5", _score("R@5@0.5")),
    Column("", "before .5", "mAP@1 at 0.5 before refinement", _score("before/mAP@1@0.5")),
    Column("", "N", "Pairs", lambda row: str(row.num_pairs)),
    Column(
        "",
        "s/query",
        "Seconds per query",
        lambda row: ABSENT if row.seconds is None else f"{row.seconds:.2g}",
    ),
)


def to_text(comparison: Comparison) -> str:
    """For a terminal: aligned columns, nothing but printable characters."""
    cells = [[column.heading for column in COLUMNS]]
    cells += [[column.show(row) for column in COLUMNS] for row in comparison.rows]
    cells = [[ascii_line(cell) for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "-" * max(map(len, lines))
    groups = " " * (widths[0] + 2) + COLUMNS[1].group
    body = [groups, lines[0], rule]
    for row, before, line in zip(comparison.rows, _previous(comparison), lines[1:], strict=True):
        if before is not None and before.kind != row.kind:
            body.append(rule)
        body.append(line)
    head = [ascii_line(comparison.header())]
    return "\n".join([*head, "", *body, "", *map(ascii_line, comparison.footnotes())]) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """For a README: a pipe table; markup in names is made inert."""
    lines = [
        _markdown(comparison.header()),
        "",
        "| " + " | ".join(_markdown(column.full) for column in COLUMNS) + " |",
        "|" + "|".join([" :--- "] + [" ---: "] * (len(COLUMNS) - 1)) + "|",
    ]
    lines += [
        "| " + " | ".join(_markdown(column.show(row)) for column in COLUMNS) + " |"
        for row in comparison.rows
    ]
    lines += ["", *(f"* {_markdown(line)}" for line in comparison.footnotes())]
    return "\n".join(lines) + "\n"


def to_json(comparison: Comparison) -> str:
    """For programs: every score with its interval, as shares and not as percent."""
    return json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n"


def to_latex(comparison: Comparison) -> str:
    r"""For a paper: a ``table`` that needs the ``booktabs`` package.

    Example:
        >>> _latex("100 % of <a_b> ±1")
        '100 \\% of \\textless{}a\\_b\\textgreater{} $\\pm$1'
    """
    first, count = 1, len(THRESHOLDS)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(comparison.header())}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}",
        r"\toprule",
        rf"& \multicolumn{{{count}}}{{c}}{{{_latex(COLUMNS[first].group)}}} \\",
        rf"\cmidrule(lr){{{first + 1}-{first + count}}}",
        " & ".join(_latex(column.heading) for column in COLUMNS) + r" \\",
    ]
    for row, before in zip(comparison.rows, _previous(comparison), strict=True):
        if before is None or before.kind != row.kind:
            lines.append(r"\midrule")
        lines.append(" & ".join(_latex(column.show(row)) for column in COLUMNS) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\begin{flushleft}\footnotesize"]
    lines += [_latex(line) + r"\\" for line in comparison.footnotes()]
    return "\n".join([*lines, r"\end{flushleft}", r"\end{table}"]) + "\n"


def to_html(comparison: Comparison) -> str:
    """For a page: a ``table`` with a caption and headed rows and columns, and its footnotes."""
    first, count = 1, len(THRESHOLDS)
    heads = [
        f'<th scope="col" abbr="{html.escape(c.full)}">{html.escape(c.heading)}</th>'
        for c in COLUMNS
    ]
    lines = [
        "<table>",
        f"<caption>{_html(comparison.header())}</caption>",
        "<thead>",
        f'<tr><td></td><th scope="colgroup" colspan="{count}">'
        f"{_html(COLUMNS[first].group)}</th>"
        f'<td colspan="{len(COLUMNS) - 1 - count}"></td></tr>',
        f"<tr>{''.join(heads)}</tr>",
        "</thead>",
    ]
    for row, before in zip(comparison.rows, _previous(comparison), strict=True):
        if before is None or before.kind != row.kind:
            lines += ["</tbody>"] if before else []
            lines.append(f'<tbody class="{row.kind}">')
        cells = [_html(column.show(row)) for column in COLUMNS]
        data = "".join(f"<td>{cell}</td>" for cell in cells[1:])
        lines.append(f'<tr><th scope="row">{cells[0]}</th>{data}</tr>')
    lines += ["</tbody>", "</table>", '<ul class="footnotes">']
    lines += [f"<li>{_html(line)}</li>" for line in comparison.footnotes()]
    return "\n".join([*lines, "</ul>"]) + "\n"


def _previous(comparison: Comparison) -> list[Row | None]:
    return [None, *comparison.rows[:-1]]


def _html(text: str) -> str:
    return html.escape(ascii_line(text))


def _markdown(text: str) -> str:
    """Escape what starts markup; an underscore inside a word starts none."""
    line = html.escape(ascii_line(text), quote=False)
    return re.sub(r"[\\`*\[\]|~#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in ascii_line(text))
