"""The notebooks run from top to bottom, as a reader runs them, and are committed without output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def run(name: str) -> dict[str, Any]:
    """What the names of a notebook stand for once all of it has run."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(FOLDER / f"{name}.ipynb")):
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec")
            exec(code, names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_plain_and_has_no_output(path: Path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert book["cells"][0]["cell_type"] == "markdown"
    for cell in book["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert max(map(len, cell["source"])) <= 110


def test_there_is_one_for_each_kind_of_reader():
    assert [path.stem for path in NOTEBOOKS] == ["practitioners", "pyg_users", "researchers"]


@pytest.mark.slow
def test_pyg_users():
    names = run("pyg_users")
    assert names["after"] > max(names["before"], 0.55)


@pytest.mark.slow
def test_researchers(capsys: pytest.CaptureFixture[str]):
    found = run("researchers")["found"]
    assert found[0].tious.mean() > found[2].tious.mean()  # the centre of the video
    assert "contrast" in capsys.readouterr().out.lower()


@pytest.mark.slow
def test_practitioners(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("av")
    names = run("practitioners")
    assert 11 < names["best"].start < names["best"].end < 20
    assert "best.mp4" in capsys.readouterr().out
