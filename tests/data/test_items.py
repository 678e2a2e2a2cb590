"""Items and the protocol: ranges counted from the right origin."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from relocal_pyg.data.items import Item, Pair, Protocol
from relocal_pyg.data.proposals import sliding_windows


class Ramp:
    """Features whose one channel is the step's number in the whole video."""

    dim = 1

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> torch.Tensor:
        return torch.arange(start, 100 if end is None else end).float()[:, None]


def item(**changes: object) -> Item:
    base = Item("v#0", "v", "jump", (10, 50), (20, 26), ((20, 26), (40, 44)))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def protocol() -> Protocol:
    splits = {"train": (item(),), "val": (), "seen": (item(),), "test": (item(label="run"),)}
    return Protocol(
        "tiny",
        splits,
        Ramp(),
        lambda reference, steps: sliding_windows(reference.num_steps, [steps]),
    )


def test_lengths_and_truths_count_from_the_context() -> None:
    assert item().num_steps == 40
    assert item().query_steps == 6
    assert item().truths == [(10, 16), (30, 34)]


def test_truths_point_at_the_same_features_as_the_moment(protocol: Protocol) -> None:
    start, end = item().truths[0]
    cut = protocol.reference(item())[start:end]
    assert torch.equal(cut, protocol.query(item()))
    assert cut[0].item() == 20


def test_items_are_values_that_sort_and_hash() -> None:
    later = item(item_id="v#1")
    assert sorted([later, item()]) == [item(), later]
    assert {Pair(item(), later), Pair(item(), later)} == {Pair(item(), later)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        item().label = "run"  # type: ignore[misc]


def test_items_without_a_subject_sort_beside_those_with_one_by_identity() -> None:
    named = item(item_id="v#1", subject="ann")
    assert sorted([named, item()])[0] == item()


def test_query_and_reference_read_their_own_ranges(protocol: Protocol) -> None:
    assert protocol.query(item()).flatten().tolist() == list(map(float, range(20, 26)))
    assert len(protocol.reference(item())) == 40


def test_proposals_get_the_query_length_or_zero(protocol: Protocol) -> None:
    asked = []
    protocol.propose = lambda reference, steps: asked.append(steps) or torch.zeros(1, 2)
    protocol.proposals(item(), item())
    protocol.proposals(item())
    assert asked == [6, 0]


def test_test_splits_are_all_but_train_and_val(protocol: Protocol) -> None:
    assert protocol.test_splits() == ["seen", "test"]
    assert protocol.exclude == "video"
