"""A small protocol whose action steps point in a direction of their own, whatever the class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.proposals import sliding_windows

WIDTH = 12


class PlantedFeatures:
    """Noise, plus a step along one axis inside every action; reading is recorded."""

    dim = WIDTH

    def __init__(self, items: tuple[Item, ...], length: int = 60) -> None:
        self.asked: list[tuple[str, int, int | None]] = []
        self.videos: dict[str, Tensor] = {}
        for item in items:
            generator = torch.Generator().manual_seed(hash_of(item.video_id))
            features = torch.randn(length, WIDTH, generator=generator)
            for start, end in item.moments:
                features[start:end, 3] += 6
            self.videos[item.video_id] = features

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        self.asked.append((video_id, start, end))
        return self.videos[video_id][start:end]


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()) % (2**31)


@pytest.fixture
def planted() -> Protocol:
    """Twelve training videos, six of another class for testing; contexts start at step 5."""
    splits = {"train": [], "val": [], "test": []}
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            start = 10 + 3 * number % 30
            moment = (start, start + 6 + number % 8)
            video = f"{split}{number}"
            splits[split].append(Item(f"{video}#0", video, split, (5, 55), moment, (moment,)))
    fixed = {name: tuple(items) for name, items in splits.items()}
    features = PlantedFeatures(fixed["train"] + fixed["test"])
    return Protocol(
        "planted", fixed, features, lambda ref, steps: sliding_windows(ref.num_steps, [8])
    )
