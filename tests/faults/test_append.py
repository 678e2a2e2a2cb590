"""Readers of a search index beside a process that adds to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked import start

from relocal_pyg.models import ContrastMatcher
from relocal_pyg.search import SearchIndex, build_index

pytestmark = pytest.mark.faults

WRITER = """
import sys, torch
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.search import add_videos
for number in range(1, int(sys.argv[2])):
    video = (f"v{number}", torch.eye(30, 8) + number, 1.0)
    add_videos(sys.argv[1], ContrastMatcher(), [video])
"""


@pytest.mark.slow
def test_readers_see_whole_shards_while_a_process_adds(tmp_path: Path, count, figure):
    videos, model, folder = count(12, 200), ContrastMatcher(), tmp_path / "index"
    build_index(folder, model, [("v0", torch.eye(30, 8), 1.0)])
    seen, opened, query = [1], 0, torch.eye(5, 8)
    (tmp_path / "writer.py").write_text(WRITER)
    words = [str(tmp_path / "writer.py"), str(folder), str(videos)]
    writer = start(words, tmp_path, 1, 2)
    while writer.is_alive():
        reader = SearchIndex(folder, model)
        ids = [name for shard in reader.shards for name in shard.ids]
        assert ids == [f"v{number}" for number in range(len(ids))]
        assert len(ids) >= seen[-1]
        assert {hit.video_id for hit in reader.search(query, len(ids))} <= set(ids)
        opened += 1
        seen.append(len(ids))
    assert writer.exitcode == 0
    assert len(SearchIndex(folder, model)) == videos
    figure(
        "append",
        f"{opened} readers opened beside the writer of {videos} shards, {len(set(seen))} different "
        "sizes seen, all whole and answering",
    )
