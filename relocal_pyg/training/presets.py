"""Presets: the paper's recipe to the letter, the one recommended, those of other systems.

No torch is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from textwrap import wrap
from typing import Any, Literal

from relocal_pyg.errors import UsageError, check_number, check_switch
from relocal_pyg.models.network_config import BaselineConfig, MatcherConfig, NetworkConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found; a setting out of range is a :class:`UsageError`."""

    batch_size: int = 32
    """Triplets (or lists) in a step."""
    steps: int = 10_000
    """Optimiser steps at most."""
    learning_rate: float = 1e-4
    """Adam's, for everything but the regression head."""
    offset_learning_rate: float = 0.1
    """Adam's, for the regression head."""
    weight_decay: float = 0.01
    """2 lambda of the paper's ``lambda ||theta||^2``, as Adam's coupled L2 term."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    decay: bool = False
    """Let the learning rate fall to 0 along a cosine."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 clips nothing."""
    validate_every: int = 250
    """Steps between validations."""
    patience: int = 8
    """Validations without a better mAP before training stops."""
    max_validation_pairs: int = 300
    """Validation pairs used at most, drawn at random from the hashed list."""
    precision: Literal["32", "bf16-mixed", "auto"] = "32"
    """Arithmetic of forward and backward."""
    num_workers: int = 0
    """Processes that prepare samples."""

    def __post_init__(self) -> None:
        if self.precision not in ("32", "bf16-mixed", "auto"):
            raise UsageError(f"precision {self.precision!r}: 32, bf16-mixed or auto wanted")
        check_switch(self.decay, "decay")
        for name, usual in vars(TrainingConfig).items():
            if type(usual) in (int, float) and name in vars(self):
                least = type(usual) is int and name not in ("warmup", "patience", "num_workers")
                check_number(getattr(self, name), name, least=least, whole=type(usual) is int)

    def with_steps(self, steps: int | None) -> TrainingConfig:
        """These settings with another number of steps, validated at their end at the latest.

        Example:
            >>> TrainingConfig(steps=300, validate_every=50).with_steps(20).validate_every
            20
        """
        if steps is None:
            return self
        return replace(self, steps=steps, validate_every=max(1, min(self.validate_every, steps)))


@dataclass(frozen=True)
class Preset:
    """A named pair of network and training settings; printed and saved with every run."""

    name: str
    network: NetworkConfig | MatcherConfig | BaselineConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def changed(self, changes: Iterable[str]) -> Preset:
        """This preset with other settings.

        Args:
            changes: ``NAME=VALUE``, of the network's settings or of training's; values as JSON or
                plain words.

        Raises:
            UsageError: No ``=``, no such setting, or a value of another kind.

        Example:
            >>> PAPER.changed(["num_layers=3", "weight=laplacian"]).network.weight
            'laplacian'
        """
        network: Any = self.network
        free = network.settings if isinstance(network, BaselineConfig) else None
        training = self.training
        for change in changes:
            name, sign, word = change.partition("=")
            if not sign:
                raise UsageError(f"{change!r} is no setting: NAME=VALUE wanted")
            value = _value(word)
            if name in {each.name for each in fields(training)}:
                training = replace(training, **{name: _like(getattr(training, name), value, name)})
            elif free is not None:  # the constructor says what it does not take
                network = replace(network, settings={**network.settings, name: value})
            elif name in {each.name for each in fields(network)}:
                network = replace(network, **{name: _like(getattr(network, name), value, name)})
            else:
                known = ", ".join(
                    each.name for part in (network, training) for each in fields(part)
                )
                raise UsageError(f"no setting {name!r}: {known}")
        return replace(self, network=network, training=training)

    def __str__(self) -> str:
        """Every setting, for the terminal."""
        lines = [f"preset {self.name}"]
        for title, part in (("network", asdict(self.network)), ("training", asdict(self.training))):
            text = f"{title}: " + ", ".join(f"{name} {value}" for name, value in part.items())
            lines += wrap(text, 100, initial_indent="  ", subsequent_indent="    ")
        return "\n".join(lines)


#: Section 5.2.2 to the letter, its gaps filled as the documentation page on the paper says.
PAPER = Preset("paper")

#: What to use: learns where a moment ends, starts at the training-free matcher.
RECOMMENDED = Preset(
    "recommended",
    MatcherConfig(contrast=3.5),
    TrainingConfig(
        batch_size=4,
        steps=300,
        learning_rate=1e-3,
        offset_learning_rate=1e-3,
        weight_decay=1e-4,
        warmup=20,
        decay=True,
        clip_norm=1.0,
        validate_every=50,
        patience=5,
        max_validation_pairs=100,
    ),
)

#: Adam at 1e-3 with gradients clipped at 5, which the public code of the baselines uses.
BASELINE = TrainingConfig(
    batch_size=16,
    steps=600,
    learning_rate=1e-3,
    offset_learning_rate=1e-3,
    weight_decay=0.0,
    clip_norm=5.0,
    validate_every=100,
    patience=5,
    max_validation_pairs=100,
)

PRESETS = {
    preset.name: preset
    for preset in (
        PAPER,
        RECOMMENDED,
        Preset("cross-gated", BaselineConfig("CrossGated"), BASELINE),
        Preset("aft-srm", BaselineConfig("AFTSRM"), BASELINE),
        Preset("sst", BaselineConfig("SST"), BASELINE),
        Preset("video-level", BaselineConfig("VideoLevel"), BASELINE),
        # The article's warm-up and clipping; its decoupled decay of 1e-8 a step is none.
        Preset(
            "matr",
            BaselineConfig("MATR"),
            replace(BASELINE, batch_size=32, steps=1000, warmup=50, decay=True, clip_norm=0.1),
        ),
    )
}


def _value(word: str) -> Any:
    try:
        found = json.loads(word)
    except ValueError:
        return {"True": True, "False": False}.get(word, word)
    return tuple(found) if isinstance(found, list) else found


def _like(now: Any, value: Any, name: str) -> Any:
    """A value of the kind that a setting has now."""
    if isinstance(now, float) and type(value) is int:
        value = float(value)
    if isinstance(now, tuple) and not isinstance(value, tuple):
        value = (value,)
    if type(value) is not type(now):
        raise UsageError(f"{name}={value!r}: a value like {now!r} wanted")
    return value
