"""The drawn films, and what the command finds in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av")

from relocal_pyg.moments import tiou  # noqa: E402
from relocal_pyg.video import VideoQuery, find_moments, probe  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "examples" / "draw_videos.py"


@pytest.mark.slow
def test_the_jumping_jacks_of_another_figure_are_found(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True)
    assert probe(tmp_path / "street.mp4").duration == pytest.approx(30, abs=0.1)
    query = VideoQuery(tmp_path / "park.mp4", 4, 8)
    found = find_moments(query, tmp_path / "street.mp4", top_k=1)
    best = found.moments[0]
    assert float(tiou([best.start, best.end], [13.0, 18.0])) > 0.6
