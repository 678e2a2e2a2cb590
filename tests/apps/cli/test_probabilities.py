"""Probabilities on the command line: find, search, evaluate."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from relocal_pyg.apps.cli import main
from relocal_pyg.io.record import sha256_file
from relocal_pyg.io.write import write_json
from relocal_pyg.models import MultiGraphMatcher
from relocal_pyg.models.calibrated import Confidence, write_confidence

CHANNELS = 8


@pytest.fixture
def run(tmp_path: Path, constant: Callable[..., Confidence]) -> Path:
    """A run whose weights are sure of moments at 0.7 and doubt references at 0.25."""
    model = MultiGraphMatcher(hidden_channels=16, num_steps=4)
    model.save(tmp_path / "run" / "best")
    weights = sha256_file(tmp_path / "run" / "best" / "model.safetensors")
    write_confidence(tmp_path / "run", weights, constant(0.25, 0.7), constant(0.9, 0.6))
    return tmp_path / "run"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name in ("a", "b"):
            rows = rng.normal(size=(50, CHANNELS)).astype(np.float32)
            file.create_dataset(f"{name}/c3d_features", data=rows)
    return tmp_path / "features.h5"


def arguments(features: Path) -> list[str]:
    return [f"{features}::a", f"{features}::b", "--query-start", "5", "--query-end", "15"]


@pytest.mark.slow
def test_find_gives_probabilities_and_says_when_it_doubts(
    run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]
    assert main(["find", *arguments(features), "--model", str(run), *files]) == 0
    printed = capsys.readouterr().out
    assert "probability" in printed.splitlines()[2]
    assert printed.splitlines()[3].endswith("0.70")
    assert "probably not in this video: probability 0.25, below 0.5; the best guesses:" in printed
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["presence"] == pytest.approx(0.25)
    assert content["probably_there"] is False
    assert [m["probability"] for m in content["moments"]] == pytest.approx(
        [0.7] * len(content["moments"])
    )
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert {round(float(row["probability"]), 6) for row in csv.DictReader(stream)} == {0.7}


def test_the_matcher_that_validation_preferred_has_its_own(
    run: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(run / "choice.json", {"trained": 0.1, "matcher": 0.2, "step": 5, "pairs": 20})
    assert main(["find", *arguments(features), "--model", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "Contrast matcher, not" in printed
    assert "probability that the reference holds it: 0.90" in printed


@pytest.mark.slow
def test_without_a_calibration_chance_on_the_reference_judges(
    run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "confidence.json").unlink()
    for model in (["--model", str(run)], []):
        assert main(["find", *arguments(features), *model, "--json", str(tmp_path / "a.json")]) == 0
        assert "probab" in capsys.readouterr().out.splitlines()[1]
        content = json.loads((tmp_path / "a.json").read_text())
        assert content["probably_there"] is (content["presence"] >= 0.5)
        assert all(m["probability"] <= content["presence"] for m in content["moments"])


@pytest.mark.slow
def test_what_is_not_probable_enough_is_left_out(
    run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    wanted = [*arguments(features), "--model", str(run), "--json", str(file)]
    assert main(["find", *wanted, "--min-probability", "0.6"]) == 0
    assert len(json.loads(file.read_text())["moments"]) > 0
    assert main(["find", *wanted, "--min-probability", "0.8"]) == 0
    assert "below --min-probability 0.8" in capsys.readouterr().out
    assert json.loads(file.read_text())["moments"] == []
    assert main(["find", *wanted, "--min-probability", "1.5"]) == 2


def test_a_spoilt_calibration_is_one_line_and_code_2(
    run: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / "confidence.json").read_text()
    (run / "confidence.json").write_text(text.replace("0.0", "0.5", 1))
    assert main(["find", *arguments(features), "--model", str(run)]) == 2
    error = capsys.readouterr().err
    assert "confidence.json: was changed" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_search_gives_probabilities_of_its_hits(
    run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "index")
    assert main(["index", folder, str(features), "--model", str(run)]) == 0
    query = [f"{features}::a", "--query-start", "5", "--query-end", "15"]
    capsys.readouterr()
    found = tmp_path / "found.json"
    assert main(["search", folder, *query, "--model", str(run), "--json", str(found)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("probability")
    assert all(line.endswith("0.70") for line in lines[2:])
    hits = json.loads(found.read_text())["moments"]
    assert len(hits) == len(lines) - 2 > 0
    assert [hit["presence"] for hit in hits] == pytest.approx([0.25] * len(hits))


@pytest.mark.slow
def test_find_writes_what_made_the_score(
    run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "why.json"
    plainly = [*arguments(features), "--model", "contrast"]
    assert main(["find", *plainly, "--explain", str(file)]) == 0
    content = json.loads(file.read_text())
    table = np.array(content["contributions"])
    assert table.shape == (10, 50)
    # The contrast matcher's contributions are exact.
    assert table.sum() == pytest.approx(content["moment"]["score"], abs=1e-5)
    arguments_of_run = [*arguments(features), "--model", str(run), "--explain", str(file)]
    assert main(["find", *arguments_of_run]) == 0
    assert np.array(json.loads(file.read_text())["contributions"]).shape == (10, 50)
