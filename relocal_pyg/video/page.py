"""The page that shows what was found: one HTML file, no script, nothing fetched."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from torch import Tensor
from torch.nn import functional

from relocal_pyg import __version__
from relocal_pyg.errors import UsageError, VideoError, ascii_line
from relocal_pyg.evaluation.plots import BLUE, DARK, ORANGE, colour_bar, explanation_map, new_figure
from relocal_pyg.evaluation.report import data_url, render, templates
from relocal_pyg.formats.clips import clock, presence_line
from relocal_pyg.io.write import replace_file
from relocal_pyg.moments import Moment
from relocal_pyg.video.decode import frames, probe
from relocal_pyg.video.find import Found
from relocal_pyg.video.query import StillQuery

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def thumbnails(path: str | Path, times: Iterable[float], height: int = 96) -> list[bytes | None]:
    """The pictures on the screen at given times, as JPEG.

    Args:
        path: The video file.
        times: Seconds.
        height: Pixels; the width follows from the video, at most 4 times as much.

    Returns:
        A JPEG file for each time; None where the video shows nothing then.

    Raises:
        VideoError: The file cannot be decoded at all.
        UsageError: ``height`` is out of range.
    """
    from PIL import Image

    if not 1 <= height <= 1024:
        raise UsageError(f"height is {height}, 1 to 1024 wanted")
    info = probe(path)
    width = round(height * min(max(info.width / info.height, 0.25), 4))
    pictures: list[bytes | None] = []
    for time in times:
        shown = frames(
            path, rate_hz=10.0, start=max(time, 0.0), size=(height, width), report=_keep_quiet
        )
        try:
            _, picture = next(shown)
        except VideoError:
            pictures.append(None)
            continue
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=80)
        pictures.append(buffer.getvalue())
    return pictures


def spread(start: float, end: float, count: int) -> Sequence[float]:
    """Times in the middle of ``count`` equal parts of a stretch.

    Example:
        >>> spread(2.0, 6.0, 2)
        [3.0, 5.0]
    """
    return [start + (end - start) * (i + 0.5) / count for i in range(count)]


def _keep_quiet(problem: str) -> None:
    """Damage has been reported when the features were extracted."""


_WIDTH, _HEIGHT, _LANE = 1000, 130, 24
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600)

_STYLE = f"""
:root {{ --moment: {ORANGE}; --curve: {BLUE}; }}
h1 {{ overflow-wrap: anywhere; }}
.strip {{ display: flex; flex-wrap: wrap; gap: .35rem; list-style: none; padding: 0; margin: 0; }}
.strip li {{ font-size: .75rem; color: #444; font-variant-numeric: tabular-nums; }}
.strip img {{ display: block; height: 6rem; width: auto; border-radius: .2rem; background: #ddd; }}
.timeline {{ width: 100%; min-width: 36rem; height: auto; display: block; }}
.timeline text {{ font: 12px system-ui, sans-serif; fill: #333; }}
.timeline .bar {{ fill: var(--moment); }}
.timeline a ~ a .bar {{ fill: #b98d6d; }}
.timeline a text {{ fill: #fff; font-weight: 700; }}
.timeline .span {{ fill: var(--moment); opacity: .13; }}
.timeline a:focus-visible {{ outline: none; }}
.timeline a:focus-visible .bar {{ stroke: #1c1c1c; stroke-width: 3; }}
.moments {{ list-style: none; padding: 0; display: grid; gap: 1rem; }}
.moments > li {{ border: 1px solid var(--line); border-left: .4rem solid var(--moment);
  border-radius: .3rem; padding: .6rem .9rem; }}
.moments > li:target {{ background: #fff4ea; }}
.moments h3 {{ margin: 0 0 .4rem; font-variant-numeric: tabular-nums; }}
.moments h3 span {{ font-weight: 400; color: #444; padding-left: .75rem; }}
@media print {{ .moments > li {{ break-inside: avoid; }} .strip img {{ height: 2cm; }} }}
"""


def write_found_page(
    path: str | Path, found: Found, *, why: str = "", names: tuple[str, str] | None = None
) -> None:
    """Write the report of one search: pictures, timeline, similarity map, settings.

    The page opens without a network and works by keyboard. Names of files are escaped.

    Args:
        path: The HTML file, written all or nothing.
        found: What :func:`relocal_pyg.video.find_moments` gave.
        why: A line on which matcher was used.
        names: What to call query and reference; their paths where None.

    Raises:
        OutputError: The file cannot be written.
        VideoError: A video is gone.
    """
    query, reference = names or (found.query.title, str(found.reference))
    titles = Path(query).name, Path(reference).name
    count = len(found.moments)
    sections = [
        ("query", "The query", _query(found, titles[0])),
        ("timeline", "Where it is in the reference", _timeline_section(found, titles[1])),
        ("results", f"The {count} best moments" if count > 1 else "The moment", _moments(found)),
        ("map", "Which step met which", _map(found)),
        ("settings", "Settings", _settings(found, why, query, reference)),
    ]
    html = render(
        "base.html",
        title=" in ".join(titles),
        lead=_lead(found),
        sections=[(anchor, heading, Markup(body)) for anchor, heading, body in sections],
        style=Markup(_STYLE),
    )
    with replace_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def timeline_svg(found: Found) -> str:
    """Time axis of the reference as SVG: similarity as a curve, moments as links to ``#moment-N``.

    Moments that overlap are drawn in lanes of their own.
    """
    seconds = max(found.reference_seconds, 1e-6)
    lanes = _lanes(found.moments)
    bottom = _HEIGHT + _LANE * (max(lanes, default=-1) + 1)

    def x(time: float) -> float:
        return round(_WIDTH * min(max(time / seconds, 0.0), 1.0), 2)

    shapes = [_curve(found.similarity, found.seconds_per_step, seconds)]
    for rank, (moment, lane) in enumerate(zip(found.moments, lanes, strict=True), start=1):
        left, width = x(moment.start), max(x(moment.end) - x(moment.start), 2.0)
        top = _HEIGHT + _LANE * lane
        name = f"Moment {rank}: {clock(moment.start)} to {clock(moment.end)}"
        if rank == 1:
            shapes.append(
                f'<rect class="span" x="{left}" y="0" width="{width}" height="{_HEIGHT}"/>'
            )
        # Too narrow for its number: that stands beside it.
        beside = width < 16
        place = left + width + 4 if beside else left + width / 2
        anchor, colour = ("start", ' style="fill:#333"') if beside else ("middle", "")
        shapes.append(
            f'<a href="#moment-{rank}" aria-label="{text(name)}"><title>{text(name)}</title>'
            f'<rect class="bar" x="{left}" y="{top + 2}" width="{width}" height="{_LANE - 4}" '
            f'rx="3"/><text x="{place}" y="{top + 16}" text-anchor="{anchor}"{colour}>{rank}'
            "</text></a>"
        )
    shapes.append(f'<line x1="0" x2="{_WIDTH}" y1="{bottom}" y2="{bottom}" stroke="{DARK}"/>')
    step = next((tick for tick in _TICKS if seconds / tick <= 12), _TICKS[-1])
    for number in range(math.floor(seconds / step) + 1):
        place = x(number * step)
        anchor = "start" if place < 20 else "end" if place > _WIDTH - 20 else "middle"
        shapes.append(
            f'<line x1="{place}" x2="{place}" y1="{bottom}" y2="{bottom + 5}" stroke="{DARK}"/>'
            f'<text x="{place}" y="{bottom + 19}" text-anchor="{anchor}">'
            f"{_short_clock(number * step)}</text>"
        )
    return (
        f'<svg class="timeline" viewBox="0 -4 {_WIDTH} {bottom + 28}" role="group" '
        f'aria-label="Timeline of the reference, {len(found.moments)} moments">'
        f"{''.join(shapes)}</svg>"
    )


def text(value: object) -> Markup:
    """A value inert and printable in HTML, inside an element or a quoted attribute."""
    return escape(ascii_line(str(value)))


def picture(figure: Figure, description: str, caption: str) -> str:
    """A picture inside the page, with words for those who cannot see it."""
    parts: Any = templates().get_template("parts.html").module
    return str(parts.picture(figure, description, caption))


def _lead(found: Found) -> str:
    if not found.moments:
        return "Nothing was found."
    best = found.moments[0]
    place = (
        f"Best moment: {clock(best.start)} to {clock(best.end)} "
        f"({best.start:.2f} to {best.end:.2f} s)."
    )
    if best.presence is None:
        return place
    told = presence_line(best.presence)
    return f"{place} {told[0].upper()}{told[1:]}."


def _probability(moment: Moment) -> str:
    known = moment.probability is not None
    return f", probability {moment.probability:.2f}" if known else ""


def _query(found: Found, name: str) -> str:
    if isinstance(found.query, StillQuery):
        return f"<p>{text(found.query.title)}</p>"
    start, end = found.span
    part = "" if (start, end) == (0.0, found.query_seconds) else f" of {found.query_seconds:.2f} s"
    words = f"{name}, {start:.2f} to {end:.2f} s{part}"
    return f"<p>{text(words)}</p>{_strip(found.query.path, start, end, 6, 'Query')}"


def _timeline_section(found: Found, name: str) -> str:
    words = (
        f"{name}, {clock(found.reference_seconds)} long. The curve is the "
        "similarity of each step to the query; bars are the moments, best first: choose one to go "
        "to it."
    )
    return f'<p>{text(words)}</p><div class="wide">{timeline_svg(found)}</div>'


def _moments(found: Found) -> str:
    cards = []
    for rank, moment in enumerate(found.moments, start=1):
        name = f"Moment {rank}"
        cards.append(
            f'<li id="moment-{rank}" tabindex="-1"><h3>{rank}. {clock(moment.start)} to '
            f"{clock(moment.end)}<span>{moment.start:.2f} to {moment.end:.2f} s, "
            f"score {moment.score:.3f}{_probability(moment)}</span></h3>"
            f"{_strip(found.reference, moment.start, moment.end, 6, name)}</li>"
        )
    return f'<ol class="moments">{"".join(cards)}</ol>'


def _strip(path: Path, start: float, end: float, count: int, name: str) -> str:
    times = spread(start, end, count)
    items = []
    for time, jpeg in zip(times, thumbnails(path, times), strict=True):
        if jpeg is not None:
            items.append(
                f'<li><img alt="{text(name)} at {time:.2f} s" '
                f'src="{data_url(jpeg, "image/jpeg")}">{time:.2f} s</li>'
            )
    return f'<ul class="strip">{"".join(items)}</ul>'


def _map(found: Found) -> str:
    caption = (
        "Each row is a part of the query, each column a part of the reference, both centred by "
        "their video; red: alike. A moment in the same order shows as a diagonal, one that repeats "
        "as a chequered block."
    )
    body = picture(_map_figure(found), "Map of step by step similarity", caption)
    if found.explanation is None or not found.moments:
        return body
    start, end = found.span
    best = found.moments[0]
    figure = explanation_map(
        found.explanation,
        (best.start, best.end),
        seconds_per_step=found.seconds_per_step,
        query_seconds_per_step=(end - start) / len(found.explanation),
        query_start=start,
    )
    return body + picture(
        figure,
        "Map of what each meeting of two steps added to the score of the best moment",
        "What each meeting of a query step with a reference step added to the score of the best "
        "moment (between the dashed lines); blue: taken away. Bars: the sums over the query.",
    )


def _map_figure(found: Found) -> Figure:
    figure, (axes,) = new_figure(3.0)
    start, end = found.span
    image = axes.imshow(
        found.step_map.numpy(),
        aspect="auto",
        origin="lower",
        extent=(0, found.reference_seconds, start, end),
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
    )
    colour_bar(figure, axes, image, "cosine similarity")
    for rank, moment in enumerate(found.moments, start=1):
        axes.plot(
            [moment.start, moment.end],
            [1.03, 1.03],
            transform=axes.get_xaxis_transform(),
            color=ORANGE,
            alpha=1.0 if rank == 1 else 0.4,
            linewidth=5,
            solid_capstyle="butt",
            clip_on=False,
        )
    axes.set_xlim(0, found.reference_seconds)
    axes.set_xlabel("reference time (s)")
    axes.set_ylabel("query time (s)")
    return figure


def _settings(found: Found, why: str, query: str, reference: str) -> str:
    import torch

    rows = [
        ("query file", query),
        ("reference file", reference),
        ("matcher", why or found.matcher),
        *((name.replace("_", " "), value) for name, value in found.settings.items()),
        ("relocal_pyg", __version__),
        ("torch", torch.__version__),
    ]
    parts: Any = templates().get_template("parts.html").module
    body = str(parts.table("What was used", ("setting", "value"), rows, names=True))
    if found.problems:
        problems = "".join(f"<li>{text(problem)}</li>" for problem in found.problems)
        body += f"<p>Damage in the files:</p><ul>{problems}</ul>"
    return body


def _lanes(moments: Sequence[Moment]) -> list[int]:
    """The first lane in which each moment, best first, overlaps no other."""
    taken: list[list[Moment]] = []
    lanes = []
    for moment in moments:
        free = [
            all(moment.end <= other.start or other.end <= moment.start for other in lane)
            for lane in [*taken, []]
        ]
        lanes.append(free.index(True))
        taken += [[]] if lanes[-1] == len(taken) else []
        taken[lanes[-1]].append(moment)
    return lanes


def _curve(similarity: Tensor, seconds_per_step: float, seconds: float) -> str:
    count = min(len(similarity), _WIDTH)
    values = functional.adaptive_max_pool1d(similarity[None], count)[0]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 1e-6)
    scale = (_HEIGHT - 6) / (high - low)
    # Pooled values stand in the middle of what they cover.
    width = _WIDTH * len(similarity) * seconds_per_step / seconds / count
    points = [
        f"{min(width * (i + 0.5), _WIDTH):.1f},{(high - value) * scale:.1f}"
        for i, value in enumerate(values.tolist())
    ]
    zero = round(high * scale, 1)
    return (
        f'<line x1="0" x2="{_WIDTH}" y1="{zero}" y2="{zero}" stroke="#c8c8c8"/>'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="var(--curve)" '
        'stroke-width="1.5" stroke-linejoin="round"/>'
    )


def _short_clock(seconds: float) -> str:
    if seconds % 1:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
