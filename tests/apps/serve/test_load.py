"""Many clients at once: what the page refuses, that it loses nothing, and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import http.client
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from relocal_pyg.apps.serve.app import MAX_CONNECTIONS


def insist(served: Any, **wanted: Any) -> tuple[int, dict[str, Any]]:
    """Ask for a search until there is room; how often there was none, and what it ends with."""
    refused = 0
    while True:
        code, answer = served.search(**wanted)
        if code == 202:
            return refused, served.outcome(answer["id"])
        assert code == 429
        assert "try again" in answer["error"]
        refused += 1


@pytest.mark.slow
def test_no_search_of_many_clients_is_lost(served):
    """Twelve clients with searches of their own, one room in the queue."""
    key = served.reference()

    def client(number: int) -> tuple[int, dict[str, Any]]:
        # Each looks for a stretch of its own, so that an answer given to another would show.
        return insist(served, query=key, reference=key, query_start=0.7 * number, top_k=1)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(client, range(12)))
    for number, (_, done) in enumerate(answers):
        assert done["state"] == "done", done["error"]
        steps = done["settings"]["query_steps"] * done["settings"]["seconds_per_step"]
        assert steps == pytest.approx(9 - 0.7 * number, abs=0.66)
    assert len({done["id"] for _, done in answers}) == 12


@pytest.mark.slow
def test_a_full_queue_refuses_and_keeps_what_it_took(served):
    """With the queue held still: exactly its room is accepted, everything else is 429."""
    key, inside, go_on = served.reference(), threading.Event(), threading.Event()

    def hold(progress: Any, marks: Any) -> Any:
        inside.set()
        go_on.wait(60)
        raise RuntimeError

    served.searches.submit(hold, ("a", "b"))
    assert inside.wait(60)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: served.search(query=key, reference=key), range(16)))
    codes = sorted(code for code, _ in answers)
    assert codes == [202] + [429] * 15
    # Whoever is turned away can still look around.
    assert served.ask("GET", "/api/videos")[0] == 200
    go_on.set()
    accepted = next(answer["id"] for code, answer in answers if code == 202)
    assert served.outcome(accepted)["state"] == "done"


class Unfinished:
    """An upload of which only the first byte was sent."""

    def __init__(self, served: Any, content: bytes) -> None:
        self.content = content
        self.connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        self.connection.putrequest("POST", "/api/videos")
        self.connection.putheader("Content-Type", "application/octet-stream")
        self.connection.putheader("Content-Length", str(len(content)))
        self.connection.endheaders(content[:1])

    def finish(self) -> int:
        self.connection.send(self.content[1:])
        code = self.connection.getresponse().status
        self.connection.close()
        return code


def test_two_uploads_at_a_time(served, films):
    content = films["clip"].read_bytes()
    slow = [Unfinished(served, content) for _ in range(2)]
    while len(list(served.library.uploads.iterdir())) < 2:
        assert served.ask("GET", "/api/videos")[0] == 200
    code, answer = served.upload(content)
    assert code == 503
    assert "try again" in answer["error"]
    assert [upload.finish() for upload in slow] == [201, 201]
    assert served.upload(content)[0] == 201
    assert len(served.library.entries()) == 4


@pytest.mark.slow
def test_uploads_of_many_clients_arrive_whole(served, films):
    content = films["clip"].read_bytes()

    def client(number: int) -> str:
        while True:
            code, answer = served.upload(content, f"{number}.mp4")
            if code == 201:
                return str(answer["id"])
            assert code == 503

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(client, range(8)))
    for number, key in enumerate(keys):
        entry = served.library.get(key)
        assert entry.name == f"{number}.mp4"
        assert entry.path.read_bytes() == content
    assert len(list(served.library.uploads.iterdir())) == 8


def test_connections_are_bounded(served):
    """Those that say nothing do not keep others out for good."""
    silent = []
    for _ in range(MAX_CONNECTIONS):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.connect()
        silent.append(connection)
    while (code := served.ask("GET", "/api/videos")[0]) == 200:
        pass  # the last of them are not accepted yet
    assert code == 503
    for connection in silent:
        connection.close()
    while (code := served.ask("GET", "/api/videos")[0]) == 503:
        pass
    assert code == 200


def resident() -> int:
    """Bytes of memory of this process, which holds the server too, less what is freed and kept."""
    with contextlib.suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(served, films):
    key, content = served.reference(), films["clip"].read_bytes()
    listing = len(served.ask("GET", "/api/videos")[2])

    def round_of_requests(number: int) -> None:
        _, done = insist(served, query=key, reference=key, query_start=4, query_end=6)
        assert done["state"] == "done"
        assert served.ask("GET", f"/api/videos/{key}")[0] == 200
        assert served.upload(content[: len(content) // 2])[0] in (415, 503)
        assert served.ask("POST", "/api/searches", b"{", Content_Type="application/json")[0] == 400

    def requests(count: int) -> None:
        with ThreadPoolExecutor(2) as pool:  # there is room for both: nobody asks in vain
            list(pool.map(round_of_requests, range(count)))

    requests(60)  # fills the list of remembered answers and what libraries keep
    gc.collect()
    before = resident()
    requests(80)
    gc.collect()
    assert resident() - before < 4 * 2**20
    assert len(served.ask("GET", "/api/videos")[2]) == listing
    assert list(served.library.uploads.iterdir()) == []
    assert json.loads(served.ask("GET", "/api/index")[2]) == {"videos": 0, "playable": 0}
