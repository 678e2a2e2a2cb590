"""Learning rate by step, and arithmetic by processor."""

from __future__ import annotations

import math

import torch

from relocal_pyg.training.presets import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of the full learning rate at a step: linear warm-up, then constant or a cosine to 0.

    Example:
        >>> learning_rate_factor(0, TrainingConfig(warmup=4, steps=8)), \
learning_rate_factor(6, TrainingConfig(steps=12, decay=True))
        (0.25, 0.5)
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if not config.decay:
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def choose_precision(name: str, accelerator: str) -> tuple[str, str]:
    """The arithmetic of forward and backward, and why.

    bfloat16 pays where the processor multiplies it itself; elsewhere it is emulated and slower.

    Args:
        name: ``"32"``, ``"bf16-mixed"``, or ``"auto"`` to look at the processor.
        accelerator: Lightning Fabric's name of the device kind.

    Returns:
        ``"32"`` or ``"bf16-mixed"``, and the reason in words.

    Example:
        >>> choose_precision("32", "cpu")
        ('32', 'asked for')
    """
    if name != "auto":
        return name, "asked for"
    if accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available()):
        short = torch.cuda.is_bf16_supported(including_emulation=False)
        device = torch.cuda.get_device_name()
    else:
        able = torch.cpu.get_capabilities()
        short = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
        device = str(able.get("cpu_name", "this processor"))
    if short:
        return "bf16-mixed", f"{device} multiplies bfloat16 itself"
    return "32", f"{device} does not multiply bfloat16 itself"
