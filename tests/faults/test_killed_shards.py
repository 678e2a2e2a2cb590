"""A worker killed while it scores a shard: an error that says so, and the same bytes afterwards."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from forked import CONTEXT

from relocal_pyg.data import write_features
from relocal_pyg.errors import RunError
from relocal_pyg.search import shards
from relocal_pyg.search.shards import ShardTask, score_shards

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.faults, pytest.mark.slow]


def test_a_killed_worker_loses_nothing(tmp_path: Path, monkeypatch, count, figure):
    draw, kills = np.random.default_rng(0), count(1, 3)
    videos = tuple(f"v{number:03d}" for number in range(150))
    write_features(tmp_path / "f.h5", ((name, draw.normal(size=(500, 8))) for name in videos))
    np.save(tmp_path / "q.npy", draw.normal(size=(5, 8)).astype("float32"))
    parts, out = tmp_path / "out.parquet.parts", tmp_path / "out.parquet"
    task = ShardTask(tmp_path / "f.h5", "features", videos, tmp_path / "q.npy", None, out)
    # tests/search/test_shards.py has workers that import everything themselves, as users do.
    monkeypatch.setattr(shards, "get_context", lambda _: CONTEXT)

    def kill_one(number: int, before: int) -> None:
        while len(list(parts.glob("*.parquet"))) <= before:
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[number].pid, signal.SIGKILL)

    for kill in range(kills):
        before = len(list(parts.glob("*.parquet")))
        killer = threading.Thread(target=kill_one, args=(kill % 2, before))
        killer.start()
        with pytest.raises(RunError, match="a worker was killed"):
            score_shards(task, len(videos), workers=2)
        killer.join()
        assert not out.exists()
    left = len(list(parts.glob("*.parquet")))
    assert 0 < left < len(videos)
    went_on = score_shards(task, len(videos)).read_bytes()
    whole = dataclasses.replace(task, out=tmp_path / "whole")
    assert went_on == score_shards(whole, 1).read_bytes()
    figure("shards", f"{kills} killed workers, {left} of {len(videos)} shards kept: same bytes")
