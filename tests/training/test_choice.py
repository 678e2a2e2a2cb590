from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from relocal_pyg.apps.cli.options import choose_matcher
from relocal_pyg.data.pairs import make_pairs
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import CheckpointError
from relocal_pyg.evaluation import evaluate
from relocal_pyg.models import ContrastMatcher, MultiGraphMatcher, MultiGraphRelocalizer
from relocal_pyg.models.checkpoint import Choice, read_choice
from relocal_pyg.training import RECOMMENDED, TrainingConfig, fit
from relocal_pyg.training.recipe import build_network
from relocal_pyg.training.validation import SELECTION_THRESHOLDS

CONFIG = TrainingConfig(batch_size=1, steps=1, validate_every=1, max_validation_pairs=6)


@pytest.fixture(scope="module")
def protocol(short_videos):
    sizes = {"train_classes": 4, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 3, "val_videos": 4, "test_videos": 2}
    return synthetic(SyntheticConfig(**sizes, **videos, **short_videos))


@pytest.mark.slow
def test_the_matcher_is_scored_as_the_harness_scores_it(protocol, tmp_path):
    """And the recommended network starts where the matcher is, so it is never behind."""
    network = dataclasses.replace(RECOMMENDED.network, hidden_channels=8, num_steps=6)
    model = build_network(network, protocol.features.dim)
    choice = fit(model, protocol, config=CONFIG, out=tmp_path, show_progress=False).choice
    pairs = make_pairs(protocol.splits["val"], split="val", protocol=protocol.name)
    pairs = pairs.sample(6)
    judged = evaluate(ContrastMatcher(), protocol, pairs, progress=False).tious
    expected = sum((judged > t).double().mean().item() for t in SELECTION_THRESHOLDS) / 7
    assert choice.matcher == pytest.approx(expected)
    assert choice.pairs == 6
    assert choice.trained >= choice.matcher
    assert not choice.use_matcher
    assert read_choice(tmp_path) == choice


def test_find_says_which_one_it_uses_and_why(protocol, tmp_path):
    MultiGraphRelocalizer(4, hidden_channels=8, num_steps=6).save(tmp_path / "best")
    model, words = choose_matcher(tmp_path)
    assert isinstance(model.model, MultiGraphRelocalizer)
    assert words.endswith(f"from {tmp_path}")

    Choice(trained=0.2, matcher=0.3, step=5, pairs=40).save(tmp_path)
    model, words = choose_matcher(tmp_path)
    assert isinstance(model.model, ContrastMatcher)
    assert "beats it on 40 validation pairs: 0.300 against 0.200" in words
    # A checkpoint named by itself is what was asked for.
    assert isinstance(choose_matcher(tmp_path / "best")[0].model, MultiGraphRelocalizer)

    Choice(trained=0.3, matcher=0.2, step=5, pairs=40).save(tmp_path)
    model, words = choose_matcher(tmp_path)
    assert isinstance(model.model, MultiGraphRelocalizer)
    assert "not behind" in words
    assert "no training beat its start" in str(Choice(0.3, 0.3, 0, 40))


def test_what_the_labels_bought_is_said_with_its_interval(tmp_path):
    paid = Choice(0.4, 0.2, 50, 60, 12, (0.1, 0.02, 0.18))
    assert paid.bought().startswith("training gained +10.0 points (95 % +2.0 to +18.0)")
    chance = Choice(0.3, 0.2, 0, 60, 12, (0.04, -0.02, 0.1))
    assert "no more than chance: its start was kept, 60 pairs of 12 videos" in chance.bought()
    few = Choice(0.3, 0.2, 0, 9, 3, (0.04, None, None))
    assert "too few videos to tell from chance" in few.bought()
    assert Choice(0.3, 0.2, 0, 9).bought() == ""
    for choice in (paid, chance, few, Choice(0.3, 0.2, 0, 9)):
        choice.save(tmp_path)
        assert read_choice(tmp_path) == choice


def test_a_spoilt_record_is_named(tmp_path):
    assert read_choice(tmp_path) is None
    sound = {"trained": 0.3, "matcher": 0.2, "step": 1, "pairs": 4, "videos": 2, "gain": None}
    for wrong in ({"trained": "much"}, {**sound, "gain": "big"}, {**sound, "gain": [1]}, [1]):
        (tmp_path / "choice.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match="choice.json"):
            read_choice(tmp_path)


def test_named_models_need_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contrast, words = choose_matcher(Path("contrast"))
    assert isinstance(contrast.model, ContrastMatcher)
    assert "no --model" not in words
    assert isinstance(choose_matcher(Path("pretrained"))[0].model, MultiGraphMatcher)
