from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.proposals import sliding_windows
from relocal_pyg.errors import AnnotationError
from relocal_pyg.models.baselines.video_level import (
    SegmentTriplets,
    VideoLevel,
    distant_windows,
    similar_windows,
)
from relocal_pyg.moments import tiou

MakeProtocol = Callable[..., Protocol]


@pytest.mark.slow
def test_similar_windows_equal_brute_force() -> None:
    for truth, n in (((4, 10), 20), ((0, 7), 7), ((3, 4), 9), ((10, 33), 36), ((2, 30), 40)):
        every = [(a, b) for a in range(n) for b in range(a + 1, n + 1)]
        expected = [w for w in every if tiou(torch.tensor(w), torch.tensor(truth)) > 0.8]
        found = similar_windows(truth, n)
        assert [tuple(row) for row in found.tolist()] == expected
        assert truth in expected


def test_distant_windows_equal_brute_force() -> None:
    truths = [(4, 10), (20, 31)]
    for length in (1, 3, 7, 12):
        expected = [
            (a, a + length)
            for a in range(40 - length + 1)
            if all(tiou(torch.tensor([a, a + length]), torch.tensor(t)) < 0.2 for t in truths)
        ]
        found = distant_windows(length, truths, 40)
        assert [tuple(row) for row in found.tolist()] == expected
    assert len(distant_windows(9, [(0, 10)], 10)) == 0
    assert len(distant_windows(11, [(0, 1)], 10)) == 0


def test_samples_obey_the_rule_and_depend_on_seed_and_number_alone(planted: MakeProtocol) -> None:
    data = SegmentTriplets(planted(), num_samples=50, seed=1)
    videos = planted().features
    for number in (3, 17, 44):
        again = SegmentTriplets(planted(), num_samples=60, seed=1)[number]
        assert torch.equal(again.positive, data[number].positive)
        assert torch.equal(again.negative, data[number].negative)
    assert not all(
        torch.equal(a.query, b.query)
        for a, b in zip(data, SegmentTriplets(planted(), num_samples=50, seed=2), strict=True)
    )
    spans = {item.video_id: item.moment for item in planted().splits["train"]}

    def locate(rows: torch.Tensor) -> tuple[str, tuple[int, int]]:
        for video_id in spans:
            video = videos.read(video_id)
            hit = (video == rows[0]).all(dim=1).nonzero()
            if len(hit):
                return video_id, (int(hit[0]), int(hit[0]) + len(rows))
        raise AssertionError

    for sample in data:
        home, _ = locate(sample.query)
        video, near = locate(sample.positive)
        other, far = locate(sample.negative)
        assert video == other != home
        truth = torch.tensor(spans[video])
        assert tiou(torch.tensor(near), truth) > 0.8
        assert tiou(torch.tensor(far), truth) < 0.2
    with pytest.raises(IndexError):
        data[50]


def test_trimmed_references_are_refused(planted: MakeProtocol) -> None:
    trimmed = planted([(0, 6), (0, 6), (0, 6), (0, 6)], length=6)
    with pytest.raises(AnnotationError, match="trimmed"):
        SegmentTriplets(trimmed, num_samples=1, seed=0)[0]


def test_windows_equal_clips_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VideoLevel(12).eval()
    reference = torch.randn(30, 12)
    windows = sliding_windows(30, [1, 4, 9, 30], 0.5).long()
    singly = torch.cat([model.embed([reference[a:b]]) for a, b in windows.tolist()])
    together = model.embed([reference[a:b] for a, b in windows.tolist()])
    torch.testing.assert_close(together, singly)
    torch.testing.assert_close(model.embed_windows(reference, windows), singly)
    monkeypatch.setattr("relocal_pyg.models.baselines.video_level.CHUNK_VALUES", 1000)
    torch.testing.assert_close(model.embed_windows(reference, windows), singly)


def test_loss_equals_the_formula(planted: MakeProtocol) -> None:
    model = VideoLevel(12, 6, margin=0.7)
    data = SegmentTriplets(planted(), num_samples=4, seed=0)
    losses = model.training_losses(Batch.from_data_list(list(data)))
    hinges = []
    for sample in data:
        q, p, n = (model.embed([sample[name]])[0] for name in ("query", "positive", "negative"))
        hinges.append(((q - p) ** 2).sum() - ((q - n) ** 2).sum() + 0.7)
    torch.testing.assert_close(losses["loss"], torch.stack(hinges).clamp(min=0).mean())


@pytest.mark.slow
def test_learns_planted_actions(planted: MakeProtocol) -> None:
    model = VideoLevel(12, 16)
    given = planted()
    loader = DataLoader(model.training_set(given, num_samples=320, seed=0), batch_size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for batch in loader:
        loss = model.training_losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    query, reference = given.splits["train"][0], given.splits["train"][2]
    ranking = model.eval().rank(
        given.query(query), given.reference(reference), given.proposals(reference)
    )
    assert tiou(ranking.moments[0], torch.tensor(reference.moment)) > 0.3
    assert torch.equal(torch.unique(ranking.moments, dim=0), given.proposals(reference))
    assert (ranking.scores <= 0).all()


def test_config_rebuilds_the_model() -> None:
    model = VideoLevel(12, 6, margin=0.3)
    twin = VideoLevel(**model.config())
    twin.load_state_dict(model.state_dict())
    assert twin.config() == model.config()
