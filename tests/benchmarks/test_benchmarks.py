"""Every part runs on tiny shapes; no time is looked at."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import index, measuring  # noqa: E402
from benchmarks.__main__ import PARTS, main  # noqa: E402

ROOT = Path(index.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[pytest.mark.slow] if part == "index" else [])
        for part in sorted(set(PARTS) - {"import"})
    ],
)
def test_part_runs_and_writes_its_figures(part, tmp_path, capsys):
    file = tmp_path / "figures.json"
    tables = main([part, "--quick", "--json", str(file)])
    record = json.loads(file.read_text())
    assert record["machine"]["threads"] >= 1
    assert record["tables"][0]["rows"] == tables[0].rows
    assert tables[0].title in capsys.readouterr().out
    assert all(len(row) == len(tables[0].columns) for row in tables[0].rows)
    assert tables[0].rows


def test_search_figures_hold_the_error_of_the_fast_forms(tmp_path):
    table = main(["search", "--quick", "--json", str(tmp_path / "f.json")])[0]
    errors = {row[0]: row[-1] for row in table.rows}
    assert errors["plain, COO"] == 0
    assert errors["scorer, float32"] < 1e-5
    assert errors["scorer, bfloat16"] < 2e-2


def test_a_wrong_part_is_refused(tmp_path, capsys):
    for wrong, told in (
        (["agregation"], "no part agregation"),
        (["dp", "--threads", "0"], "least 1"),
    ):
        with pytest.raises(SystemExit):
            main([*wrong, "--json", str(tmp_path / "f.json")])
        assert told in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "name",
    [file.stem for file in ROOT.glob("*.py") if '__name__ == "__main__"' in file.read_text()],
)
def test_every_script_says_what_it_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.slow
def test_an_index_grows_without_a_look_at_every_proposal(capsys):
    clock, threads = measuring.clock, torch.get_num_threads()
    try:
        index.main(videos=(2,), queries=1, exhaustive=0)
    finally:
        measuring.clock = clock
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.split()[-1] == "nan"
