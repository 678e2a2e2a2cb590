from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.models.baselines.sst import SST, AnchorSamples, block_means
from relocal_pyg.moments import tiou

MakeProtocol = Callable[..., Protocol]


def test_labels_equal_the_loop(planted: MakeProtocol) -> None:
    given = planted(offset=7)
    samples = AnchorSamples(given, num_samples=20, seed=0, num_anchors=6, stride=2)
    spans = {item.video_id: item.moment for item in given.splits["train"]}
    videos = {video: block_means(given.features.read(video, 7, 47), 2) for video in spans}
    positives = 0
    for sample in samples:
        (video,) = [name for name, rows in videos.items() if torch.equal(rows, sample.reference)]
        start, end = (float(side - 7) for side in spans[video])
        expected = torch.zeros(20, 6)
        for t in range(20):
            for j in range(6):
                a, b = 2 * (t - j), 2 * (t + 1)
                shared = min(b, end) - max(a, start)
                expected[t, j] = max(shared, 0) / (max(b, end) - min(a, start)) > 0.5
        assert torch.equal(sample.labels, expected)
        positives += int(expected.sum())
    assert positives > 20


def test_samples_show_the_moment_and_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relocal_pyg.models.baselines.sst.TRAINING_BLOCKS", 10)
    items = (
        Item("v#0", "v", "a", (0, 40), (12, 18), ((12, 18),)),
        Item("v#1", "v", "b", (0, 40), (19, 21), ((19, 21),)),
    )

    class Counting:
        dim = 1

        def read(self, video_id: str, start: int = 0, end: int | None = None) -> torch.Tensor:
            return torch.arange(40.0)[start:end, None]

    given = Protocol("p", {"train": items, "val": ()}, Counting(), lambda *_: torch.ones(1, 2))
    samples = AnchorSamples(given, num_samples=60, seed=0, num_anchors=6, stride=1)
    seen = set()
    for sample in samples:
        start = int(sample.reference[0])
        seen.add(start)
        assert len(sample.reference) == 10
        found = {
            (start + t - j, start + t + 1)
            for t, j in sample.labels.nonzero().tolist()
            if start + t < 40
        }
        if start <= 12 and start + 10 >= 21:
            assert {(12, 18), (19, 21)} <= found
    # Windows of 10 that hold [12, 18) or [19, 21).
    assert seen <= set(range(8, 20))
    assert len(seen) > 8
    again = AnchorSamples(given, num_samples=70, seed=0, num_anchors=6, stride=1)
    assert torch.equal(again[33].reference, samples[33].reference)
    with pytest.raises(IndexError):
        samples[60]


@pytest.mark.slow
def test_positive_weight_is_the_ratio(planted: MakeProtocol) -> None:
    samples = AnchorSamples(planted(), num_samples=1500, seed=3, num_anchors=16, stride=1)
    positives, total = torch.zeros(16), torch.zeros(16)
    for sample in samples:
        for j in range(16):
            positives[j] += sample.labels[j:, j].sum()
            total[j] += 40 - j
    expected = ((total - positives) / positives).clamp(1, 100)
    torch.testing.assert_close(samples.positive_weight(), expected, rtol=0.2, atol=0)


@pytest.mark.slow
def test_stride_covers_the_training_moments(planted: MakeProtocol) -> None:
    model = SST(12, num_anchors=4)
    model.training_set(planted(), num_samples=1, seed=0)
    assert int(model.stride) == 4
    fixed = SST(12, num_anchors=4, stride=3)
    fixed.training_set(planted(), num_samples=1, seed=0)
    assert int(fixed.stride) == 3


@pytest.mark.slow
def test_loss_equals_the_loop(planted: MakeProtocol) -> None:
    model = SST(12, 8, num_anchors=5, stride=2).eval()
    samples = list(model.training_set(planted(), num_samples=3, seed=0))
    samples[1].reference = samples[1].reference[:7]
    samples[1].labels = samples[1].labels[:7]
    samples[1].reference_steps = torch.tensor([7])
    terms = []
    for sample in samples:
        logits = model(sample.reference)
        for t in range(len(logits)):
            for j in range(min(t + 1, 5)):
                label = sample.labels[t, j]
                term = functional.binary_cross_entropy_with_logits(logits[t, j], label)
                terms.append(term * (model.positive_weight[j] if label else 1))
    loss = model.training_losses(Batch.from_data_list(samples))["loss"]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.parametrize("stride", [1, 3])
def test_rank_equals_the_loop(stride: int) -> None:
    model = SST(4, 8, num_anchors=5, stride=stride, nms_threshold=1.0).eval()
    reference = torch.randn(11, 4)
    confidence = torch.sigmoid(model(block_means(reference, stride))).detach()
    expected = {
        ((t - j) * stride, min((t + 1) * stride, 11)): float(confidence[t, j])
        for t in range(len(confidence))
        for j in range(min(t + 1, 5))
    }
    ranking = model.rank(torch.randn(2, 4), reference, None)
    rows = [(a, b) for a, b in ranking.moments.tolist()]
    assert rows == sorted(expected, key=lambda window: -expected[window])
    assert ranking.scores.tolist() == pytest.approx([expected[row] for row in rows])


def test_query_is_ignored_unless_reranked() -> None:
    reference, first, second = torch.randn(30, 4), torch.randn(3, 4), torch.randn(3, 4)
    model = SST(4, 8).eval()
    plain = model.rank(first, reference, None)
    assert torch.equal(plain.moments, model.rank(second, reference, None).moments)
    assert (tiou(plain.moments[:, None], plain.moments[None]).fill_diagonal_(0) <= 0.8).all()
    twin = SST(4, 8, rerank=True, num_reranked=20).eval()
    twin.load_state_dict(model.state_dict())
    assert twin.title == "SST + cosine"
    assert model.title == "SST"
    ranking = twin.rank(first, reference, None)
    assert torch.equal(
        torch.unique(ranking.moments, dim=0), torch.unique(plain.moments[:20], dim=0)
    )
    assert not torch.equal(ranking.moments, twin.rank(second, reference, None).moments)
    start, end = (int(side) for side in ranking.moments[0])
    cosine = functional.cosine_similarity(first.mean(0), reference[start:end].mean(0), dim=0)
    torch.testing.assert_close(ranking.scores[0], cosine)


@pytest.mark.slow
def test_overfits_planted_actions(planted: MakeProtocol) -> None:
    given = planted()
    model = SST(12, 32, dropout=0.0, num_anchors=16)
    loader = DataLoader(model.training_set(given, num_samples=640, seed=0), batch_size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in loader:
        optimizer.zero_grad()
        model.training_losses(batch)["loss"].backward()
        optimizer.step()
    model.eval()
    for item in given.splits["train"]:
        ranking = model.rank(given.query(item), given.reference(item), None)
        assert tiou(ranking.moments[0], torch.tensor(item.moment)) > 0.5


def test_config_and_state_rebuild_the_model(planted: MakeProtocol) -> None:
    model = SST(12, 8, num_anchors=4, rerank=True)
    model.training_set(planted(), num_samples=1, seed=0)
    twin = SST(**model.config())
    twin.load_state_dict(model.state_dict())
    assert twin.config() == model.config()
    assert int(twin.stride) == 4
    assert twin.title == model.title
