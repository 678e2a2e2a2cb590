"""Presets: the paper's recipe to the letter, and the one recommended. No torch is imported here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from textwrap import wrap
from typing import Literal

from relocal_pyg.models.network_config import MatcherConfig, NetworkConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found."""

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
    network: NetworkConfig | MatcherConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

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
    MatcherConfig(),
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

PRESETS = {preset.name: preset for preset in (PAPER, RECOMMENDED)}
