"""Drawn films: people of one world do their few things each in their own way, before a camera.

What the pretrained matcher learns moving pictures from (:mod:`relocal_pyg.training.pretrain`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from relocal_pyg.datasets.endless import Footage, FootageWorld
from relocal_pyg.io.seeding import generator
from relocal_pyg.io.tensors import read_tensors, save_tensors
from relocal_pyg.io.write import replace_file
from relocal_pyg.video.backbones import Backbone

#: Pictures a second; every second and fourth row is what a lower rate gives.
RATE = 12.5
#: Joints: both arms, both legs and the back, in radians from straight down; up, across and nearer.
_ARMS, _LEGS, _BACK, _PLACE = slice(0, 2), slice(2, 4), 4, slice(5, 8)
_JOINTS = 8
_REACH = np.array([1.4, 1.4, 0.6, 0.6, 0.7, 0.08, 0.15, 0.12])

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Movement:
    """How joints go to and fro, again and again: once in so many seconds.

    ``rest`` is each joint's mean ``[8]``, ``waves`` two harmonics ``[2, 8]``, complex amplitudes.
    """

    seconds: float
    rest: NDArray[np.float64]
    waves: NDArray[np.complex128]

    def joints(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joints ``[n, 8]`` at times ``[n]`` in seconds."""
        turn = 2j * np.pi * time[:, None] / self.seconds
        moved = np.exp(turn) * self.waves[0] + np.exp(2 * turn) * self.waves[1]
        joints: NDArray[np.float64] = self.rest + moved.real
        return joints

    def own(self, rng: np.random.Generator, spread: float) -> Movement:
        """The same thing as another person does it."""
        waves = self.waves * np.exp(spread * rng.normal(size=(1, _JOINTS)))
        waves = waves * np.exp(1j * spread * rng.normal(size=(1, _JOINTS)))
        rest = self.rest + spread * 0.5 * rng.normal(size=_JOINTS) * _REACH
        return Movement(self.seconds * np.exp(spread * rng.normal()), rest, waves)


def draw_movement(rng: np.random.Generator) -> Movement:
    """Some limbs move, often both sides alike; some things are slow, most repeat."""
    seconds = float(np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
    moves = rng.random(_JOINTS) < 0.45
    moves[rng.integers(_JOINTS)] = True
    amplitude = moves * _REACH * rng.uniform(0.3, 1.0, size=_JOINTS)
    waves = amplitude * np.exp(2j * np.pi * rng.random(_JOINTS))
    second = 0.4 * waves * rng.random(_JOINTS) * np.exp(2j * np.pi * rng.random(_JOINTS))
    waves = np.stack([waves, second])
    rest = np.array([0.2, 0.2, 0.1, 0.1, 0, 0, 0, 0])
    if rng.random() < 0.5:
        rest = rest + rng.normal(size=_JOINTS) * 0.4 * _REACH
    for side in (_ARMS, _LEGS):
        if rng.random() < 0.5:  # both sides alike, or in turn
            waves[:, side.stop - 1] = waves[:, side.start] * (1 if rng.random() < 0.6 else -1)
    return Movement(seconds, rest, waves)


@dataclass(frozen=True)
class Person:
    """Who is filmed.

    Attributes:
        size: Height over that of the picture.
        build: Lengths of arms, legs and back, and thickness, as multiples of the usual.
        colours: Of shirt, trousers and skin.
    """

    size: float
    build: NDArray[np.float64]
    colours: tuple[Colour, Colour, Colour]

    def draw(self, picture: Image.Image, joints: NDArray[np.float64], middle: float) -> None:
        """Draw the person into a picture."""
        pen, side = ImageDraw.Draw(picture), picture.width
        up, across, nearer = joints[_PLACE]
        scale = side * self.size * (1 + nearer)
        arm, leg, back, thick = self.build * scale * np.array([0.36, 0.46, 0.34, 0.055])
        shirt, trousers, skin = self.colours

        def limb(
            x: float, y: float, angle: float, length: float, colour: Colour, width: float
        ) -> tuple[float, float]:
            end = x + length * math.sin(angle), y + length * math.cos(angle)
            pen.line([(x, y), end], fill=colour, width=max(2, round(width)))
            pen.ellipse(_disc(*end, width / 2), fill=colour)
            return end

        hip = side * (middle + across), side * 0.93 - leg * 0.95 - side * up
        for sign, angle in zip((-1, 1), joints[_LEGS], strict=True):
            limb(*hip, sign * angle, leg, trousers, thick * 1.2)
        neck = limb(*hip, np.pi - joints[_BACK], back, shirt, thick * 2.4)
        for sign, angle in zip((-1, 1), joints[_ARMS], strict=True):
            hand = limb(*neck, sign * angle + 0.6 * joints[_BACK], arm, shirt, thick)
            pen.ellipse(_disc(*hand, thick * 0.7), fill=skin)
        head = limb(*neck, np.pi - joints[_BACK], 0.09 * scale, skin, thick)
        pen.ellipse(_disc(*head, 0.065 * scale), fill=skin)


def _disc(x: float, y: float, radius: float) -> list[float]:
    return [x - radius, y - radius, x + radius, y + radius]


def draw_person(rng: np.random.Generator) -> Person:
    """Anybody."""
    skin = np.array([226, 180, 150]) * rng.uniform(0.35, 1.1)
    shirt, trousers = rng.integers(0, 256, size=(2, 3)).astype(np.float64)
    build = np.exp(0.12 * rng.normal(size=4))
    colours = _colour(shirt), _colour(trousers), _colour(skin)
    return Person(float(rng.uniform(0.5, 0.85)), build, colours)


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def draw_place(rng: np.random.Generator, side: int) -> Image.Image:
    """Sky or wall, floor, things that stand about; larger than a picture, as the camera moves."""
    wide = round(side * 1.3)
    picture = Image.new("RGB", (wide, wide), _colour(rng.uniform(90, 256, size=3)))
    pen = ImageDraw.Draw(picture)
    horizon = wide * rng.uniform(0.5, 0.8)
    pen.rectangle([0, horizon, wide, wide], fill=_colour(rng.uniform(40, 200, size=3)))
    for _ in range(rng.integers(0, 14)):
        left, top = rng.uniform(-0.1, 1, size=2) * wide
        width, height = rng.uniform(0.03, 0.35, size=2) * wide
        shape = pen.ellipse if rng.random() < 0.3 else pen.rectangle
        colour = _colour(rng.uniform(30, 230, size=3))
        shape([left, min(top, horizon) - height, left + width, horizon * 1.1], fill=colour)
    grain = rng.normal(size=(wide // 4, wide // 4, 3)) * rng.uniform(0, 40)
    texture = Image.fromarray((128 + grain).clip(0, 255).astype(np.uint8)).resize((wide, wide))
    return Image.blend(picture, texture, 0.2).filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))


@dataclass(frozen=True)
class Camera:
    """How pictures are taken.

    Shake and pan (over a whole film) are shares of the picture's side, ``light`` is the share by
    which it changes, and noise of pixels is in 256ths.
    """

    shake: float
    pan: float
    light: float
    noise: float
    grey: bool


def draw_camera(rng: np.random.Generator) -> Camera:
    """On a tripod as often as not."""
    steady = rng.random() < 0.6
    return Camera(
        0.0 if steady else float(rng.uniform(0, 0.02)),
        0.0 if steady else float(rng.uniform(0, 0.25)),
        float(rng.uniform(0, 0.15)),
        float(rng.uniform(0, 10)),
        bool(rng.random() < 0.15),
    )


def draw_film(
    rng: np.random.Generator,
    side: int,
    person: Person,
    place: Image.Image,
    camera: Camera,
    joints: NDArray[np.float64],
) -> Iterator[NDArray[np.uint8]]:
    """Pictures ``[side, side, 3]`` of a person whose joints ``[n, 8]`` are given."""
    count = len(joints)
    middle = rng.uniform(0.4, 0.6)
    share = (np.arange(count) + 0.5) / count
    shaken = np.cumsum(rng.normal(size=(count, 2)), axis=0) / np.sqrt(count * share)[:, None]
    corner = camera.shake * side * shaken + (place.width - side) / 2
    corner[:, 0] += camera.pan * side * (share - 0.5)
    first, last = rng.uniform(-6, 6, size=2)
    light = 1 + camera.light * np.sin(first + (last - first) * share)
    for step in range(count):
        left, top = (int(value) for value in corner[step].clip(0, place.width - side))
        picture = place.crop((left, top, left + side, top + side))
        person.draw(picture, joints[step], middle)
        pixels = np.asarray(picture, dtype=np.float32) * light[step]
        if camera.noise > 1:
            pixels = pixels + camera.noise * rng.standard_normal((side, side, 1), dtype=np.float32)
        if camera.grey:
            pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
        yield pixels.clip(0, 255).astype(np.uint8)


def draw_footage(seed: int, number: int, backbone: Backbone) -> FootageWorld:
    """World ``number`` of a seed: some people, each filmed at some of the same things."""
    rng = generator(seed, "footage", number)
    side = backbone.size[0]
    movements = [draw_movement(rng) for _ in range(8)]
    spread = rng.uniform(0.03, 0.25)
    place, camera = draw_place(rng, side), draw_camera(rng)
    alike = rng.random() < 0.5  # all of them filmed in one place
    between = rng.random() < 0.5  # they stand about between two things
    usual = float(np.exp(rng.uniform(np.log(1.2), np.log(6.0))))
    films = []
    for _ in range(5):
        if not alike:
            place, camera = draw_place(rng, side), draw_camera(rng)
        parts, actions, count = [], [], 0
        for which in rng.permutation(len(movements))[:6].repeat(rng.integers(1, 3)):
            if between and rng.random() < 0.7:
                still = Movement(3.0, movements[0].rest * 0, movements[0].waves * 0.02)
                parts.append(still.joints(_times(rng, rng.uniform(0.4, 1.5) * usual)))
                count += len(parts[-1])
            own = movements[which].own(rng, spread)
            parts.append(own.joints(_times(rng, usual * np.exp(rng.uniform(-0.5, 0.5)))))
            actions.append((int(which), count, count + len(parts[-1])))
            count += len(parts[-1])
        pictures = draw_film(rng, side, draw_person(rng), place, camera, np.concatenate(parts))
        rows = backbone(torch.from_numpy(np.stack(list(pictures))))
        films.append(Footage(rows.numpy(), tuple(actions)))
    return FootageWorld(tuple(films), RATE)


def _times(rng: np.random.Generator, seconds: float) -> NDArray[np.float64]:
    return np.arange(max(4, round(seconds * RATE))) / RATE + rng.uniform(0, 4)


def keep_footage(folder: Path, seed: int, count: int, backbone: Backbone) -> list[FootageWorld]:
    """The first ``count`` worlds of :func:`draw_footage`, read where the folder has them."""
    worlds = []
    for number in range(count):
        file = folder / f"world-{number}.safetensors"
        if not file.exists():
            drawn = draw_footage(seed, number, backbone)
            kept = {}
            for place, film in enumerate(drawn.films):
                kept[f"{place}.rows"] = torch.from_numpy(film.rows)
                kept[f"{place}.actions"] = torch.tensor(film.actions)
            folder.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as temporary:
                save_tensors(kept, temporary)
        tensors = read_tensors(file)
        films = []
        for place in range(len(tensors) // 2):
            actions = [(a, b, c) for a, b, c in tensors[f"{place}.actions"].tolist()]
            films.append(Footage(tensors[f"{place}.rows"].numpy(), tuple(actions)))
        worlds.append(FootageWorld(tuple(films), RATE))
    return worlds
