from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.apps import cli
from relocal_pyg.apps.cli import COMMANDS, main
from relocal_pyg.apps.cli.options import TYPED, DataOptions, describe, load_protocol, restore
from relocal_pyg.apps.cli.train import _data_of, choose_preset
from relocal_pyg.datasets.synthetic import SyntheticConfig
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.evaluation import plots
from relocal_pyg.formats.clips import clock
from relocal_pyg.models import Chance, ContrastMatcher, MultiGraphRelocalizer
from relocal_pyg.training import recipe
from relocal_pyg.training.recipe import slug


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_synthetic, short_videos) -> Path:
    """A small data set in the layout of people's own."""
    folder = tmp_path_factory.mktemp("own")
    classes = {"train_classes": 5, "val_classes": 2, "test_classes": 2}
    videos = {"train_videos": 6, "val_videos": 3, "test_videos": 3}
    write_synthetic(folder, SyntheticConfig(**classes, **videos, **short_videos))
    return folder


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their pictures, which the tests of pages and of recipes draw."""
    monkeypatch.setattr(plots, "svg_text", lambda figure: "<svg/>")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that need no training, in place of all."""
    models = {"Contrast matcher": ContrastMatcher(), "Chance": Chance()}
    monkeypatch.setattr(recipe, "free_models", lambda protocol: models)


def own(root: Path) -> list[str]:
    return ["--protocol", "custom", "--root", str(root), "--unseen-classes", "2"]


@pytest.mark.slow
def test_train_evaluate_and_find(root: Path, tmp_path: Path, small_presets: None, capsys, request):
    run = tmp_path / "run"
    assert main(["train", str(run), *own(root), "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "best validation score" in printed
    assert json.loads((run / "run.json").read_text())["preset"] == "recommended"

    assert main(["evaluate", str(run), "--limit", "2"]) == 0
    printed = capsys.readouterr().out
    for name in ("recommended", "Contrast matcher", "Whole reference", "Proposal oracle"):
        assert name in printed
    for split in ("test_seen", "test_unseen"):
        folder = run / "evaluation" / split
        results = json.loads((folder / "results.json").read_text())
        assert results["pairs"] == 2
        assert {file.name for file in folder.iterdir()} == {
            "answers",
            "manifest.json",
            "nulls.json",
            "pairs.json",
            "report.html",
            "results.json",
            "results.md",
            "results.tex",
        }

    again = ["evaluate", str(run), "--limit", "2", "--split", "test_seen"]
    request.getfixturevalue("few")
    assert main(again) == 0  # what it wrote before, it writes again
    capsys.readouterr()

    video = sorted(json.loads((root / "annotations.json").read_text())["database"])[0]
    place = f"{root / 'features.h5'}::{video}"
    found = [tmp_path / "found.json", tmp_path / "found.csv"]
    arguments = ["find", place, place, "--model", str(run), "--query-start", "4"]
    arguments += ["--query-end", "9", "--seconds-per-step", "0.5", "--top-k", "3"]
    assert main([*arguments, "--json", str(found[0]), "--csv", str(found[1])]) == 0
    assert "Multi-graph matcher" in capsys.readouterr().out
    moments = json.loads(found[0].read_text())["moments"]
    assert 1 <= len(moments) <= 3
    with found[1].open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["start"]) for row in rows] == [moment["start"] for moment in moments]


@pytest.mark.slow
def test_a_system_of_others_is_trained_started_from_and_found_with(root, tmp_path, few, capsys):
    alone, tuned = tmp_path / "alone", tmp_path / "tuned"
    small = ["hidden_channels=8", "heads=2", "feed_forward=8", "num_layers=1", "batch_size=2"]
    options = [*own(root), "--preset", "matr", "--steps", "1", "--set", *small]
    options += ["max_validation_pairs=3"]
    assert main(["train", str(alone), *options, "self_supervised=true"]) == 0
    assert main(["train", str(tuned), *options, "--start", str(alone)]) == 0
    record = json.loads((tuned / "run.json").read_text())
    assert record["settings"]["self_supervised"] is False
    assert len(record["start"]) == 64
    capsys.readouterr()
    assert main(["evaluate", str(tuned), "--limit", "3", "--split", "test_seen"]) == 0
    assert "MATR (matr)" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "no"), *options, "fusion=all"]) == 2
    assert "no such fusion" in capsys.readouterr().err
    other = ["train", str(tmp_path / "no"), *own(root), "--steps", "1", "--start", str(alone)]
    assert main(other) == 2
    assert "weights of the same network" in capsys.readouterr().err


@pytest.mark.slow
def test_find_without_a_model_finds_a_planted_clip(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(60, 16))
    pattern = rng.normal(size=16)
    reference[30:40] += 5 * pattern
    query = rng.normal(size=(10, 16)) + 5 * pattern
    np.save(tmp_path / "query.npy", query)
    np.save(tmp_path / "reference.npy", reference)
    arguments = [str(tmp_path / "query.npy"), str(tmp_path / "reference.npy")]
    assert main(["find", *arguments, "--seconds-per-step", "2", "--top-k", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Multi-graph matcher, pretrained (simulated worlds" in printed
    first = printed.splitlines()[-1].split()
    assert [float(first[1]), float(first[2])] == [60.0, 80.0]


@pytest.mark.slow
def test_evaluate_by_a_fixed_list_by_consistency_and_by_episodes(
    root: Path, tmp_path: Path, few: None, capsys
):
    options = [*own(root), "--split", "test_seen", "--limit", "4"]
    first, again, episodes = (tmp_path / name for name in ("first", "again", "episodes"))
    assert main(["evaluate", *options, "--out", str(first), "--consistency"]) == 0
    printed = capsys.readouterr().out
    assert "Disagreement of similarity by step and by clip: " in printed
    assert "more ahead of Contrast matcher" in printed
    fixed = str(first / "test_seen" / "pairs.json")
    asked = ["evaluate", *options, "--out", str(again), "--pairs", fixed]
    assert main(asked) == 2
    assert "--pairs is a list of its own: leave --split out" in capsys.readouterr().err
    assert main([each for each in asked if each not in ("--split", "test_seen")]) == 0
    results = [
        json.loads((folder / "test_seen" / "results.json").read_text()) for folder in (first, again)
    ]
    scores = [[(row["title"], row["scores"]) for row in each["rows"]] for each in results]
    assert scores[0] == scores[1]
    capsys.readouterr()
    options[options.index("test_seen")] = "test_unseen"
    options += ["--few-shot", "1", "--instances", "superset"]
    assert main(["evaluate", *options, "--out", str(episodes), "--pairs", fixed]) == 2
    assert "leave out --pairs" in capsys.readouterr().err
    assert main(["evaluate", *options, "--out", str(episodes)]) == 0
    assert "| 1 | superset | 4 | Chance |" in capsys.readouterr().out
    rows = json.loads((episodes / "test_unseen" / "few_shot.json").read_text())
    kept = json.loads((episodes / "test_unseen" / "episodes-superset-1.json").read_text())
    assert kept["sha256"] in {row["sha256"] for row in rows}


@pytest.mark.slow
def test_ablate_goes_on_where_it_stopped(
    root: Path, tmp_path: Path, small_presets: None, few: None, capsys, monkeypatch
):
    arguments = [*own(root), "--steps", "1", "--layers", "1", "--graphs", "1", "2"]
    arguments += ["--limit", "1", "--split", "test_seen"]
    assert main(["ablate", str(tmp_path / "one"), *arguments]) == 0
    first = capsys.readouterr().out
    assert "n=1, k=1" in first
    assert "n=1, k=2" in first
    # One cell done, then interrupted: the same line finishes the grid.
    again = tmp_path / "two"
    only_one = [*arguments[:-6], "1", *arguments[-4:]]
    assert only_one.count("2") == 1
    with monkeypatch.context() as patch:
        patch.setattr("relocal_pyg.apps.cli.train.print_table", lambda *_, **__: None)
        assert main(["ablate", str(again), *only_one]) == 0
    capsys.readouterr()
    assert main(["ablate", str(again), *arguments]) == 0
    assert capsys.readouterr().out.count("training in") == 2  # with its CNN

    def scores(folder: Path) -> list[object]:
        rows = json.loads((folder / "test_seen" / "results.json").read_text())["rows"]
        return [(row["title"], row["scores"]) for row in rows]

    assert scores(tmp_path / "one") == scores(again)


@pytest.mark.slow
def test_tables_of_two_grids_do_not_mix(root: Path, tmp_path: Path, few: None, monkeypatch):
    monkeypatch.setattr(recipe, "train_all", lambda *_, **__: [])
    arguments = ["ablate", str(tmp_path / "out"), *own(root), "--limit", "4", "--split"]
    for grid in ("layers-graphs", "weights"):
        assert main([*arguments, "test_seen", "--grid", grid]) == 0
    made = {file.parent.name for file in (tmp_path / "out").glob("*/results.json")}
    assert made == {"test_seen", "test_seen-weights"}


@pytest.mark.slow
def test_propose_writes_a_released_format_list(root: Path, tmp_path: Path, capsys):
    target = tmp_path / "proposals.txt"
    assert main(["propose", str(target), *own(root), "--steps", "5"]) == 0
    from relocal_pyg.data.proposals import read_proposal_list

    records = read_proposal_list(target)
    videos = json.loads((root / "annotations.json").read_text())["database"]
    assert set(records) <= set(videos)
    assert f"{len(records)} videos" in capsys.readouterr().out


@pytest.mark.slow
def test_check_reports_each_bad_record(root: Path, tmp_path: Path, capsys):
    annotations = json.loads((root / "annotations.json").read_text())
    video = sorted(annotations["database"])[0]
    annotations["database"][video]["annotations"][0]["segment"] = [9.0, 3.0]
    bad = tmp_path / "annotations.json"
    bad.write_text(json.dumps(annotations))
    report = tmp_path / "report.json"
    features = str(root / "features.h5")
    assert main(["check", features, str(bad), "--report", str(report)]) == 0
    assert video in capsys.readouterr().out
    assert report.is_file()
    whole = json.loads(report.read_text())
    assert main(["check", features, str(bad), "--strict", "--report", str(report)]) == 2
    assert json.loads(report.read_text()) == whole[:1]
    message = capsys.readouterr().err
    assert message.startswith("relocal: ")
    assert video in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["find", "missing.npy", "missing.npy"], "missing.npy"),
        (["find", "clip.avi2", "clip.avi2"], "clip.avi2"),
        (["evaluate"], "--out"),
        (["evaluate", "nowhere"], "nowhere"),
        (["train", "out", "--protocol", "custom"], "--root"),
        (["train", "out", "--protocol", "anet-vrl", "--root", "nowhere"], "nowhere"),
        (["check", "nowhere.h5", "nowhere.json"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.slow
def test_wrong_usage_is_code_2(capsys):
    assert main(["fnd"]) == 2
    assert main(["train"]) == 2
    assert main(["--help"]) == 0


def test_range_outside_the_query_is_refused(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(8, 4)))
    place = str(tmp_path / "a.npy")
    assert main(["find", place, place, "--query-start", "20"]) == 2
    assert "not inside" in capsys.readouterr().err


def test_a_pickle_is_not_run(tmp_path, capsys):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    np.save(tmp_path / "a.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    assert main(["find", str(tmp_path / "a.npy"), str(tmp_path / "a.npy")]) == 2
    assert not marker.exists()


def test_interrupts_and_failed_runs_have_their_codes(monkeypatch, capsys):
    from relocal_pyg.errors import RunError

    def raise_interrupt() -> None:
        """Stop."""
        raise KeyboardInterrupt

    def fail() -> None:
        """Fail."""
        raise RunError("no luck")

    spoilt = {"demo": raise_interrupt, "check": fail}
    monkeypatch.setattr(cli, "command", spoilt.__getitem__)
    assert main(["demo"]) == 130
    assert main(["check"]) == 1
    assert "no luck" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fills_its_lines(name, capsys, monkeypatch):
    """A line ends where the next word does not fit, not where the source has a new line."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    # The parser's box: what is said of an option begins at one column.
    lines = [line[2:-2] for line in capsys.readouterr().out.splitlines() if line[:1] == "\u2502"]
    said = [line[22:].rstrip() if line.startswith(" " * 22) else "" for line in lines]
    ragged = [
        (line, after)
        for line, after in itertools.pairwise(said)
        if line and after and len(line) + 1 + len(after.split()[0]) <= 54
    ]
    assert not ragged


def test_help_does_not_import_torch():
    code = "import sys; from relocal_pyg.apps.cli import main; main(['--help']); "
    code += "main(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_options_survive_the_run_record(tmp_path: Path):
    options = DataOptions(protocol="custom", root=tmp_path, unseen_classes=3)
    plain = json.loads(json.dumps(describe(options)))
    assert restore(plain, tmp_path / "run.json") == options
    for wrong in ({"foo": 1}, {"features": 5}, {"background": ["salto"]}, {"protocol": "evil"}):
        with pytest.raises(CheckpointError, match=f"run.json: {next(iter(wrong))} .* is no data"):
            restore({**plain, **wrong}, tmp_path / "run.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": Path("a.h5")}, "--features needs --protocol: custom"),
        ({"strict": True}, "--strict needs --protocol"),
        ({"protocol": "synthetic", "seconds_per_step": 0.5}, "has no --seconds-per-step"),
        ({"protocol": "anet-vrl", "root": Path(), "split_seed": 1}, "has no --split-seed"),
    ],
)
def test_what_a_protocol_does_not_heed_is_refused(options, words):
    """People's own features without --protocol were left for synthetic ones, in silence."""
    with pytest.raises(UsageError, match=words):
        load_protocol(DataOptions(**options))


def test_own_features_are_subsampled(root: Path):
    whole, half = (
        load_protocol(DataOptions(protocol="custom", root=root, subsample=number))
        for number in (1, 2)
    )
    one, other = (each.splits["train"][0] for each in (whole, half))
    assert torch.equal(half.reference(other), whole.reference(one)[::2])


def test_mistakes_are_said_before_anything_is_trained(root, tmp_path, monkeypatch, capsys):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(recipe, "train_all", never)
    (tmp_path / "list.csv").write_text("query,reference\n")
    data = [*own(root), "--out", str(tmp_path / "out")]
    for words, told in (
        (["--split", "nope"], "nope"),
        (["--pairs", str(tmp_path / "list.csv")], "list.csv"),
        (["--few-shot", "50"], "50 other videos"),
    ):
        assert main(["evaluate", "--models", "all", *data, *words]) == 2
        assert told in capsys.readouterr().err
    cells = ["ablate", str(tmp_path / "cells"), *own(root)]
    for words, told in (
        (["--split", "nope"], "nope"),
        (["--set", "num_layers=2"], "--set num_layers=2 is what --grid layers-graphs varies"),
        (["--grid", "weights", "--set", "weight=laplacian"], "weight=laplacian is what --grid"),
    ):
        assert main([*cells, *words]) == 2
        assert told in capsys.readouterr().err
    both = ["--start", str(tmp_path), "--from-scratch"]
    assert main(["train", str(tmp_path / "run"), *own(root), *both]) == 2
    assert "leave one out" in capsys.readouterr().err


def test_options_that_are_typed_go_before_those_of_the_run(tmp_path: Path):
    used = DataOptions(protocol="custom", features=tmp_path / "a.h5", unseen_classes=1, clip=True)
    (tmp_path / "run.json").write_text(json.dumps({"data": describe(used)}))
    for words, wanted in (
        ((), used),
        (("--unseen-classes", "0"), dataclasses.replace(used, unseen_classes=0)),
        (
            ("--unseen_classes=0", "--no-clip"),
            dataclasses.replace(used, unseen_classes=0, clip=False),
        ),
    ):
        before = TYPED.set(("evaluate", *words))
        assert _data_of(tmp_path, DataOptions()) == wanted
        TYPED.reset(before)


def test_a_run_is_asked_about_its_own_data_but_for_what_is_said(tmp_path: Path):
    run, features = tmp_path / "run", tmp_path / "run" / "features.h5"
    run.mkdir()
    used = DataOptions(protocol="custom", features=tmp_path / "gone" / "features.h5", clip=True)
    (run / "run.json").write_text(json.dumps({"data": describe(used)}))
    said = DataOptions(strict=True)
    assert _data_of(run, said) == dataclasses.replace(used, strict=True)
    features.touch()  # of "train --videos", in a run that was moved
    expected = dataclasses.replace(used, features=features, strict=True)
    assert _data_of(run, said) == expected


@pytest.mark.slow
def test_evaluate_by_a_list_of_others(root: Path, tmp_path: Path, few: None, capsys):
    ids = sorted(json.loads((root / "annotations.json").read_text())["database"])[:3]
    rows = [f"{a},4,12,{b},3,9,walk" for a, b in zip(ids, ids[1:], strict=False)]
    head = "query,query_start,query_end,reference,start,end,label"
    (tmp_path / "list.csv").write_text("\n".join([head, *rows]))
    options = [*own(root), "--pairs", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *options]) == 0
    assert "split fixed list: N = 2 pairs from 2 videos" in capsys.readouterr().out
    assert f"query {ids[0]}@4-12" in (tmp_path / "out" / "fixed list" / "report.html").read_text()


def test_synthetic_seed_changes_the_data():
    one, two = (load_protocol(DataOptions(split_seed=seed)) for seed in (0, 1))
    item = one.splits["test"][0]
    assert not torch.equal(one.reference(item)[:5], two.reference(two.splits["test"][0])[:5])


def test_small_pieces():
    assert slug("AFT+SRM (reconstruction)") == "aft-srm-reconstruction"
    assert clock(59.9996) == "0:01:00.000"
    preset = choose_preset("paper", 7, "bf16-mixed")
    assert (preset.training.steps, preset.training.validate_every) == (7, 7)
    assert preset.training.precision == "bf16-mixed"


def test_a_checkpoint_of_other_features_is_refused(tmp_path: Path, capsys):
    model = MultiGraphRelocalizer(5, hidden_channels=4, num_steps=4)
    model.save(tmp_path / "model")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(8, 4)))
    place = str(tmp_path / "a.npy")
    assert main(["find", place, place, "--model", str(tmp_path / "model")]) == 2
    assert "channels" in capsys.readouterr().err
