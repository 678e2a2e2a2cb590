"""Memory of a search against the length of the video, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.models.similarity import mean_row, step_similarity
from relocal_pyg.video.rows import RowWriter

pytest.importorskip("av")

# Growth of the peak after the first search, which loads what every search needs. 16,384 channels
# make 64 KiB a step: rows in memory could not hide.
SEARCH = """
import json, sys
import torch
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.video import FeatureCache, FunctionBackbone, find_moments

def run(frames):
    rows = frames.float().flatten(1)
    return torch.cat([rows, rows.roll(1, 1).square()], dim=1).repeat(1, 43)[:, :16384]

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024

backbone = FunctionBackbone(run, "wide", 16384, (8, 8))
query, short, long, folder = sys.argv[1:]
kept = FeatureCache(folder)
peaks, steps = [], []
for video, cache in ((short, None), (long, None), (long, kept), (long, kept)):
    options = {"model": ContrastMatcher(), "rate_hz": 20.0, "cache": cache}
    found = find_moments(query, video, backbone=backbone, **options)
    peaks.append(peak())
    steps.append(found.settings["reference_steps"])
print(json.dumps([peaks, steps]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path, write_video):
    """Without a cache, while it is written, and with all rows in it."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 200, (50, 16, 16, 3), dtype=np.uint8)

    def video(name: str, count: int) -> str:
        pictures = [ground[i % 50] for i in range(count)]
        return str(write_video(tmp_path / name, pictures, rate=20))

    files = [video("query.mp4", 40), video("short.mp4", 250), video("long.mp4", 1000)]
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, *files, str(tmp_path / "cache")],
        check=True,
        capture_output=True,
        text=True,
        # What is freed goes back at once: what the allocator would keep of it is no growth.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    (short, *longer), steps = json.loads(done.stdout.splitlines()[-1])
    assert steps == [250, 1000, 1000, 1000]
    rows = 4 * 16384 * 750
    assert max(longer) - short < rows / 2


def test_rows_in_a_file_are_those_in_memory():
    rows = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)) + 3
    writer = RowWriter(6)
    writer.add(rows[:3000], [1] * 3000)
    writer.add(rows[3000:], [1] * 1999 + [2500])
    kept = writer.finish()
    whole = torch.cat([rows, rows[-1:].expand(2499, 6)])
    assert torch.equal(kept.tensor(), whole)
    assert torch.equal(torch.cat(list(kept.split(999))), whole)
    assert [len(block) for block in kept.split(7000)] == [7000, 499]
    torch.testing.assert_close(mean_row(kept), whole.double().mean(0).float())
    assert torch.equal(step_similarity(rows[:9], kept), step_similarity(rows[:9], whole))
    kept.tensor()[:] = 0
    assert torch.equal(kept.tensor(), whole)
