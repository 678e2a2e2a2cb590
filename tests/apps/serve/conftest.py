"""Small videos, a running server and a real browser."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")
pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from relocal_pyg.apps.serve import Collection, Library, SearchQueue, make_app  # noqa: E402
from relocal_pyg.apps.serve.app import server_of  # noqa: E402
from relocal_pyg.data.features import FeatureStore  # noqa: E402
from relocal_pyg.models import ContrastMatcher  # noqa: E402
from relocal_pyg.search import build_index  # noqa: E402
from relocal_pyg.video import FeatureCache, FunctionBackbone, index_features  # noqa: E402


def means(frames: torch.Tensor) -> torch.Tensor:
    """The picture in 6 x 8 blocks."""
    return frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1)


BLOCKS = FunctionBackbone(means, "blocks", dim=144, size=(48, 64))


def texture(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = rng.integers(30, 225, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.normal(scale=6, size=(count, 48, 64, 3))
    return list(np.clip(picture + noise, 0, 255).astype(np.uint8))


def write(path: Path, pictures: list[np.ndarray], codec: str | None = None) -> Path:
    codec = codec or ("libx264" if "libx264" in av.codecs_available else "mpeg4")
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"g": "12"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reference with texture 7 from 4 to 6 s, and a clip of it."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "served").mkdir()
    long = [*texture(1, 100), *texture(7, 50), *texture(2, 75)]
    return {
        "folder": folder / "served",
        "reference": write(folder / "served" / "reference.mp4", long),
        "clip": write(folder / "clip.mp4", texture(7, 50)),
    }


@pytest.fixture
def old_film(tmp_path: Path) -> Path:
    """A film in a format that Chromium does not play."""
    return write(tmp_path / "old.avi", texture(3, 30), "mpeg4")


@pytest.fixture
def heard_film(tmp_path: Path) -> Path:
    """A film of which Chromium plays the sound alone."""
    silent, film = write(tmp_path / "silent.mp4", texture(3, 30), "mpeg4"), tmp_path / "film.mp4"
    with av.open(str(silent)) as given, av.open(str(film), "w") as output:
        shown = output.add_stream_from_template(given.streams.video[0])
        sound = output.add_stream("aac", rate=16000, layout="mono")
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = shown
                output.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux([*sound.encode(frame), *sound.encode()])
    return film


@pytest.fixture
def torn_film(tmp_path: Path) -> Path:
    """A film that ends before it says; its path is no easy one."""
    whole = write(tmp_path / "whole.mkv", [*texture(1, 25), *texture(7, 50), *texture(2, 75)])
    torn = tmp_path / "My: Films" / os.fsdecode(b"take 2: caf\xe9.mkv")  # not UTF-8
    torn.parent.mkdir()
    torn.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    return torn


@pytest.fixture
def blocks() -> FunctionBackbone:
    """The network of every server here."""
    return BLOCKS


@pytest.fixture(scope="session")
def _three_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    middles, ends = {"one": 12, "two": 7, "three": 13}, {"one": 22, "two": 23, "three": 7}
    for number, name in enumerate(middles):
        parts = [(30 + number, 50), (middles[name], 50), (ends[name], 50)]
        pictures = [picture for seed, count in parts for picture in texture(seed, count)]
        write(folder / f"{name}.mp4", pictures)
    return folder


@pytest.fixture
def index(_three_films: Path, tmp_path: Path) -> Path:
    """An index of three films of 6 s; texture 7 is in "two" from 2 s, in "three" from 4 s."""
    folder = Path(shutil.copytree(_three_films, tmp_path / "indexed"))
    return index_of(folder, tmp_path / "index")


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """An index of two films of one file name; texture 7 is in both from 2 s."""
    folder = tmp_path / "days"
    for day, seed in (("day1", 20), ("day2", 21)):
        (folder / day).mkdir(parents=True)
        write(folder / day / "cam.mp4", [*texture(seed, 50), *texture(7, 50)])
    return index_of(folder, tmp_path / "index of days")


def index_of(folder: Path, place: Path) -> Path:
    """The index of a folder, made at a place."""
    made, _ = index_features(folder, place, BLOCKS, 12.5)
    store = FeatureStore(made.features)
    build_index(place, ContrastMatcher(), ((name, store.read(name), 0.08) for name in store.ids))
    return place


@dataclass
class Served:
    """A running server."""

    port: int
    library: Library
    searches: SearchQueue
    model: ContrastMatcher
    server: Any
    thread: threading.Thread
    collection: Collection | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, named = json.dumps(body).encode(), {"Content-Type": "application/json", **named}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def upload(self, content: bytes, name: str = "a.mp4", **headers: str) -> tuple[int, Any]:
        wanted = {"Content_Type": "application/octet-stream", "X_File_Name": name, **headers}
        code, _, body = self.ask("POST", "/api/videos", content, **wanted)
        return code, json.loads(body)

    def search(self, **wanted: Any) -> tuple[int, dict[str, Any]]:
        code, _, body = self.ask("POST", "/api/searches", wanted)
        return code, json.loads(body)

    def judge(self, job: str, number: int | str, **said: Any) -> tuple[int, dict[str, Any]]:
        code, _, body = self.ask("PATCH", f"/api/searches/{job}/moments/{number}", said)
        return code, json.loads(body)

    def outcome(self, key: str) -> dict[str, Any]:
        """What a search ends with."""
        while True:
            now = json.loads(self.ask("GET", f"/api/searches/{key}")[2])
            if now["state"] not in ("waiting", "running"):
                return dict(now)

    def reference(self) -> str:
        """The id of the first video."""
        return str(self.library.entries()[0].key)


@contextmanager
def serving(
    library: Library, features: Path, model: ContrastMatcher, collection: Collection | None = None
) -> Iterator[Served]:
    """A server on a free port."""
    searches = SearchQueue(waiting=1)
    cache = FeatureCache(features)
    app = make_app(library, searches, cache, model, BLOCKS, collection=collection)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # whoever connects before the server runs waits in the socket's queue
    server = server_of(app)
    server.config.log_level = "error"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Served(listening.getsockname()[1], library, searches, model, server, thread, collection)
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def served(films: dict[str, Path], tmp_path: Path, request: Any) -> Iterator[Served]:
    """Videos of a folder; ``request.param`` are options of the library."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    library = Library(uploads, films["folder"], **getattr(request, "param", {}))
    with serving(library, tmp_path / "features", ContrastMatcher()) as running:
        yield running


@pytest.fixture
def served_nothing(tmp_path: Path) -> Iterator[Served]:
    """No videos yet."""
    uploads = tmp_path / "uploads of nothing"
    uploads.mkdir()
    with serving(Library(uploads), tmp_path / "features of nothing", ContrastMatcher()) as running:
        yield running


@pytest.fixture
def served_index(index: Path, tmp_path: Path) -> Iterator[Served]:
    """Videos of an index."""
    uploads = tmp_path / "uploads of the index"
    uploads.mkdir()
    library = Library(uploads)
    model = ContrastMatcher()
    collection = Collection(index, model, library, BLOCKS)
    features = tmp_path / "features of the index"
    with serving(library, features, model, collection) as running:
        yield running


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-dev-shm-usage"
    switches += " disable-background-networking disable-component-update disable-sync"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--window-size=1280,1000")
    service = webdriver.chrome.service.Service(driver)
    running = webdriver.Chrome(options=options, service=service)
    yield running
    running.quit()
