"""A small protocol of known content, and models whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relocal_pyg.data.items import Item, Pair, Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.models.base import Ranking, Relocalizer


class MemoryFeatures:
    """Features of every video: channel 0 is the step's number, channel 1 is constant."""

    dim = 2

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        steps = torch.arange(start, 1000 if end is None else end, dtype=torch.float32)
        return torch.stack([steps, torch.ones_like(steps)], dim=1)


class Scripted(Relocalizer):
    """Gives the answers it was told, one ranking a call, and notes what it was shown."""

    title = "Scripted"

    def __init__(self, rankings: list[Ranking]) -> None:
        self.rankings = list(rankings)
        self.calls: list[dict[str, object]] = []

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
        seconds_per_step: float | None = None,
    ) -> Ranking:
        self.calls.append(
            {"query": query, "reference": reference, "proposals": proposals, "around": query_video}
        )
        return self.rankings[(len(self.calls) - 1) % len(self.rankings)]


class Longest(Relocalizer):
    """Ranks proposals by length, the longest first, and cuts a quarter off either end."""

    title = "Longest"

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
        seconds_per_step: float | None = None,
    ) -> Ranking:
        length = proposals[:, 1] - proposals[:, 0]
        cut = length[:, None] / 4 * torch.tensor([1.0, -1.0])
        return Ranking.sort(proposals + cut, length, proposals)


def make_item(
    number: int, label: str, moment: tuple[int, int], *, more: tuple[tuple[int, int], ...] = ()
) -> Item:
    """An item whose reference covers steps 10 to 50 of its video, half a second each."""
    return Item(
        item_id=f"v{number}#0",
        video_id=f"v{number}",
        label=label,
        context=(10, 50),
        moment=moment,
        moments=(moment, *more),
        seconds_per_step=0.5,
    )


def windows(reference: Item, query_steps: int) -> Tensor:
    """Every window of 10 steps at a stride of 5."""
    starts = torch.arange(0, reference.num_steps - 9, 5)
    return torch.stack([starts, starts + 10], dim=1).float()


@pytest.fixture(scope="session")
def small_protocol() -> Protocol:
    items = (
        make_item(0, "run", (10, 20)),
        make_item(1, "run", (20, 30), more=((40, 44),)),
        make_item(2, "jump", (15, 45)),
        make_item(3, "jump", (10, 50)),
    )
    return Protocol("small", {"test": items}, MemoryFeatures(), windows, about={"made": "here"})


@pytest.fixture(scope="session")
def small_pairs(small_protocol: Protocol) -> PairList:
    run_a, run_b, jump_a, jump_b = small_protocol.splits["test"]
    pairs = (Pair(run_a, run_b), Pair(run_b, run_a), Pair(jump_a, jump_b), Pair(jump_b, jump_a))
    return PairList(pairs, "small", "test", 6, "video")


@pytest.fixture(scope="session")
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(scope="session")
def longest() -> Longest:
    return Longest()
