"""The parts that the report page is made of. Whatever comes from data is escaped here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from relocal_pyg.errors import ascii_line
from relocal_pyg.plot_style import svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
