from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.models.baselines.cross_gated import (
    CrossGated,
    CrossMatching,
    LabelledPairs,
    decode,
    reset_like_tensorflow,
    step_labels,
)
from relocal_pyg.moments import tiou

MakeProtocol = Callable[..., Protocol]


def test_decode_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        n, longest = int(rng.integers(1, 15)), int(rng.integers(1, 18))
        logits = rng.normal(size=(n, 4))
        log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = {}
        for length in range(1, min(n, longest) + 1):
            for i in range(n - length + 1):
                inside = [log[j, 2] for j in range(i, i + max(length - 1, 1))]
                expected[i, i + length] = log[i, 0] + log[i + length - 1, 1] + np.mean(inside)
        moments, scores = decode(torch.tensor(log), longest)
        assert [tuple(row) for row in moments.tolist()] == list(expected)
        np.testing.assert_allclose(scores.numpy(), list(expected.values()), atol=1e-12)


def test_step_labels_equal_the_loop() -> None:
    for truths in ([(2, 7)], [(0, 1)], [(0, 9)], [(1, 3), (5, 9)], [(3, 4), (4, 6)]):
        labels, weights = step_labels(truths, 9)
        for t in range(9):
            hot = [
                any(t == a for a, _ in truths),
                any(t == b - 1 for _, b in truths),
                any(a <= t < b for a, b in truths),
            ]
            hot.append(not hot[2])
            assert labels[t].tolist() == pytest.approx([x / sum(hot) for x in hot])
            assert float(weights[t]) == (10 if hot[0] or hot[1] else 1)
    third = step_labels([(4, 5)], 9)[0][4]
    torch.testing.assert_close(third, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))


def naive_matching(layer: CrossMatching, query: Tensor, reference: Tensor) -> Tensor:
    """One pair, one direction at a time, one vector at a time, with PyTorch's own LSTM cell."""
    outputs = []
    for cell, order in zip((layer.forward_cell, layer.backward_cell), (1, -1), strict=True):
        state = (torch.zeros(1, layer.channels), torch.zeros(1, layer.channels))
        rows = []
        for step in range(len(reference))[::order]:
            r = reference[step]
            probe = layer.attend_reference(torch.cat([r, state[0][0]]))
            energy = [layer.attention(torch.tanh(layer.attend_query(q) + probe)) for q in query]
            share = torch.softmax(torch.cat(energy), dim=0)
            f = sum(a * q for a, q in zip(share, query, strict=True))
            gated_r = r * torch.sigmoid(layer.reference_gate(f))
            gated_f = f * torch.sigmoid(layer.query_gate(r))
            x, y = layer.bilinear(gated_r), layer.bilinear(gated_f)
            factors = layer.num_factors
            z = torch.stack(
                [
                    (x[c * factors : (c + 1) * factors] * y[c * factors : (c + 1) * factors]).sum()
                    for c in range(layer.channels)
                ]
            )
            state = cell(z[None], state)
            rows.append(state[0][0])
        outputs.append(torch.stack(rows[::order]))
    return torch.cat(outputs, dim=1)


def test_matching_equals_the_loop_whatever_the_padding() -> None:
    layer = CrossMatching(5, 3)
    query_steps, reference_steps = torch.tensor([3, 5, 1]), torch.tensor([7, 4, 6])
    query, reference = torch.randn(3, 5, 5), torch.randn(3, 7, 5)
    for junk in (0.0, 50.0):
        for b in range(3):
            query[b, query_steps[b] :] = junk
            reference[b, reference_steps[b] :] = junk
        together = layer(query, reference, query_steps, reference_steps)
        for b in range(3):
            m, n = int(query_steps[b]), int(reference_steps[b])
            alone = naive_matching(layer, query[b, :m], reference[b, :n])
            torch.testing.assert_close(together[b, :n], alone)


@pytest.mark.slow
def test_matching_gradients_match_finite_differences() -> None:
    layer = CrossMatching(3, 2).double()
    query = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 3]), torch.tensor([4, 3])
    assert torch.autograd.gradcheck(
        lambda q, r: layer(q, r, *lengths)[:, :3], (query, reference), atol=1e-6
    )


def test_padding_changes_no_logit() -> None:
    model = CrossGated(6, 8).eval()
    query, reference = torch.randn(4, 6), torch.randn(9, 6)
    alone = model(query[None], reference[None], torch.tensor([4]), torch.tensor([9]))
    padded = model(
        torch.cat([query, torch.ones(3, 6)])[None],
        torch.cat([reference, torch.ones(5, 6)])[None],
        torch.tensor([4]),
        torch.tensor([9]),
    )
    torch.testing.assert_close(padded[:, :9], alone)


def test_loss_equals_the_formula(planted: MakeProtocol) -> None:
    model = CrossGated(12, 6).eval()
    samples = list(LabelledPairs(planted(), num_samples=4, seed=0))
    total, steps = torch.zeros(()), 0
    for sample in samples:
        logits = model(
            sample.query[None], sample.reference[None], sample.query_steps, sample.reference_steps
        )[0]
        log = torch.log_softmax(logits, dim=1)
        total = total - (sample.weights * (sample.labels * log).sum(dim=1)).sum()
        steps += len(log)
    loss = model.training_losses(Batch.from_data_list(samples))["loss"]
    torch.testing.assert_close(loss, total / steps)


def test_samples_crop_the_background_only(planted: MakeProtocol) -> None:
    given = planted(offset=3)
    samples = LabelledPairs(given, num_samples=300, seed=5)
    spans = {item.video_id: item.moment for item in given.splits["train"]}
    whole = 0
    sizes = set()
    for sample in samples:
        # Where the reference comes from, by its first row.
        (video, start) = next(
            (video, int(hit[0]))
            for video in spans
            if len(hit := (given.features.read(video) == sample.reference[0]).all(1).nonzero())
        )
        first, last = (side - start for side in spans[video])
        expected, _ = step_labels([(first, last)], len(sample.reference))
        assert torch.equal(sample.labels, expected)
        assert start >= 3
        assert start + len(sample.reference) <= 43
        whole += len(sample.reference) == 40
        sizes.add(len(sample.reference))
    # A tenth is whole; of the others, those whose two draws happen to be 0 as well.
    assert 10 < whole < 75
    assert len(sizes) > 15
    again = LabelledPairs(given, num_samples=400, seed=5)[123]
    assert torch.equal(again.reference, samples[123].reference)
    with pytest.raises(IndexError):
        samples[300]


def test_references_are_at_least_as_long_as_the_query_where_possible() -> None:
    lengths = {"v0": 20, "v1": 5, "v2": 30}
    items = tuple(Item(f"{v}#0", v, "a", (0, n), (0, n), ((0, n),)) for v, n in lengths.items())

    class Zeros:
        dim = 1

        def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
            return torch.zeros(lengths[video_id], 1)[start:end]

    given = Protocol("p", {"train": items, "val": ()}, Zeros(), lambda *_: torch.ones(1, 2))
    pairs = [
        (len(sample.query), len(sample.reference))
        for sample in LabelledPairs(given, num_samples=200, seed=0)
    ]
    # The longest query has no longer partner; the others always find one in ten draws.
    assert {pair for pair in pairs if pair[0] == 20} == {(20, 30)}
    assert {pair for pair in pairs if pair[0] == 30} == {(30, 20), (30, 5)}


@pytest.mark.slow
def test_decoded_length_covers_the_training_moments(planted: MakeProtocol) -> None:
    model = CrossGated(12, 4)
    model.training_set(planted(), num_samples=1, seed=0)
    assert int(model.decoded_steps) == 64
    model.training_set(planted([(0, 75), (0, 70), (0, 75), (0, 70)], 80), num_samples=1, seed=0)
    assert int(model.decoded_steps) == 75
    fixed = CrossGated(12, 4, max_steps=6).eval()
    fixed.training_set(planted(), num_samples=1, seed=0)
    moments = fixed.rank(torch.randn(3, 12), torch.randn(20, 12), None).moments
    assert moments.diff(dim=1).max() == 6
    assert len(fixed.rank(torch.randn(3, 12), torch.randn(1000, 12), None).moments) == 5000
    twin = CrossGated(**model.config())
    twin.load_state_dict(model.state_dict())
    assert int(twin.decoded_steps) == 75
    assert twin.config() == model.config()


def test_starting_point_is_tensorflow_s() -> None:
    lstm = torch.nn.LSTM(10, 6)
    reset_like_tensorflow(lstm)
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    assert bias.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    bound = (6 / (16 + 24)) ** 0.5
    assert 0.9 * bound < float(lstm.weight_hh_l0.detach().abs().max()) <= bound


@pytest.mark.slow
def test_overfits_a_batch(planted: MakeProtocol) -> None:
    given = planted([(3, 9), (10, 15), (8, 16), (1, 6)], length=20)
    model = CrossGated(12, 16, encoder_dropout=0.0, matching_dropout=0.0)
    samples = list(model.training_set(given, num_samples=4, seed=0))
    batch = Batch.from_data_list(samples)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.training_losses(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    for sample in samples:
        ranking = model.rank(sample.query, sample.reference, None)
        start = int((sample.labels[:, 0] > 0).nonzero()[0])
        end = int((sample.labels[:, 1] > 0).nonzero()[0]) + 1
        assert tiou(ranking.moments[0], torch.tensor([start, end])) > 0.7
        assert (ranking.scores.diff() <= 0).all()
