"""The recipes as a Python user calls them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import Evaluation
from relocal_pyg.training import RECOMMENDED, recipe


@pytest.fixture(scope="module")
def protocol():
    sizes = {"train_classes": 3, "val_classes": 2, "test_classes": 2}
    return synthetic(SyntheticConfig(**sizes, train_videos=3, val_videos=4, test_videos=4))


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
    (system,) = [s for s in recipe.table_one(RECOMMENDED) if s.title == "Video-level"] or [
        recipe.table_one(RECOMMENDED)[-1]
    ]
    first = list(recipe.train_all([system], protocol, (0,), tmp_path, steps=1))
    assert "training in" in capsys.readouterr().out
    again = list(recipe.train_all([system], protocol, (0,), tmp_path, steps=1))
    assert capsys.readouterr().out == ""
    assert again[0].history == first[0].history
    list(recipe.train_all([system], protocol, (1,), tmp_path, steps=1))
    assert len(list(tmp_path.iterdir())) == 2
    assert recipe.fingerprint(protocol) != recipe.fingerprint(
        dataclasses.replace(protocol, splits={**protocol.splits, "val": ()})
    )


def test_an_unknown_split_is_refused(protocol):
    with pytest.raises(UsageError, match="no split 'tset': train"):
        recipe.draw_pairs(protocol, "tset")
