"""Pictures: timelines, similarity maps, graphs and curves, each a ``matplotlib.figure.Figure``.

And :func:`render`, which puts them and texts into pages.

A figure belongs to no window and no global state: ``figure.savefig("a.png")`` works without a
display. Names that come from data are drawn letter by letter: a ``$`` in one starts no formula.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike
from torch import Tensor

from relocal_pyg.errors import UsageError, ascii_line, check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from relocal_pyg.graph import PairGraph


#: Inches: the width of a printed page without its margins.
PAGE_WIDTH = 7.2
#: Colours that people with colour blindness tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
GREY, PALE, DARK = "#8A8A8A", "#D9D9D9", "#222222"
_PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00", DARK)
#: Where there are more lines than colours the next style begins.
_LINES = [(colour, style) for style in ("-", (0, (5, 1.5)), (0, (1, 1))) for colour in _PALETTE]


def new_figure(
    height: float, columns: int = 1, width_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of page width, so many inches high, with one row of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_WIDTH, height), layout="constrained", dpi=150)
    grid = figure.subplots(1, columns, squeeze=False, width_ratios=width_ratios)
    for axes in grid[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure, list(grid[0])


def colour_bar(figure: Figure, axes: Axes, image: Any, label: str) -> None:
    """Add the colour scale of an image beside its axes."""
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only: half a step does not exist."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def name_rows(axes: Axes, ticks: Sequence[float], names: Sequence[str]) -> None:
    """Name rows on the vertical axis; a line break in a name is kept."""
    lines = ["\n".join(map(ascii_line, name.split("\n"))) for name in names]
    axes.set_yticks(ticks, lines)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def draw_legend(owner: Axes | Figure, **options: Any) -> None:
    """Add a legend without a frame."""
    for text in owner.legend(frameon=False, fontsize=8, **options).get_texts():
        text.set_parse_math(False)


def set_title(axes: Axes, text: str, pad: float = 6) -> None:
    """Head axes at the left; nothing is added for an empty text."""
    if text:
        axes.set_title(ascii_line(text), fontsize=9, loc="left", pad=pad, parse_math=False)


def svg_text(figure: Figure) -> str:
    """A figure as SVG, the same for the same figure; text stays text.

    Letters that the font has not got are left to the viewer's fonts.
    """
    import matplotlib

    buffer = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "relocal_pyg"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@cache
def _templates(package: str = "relocal_pyg.evaluation") -> Environment:
    """Templates of a package, then of this one: they extend ``base.html`` and use ``parts.html``.

    Texts are escaped and what is not printable is written out. The filter ``svg`` makes the source
    of an ``img`` from a figure; ``url(kind)`` does so from bytes.
    """

    def url(content: bytes, kind: str) -> str:
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"

    packages = dict.fromkeys([package, "relocal_pyg.evaluation"])
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else ascii_line(str(value)),
    )
    # As an image of its own a picture can run nothing, whatever its labels say.
    made.filters["svg"] = lambda figure: url(svg_text(figure).encode(), "image/svg+xml")
    made.filters["url"] = url
    return made


def render(template: str, package: str = "relocal_pyg.evaluation", **context: Any) -> Markup:
    """The text of a template, safe to be put into another page."""
    return Markup(_templates(package).get_template(template).render(**context))


#: More proposals than this make a timeline no clearer.
MAX_PROPOSALS = 200

#: Share of the largest contribution below which a step of the reference is not worth drawing.
LEAST_SHARE = 0.03

Span = tuple[float, float]


def timeline(
    query_seconds: float,
    reference_seconds: float,
    truths: Sequence[Span],
    predictions: Mapping[str, Sequence[Span]],
    *,
    proposals: Sequence[Span] | None = None,
    title: str = "",
) -> Figure:
    """Query, reference, truth and each model's answer on one time axis in seconds (Figure 11).

    Args:
        query_seconds: Length of the query, drawn from 0: it is cut from another video.
        reference_seconds: Length of the reference.
        truths: True moments in seconds of the reference.
        predictions: Answers by name of the model, in seconds, best first; the best is drawn full.
        proposals: Candidates in seconds; the first 200 are drawn, one thin line each.
        title: Heading.

    Raises:
        UsageError: A length is not a positive number.
    """
    for name, value in (("query_seconds", query_seconds), ("reference_seconds", reference_seconds)):
        check_number(value, name, above=0)
    shown = sorted(list(proposals or [])[:MAX_PROPOSALS])
    height = 1.0 + 0.3 * (3 + len(predictions)) + (0.75 if shown else 0)
    figure, (axes,) = new_figure(height)
    names, ticks = [], []

    def add_row(name: str, y: float, spans: Sequence[Span], colour: str, times: str) -> None:
        names.append(name)
        ticks.append(y)
        for rank, (start, end) in enumerate(spans):
            alpha, size = (1.0, 0.62) if rank == 0 or colour == GREEN else (0.25, 0.36)
            axes.broken_barh(
                [(start, end - start)], (y - size / 2, size), color=colour, alpha=alpha, linewidth=0
            )
        beside = axes.get_yaxis_transform()
        axes.text(1.01, y, times, transform=beside, va="center", fontsize=8)

    add_row("Query", 0, [(0.0, query_seconds)], BLUE, f"{query_seconds:.1f} s long")
    add_row("Reference", 1, [(0.0, reference_seconds)], GREY, f"{reference_seconds:.1f} s long")
    named = ", ".join(map(_range, sorted(truths)[:2])) + (", …" if len(truths) > 2 else "")
    add_row("Ground truth", 2, sorted(truths), GREEN, named)
    last = 2.0
    if shown:
        last = 4.4
        count = len(list(proposals or []))
        names.append(f"Proposals\n({len(shown)} of {count})" if count > len(shown) else "Proposals")
        ticks.append(3.5)
        lines = [2.6 + 1.8 * (i + 0.5) / len(shown) for i in range(len(shown))]
        axes.hlines(lines, *zip(*shown, strict=True), color=DARK, linewidth=0.7)
    for name, spans in predictions.items():
        last += 1
        add_row(name, last, spans, ORANGE, _range(spans[0]) if spans else "no answer")
    # Not over the query: its time is that of another video.
    for start, end in truths:
        axes.fill_betweenx([0.6, last + 0.6], start, end, color=GREEN, alpha=0.12, lw=0, zorder=0)
    axes.set_ylim(last + 0.6, -0.6)
    axes.set_xlim(0, 1.01 * max(query_seconds, reference_seconds))
    name_rows(axes, ticks, names)
    axes.set_xlabel("time (s)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    set_title(axes, title)
    return figure


def similarity_map(
    query: ArrayLike,
    reference: ArrayLike,
    moment: Span | None = None,
    *,
    truths: Sequence[Span] = (),
    seconds_per_step: float = 1.0,
    query_seconds_per_step: float | None = None,
    title: str = "",
) -> Figure:
    """Cosine similarity of every query step with every reference step.

    Features are ``[m, F]`` and ``[n, F]``, moments in seconds of the reference; a step of the query
    lasts as long as one of the reference where None.
    """
    rows, columns = (torch.as_tensor(x).double() for x in (query, reference))
    similarity = F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T
    seconds = similarity.shape[1] * seconds_per_step
    query_step = seconds_per_step if query_seconds_per_step is None else query_seconds_per_step
    height = similarity.shape[0] * query_step
    figure, axes = step_map(similarity, (0, seconds, 0, height), "cosine similarity")
    for number, (start, end) in enumerate(truths):
        axes.plot(
            [start, end], [1.03, 1.03], transform=axes.get_xaxis_transform(), color=GREEN,
            linewidth=5, solid_capstyle="butt", clip_on=False,
            label="ground truth" if number == 0 else None,
        )  # fmt: skip
    if moment is not None:
        axes.plot(
            moment, [1.08, 1.08], transform=axes.get_xaxis_transform(), color=ORANGE,
            linewidth=5, solid_capstyle="butt", clip_on=False, label="answer",
        )  # fmt: skip
        for edge in moment:
            axes.axvline(edge, color=DARK, linewidth=0.8, linestyle="--")
    if truths or moment is not None:
        figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    axes.set_xlim(0, seconds)
    if title:
        figure.suptitle(ascii_line(title), x=0.01, ha="left", fontsize=9, parse_math=False)
    return figure


def explanation_map(
    contributions: ArrayLike,
    moment: Span,
    *,
    seconds_per_step: float = 1.0,
    query_seconds_per_step: float | None = None,
    query_start: float = 0.0,
    title: str = "",
) -> Figure:
    """What each meeting of a query step with a reference step added to the score of a moment.

    Only the part of the reference that had a say is drawn: the moment, and steps that reach 3 % of
    the largest contribution. The bars above are the sums over the query steps. Contributions
    ``[m, n]`` are those of :meth:`relocal_pyg.models.base.Relocalizer.explain`, the moment is in
    seconds of the reference; a step of the query lasts as long as one of the reference where None,
    and it begins at ``query_start`` of its own video.
    """
    table = torch.as_tensor(contributions).double()
    peaks = table.abs().amax(dim=0)
    inside = [int(moment[0] / seconds_per_step), math.ceil(moment[1] / seconds_per_step) - 1]
    touched = [*(peaks > LEAST_SHARE * peaks.max()).nonzero().flatten().tolist(), *inside]
    first, last = max(0, min(touched)), min(max(touched) + 1, len(peaks))
    part = table[:, first:last]
    step = seconds_per_step if query_seconds_per_step is None else query_seconds_per_step
    left, right = first * seconds_per_step, last * seconds_per_step
    box = (left, right, query_start, query_start + len(table) * step)
    figure, axes = step_map(part, box, "added to the score", height=3.6)
    sums = part.sum(dim=0)
    above = axes.inset_axes((0, 1.04, 1, 0.24), sharex=axes)
    above.bar(
        left + (torch.arange(len(sums)) + 0.5).numpy() * seconds_per_step,
        sums.numpy(),
        width=seconds_per_step,
        color=[ORANGE if value > 0 else BLUE for value in sums.tolist()],
    )
    above.axhline(0, color=DARK, linewidth=0.6)
    above.spines[["top", "right", "bottom"]].set_visible(False)
    above.tick_params(labelsize=7, bottom=False, labelbottom=False)
    above.set_ylabel("sum", fontsize=8)
    for edge in moment:
        for panel in (axes, above):
            panel.axvline(edge, color=DARK, linewidth=1, linestyle="--")
    axes.set_xlim(left, right)
    if title:
        figure.suptitle(ascii_line(title), x=0.01, ha="left", fontsize=9, parse_math=False)
    return figure


def step_map(
    table: Tensor,
    extent: tuple[float, float, float, float],
    label: str,
    height: float = 3.2,
    limit: float | None = None,
) -> tuple[Figure, Axes]:
    """A table of query steps by reference steps in seconds, white at 0, full colours at a limit."""
    figure, (axes,) = new_figure(height)
    limit = (float(table.abs().max()) or 1.0) if limit is None else limit
    image = axes.imshow(
        table.numpy(),
        aspect="auto",
        origin="lower",
        extent=extent,
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    colour_bar(figure, axes, image, label)
    axes.set_xlabel("reference time (s)")
    axes.set_ylabel("query time (s)")
    return figure, axes


def adjacency(graph: PairGraph, step: int | None = None) -> Figure:
    """A graph as a matrix, and what one query step is joined with (Figures 4 to 6).

    That step is ``step``, the middle one where None.

    Raises:
        UsageError: The graph has no such step.
    """
    steps = graph.num_steps
    step = steps // 2 if step is None else step
    if not 0 <= step < steps:
        raise UsageError(f"step {step}: 0 to {steps - 1} wanted")
    matrix = graph.dense()
    figure, (left, right) = new_figure(3.4, columns=2, width_ratios=(1, 1.15))
    image = left.imshow(matrix.numpy(), cmap="Greys", vmin=0, interpolation="nearest")
    if graph.weight != "binary" or graph.normalization != "none":
        colour_bar(figure, left, image, "edge weight")
    for edge in (left.axhline, left.axvline):
        edge(steps - 0.5, color=ORANGE, linewidth=1)
    left.set_xlabel("source node")
    left.set_ylabel("target node")
    set_title(left, f"matrix, T = {steps}, k = {graph.k}", pad=18)
    whole_numbers(left.xaxis)
    whole_numbers(left.yaxis)
    for place, name in ((0.25, "query"), (0.75, "proposal")):
        left.text(place, 1.01, name, transform=left.transAxes, ha="center", va="bottom", fontsize=8)
    _draw_neighbours(right, matrix[step], steps, step)
    return figure


def training_curves(
    history: Sequence[Mapping[str, float]], *, best_step: int | None = None, title: str = ""
) -> Figure:
    """Losses and validation scores over training.

    Args:
        history: A record per validation with ``"step"``; keys that start with ``val_`` are scores,
            the others losses. A key may be absent from some records.
        best_step: The step whose weights were kept.
        title: Heading.

    Raises:
        UsageError: There is no record, or one without a step.
    """
    if not history or any("step" not in record for record in history):
        raise UsageError("training history: one or more records with a 'step' wanted")
    keys = sorted({key for record in history for key in record} - {"step"})
    groups = [
        ("loss", [key for key in keys if not key.startswith("val_")]),
        ("validation score", [key for key in keys if key.startswith("val_")]),
    ]
    groups = [(name, members) for name, members in groups if members] or [("loss", [])]
    figure, panels = new_figure(2.8, columns=len(groups))
    for axes, (name, members) in zip(panels, groups, strict=True):
        for key, (colour, style) in zip(members, cycle(_LINES)):
            points = [(record["step"], record[key]) for record in history if key in record]
            marker = "o" if len(points) < 30 else ""
            label = ascii_line(key.removeprefix("val_")).replace("_", " ")
            (line,) = axes.plot(*zip(*points, strict=True), marker=marker, ms=3, label=label)
            line.set(color=colour, linestyle=style)
        if best_step is not None:
            axes.axvline(best_step, color=DARK, linewidth=0.8, linestyle="--", label="kept")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(name)
        whole_numbers(axes.xaxis)
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        if members:
            draw_legend(axes)
    set_title(panels[0], title)
    return figure


def recall_curve(
    tious: Mapping[str, ArrayLike], *, muted: Sequence[str] = (), title: str = ""
) -> Figure:
    """Share of queries whose best answer passes each tIoU: mAP@1 at every threshold at once.

    Names that are ``muted``, those of trivial predictors, are drawn dashed and grey.
    """
    figure, (axes,) = new_figure(3.4)
    bright = cycle(_LINES)
    dull = cycle((GREY, style) for style in ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2))))
    for name, values in tious.items():
        overlaps = torch.as_tensor(values).double().sort().values
        # Just at an overlap the share above it drops: a step there, from 100 % at 0.
        share = 100 * (1 - torch.arange(1, len(overlaps) + 1) / max(len(overlaps), 1))
        colour, style = next(dull if name in muted else bright)
        axes.step(
            [0.0, *overlaps.tolist(), 1.0],
            [100.0, *share.tolist(), 0.0],
            where="post",
            color=colour,
            linestyle=style,
            label=ascii_line(name),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("tIoU threshold")
    axes.set_ylabel("queries above it, mAP@1 (%)")
    axes.grid(color=PALE, linewidth=0.6)
    draw_legend(figure, loc="outside right upper")
    set_title(axes, title)
    return figure


def _draw_neighbours(axes: Axes, weights: Tensor, steps: int, step: int) -> None:
    """Two rows of nodes; arcs inside the query's row, lines across."""
    from matplotlib.patches import Arc

    joined = (weights > 0).nonzero().flatten().tolist()
    for node in joined:
        place = node % steps
        if node >= steps:
            axes.plot([step, place], [1, 0], color=GREEN, linewidth=0.8, zorder=1)
        elif node != step:
            reach = abs(place - step)
            centre, height = ((step + place) / 2, 1.0), 0.3 + 0.7 * reach / steps
            arc = Arc(centre, reach, height, theta1=0, theta2=180, color=BLUE, linewidth=1)
            axes.add_patch(arc).set_zorder(1)
    size = max(2.0, min(8.0, 120 / steps))
    axes.plot(range(steps), [1] * steps, "o", color=BLUE, ms=size, label="query step")
    axes.plot(range(steps), [0] * steps, "o", color=ORANGE, ms=size, label="proposal step")
    axes.plot([step], [1], "o", mfc="white", mec=BLUE, mew=1.5, ms=size + 2)
    axes.set_ylim(-0.4, 1.7)
    axes.set_yticks([1, 0], ["query", "proposal"])
    axes.set_xlabel("step")
    whole_numbers(axes.xaxis)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    set_title(axes, f"neighbours of query step {step} ({len(joined)} with itself)", pad=18)


def _range(span: Span) -> str:
    start, end = span
    return f"{start:.1f}–{end:.1f} s"
