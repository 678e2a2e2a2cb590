from __future__ import annotations

from collections import Counter

import pytest
import torch

from relocal_pyg.data.proposals import sliding_windows
from relocal_pyg.models.matchers import CentreHalf, Chance, RandomMoment, WholeReference
from relocal_pyg.moments import tiou


def pair(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, generator=draw), torch.randn(n, 3, generator=draw)


def test_whole_and_centre_half() -> None:
    query, reference = pair(10)
    windows = sliding_windows(10, [3])
    assert WholeReference().rank(query, reference, windows).moments.tolist() == [[0.0, 10.0]]
    assert CentreHalf().rank(query, reference, windows).moments.tolist() == [[2.5, 7.5]]


def test_random_moment_depends_on_content_and_seed_alone() -> None:
    query, reference = pair(50)
    other = pair(50, seed=1)[1]
    windows = sliding_windows(50, [5])
    model = RandomMoment(seed=3)
    first = model.rank(query, reference, windows).moments
    model.rank(query, other, windows)
    torch.manual_seed(99)
    assert torch.equal(RandomMoment(seed=3).rank(query, reference, windows[:2]).moments, first)
    assert not torch.equal(model.rank(query, other, windows).moments, first)
    assert not torch.equal(RandomMoment(seed=4).rank(query, reference, windows).moments, first)


def test_random_moment_is_uniform_over_all_ranges() -> None:
    query, reference = pair(4)
    draws = RandomMoment(num_moments=20_000).rank(query, reference, torch.zeros(1, 2)).moments
    counts = Counter(tuple(row) for row in draws.tolist())
    every = {(float(s), float(e)) for s in range(4) for e in range(s + 1, 5)}
    assert set(counts) == every
    # Ten cells of 2000 each, standard deviation 42: five of them.
    assert all(abs(count - 2000) < 215 for count in counts.values())


def test_random_moment_of_one_step() -> None:
    query, reference = pair(1)
    moments = RandomMoment().rank(query, reference, torch.zeros(1, 2)).moments
    assert moments.unique(dim=0).tolist() == [[0.0, 1.0]]


def test_chance_permutes_the_proposals() -> None:
    query, reference = pair(30)
    windows = sliding_windows(30, [4, 8])
    ranking = Chance().rank(query, reference, windows)
    assert torch.equal(torch.unique(ranking.moments, dim=0), windows)
    assert not torch.equal(ranking.moments, windows)
    assert (ranking.scores.diff() < 0).all()
    again = Chance().rank(query, reference, windows)
    assert torch.equal(again.moments, ranking.moments)


@pytest.mark.slow
def test_chance_is_the_mean_over_proposals() -> None:
    windows = sliding_windows(30, [4, 8])
    hit = (tiou(windows, torch.tensor([10.0, 17.0])) > 0.3).float()
    tops = [Chance(seed).rank(*pair(30), windows).moments[0] for seed in range(2000)]
    rate = (tiou(torch.stack(tops), torch.tensor([10.0, 17.0])) > 0.3).float().mean()
    assert abs(float(rate - hit.mean())) < 5 * (hit.mean() / 2000) ** 0.5


def test_localize_gives_seconds() -> None:
    query, reference = pair(10)
    answer = CentreHalf().localize(query, reference, seconds_per_step=2.0)
    assert [(moment.start, moment.end) for moment in answer] == [(5.0, 15.0)]
