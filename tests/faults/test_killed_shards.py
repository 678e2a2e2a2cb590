"""A worker killed while it scores a shard: an error that says so, and the same bytes afterwards."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from relocal_pyg.data import write_features
from relocal_pyg.search.shards import ShardTask, score_shards

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.faults, pytest.mark.slow]

RUN = """
import sys
from pathlib import Path
from relocal_pyg.errors import RunError
from relocal_pyg.search.shards import ShardTask, score_shards
if __name__ == "__main__":
    folder, videos = Path(sys.argv[1]), tuple(sys.argv[2].split())
    task = ShardTask(
        folder / "f.h5", "features", videos, folder / "q.npy", None, folder / "out.parquet"
    )
    try:
        score_shards(task, len(videos), workers=2)
    except RunError as error:
        sys.exit(f"RunError: {error}")
"""


def scoring_children(parent: int) -> list[int]:
    """Worker processes of a pool; another child only looks after its shared resources."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in commands.items() if b"spawn_main" in command]


def test_a_killed_worker_loses_nothing(tmp_path: Path, count, figure):
    draw, kills = np.random.default_rng(0), count(1, 3)
    videos = tuple(f"v{number:03d}" for number in range(150))
    write_features(tmp_path / "f.h5", ((name, draw.normal(size=(500, 8))) for name in videos))
    np.save(tmp_path / "q.npy", draw.normal(size=(5, 8)).astype("float32"))
    parts = tmp_path / "out.parquet.parts"
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), " ".join(videos)]
    for kill in range(kills):
        before = len(list(parts.glob("*.parquet")))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
            while len(list(parts.glob("*.parquet"))) <= before and run.poll() is None:
                time.sleep(0.01)
            os.kill(scoring_children(run.pid)[kill % 2], signal.SIGKILL)
            errors = run.communicate()[1]
        assert run.returncode == 1
        assert errors.splitlines()[-1].startswith("RunError: ")
        assert "a worker was killed" in errors
        assert not (tmp_path / "out.parquet").exists()
    left = len(list(parts.glob("*.parquet")))
    assert 0 < left < len(videos)
    task = ShardTask(
        tmp_path / "f.h5", "features", videos, tmp_path / "q.npy", None, tmp_path / "out.parquet"
    )
    went_on = score_shards(task, len(videos)).read_bytes()
    whole = dataclasses.replace(task, out=tmp_path / "whole")
    assert went_on == score_shards(whole, 1).read_bytes()
    figure("shards", f"{kills} killed workers, {left} of {len(videos)} shards kept: same bytes")
