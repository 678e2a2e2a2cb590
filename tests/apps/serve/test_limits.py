"""Clients that hold on to what they got: each is let go of, and the page stays open to others."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from relocal_pyg.apps.serve import app, requests
from relocal_pyg.apps.serve.requests import Guard


def closed(connection: socket.socket) -> bool:
    """Whether the other end closes; an answer is skipped."""
    connection.settimeout(60)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET /api/videos HTTP/1.1\r\nHost: local"])
def test_whoever_asks_for_nothing_is_let_go(served, monkeypatch, said):
    monkeypatch.setattr(app.Connection, "idle", 0.2)
    silent = []
    for _ in range(app.MAX_CONNECTIONS + 16):
        silent.append(socket.create_connection(("127.0.0.1", served.port)))
        silent[-1].sendall(said)
    assert all(closed(each) for each in silent)
    assert served.ask("GET", "/api/videos")[0] == 200


@pytest.mark.slow
def test_an_answer_that_nobody_takes_is_given_up(served, monkeypatch):
    monkeypatch.setattr(app.Connection, "idle", 0.2)
    monkeypatch.setattr(app.Connection, "stalled", 0.4)
    with served.library.entries()[0].path.open("ab") as film:
        before = film.tell()
        film.truncate(1 << 28)  # more than any socket takes in
    try:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            path = f"/api/videos/{served.reference()}"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(4) == b"HTTP"
            while served.server.server_state.connections:  # until the time limit of every test
                served.ask("GET", "/favicon.ico")
    finally:
        with served.library.entries()[0].path.open("ab") as film:
            film.truncate(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "kind", "whole"),
    [
        ("/api/videos", "application/octet-stream", 10_000),
        ("/api/searches", "application/json", 100),
        ("/api/example", "application/json", 100),
    ],
)
def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch, path, kind, whole):
    monkeypatch.setattr(requests, "PAUSE", 0.3)
    slow = []
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", str(whole))
        connection.endheaders(b"{")
        slow.append(connection)
    assert [connection.getresponse().status for connection in slow] == [408, 408]
    assert list(served.library.uploads.iterdir()) == []
    assert served.library.reserve(served.library.max_bytes)  # what was kept for them is free


@pytest.mark.parametrize("served", [{"max_total": 100}], indirect=True)
def test_previews_count_as_uploads_do(served):
    code, _, body = served.ask("GET", f"/api/videos/{served.reference()}/preview")
    assert (code, b"no room for a preview" in body) == (507, True)
    assert list(served.library.uploads.iterdir()) == []
    assert served.library.reserve(100)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The first preview goes on for ever, others are made at once: when it is at it, and was."""
    inside, ended = threading.Event(), threading.Event()

    def cut_clip(source, start, end, target, *, reencode, check):
        target.write_bytes(b"x" * 100)
        if inside.is_set():
            return
        try:
            while True:
                check(target)
                inside.set()
                threading.Event().wait(0.01)
        finally:
            ended.set()

    monkeypatch.setattr("relocal_pyg.apps.serve.library.cut_clip", cut_clip)
    return inside, ended


@contextmanager
def asking_for_a_preview(served):
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        path = f"/api/videos/{served.reference()}/preview"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield connection


@pytest.mark.slow
def test_a_preview_that_nobody_waits_for_is_given_up(served, films, endless):
    inside, ended = endless
    _, clip = served.upload(films["clip"].read_bytes())
    with asking_for_a_preview(served):
        assert inside.wait(60)
        # What else is made does not wait for it.
        assert served.ask("POST", "/api/example", {})[0] == 200
        assert not ended.is_set()
    code, _, body = served.ask("GET", f"/api/videos/{clip['id']}/preview")
    assert (code, body) == (200, b"x" * 100)
    assert ended.is_set()
    (made,) = served.library.uploads.glob("*.mp4")
    assert made.name.startswith(clip["id"])


@pytest.mark.slow
@pytest.mark.parametrize("served", [{"max_total": 150}], indirect=True)
def test_room_of_a_preview_is_taken_as_it_grows(served, endless):
    inside, ended = endless
    with asking_for_a_preview(served):
        assert inside.wait(60)
        assert not served.library.reserve(51)
    assert ended.wait(60)
    while not served.library.reserve(150):
        served.ask("GET", "/favicon.ico")


@pytest.mark.slow
def test_a_server_that_makes_a_preview_ends_at_once_and_silently(capfd, served, endless):
    inside, ended = endless
    with asking_for_a_preview(served) as connection:
        assert inside.wait(60)
        begun = time.monotonic()
        served.server.should_exit = True
        assert closed(connection)
        served.thread.join(60)
        assert time.monotonic() - begun < 2
    assert ended.is_set()
    assert capfd.readouterr().err == ""


def test_a_video_that_is_gone_is_said_to_be(served, films):
    code, entry = served.upload(films["clip"].read_bytes())
    assert code == 201
    served.library.get(entry["id"]).path.unlink()
    assert served.ask("GET", f"/api/videos/{entry['id']}")[0] == 404


@pytest.mark.slow
def test_a_body_that_comes_drop_by_drop_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(requests, "PAUSE", 0.5)
    drops = 0

    class Dripping:
        async def stream(self):
            nonlocal drops
            while True:
                await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.01)
                drops += 1
                yield b"x"

    async def read() -> None:
        async for _ in requests.body_of(Dripping()):  # type: ignore[arg-type]
            pass

    with pytest.raises(TimeoutError):
        asyncio.run(read())
    assert drops > 1


def asked(hosts: tuple[str, ...], name: str) -> bool:
    """Whether a request for a name reaches the application."""
    reached = []

    async def app(scope: object, receive: object, send: object) -> None:
        reached.append(scope)

    async def nothing(*details: object) -> None:
        return None

    scope = {"type": "http", "method": "GET", "headers": [(b"host", name.encode())]}
    asyncio.run(Guard(app, hosts)(scope, nothing, nothing))  # type: ignore[arg-type]
    return bool(reached)


@pytest.mark.parametrize(
    ("name", "here", "everywhere"),
    [
        ("127.0.0.1:8765", True, True),
        ("LOCALHOST", True, True),
        ("[::1]:8765", True, True),
        ("192.168.1.20:8765", False, True),
        ("[fe80::1]:8765", False, True),
        ("evil.example", False, False),
        ("127.0.0.1.evil.example:8765", False, False),
        ("evil.example@127.0.0.1", False, False),
        ("127.0.0.1/evil", False, False),
        ("[::1", False, False),
        ("0.0.0.0.evil", False, False),
        ("", False, False),
    ],
)
def test_names_of_this_machine(name, here, everywhere):
    """A page elsewhere can point its own name at this machine, and no address."""
    assert asked(("127.0.0.1", "localhost", "::1"), name) is here
    assert asked(("127.0.0.1", "localhost", "::1", "0.0.0.0"), name) is everywhere


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("application/json; charset=utf-8", 404),  # as many clients say it: no such video
        ("Application/JSON", 404),
        ("text/plain; application/json", 400),
        ("", 400),
    ],
)
def test_json_is_taken_by_its_type_whatever_stands_behind(served, kind, code):
    assert served.ask("POST", "/api/searches", b"{}", Content_Type=kind)[0] == code
