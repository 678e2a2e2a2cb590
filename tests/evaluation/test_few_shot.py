from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relocal_pyg.data import make_pairs
from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import AnnotationError, RelocalError, UsageError
from relocal_pyg.evaluation import evaluate
from relocal_pyg.evaluation.few_shot import (
    THRESHOLDS,
    Detection,
    EpisodeList,
    average_precision,
    combined,
    draw_episodes,
    evaluate_few_shot,
    few_shot_table,
    to_markdown,
)
from relocal_pyg.evaluation.statistics import Estimate
from relocal_pyg.models import Calibrated, ContrastMatcher, FinerWindows, WholeReference
from relocal_pyg.models.base import Ranking
from relocal_pyg.models.baselines.aft_srm import AFTSRM
from relocal_pyg.moments import tiou


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inside / (max(a[1], b[1]) - min(a[0], b[0]))


def brute(detections: list[Detection], truths: dict, threshold: float) -> float:
    """ActivityNet's own procedure: match greedily, integrate the envelope over recall steps."""
    ordered = sorted(detections, key=lambda d: -d.score)
    taken: set[tuple[str, int]] = set()
    tp, fp = [], []
    for d in ordered:
        ranked = sorted(
            range(len(truths[d.episode_id])),
            key=lambda g, d=d: -overlap((d.start, d.end), truths[d.episode_id][g]),
        )
        hit = False
        for g in ranked:
            if overlap((d.start, d.end), truths[d.episode_id][g]) < threshold:
                break
            if (d.episode_id, g) not in taken:
                taken.add((d.episode_id, g))
                hit = True
                break
        tp.append(float(hit))
        fp.append(float(not hit))
    total = sum(len(moments) for moments in truths.values())
    recall, precision, t, f = [0.0], [0.0], 0.0, 0.0
    for a, b in zip(tp, fp, strict=True):
        t, f = t + a, f + b
        recall.append(t / total)
        precision.append(t / (t + f))
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_equals_a_brute_force_count(seed: int):
    rng = random.Random(seed)
    truths = {
        str(e): [(s, s + rng.randint(2, 9)) for s in rng.sample(range(40), rng.randint(1, 3))]
        for e in range(4)
    }
    found = []
    for _ in range(24):
        episode = str(rng.randrange(4))
        start, end = rng.choice(truths[episode])
        start += rng.randint(-2, 2)
        found.append(
            Detection(episode, "", start, max(end + rng.randint(-2, 2), start + 1), rng.random())
        )
    for threshold in (0.3, 0.5, 0.75):
        area = float(average_precision(found, truths, [threshold])[0])
        assert area == pytest.approx(brute(found, truths, threshold))


def test_average_precision_by_hand():
    truths = {"a": [(0.0, 10.0)]}
    hit, miss = Detection("a", "", 0, 10, 0.9), Detection("a", "", 50, 60, 0.95)
    assert float(average_precision([hit], truths, [0.5])) == 1
    assert float(average_precision([miss, hit], truths, [0.5])) == 0.5
    twice = [hit, replace(hit, score=0.8)]
    assert float(average_precision(twice, truths, [0.5])) == 1
    assert float(average_precision([*twice, miss, replace(miss, score=0.1)], truths, [0.5])) == 0.5
    half = Detection("a", "", 0, 5, 1.0)
    assert average_precision([half], truths, [0.5, 0.55]).tolist() == [1, 0]
    many = {str(n): [(0.0, 10.0)] for n in range(10)}
    three = [Detection(str(n), "", 0, 10, 1 - n / 100) for n in range(3)]
    assert float(average_precision(three, many, [0.5])) == pytest.approx(0.3)


def test_one_answer_to_one_truth_is_a_hit_or_none_at_each_threshold():
    """Ordered by their own tIoU, the area is hits / N, with ``>=``."""
    rng = random.Random(0)
    truths = {str(n): [(10.0, 20.0)] for n in range(60)}
    spans = {e: (float(rng.randint(7, 11)), float(rng.randint(18, 22))) for e in truths}
    shares = {e: overlap(spans[e], truths[e][0]) for e in truths}
    found = [Detection(e, "", *spans[e], shares[e]) for e in truths]
    area = average_precision(found, truths)
    for threshold, value in zip(THRESHOLDS, area.tolist(), strict=True):
        assert value == pytest.approx(sum(t >= threshold for t in shares.values()) / 60)
    assert 0 < float(area[-1]) < float(area[0])


@pytest.mark.parametrize("seed", range(5))
def test_with_one_truth_an_episode_a_threshold_only_takes(seed: int):
    rng = random.Random(seed)
    truths = {str(n): [(20.0, 30.0)] for n in range(20)}
    found = []
    for _ in range(200):
        start = 20 + rng.gauss(0, 3)
        end = max(start + 1, 30 + rng.gauss(0, 3))
        found.append(Detection(str(rng.randrange(20)), "", start, end, rng.random()))
    area = average_precision(found, truths).tolist()
    assert area == sorted(area, reverse=True)
    assert area[0] > area[-1]


@pytest.mark.slow
def test_random_order_at_hit_rate_a_has_a_squared():
    rng = random.Random(0)
    truths = {str(n): [(0.0, 10.0)] for n in range(3000)}
    found = [
        Detection(str(n), "", *((0, 10) if n < 0.6 * 3000 else (20, 30)), rng.random())
        for n in range(3000)
    ]
    area = float(average_precision(found, truths, [0.5])[0])
    assert area == pytest.approx(0.36, abs=0.02)


@pytest.mark.slow
def test_a_monotone_map_changes_nothing_and_thresholds_only_take(brief):
    protocol = brief
    episodes = draw_episodes(protocol, "test", count=30)

    class Mapped(ContrastMatcher):
        def rank(self, *arguments, **options):
            ranking = super().rank(*arguments, **options)
            return replace(ranking, scores=ranking.scores.exp() * 3)

    class Scaled(ContrastMatcher):
        """The best answer of every episode has the score 1."""

        def rank(self, *arguments, **options):
            ranking = super().rank(*arguments, **options)
            return replace(ranking, scores=ranking.scores / ranking.scores.max())

    plain, mapped, scaled = (
        evaluate_few_shot(model, protocol, episodes, samples=20)
        for model in (ContrastMatcher(), Mapped(), Scaled())
    )
    assert mapped == plain
    assert scaled != plain
    agnostic = evaluate_few_shot(ContrastMatcher(), protocol, episodes, pool="agnostic")
    assert agnostic["map@0.5"].value >= agnostic["map@0.75"].value
    for score in agnostic.values():
        assert score.low <= score.value <= score.high


@pytest.fixture(scope="module")
def brief(short_videos) -> Protocol:
    """The same, of short videos."""
    return synthetic(replace(small(), **short_videos))


def small() -> SyntheticConfig:
    return SyntheticConfig(
        train_classes=3, val_classes=2, test_classes=3, train_videos=3, val_videos=3, test_videos=8
    )


def test_episodes_are_nested_disjoint_and_stable(tmp_path: Path):
    protocol = synthetic(small())
    one = draw_episodes(protocol, "test", shots=1, count=40)
    five = draw_episodes(protocol, "test", shots=5, count=40)
    for first, more in zip(one.episodes, five.episodes, strict=True):
        assert first.supports[0] == more.supports[0]
        assert first.reference == more.reference
        videos = [support.video_id for support in more.supports]
        assert len({*videos, more.reference.video_id}) == 6
        assert {support.label for support in more.supports} == {more.reference.label}
        assert len(first.reference.moments) == 1
    assert one.sha256 == draw_episodes(protocol, "test", shots=1, count=40).sha256 != five.sha256
    # The list is the same on every machine and in every version: a score names it by its hash.
    assert one.sha256.startswith("7242b9ee")
    one.save(tmp_path / "list.json")
    assert EpisodeList.load(tmp_path / "list.json") == one
    content = json.loads((tmp_path / "list.json").read_text())
    content["seed"] = 7
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="changed"):
        EpisodeList.load(tmp_path / "list.json")


def test_a_class_of_few_videos_moves_no_episode_of_another():
    protocol = synthetic(small())
    items = protocol.splits["test"]
    rare = max(item.label for item in items)
    kept = sorted({item.video_id for item in items if item.label == rare})[:3]
    items = tuple(item for item in items if item.label != rare or item.video_id in kept)
    protocol = replace(protocol, splits={**protocol.splits, "test": items})
    one, five = (draw_episodes(protocol, "test", shots=shots, count=40) for shots in (1, 5))
    labels = [episode.label for episode in one.episodes]
    assert 0 < labels.count(rare) < 40
    for first, more in zip(one.episodes, five.episodes, strict=True):
        assert more.label != rare
        if first.label != rare:
            assert (first.supports[0], first.reference) == (more.supports[0], more.reference)


@pytest.mark.slow
def test_a_model_in_training_answers_as_in_evaluation(brief):
    """Dropout would draw its answers, and batch normalisation learn from them."""
    protocol = brief
    episodes = draw_episodes(protocol, "test", count=6)
    model = AFTSRM(protocol.features.dim, 4, num_steps=6, widths=(4, 4, 4))
    told = FinerWindows(model)
    wanted = [evaluate_few_shot(each, protocol, episodes, samples=0) for each in (model, told)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = make_pairs(protocol.splits["test"], split="test", protocol="synthetic").sample(2)
    model.eval()
    tious = evaluate(told, protocol, pairs, progress=False).tious
    model.train()
    for each, scores in zip((model, told), wanted, strict=True):
        assert evaluate_few_shot(each, protocol, episodes, samples=0) == scores
    assert torch.equal(evaluate(told, protocol, pairs, progress=False).tious, tious)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_requests_that_cannot_be_met():
    protocol = synthetic(small())
    with pytest.raises(UsageError, match="no such split"):
        draw_episodes(protocol, "nowhere")
    for wrong in ({"shots": 0}, {"shots": 1.5}, {"count": 0}, {"instances": "two"}):
        with pytest.raises(UsageError, match="wanted"):
            draw_episodes(protocol, "test", **wrong)
    with pytest.raises(AnnotationError, match="20 other videos"):
        draw_episodes(protocol, "test", shots=20)
    episodes = draw_episodes(protocol, "test", count=1)
    for wrong in ({"pool": "all"}, {"combine": "median"}, {"score": "logit"}, {"samples": -1}):
        with pytest.raises(UsageError, match="wanted"):
            evaluate_few_shot(ContrastMatcher(), protocol, episodes, **wrong)


def test_what_has_no_place_in_the_list_is_refused():
    """A score that is none sorted the list at random, and another protocol's videos were asked."""
    protocol = synthetic(small())
    episodes = draw_episodes(protocol, "test", count=2)

    class Broken(ContrastMatcher):
        def rank(self, *arguments, **options):
            ranking = super().rank(*arguments, **options)
            return replace(ranking, scores=ranking.scores * math.nan)

    with pytest.raises(RelocalError, match=r"episode 0000\d: an answer or a score is not finite"):
        evaluate_few_shot(Broken(), protocol, episodes)
    for wrong, told in (
        ({"protocol": "thumos"}, "of protocol thumos"),
        ({"episodes": ()}, "no ep"),
    ):
        with pytest.raises(UsageError, match=told):
            evaluate_few_shot(ContrastMatcher(), protocol, replace(episodes, **wrong))
    for numbers in ((0, 1, math.nan), (0, math.inf, 1)):
        with pytest.raises(UsageError, match="not finite"):
            average_precision([Detection("a", "", *numbers)], {"a": [(0, 1)]})


@pytest.mark.slow
def test_one_example_many_times_is_one_example(brief):
    moments = torch.tensor([[0.0, 4.0], [2.0, 6.0], [10.0, 12.0]])
    ranking = Ranking.sort(moments, torch.tensor([0.3, 0.9, 0.1]))
    once, scores = combined([ranking])
    again, same = combined([ranking] * 5)
    order = [once.tolist().index(row) for row in again.tolist()]
    torch.testing.assert_close(same, scores[order])
    assert float(tiou(moments[:1], moments[1:2])) < 0.7

    protocol = brief
    one = draw_episodes(protocol, "test", count=12)
    same = tuple(replace(episode, supports=episode.supports * 4) for episode in one.episodes)
    scores = [
        evaluate_few_shot(ContrastMatcher(), protocol, episodes, combine=combine, samples=0)
        for episodes in (one, replace(one, episodes=same, shots=4))
        for combine in ("mean", "max")
    ]
    for other in scores[1:]:
        for name, score in scores[0].items():
            assert other[name].value == pytest.approx(score.value), name


@pytest.mark.slow
def test_more_examples_help_where_they_agree():
    """Five noisy examples of one direction against one: better by a clear margin."""
    protocol = synthetic(small())
    area = [
        evaluate_few_shot(
            ContrastMatcher(), protocol, draw_episodes(protocol, "test", shots=s, count=60)
        )
        for s in (1, 5)
    ]
    assert area[1]["map@0.5"].value > area[0]["map@0.5"].value + 0.05
    assert not math.isnan(area[0]["map"].value)


def test_one_answer_to_one_truth_is_the_hit_rate():
    """Whole references, all scores alike: the area of hits / N at each threshold, by hand."""
    protocol = synthetic(small())
    episodes = draw_episodes(protocol, "test", count=30)
    found = evaluate_few_shot(WholeReference(), protocol, episodes, pool="agnostic", samples=0)
    hits = []
    for episode in episodes.episodes:
        (start, end), steps = episode.reference.truths[0], episode.reference.num_steps
        hits.append((end - start) / steps >= 0.5)
    detections = [Detection(str(n), "", 0, 1, 0.0) for n in range(30)]
    truths = {str(n): [(0, 1) if hit else (5, 9)] for n, hit in enumerate(hits)}
    assert found["map@0.5"] == Estimate(pytest.approx(brute(detections, truths, 0.5)))


@pytest.mark.slow
def test_a_table_has_every_system_and_probabilities_where_there_are_some(brief):
    protocol = brief
    lists = [draw_episodes(protocol, "test", count=6, shots=shots) for shots in (1, 2)]
    models = {"who|le": WholeReference(), "pretrained": Calibrated(ContrastMatcher())}
    rows = few_shot_table(models, protocol, lists)
    assert [row["title"] for row in rows if row["shots"] == 2][-1] == "who|le"
    assert len(rows) == 6
    assert {row["sha256"] for row in rows} == {each.sha256 for each in lists}
    printed = to_markdown(rows).splitlines()
    assert len(printed) == 2 + len(rows)
    assert "| 2 | single | 6 | pretrained, by probability |" in "\n".join(printed)
    assert "| who\\|le |" in printed[-1]  # the table had a column more there
    with pytest.raises(UsageError, match="not calibrated"):
        evaluate_few_shot(ContrastMatcher(), protocol, lists[0], score="probability")
