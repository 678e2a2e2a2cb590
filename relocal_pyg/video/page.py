"""What was found as pictures: one HTML file, no script, nothing fetched; or one contact sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup
from torch import Tensor
from torch.nn import functional

from relocal_pyg import __version__
from relocal_pyg.errors import UsageError, VideoError
from relocal_pyg.evaluation.plots import BLUE, DARK, ORANGE, explanation_map, render, step_map
from relocal_pyg.formats.clips import Source, clock, one_line, presence_line, short_clock
from relocal_pyg.io.write import replace_file, replace_text
from relocal_pyg.moments import Moment
from relocal_pyg.video.container import check_file
from relocal_pyg.video.decode import frames, probe, unreported
from relocal_pyg.video.find import Found
from relocal_pyg.video.index import FoundVideos
from relocal_pyg.video.query import StillQuery

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def thumbnails(
    path: str | Path, times: Iterable[float], height: int = 96, stream: int | None = None
) -> list[bytes | None]:
    """The pictures on the screen at given times, as JPEG; of the default stream where None.

    The width follows from the video, at most 4 times the height, in pixels.

    Returns:
        A JPEG file for each time; None where the video shows nothing then.

    Raises:
        VideoError: The file cannot be decoded at all.
        UsageError: ``height`` is out of range.
    """
    from PIL import Image

    if not 1 <= height <= 1024:
        raise UsageError(f"height is {height}, 1 to 1024 wanted")
    info = probe(path, stream)
    width = round(height * min(max(info.width / info.height, 0.25), 4))
    pictures: list[bytes | None] = []
    for time in times:
        options: dict[str, Any] = {"size": (height, width), "report": unreported, "stream": stream}
        shown = frames(path, rate_hz=10.0, start=max(time, 0.0), **options)
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


_WIDTH, _HEIGHT, _LANE = 1000, 130, 24
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600)


def write_found_page(
    path: str | Path,
    found: Found | FoundVideos,
    *,
    why: str = "",
    names: tuple[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write the report of one search: pictures, timeline, similarity map, settings.

    The page opens without a network and works by keyboard. Names of files are escaped. A search of
    an index has no one timeline, and no map.

    Args:
        path: The HTML file, written all or nothing.
        found: What :func:`relocal_pyg.video.find_moments` gave, or
            :func:`relocal_pyg.video.find_in_index`.
        why: A line on which matcher was used.
        names: What to call query and reference; their paths where None.
        files: Where the videos of an index are, by id; of others there are no pictures.

    Raises:
        OutputError: The file cannot be written.
        VideoError: A video is gone.
    """
    one = found if isinstance(found, Found) else None
    asked = found.query if isinstance(found, Found) else found.asked
    query, reference = names or (asked.title, str(one.reference) if one else "the index")
    titles = Path(query).name, Path(reference).name
    shown: list[tuple[str, Path | None, Moment]]
    if isinstance(found, Found):
        shown = [("", found.reference, moment) for moment in found.moments]
    else:
        here = {name: file for name, file in (files or {}).items() if file.is_file()}
        shown = [(hit.video_id, here.get(hit.video_id), hit.moment) for hit in found.hits]
    best = shown[0][2] if shown else None
    there = best.presence if one and best else None
    html = render(
        "found.html",
        "relocal_pyg.video",
        title=" in ".join(titles),
        found=found,
        asked=asked,
        shown=shown,
        best=best,
        query=titles[0],
        reference=titles[1],
        still=isinstance(asked, StillQuery),
        presence="" if there is None else presence_line(there),
        clock=clock,
        strip_of=partial(_strip, searched=one),
        timeline=timeline_svg(one) if one else None,
        map=_map_figure(one) if one else None,
        explanation=_explanation_figure(one) if one else None,
        settings=[
            *(("query file", query), ("reference", reference)),
            ("matcher", why or (one.matcher if one else "")),
            *((name.replace("_", " "), value) for name, value in found.settings.items()),
            *(("relocal_pyg", __version__), ("torch", torch.__version__)),
        ],
        orange=ORANGE,
        blue=BLUE,
        dark=DARK,
    )
    replace_text(path, html)


#: Pixels of a contact sheet: its pictures' height, the line above them, and between them.
_PICTURE, _LINE, _GAP = 120, 26, 6
#: Moments on one sheet; a JPEG ends at 65,535 rows.
MOST_ON_SHEET = 400


def sheet_kind(path: str | Path) -> str:
    """What Pillow calls the format of a contact sheet, by its ending; a UsageError by another."""
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}.get(Path(path).suffix.lower())
    if kind is None:
        raise UsageError("a contact sheet ends in .jpg or .png", file=path)
    return kind


def write_contact_sheet(
    path: str | Path, ranked: Sequence[tuple[Source, Moment]], stream: int | None = None
) -> None:
    """Write one picture of moments: a line and six pictures each, best first.

    Args:
        path: A file that ends in .jpg or .png, written all or nothing.
        ranked: The moments with their videos; where a file is gone there are no pictures.
        stream: Number of the video stream; the default one where None.

    Raises:
        OutputError: The file cannot be written.
        UsageError: Nothing to show, too much, or another ending.
        VideoError: A video cannot be decoded.
    """
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    kind = sheet_kind(path)
    if not 1 <= len(ranked) <= MOST_ON_SHEET:
        most = f"1 to {MOST_ON_SHEET} moments"
        raise UsageError(f"a contact sheet shows {most}, not {len(ranked)}", file=path)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 16)
    rows = []
    for rank, (source, moment) in enumerate(ranked, start=1):
        file = Path(source.path)
        times = spread(moment.start, moment.end, 6)
        strip = thumbnails(file, times, stream=stream) if file.is_file() else []
        opened = [Image.open(io.BytesIO(jpeg)) for jpeg in strip if jpeg is not None]
        pictures = [p.resize((round(p.width * _PICTURE / p.height), _PICTURE)) for p in opened]
        sure = "" if moment.probability is None else f", probability {moment.probability:.2f}"
        text = f"{rank}. {source.video_id}: {clock(moment.start)} to {clock(moment.end)}{sure}"
        rows.append((one_line(text), pictures))
    widths = [sum(p.width + _GAP for p in pictures) + _GAP for _, pictures in rows]
    widths += [round(font.getlength(text)) + 2 * _GAP for text, _ in rows]
    height = _LINE + _PICTURE + _GAP
    sheet = Image.new("RGB", (min(max(widths), 4000), height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, pictures) in enumerate(rows):
        top, left = height * number, _GAP
        pen.text((left, top + 3), text, fill="black", font=font)
        for picture in pictures:
            sheet.paste(picture, (left, top + _LINE))
            left += picture.width + _GAP
    with replace_file(path, "picture") as temporary:
        sheet.save(temporary, kind, quality=85)


def timeline_svg(found: Found) -> Markup:
    """Time axis of the reference as SVG: similarity as a curve, moments as links to ``#moment-N``.

    Moments that overlap are drawn in lanes of their own.
    """
    seconds = max(found.reference_seconds, 1e-6)
    lanes = _lanes(found.moments)
    bottom = _HEIGHT + _LANE * (max(lanes, default=-1) + 1)

    def x(time: float) -> float:
        return round(_WIDTH * min(max(time / seconds, 0.0), 1.0), 2)

    bars = [
        {
            "left": x(moment.start),
            "width": max(x(moment.end) - x(moment.start), 2.0),
            "top": _HEIGHT + _LANE * lane,
            "name": f"Moment {rank}: {clock(moment.start)} to {clock(moment.end)}",
        }
        for rank, (moment, lane) in enumerate(zip(found.moments, lanes, strict=True), start=1)
    ]
    step = next((tick for tick in _TICKS if seconds / tick <= 12), _TICKS[-1])
    times = [number * step for number in range(math.floor(seconds / step) + 1)]
    zero, points = _curve(found.similarity, found.seconds_per_step, seconds)
    return render(
        "timeline.html",
        "relocal_pyg.video",
        width=_WIDTH,
        height=_HEIGHT,
        lane=_LANE,
        bottom=bottom,
        zero=zero,
        points=points,
        bars=bars,
        ticks=[(x(t), f"{t:.1f} s" if t % 1 else short_clock(round(t))) for t in times],
    )


def _strip(
    path: Path, start: float, end: float, searched: Found | None
) -> list[tuple[float, bytes | None]]:
    """Six pictures; of the stream that was searched where this is what was."""
    here = searched is not None and check_file(path).samefile(searched.reference)
    times = spread(start, end, 6)
    pictures = thumbnails(path, times, stream=searched.stream if searched and here else None)
    return list(zip(times, pictures, strict=True))


def _explanation_figure(found: Found) -> Figure | None:
    if found.explanation is None or not found.moments:
        return None
    start, end = found.span
    best = found.moments[0]
    return explanation_map(
        found.explanation,
        (best.start, best.end),
        seconds_per_step=found.seconds_per_step,
        query_seconds_per_step=(end - start) / len(found.explanation),
        query_start=start,
    )


def _map_figure(found: Found) -> Figure:
    box = (0.0, found.reference_seconds, *found.span)
    figure, axes = step_map(found.step_map, box, "cosine similarity", height=3.0, limit=1.0)
    above: dict[str, Any] = {"color": ORANGE, "transform": axes.get_xaxis_transform()}
    above |= {"linewidth": 5, "solid_capstyle": "butt", "clip_on": False}
    for rank, moment in enumerate(found.moments):
        axes.plot([moment.start, moment.end], [1.03, 1.03], alpha=0.4 if rank else 1.0, **above)
    axes.set_xlim(0, found.reference_seconds)
    return figure


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


def _curve(similarity: Tensor, seconds_per_step: float, seconds: float) -> tuple[float, str]:
    """Height of zero, and the points of the line."""
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
    return round(high * scale, 1), " ".join(points)
