"""How every picture looks: sizes, colours, headings, and SVG as text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from relocal_pyg.errors import ascii_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: the width of a printed page without its margins.
PAGE_WIDTH = 7.2
#: Colours that people with colour blindness tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
GREY, PALE, DARK = "#8A8A8A", "#D9D9D9", "#222222"
_PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00", DARK)


def new_figure(
    height: float, columns: int = 1, width_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of page width with one row of axes.

    Args:
        height: Inches.
        columns: Number of axes.
        width_ratios: Their relative widths.
    """
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


def whole_numbers() -> Any:
    """Ticks at whole numbers only: half a step does not exist."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, integer=True)


def colours(count: int) -> list[str]:
    """Colours for so many lines."""
    return [_PALETTE[i % len(_PALETTE)] for i in range(count)]


def line_styles(count: int) -> list[Any]:
    """Line styles for so many lines: another one where :func:`colours` begins anew.

    Example:
        >>> len({*zip(colours(20), map(str, line_styles(20)))})
        20
    """
    styles = ["-", (0, (5, 1.5)), (0, (1, 1))]
    return [styles[i // len(_PALETTE) % len(styles)] for i in range(count)]


def name_rows(axes: Axes, ticks: Sequence[float], names: Sequence[str]) -> None:
    """Name rows on the vertical axis; a line break in a name is kept."""
    lines = ["\n".join(map(ascii_line, name.split("\n"))) for name in names]
    axes.set_yticks(ticks, lines)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def draw_legend(axes: Axes) -> None:
    """Add a legend without a frame."""
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
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
