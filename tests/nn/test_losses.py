"""Losses against loops over their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from relocal_pyg.errors import UsageError
from relocal_pyg.moments import encode_offsets
from relocal_pyg.nn import listwise_loss, offset_loss, triplet_loss


@pytest.mark.parametrize("margin", [0.5, 0.1])
def test_triplet(margin: float) -> None:
    positive, negative = torch.rand(2, 20, dtype=torch.float64) * 2 - 1
    pairs = zip(positive.tolist(), negative.tolist(), strict=True)
    terms = [max(0.0, margin - p + n) for p, n in pairs]
    assert 0 < sum(term == 0 for term in terms) < 20
    assert triplet_loss(positive, negative, margin).item() == pytest.approx(sum(terms))
    oracle = torch.nn.MarginRankingLoss(margin, reduction="sum")
    torch.testing.assert_close(
        triplet_loss(positive, negative, margin),
        oracle(positive, negative, torch.ones_like(positive)),
    )


def test_weight_decay_is_twice_lambda() -> None:
    """The module docstring's claim about Adam, against the L2 term written into the loss."""
    weak = 5e-3
    ends = []
    for inside in (True, False):
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(6, dtype=torch.float64))
        decay = 0.0 if inside else 2 * weak
        adam = torch.optim.Adam([weight], lr=0.01, weight_decay=decay)
        for _ in range(20):
            x, y = torch.randn(2, 8, 6, dtype=torch.float64)
            loss = triplet_loss(torch.tanh(x @ weight), torch.tanh(y @ weight))
            loss = loss + weak * weight.pow(2).sum() if inside else loss
            adam.zero_grad()
            loss.backward()
            adam.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1])


def test_offset() -> None:
    offsets, targets = torch.randn(2, 7, 2, dtype=torch.float64)
    terms = [
        abs(o[0] - t[0]) + abs(o[1] - t[1])
        for o, t in zip(offsets.tolist(), targets.tolist(), strict=True)
    ]
    assert offset_loss(offsets, targets).item() == pytest.approx(sum(terms) / 7)
    mask = torch.tensor([1, 0, 1, 0, 0, 0, 0], dtype=torch.bool)
    targets[3] = math.inf
    masked = offset_loss(offsets, targets, mask)
    assert masked.item() == pytest.approx((terms[0] + terms[2]) / 2)
    assert offset_loss(offsets, targets, torch.zeros(7, dtype=torch.bool)).item() == 0
    assert offset_loss(offsets[:0], targets[:0]).item() == 0
    with pytest.raises(UsageError, match="differ"):
        offset_loss(offsets, targets[:, 0])


def test_offset_is_zero_where_the_targets_are_met() -> None:
    proposals, truths = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 9.0]])
    targets = encode_offsets(proposals, truths)
    assert offset_loss(targets.clone(), targets).item() == 0


def test_masked_offsets_have_finite_gradients() -> None:
    offsets = torch.zeros(2, 2, requires_grad=True)
    targets = torch.tensor([[1.0, 1.0], [math.inf, math.inf]])
    offset_loss(offsets, targets, torch.tensor([True, False])).backward()
    assert torch.equal(offsets.grad, torch.tensor([[-1.0, -1.0], [0.0, 0.0]]))


def test_nothing_is_broadcast() -> None:
    """Three scores against a column of three are nine differences, and no error by themselves."""
    rows, offsets = torch.rand(2, 3), torch.rand(3, 2)
    for positive, negative in ((rows[0], rows[0, :, None]), (rows[0], rows[0, :1])):
        with pytest.raises(UsageError, match="differ"):
            triplet_loss(positive, negative)
    for mask in (torch.tensor([True]), torch.ones(3, 1).bool(), torch.ones(3), torch.ones(3).int()):
        with pytest.raises(UsageError, match="differ|bool"):
            offset_loss(offsets, offsets + 1, mask)
    for scores, tious in ((rows, rows[:, :1]), (rows[:1], rows), (rows[0], rows)):
        with pytest.raises(UsageError, match="differ"):
            listwise_loss(scores, tious)


def test_listwise() -> None:
    scores = torch.rand(3, 5, dtype=torch.float64) * 2 - 1
    tious = torch.rand(3, 5, dtype=torch.float64)
    total = 0.0
    for row in range(3):
        target = [math.exp(tious[row, m].item() / 0.2) for m in range(5)]
        prediction = [math.exp(scores[row, m].item() / 0.3) for m in range(5)]
        for t, p in zip(target, prediction, strict=True):
            total -= t / sum(target) * math.log(p / sum(prediction))
    loss = listwise_loss(scores, tious, 0.3, 0.2)
    assert loss.item() == pytest.approx(total / 3)
    full = torch.nn.functional.cross_entropy(scores / 0.1, torch.softmax(tious / 0.1, -1))
    torch.testing.assert_close(listwise_loss(scores, tious), full)


def test_listwise_is_least_where_scores_follow_tiou() -> None:
    tious = torch.rand(4, 6)
    best = listwise_loss(tious, tious)
    for _ in range(5):
        assert listwise_loss(tious + 0.2 * torch.randn(4, 6), tious) > best


def test_gradcheck() -> None:
    a, b = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(triplet_loss, (a, b))
    offsets = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    targets, mask = torch.randn(4, 2, dtype=torch.float64), torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda o: offset_loss(o, targets, mask), offsets)
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    tious = torch.rand(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: listwise_loss(s, tious), scores)
