from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import bootstrap_interval
from relocal_pyg.evaluation.results import Estimate, estimate_scores


def test_equals_a_loop_over_the_same_draws() -> None:
    generator = np.random.default_rng(0)
    clusters = [f"v{i}" for i in generator.integers(9, size=50)]
    values = generator.random(50)
    low, high = bootstrap_interval(values, clusters, samples=200, seed=3)
    names = list(dict.fromkeys(clusters))
    drawn = torch.randint(9, (200, 9), generator=torch.Generator().manual_seed(3))
    members = {
        name: [v for v, c in zip(values, clusters, strict=True) if c == name] for name in names
    }
    means = [np.mean(sum((members[names[i]] for i in row), [])) for row in drawn.tolist()]
    assert low.item() == pytest.approx(np.percentile(means, 2.5), abs=1e-12)
    assert high.item() == pytest.approx(np.percentile(means, 97.5), abs=1e-12)


def test_single_values_give_the_normal_interval() -> None:
    values = torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = bootstrap_interval(values, range(400), samples=4000)
    half = 1.96 * values.std().item() / math.sqrt(400)
    assert (high - low).item() / 2 == pytest.approx(half, rel=0.08)
    assert ((high + low) / 2).item() == pytest.approx(values.mean().item(), abs=0.1 * half)


def test_repeating_the_pairs_of_every_video_adds_no_certainty() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(2))
    once = bootstrap_interval(values, range(30))
    tenfold = bootstrap_interval(values.repeat(10), list(range(30)) * 10)
    assert torch.allclose(torch.stack(once), torch.stack(tenfold), atol=1e-12)
    naive = bootstrap_interval(values.repeat(10), range(300))
    assert (naive[1] - naive[0]) < 0.5 * (once[1] - once[0])


@pytest.mark.slow
def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        shared = generator.normal(size=60)
        values = np.repeat(shared, 5) + generator.normal(size=300)
        low, high = bootstrap_interval(
            values, np.repeat(range(60), 5).tolist(), seed=trial, samples=300
        )
        covered += bool(low < 0 < high)
    # 95 % of 200 is 190; three standard errors are 9, and percentile intervals run a bit short.
    assert 176 <= covered <= 199


def test_columns_are_independent_of_each_other() -> None:
    table = torch.rand(20, 3, generator=torch.Generator().manual_seed(5))
    low, high = bootstrap_interval(table, [i // 2 for i in range(20)])
    for column in range(3):
        alone = bootstrap_interval(table[:, column], [i // 2 for i in range(20)])
        assert torch.allclose(torch.stack([low[column], high[column]]), torch.stack(alone))


def test_runs_add_their_own_spread() -> None:
    values = torch.rand(40, generator=torch.Generator().manual_seed(6)).double()
    clusters = list(range(40))
    one = torch.stack(bootstrap_interval(values, clusters))
    same = torch.stack(
        bootstrap_interval(values.repeat(3), clusters * 3, [0] * 40 + [1] * 40 + [2] * 40)
    )
    assert torch.allclose(one, same, atol=1e-12)
    shifted = torch.cat([values - 0.3, values, values + 0.3])
    spread = bootstrap_interval(shifted, clusters * 3, [0] * 40 + [1] * 40 + [2] * 40)
    assert spread[0] < one[0] - 0.1
    assert spread[1] > one[1] + 0.1


def test_runs_alone_can_be_resampled() -> None:
    low, high = bootstrap_interval([0.0, 1.0], ["v", "v"], ["a", "b"])
    assert (low, high) == (0, 1)


def test_one_video_says_nothing() -> None:
    low, high = bootstrap_interval([0.0, 1.0], ["v", "v"])
    assert torch.isnan(low)
    assert torch.isnan(high)
    scores = estimate_scores(torch.tensor([[0.2, 0.9]]), ["v", "v"])
    assert scores["mIoU"] == Estimate(pytest.approx(0.55), None, None)
    assert scores["mIoU"].half_width is None


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="samples is 0"):
        bootstrap_interval([0.0, 1.0], ["a", "b"], samples=0)
    for values, clusters, runs in (([], [], None), ([1.0], ["a", "b"], None), ([1.0], ["a"], [])):
        with pytest.raises(UsageError):
            bootstrap_interval(values, clusters, runs)


def test_scores_are_means_over_runs_and_lie_in_their_intervals() -> None:
    generator = torch.Generator().manual_seed(7)
    tious = torch.rand(3, 50, generator=generator)
    before = tious * 0.9
    clusters = [f"v{i % 20}" for i in range(50)]
    scores = estimate_scores(tious, clusters, best_of_5=tious.clamp(min=0.55), before=before)
    assert scores["mAP@1@0.75"].value == pytest.approx((tious > 0.75).double().mean().item())
    assert scores["before/mAP@1@0.75"].value == pytest.approx(
        (before > 0.75).double().mean().item()
    )
    assert scores["R@5@0.5"].value == 1
    hits = [(tious > t).double().mean().item() for t in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert scores["avg_mAP@1"].value == pytest.approx(sum(hits) / 5)
    assert scores["mIoU"].value == pytest.approx(tious.double().mean().item())
    for score in scores.values():
        assert score.low <= score.value <= score.high


def test_runs_that_hold_different_videos_have_an_interval() -> None:
    """Some draws take a run and none of its videos: they say nothing and are left out."""
    low, high = bootstrap_interval(
        torch.tensor([0.0, 0.2, 0.8, 1.0]), ["a", "b", "c", "d"], [0, 0, 1, 1], samples=200
    )
    assert 0 <= low < 0.5 < high <= 1
