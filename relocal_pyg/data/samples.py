"""Training samples that depend on a seed and their number alone: training resumes exactly."""

from __future__ import annotations

import abc
from typing import ClassVar, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

from relocal_pyg.datasets.protocol import Protocol
from relocal_pyg.seeding import generator

_Sample = TypeVar("_Sample")


class SeededSamples(Dataset[_Sample], Generic[_Sample]):
    """Base of every training set: sample ``i`` is drawn from the stream ``(seed, stream, i)``.

    Args:
        protocol: Where items, features and proposals come from; its ``"train"`` split is used.
        num_samples: Length of the data set.
        seed: Names the stream of samples.

    Attributes:
        stream: Name of the stream; each kind of sample has its own.
    """

    stream: ClassVar[str]

    def __init__(self, protocol: Protocol, *, num_samples: int, seed: int) -> None:
        self.protocol, self.num_samples, self.seed = protocol, num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, number: int) -> _Sample:
        if not 0 <= number < self.num_samples:
            raise IndexError(number)
        return self.draw(generator(self.seed, self.stream, number))

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> _Sample:
        """Draw one sample; ``rng`` is the only source of randomness."""
