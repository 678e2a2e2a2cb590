from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from relocal_pyg.data.items import Protocol
from relocal_pyg.errors import UsageError
from relocal_pyg.models.baselines.matr import (
    MATR,
    SpanPairs,
    alignment_loss,
    best_alignment,
    foreground,
    interval_loss,
)
from relocal_pyg.moments import tiou

MakeProtocol = Callable[..., Protocol]


def paths(cost: Tensor, part: bool) -> list[Tensor]:
    """Cost of every monotone path, one cell after the other."""
    rows, columns = cost.shape
    found: list[Tensor] = []

    def walk(i: int, j: int, total: Tensor) -> None:
        total = total + cost[i, j]
        if j == columns - 1 and (part or i == rows - 1):
            found.append(total)
        for di, dj in ((1, 1), (1, 0), (0, 1)):
            if i + di < rows and j + dj < columns:
                walk(i + di, j + dj, total)

    for start in range(rows if part else 1):
        walk(start, 0, cost.new_zeros(()))
    return found


@pytest.mark.parametrize(("part", "number"), [(False, 25), (True, 70)])
def test_alignment_is_the_soft_minimum_over_all_paths(part: bool, number: int):
    cost = torch.rand(4, 3, dtype=torch.float64)
    every = torch.stack(paths(cost, part))
    assert len(every) == number
    lengths = torch.tensor([4]), torch.tensor([3])
    for gamma in (0.1, 1.0):
        loss = alignment_loss(cost[None], *lengths, gamma, subsequence=part)
        torch.testing.assert_close(loss[0] * 3, -gamma * torch.logsumexp(-every / gamma, 0))
    hard = alignment_loss(cost[None], *lengths, 0.0, subsequence=part)[0] * 3
    torch.testing.assert_close(hard, every.min())
    nearly = alignment_loss(cost[None], *lengths, 1e-4, subsequence=part)[0] * 3
    torch.testing.assert_close(nearly, hard, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("part", "number"), [(False, 25), (True, 70)])
def test_zero_cost_counts_the_paths(part: bool, number: int):
    """Delannoy numbers, D(3, 2) = 25; a free start that entered twice would add gamma ln 2."""
    zeros = torch.zeros(1, 4, 3, dtype=torch.float64)
    loss = alignment_loss(zeros, torch.tensor([4]), torch.tensor([3]), 0.1, subsequence=part)
    assert float(loss) * 3 == pytest.approx(-0.1 * math.log(number))


@pytest.mark.slow
def test_gradients_of_the_alignment():
    cost = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 4]), torch.tensor([3, 2])
    for part in (False, True):
        assert torch.autograd.gradcheck(
            lambda c, part=part: alignment_loss(c, *lengths, 0.1, subsequence=part), (cost,)
        )
    total = alignment_loss(cost, *lengths, 0.1, subsequence=False) * lengths[1]
    (share,) = torch.autograd.grad(total.sum(), cost)
    assert bool((share >= -1e-12).all() & (share <= 1 + 1e-12).all())
    # Every step of either side is on each path.
    assert bool((share[0].sum(0) >= 1 - 1e-9).all() & (share[0].sum(1) >= 1 - 1e-9).all())


def test_padding_reaches_no_alignment():
    cost = torch.rand(1, 6, 4, dtype=torch.float64)
    small = cost[:, :4, :3]
    lengths = torch.tensor([4]), torch.tensor([3])
    for part in (False, True):
        torch.testing.assert_close(
            alignment_loss(cost, *lengths, 0.1, subsequence=part),
            alignment_loss(small, *lengths, 0.1, subsequence=part),
        )


def test_a_query_planted_word_for_word_is_where_the_path_runs():
    rows = torch.eye(30)
    query, reference = rows[20:26], torch.cat([rows[:9], rows[20:26], rows[9:15]])
    cost = 1 - reference @ query.T
    seen = best_alignment(cost[None], torch.tensor([21]), torch.tensor([6]))[0]
    assert seen.nonzero().flatten().tolist() == list(range(9, 15))


@pytest.mark.parametrize(
    ("span", "truth", "wanted"), [((0, 0.2), (0, 0.3), 2 / 3), ((0.5, 1), (0, 0.3), -0.2)]
)
def test_generalised_iou(span, truth, wanted):
    span, truth = torch.tensor([span]), torch.tensor([truth])
    smooth = 0.5 * (span - truth).square().sum()
    assert float(interval_loss(span, truth) - smooth) == pytest.approx(1 - wanted, abs=1e-6)
    assert float(interval_loss(truth, truth)) == pytest.approx(0, abs=1e-6)
    for point in (truth[:, :1].repeat(1, 2), span[:, 1:].repeat(1, 2)):  # zero offsets
        point.requires_grad_()
        loss = interval_loss(point, truth) + interval_loss(point, point.detach())
        (gradient,) = torch.autograd.grad(loss, point)
        assert bool(loss.isfinite() & gradient.isfinite().all())


def test_foreground_is_never_empty():
    truths = torch.tensor([[0.2, 0.5], [0.41, 0.42]])
    inside = foreground(truths, torch.tensor([10, 10]), 12)
    assert inside[0].nonzero().flatten().tolist() == [2, 3, 4]
    assert inside[1].nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("fusion", ["channel", "sequence", "none"])
def test_padding_and_order_of_a_batch_change_nothing(fusion):
    model = MATR(6, 16, heads=2, fusion=fusion).eval()
    clips, videos = [torch.randn(n, 6) for n in (4, 3)], [torch.randn(n, 6) for n in (9, 14)]

    def pad(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    lengths = torch.tensor([4, 3]), torch.tensor([9, 14])
    logits, spans, loss = model(pad(clips), pad(videos), *lengths)
    for number in range(2):
        alone = model(
            clips[number][None],
            videos[number][None],
            *(side[number : number + 1] for side in lengths),
        )
        steps = int(lengths[1][number])
        torch.testing.assert_close(logits[number, :steps], alone[0][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(spans[number, :steps], alone[1][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(loss[number], alone[2][0], atol=1e-5, rtol=1e-4)


def test_in_sequence_only_the_last_three_steps_see_the_slots():
    model = MATR(6, 16, heads=2, fusion="sequence").eval()
    batch = torch.randn(1, 4, 6), torch.randn(1, 12, 6), torch.tensor([4]), torch.tensor([12])
    with torch.no_grad():
        before = model(*batch)[0]
        model.slots.add_(1.0)
        after = model(*batch)[0]
    assert (before != after)[0].nonzero().flatten().tolist() == [9, 10, 11]


@pytest.mark.slow
def test_gradients_reach_the_decoder_where_it_is_read(planted: MakeProtocol):
    for fusion, reached in (("channel", True), ("none", False)):
        model = MATR(12, 16, heads=2, fusion=fusion)
        samples = model.training_set(planted(), num_samples=2, seed=0)
        model.training_losses(Batch.from_data_list([samples[0], samples[1]]))["loss"].backward()
        assert (model.slots.grad is not None) == reached


def test_self_supervised_samples_hold_the_query_itself(planted: MakeProtocol):
    samples = SpanPairs(planted(), num_samples=30, seed=1, self_supervised=True, reversal=False)
    same = 0
    for sample in samples:
        start, end = sample.truth[0].long().tolist()
        own = sample.reference[start:end]
        same += sample.query.shape == own.shape and torch.equal(sample.query, own)
    assert 8 <= same <= 22  # half of them are changed
    again = SpanPairs(planted(), num_samples=30, seed=1, self_supervised=True, reversal=False)
    assert torch.equal(samples[7].query, again[7].query)


def test_a_reset_leaves_nothing_of_what_was_learned():
    model = MATR(6, 16, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    assert not any((parameter == 7).any() for parameter in model.parameters())


def test_settings_that_cannot_be():
    numbers = ({"heads": 0}, {"slots": 0}, {"max_steps": 0}, {"gamma": -1})
    for settings in ({"heads": 3}, {"fusion": "time"}, {"align": "no"}, *numbers):
        with pytest.raises(UsageError):
            MATR(4, 16, **settings)


@pytest.mark.slow
def test_eight_planted_pairs_are_learned_by_heart(planted: MakeProtocol):
    spans = [(4 + 3 * i, 14 + 3 * i) for i in range(8)]
    protocol = planted(spans=spans)
    model = MATR(12, 32, heads=4, dropout=0.0, input_dropout=0.0)
    samples = model.training_set(protocol, num_samples=64, seed=0)
    solver = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(150):
        batch = Batch.from_data_list([samples[(8 * step + i) % 64] for i in range(8)])
        solver.zero_grad()
        model.training_losses(batch)["loss"].backward()
        solver.step()
    model.eval()
    right = 0
    for sample in (samples[i] for i in range(16)):
        best = model.rank(sample.query, sample.reference, None).moments[:1]
        right += float(tiou(best, sample.truth)) > 0.7
    assert right == 16


def test_a_long_reference_is_read_at_fewer_steps():
    model = MATR(4, 16, heads=2, max_steps=20).eval()
    moments = model.rank(torch.rand(3, 4), torch.rand(90, 4), None).moments
    assert moments.shape == (20, 2)
    assert bool((moments[:, 0] < moments[:, 1]).all() & (moments <= 90).all())
