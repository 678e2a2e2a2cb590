"""Grouping against a plain loop written from the definition, planted signals and the quirks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.proposals.tag import PAPER, SSN_CODE, TagConfig, group, smooth_signal


def runs_of(labels: list[bool]) -> list[tuple[int, int]]:
    runs, start = [], None
    for position, label in enumerate([*labels, False]):
        if label and start is None:
            start = position
        elif not label and start is not None:
            runs.append((start, position))
            start = None
    return runs


def plain_groups(labels: list[bool], tolerance: float) -> set[tuple[int, int]]:
    """Forward and backward joining of runs, shares compared as exact fractions."""
    runs, share = runs_of(labels), Fraction(str(tolerance))
    found = set()
    for x, (start, _) in enumerate(runs):
        end = runs[-1][1]
        for y in range(x + 1, len(runs)):
            stretch = labels[start : runs[y][0]]
            if stretch.count(False) > share * len(stretch):
                end = runs[y - 1][1]
                break
        found.add((start, end))
    for x, (_, end) in enumerate(runs):
        start = runs[0][0]
        for y in range(x - 1, -1, -1):
            stretch = labels[runs[y][1] : end]
            if stretch.count(False) > share * len(stretch):
                start = runs[y + 1][0]
                break
        found.add((start, end))
    return found


def plain_compat(logit: np.ndarray, labels: list[bool], tolerance: float) -> list[tuple]:
    """The released code's rules, read off its description: (start, printed end, score)."""
    runs, length = runs_of(labels), len(labels)

    def level(position: int) -> float:
        if position == length:
            return level(length - 1) - tolerance
        return labels[: position + 1].count(False) - tolerance * position

    found = []
    for x, (start, _) in enumerate(runs):
        later = [y for y in range(x + 1, len(runs)) if level(runs[y][0]) > level(start)]
        end = runs[later[0] - 1][1] if later else runs[-1][1]
        found.append((start, end + 1, logit[start : end + 1].sum()))
    for x, (_, end) in enumerate(runs):
        earlier = [y for y in range(x) if level(runs[y][1]) < level(end)]
        if earlier:
            start = runs[earlier[-1] + 1][0]
            found.append((start, end + 1, logit[start : end + 1].sum()))
        else:
            found.append((runs[0][0], end + 1, logit[: end + 2].sum()))
    return found


def plain_nms(boxes: list[tuple], threshold: float, extra: int = 0) -> list[tuple]:
    kept: list[tuple] = []
    for box in sorted(boxes, key=lambda box: (-box[2], box[0], box[1])):
        for other in kept:
            shared = min(box[1], other[1]) - max(box[0], other[0]) + extra
            union = (box[1] - box[0] + extra) + (other[1] - other[0] + extra) - shared
            if shared > 0 and shared / union > threshold:
                break
        else:
            kept.append(box)
    return kept


def softmax_action(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised[:, 1] / raised.sum(axis=1)


def one(threshold: float, tolerance: float, **changes: object) -> TagConfig:
    return replace(TagConfig((threshold,), (tolerance,), sigma=0, nms_threshold=1.0), **changes)


def as_pairs(proposals: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(start), int(end)) for start, end in proposals.tolist()]


def bumpy(rng: np.random.Generator, length: int) -> np.ndarray:
    """Logits with stretches of action of random lengths."""
    wave = np.cumsum(rng.normal(size=length)) * 0.6
    return np.stack([rng.normal(size=length) * 0.3, wave - np.median(wave)], axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_paper_grid_equals_the_plain_loop_on_random_signals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal = rng.random(int(rng.integers(1, 70)))
    config = replace(PAPER, sigma=0, nms_threshold=1.0)
    expected = {
        box
        for threshold in config.thresholds
        for tolerance in config.tolerances
        for box in plain_groups([bool(p > threshold) for p in signal], tolerance)
    }
    proposals, scores = group(signal, config)
    assert len(as_pairs(proposals)) == len(expected)
    assert set(as_pairs(proposals)) == expected
    means = [signal[start:end].mean() for start, end in as_pairs(proposals)]
    np.testing.assert_allclose(scores, means, rtol=1e-6)
    assert (scores[:-1] >= scores[1:]).all()


@pytest.mark.parametrize("seed", range(8))
def test_compat_equals_the_rules_of_the_released_code(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    logits = bumpy(rng, int(rng.integers(2, 120)))
    smooth = smooth_signal(softmax_action(logits), SSN_CODE.sigma)
    boxes = [
        box
        for threshold in SSN_CODE.thresholds
        for tolerance in SSN_CODE.tolerances
        for box in plain_compat(logits[:, 1], [bool(p > threshold) for p in smooth], tolerance)
    ]
    expected = plain_nms(boxes, 0.9, extra=1)
    proposals, scores = group(logits, SSN_CODE)
    assert as_pairs(proposals) == [(start, end) for start, end, _ in expected]
    np.testing.assert_allclose(scores, [score for *_, score in expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_a_greedy_loop(seed: int) -> None:
    signal = np.random.default_rng(200 + seed).random(60)
    pooled, scores = group(signal, replace(PAPER, nms_threshold=1.0))
    boxes = [(*pair, float(s)) for pair, s in zip(as_pairs(pooled), scores, strict=True)]
    kept, _ = group(signal, replace(PAPER, nms_threshold=0.6))
    assert as_pairs(kept) == [(start, end) for start, end, _ in plain_nms(boxes, 0.6)]


def test_planted_single_run_is_found_exactly() -> None:
    signal = np.zeros(30)
    signal[7:19] = 1
    proposals, scores = group(signal, replace(PAPER, sigma=0))
    assert as_pairs(proposals) == [(7, 19)]
    assert scores.tolist() == [1.0]


@pytest.mark.parametrize(("gap", "merged"), [(1, True), (2, True), (3, False)])
def test_two_runs_join_while_the_gap_is_within_the_tolerance(gap: int, merged: bool) -> None:
    # Runs of 8 steps: a gap of 2 is 2/10, exactly the tolerance; floats must not tip it.
    signal = [1.0] * 8 + [0.0] * gap + [1.0] * 8
    found = set(as_pairs(group(signal, one(0.5, 0.2))[0]))
    apart = {(0, 8), (8 + gap, 16 + gap)}
    # The last run alone is a forward group, the first run alone a backward one, merged or not.
    assert found == (apart | {(0, 16 + gap)} if merged else apart)


def test_all_ones_and_all_zeros() -> None:
    proposals, _ = group(np.ones(9), PAPER)
    assert as_pairs(proposals) == [(0, 9)]
    proposals, scores = group(np.zeros(9), PAPER)
    assert proposals.shape == (0, 2)
    assert scores.shape == (0,)


def test_full_tolerance_joins_every_run_to_the_last() -> None:
    signal = np.zeros(40)
    signal[[3, 20, 21, 39]] = 1
    found = set(as_pairs(group(signal, one(0.5, 1.0))[0]))
    assert found == {(3, 40), (20, 40), (39, 40), (3, 22), (3, 4)}


def test_grouping_is_deterministic_and_takes_tensors_and_lists() -> None:
    logits = bumpy(np.random.default_rng(5), 80)
    first, second = group(logits), group(torch.from_numpy(logits))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(group(logits.tolist())[0], first[0])


def test_a_logit_signal_groups_as_its_softmax() -> None:
    logits = bumpy(np.random.default_rng(6), 50)
    from_logits, from_probabilities = group(logits), group(softmax_action(logits))
    assert torch.equal(from_logits[0], from_probabilities[0])
    extreme, _ = group(np.array([[0.0, 1e4], [1e4, 0.0], [0.0, 1e4]]), one(0.5, 0.1))
    assert set(as_pairs(extreme)) == {(0, 1), (2, 3)}


@pytest.mark.slow
def test_a_long_rough_signal_stays_cheap() -> None:
    # 10,000 runs: a table of runs x runs would take 100 million entries per tolerance.
    signal = np.tile([1.0, 0.0], 10_000)
    found = set(as_pairs(group(signal, one(0.5, 0.3, nms_threshold=0.99))[0]))
    assert found == {(k, k + 1) for k in range(0, 20_000, 2)}


class TestQuirks:
    """Each deviation of the released code, on and off."""

    compat = one(0.5, 0.1, compat=True, score="sum")

    def logits(self, labels: list[int]) -> np.ndarray:
        """Action logits 1, 2, 4, ... so that a sum tells which steps were added."""
        high = 2.0 ** np.arange(len(labels))
        return np.stack([np.where(labels, -1e3, 1e3) + high, high], axis=1)

    def test_end_is_one_step_late(self) -> None:
        logits = self.logits([0, 1, 1, 0, 0])
        assert as_pairs(group(logits, replace(self.compat, compat=False))[0]) == [(1, 3)]
        proposals, scores = group(logits, self.compat)
        assert as_pairs(proposals) == [(1, 4)]
        # Backward without a break: summed from step 0 and two steps late, 1+2+4+8+16.
        assert scores.tolist() == [31.0]

    def test_end_may_pass_the_video(self) -> None:
        logits = self.logits([0, 0, 1, 1])
        assert as_pairs(group(logits, replace(self.compat, compat=False))[0]) == [(2, 4)]
        assert as_pairs(group(logits, self.compat)[0]) == [(2, 5)]

    def test_a_broken_group_is_scored_over_its_printed_range(self) -> None:
        logits = self.logits([1, 0, 0, 0, 1, 0, 0, 0])
        scored = dict(zip(*(side.tolist() for side in self.keyed(logits)), strict=True))
        # (4, 6): forward, and backward with a break: steps 4 and 5. (0, 2): backward without one.
        assert scored == {406: 16.0 + 32.0, 2: 1.0 + 2.0 + 4.0}

    def keyed(self, logits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        proposals, scores = group(logits, self.compat)
        return (proposals[:, 0] * 100 + proposals[:, 1]).long(), scores

    def test_at_the_end_of_the_video_one_step_below_is_not_counted(self) -> None:
        # Backward from the end over [1, 4): one gap step of three; the code counts it as none.
        labels = [1, 0, 1, 1]
        config = replace(self.compat, tolerances=(0.3,))
        interior = as_pairs(group(self.logits([*labels, 0]), config)[0])
        assert (0, 5) not in interior
        assert (0, 5) in as_pairs(group(self.logits(labels), config)[0])
        assert (0, 4) not in as_pairs(group(self.logits(labels), replace(config, compat=False))[0])

    def test_lengths_count_one_more_in_suppression(self) -> None:
        # Printed [0, 11) and [0, 9): a tIoU of 9/11 as half-open ranges, 10/12 as the code counts.
        labels = [1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0]
        config = replace(self.compat, tolerances=(1.0,), nms_threshold=10 / 12 - 1e-6)
        kept = as_pairs(group(self.logits(labels), config)[0])
        assert (0, 11) in kept
        assert (0, 9) not in kept
        config = replace(config, nms_threshold=10 / 12 + 1e-6)
        assert (0, 9) in as_pairs(group(self.logits(labels), config)[0])

    def test_sum_prefers_long_proposals_and_mean_does_not(self) -> None:
        signal = np.array([3.0, -1.0, 3.0, 3.0, -1.0, 3.0])
        logits = np.stack([np.zeros(6), signal], axis=1)
        by_sum, _ = group(logits, one(0.5, 0.5, score="sum"))
        by_mean, _ = group(logits, one(0.5, 0.5, score="mean"))
        assert as_pairs(by_sum)[0] == (0, 6)
        assert as_pairs(by_mean)[0] != (0, 6)


@pytest.mark.parametrize("sigma", [0.3, 0.9375, 3.0, 7.5])
@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_smoothing_equals_scipy(sigma: float, length: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    signal = np.random.default_rng(length).random(length)
    expected = ndimage.gaussian_filter(signal, sigma)
    np.testing.assert_allclose(smooth_signal(signal, sigma), expected, rtol=0, atol=1e-12)


def test_smoothing_keeps_a_constant_and_can_be_turned_off() -> None:
    signal = np.full(17, 0.3)
    np.testing.assert_allclose(smooth_signal(signal, 4.0), signal, atol=1e-12)
    assert smooth_signal(signal, 0) is signal


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.zeros((4, 3)), "shape"),
        (np.zeros((0, 2)), "shape"),
        (np.zeros(0), "shape"),
        ([0.1, float("nan"), float("inf")], "step 1"),
        ([[0.0, 0.0], [0.0, float("inf")]], "step 1"),
        (["a"], "not an array"),
        ([0.2, 5.0, -3.0], "step 1 is 5: probabilities"),  # logits of one class, or percent
        ([0.2, -0.1], "step 1 is -0.1: probabilities"),
    ],
)
def test_bad_signals_are_refused(signal: object, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        group(signal)  # type: ignore[arg-type]


def test_what_a_network_gives_is_a_signal() -> None:
    logits = torch.randn(12, 2, requires_grad=True)
    for signal in (logits, logits.bfloat16(), torch.sigmoid(logits[:, 1])):
        assert torch.equal(group(signal)[0], group(signal.detach().double().numpy())[0])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="logits"):
        group(np.ones(4), one(0.5, 0.1, score="sum"))
    with pytest.raises(UsageError, match="at least one"):
        TagConfig((), (0.1,), 0, 0.9)
    for sigma, threshold in ((-1, 0.9), (0, 1.5), (0, np.nan)):
        with pytest.raises(UsageError, match="sigma|nms_threshold"):
            TagConfig((0.5,), (0.1,), sigma, threshold)
    for name in ("thresholds", "tolerances"):
        for value in (-1, np.nan, "0.5"):
            with pytest.raises(UsageError, match=name):
                replace(PAPER, **{name: (0.5, value)})
    with pytest.raises(UsageError, match="score"):
        TagConfig((0.5,), (0.1,), 0, 0.9, score="max")  # type: ignore[arg-type]


def test_presets_are_those_of_the_publications() -> None:
    assert len(PAPER.thresholds) == len(PAPER.tolerances) == 19
    np.testing.assert_allclose(np.diff(PAPER.thresholds), 0.05)
    assert (PAPER.nms_threshold, PAPER.score, PAPER.compat) == (0.95, "mean", False)
    assert (len(SSN_CODE.thresholds), len(SSN_CODE.tolerances)) == (12, 9)
    assert (SSN_CODE.nms_threshold, SSN_CODE.score, SSN_CODE.sigma) == (0.9, "sum", 3.0)
