"""Features of simulated videos, made when read, alone or over real items: no download."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.datasets.activitynet import anet_vrl, anet_vrl_items
from relocal_pyg.errors import FeatureError, UsageError, check_number
from relocal_pyg.io.seeding import generator


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
        check_fields(self)
        if self.nuisance_channels < 0 or self.channels - self.nuisance_channels < 2:
            raise UsageError("nuisance_channels must be 0 or more and leave two channels or more")
        if not 1 <= self.core <= self.sub_actions_per_theme or self.themes < 1:
            raise UsageError("a theme must hold at least the core sub-actions of a class")
        if min(self.scenes, self.pace, self.drift_steps) < 1:
            raise UsageError("scenes, pace and drift_steps must be 1 or more")


def check_fields(config: Any) -> None:
    """Refuse numbers of a configuration that are none, negative, or parts of what is whole."""
    for each in fields(config):
        if each.type in ("int", "float"):
            most = 2**64 if each.name == "seed" else 1e12
            check_number(
                getattr(config, each.name), each.name, least=0, most=most, whole=each.type == "int"
            )


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
        """Which sub-action each step of a performance shows, ``[num_steps]``, at least one.

        Subset, order and speed are drawn anew (Figure 2).
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


#: Marks a step without sub-action in :meth:`SimulatedFeatures.sub_actions`.
BACKGROUND = -1

#: The world laid over ``anet-vrl``: 200 classes need more themes, and those more dimensions.
ANET_WORLD = WorldConfig(channels=96, nuisance_channels=32, themes=16)

# Shortest, usual and longest stretch of unlabelled activity, and the rest between two, in steps:
# the scale of moments of ActivityNet (median 12 to 14 steps), with shorter attempts among them.
_ACTIVITY_STEPS = (3, 8, 20)
_LONGEST_REST = 4
# Features are rounded so that the last bits of another machine's algebra leave no trace.
_DECIMALS = 4


@dataclass(frozen=True)
class VideoPlan:
    """What a simulated video has to show; the time between is filled in.

    Attributes:
        num_steps: Length of the video.
        actions: ``(start, end, class number)``, half-open in steps, in order, without overlap.
    """

    num_steps: int
    actions: tuple[tuple[int, int, int], ...]


class SimulatedFeatures:
    """Features of simulated videos, made when read: a ``FeatureSource`` without a file.

    A video depends on the world, its own id and its plan alone, not on what was read before.

    Args:
        world: The world that the videos show.
        plans: What each video has to show, by video id.
        cached: How many videos are kept once made.
    """

    def __init__(self, world: World, plans: Mapping[str, VideoPlan], cached: int = 1024) -> None:
        self.world = world
        self.plans = dict(plans)
        self.cached = cached
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def dim(self) -> int:
        """Width ``F`` of a step."""
        return self.world.config.channels

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        """Steps ``[start, end)`` of a video, float32 ``[n, F]``, the caller's own copy."""
        features = self._cache.get(video_id)
        if features is None:
            features = torch.from_numpy(self._render(video_id))
            self._cache[video_id] = features
            if len(self._cache) > self.cached:
                self._cache.popitem(last=False)
        end = len(features) if end is None else end
        if not 0 <= start < end <= len(features):
            raise FeatureError(
                f"has {len(features)} steps, [{start}, {end}) was asked for", record=video_id
            )
        return features[start:end].clone()

    def arrays(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Id and float32 ``[n, F]`` features of every video, in the order of the plans."""
        return ((video_id, self.read(video_id).numpy()) for video_id in self.plans)

    def sub_actions(self, video_id: str) -> NDArray[np.int64]:
        """Which sub-action each step of a video shows, ``[n]``; :data:`BACKGROUND` for none."""
        if video_id not in self.plans:
            raise FeatureError("is not among the simulated videos", record=video_id)
        plan, world = self.plans[video_id], self.world
        rng = generator(world.config.seed, "script", video_id)
        track = np.full(plan.num_steps, BACKGROUND, dtype=np.int64)
        done = 0
        for start, end, number in plan.actions:
            self._distract(rng, plan, track[done:start])
            track[start:end] = world.perform(rng, world.classes[number], end - start)
            done = end
        self._distract(rng, plan, track[done:])
        return track

    def _distract(self, rng: np.random.Generator, plan: VideoPlan, gap: NDArray[np.int64]) -> None:
        """Put unlabelled activity into a stretch without labelled action, in place."""
        world, config = self.world, self.world.config
        labelled = [world.classes[number] for _, _, number in plan.actions]
        taken = {number % config.themes for _, _, number in plan.actions}
        # Another performance of the theme could be the class itself, and its label wrong.
        free = [theme for theme in range(config.themes) if theme not in taken]
        position = int(rng.integers(0, _LONGEST_REST + 1))
        while position < len(gap):
            length = round(rng.triangular(*_ACTIVITY_STEPS))
            if free and rng.random() < config.distractors:
                action = world.draw_class(rng, theme=int(rng.choice(free)))
                if labelled and rng.random() < config.partial:
                    core = labelled[rng.integers(len(labelled))].core
                    action = ActionClass((action.core[0], int(rng.choice(core))), action.optional)
                shown = world.perform(rng, action, length)
                gap[position : position + length] = shown[: len(gap) - position]
            # Activities do not touch: people walk about, a title is shown.
            position += length + int(rng.integers(1, _LONGEST_REST + 1))

    def _render(self, video_id: str) -> NDArray[np.float32]:
        """Features ``[n, F]`` of what :meth:`sub_actions` says, in this video's own look."""
        world, config = self.world, self.world.config
        track = self.sub_actions(video_id)
        rng = generator(config.seed, "look", video_id)
        own = rng.normal(size=(len(world.prototypes), len(world.meaning))) @ world.meaning
        own = world.prototypes + config.variation / math.sqrt(len(world.meaning)) * own
        scene = config.scene * world.scenes[rng.integers(config.scenes)]
        shown = own[track] + config.activity * world.activity
        meaning = np.where((track == BACKGROUND)[:, None], scene, shown)
        # A step covers 16 frames: where one thing ends and another begins it sees both.
        padded = np.concatenate([meaning[:1], meaning, meaning[-1:]])
        meaning = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
        nuisance = config.style * rng.normal(size=config.nuisance_channels)
        nuisance = nuisance + config.drift * self._drift(rng, len(track))
        nuisance /= math.sqrt(max(config.nuisance_channels, 1))
        gain = 1 + config.gain * rng.uniform(-1, 1, size=config.channels) * math.sqrt(3)
        noise = rng.normal(size=(len(track), config.channels))
        noise *= config.noise / math.sqrt(config.channels)
        features = (meaning + nuisance @ world.nuisance) * gain + noise
        return np.round(features, _DECIMALS).astype(np.float32)

    def _drift(self, rng: np.random.Generator, steps: int) -> NDArray[np.float64]:
        """A stationary first-order process of unit variance with cuts, ``[steps, nuisance]``."""
        config = self.world.config
        keep = math.exp(-1 / config.drift_steps)
        cut = rng.random(steps) < config.cuts
        cut[:1] = True
        fresh = rng.normal(size=(steps, config.nuisance_channels))
        fresh *= np.where(cut, 1.0, math.sqrt(1 - keep**2))[:, None]
        shot, time = np.cumsum(cut), np.arange(steps)
        age = time[:, None] - time[None]
        same = (age >= 0) & (shot[:, None] == shot[None])
        return np.where(same, keep ** np.abs(age), 0.0) @ fresh


def simulate_features(
    items: Iterable[Item], config: WorldConfig = ANET_WORLD, cached: int = 1024
) -> SimulatedFeatures:
    """Lay simulated features over real items: real lengths and ground truth, made-up looks.

    Each label becomes a class of a :class:`World`, each moment a performance of it; what lies
    between is background, other activity and partial matches. Nothing is stored: a video is made
    when it is read, from the seed, its id and its items.

    Args:
        items: Items of every split together, so that each label means one class.
        config: What the world is like.
        cached: How many videos are kept once made.

    Returns:
        A ``FeatureSource`` for the videos of ``items``.

    Raises:
        UsageError: The world has fewer classes than there are labels.
    """
    items = list(items)
    numbers = {label: n for n, label in enumerate(sorted({item.label for item in items}))}
    moments: dict[str, set[tuple[int, int, int]]] = {}
    lengths: dict[str, int] = {}
    for item in items:
        number = numbers[item.label]
        found = {(start, end, number) for start, end in (*item.moments, item.moment)}
        moments.setdefault(item.video_id, set()).update(found)
        lengths[item.video_id] = max(lengths.get(item.video_id, 0), item.context[1])
    plans = {
        video: VideoPlan(lengths[video], _without_overlap(found))
        for video, found in moments.items()
    }
    return SimulatedFeatures(World(config, len(numbers)), plans, cached)


def simulated_anet_vrl(
    root: str | Path, annotations: str | Path | None = None, config: WorldConfig = ANET_WORLD
) -> Protocol:
    """The published items of ``anet-vrl`` with simulated features: no download of features.

    Lengths, ground truth, split and proposals are those of
    :func:`relocal_pyg.datasets.activitynet.anet_vrl`, looks are made up. Other than in the
    published evaluation a query never meets its own video.

    ``root`` and ``annotations`` are those of
    :func:`~relocal_pyg.datasets.activitynet.anet_vrl_items`.

    Raises:
        AnnotationError: A file is missing or malformed.
    """
    items = itertools.chain.from_iterable(anet_vrl_items(root, annotations).values())
    real = anet_vrl(root, simulate_features(items, config), annotations)
    source = "features simulated, not recorded: no figure on them compares with one on real ones"
    return replace(
        real,
        name="simulated-anet-vrl",
        exclude="video",
        about={**real.about, "source": source, "world": asdict(config)},
    )


def _without_overlap(actions: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Sort actions; where two meet, the later one starts after the earlier one's end."""
    kept: list[tuple[int, int, int]] = []
    for start, end, number in sorted(actions):
        start = max(start, kept[-1][1] if kept else 0)
        if start < end:
            kept.append((start, end, number))
    return tuple(kept)
