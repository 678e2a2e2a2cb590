"""Finer windows around the best proposals, against loops and scores of one window at a time."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from relocal_pyg.data.proposals import sliding_windows
from relocal_pyg.models import ContrastMatcher, FinerWindows, MultiGraphRelocalizer
from relocal_pyg.models.refining import REFINEMENTS, ROUNDS, SEEDS, finer_windows, refine
from relocal_pyg.moments import decode_offsets, tiou
from relocal_pyg.search import PairScorer
from relocal_pyg.training import RECOMMENDED


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

    zeros = torch.zeros_like(proposals)
    plain, _, finer = (
        refine(way, proposals, score(proposals), zeros, score, 80) for way in REFINEMENTS
    )
    assert torch.tanh(score(proposals).max()) == plain.scores[0]
    assert math.atanh(finer.scores[0]) > math.atanh(plain.scores[0]) + 0.05
    torch.testing.assert_close(torch.tanh(score(finer.moments)), finer.scores)
    given = {tuple(window) for window in proposals.tolist()}
    assert given <= {tuple(window) for window in finer.moments.tolist()}
    origins = {
        tuple(origin)
        for moment, origin in zip(finer.moments.tolist(), finer.proposals.tolist(), strict=True)
        if tuple(moment) not in given
    }
    assert 0 < len(origins) <= SEEDS * len(ROUNDS)
    assert origins <= given
    assert tuple(finer.proposals[0].tolist()) in {tuple(row) for row in plain.moments[:1].tolist()}


def trained(way, **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(
        RECOMMENDED.network, hidden_channels=6, num_steps=5, head_channels=(4, 3), **changes
    )
    model = MultiGraphRelocalizer.from_config(7, config).eval()
    with torch.no_grad():  # heads start at zero
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.set_refinement(way)
    return model


@pytest.mark.parametrize("way", REFINEMENTS)
def test_a_network_scores_each_window_as_it_is(way):
    model = trained(way)
    query, reference, video = torch.randn(6, 7), torch.randn(50, 7), torch.randn(20, 7)
    proposals = sliding_windows(50, [6, 10, 16])
    ranking = model.rank(query, reference, proposals, query_video=video)
    places = ranking.moments if way == "windows" else ranking.proposals
    scores, offsets = model.score_proposals(query, reference, places, video)
    torch.testing.assert_close(scores, ranking.scores, rtol=1e-4, atol=1e-5)
    assert (len(places) > len(proposals)) == (way == "windows")
    if way == "offsets":
        torch.testing.assert_close(ranking.moments, decode_offsets(places, offsets))
        assert not torch.equal(ranking.moments, places)
    fast = PairScorer(model).rank(query, reference, proposals, video)
    torch.testing.assert_close(fast.moments, ranking.moments, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.scores, ranking.scores, rtol=1e-4, atol=1e-5)
    # What is explained is what was scored.
    answer = ranking.best(50, 1)[0]
    place = torch.tensor([model.scored_span(answer)])
    scored, _ = model.score_proposals(query, reference, place, video)
    assert scored.item() == pytest.approx(answer.score, abs=1e-5)


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


@pytest.mark.parametrize("num_steps", [1, 2, 3, 40])
def test_nothing_is_finer_than_a_step(num_steps):
    """Around proposals of one step no round finds a new window."""
    model = trained("windows")
    proposals = sliding_windows(num_steps, [1])
    ranking = model.rank(torch.randn(2, 7), torch.randn(num_steps, 7), proposals)
    assert sorted(ranking.moments.tolist()) == sorted(proposals.tolist())


def test_only_a_network_that_may_choose_looks_at_finer_windows():
    assert trained("none", finer_windows=False).refinements == ("none", "offsets")
    paper = MultiGraphRelocalizer(7, hidden_channels=6, num_steps=5)
    paper.set_refinement("none")
    assert paper.refinement == "offsets"
