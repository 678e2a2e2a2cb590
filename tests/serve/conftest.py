"""Small videos, a running server and a real browser."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
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

from relocal_pyg.serve import Library, SearchQueue, make_app  # noqa: E402
from relocal_pyg.video import FeatureCache, FunctionBackbone  # noqa: E402


def blocks(frames: torch.Tensor) -> torch.Tensor:
    """The picture in 6 x 8 blocks."""
    return frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1)


BLOCKS = FunctionBackbone(blocks, "blocks", dim=144, size=(48, 64))


def texture(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = rng.integers(30, 225, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.normal(scale=6, size=(count, 48, 64, 3))
    return list(np.clip(picture + noise, 0, 255).astype(np.uint8))


def write(path: Path, pictures: list[np.ndarray]) -> Path:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
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


@dataclass
class Served:
    """A running server."""

    port: int
    library: Library
    searches: SearchQueue

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def served(films: dict[str, Path], tmp_path: Path, request: Any) -> Iterator[Served]:
    """A server on a free port; ``request.param`` are options of the library."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    library = Library(uploads, films["folder"], **getattr(request, "param", {}))
    searches = SearchQueue(waiting=1)
    app = make_app(library, searches, FeatureCache(tmp_path / "features"), backbone=lambda: BLOCKS)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # whoever connects before the server runs waits in the socket's queue
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Served(listening.getsockname()[1], library, searches)
    server.should_exit = True
    thread.join()
    listening.close()


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
