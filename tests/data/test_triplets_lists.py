from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.proposals import sliding_windows
from relocal_pyg.data.samples import (
    ListDataset,
    PartnerSampler,
    TripletDataset,
    best_truths,
    choose_proposals,
)
from relocal_pyg.errors import AnnotationError, UsageError
from relocal_pyg.moments import decode_offsets, tiou


class CodedFeatures:
    """Step t of video v is the row (v, t): a cut says where it came from."""

    dim = 2

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> torch.Tensor:
        steps = torch.arange(60.0)[start:end]
        return torch.stack([torch.full_like(steps, float(video_id)), steps], dim=1)


def item(video: int, label: str, start: int, end: int, number: int = 0) -> Item:
    return Item(f"{video}#{number}", str(video), label, (5, 55), (start, end), ((start, end),))


ITEMS = (
    item(1, "a", 10, 20),
    item(1, "b", 30, 38, 1),
    item(2, "a", 12, 30),
    item(3, "a", 40, 50),
    item(4, "b", 20, 26),
    item(5, "c", 8, 16),
)


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(
        "coded",
        {"train": ITEMS, "val": ()},
        CodedFeatures(),
        lambda reference, _: sliding_windows(reference.num_steps, [5, 8, 10, 18]),
    )


def label_of(video: float) -> set[str]:
    return {i.label for i in ITEMS if i.video_id == str(int(video))}


@pytest.mark.slow
def test_triplets_are_what_the_paper_says(protocol):
    by_id = {i.item_id: i for i in ITEMS}
    for positive, negative in TripletDataset(protocol, num_samples=60, seed=3, num_steps=40):
        query_video = positive.x[0, 0].item()
        clip = positive.x[:40][positive.step_mask[:40]]
        query = next(
            i
            for i in by_id.values()
            if i.video_id == str(int(query_video)) and i.moment[0] == clip[0, 1]
        )
        near, far = positive.x[40], negative.x[40]
        assert near[0] != query_video
        assert query.label in label_of(near[0])
        # Video 1 holds both classes; a negative of a query never comes from a video of its class.
        assert query.label not in label_of(far[0])
        # The positive's window is the proposal of largest tIoU with its own truth.
        reference = next(
            i for i in ITEMS if i.video_id == str(int(near[0])) and i.label == query.label
        )
        windows = protocol.proposals(reference)
        overlap = tiou(windows, torch.tensor(reference.truths[0]).float())
        best = windows[overlap.argmax()] + reference.context[0]
        mask = positive.step_mask[40:]
        assert positive.x[40:][mask][[0, -1], 1].tolist() == [best[0], best[1] - 1]
        truth = decode_offsets(best - reference.context[0], positive.offsets[0])
        torch.testing.assert_close(truth, torch.tensor(reference.truths[0]).float())


def test_samples_depend_on_seed_and_number_alone(protocol):
    one = TripletDataset(protocol, num_samples=9, seed=1)
    forwards = [one[i][1].x for i in range(9)]
    backwards = [one[i][1].x for i in reversed(range(9))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    other = TripletDataset(protocol, num_samples=9, seed=2)
    assert any(not torch.equal(a, other[i][1].x) for i, a in enumerate(forwards))


def test_in_video_negatives_overlap_no_truth(protocol):
    data = TripletDataset(protocol, num_samples=40, seed=0, negatives="video", num_steps=40)
    for positive, negative in data:
        assert positive.x[40, 0] == negative.x[40, 0]
        steps = negative.x[40:][negative.step_mask[40:], 1]
        window = torch.stack([steps[0], steps[-1] + 1])
        video = str(int(negative.x[40, 0]))
        label = label_of(positive.x[0, 0]) & label_of(positive.x[40, 0])
        truths = [i.moment for i in ITEMS if i.video_id == video and i.label in label]
        assert min(tiou(window, torch.tensor(t).float()).item() for t in truths) < 0.2


def test_loader_gives_two_batches(protocol):
    loader = DataLoader(TripletDataset(protocol, num_samples=6, seed=0), batch_size=3)
    positive, negative = next(iter(loader))
    assert positive.num_graphs == negative.num_graphs == 3
    assert positive.offsets.shape == (3, 2)


def test_lists_are_graded_proposals_of_one_reference(protocol):
    for sample in ListDataset(protocol, num_samples=20, seed=0, list_length=12):
        assert sample.proposals.shape == (12, 2)
        query_video, reference_video = sample.query[0, 0], sample.reference[0, 0]
        assert query_video != reference_video
        truth = decode_offsets(sample.proposals, sample.offsets)
        torch.testing.assert_close(
            tiou(sample.proposals, truth), sample.overlap, atol=1e-4, rtol=1e-4
        )
        assert sample.overlap.max() > 0.5


def test_lists_reach_into_another_video_and_are_graded_there_too(protocol):
    seen = set()
    for sample in ListDataset(protocol, num_samples=60, seed=0, list_length=12, far_proposals=9):
        assert sample.far_proposals.shape == (9, 2)
        video = sample.far_reference[0, 0]
        assert video != sample.query[0, 0]
        actions = [m for i in ITEMS if i.video_id == str(int(video)) for m in i.moments]
        shifted = torch.tensor(actions).float() - 5  # the context begins at step 5
        near = tiou(sample.far_proposals[:, None], shifted[None]).amax(1)
        assert near.max() > 0.5  # what is hard to tell apart is there
        labels = {i.label for i in ITEMS if i.video_id == str(int(sample.query[0, 0]))}
        truths = [
            (start - 5, end - 5)  # what the far video shows of the query's class
            for i in ITEMS
            for start, end in i.moments
            if i.video_id == str(int(video)) and {i.label} == labels
        ]
        if len(labels) == 1:
            wanted = torch.zeros(9)
            if truths:
                wanted = tiou(sample.far_proposals[:, None], torch.tensor(truths).float()).amax(1)
            torch.testing.assert_close(sample.far_overlap, wanted)
            seen.add(bool(truths))
    assert seen == {True, False}


def test_a_list_without_far_proposals_is_the_one_it_was(protocol):
    near = ListDataset(protocol, num_samples=4, seed=0, list_length=12)
    far = ListDataset(protocol, num_samples=4, seed=0, list_length=12, far_proposals=9)
    for one, other in zip(near, far, strict=True):
        assert "far_reference" not in one
        assert torch.equal(one.proposals, other.proposals)


def test_bare_clips_come_without_surroundings(protocol):
    bare = ListDataset(protocol, num_samples=30, seed=0, surroundings=0.0)
    assert all(len(sample.query_video) == 0 for sample in bare)
    mixed = [
        len(s.query_video) for s in ListDataset(protocol, num_samples=60, seed=0, surroundings=0.5)
    ]
    assert 0 < sum(length == 0 for length in mixed) < 60


def test_choose_proposals_keeps_the_best_and_both_kinds():
    overlap = torch.linspace(0, 0.9, 100)
    for seed in range(10):
        kept = choose_proposals(overlap, 10, np.random.default_rng(seed))
        assert len(set(kept.tolist())) == 10
        assert 99 in kept
        assert (overlap[kept] > 0.3).sum() == 6
    assert choose_proposals(overlap, 200, np.random.default_rng(0)).tolist() == list(range(100))


def test_a_split_without_partners_is_refused():
    with pytest.raises(AnnotationError, match="two videos"):
        PartnerSampler([item(1, "a", 10, 20), item(2, "b", 10, 20)])
    sampler = PartnerSampler([item(1, "a", 10, 20), item(2, "a", 10, 20)])
    with pytest.raises(AnnotationError, match="one class"):
        sampler.negative(ITEMS[0], np.random.default_rng(0))


def test_best_truth():
    overlap, truths = best_truths(torch.tensor([[0.0, 4.0], [8.0, 10.0]]), [(0, 2), (8, 10)])
    assert overlap.tolist() == [0.5, 1.0]
    assert truths.tolist() == [[0.0, 2.0], [8.0, 10.0]]


def test_numbers_outside_are_refused(protocol):
    for data in (
        TripletDataset(protocol, num_samples=2, seed=0),
        ListDataset(protocol, num_samples=2, seed=0),
    ):
        assert len(data) == 2
        with pytest.raises(IndexError):
            data[2]
        with pytest.raises(IndexError):
            data[-3]


def test_numbers_below_zero_count_from_the_end(protocol):
    data = TripletDataset(protocol, num_samples=3, seed=0, num_steps=6)
    for number in (-1, -3, np.int64(-1)):
        for ours, theirs in zip(data[number], data[3 + number], strict=True):
            assert torch.equal(ours.x, theirs.x)


def test_what_is_no_setting_is_refused(protocol):
    wanted = {"num_samples": 2, "seed": 0}
    settings = [{"negatives": "hard"}, {"num_samples": -1}, {"num_samples": 2.5}, {"seed": 0.5}]
    for wrong in (*settings, {"num_steps": 0}, {"num_steps": 2.5}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            TripletDataset(protocol, **{**wanted, **wrong})
    with pytest.raises(UsageError, match="k is 0"):
        TripletDataset(protocol, **wanted, ks=(1, 0))
    settings = [{"list_length": -1}, {"list_length": 0}, {"far_proposals": -1}]
    settings += [{"target_temperature": 0}, {"surroundings": 2}, {"surroundings": np.nan}]
    for wrong in settings:
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ListDataset(protocol, **{**wanted, **wrong})
