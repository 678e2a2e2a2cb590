"""Draw two short films to try ``relocal find`` on: stick figures that do four things.

python examples/draw_videos.py films
relocal find films/park.mp4 films/street.mp4 --query-start 4 --query-end 8 --report report.html

``park.mp4`` is one figure who waves, does jumping jacks from 4 to 8 s and bends; ``street.mp4``
another one, elsewhere, who walks, waves, does jumping jacks from 13 to 18 s, bends and walks on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, RATE = 320, 240, 25
Colour = tuple[int, int, int]


def pose(action: str, time: float) -> dict[str, float]:
    """Angles in radians from straight down (arms, legs, back) and the place in pixels."""
    swing = math.sin(2 * math.pi * 1.1 * time)
    up = 0.5 - 0.5 * math.cos(2 * math.pi * 1.1 * time)
    if action == "jacks":
        return {"left": 0.3 + 2.5 * up, "right": 0.3 + 2.5 * up, "legs": 0.1 + 0.5 * up,
                "bend": 0, "lift": 10 * up, "x": 0}  # fmt: skip
    if action == "wave":
        return {"left": 0.2, "right": 2.4 + 0.5 * swing, "legs": 0.12, "bend": 0, "lift": 0, "x": 0}
    if action == "bend":
        return {"left": 0.1, "right": 0.1, "legs": 0.1, "bend": 1.5 * up, "lift": 0, "x": 0}
    return {"left": 0.5 * swing, "right": -0.5 * swing, "legs": 0.4 * abs(swing), "bend": 0,
            "lift": 2 * abs(swing), "x": 60 * math.sin(0.6 * time)}  # fmt: skip


def draw(ground: Image.Image, shirt: Colour, action: str, time: float, size: float) -> np.ndarray:
    """One picture."""
    picture = ground.copy()
    pen = ImageDraw.Draw(picture)
    now = pose(action, time)
    thick = round(9 * size)

    def line(
        x: float, y: float, angle: float, length: float, colour: Colour
    ) -> tuple[float, float]:
        end = (x + length * size * math.sin(angle), y + length * size * math.cos(angle))
        pen.line([(x, y), end], fill=colour, width=thick, joint="curve")
        pen.ellipse(
            [end[0] - thick / 2, end[1] - thick / 2, end[0] + thick / 2, end[1] + thick / 2],
            fill=colour,
        )  # noqa: E501
        return end

    hip = (WIDTH / 2 + now["x"], 150 - now["lift"])
    for side in (-1, 1):
        line(*hip, side * now["legs"], 70, (40, 45, 70))
    neck = line(*hip, math.pi - now["bend"], 60, shirt)
    for side, angle in ((-1, now["left"]), (1, now["right"])):
        line(*neck, side * angle + 0.6 * now["bend"], 55, shirt)
    head = (
        neck[0] + 18 * size * math.sin(now["bend"]),
        neck[1] - 18 * size * math.cos(now["bend"]),
    )
    radius = 15 * size
    pen.ellipse(
        [head[0] - radius, head[1] - radius, head[0] + radius, head[1] + radius],
        fill=(226, 180, 150),
    )  # noqa: E501
    return np.asarray(picture)


def scene(seed: int, sky: Colour, floor: Colour) -> Image.Image:
    """A place: sky, floor, some houses."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), sky)
    pen = ImageDraw.Draw(picture)
    rng = np.random.default_rng(seed)
    for left in range(0, WIDTH, 45):
        top = int(rng.integers(60, 140))
        grey = int(rng.integers(120, 190))
        pen.rectangle([left, top, left + 38, 190], fill=(grey, grey - 10, grey - 25))
    pen.rectangle([0, 190, WIDTH, HEIGHT], fill=floor)
    return picture


def film(
    parts: list[tuple[str, float]], ground: Image.Image, shirt: Colour, size: float
) -> Iterator[np.ndarray]:  # noqa: E501
    """The pictures of actions one after another, each so many seconds long."""
    for action, seconds in parts:
        for number in range(round(seconds * RATE)):
            yield draw(ground, shirt, action, number / RATE, size)


def write(path: Path, pictures: Iterator[np.ndarray]) -> None:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    park = scene(1, (170, 205, 235), (120, 160, 90))
    street = scene(2, (225, 200, 170), (130, 125, 120))
    parts = [("wave", 4.0), ("jacks", 4.0), ("bend", 4.0)]
    write(folder / "park.mp4", film(parts, park, (200, 60, 50), 0.95))
    parts = [("walk", 7.0), ("wave", 6.0), ("jacks", 5.0), ("bend", 5.0), ("walk", 7.0)]
    write(folder / "street.mp4", film(parts, street, (50, 90, 170), 1.05))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "films"))
