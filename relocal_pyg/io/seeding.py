"""The one place randomness comes from: every stream is named by a seed and a path of keys."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from relocal_pyg.errors import check_number


def check_seed(seed: int) -> int:
    """A seed as Python's own whole number, or a UsageError: 1.0 would name another stream than 1.

    Example:
        >>> derive_seed(1.0)
        Traceback (most recent call last):
        relocal_pyg.errors.UsageError: seed is 1.0, a whole number wanted
    """
    return int(check_number(seed, "seed", most=2**64, whole=True))


def derive_seed(seed: int, *keys: object) -> int:
    """A 63-bit seed for the stream named by ``keys``, the same on every machine."""
    text = "/".join(str(key) for key in (check_seed(seed), *keys))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1


def generator(seed: int, *keys: object) -> np.random.Generator:
    """A numpy generator for the stream named by ``keys``."""
    return np.random.default_rng(derive_seed(seed, *keys))


def seed_torch(seed: int, *keys: object) -> None:
    """Seed torch's global generator (weights, dropout) for the stream named by ``keys``.

    Called before every training step, so that a resumed run draws the same dropout masks as one
    that was never interrupted.
    """
    torch.manual_seed(derive_seed(seed, *keys))
