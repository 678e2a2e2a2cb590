"""The recipes as a Python user calls them."""

from __future__ import annotations

import dataclasses
import json
from inspect import signature

import pytest
import torch

from relocal_pyg import models
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import Evaluation
from relocal_pyg.models import MATR
from relocal_pyg.models.network_config import BaselineConfig
from relocal_pyg.training import PAPER, PRESETS, RECOMMENDED, recipe


@pytest.fixture(scope="module")
def protocol():
    sizes = {"train_classes": 3, "val_classes": 2, "test_classes": 2}
    return synthetic(SyntheticConfig(**sizes, train_videos=3, val_videos=4, test_videos=4))


@pytest.mark.slow
def test_train_compare_publish_and_read_again(protocol, tmp_path):
    preset = dataclasses.replace(
        RECOMMENDED,
        network=dataclasses.replace(RECOMMENDED.network, hidden_channels=8, num_steps=6),
        training=dataclasses.replace(RECOMMENDED.training, batch_size=2, max_validation_pairs=4),
    )
    preset = dataclasses.replace(preset, training=preset.training.with_steps(2))
    result = recipe.train(protocol, preset, tmp_path / "run", seed=3)
    assert result.calibration.startswith("no calibration: ")
    (trained,) = [recipe.Trained.load(tmp_path / "run")]
    assert (trained.seed, trained.title) == (3, f"{trained.model.title} (recommended)")
    assert [row["step"] for row in trained.history] == [0, 2]

    pairs = recipe.draw_pairs(protocol, "test", 5)
    comparison = recipe.compare_trained(protocol, pairs, [trained], max_nulls=2)
    report = recipe.publish(comparison, pairs, tmp_path / "table", protocol, [trained])
    titles = {row.title for row in comparison.rows}
    free = (
        "Contrast matcher",
        "Contrast matcher, finer windows",
        "Mean along the diagonal",
        "Multi-graph matcher (pretrained)",
    )
    assert {*free, "Frame-level DP", "Chance", trained.title} <= titles
    for row in comparison.rows:
        matcher = row.title in ("Contrast matcher", "Proposal oracle")
        assert (row.gain is None) == matcher
    assert "training of" in report.read_text().lower()
    assert "training changed" in report.read_text() or "training gained" in report.read_text()
    assert trained.choice == result.choice
    for title, (evaluation, *_) in comparison.evaluations.items():
        folder = tmp_path / "table" / "answers" / recipe.slug(title)
        if evaluation.seed is not None:
            folder = folder.with_name(f"{folder.name}-seed3")
        assert Evaluation.load(folder) == evaluation
    judged = {row.title for row in comparison.presence if row.by == "probability"}
    assert "Multi-graph matcher (pretrained)" in judged  # without labels
    nulls = json.loads((tmp_path / "table" / "nulls.json").read_text())
    assert len(nulls["pairs"]) == 2
    asked = {pair.query.item_id for pair in pairs.pairs}
    assert {query for query, _ in nulls["pairs"]} <= asked


def test_a_finished_run_is_read_and_another_setting_is_another_run(protocol, tmp_path, capsys):
    (system,) = [s for s in recipe.table_one(RECOMMENDED) if s.title == "Video-level LSTM"]
    first = list(recipe.train_all([system], protocol, (0,), tmp_path, steps=1))
    assert "training in" in capsys.readouterr().out
    again = list(recipe.train_all([system], protocol, (0,), tmp_path, steps=1))
    assert capsys.readouterr().out == ""
    assert again[0].history == first[0].history
    list(recipe.train_all([system], protocol, (1,), tmp_path, steps=1))
    assert len(list(tmp_path.iterdir())) == 2
    fewer = dataclasses.replace(protocol, splits={**protocol.splits, "val": ()})
    assert protocol.fingerprint != fewer.fingerprint


@pytest.mark.slow
def test_a_system_starts_where_another_ended(protocol, tmp_path, monkeypatch):
    small = {"hidden_channels": 8, "heads": 2, "feed_forward": 8, "num_layers": 1}
    tuned = recipe.table_one(RECOMMENDED)[-1]
    training = dataclasses.replace(tuned.training.with_steps(1), max_validation_pairs=2)
    alone, tuned = (
        dataclasses.replace(
            each, build=lambda width, own=own: MATR(width, self_supervised=own, **small),
            training=training,
        )
        for each, own in ((tuned.start, True), (tuned, False))
    )  # fmt: skip
    starts = []
    fit = recipe.fit

    def watched(model, *given, **named):
        starts.append({name: weights.clone() for name, weights in model.state_dict().items()})
        return fit(model, *given, **named)

    monkeypatch.setattr(recipe, "fit", watched)
    tuned = dataclasses.replace(tuned, start=alone)
    list(recipe.train_all([tuned], protocol, (0,), tmp_path))
    (before,) = recipe.train_all([alone], protocol, (0,), tmp_path)  # was trained on the way
    assert len(starts) == 2
    for name, weights in before.model.state_dict().items():
        assert torch.equal(starts[1][name], weights)


def test_settings_are_changed_by_name_and_kind():
    changed = PAPER.changed(["num_layers=3", "ks=[1,4]", "graph_conv=false", "steps=7"])
    assert (changed.network.num_layers, changed.network.ks) == (3, (1, 4))
    assert changed.network.graph_conv is False
    assert changed.training.steps == 7
    assert PAPER.changed(["learning_rate=1"]).training.learning_rate == 1.0
    matr = recipe.build_network(
        PRESETS["matr"].changed(["fusion=none", "before=0", "hidden_channels=16"]).network, 5
    )
    assert isinstance(matr, MATR)
    assert matr.join is None
    for wrong, words in (
        ("num_layers", "NAME=VALUE"),
        ("layers=3", "no setting 'layers': num_steps, "),
        ("num_layers=two", "a value like 2"),
        ("graph_conv=1", "a value like True"),
    ):
        with pytest.raises(UsageError, match=words):
            PAPER.changed([wrong])
    with pytest.raises(UsageError, match="MATR: the settings do not fit it .*fusoin"):
        recipe.build_network(PRESETS["matr"].changed(["fusoin=none"]).network, 5)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_that_no_run_can_have_are_refused_in_one_line(name):
    """Every setting of every system with values that make no sense: a network, or what is wrong."""
    small = {"paper": ["hidden_channels=8", "num_steps=6"], "recommended": ["hidden_channels=8"]}
    preset = PRESETS[name].changed(small.get(name, []))
    shape = preset.network
    kind = getattr(models, shape.model) if isinstance(shape, BaselineConfig) else type(shape)
    parts = (kind, type(preset.training))
    settings = [each for part in parts for each in signature(part).parameters]
    refused = {}
    for setting in set(settings) - {"in_channels"}:
        for value in ("0", "-1", "2", "NaN", "word", "0.5", "true", "[]", "[0]"):
            try:
                network = preset.changed([f"{setting}={value}"]).network
                model = recipe.build_network(network, 5, from_scratch=True)
            except UsageError as error:
                refused[setting] = str(error)
            else:
                pair = torch.rand(3, 5), torch.rand(12, 5)
                answer = model.eval().rank(*pair, torch.tensor([[2.0, 6.0]]))
                assert torch.isfinite(answer.scores).all()
    assert {"batch_size", "learning_rate", "precision", "validate_every"} < set(refused)
    assert not any("\n" in text for text in refused.values())


def test_an_unknown_split_is_refused(protocol):
    with pytest.raises(UsageError, match="no split 'tset': train"):
        recipe.draw_pairs(protocol, "tset")
