"""One results table in five forms: terminal text, Markdown, JSON, LaTeX and HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
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
    Column("", "all@5 .5", "Share of all true moments met by 5 answers", _score("all@5@0.5")),
    Column("", "before .5", "mAP@1 at 0.5 before refinement", _score("before/mAP@1@0.5")),
    Column("", "N", "Pairs", lambda row: str(row.num_pairs)),
    Column(
        "",
        "s/query",
        "Seconds per query",
        lambda row: ABSENT if row.seconds is None else f"{row.seconds:.2g}",
    ),
)


def presence_cells(comparison: Comparison) -> tuple[str, list[list[str]]]:
    """The second table, as a caption and rows of cells, headings first.

    It is there where :attr:`Comparison.presence` is not empty.
    """
    first = comparison.first_with_nulls
    stretches = sum(" free of " in null.reference_id for null in first.nulls)
    caption = (
        f"Does the reference hold it at all? {len(first)} references that do and "
        f"{len(first.nulls)} that do not, of which {stretches} are the longest stretch without the "
        "class of a reference that shows it (shorter: compare with the row of lengths). AUROC: "
        "chance that one that does ranks above one that does not. ECE: calibration error, over "
        "bins of equal count, of the probabilities that the reference holds the action and that "
        "the best answer is right (tIoU above .5), for queries asked about both kinds of "
        "reference; in brackets that of exact probabilities at this N."
    )
    cells = [["Model", "by", "AUROC (%)", "ECE held (%)", "ECE right (%)", "N"]]
    for row in comparison.presence:
        errors = [
            ABSENT if error is None else f"{100 * error.value:.1f} ({100 * error.by_chance:.1f})"
            for error in (row.presence_error, row.moment_error)
        ]
        counts = f"{row.num_pairs}+{row.num_nulls}"
        cells.append([row.title, row.by, percent(row.auroc, interval=True), *errors, counts])
    return caption, cells


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first to the left and the others to the right."""
    plain = [[ascii_line(cell) for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in plain
    ]


def to_text(comparison: Comparison) -> str:
    """For a terminal: aligned columns, nothing but printable characters."""
    heads = [column.heading for column in COLUMNS]
    lines = _aligned([heads, *([c.show(row) for c in COLUMNS] for row in comparison.rows)])
    rule = "-" * max(map(len, lines))
    groups = " " * lines[0].index(COLUMNS[1].heading) + COLUMNS[1].group
    body = [groups, lines[0], rule]
    for row, before, line in zip(comparison.rows, _previous(comparison), lines[1:], strict=True):
        if before is not None and before.kind != row.kind:
            body.append(rule)
        body.append(line)
    head = [ascii_line(comparison.header())]
    body += ["", *map(ascii_line, comparison.footnotes())]
    if comparison.presence:
        caption, cells = presence_cells(comparison)
        first, *others = _aligned(cells)
        body += ["", caption, "", first, "-" * len(max([first, *others], key=len)), *others]
    return "\n".join([*head, "", *body]) + "\n"


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
    if comparison.presence:
        caption, (heads, *rows) = presence_cells(comparison)
        rule = [":---", ":---", *["---:"] * (len(heads) - 2)]
        lines += ["", _markdown(caption), ""]
        lines += [f"| {' | '.join(map(_markdown, heads))} |", f"| {' | '.join(rule)} |"]
        lines += [f"| {' | '.join(map(_markdown, row))} |" for row in rows]
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
    lines += [r"\end{flushleft}", r"\end{table}"]
    if comparison.presence:
        caption, (heads, *rows) = presence_cells(comparison)
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}}}"]
        lines += [rf"\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}", r"\toprule"]
        lines += [" & ".join(map(_latex, heads)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


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
