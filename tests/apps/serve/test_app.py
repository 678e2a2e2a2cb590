"""What the server answers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import pytest

from relocal_pyg.apps.cli import main
from relocal_pyg.apps.cli.exports import read_saved
from relocal_pyg.apps.serve import Library, SearchQueue
from relocal_pyg.apps.serve.app import Film, server_of
from relocal_pyg.errors import UsageError
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.video import FunctionBackbone


@pytest.mark.slow
def test_upload_search_and_play(served, films):
    code, clip = served.upload(films["clip"].read_bytes(), "my%20clip.mp4")
    assert (code, clip["name"]) == (201, "my clip.mp4")
    listed = json.loads(served.ask("GET", "/api/videos")[2])
    assert [video["name"] for video in listed] == ["reference.mp4", "my clip.mp4"]
    code, job = served.search(query=clip["id"], reference=served.reference(), top_k=2)
    assert code == 202
    done = served.outcome(job["id"])
    assert done["state"] == "done", done["error"]
    best = done["moments"][0]
    assert abs(best["start"] - 4) <= 0.17
    assert abs(best["end"] - 6) <= 0.17
    assert len(done["moments"]) <= 2
    assert len(done["curve"]) == done["settings"]["reference_steps"]

    code, headers, body = served.ask("GET", f"/api/videos/{clip['id']}", Range="bytes=4-11")
    assert code == 206
    assert headers["content-type"] == "video/mp4"
    assert body == films["clip"].read_bytes()[4:12]
    code, headers, body = served.ask("GET", f"/api/searches/{job['id']}/report")
    assert code == 200
    assert b"my clip.mp4 in reference.mp4" in body
    assert str(served.library.uploads).encode() not in body


@pytest.mark.slow
def test_a_calibrated_model_says_how_sure_it_is(served, served_index, films, monkeypatch, constant):
    place = {"reference": served.reference()}
    for server, where in ((served, place), (served_index, {"index": True})):
        _, clip = server.upload(films["clip"].read_bytes())
        silent = server.outcome(server.search(query=clip["id"], **where)[1]["id"])
        assert {moment["probability"] for moment in silent["moments"]} == {None}
        assert silent["presence"] == ""
        told = Calibrated(ContrastMatcher(), constant(0.12, 0.88))
        monkeypatch.setattr(server.model, "rank", told.rank)
        if server.collection is not None:
            monkeypatch.setattr(server.collection.index, "calibrated", told)
        told = server.outcome(server.search(query=clip["id"], **where)[1]["id"])
        for moment in told["moments"]:
            assert moment["probability"] == pytest.approx(0.88)
        if server is served:
            assert told["presence"] == "probably not in this video: probability 0.12, below 0.5"


def test_every_answer_carries_the_policy(served):
    for path in ("/", "/page.js", "/page.css", "/api/videos", "/nothing", "/api/videos/x"):
        _, headers, _ = served.ask("GET", path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""]
)
def test_another_name_for_this_machine_is_refused(served, name):
    code, _, body = served.ask("GET", "/api/videos", Host=name)
    assert code == 400
    assert b"reference" not in body
    assert served.ask("GET", "/api/videos", Host=f"localhost:{served.port}")[0] == 200


def test_requests_of_other_pages_are_refused(served, films):
    key = served.reference()
    wanted = {"query": key, "reference": key}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        assert served.ask("POST", "/api/searches", wanted, **headers)[0] == 403
        assert served.upload(films["clip"].read_bytes(), **headers)[0] == 403
    # What a plain form can send.
    for kind in ("text/plain", "multipart/form-data; boundary=x"):
        assert served.upload(films["clip"].read_bytes(), Content_Type=kind)[0] == 415
        assert served.ask("POST", "/api/searches", wanted, Content_Type=kind)[0] == 400
    own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec_Fetch_Site": "same-origin"}
    assert served.ask("POST", "/api/searches", wanted, **own)[0] == 202


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/api/videos/../../etc/passwd",
        "/api/videos/..%2f..%2f..%2fetc%2fpasswd",
        "/api/videos/%2fetc%2fpasswd",
        "/api/videos/reference.mp4",
        "/static/../app.py",
        "/page.js/../../app.py",
        "/%2e%2e/app.py",
    ],
)
def test_no_path_leads_anywhere(served, path):
    code, _, body = served.ask("GET", path)
    assert code == 404
    assert b"root:" not in body


@pytest.mark.parametrize(
    "name", ["../../evil.mp4", "..%2F..%2Fevil.mp4", "%00", "/etc/evil.mp4", ""]
)
def test_names_of_uploads_are_only_shown(served, films, name, tmp_path):
    code, video = served.upload(films["clip"].read_bytes(), name)
    assert code == 201
    assert "/" not in video["name"]
    entry = served.library.get(video["id"])
    assert entry.path.parent == served.library.uploads
    assert entry.path.suffix == ".upload"
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("content", [b"", b"a shopping list\n" * 50, b"\0" * 4096])
def test_only_videos_are_kept(served, content):
    code, answer = served.upload(content)
    assert code == 415
    assert str(served.library.uploads) not in answer["error"]
    assert list(served.library.uploads.iterdir()) == []
    assert len(served.library.entries()) == 1


def test_a_playlist_is_not_followed(served, films):
    text = f"ffconcat version 1.0\nfile {films['clip']}\n".encode()
    assert served.upload(text)[0] == 415


@pytest.mark.parametrize("served", [{"max_bytes": 1000}], indirect=True)
def test_large_files_are_refused_unread(served, films):
    code, answer = served.upload(b"x" * 1001)
    assert code == 413
    assert "larger" in answer["error"]
    # A body that states no length cannot be bounded before it is read.
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    kind = {"Content-Type": "application/octet-stream"}
    connection.request("POST", "/api/videos", iter([b"x" * 10]), kind, encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()
    assert list(served.library.uploads.iterdir()) == []


def test_room_is_bounded_and_given_back(served, films):
    size = films["clip"].stat().st_size
    served.library.max_total = size + 10
    assert served.upload(b"x" * size)[0] == 415  # no video: its room is free again
    assert served.upload(films["clip"].read_bytes())[0] == 201
    assert served.upload(films["clip"].read_bytes())[0] == 507


def test_a_broken_off_upload_leaves_nothing(served, films):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", "/api/videos")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", "100000")
    connection.endheaders(b"x" * 100)
    connection.close()
    # The server answers others and, once it has noticed, holds nothing of it.
    for _ in range(200):
        assert served.ask("GET", "/api/videos")[0] == 200
        if not list(served.library.uploads.iterdir()):
            break
    assert list(served.library.uploads.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"query": "x"}, 404),
        ({"query": None}, 404),
        ({"reference": ["a"]}, 404),
        ({"query_start": 5, "query_end": 5}, 400),
        ({"query_start": -1}, 400),
        ({"query_start": "<b>"}, 400),
        ({"query_end": True}, 400),
        ({"top_k": 0}, 400),
        ({"top_k": 10**9}, 400),
        ({"top_k": True}, 400),
        ({"more": "x" * 20_000}, 400),
    ],
)
def test_bad_searches_are_refused(served, change, code):
    key = served.reference()
    assert served.search(**{"query": key, "reference": key, **change})[0] == code


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 9000, b'{"query_start": 1e999}']
)
def test_bad_json_is_refused(served, body):
    code, _, _ = served.ask("POST", "/api/searches", body, Content_Type="application/json")
    assert code in (400, 404)


@pytest.mark.slow
def test_a_range_behind_the_end_fails_in_words(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=100)
    done = served.outcome(job["id"])
    assert done["state"] == "failed"
    assert "its video ends at 9 s" in done["error"]
    assert served.ask("GET", f"/api/searches/{job['id']}/report")[0] == 404


def test_the_queue_is_bounded_and_searches_can_be_stopped(served):
    key, inside, go_on = served.reference(), threading.Event(), threading.Event()

    def block(progress: Any, marks: Any) -> Any:
        inside.set()
        go_on.wait(60)
        progress("a")(0.0, 1.0)
        raise AssertionError("was not stopped")

    running = served.searches.submit(block, ("a", "b"))
    assert inside.wait(60)
    code, waiting = served.search(query=key, reference=key)
    assert code == 202
    code, answer = served.search(query=key, reference=key)
    assert code == 429
    assert "too many" in answer["error"]
    assert served.ask("DELETE", f"/api/searches/{waiting['id']}")[0] == 200
    code, next_one = served.search(query=key, reference=key)  # its place is free
    assert code == 202
    for job in (running.key, next_one["id"]):
        assert served.ask("DELETE", f"/api/searches/{job}")[0] == 200
    go_on.set()
    assert served.outcome(running.key)["state"] == "cancelled"
    assert served.outcome(waiting["id"])["state"] == "cancelled"
    assert served.ask("DELETE", "/api/searches/x")[0] == 404
    assert served.ask("GET", "/api/searches/x")[0] == 404


@pytest.mark.slow
def test_what_was_judged_ranks_the_others_anew(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=4, query_end=5, top_k=3)
    before = served.outcome(job["id"])["moments"]
    assert [each["judged"] for each in before] == [None] * 3
    right, wrong = before[0], before[1]
    for moment, said in ((right, True), (wrong, False)):
        assert served.judge(job["id"], moment["number"], judged=said)[0] == 200
    done = served.outcome(job["id"])
    # One answer was left out, and there is room for those that were judged.
    assert [each["judged"] for each in done["moments"]] == [True, None, None, None, False]
    assert (done["settings"]["examples"], done["settings"]["counter_examples"]) == (2, 1)
    shown = [(each["number"], each["start"], each["end"]) for each in done["moments"]]
    assert shown[0] == (right["number"], right["start"], right["end"])
    assert shown[-1] == (wrong["number"], wrong["start"], wrong["end"])
    assert len({number for number, *_ in shown}) == len(shown)
    # What no longer is in the list can still be said yes to; what was said is taken back.
    code, left = served.judge(job["id"], right["number"], judged=None, end=right["end"])
    assert (code, left["judged"]) == (200, None)
    served.judge(job["id"], wrong["number"], judged=None)
    assert served.outcome(job["id"])["moments"] == before
    for number, said, code in ((99, {"judged": True}, 404), (0, {"judged": 1}, 400)):
        assert served.judge(job["id"], number, **said)[0] == code
    assert served.judge(job["id"], 0, start=3, end=2)[0] == 400


@pytest.mark.slow
def test_what_was_said_is_kept_as_a_query_and_serves_elsewhere(served, films, tmp_path):
    key = served.reference()
    _, clip = served.upload(films["clip"].read_bytes(), "clip.mp4")
    _, job = served.search(query=key, reference=key, query_start=4, query_end=5)
    moments = served.outcome(job["id"])["moments"]
    said = [(moments[0]["number"], True), (moments[1]["number"], False)]
    for number, good in said:
        served.judge(job["id"], number, judged=good)
    served.outcome(job["id"])
    _, other = served.search(query=key, reference=clip["id"], query_start=4, like=job["id"])
    done = served.outcome(other["id"])
    assert [each["good"] for each in done["about"]["examples"]] == [True, False]
    assert (done["settings"]["examples"], done["settings"]["counter_examples"]) == (2, 1)
    for like, code in (("x", 404), ([], 404), (None, 404)):
        assert served.search(query=key, reference=key, like=like)[0] == code
    # The command line goes on from there, beside the videos.
    _, headers, text = served.ask("GET", f"/api/searches/{other['id']}/export?format=query")
    assert headers["content-disposition"] == 'attachment; filename="query.json"'
    assert str(films["folder"]) not in text.decode()
    (tmp_path / "salto.json").write_bytes(text)
    (tmp_path / "reference.mp4").symlink_to(films["reference"])
    query, options, said = read_saved(tmp_path / "salto.json")
    here = str(tmp_path / "reference.mp4")
    assert (query, options) == (here, {"query_start": 4.0, "query_end": None})
    assert [good for _, good in said] == [True, False]
    assert all(text.startswith(f"{here}:") for text, _ in said)


def test_what_is_judged_during_a_search_counts_in_the_next():
    searches, seen = SearchQueue(), []
    inside, go_on = threading.Event(), threading.Event()

    def work(progress: Any, marks: Any) -> Any:
        seen.append(list(marks))
        if len(seen) == 2:
            inside.set()
            go_on.wait(60)
        return "found"

    job = searches.submit(work, ("a", "b"))
    while job.state != "done":
        threading.Event().wait(0.01)
    first = {"id": None, "start": 1.0, "end": 2.0, "judged": True}
    job.edits[0] = first
    searches.again(job)
    assert inside.wait(60)
    job.edits[1] = {**first, "judged": False}
    searches.again(job)
    go_on.set()
    while job.state != "done":
        threading.Event().wait(0.01)
    yes, no = (None, 1.0, 2.0, True), (None, 1.0, 2.0, False)
    assert seen == [[], [yes], [yes, no]]
    searches.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["otio", "fcp7-xml", "fcpxml", "elan"])
def test_exports_link_to_the_name_of_the_video(served, films, name):
    key = served.reference()
    _, clip = served.upload(films["clip"].read_bytes(), "my%20clip%231.mp4")
    _, job = served.search(query=key, reference=clip["id"], query_start=4, query_end=5, top_k=1)
    assert served.outcome(job["id"])["state"] == "done"
    code, _, text = served.ask("GET", f"/api/searches/{job['id']}/export?format={name}")
    assert code == 200
    assert b"my%20clip%231.mp4" in text
    assert b"file:" not in text
    assert str(Path.cwd()).encode() not in text


@pytest.mark.slow
def test_what_is_read_has_its_own_title(served, films, monkeypatch, tmp_path):
    (tmp_path / "other").mkdir()
    place = tmp_path / "other" / "reference.mp4"  # the file name of the other one
    place.write_bytes(films["reference"].read_bytes())
    other = served.library.add(place, "other/reference.mp4").key
    _, job = served.search(query=served.reference(), reference=other, query_start=4, query_end=5)
    served.outcome(job["id"])
    served.judge(job["id"], 0, judged=True)
    served.outcome(job["id"])
    works, read = [], []
    monkeypatch.setattr(served.searches, "submit", lambda work, *_: works.append(work))

    def progress(title: str) -> Any:
        read.append(title)
        return lambda done, total: None

    key = served.reference()
    served.search(query=other, reference=key)
    served.search(query=key, reference=other)
    served.search(query=other, reference=key, like=job["id"])
    for work in works:
        work(progress, [])
    first, second = "reference.mp4", "other/reference.mp4"
    assert read == [second, first, first, second, second, second, first]


@pytest.mark.slow
def test_a_yes_is_taken_back_without_the_bounds(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=4, query_end=5, top_k=2)
    found = served.outcome(job["id"])["moments"][0]
    number, drawn = found["number"], found["end"] - 0.1
    for said in ({"end": drawn}, {"judged": True}, {"judged": None}):
        assert served.judge(job["id"], number, **said)[1]["end"] == drawn
        left = next(m for m in served.outcome(job["id"])["moments"] if m["number"] == number)
        assert (left["start"], left["end"]) == (found["start"], drawn)
    # Drawn back it is as it was found.
    served.judge(job["id"], number, end=found["end"])
    assert served.searches.get(job["id"]).edits == {}


@pytest.mark.slow
def test_two_changes_of_one_moment_at_once_are_both_kept(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=4, query_end=5, top_k=1)
    found = served.outcome(job["id"])["moments"][0]
    slow = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    slow.putrequest("PATCH", f"/api/searches/{job['id']}/moments/0")
    slow.putheader("Content-Type", "application/json")
    body = b'{"judged": true}'
    slow.putheader("Content-Length", str(len(body)))
    slow.endheaders(body[:1])
    # Answered one after the other: the slow one is being read when this is.
    assert served.ask("GET", "/api/videos")[0] == 200
    drawn = found["end"] - 0.1
    assert served.judge(job["id"], 0, end=drawn)[0] == 200
    slow.send(body[1:])
    assert json.loads(slow.getresponse().read())["end"] == drawn
    slow.close()


@pytest.mark.slow
def test_only_moments_that_are_there_are_changed(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=4, query_end=5, top_k=1)
    assert len(served.outcome(job["id"])["moments"]) == 1
    for number in ("1", "-1", "00", "0.0", "x", "9" * 5000):
        assert served.judge(job["id"], number, judged=True)[0] == 404
    assert served.judge(job["id"], "0")[0] == 200


@pytest.mark.slow
def test_a_moment_stays_in_its_film(served, served_index):
    place = {"reference": served.reference()}
    for server, where in ((served, place), (served_index, {"index": True})):
        key = server.reference()
        _, job = server.search(query=key, query_start=1, query_end=2, top_k=1, **where)
        done = server.outcome(job["id"])
        length = done["moments"][0].get("duration") or done["reference_seconds"]
        for start, end in ((0, length + 0.1), (100, 200), (-1, 2), (3, 2)):
            code, answer = server.judge(job["id"], 0, start=start, end=end, judged=True)
            assert code == 400
            assert f"between 0 s and {length:g} s" in answer["error"]
        assert server.judge(job["id"], 0, start=0, end=length)[0] == 200
        assert server.outcome(job["id"])["state"] == "done"


@pytest.mark.slow
def test_damage_is_told_by_the_names_that_are_shown(served, torn_film, tmp_path):
    entry = served.library.add(torn_film, f"My: Films/{torn_film.name}")
    _, job = served.search(query=served.reference(), reference=entry.key, query_start=4)
    done = served.outcome(job["id"])
    assert done["state"] == "done", done["error"]
    assert done["problems"][0].startswith("My: Films/take 2: caf_.mkv: ends at")
    code, _, html = served.ask("GET", f"/api/searches/{job['id']}/report")
    assert code == 200
    assert f"<li>{done['problems'][0]}</li>".encode() in html
    assert str(tmp_path).encode() not in html


def settled(job: Any) -> Any:
    """A search when it has ended."""
    while job.state in ("waiting", "running"):
        threading.Event().wait(0.01)
    return job


def test_a_search_is_done_again_once_however_many_wait():
    searches, seen, inside, go_on = SearchQueue(1), [], threading.Event(), threading.Event()

    def hold(progress: Any, marks: Any) -> Any:
        inside.set()
        go_on.wait(60)

    def note(progress: Any, marks: Any) -> Any:
        seen.append(list(marks))
        return "found"

    job = settled(searches.submit(note, ("a", "b")))
    assert searches.submit(hold, ("a", "b"))
    assert inside.wait(60)
    assert searches.submit(hold, ("a", "b"))
    searches.again(job)
    searches.cancel(job)
    assert job.state == "done"
    job.edits[0] = {"start": 1.0, "end": 2.0, "judged": False}
    for _ in range(3):
        searches.again(job)
    assert searches.submit(hold, ("a", "b")) is None
    go_on.set()
    settled(job)
    searches.close()
    assert seen == [[], [(None, 1.0, 2.0, False)]]


@pytest.mark.parametrize("stopped", [True, False])
def test_what_is_judged_while_a_search_ends_is_searched(stopped):
    searches, runs = SearchQueue(), 0
    inside, go_on = threading.Event(), threading.Event()

    def work(progress: Any, marks: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 2:
            inside.set()
            go_on.wait(60)
            raise RuntimeError
        return runs

    job = settled(searches.submit(work, ("a", "b")))
    searches.again(job)
    assert inside.wait(60)
    if stopped:
        searches.cancel(job)
    searches.again(job)
    go_on.set()
    settled(job)
    searches.close()
    assert (job.state, job.found, job.error) == ("done", 3, "")


@pytest.mark.slow
def test_all_answers_are_given_with_their_count(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=4, query_end=6, every=True)
    done = served.outcome(job["id"])
    assert done["about"]["every"] is True
    assert done["count"]["low"] <= done["count"]["number"] == len(done["moments"])
    assert served.ask("POST", "/api/example", b"", Content_Type="text/plain")[0] == 400


def test_an_accident_ends_one_search_only():
    searches, after = SearchQueue(), threading.Event()

    def fail(progress: Any, marks: Any) -> Any:
        raise RuntimeError("/secret/path")

    job = searches.submit(fail, ("a", "b"))
    searches.submit(lambda progress, marks: after.set(), ("a", "b"))
    assert after.wait(60)
    searches.close()
    assert job.state == "failed"
    assert job.error == "failed unexpectedly (RuntimeError)"


def test_old_answers_are_forgotten(monkeypatch):
    monkeypatch.setattr("relocal_pyg.apps.serve.searches.KEPT", 2)
    searches, keys = SearchQueue(), []
    for _ in range(5):
        done = threading.Event()

        def work(progress: Any, marks: Any, done: threading.Event = done) -> Any:
            done.set()

        keys.append(searches.submit(work, ("a", "b")).key)
        assert done.wait(60)
    searches.close()
    assert searches.get(keys[-1]) is not None
    assert searches.get(keys[0]) is None


def test_a_folder_offers_its_own_videos_only(films, tmp_path):
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.mp4").write_bytes(films["clip"].read_bytes())
    (folder / "text.mp4").write_text("no video")
    (folder / "out.mp4").symlink_to(films["clip"])
    library = Library(tmp_path, folder)
    assert [entry.name for entry in library.entries()] == ["sub/a.mp4"]
    (folder / "sub" / "a.mp4").unlink()
    with pytest.raises(UsageError, match="no videos"):
        Library(tmp_path, folder)
    for none in (folder / "text.mp4", folder / "missing"):
        with pytest.raises(UsageError, match="is no folder"):
            Library(tmp_path, none)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What uvicorn is started with, instead of starting it."""
    started: list[dict[str, Any]] = []

    class Server:
        def __init__(self, config: Any) -> None:
            self.config = config

        def run(self, sockets: list[socket.socket]) -> None:
            started.append({"at": sockets[0].getsockname(), "app": self.config.app})

    monkeypatch.setattr("uvicorn.Server", Server)
    return started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.slow
def test_the_command_checks_and_starts(starts, films, capsys, tmp_path: Path):
    port = free_port()
    assert main(["serve", str(films["folder"]), "--port", str(port)]) == 0
    assert [start["at"] for start in starts] == [("127.0.0.1", port)]
    printed = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}" in printed
    assert "Multi-graph matcher, pretrained" in printed
    assert main(["serve", "--host", "0.0.0.0", "--port", str(port)]) == 0
    assert "no password" in capsys.readouterr().out
    assert main(["serve", "--port", "0"]) == 2
    capsys.readouterr()
    assert main(["serve", str(tmp_path), "--port", str(port)]) == 2
    with socket.create_server(("127.0.0.1", port)):
        assert main(["serve", "--port", str(port)]) == 2
    printed = capsys.readouterr()
    assert "open http" not in printed.out
    assert "try another --port" in printed.err
    assert len(starts) == 2


def test_an_address_of_ipv6_is_served(starts, capsys):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
            port = listening.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert main(["serve", "--host", "::1", "--port", str(port)]) == 0
    assert starts[0]["at"][:2] == ("::1", port)
    printed = capsys.readouterr().out
    assert f"http://[::1]:{port}" in printed
    assert "no password" not in printed


@pytest.mark.slow
def test_the_command_opens_an_index(starts, index, blocks, monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr(
        import_module("relocal_pyg.apps.cli.watch"), "load_network", lambda *_: (blocks, None)
    )
    command = ["serve", "--port", str(free_port()), "--index"]
    assert main([*command, str(index)]) == 0
    assert len(starts) == 1
    capsys.readouterr()
    assert main([*command, str(tmp_path / "nothing")]) == 2
    assert "nothing: does not exist" in capsys.readouterr().err
    other = FunctionBackbone(blocks.function, "other", dim=144, size=(48, 64))
    monkeypatch.setattr(
        import_module("relocal_pyg.apps.cli.watch"), "load_network", lambda *_: (other, None)
    )
    assert main([*command, str(index)]) == 2
    error = capsys.readouterr().err
    assert "made with blocks, the query with other" in error
    assert len(error.splitlines()) == 1
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Recording at 10.00\u202fAM.mp4", "Recording at 10.00\u202fAM.mp4"),
        ("\U0001f468\u200d\U0001f469 family.mp4", "\U0001f468\u200d\U0001f469 family.mp4"),
        ("x" * 200 + ".mp4", "x" * 200 + ".mp4"),
        ("\u202egpj\n.mp4", "_gpj_.mp4"),
    ],
)
def test_a_film_is_called_as_its_file_is(served, films, name, shown):
    _, video = served.upload(films["clip"].read_bytes(), quote(name))
    assert video["name"] == shown


def test_a_film_whose_clock_begins_late_is_shown_by_its_preview(served, films, tmp_path):
    late = tmp_path / "late.mkv"
    with av.open(str(films["clip"])) as given, av.open(str(late), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.pts += round(5 / packet.time_base)
                packet.dts += round(5 / packet.time_base)
                packet.stream = stream
                output.mux(packet)
    _, video = served.upload(late.read_bytes(), "late.mkv")
    code, _, body = served.ask("GET", f"/api/videos/{video['id']}")
    assert (code, b"its clock begins at 5.0" in body) == (415, True)
    code, _, body = served.ask("GET", f"/api/videos/{video['id']}/preview")
    assert code == 200
    (tmp_path / "preview.mp4").write_bytes(body)
    with av.open(str(tmp_path / "preview.mp4")) as copy:
        assert copy.start_time == 0


@pytest.mark.slow
def test_the_report_is_of_what_people_left(served):
    key = served.reference()
    _, job = served.search(query=key, reference=key, query_start=4, query_end=6)
    first, second = served.outcome(job["id"])["moments"][:2]
    served.judge(job["id"], first["number"], start=4.5, end=5.5)
    path = f"/api/searches/{job['id']}"
    served.judge(job["id"], second["number"], judged=False)
    left = served.outcome(job["id"])["moments"]
    report = served.ask("GET", f"{path}/report")[2].decode()
    assert "0:00:04.500 to 0:00:05.500" in report
    assert report.count("<h3>") == len(left) - 1


@pytest.mark.slow
def test_a_film_that_is_written_over_another_is_shown_as_it_is(served, films):
    _, film = served.upload(films["reference"].read_bytes(), "film.mp4")
    path, pictures = served.library.get(film["id"]).path, f"/api/videos/{film['id']}/pictures"
    pictures += "?start=0&end=1"

    def look() -> tuple[bytes, float]:
        videos = json.loads(served.ask("GET", "/api/videos")[2])
        (duration,) = (each["duration"] for each in videos if each["id"] == film["id"])
        return served.ask("GET", f"/api/videos/{film['id']}/preview")[2], duration

    preview, duration = look()
    again = {"If_None_Match": served.ask("GET", pictures)[1]["etag"]}
    assert served.ask("GET", pictures, **again)[0] == 304
    path.write_bytes(films["clip"].read_bytes())
    assert served.ask("GET", pictures, **again)[0] == 200
    other, shorter = look()
    assert other != preview
    assert (duration, shorter) == (pytest.approx(9), pytest.approx(2))
    assert len(list(served.library.uploads.glob("*.mp4"))) == 1
    path.write_text("half written")  # as it was, until it can be read
    assert look() == (other, shorter)


@pytest.mark.parametrize("ranged", [{}, {"Range": "bytes=0-"}])
def test_a_film_that_changes_while_it_is_sent_ends_with_its_stated_bytes(tmp_path, capfd, ranged):
    """Or with the connection, where there are fewer: no traceback on the terminal."""
    large = tmp_path / "large.bin"
    for change in (
        lambda: os.truncate(large, 5 << 20),
        lambda: large.open("ab").write(b"x" * 4096),
    ):
        large.write_bytes(bytes(40 << 20))
        with (
            serving_file(large) as port,
            socket.create_connection(("127.0.0.1", port), timeout=20) as client,
        ):
            head = "".join(f"{name}: {value}\r\n" for name, value in ranged.items())
            asked = f"GET / HTTP/1.1\r\nHost: x\r\n{head}Connection: close\r\n\r\n"
            client.sendall(asked.encode())
            got = client.recv(1 << 16)
            stated = int(re.search(rb"content-length: ([0-9]+)", got)[1])
            change()
            while more := client.recv(1 << 20):
                got += more
        assert len(got.partition(b"\r\n\r\n")[2]) <= stated == 40 << 20
        if large.stat().st_size > stated:
            assert len(got.partition(b"\r\n\r\n")[2]) == stated
    assert "Traceback" not in capfd.readouterr().err


@contextmanager
def serving_file(path: Path) -> Iterator[int]:
    """A server of one file."""
    server = server_of(Film(path))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.mark.slow
def test_an_error_of_a_search_names_the_film(served, films):
    _, clip = served.upload(films["clip"].read_bytes(), "clip.mp4")
    served.library.get(clip["id"]).path.unlink()
    _, job = served.search(query=clip["id"], reference=served.reference())
    assert served.outcome(job["id"])["error"].startswith("clip.mp4: ")
