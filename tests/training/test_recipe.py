"""The recipes as a Python user calls them."""

from __future__ import annotations

import dataclasses
import json
import warnings
from inspect import signature
from pathlib import Path

import pytest
import torch

from relocal_pyg import models
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import CheckpointError, FeatureError, UsageError
from relocal_pyg.evaluation import Evaluation, evaluate
from relocal_pyg.models import MATR
from relocal_pyg.models.network_config import BaselineConfig
from relocal_pyg.training import PAPER, PRESETS, RECOMMENDED, recipe


@pytest.fixture(scope="module")
def protocol(short_videos):
    sizes = {"train_classes": 3, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 3, "val_videos": 4, "test_videos": 4}
    return synthetic(SyntheticConfig(**sizes, **videos, **short_videos))


@pytest.mark.slow
def test_train_compare_publish_and_read_again(protocol, tmp_path):
    preset = dataclasses.replace(
        RECOMMENDED,
        network=dataclasses.replace(
            RECOMMENDED.network, num_members=1, hidden_channels=8, num_steps=6, list_length=8
        ),
        training=dataclasses.replace(RECOMMENDED.training, batch_size=2, max_validation_pairs=4),
    )
    preset = dataclasses.replace(preset, training=preset.training.with_steps(2))
    result = recipe.train(protocol, preset, tmp_path / "run", seed=3)
    assert result.calibration.startswith("no calibration: ")
    (trained,) = [recipe.Trained.load(tmp_path / "run")]
    assert (trained.seed, trained.title) == (3, f"{trained.model.title} (recommended)")
    assert [row["step"] for row in trained.history] == [0, 2]

    pairs = recipe.draw_pairs(protocol, "test", 3)
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


def keep(run: Path, **facts) -> Path:
    """A run folder as training leaves it; the weights are untrained."""
    MATR(30, hidden_channels=8, heads=2, feed_forward=8, num_layers=1).save(run / "best")
    (run / "run.json").write_text(json.dumps({"preset": "matr", "seed": 0, **facts}))
    (run / "history.json").write_text('[{"step": 0}]')
    return run


@pytest.mark.slow
def test_runs_that_differ_in_more_than_the_seed_are_told_apart(tmp_path):
    """They were averaged, or refused after the work where their seeds were the same."""
    one = keep(tmp_path / "one", settings={"a": 1})
    two = keep(tmp_path / "two", settings={"a": 1}, seed=1)
    other = keep(tmp_path / "other", settings={"a": 2}, seed=2)
    usual = recipe.Trained.load(one).title
    assert [each.title for each in recipe.load_runs([one, two])] == [usual, usual]
    runs = recipe.load_runs([one, two, other])
    assert [each.title for each in runs] == [f"{usual}, {n}" for n in ("one", "two", "other")]
    below = keep(tmp_path / "below" / "one", settings={"a": 1})
    titles = [each.title for each in recipe.load_runs([one, below])]
    assert titles == [f"{usual}, {one}", f"{usual}, {below}"]


@pytest.mark.slow
def test_a_table_keeps_no_answers_of_an_earlier_one(protocol, tmp_path, monkeypatch):
    """Those of models that were no longer in it, on other pairs, were read with its own."""
    monkeypatch.setattr(recipe, "write_report", lambda *arguments, **options: None)
    titles = ("***", "A" * 300, "run", "run!", "run 2")  # whose names of files are alike
    other = {title: models.Chance() for title in titles}
    for count, free in ((3, {"Chance": models.Chance(), "b": models.Chance()}), (2, other)):
        monkeypatch.setattr(recipe, "free_models", lambda protocol, free=free: free)
        pairs = recipe.draw_pairs(protocol, "test", count)
        comparison = recipe.compare_trained(protocol, pairs, [], max_nulls=2)
        recipe.publish(comparison, pairs, tmp_path / "table", protocol)
        kept = [Evaluation.load(each) for each in (tmp_path / "table" / "answers").iterdir()]
        assert {each.title for each in kept} == set(comparison.evaluations)
        assert {each.pairs_sha256 for each in kept} == {pairs.sha256}
    with pytest.raises(UsageError, match="another pair list"):
        recipe.publish(comparison, recipe.draw_pairs(protocol, "test"), tmp_path, protocol)


@pytest.mark.slow
def test_a_protocol_that_is_for_testing_alone_gets_its_table(protocol, tmp_path, monkeypatch):
    alone = dataclasses.replace(protocol, splits={"test": protocol.splits["test"]})
    matcher = recipe.free_models(alone)["Contrast matcher"]
    assert isinstance(matcher, models.ContrastMatcher)  # without probabilities
    monkeypatch.setattr(recipe, "free_models", lambda protocol: {"a": matcher})
    pairs = recipe.draw_pairs(alone, "test", 2)
    comparison = recipe.compare_trained(alone, pairs, [], max_nulls=1)
    assert recipe.publish(comparison, pairs, tmp_path, alone).is_file()


@pytest.mark.slow
def test_two_models_of_one_name_are_refused_before_the_work(protocol):
    twice = [recipe.Trained("a", 0, models.Chance())] * 2
    with pytest.raises(UsageError, match="a, seed 0: two trained models"):
        recipe.compare_trained(protocol, recipe.draw_pairs(protocol, "test"), twice)
    with pytest.raises(UsageError, match="a, seed 0: two trained models"):
        recipe.few_shot(
            protocol, recipe.draw_questions(protocol, "test", (1,), count=2), twice, Path("nowhere")
        )


def test_a_model_of_other_features_is_refused_before_the_work(protocol):
    wide = recipe.Trained("a", 0, models.SST(protocol.features.dim + 1, hidden_channels=4))
    with pytest.raises(FeatureError, match="a, seed 0: protocol .*channels and the model takes"):
        recipe.compare_trained(protocol, recipe.draw_pairs(protocol, "test"), [wide])
    with pytest.raises(FeatureError, match="channels and the model takes"):
        evaluate(wide.model, protocol, recipe.draw_pairs(protocol, "test"), progress=False)


@pytest.mark.parametrize("value", ["no", "maybe", 1])
def test_what_is_true_or_false_is_no_word(value):
    """Words are true: "no" trained without labels."""
    for kind, name in ((MATR, "self_supervised"), (models.SST, "rerank")):
        with pytest.raises(UsageError, match=f"{name} is {value}, true or false wanted"):
            kind(5, **{name: value})


@pytest.mark.slow
def test_answers_about_videos_that_a_model_learned_from_are_warned_of(protocol, monkeypatch):
    monkeypatch.setattr(recipe, "free_models", lambda protocol: {})
    pairs = recipe.draw_pairs(protocol, "test", 3)
    seen = frozenset(pair.reference.video_id for pair in pairs.pairs[:1])
    trained = recipe.Trained("a", 0, models.Chance(), (), None, protocol.fingerprint, seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the protocol's own split knows what it asks
        recipe.compare_trained(protocol, pairs, [trained])
    for other, asked in (("other data", pairs), (protocol.fingerprint, "fixed list")):
        asked = dataclasses.replace(pairs, split=asked) if isinstance(asked, str) else asked
        model = dataclasses.replace(trained, data_sha256=other)
        with pytest.warns(UserWarning, match=r"a, seed 0: learned from 1 of the \d videos"):
            recipe.compare_trained(protocol, asked, [model])


@pytest.mark.parametrize(
    ("file", "content"),
    [("run.json", "[]"), ("run.json", "{}"), ("run.json", '{"seed": "x"}')]
    + [("history.json", content) for content in ("[3]", '[{"loss": 1}]')],
)
def test_a_spoilt_record_of_a_run_is_one_line(tmp_path, file, content):
    run = keep(tmp_path / "run")
    (run / file).write_text(content)
    with pytest.raises(CheckpointError, match="is no record of a run"):
        recipe.Trained.load(run)


@pytest.mark.slow
def test_a_finished_run_is_read_and_another_setting_is_another_run(protocol, tmp_path, capsys):
    (system,) = [s for s in recipe.table_one(RECOMMENDED) if s.title == "Video-level LSTM"]
    first = list(recipe.train_all([system], protocol, (0,), tmp_path, steps=1))
    assert "training in" in capsys.readouterr().out
    again = list(recipe.train_all([system], protocol, (0,), tmp_path, steps=1))
    assert capsys.readouterr().out == ""
    assert again[0].history == first[0].history
    # What is said twice is one run, where the table was refused once all were trained.
    assert len(list(recipe.train_all([system], protocol, (1, 1), tmp_path, steps=1))) == 1
    assert len(list(tmp_path.iterdir())) == 2
    assert recipe.ablation(RECOMMENDED, (1, 1), (2,))[2:] == []
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


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_settings_that_no_run_can_have_are_refused_in_one_line(name):
    """Every setting of every system with values that make no sense: a network, or what is wrong."""
    small = {
        "paper": ["num_steps=6"],
        "aft-srm": ["num_steps=8", "widths=[4, 4, 4]"],
        "matr": ["heads=2", "feed_forward=8", "num_layers=1"],
    }
    preset = PRESETS[name].changed(["hidden_channels=8", *small.get(name, [])])
    shape = preset.network
    kind = getattr(models, shape.model) if isinstance(shape, BaselineConfig) else type(shape)
    parts = (kind, type(preset.training))
    settings = [each for part in parts for each in signature(part).parameters]
    refused, built = {}, set()
    for setting in set(settings) - {"in_channels"}:
        for value in ("0", "-1", "2", "NaN", "word", "0.5", "true", "[]", "[0]"):
            try:
                network = preset.changed([f"{setting}={value}"]).network
                if str(network) in built:  # settings of training change no network
                    continue
                built.add(str(network))
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
