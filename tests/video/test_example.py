"""The drawn films, and what the printed command finds in them."""

from __future__ import annotations

import json
import shlex

import pytest

pytest.importorskip("av")

from relocal_pyg.apps.cli import main  # noqa: E402
from relocal_pyg.moments import tiou  # noqa: E402
from relocal_pyg.video import probe  # noqa: E402


@pytest.mark.slow
def test_the_printed_command_finds_the_jumping_jacks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["example", "my films"]) == 0
    assert probe(tmp_path / "my films" / "street.mp4").duration == pytest.approx(30, abs=0.1)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[0] == "relocal"
    assert main([*command[1:], "--json", "answer.json"]) == 0
    best = json.loads((tmp_path / "answer.json").read_text())["moments"][0]
    assert float(tiou([best["start"], best["end"]], [13.0, 18.0])) > 0.6
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert main(["example", "my films"]) == 0  # over its own, not over what others wrote
    (tmp_path / "my films" / "park.mp4").write_bytes(b"mine")
    assert main(["example", "my films"]) == 2
