"""Searching all videos of an index from the page."""

from __future__ import annotations

import csv
import json
import os
import shutil

import pytest
import torch

from relocal_pyg.apps.serve import Collection, Library
from relocal_pyg.apps.serve.searches import Job, export
from relocal_pyg.errors import SearchIndexError, UsageError
from relocal_pyg.io.read import version_of
from relocal_pyg.models import ContrastMatcher, CosineMatcher
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.video.index import IndexedVideos, find_in_index
from relocal_pyg.video.query import VideoQuery


@pytest.mark.slow
def test_hits_of_all_videos_can_be_played(served_index, films, index):
    served = served_index
    assert json.loads(served.ask("GET", "/api/index")[2]) == {"videos": 3, "playable": 3}
    listed = json.loads(served.ask("GET", "/api/videos")[2])
    assert [video["name"] for video in listed] == ["one.mp4", "three.mp4", "two.mp4"]
    _, clip = served.upload(films["clip"].read_bytes(), "clip.mp4")
    code, job = served.search(query=clip["id"], index=True, top_k=4)
    assert code == 202
    done = served.outcome(job["id"])
    assert done["state"] == "done", done["error"]
    # Texture 7 for two seconds, in two films.
    first, second = sorted(done["moments"][:2], key=lambda moment: moment["name"])
    assert (first["name"], second["name"]) == ("three.mp4", "two.mp4")
    for hit, start in ((first, 4), (second, 2)):
        assert abs(hit["start"] - start) <= 0.5
        assert abs(hit["end"] - start - 2) <= 0.5
        assert hit["end"] <= hit["duration"] == pytest.approx(6)
    assert len(done["moments"]) <= 4
    assert done["settings"]["videos"] == 3
    played = served.ask("GET", f"/api/videos/{second['video']}")[2]
    assert played == IndexedVideos.load(index).files["two"].read_bytes()
    assert str(index.parent) not in json.dumps(done)


@pytest.mark.slow
def test_a_stretch_of_an_indexed_video_is_a_query(served_index):
    keys = {entry.name: entry.key for entry in served_index.library.entries()}
    _, job = served_index.search(query=keys["two.mp4"], index=True, query_start=2, query_end=4)
    done = served_index.outcome(job["id"])
    assert done["settings"]["query_centred_by"] == "its own video"
    assert {hit["name"] for hit in done["moments"][:2]} == {"two.mp4", "three.mp4"}
    kept = served_index.searches.get(job["id"]).found
    assert kept.query.untyped_storage().nbytes() == 0
    assert kept.query_video is None


@pytest.mark.slow
def test_answers_in_an_index_are_judged_in_their_own_video(served_index):
    keys = {entry.name: entry.key for entry in served_index.library.entries()}
    _, job = served_index.search(query=keys["two.mp4"], index=True, query_start=2, query_end=4)
    before = served_index.outcome(job["id"])["moments"]
    for moment, said in zip(before, (True, False), strict=False):
        assert served_index.judge(job["id"], moment["number"], judged=said)[0] == 200
    after = served_index.outcome(job["id"])["moments"]
    assert [each["judged"] for each in after] == [True, *[None] * (len(after) - 2), False]
    assert (after[0]["id"], after[-1]["id"]) == (before[0]["id"], before[1]["id"])
    code, _, html = served_index.ask("GET", f"/api/searches/{job['id']}/report")
    assert code == 200
    assert f"Best moment: {before[0]['id']}, 0:00:0".encode() in html


@pytest.mark.slow
def test_videos_of_one_file_name_stay_apart(days, films, blocks, tmp_path):
    library = Library(tmp_path)
    collection = Collection(days, ContrastMatcher(), library, blocks)
    names = {name: entry.name for name, entry in collection.entries.items()}
    assert names == {"day1-cam": "day1-cam.mp4", "day2-cam": "day2-cam.mp4"}
    found = find_in_index(films["clip"], collection.index, collection.made, blocks, top_k=4)
    about = {"start": None, "end": None, "reference": None, "examples": []}
    job = Job("key", lambda *_: found, ("clip.mp4", "2 videos"), about, "done", found=found)
    videos = [hit.video_id for hit in found.hits]
    assert set(videos) == set(names)
    table = list(csv.DictReader(export(job, collection, "csv", 0.0).splitlines()))
    assert [row["video"] for row in table] == videos
    rows = list(csv.DictReader(export(job, collection, "annotations", 0.0).splitlines()))
    assert sorted(row["video"] for row in rows) == sorted(videos)
    assert len(json.loads(export(job, collection, "via", 0.0))["file"]) == 2
    saved = json.loads(export(job, collection, "query", 0.0))
    assert [moment["video"] for moment in saved["moments"]] == videos
    # What is gone has its id as before.
    collection.entries.pop("day1-cam")
    table = list(csv.DictReader(export(job, collection, "csv", 0.0).splitlines()))
    assert [row["video"] for row in table] == videos


@pytest.mark.slow
def test_a_stretch_of_the_index_that_is_not_meant_is_no_answer(index, films, blocks, tmp_path):
    collection = Collection(index, ContrastMatcher(), Library(tmp_path), blocks)
    given = films["clip"], collection.index, collection.made, blocks
    best = find_in_index(*given).hits[0]
    file = collection.made.files[best.video_id]
    (tmp_path / "link.mp4").symlink_to(file)
    for place in (file, tmp_path / "link.mp4"):
        not_this = [VideoQuery(place, best.start, best.end)]
        for every in (False, True):
            hits = find_in_index(*given, unlike=not_this, every=every, least=0.0).hits
            assert hits
            for hit in hits:
                shared = min(hit.end, best.end) - max(hit.start, best.start)
                # Another answer of the list may share its edge.
                assert hit.video_id != best.video_id or shared <= 0.5 * (hit.end - hit.start)


@pytest.mark.slow
def test_only_an_index_that_is_open_is_searched(served, served_index):
    key = served.reference()
    assert json.loads(served.ask("GET", "/api/index")[2]) == {"videos": 0, "playable": 0}
    code, answer = served.search(query=key, index=True)
    assert code == 404
    assert "--index" in answer["error"]
    assert served.search(query=key, index="../../etc")[0] == 404
    own = served_index.reference()
    assert served_index.search(query="x", index=True)[0] == 404
    assert served_index.search(query=own)[0] == 404
    assert served_index.search(query=own, index=True, top_k=1000)[0] == 400
    assert served_index.ask("GET", "/api/videos/two")[0] == 404


@pytest.mark.slow
def test_a_video_that_is_gone_is_found_but_not_played(index, tmp_path, blocks):
    made = IndexedVideos.load(index)
    made.files["two"].unlink()
    made.files["three"].write_text("no video any more")
    library = Library(tmp_path)
    collection = Collection(index, ContrastMatcher(), library, blocks)
    assert len(collection.index) == 3
    assert list(collection.entries) == ["one"]
    assert [entry.name for entry in library.entries()] == ["one.mp4"]


@pytest.mark.slow
def test_a_video_of_folder_and_index_is_listed_once(index, tmp_path, blocks):
    library = Library(tmp_path, tmp_path / "indexed")
    before = library.entries()
    collection = Collection(index, ContrastMatcher(), library, blocks)
    assert library.entries() == before
    assert sorted(collection.entries) == ["one", "three", "two"]


@pytest.mark.slow
def test_an_index_that_cannot_be_served_says_why(index, tmp_path, blocks):
    library = Library(tmp_path)
    with pytest.raises(SearchIndexError, match="another model"):
        Collection(index, CosineMatcher(), library, blocks)
    made = IndexedVideos.load(index)
    IndexedVideos(index, made.rate_hz, made.backbone).save()
    with pytest.raises(SearchIndexError, match="where its videos are"):
        Collection(index, ContrastMatcher(), library, blocks)
    build_index(tmp_path / "empty", ContrastMatcher(), [])
    IndexedVideos(tmp_path / "empty", 12.5, "blocks").save()
    with pytest.raises(UsageError, match="holds no video yet"):
        Collection(tmp_path / "empty", ContrastMatcher(), library, blocks)
    build_index(tmp_path / "rows", ContrastMatcher(), [("a", torch.randn(9, 4), 1.0)])
    with pytest.raises(SearchIndexError, match="not from video files"):
        Collection(tmp_path / "rows", ContrastMatcher(), library, blocks)
    with pytest.raises(SearchIndexError, match="no index here"):
        Collection(tmp_path / "nothing", ContrastMatcher(), library, blocks)


@pytest.mark.slow
def test_a_film_that_was_written_over_another_is_no_film_of_the_index(
    index, blocks, films, tmp_path
):
    """Its moments would be those of the film before."""
    made = IndexedVideos.load(index)
    opened = SearchIndex(index, ContrastMatcher())
    os.utime(made.files["two"], (1, 1))  # its bytes are the same
    found = find_in_index(films["clip"], opened, made, blocks)
    assert (found.problems, {hit.video_id for hit in found.hits}) == ((), {"one", "two", "three"})
    assert tuple(made.versions["two"]) == version_of(made.files["two"])  # it is not read again
    shutil.copy(films["clip"], made.files["two"])
    found = find_in_index(films["clip"], opened, made, blocks)
    why = "is another film than the one that was indexed: run relocal index again"
    assert found.problems == (f"{made.files['two']}: {why}",)
    collection = Collection(index, ContrastMatcher(), Library(tmp_path), blocks)
    assert sorted(collection.entries) == ["one", "three"]
