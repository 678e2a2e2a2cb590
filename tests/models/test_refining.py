"""Finer windows around the best proposals, against loops and scores of one window at a time."""

from __future__ import annotations

import math

import pytest
import torch

from relocal_pyg.data.proposals import ROUNDS, SEEDS, finer_windows, look_closer, sliding_windows
from relocal_pyg.models import ContrastMatcher, FinerWindows
from relocal_pyg.moments import tiou


def finer_by_hand(moments, num_steps, shares):
    """Every window and the first moment that gives it."""
    found = {}
    for number, (start, end) in enumerate(moments):
        moved = []
        for share in (0, *shares):
            by = math.floor(share * (end - start) + 0.5)
            moved += [by, -by]
        for a in moved:
            for b in moved:
                first = min(max(round(start) + a, 0), num_steps)
                last = min(max(round(end) + b, 0), num_steps)
                if first < last and (first, last) != (start, end):
                    found.setdefault((first, last), number)
    return sorted(found.items())


@pytest.mark.parametrize("seed", range(5))
def test_finer_windows_against_loops(seed):
    draw = torch.Generator().manual_seed(seed)
    num_steps = 30
    starts = torch.randint(0, 25, (6,), generator=draw).float()
    lengths = torch.randint(1, 20, (6,), generator=draw)
    moments = torch.stack([starts, (starts + lengths).clamp(max=num_steps)], dim=1)
    if seed == 4:  # released proposals end between steps
        moments = (moments + 0.3).clamp(max=num_steps)
    shares = ROUNDS[seed % 2]
    windows, origin = finer_windows(moments, num_steps, shares)
    wanted = finer_by_hand(moments.tolist(), num_steps, shares)
    assert windows.tolist() == [list(window) for window, _ in wanted]
    assert origin.tolist() == [number for _, number in wanted]


def test_no_finer_window_of_a_step():
    assert finer_windows(torch.tensor([[3.0, 4.0]]), 9, [0.15, 0.3])[0].shape == (0, 2)


def test_a_moment_between_windows_is_found():
    """With tIoU itself as the score, finer windows come nearer to the truth."""
    truth = torch.tensor([[23.0, 41.0]])
    proposals = sliding_windows(80, [8, 16, 32])

    def score(windows):
        return tiou(windows, truth)

    moments, scores, origins = look_closer(proposals, score(proposals), score, 80)
    assert scores.max() > score(proposals).max() + 0.05
    torch.testing.assert_close(score(moments), scores)
    given = {tuple(window) for window in proposals.tolist()}
    assert given <= {tuple(window) for window in moments.tolist()}
    made_of = {
        tuple(origin)
        for moment, origin in zip(moments.tolist(), origins.tolist(), strict=True)
        if tuple(moment) not in given
    }
    assert 0 < len(made_of) <= SEEDS * len(ROUNDS)
    assert made_of <= given
    best = proposals[score(proposals).argmax()]
    assert torch.equal(origins[scores.argmax()], best)


def test_a_matcher_answers_with_the_best_of_all_windows_that_it_scored() -> None:
    query, reference = torch.randn(6, 8), torch.randn(60, 8)
    reference[23:36] += 3 * query.mean(dim=0)
    windows = torch.tensor([[float(s), float(s + 10)] for s in range(0, 50, 5)])
    plain = ContrastMatcher().rank(query, reference, windows)
    fine = FinerWindows(ContrastMatcher()).rank(query, reference, windows)
    everything = torch.tensor([[s, e] for s in range(60) for e in range(s + 1, 61)]).float()
    scored = ContrastMatcher().rank(query, reference, everything)
    places = map(tuple, scored.moments.tolist())
    known = dict(zip(places, scored.scores.tolist(), strict=True))
    for moment, score in zip(fine.moments.tolist(), fine.scores.tolist(), strict=True):
        assert score == pytest.approx(known[tuple(moment)], abs=1e-6)
    assert fine.scores[0] > plain.scores[0]
    assert tiou(fine.moments[0], [23.0, 36.0]) > tiou(plain.moments[0], [23.0, 36.0])
    # What each was made of is a proposal, and overlaps it.
    given = set(map(tuple, windows.tolist()))
    assert {tuple(row) for row in fine.proposals.tolist()} <= given
    assert (tiou(fine.moments, fine.proposals) > 0.2).all()
    assert len(set(map(tuple, fine.moments.tolist()))) <= len(fine.moments)
