"""Features read by worker processes, and many times over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from relocal_pyg.data import FeatureStore, write_features

pytestmark = pytest.mark.faults


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Twenty videos; every row says which one it is."""
    rows = {n: 1000 * n + np.arange(40 + n, dtype=np.float32)[:, None] for n in range(20)}
    videos = ((f"v{n}", np.repeat(values, 8, axis=1)) for n, values in rows.items())
    write_features(tmp_path / "a.h5", videos)
    return FeatureStore(tmp_path / "a.h5")


@pytest.mark.slow
def test_no_wrong_row_under_any_start_method(store: FeatureStore, script, count, figure):
    length = count(300, 4000)
    result = script("read_rows.py", store.path, length)
    for method, wrong in result.items():
        figure("loader", f"{method}, 2 workers: {wrong} wrong of {length} reads")
    assert result == {"fork": 0, "spawn": 0, "forkserver": 0}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_descriptors_and_memory_stay_flat(store: FeatureStore, count, figure):
    def read(times: int) -> None:
        for number in range(times):
            store.read(f"v{number % 20}", number % 30, number % 30 + 5)

    read(500)
    files, memory, reads = len(os.listdir("/proc/self/fd")), resident(), count(5000, 40_000)
    read(reads)
    grown = (resident() - memory) / 2**20
    more = len(os.listdir("/proc/self/fd")) - files
    figure("loader", f"{reads} reads: {more} more file descriptors, {grown:.1f} MB more memory")
    assert more == 0
    assert grown < 50
