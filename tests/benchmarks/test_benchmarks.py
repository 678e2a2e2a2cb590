"""Every part runs on tiny shapes; no time is looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.__main__ import PARTS, main  # noqa: E402


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
    with pytest.raises(SystemExit):
        main(["agregation", "--json", str(tmp_path / "f.json")])
    assert "no part agregation" in capsys.readouterr().err
