"""The bench of accuracy at a tiny size: rows are made once, and compared pair by pair."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.accuracy import __main__ as bench  # noqa: E402
from benchmarks.accuracy import presence, recipes, rivals, rows, sets, table  # noqa: E402
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic  # noqa: E402
from relocal_pyg.errors import UsageError  # noqa: E402
from relocal_pyg.models import MultiGraphMatcher  # noqa: E402


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, short_videos: dict[str, int]) -> None:
    """Few classes, few videos, one step of training."""
    classes = {"train_classes": 3, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 4, "val_videos": 3, "test_videos": 3}
    config = SyntheticConfig(**classes, **videos, **short_videos)
    monkeypatch.setattr(sets, "SyntheticConfig", lambda: config)
    real = recipes.systems

    def small(width: int) -> MultiGraphMatcher:
        return MultiGraphMatcher(num_members=1, hidden_channels=8, num_steps=6)

    def short() -> dict:
        system = real()["recommended"]
        training = dataclasses.replace(
            system.training, steps=1, batch_size=1, max_validation_pairs=2
        )
        return {"recommended": dataclasses.replace(system, build=small, training=training)}

    monkeypatch.setattr(recipes, "systems", short)
    monkeypatch.setattr(bench, "systems", short)


@pytest.mark.slow
def test_every_row_is_tested_once_and_lands_in_the_table(tiny, tmp_path, monkeypatch, capsys):
    wanted = {"sets": ("synthetic",), "recipes": ("recommended",), "sizes": (2,), "seeds": (0, 1)}
    bench.main(tmp_path, **wanted)
    _, _, printed = capsys.readouterr().out.partition(table.HEADER)
    monkeypatch.setattr(rows, "evaluate", None)  # a second look at a test split would fail
    bench.main(tmp_path, **wanted)
    assert capsys.readouterr().out.partition(table.HEADER)[2] == printed

    lines = json.loads((tmp_path / "table.json").read_text())["lines"]
    assert [(line["size"], line["seeds"]) for line in lines] == [("all", 2), ("2", 2)]
    for line in lines:
        for (trained, *_), (matcher, *_), (gain, low, high) in zip(
            line["trained"], line["matcher"], line["gain"], strict=True
        ):
            assert gain == pytest.approx(trained - matcher)
            assert low <= gain <= high


@pytest.mark.slow
def test_a_system_without_training_has_its_row(tiny, tmp_path):
    bench.main(tmp_path, sets=("synthetic",), recipes=("Frame-level DP",), seeds=(0,))
    cell = rows.Cell("synthetic", "Frame-level DP", None, 0)
    _, answered, matcher = next(rows.answers(cell, tmp_path))
    assert answered.title == "Frame-level DP"
    assert answered.pairs_sha256 == matcher.pairs_sha256
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_recipes_are_compared_pair_by_pair_on_the_seeds_they_share(tiny, tmp_path, capsys):
    sets_of = {"sets": ("synthetic",)}
    bench.main(tmp_path, **sets_of, recipes=("Cosine of means",), seeds=(0, 1))
    beside = json.loads((tmp_path / "table.json").read_text())["rivals"]
    assert {line["recipe"] for line in beside} == {
        *("Contrast matcher", "Whole reference", "Centre half", "Random moment", "Proposal oracle")
    }
    assert all(line["lead"][1][0] <= 0 for line in beside if line["recipe"] == "Proposal oracle")
    names = ("Frame-level DP", "Cosine of means")
    cells = [rows.Cell("synthetic", name, None, seed) for name in names for seed in (0, 1)]
    assert rows.run(cells[0], None, tmp_path)
    made = [cell for cell in cells if (cell.folder(tmp_path) / "row.json").is_file()]
    assert len(made) == 3
    (line,) = rivals.rival_lines(made, tmp_path, "Frame-level DP")
    assert (line.recipe, line.seeds) == ("Cosine of means", 1)
    ((_, ours, _),) = rows.answers(cells[0], tmp_path)
    ((_, theirs, _),) = rows.answers(cells[2], tmp_path)
    for place, threshold in enumerate(table.THRESHOLDS):
        wins = [
            (a.tious[0] > threshold) - (b.tious[0] > threshold)
            for a, b in zip(ours.records, theirs.records, strict=True)
        ]
        lead, low, high = line.lead[place]
        assert lead == pytest.approx(sum(wins) / len(wins))
        assert lead == pytest.approx(line.first[place] - line.other[place])
        assert low <= lead <= high
    bench.main(tmp_path, **sets_of, recipes=names, seeds=(0,))
    assert rivals.header("Frame-level DP") in capsys.readouterr().out


def test_a_tiou_at_a_threshold_is_not_above_it(tmp_path, monkeypatch):
    exact = SimpleNamespace(
        tious=torch.tensor([0.3, 0.5, 0.7, 1.0], dtype=torch.float64), clusters=list("abcd")
    )
    exact.pairs_sha256 = ""
    for module in (table, rivals):
        monkeypatch.setattr(module, "answers", lambda cell, out: [("test", exact, exact)])
    cells = [rows.Cell("synthetic", recipe, None, 0) for recipe in ("one", "other")]
    assert [value for value, *_ in table.lines(cells[:1], tmp_path)[0].trained] == [0.75, 0.5, 0.25]
    assert rivals.rival_lines(cells, tmp_path, "one")[0].other == [0.75, 0.5, 0.25]


@pytest.mark.slow
def test_references_without_the_action_make_a_second_table(tiny, tmp_path, capsys):
    bench.main(tmp_path, sets=("synthetic",), recipes=("recommended",), seeds=(0, 1), nulls=True)
    assert presence.HEADER in capsys.readouterr().out
    lines = json.loads((tmp_path / "table.json").read_text())["presence"]
    # Too few validation pairs for probabilities.
    ways = {("trained", "score"), ("matcher", "score"), ("Length of the reference", "length")}
    assert {(line["who"], line["by"]) for line in lines} == ways
    for line in lines:
        first = rows.Cell("synthetic", "recommended", None, 0)
        split, trained, matcher = next(rows.answers(first, tmp_path))
        assert line["split"] == split
        if line["who"] == "matcher":
            wins = [
                (held.scores[0] > null.score) + (held.scores[0] == null.score) / 2
                for held in matcher.records
                for null in matcher.nulls
            ]
            assert line["auroc"][0] == pytest.approx(sum(wins) / len(wins))
        assert len(line["auroc"]) == 2


def test_a_size_limits_each_class():
    protocol = synthetic(SyntheticConfig(train_classes=3, train_videos=4))
    most = Counter(item.label for item in protocol.splits["train"])
    limited = sets.with_items(protocol, 2, seed=0)
    counts = Counter(item.label for item in limited.splits["train"])
    assert counts == {label: min(2, number) for label, number in most.items()}
    assert set(limited.splits["train"]) <= set(protocol.splits["train"])
    assert limited.splits["test"] == protocol.splits["test"]
    assert sets.with_items(protocol, max(most.values()), seed=0) is None


@pytest.mark.slow
def test_sparse_features_are_mostly_zero():
    protocol = sets.load("sparse", 0, None, None)
    item = protocol.splits["train"][0]
    rows_of = protocol.features.read(item.video_id, *item.context)
    assert (rows_of >= 0).all()
    assert torch.count_nonzero(rows_of) < 0.3 * rows_of.numel()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="mystery"):
        bench.main(tmp_path, sets=("mystery",))
    with pytest.raises(UsageError, match="--data"):
        sets.load("anet", 0, None, tmp_path)


@pytest.mark.slow
def test_every_recipe_builds():
    for name, system in recipes.systems().items():
        assert system.build(8).in_channels in (None, 8), name
    assert table.HEADER.count("\n") == 1


@pytest.mark.slow
def test_short_budgets_change_training_alone_and_matr_reads_fewer_steps():
    systems = recipes.systems()
    for name in ("MATR", "MATR, pretrained and tuned", "recommended", recipes.TUNED):
        cut = recipes.short(systems[name], steps=40, pairs=20)
        assert (cut.title, cut.training.steps, cut.training.max_validation_pairs) == (name, 40, 10)
        assert cut.training.warmup == (2 if "MATR" in name else 8)
        ours, theirs = (system.build(8).config() for system in (cut, systems[name]))
        assert ours == {**theirs, **({"max_steps": 128} if "MATR" in name else {})}
    before = recipes.short(systems["MATR, pretrained and tuned"], steps=40, pairs=20).start
    assert before is not None
    assert before.build(8).config()["self_supervised"]


@pytest.mark.slow
def test_the_tuned_matcher_starts_at_the_weights_of_the_package():
    start = recipes.systems()[recipes.TUNED].build(8).state_dict()
    given = recipes.FREE["Pretrained matcher"]().state_dict()
    assert all(torch.equal(start[name], value) for name, value in given.items())
