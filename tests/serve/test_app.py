"""What the server answers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from relocal_pyg.cli import main
from relocal_pyg.errors import UsageError
from relocal_pyg.serve import Library, SearchQueue


def ask(
    served: Any, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, dict):
        body, named = json.dumps(body).encode(), {"Content-Type": "application/json", **named}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request(method, path, body, named)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content


def upload(served: Any, content: bytes, name: str = "a.mp4", **headers: str) -> tuple[int, Any]:
    wanted = {"Content_Type": "application/octet-stream", "X_File_Name": name, **headers}
    code, _, body = ask(served, "POST", "/api/videos", content, **wanted)
    return code, json.loads(body)


def search(served: Any, **wanted: Any) -> tuple[int, dict[str, Any]]:
    code, _, body = ask(served, "POST", "/api/searches", wanted)
    return code, json.loads(body)


def outcome(served: Any, key: str) -> dict[str, Any]:
    while True:
        now = json.loads(ask(served, "GET", f"/api/searches/{key}")[2])
        if now["state"] not in ("waiting", "running"):
            return dict(now)


def reference_of(served: Any) -> str:
    return str(served.library.entries()[0].key)


def test_upload_search_and_play(served, films):
    code, clip = upload(served, films["clip"].read_bytes(), "my%20clip.mp4")
    assert (code, clip["name"], clip["uploaded"]) == (201, "my clip.mp4", True)
    listed = json.loads(ask(served, "GET", "/api/videos")[2])
    assert [video["name"] for video in listed] == ["reference.mp4", "my clip.mp4"]
    code, job = search(served, query=clip["id"], reference=reference_of(served), top_k=2)
    assert code == 202
    done = outcome(served, job["id"])
    assert done["state"] == "done", done["error"]
    best = done["moments"][0]
    assert abs(best["start"] - 4) <= 0.08
    assert abs(best["end"] - 6) <= 0.08
    assert len(done["moments"]) <= 2
    assert len(done["curve"]) == done["settings"]["reference_steps"]

    code, headers, body = ask(served, "GET", f"/api/videos/{clip['id']}", Range="bytes=4-11")
    assert code == 206
    assert headers["content-type"] == "video/mp4"
    assert body == films["clip"].read_bytes()[4:12]
    code, headers, body = ask(served, "GET", f"/api/searches/{job['id']}/report")
    assert code == 200
    assert b"my clip.mp4 in reference.mp4" in body
    assert str(served.library.uploads).encode() not in body


def test_every_answer_carries_the_policy(served):
    for path in ("/", "/page.js", "/page.css", "/api/videos", "/nothing", "/api/videos/x"):
        _, headers, _ = ask(served, "GET", path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""]
)
def test_another_name_for_this_machine_is_refused(served, name):
    code, _, body = ask(served, "GET", "/api/videos", Host=name)
    assert code == 400
    assert b"reference" not in body
    assert ask(served, "GET", "/api/videos", Host=f"localhost:{served.port}")[0] == 200


def test_requests_of_other_pages_are_refused(served, films):
    key = reference_of(served)
    wanted = {"query": key, "reference": key}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        assert ask(served, "POST", "/api/searches", wanted, **headers)[0] == 403
        assert upload(served, films["clip"].read_bytes(), **headers)[0] == 403
    # What a plain form can send.
    for kind in ("text/plain", "multipart/form-data; boundary=x"):
        assert upload(served, films["clip"].read_bytes(), Content_Type=kind)[0] == 415
        assert ask(served, "POST", "/api/searches", wanted, Content_Type=kind)[0] == 400
    own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec_Fetch_Site": "same-origin"}
    assert ask(served, "POST", "/api/searches", wanted, **own)[0] == 202


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
    code, _, body = ask(served, "GET", path)
    assert code == 404
    assert b"root:" not in body


@pytest.mark.parametrize(
    "name", ["../../evil.mp4", "..%2F..%2Fevil.mp4", "%00", "/etc/evil.mp4", ""]
)
def test_names_of_uploads_are_only_shown(served, films, name, tmp_path):
    code, video = upload(served, films["clip"].read_bytes(), name)
    assert code == 201
    assert "/" not in video["name"]
    entry = served.library.get(video["id"])
    assert entry.path.parent == served.library.uploads
    assert entry.path.suffix == ".upload"
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("content", [b"", b"a shopping list\n" * 50, b"\0" * 4096])
def test_only_videos_are_kept(served, content):
    code, answer = upload(served, content)
    assert code == 415
    assert str(served.library.uploads) not in answer["error"]
    assert list(served.library.uploads.iterdir()) == []
    assert len(served.library.entries()) == 1


def test_a_playlist_is_not_followed(served, films):
    text = f"ffconcat version 1.0\nfile {films['clip']}\n".encode()
    assert upload(served, text)[0] == 415


@pytest.mark.parametrize("served", [{"max_bytes": 1000}], indirect=True)
def test_large_files_are_refused_unread(served, films):
    code, answer = upload(served, b"x" * 1001)
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
    assert upload(served, b"x" * size)[0] == 415  # no video: its room is free again
    assert upload(served, films["clip"].read_bytes())[0] == 201
    assert upload(served, films["clip"].read_bytes())[0] == 507


def test_a_broken_off_upload_leaves_nothing(served, films):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", "/api/videos")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", "100000")
    connection.endheaders(b"x" * 100)
    connection.close()
    # The server answers others and, once it has noticed, holds nothing of it.
    for _ in range(200):
        assert ask(served, "GET", "/api/videos")[0] == 200
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
    key = reference_of(served)
    assert search(served, **{"query": key, "reference": key, **change})[0] == code


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 9000, b'{"query_start": 1e999}']
)
def test_bad_json_is_refused(served, body):
    code, _, _ = ask(served, "POST", "/api/searches", body, Content_Type="application/json")
    assert code in (400, 404)


def test_a_range_behind_the_end_fails_in_words(served):
    key = reference_of(served)
    _, job = search(served, query=key, reference=key, query_start=100)
    done = outcome(served, job["id"])
    assert done["state"] == "failed"
    assert "its video ends at 9 s" in done["error"]
    assert ask(served, "GET", f"/api/searches/{job['id']}/report")[0] == 404


def test_the_queue_is_bounded_and_searches_can_be_stopped(served):
    key, inside, go_on = reference_of(served), threading.Event(), threading.Event()

    def block(progress: Any) -> Any:
        inside.set()
        go_on.wait(60)
        progress("a")(0.0, 1.0)
        raise AssertionError("was not stopped")

    running = served.searches.submit(block, ("a", "b"))
    assert inside.wait(60)
    code, waiting = search(served, query=key, reference=key)
    assert code == 202
    code, answer = search(served, query=key, reference=key)
    assert code == 429
    assert "too many" in answer["error"]
    for job in (running.key, waiting["id"]):
        assert ask(served, "DELETE", f"/api/searches/{job}")[0] == 200
    go_on.set()
    assert outcome(served, running.key)["state"] == "cancelled"
    assert outcome(served, waiting["id"])["state"] == "cancelled"
    assert ask(served, "DELETE", "/api/searches/x")[0] == 404
    assert ask(served, "GET", "/api/searches/x")[0] == 404


def test_an_accident_ends_one_search_only():
    searches, after = SearchQueue(), threading.Event()

    def fail(progress: Any) -> Any:
        raise RuntimeError("/secret/path")

    job = searches.submit(fail, ("a", "b"))
    searches.submit(lambda progress: after.set(), ("a", "b"))
    assert after.wait(60)
    searches.close()
    assert job.state == "failed"
    assert job.error == "failed unexpectedly (RuntimeError)"


def test_old_answers_are_forgotten(monkeypatch):
    monkeypatch.setattr("relocal_pyg.serve.jobs.KEPT", 2)
    searches, keys = SearchQueue(), []
    for _ in range(5):
        done = threading.Event()

        def work(progress: Any, done: threading.Event = done) -> Any:
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


def test_the_command_checks_and_starts(monkeypatch, films, capsys, tmp_path: Path):
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn_module(), "run", lambda app, **options: started.append(options))
    assert main(["serve", str(films["folder"]), "--port", "8123"]) == 0
    assert started == [
        {"host": "127.0.0.1", "port": 8123, "log_level": "warning", "server_header": False}
    ]
    assert "http://127.0.0.1:8123" in capsys.readouterr().out
    assert main(["serve", "--host", "0.0.0.0"]) == 0
    assert "no password" in capsys.readouterr().out
    assert main(["serve", "--port", "0"]) == 2
    assert main(["serve", str(tmp_path)]) == 2


def uvicorn_module() -> Any:
    import uvicorn

    return uvicorn
