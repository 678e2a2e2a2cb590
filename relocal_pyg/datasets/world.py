"""A seeded world of actions: sub-actions as directions in feature space, classes made of them.

What a user of real features meets, in a form that needs no download: the phenomenon of the paper's
Figure 2 (two performances of a class differ in which sub-actions they show, in which order and how
fast) and the mixture of meaning and nuisance that frame features are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocal_pyg.errors import UsageError
from relocal_pyg.seeding import generator


@dataclass(frozen=True)
class WorldConfig:
    """What a simulated world is like: each value, and the phenomenon it stands for.

    No value was chosen to make a method fail. Sub-actions are unit vectors and strengths
    lengths of vectors, so that 1 is a sub-action in plain view, whatever the number of channels.
    """

    seed: int = 0
    """Everything follows from it: the same seed gives the same videos."""
    channels: int = 64
    """F. Small, so that a demonstration trains in minutes on two cores."""
    nuisance_channels: int = 24
    """Dimensions among them that tell who films whom and where, and nothing of the action. Features
    of real backbones mix both kinds; here one rotation of the whole space mixes them. They are the
    same in every video, so what to disregard can be learned on other classes."""
    themes: int = 8
    """Groups of sub-actions that go together (kitchen, pool, workshop). A class lies in one theme,
    so other classes tell which sub-actions belong together in a class never seen."""
    sub_actions_per_theme: int = 6
    """Few enough that classes share sub-actions, as real ones share running or pouring."""
    core: int = 3
    """Sub-actions that make a class; no two classes have the same set."""
    optional: int = 2
    """Further ones that a performance may add: the first of the theme, the others from anywhere."""
    core_shown: float = 0.8
    """Chance of each core sub-action to be seen; one always is. Figure 2: "some detailed sub-action
    appears in one video and does not appear in another"."""
    optional_shown: float = 0.5
    """Chance of each optional sub-action to be seen."""
    pace: float = 3.0
    """How many times longer the slowest sub-action of a performance may take than the fastest:
    speed varies (Figure 2). Order is drawn anew for every performance (Figure 2)."""
    variation: float = 0.3
    """How far a video's own way to do a sub-action lies from the common one: visual
    dissimilarity of the same action (Figure 2)."""
    activity: float = 0.5
    """Strength of the direction that all activity shares and background lacks: motion energy, which
    makes actionness (and with it proposals) possible on unseen classes. A cue to boundaries."""
    scene: float = 0.5
    """Strength of what background shows. Less than an action: little happens in it."""
    scenes: int = 6
    """Kinds of background (a crowd, a title, an empty room); a video has one. They are common to
    all videos, so background has statistics of its own that can be learned."""
    style: float = 1.0
    """Length (root mean square) of a video's own constant in the nuisance dimensions: person,
    camera, room. As strong as what is done, as in features of real backbones."""
    drift: float = 0.8
    """Length of slow changes inside a video in the nuisance dimensions: camera motion, light, who
    is in view. Less than what sets videos apart; for it a video's own mean does not take all of the
    nuisance away."""
    drift_steps: float = 12.0
    """Steps in which a drift falls to 1/e: half a dozen seconds, the scale of a moment."""
    cuts: float = 0.02
    """Chance per step of a cut to another camera, where the drift starts afresh: one or two in a
    minute of edited video."""
    gain: float = 0.15
    """Spread of a video's gain of each channel: exposure and compression scale features."""
    noise: float = 0.8
    """Length of the noise of a step, over all channels: a backbone judges each step alone, so
    averaging over time helps."""
    distractors: float = 0.45
    """Chance that a stretch outside labelled actions shows other activity and not background."""
    partial: float = 0.3
    """Chance that such activity borrows one core sub-action of a labelled action of the video: a
    partial match, like the attempts and preparations around a real action."""

    def __post_init__(self) -> None:
        if self.nuisance_channels < 0 or self.channels - self.nuisance_channels < 2:
            raise UsageError("nuisance_channels must be 0 or more and leave two channels or more")
        if not 1 <= self.core <= self.sub_actions_per_theme or self.themes < 1:
            raise UsageError("a theme must hold at least the core sub-actions of a class")
        if min(self.scenes, self.pace, self.drift_steps) < 1:
            raise UsageError("scenes, pace and drift_steps must be 1 or more")


@dataclass(frozen=True)
class ActionClass:
    """A class of actions: sub-actions that make it and sub-actions that may come with it."""

    core: tuple[int, ...]
    optional: tuple[int, ...]


class World:
    """Directions of sub-actions in feature space, and classes made of them.

    Args:
        config: What the world is like.
        num_classes: How many classes it has; class ``c`` lies in theme ``c % themes``.

    Attributes:
        config: As given.
        classes: One :class:`ActionClass` per class number.
        nuisance: Orthonormal rows ``[nuisance_channels, F]`` that tell nothing of actions.
        meaning: Orthonormal rows ``[F - nuisance_channels, F]``, orthogonal to ``nuisance``.
        prototypes: Unit row ``[F]`` of each sub-action.

    Raises:
        UsageError: There are not so many different classes.
    """

    def __init__(self, config: WorldConfig, num_classes: int) -> None:
        self.config = config
        rng = generator(config.seed, "world", "directions")
        mixing, _ = np.linalg.qr(rng.normal(size=(config.channels, config.channels)))
        self.nuisance = mixing[: config.nuisance_channels]
        self.meaning = mixing[config.nuisance_channels :]
        self.activity = self.meaning[0]
        count = config.themes * config.sub_actions_per_theme
        self.prototypes = _directions(rng, count, self.meaning[1:])
        self.scenes = _directions(rng, config.scenes, self.meaning[1:])
        self.classes = self._make_classes(num_classes)

    def _make_classes(self, num_classes: int) -> list[ActionClass]:
        config = self.config
        size = config.sub_actions_per_theme
        if num_classes > config.themes * math.comb(size, config.core):
            raise UsageError(
                f"{num_classes} classes do not fit into {config.themes} themes: raise themes or "
                "sub_actions_per_theme"
            )
        rng = generator(config.seed, "world", "classes")
        sets = np.array(list(itertools.combinations(range(size), config.core)))
        orders = [rng.permutation(len(sets)) for _ in range(config.themes)]
        classes = []
        for number in range(num_classes):
            # Themes take turns, so that every random split of the classes spreads over all.
            theme = number % config.themes
            core = theme * size + sets[orders[theme][number // config.themes]]
            classes.append(self._complete(rng, theme, core))
        return classes

    def _complete(
        self, rng: np.random.Generator, theme: int, core: NDArray[np.int64]
    ) -> ActionClass:
        """Add optional sub-actions to a core."""
        size = self.config.sub_actions_per_theme
        kin = theme * size + rng.permutation(size)
        anyone = rng.permutation(len(self.prototypes))
        kin = np.setdiff1d(kin, core, assume_unique=True)[:1]
        anyone = np.setdiff1d(anyone, core, assume_unique=True)
        optional = dict.fromkeys(int(v) for v in (*kin, *anyone))
        return ActionClass(tuple(int(v) for v in core), tuple(optional)[: self.config.optional])

    def draw_class(self, rng: np.random.Generator, theme: int) -> ActionClass:
        """A class of a theme, drawn as the labelled ones are: what distractors show."""
        size = self.config.sub_actions_per_theme
        core = theme * size + np.sort(rng.permutation(size)[: self.config.core])
        return self._complete(rng, theme, core)

    def perform(
        self, rng: np.random.Generator, action: ActionClass, num_steps: int
    ) -> NDArray[np.int64]:
        """One performance of a class; subset, order and speed are drawn anew (Figure 2).

        Args:
            rng: Where chance comes from.
            action: The class.
            num_steps: Length of the performance, at least 1.

        Returns:
            Which sub-action each step shows, ``[num_steps]``.
        """
        config = self.config
        shown = [v for v in action.core if rng.random() < config.core_shown]
        shown = shown or [action.core[rng.integers(len(action.core))]]
        shown += [v for v in action.optional if rng.random() < config.optional_shown]
        # A sub-action shorter than two steps could not be told from noise.
        order = rng.permutation(shown)[: max(1, num_steps // 2)]
        share = np.cumsum(rng.uniform(1.0, config.pace, size=len(order)))
        # Each takes one step for sure; the others are dealt out by pace.
        ends = np.floor(share / share[-1] * (num_steps - len(order)) + 1e-9).astype(np.int64)
        ends += np.arange(1, len(order) + 1)
        return np.repeat(order, np.diff(ends, prepend=0))


def _directions(
    rng: np.random.Generator, count: int, space: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Random unit vectors ``[count, F]`` in the row space of an orthonormal ``space``."""
    vectors = rng.normal(size=(count, len(space)))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ space
