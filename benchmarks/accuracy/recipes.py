"""What is trained: the presets, the paper's baselines, and ideas that were tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from relocal_pyg.models import (
    Chance,
    ContrastMatcher,
    CosineMatcher,
    DiagonalMatcher,
    FinerWindows,
    FrameLevel,
    MultiGraphMatcher,
    Relocalizer,
)
from relocal_pyg.training import RECOMMENDED, Preset
from relocal_pyg.training.presets import PRESETS
from relocal_pyg.training.recipe import System, build_network, table_one

#: Budget of the paper's recipe and of the baselines: that of the recommended preset.
STEPS, VALIDATION_PAIRS = 300, 100

#: The weights that come with the package, trained on: what ``relocal train`` does.
TUNED = "Pretrained matcher, tuned"


def _idea(training: dict[str, Any] | None = None, **network: Any) -> Preset:
    return replace(
        RECOMMENDED,
        network=replace(RECOMMENDED.network, **network),
        training=replace(RECOMMENDED.training, **(training or {})),
    )


#: What needs no labels but its own row, beside the contrast matcher that every row has.
FREE: dict[str, Callable[[], Relocalizer]] = {
    "Pretrained matcher": MultiGraphMatcher.pretrained,
    "Frame-level DP": FrameLevel,
    "Chance": Chance,
    "Cosine of means": CosineMatcher,
    "Mean along the diagonal": DiagonalMatcher,
    "Contrast matcher, finer windows": lambda: FinerWindows(ContrastMatcher()),
    "Mean along the diagonal, finer windows": lambda: FinerWindows(DiagonalMatcher()),
    "Cosine of means, finer windows": lambda: FinerWindows(CosineMatcher()),
}

#: One change of the recommended preset each.
IDEAS: dict[str, Callable[[], Preset]] = {
    "softer target": lambda: _idea(target_temperature=0.1),
    "no context": lambda: _idea(context=0.0),
    "sums, not means": lambda: _idea(normalization="none"),
    "sym normalisation": lambda: _idea(normalization="sym"),
    "1x1 convolutions": lambda: _idea(graph_conv=False),
    "twice as wide": lambda: _idea(hidden_channels=128),
    "longer lists": lambda: _idea(list_length=96),
    "lists of one video": lambda: _idea(far_proposals=0),
    "lists of one video, wide context": lambda: _idea(far_proposals=0, context=0.5),
    "wide context": lambda: _idea(context=0.5),
    "batches of 8": lambda: _idea(training={"batch_size": 8}),
    "three times the steps": lambda: _idea(training={"steps": 900, "validate_every": 100}),
    "lower learning rate": lambda: _idea(training={"learning_rate": 3e-4}),
}


def systems() -> dict[str, System]:
    """Every recipe by name; MATR keeps its own budget, which is the larger one."""
    found = {
        system.title: system
        if "MATR" in system.title
        else replace(
            system,
            training=replace(
                system.training,
                steps=min(STEPS, system.training.steps),
                max_validation_pairs=min(VALIDATION_PAIRS, system.training.max_validation_pairs),
            ),
        )
        for system in table_one(RECOMMENDED)
    }
    found["recommended"] = replace(found.pop("Ours"), title="recommended")
    found["paper"] = replace(found.pop("Ours, the paper's recipe"), title="paper")
    found[TUNED] = System(
        TUNED,
        lambda width: build_network(RECOMMENDED.network, width),
        found["recommended"].training,
    )
    for name, make in IDEAS.items():
        preset = make()
        found[name] = System(name, table_one(preset)[0].build, preset.training)
    return found


def short(system: System, steps: int, pairs: int) -> System:
    """A system with a smaller budget: validated on fewer pairs, at the start and the end.

    Batches of others are cut to 16, and MATR's references to 128 steps: its article reads a frame
    every two seconds. Its warm-up stays a twentieth of training, ours at most a fifth.
    """
    training = system.training
    warmup = steps // 20 if "MATR" in system.title else min(training.warmup, steps // 5)
    training = replace(
        training,
        steps=min(steps, training.steps),
        batch_size=min(training.batch_size, 16),
        warmup=warmup,
        validate_every=steps,
        max_validation_pairs=min(pairs // 2, training.max_validation_pairs),
    )
    start = system.start and short(system.start, steps, pairs)
    if "MATR" not in system.title:
        return replace(system, training=training, start=start)
    changes = ["max_steps=128"]
    if "only" in system.title:
        changes.append("self_supervised=true")
    network = PRESETS["matr"].changed(changes).network
    return System(system.title, lambda width: build_network(network, width), training, start)
