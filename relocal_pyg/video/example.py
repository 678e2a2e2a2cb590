"""Two short drawn films to try a search on: stick figures that do four things."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from relocal_pyg.io.write import replace_file

_WIDTH, _HEIGHT, _RATE = 320, 240, 25
_Colour = tuple[int, int, int]


class Film(NamedTuple):
    """A film: a figure of a size in a place, and what it does for how many seconds each."""

    actions: tuple[tuple[str, float], ...]
    sky: _Colour
    floor: _Colour
    shirt: _Colour
    size: float


_PARK = (("wave", 4), ("jacks", 4), ("bend", 4))
_STREET = (("walk", 7), ("wave", 6), ("jacks", 5), ("bend", 5), ("walk", 7))
FILMS = {
    "park": Film(_PARK, (170, 205, 235), (120, 160, 90), (200, 60, 50), 0.95),
    "street": Film(_STREET, (225, 200, 170), (130, 125, 120), (50, 90, 170), 1.05),
}

#: Seconds of the first film in which somebody does jumping jacks.
CLIP = (4.0, 8.0)


def write_example(folder: str | Path) -> list[Path]:
    """Draw :data:`FILMS` into a folder, ``park.mp4`` and ``street.mp4``.

    Raises:
        OutputError: A file cannot be written, or holds what this package did not write.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    written = []
    for name, film in FILMS.items():
        written.append(Path(folder) / f"{name}.mp4")
        with (
            replace_file(written[-1], "video") as temporary,
            av.open(str(temporary), "w", format="mp4") as output,
        ):
            stream: Any = output.add_stream(codec, rate=_RATE)
            stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
            for number, picture in enumerate(pictures(film)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, _RATE)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return written


def pictures(film: Film) -> Iterator[NDArray[np.uint8]]:
    """The pictures of a film, RGB ``[240, 320, 3]``, 25 a second."""
    ground = _place(film)
    for action, seconds in film.actions:
        for number in range(round(seconds * _RATE)):
            yield _draw(ground.copy(), film, action, number / _RATE)


def _pose(action: str, time: float) -> tuple[float, float, float, float, float, float]:
    """Angles in radians from straight down (two arms, legs, back); pixels up and to the right."""
    swing = math.sin(2 * math.pi * 1.1 * time)
    up = 0.5 - 0.5 * math.cos(2 * math.pi * 1.1 * time)
    if action == "jacks":
        return 0.3 + 2.5 * up, 0.3 + 2.5 * up, 0.1 + 0.5 * up, 0, 10 * up, 0
    if action == "wave":
        return 0.2, 2.4 + 0.5 * swing, 0.12, 0, 0, 0
    if action == "bend":
        return 0.1, 0.1, 0.1, 1.5 * up, 0, 0
    across = 60 * math.sin(0.6 * time)
    return 0.5 * swing, -0.5 * swing, 0.4 * abs(swing), 0, 2 * abs(swing), across


def _draw(picture: Image.Image, film: Film, action: str, time: float) -> NDArray[np.uint8]:
    pen = ImageDraw.Draw(picture)
    left, right, legs, bend, lift, across = _pose(action, time)
    thick = round(9 * film.size)

    def disc(x: float, y: float, radius: float, colour: _Colour) -> None:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)

    def limb(
        x: float, y: float, angle: float, length: float, colour: _Colour
    ) -> tuple[float, float]:
        length *= film.size
        end = x + length * math.sin(angle), y + length * math.cos(angle)
        pen.line([(x, y), end], fill=colour, width=thick, joint="curve")
        disc(*end, thick / 2, colour)
        return end

    hip = _WIDTH / 2 + across, 150 - lift
    for side in (-1, 1):
        limb(*hip, side * legs, 70, (40, 45, 70))
    neck = limb(*hip, math.pi - bend, 60, film.shirt)
    for side, angle in ((-1, left), (1, right)):
        limb(*neck, side * angle + 0.6 * bend, 55, film.shirt)
    reach = 18 * film.size
    head = neck[0] + reach * math.sin(bend), neck[1] - reach * math.cos(bend)
    disc(*head, 15 * film.size, (226, 180, 150))
    return np.asarray(picture)


def _place(film: Film) -> Image.Image:
    """Sky, floor, some houses."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), film.sky)
    pen = ImageDraw.Draw(picture)
    draw = np.random.default_rng(film.shirt)
    for left in range(0, _WIDTH, 45):
        top, grey = int(draw.integers(60, 140)), int(draw.integers(120, 190))
        pen.rectangle([left, top, left + 38, 190], fill=(grey, grey - 10, grey - 25))
    pen.rectangle([0, 190, _WIDTH, _HEIGHT], fill=film.floor)
    return picture
