"""A small protocol for the trained baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.proposals import sliding_windows

MakeProtocol = Callable[..., Protocol]


class Planted:
    """Noise with actions, one direction a class, planted into each video."""

    dim = 12

    def __init__(self, items: Sequence[Item]) -> None:
        draw = torch.Generator().manual_seed(0)
        actions = {
            label: 2 * torch.randn(self.dim, generator=draw)
            for label in sorted({item.label for item in items})
        }
        self.videos: dict[str, torch.Tensor] = {}
        for item in items:
            if item.video_id not in self.videos:
                self.videos[item.video_id] = torch.randn(80, self.dim, generator=draw)
            self.videos[item.video_id][slice(*item.moment)] += actions[item.label]

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> torch.Tensor:
        return self.videos[video_id][start:end]


def make_protocol(
    spans: Sequence[tuple[int, int]] = ((5, 15), (20, 28), (12, 24), (3, 9), (25, 40), (0, 10)),
    length: int = 40,
    offset: int = 0,
) -> Protocol:
    """Videos ``v0``, ``v1``, ... of alternating classes ``a`` and ``b``, one action each."""
    items = []
    for i, (start, end) in enumerate(spans):
        span = (start + offset, end + offset)
        context = (offset, offset + length)
        items.append(Item(f"v{i}#0", f"v{i}", "ab"[i % 2], context, span, (span,)))
    return Protocol(
        "planted",
        {"train": tuple(items), "val": ()},
        Planted(items),
        lambda item, _: sliding_windows(item.num_steps, [8, 12]),
    )


@pytest.fixture
def planted() -> MakeProtocol:
    return make_protocol
