from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from relocal_pyg.apps.cli.exports import ExportOptions
from relocal_pyg.apps.cli.search import index, search
from relocal_pyg.data.features import write_features
from relocal_pyg.errors import FeatureError, SearchIndexError, UsageError


@pytest.mark.slow
def test_index_then_search_finds_the_planted_moment(tmp_path, capsys):
    draw = np.random.default_rng(0)
    action = draw.normal(size=8).astype("float32")
    videos = {f"v{i}": 0.3 * draw.normal(size=(40, 8)).astype("float32") for i in range(6)}
    videos["v4"][16:24] += action
    write_features(tmp_path / "a.h5", list(videos.items())[:3])
    write_features(tmp_path / "b.h5", list(videos.items()))
    np.save(tmp_path / "q.npy", action + 0.3 * draw.normal(size=(8, 8)).astype("float32"))
    index(tmp_path / "index", tmp_path / "a.h5", seconds_per_step=2.0)
    index(tmp_path / "index", tmp_path / "b.h5")  # with the clock that the others have
    assert "3 videos added, 3 there before" in capsys.readouterr().out
    out = tmp_path / "hits.json"
    exports = ExportOptions(json_file=out)
    search(tmp_path / "index", str(tmp_path / "q.npy"), exports=exports, top_k=3)
    hits = json.loads(out.read_text())["moments"]
    assert len(hits) == 3
    assert hits[0]["video"] == "v4"
    assert abs(hits[0]["start"] - 32) <= 6
    assert abs(hits[0]["end"] - 48) <= 6
    assert "v4" in capsys.readouterr().out.splitlines()[2]
    search(tmp_path / "index", str(tmp_path / "q.npy"), min_probability=0.999)
    assert "left out: " in capsys.readouterr().out
    with pytest.raises(SearchIndexError, match="no index here"):
        search(tmp_path / "nothing", str(tmp_path / "q.npy"))
    # Other features under a known name are not searched, and that is said.
    videos["v1"] = videos["v1"][:20]
    videos["v2"] = videos["v2"] + 0.5 * action
    write_features(tmp_path / "c.h5", list(videos.items()))
    index(tmp_path / "index", tmp_path / "c.h5", seconds_per_step=2.0)
    told = capsys.readouterr().out
    assert "0 videos added, 6 there before" in told
    assert "answered as before: v1, v2; build the index anew" in told
    index(tmp_path / "index", tmp_path / "b.h5", seconds_per_step=1.0)  # another clock
    assert "answered as before: v0, v1, v2, v3, v4, v5" in capsys.readouterr().out


def test_a_video_that_cannot_be_used_does_not_keep_the_others_out(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, level in (("a", 1), ("b", np.nan), ("c", 2)):
            file[f"{name}/features"] = np.full((9, 4), level, "f4")
        file["d/features"] = np.ones(4, "f4")
    index(tmp_path / "index", tmp_path / "a.h5")
    told = capsys.readouterr().out
    assert "2 videos added, 0 there before" in told
    assert "a.h5: b: step 0 is not finite" in told
    assert "a.h5: d: " in told
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["b/features"] = np.full((9, 4), np.nan, "f4")
    with pytest.raises(FeatureError, match="no video could be used"):
        index(tmp_path / "other", tmp_path / "a.h5")


def test_pieces_of_one_answer_are_no_answers(tmp_path):
    """As where the index is of films."""
    draw = np.random.default_rng(0)
    action = 2 * draw.normal(size=16)
    video = draw.normal(size=(600, 16))
    video[300:330] += action
    write_features(tmp_path / "a.h5", [("a", video.astype("f4"))])
    np.save(tmp_path / "q.npy", (draw.normal(size=(30, 16)) + action).astype("f4"))
    index(tmp_path / "index", tmp_path / "a.h5", seconds_per_step=2.0)
    exports = ExportOptions(json_file=tmp_path / "hits.json")
    search(tmp_path / "index", str(tmp_path / "q.npy"), exports=exports, top_k=5)
    hits = json.loads((tmp_path / "hits.json").read_text())["moments"]
    assert (hits[0]["start"], hits[0]["end"]) == pytest.approx((600, 660), abs=8)
    assert len(hits) == 5
    assert all(0.4 * 60 <= hit["end"] - hit["start"] <= 2.5 * 60 for hit in hits)


def test_a_clock_is_asked_for_where_an_index_has_several(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        write_features(tmp_path / f"{name}.h5", [(name, np.ones((9, 4), "f4"))])
        index(tmp_path / "index", tmp_path / f"{name}.h5", seconds_per_step=seconds)
    with pytest.raises(UsageError, match="seconds-per-step is needed"):
        index(tmp_path / "index", tmp_path / "a.h5")
