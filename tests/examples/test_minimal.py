"""The page that holds the whole idea learns what it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest


def test_learns_far_above_chance(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "minimal.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(count=1000)
    before, after = map(float, re.findall(r"([\d.]+)%", capsys.readouterr().out))
    assert 40 < before < 60  # chance is a half
    assert after > 85
    assert len(path.read_text().splitlines()) <= 70
