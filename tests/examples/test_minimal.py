"""The page that holds the whole idea learns what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_learns_far_above_chance(load, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("minimal")
    example.main(count=1000)
    before, after = map(float, re.findall(r"([\d.]+)%", capsys.readouterr().out))
    assert 40 < before < 60  # chance is a half
    assert after > 85
    assert len(Path(example.__file__).read_text().splitlines()) <= 70
