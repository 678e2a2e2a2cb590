"""Worlds without end: what the pretrained matcher is trained on, a new one for every list.

A :class:`World` is drawn from ranges wide enough that real features should lie inside: what actions
are made of (sub-actions in any order, in a fixed order, or a smooth movement), how videos are built
(background, other activity, attempts, the same thing backwards, several answers, none), and what a
backbone makes of them (dense, sparse, class scores, skeletons; drift, cuts, stills). Nobody's data
is in it. Everything is drawn from one generator, so that a seed and a number give a list again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Order = Literal["any", "fixed", "curve"]
Kind = Literal["linear", "dense", "margins", "softmax", "sparse", "skeleton"]

ORDERS: tuple[Order, ...] = ("any", "fixed", "curve")
KINDS: tuple[Kind, ...] = ("linear", "dense", "margins", "softmax", "sparse", "skeleton")

#: Harmonics of a movement.
_HARMONICS = 5


@dataclass(frozen=True)
class Actions:
    """What actions are made of."""

    order: Order
    """Sub-actions in any order (Figure 2 of the paper), in a fixed one, or a smooth movement."""
    meanings: int
    """Dimensions that tell of actions."""
    vocabulary: int
    """Sub-actions in the world, shared by classes."""
    core: int
    """Sub-actions of a class."""
    shown: float
    """Chance of each to be seen in a performance."""
    extra: float
    """Chance of a sub-action that does not belong to the class."""
    pace: float
    """How much longer the slowest sub-action may take than the fastest."""
    tempo: float
    """How much lengths of performances differ, in logarithms."""
    variation: float
    """How far a video's own way to do a thing lies from the common one."""
    swing: float
    """Movement to and fro inside a sub-action: what a local deviation sees."""
    cycles: int
    """How often a performance repeats itself, at most."""
    activity: float
    """What all activity shares and background lacks."""


@dataclass(frozen=True)
class Staging:
    """How videos are built."""

    length: float
    """Usual steps of an action."""
    room: float
    """Length of a reference over that of its actions."""
    answers: int
    """Performances in a reference at most."""
    distractors: float
    """Share of the free time with other activity."""
    attempts: float
    """Chance that such an activity shows parts of the class."""
    rest: float
    """Background after an activity, as a share of its length: 0 in a film that is all activity."""
    scene: float
    """Strength of what background shows."""
    wander: float
    """How much background changes, in the dimensions of actions."""
    wander_keep: float
    """Its persistence from step to step."""
    stills: float
    """Chance that the picture is black or stands still for a while."""
    spliced: bool
    """The film was cut where something begins or ends."""
    second: float | None
    """Steps in a second; None where nobody knows, or where a step lasts that long."""


@dataclass(frozen=True)
class Look:
    """What a backbone makes of a video."""

    kind: Kind
    channels: int
    nuisance: int
    """Dimensions that tell of person, place and camera."""
    style: float
    """A video's own constant there."""
    drift: float
    """Its changes there."""
    keep: float
    """Their persistence from step to step (first order)."""
    cuts: float
    """Chance of a cut at a step."""
    noise: float
    noise_keep: float
    """Persistence of noise: steps of a backbone overlap."""
    level: float
    """Common mean of all rows: that of dense features is high."""
    decay: float
    """How unequal channels are: few effective dimensions."""
    sharp: float
    """Of a softmax, or threshold of what is kept of sparse features."""
    gain: float
    """A video's own scale of channels."""
    blur: int
    """Steps averaged: clips of a backbone that overlap."""
    repeat: int
    """Times that each picture is shown."""


@dataclass(frozen=True)
class Scene:
    """One video of a world: ``[n, F]``, and performances of the class asked for, in steps."""

    rows: Rows
    truths: NDArray[np.int64]


@dataclass(frozen=True)
class Footage:
    """Rows ``[n, F]`` of a film, and class, first step and end of each action in it."""

    rows: Rows
    actions: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class FootageWorld:
    """Films in which the same things are done, one a person, and their rows a second."""

    films: tuple[Footage, ...]
    rate: float


@dataclass(frozen=True)
class Class:
    """A class of actions: its sub-actions, and for a movement the shares of its harmonics."""

    parts: NDArray[np.int64]
    extra: NDArray[np.int64]
    wave: NDArray[np.float64] = field(repr=False)
    backwards: bool = False


class World:
    """Actions, staging and look that belong together, and the directions drawn for them."""

    def __init__(
        self, rng: np.random.Generator, actions: Actions, staging: Staging, look: Look
    ) -> None:
        self.rng, self.actions, self.staging, self.look = rng, actions, staging, look
        size = actions.meanings
        self.prototypes = _units(rng, actions.vocabulary, size)
        if look.kind in ("margins", "softmax"):
            # A channel is the score of a sub-action: those of no action are scores of others.
            mixing = np.eye(size, look.channels) + 0.15 * rng.normal(size=(size, look.channels))
            self.prototypes += np.eye(actions.vocabulary, size)
            self.prototypes /= np.linalg.norm(self.prototypes, axis=1, keepdims=True)
        else:
            mixing = rng.normal(size=(size, look.channels)) / np.sqrt(look.channels)
        self.mixing = mixing
        self.swings = _units(rng, actions.vocabulary, size)
        if staging.second is None:
            self.rates = rng.uniform(0.1, 0.5, size=actions.vocabulary)
        else:  # people move to and fro between once in three seconds and three times in one
            hertz = np.exp(rng.uniform(np.log(0.3), np.log(3.0), size=actions.vocabulary))
            self.rates = np.minimum(hertz / staging.second, 0.5)
        self.activity = _units(rng, 1, size)[0]
        self.scenes = _units(rng, 6, size)
        self.nuisance = rng.normal(size=(look.nuisance, look.channels)) / np.sqrt(look.channels)
        self.scales = np.exp(look.decay * rng.normal(size=look.channels))
        self.level = np.abs(1 + 0.5 * rng.normal(size=look.channels)) * look.level
        self.level /= np.sqrt(look.channels)
        self.target = self.draw_class()
        # The classes that the world's videos are full of.
        self.others = [self.draw_class(apart=self.target.parts) for _ in range(8)]

    # Classes and performances

    def draw_class(self, *, apart: NDArray[np.int64] | None = None) -> Class:
        """A class; none of its sub-actions is among ``apart``."""
        rng, actions = self.rng, self.actions
        numbers = rng.permutation(actions.vocabulary)
        if apart is not None:
            numbers = numbers[~np.isin(numbers, apart)]
        wave = rng.normal(size=(2, _HARMONICS, actions.meanings))
        wave *= (1.0 / np.arange(1, _HARMONICS + 1) ** rng.uniform(0.3, 1.5))[:, None]
        wave /= np.sqrt((wave**2).sum() / 2)
        return Class(numbers[: actions.core], numbers[actions.core :][:3], wave)

    def rival(self) -> Class:
        """A class that is easily taken for the target: backwards where order counts, or in part."""
        rng, target = self.rng, self.target
        ordered = self.actions.order == "curve" or (
            self.actions.order == "fixed" and len(target.parts) > 1
        )
        if ordered and rng.random() < 0.5:
            return replace(target, backwards=True)
        other = self.others[rng.integers(len(self.others))]
        kept = target.parts[: len(target.parts) // 2]
        parts = np.concatenate([kept, other.parts])[: len(target.parts)]
        wave = np.where(np.arange(_HARMONICS)[:, None] < 2, target.wave, other.wave)
        return Class(rng.permutation(parts), target.extra, wave)

    def perform(self, action: Class, length: int, own: Own) -> NDArray[np.float64]:
        """Meaning ``[length, k]`` of one performance in a video's own way."""
        rows = self._forwards(action, length, own)
        return rows[::-1] if action.backwards else rows

    def _forwards(self, action: Class, length: int, own: Own) -> NDArray[np.float64]:
        rng, actions = self.rng, self.actions
        cycles = min(int(rng.integers(1, actions.cycles + 1)), max(1, length // 4))
        if actions.order == "curve":
            knots = np.linspace(0, 4, length), np.arange(5), rng.normal(size=5)
            pace = np.exp(np.log(actions.pace) * 0.5 * np.interp(*knots))  # a smooth curve
            share = np.cumsum(pace) / pace.sum() * cycles
            angle = 2 * np.pi * share[:, None] * np.arange(1, _HARMONICS + 1)
            # Not closed: half a turn of the slowest harmonic sets the ends apart.
            angle[:, 0] = np.pi * (share % 1.0) if cycles > 1 else np.pi * share
            wave = action.wave + actions.variation * own.wave
            return np.cos(angle) @ wave[0] + np.sin(angle) @ wave[1]
        parts = action.parts[rng.random(len(action.parts)) < actions.shown]
        if len(parts) == 0:
            parts = action.parts[:1]
        if len(action.extra) and rng.random() < actions.extra:
            place = rng.integers(len(parts) + 1)
            parts = np.insert(parts, place, rng.choice(action.extra))
        if actions.order == "any":
            parts = rng.permutation(parts)
        parts = np.tile(parts, cycles)[: max(1, length // 2)]
        share = np.cumsum(rng.uniform(1.0, actions.pace, size=len(parts)))
        ends = np.floor(share / share[-1] * (length - len(parts)) + 1e-9).astype(np.int64)
        ends += np.arange(1, len(parts) + 1)
        track = np.repeat(parts, np.diff(ends, prepend=0))
        angle = 2 * np.pi * (self.rates[track] * np.arange(length) + rng.random())
        swing = actions.swing * np.sin(angle)[:, None] * self.swings[track]
        return own.prototypes[track] + swing

    # Videos

    def video(
        self,
        answers: int,
        *,
        cover: bool = False,
        copy: Rows | None = None,
        action: Class | None = None,
    ) -> Scene:
        """A video with so many performances of the target.

        Args:
            answers: How many.
            cover: Let the only one fill the video.
            copy: Rows of footage to be put in as they are, as the one answer.
            action: The class that is performed; the target where None.
        """
        rng, actions, staging = self.rng, self.actions, self.staging
        own = Own(self)
        lengths = [self.draw_length() for _ in range(answers)]
        if copy is not None:
            lengths = [len(copy)]
        used = sum(lengths)
        room = 0.0 if cover else staging.room * staging.length
        free = round(rng.uniform(0.5, 1.5) * room) + (0 if cover else 3)
        if cover:
            free = int(rng.integers(0, max(1, used // 6) + 1))
        cuts = np.sort(rng.integers(0, free + 1, size=len(lengths)))
        meaning = np.empty((used + free, actions.meanings))
        truths, start, done = [], 0, 0
        ends: list[int] = []
        for length, cut in zip([*lengths, 0], [*cuts, free], strict=True):
            gap = int(cut) - done
            meaning[start : start + gap], changes = self._gap(gap, own)
            ends += [start + change for change in changes]
            start, done = start + gap, int(cut)
            if length:
                if copy is None:
                    shown = self.perform(action or self.target, length, own)
                    meaning[start : start + length] = shown + actions.activity * self.activity
                else:
                    meaning[start : start + length] = 0
                truths.append((start, start + length))
                start += length
                ends += truths[-1]
        rows = self.render(meaning, own, ends if staging.spliced else [])
        if copy is not None:
            rows[truths[0][0] : truths[0][1]] = copy
        gap = truths[0][0] if truths else len(rows)
        if gap and rng.random() < staging.stills:  # black, or still, before the first answer
            first = int(rng.integers(gap))
            rows[first:gap] = rows[first] * float(rng.random() < 0.5)
        return Scene(rows, np.array(truths, dtype=np.int64).reshape(-1, 2))

    def draw_length(self) -> int:
        """Steps of a performance."""
        usual = self.staging.length * np.exp(self.actions.tempo * self.rng.uniform(-1, 1))
        return max(3, round(usual))

    def _gap(self, count: int, own: Own) -> tuple[NDArray[np.float64], list[int]]:
        """Background with other activity in it, and where that begins and ends."""
        rng, actions, staging = self.rng, self.actions, self.staging
        rows = staging.scene * self.scenes[own.scene] + np.zeros((count, actions.meanings))
        if staging.wander > 0 and count:
            noise = _drift(rng, count, min(6, actions.meanings), staging.wander_keep)
            spread = _units(rng, noise.shape[1], actions.meanings)
            rows = rows + staging.wander / np.sqrt(len(spread)) * noise @ spread
        place, ends = int(rng.integers(0, 5)), []
        while place < count:
            length = max(2, round(self.draw_length() * rng.uniform(0.4, 1.2)))
            if rng.random() < staging.distractors:
                near = rng.random() < staging.attempts
                action = self.rival() if near else self.others[rng.integers(len(self.others))]
                shown = self.perform(action, length, own) + actions.activity * self.activity
                rows[place : place + length] = shown[: count - place]
                ends += [place, min(place + length, count)]
            place += length + int(rng.uniform(0, 2 * staging.rest) * length)
        return rows, ends

    def render(self, meaning: NDArray[np.float64], own: Own, cuts: Sequence[int] = ()) -> Rows:
        """Features ``[n, F]`` of what a video means, in its own look, cut at some steps."""
        rng, look = self.rng, self.look
        count = len(meaning)
        if look.repeat > 1:
            meaning = meaning[np.arange(count) // look.repeat * look.repeat]
        padded = np.concatenate([meaning[:1], meaning, meaning[-1:]])
        meaning = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
        rows = meaning @ self.mixing
        if look.nuisance:
            cut = rng.random(count) < look.cuts
            cut[[step for step in cuts if step < count]] = True
            drift = _drift(rng, count, look.nuisance, look.keep, cut)
            rows = rows + (look.style * own.style + look.drift * drift) @ self.nuisance / np.sqrt(
                look.nuisance
            ) * (np.sqrt(look.channels) if look.kind in ("margins", "softmax") else 1.0)
        size = look.noise / np.sqrt(
            self.actions.meanings if look.kind in ("margins", "softmax") else look.channels
        )
        rows = rows + size * _drift(rng, count, look.channels, look.noise_keep)
        if look.kind == "dense":
            rows = (rows + self.level) * self.scales
            rows = np.maximum(rows, 0.05 * rows)
        elif look.kind == "softmax":
            power = np.exp((rows - rows.max(axis=1, keepdims=True)) * look.sharp * 4)
            rows = power / power.sum(axis=1, keepdims=True)
        elif look.kind == "sparse":
            rows = np.maximum(rows - look.sharp * rows.std(), 0)
        else:
            rows = (rows + self.level) * self.scales
        rows = rows * own.gain
        if look.blur > 1:
            total = np.cumsum(np.concatenate([rows[:1].repeat(look.blur, axis=0), rows]), axis=0)
            rows = (total[look.blur :] - total[: -look.blur]) / look.blur
            rows = np.concatenate(
                [rows[look.blur // 2 :], rows[-1:].repeat(look.blur // 2, axis=0)]
            )
        if look.repeat > 1:
            rows = rows[np.arange(count) // look.repeat * look.repeat]
        return rows.astype(np.float32)


def draw_world(
    rng: np.random.Generator,
    *,
    wide: bool = False,
    order: Order | None = None,
    kind: Kind | None = None,
) -> World:
    """Draw a world; ``wide``: from ranges that go beyond those of training, for held-out ones."""
    look = draw_look(rng, kind, wide)
    actions = draw_actions(rng, order, look.kind, wide)
    staging = draw_staging(rng, wide)
    if look.repeat > 1:
        staging = replace(staging, length=max(staging.length, 8))
    return World(rng, actions, staging, look)


class Own:
    """What is a video's own: its way to do things, its place, person and camera."""

    def __init__(self, world: World) -> None:
        rng, actions, look = world.rng, world.actions, world.look
        noise = rng.normal(size=world.prototypes.shape) / np.sqrt(actions.meanings)
        self.prototypes = world.prototypes + actions.variation * noise
        size = np.sqrt(_HARMONICS * actions.meanings)
        self.wave = rng.normal(size=(2, _HARMONICS, actions.meanings)) / size
        self.style = rng.normal(size=look.nuisance)
        self.scene = int(rng.integers(len(world.scenes)))
        self.gain = 1 + look.gain * rng.uniform(-1, 1, size=look.channels)


def draw_look(rng: np.random.Generator, kind: Kind | None, wide: bool) -> Look:
    """Draw what a backbone makes of videos."""
    u = _Ranges(rng, wide)
    kind = kind or KINDS[rng.choice(len(KINDS), p=[0.24, 0.2, 0.15, 0.11, 0.17, 0.13])]
    channels = int(rng.choice([16, 32, 64, 128, 256], p=[0.15, 0.25, 0.3, 0.2, 0.1]))
    small = kind in ("margins", "softmax")
    if small:
        channels = int(rng.integers(8, 64)) if rng.random() < 0.8 else int(rng.integers(64, 300))
    skeleton = kind == "skeleton"
    return Look(
        kind=kind,
        channels=channels,
        nuisance=int(rng.integers(3, 25)),
        style=u(0.2, 2.0) * (0.3 if small else 1.0),
        drift=u(0.1, 1.6) * (0.3 if small or skeleton else 1.0),
        keep=float(1 - 10 ** -u(0.5, 2.0)),
        cuts=float(rng.choice([0.0, 0.01, 0.04])),
        noise=u(0.2, 1.4) * (0.35 if skeleton else 1.0),
        noise_keep=float(rng.choice([0.0, 0.0, 0.5, 0.8])),
        level=u(0.0, 4.0) if kind == "dense" else u(0.0, 1.0) * float(rng.random() < 0.5),
        decay=u(0.0, 1.2) if rng.random() < 0.5 else 0.0,
        sharp=u(0.5, 2.0) if kind == "softmax" else u(0.2, 1.3),
        gain=u(0.0, 0.3),
        blur=int(rng.choice([1, 1, 1, 2, 3, 5])),
        repeat=int(rng.choice([1, 2, 3], p=[0.9, 0.06, 0.04])),
    )


def draw_actions(rng: np.random.Generator, order: Order | None, kind: Kind, wide: bool) -> Actions:
    """Draw what actions are made of."""
    u = _Ranges(rng, wide)
    if order is None:
        chances = [0.05, 0.15, 0.8] if kind == "skeleton" else [0.45, 0.3, 0.25]
        order = ORDERS[rng.choice(3, p=chances)]
    small = kind in ("margins", "softmax")
    meanings = int(rng.integers(8, 33)) if kind != "skeleton" else int(rng.integers(5, 16))
    core = int(rng.integers(1, 4)) if order == "any" else int(rng.integers(1, 7))
    return Actions(
        order=order,
        meanings=meanings,
        vocabulary=int(rng.integers(14, 40)) if not small else max(14, meanings),
        core=core,
        shown=u(0.5, 1.0) if order == "any" else u(0.7, 1.0),
        extra=u(0.0, 0.7) if order == "any" else u(0.0, 0.4),
        pace=u(1.1, 4.0),
        tempo=u(0.05, 1.1),
        variation=u(0.1, 0.8),
        swing=u(0.0, 0.8) * float(rng.random() < 0.6),
        cycles=int(rng.choice([1, 1, 1, 2, 4, 8])),
        activity=u(0.0, 0.8),
    )


def draw_staging(rng: np.random.Generator, wide: bool) -> Staging:
    """Draw how videos are built."""
    u = _Ranges(rng, wide)
    length = float(np.exp(u(np.log(4.0), np.log(48.0))))
    # An action lasts a second at least.
    second = min(float(np.exp(u(np.log(1.5), np.log(25.0)))), length)
    return Staging(
        length=length,
        room=u(1.5, 12.0),
        answers=int(rng.choice([1, 1, 2, 3])),
        distractors=u(0.2, 1.0),
        attempts=u(0.0, 0.6),
        rest=u(0.0, 0.5) * float(rng.random() < 0.65),
        scene=u(0.0, 1.0),
        wander=u(0.0, 0.8) * float(rng.random() < 0.6),
        wander_keep=float(1 - 10 ** -u(0.3, 2.0)),
        stills=0.1,
        spliced=bool(rng.random() < 0.3),
        second=second if rng.random() < 0.5 else None,
    )


class _Ranges:
    """Uniform draws; of held-out worlds from wider ranges, mostly outside those of training."""

    def __init__(self, rng: np.random.Generator, wide: bool) -> None:
        self.rng, self.wide = rng, wide

    def __call__(self, low: float, high: float) -> float:
        value = float(self.rng.uniform(low, high))
        if self.wide:
            value = low + (value - low) * 1.25
        return value


def _units(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    """Random unit rows ``[count, size]``."""
    rows = rng.normal(size=(count, size))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _drift(
    rng: np.random.Generator,
    count: int,
    size: int,
    keep: float,
    cut: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """A stationary first-order process of unit variance, ``[count, size]``; cuts draw it anew."""
    rows = rng.normal(size=(count, size))
    if keep <= 0:
        return rows
    fresh = np.sqrt(1 - keep**2)
    for step in range(1, count):
        if cut is None or not cut[step]:
            rows[step] = keep * rows[step - 1] + fresh * rows[step]
    return rows
