"""Ctrl-C and SIGTERM: any command ends soon and in one line, and leaves nothing half done."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start

from relocal_pyg.data import write_features
from relocal_pyg.io.record import verify_manifest
from relocal_pyg.io.write import write_json
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.search import build_index

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="children are listed in /proc"
)
ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("RELOCAL_FAULTS") == "full"
#: Seconds that a command may take to end: what is promised, on a machine that does nothing else.
LIMIT = 2.0 if FULL else 20.0
DATA = ["--protocol", "custom", "--features", "rows.h5", "--annotations", "rows.json"]

#: Commands that would take minutes, each with what it writes.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "find": (["find", "q.npy", "r.npy", "--json", "out/a.json"], "out/a.json"),
    "find in a video": (["find", "long.ts", "long.ts", "--json", "out/a.json"], "out/a.json"),
    "extract": (["extract", "long.ts", "-o", "out/a.h5"], "out/a.h5"),
    "index": (["index", "out/index", "long.ts"], "out/index/index.json"),
    "search": (["search", "index", "q.npy", "--json", "out/a.json"], "out/a.json"),
    "train": (["train", "out/run", *DATA], "out/run/best"),
    "pretrain": (["pretrain", "out/run", "--worlds", "0"], "out/run/best"),
    "propose": (["propose", "out/a.txt", *DATA, "--steps", "100000"], "out/a.txt"),
    "ablate": (["ablate", "out/runs", *DATA], "out/runs/test_seen"),
    "convert": (["convert", "table.csv", "-o", "out/a.csv"], "out/a.csv"),
    "check": (["check", "rows.h5", "rows.json", "--report", "out/a.json"], "out/a.json"),
    "serve": (["serve", "--port", "PORT"], "out/nothing"),
}
#: Those that say something, or show a bar, as soon as they are at work.
TALKING = ["find in a video", "extract", "index", "train", "pretrain", "propose", "ablate", "serve"]
FILMS = {"find in a video", "extract", "index", "serve"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    draw = np.random.default_rng(0)
    np.save(folder / "q.npy", draw.standard_normal((200, 16)).astype("f4"))
    np.save(folder / "r.npy", draw.standard_normal((100_000, 16)).astype("f4"))
    rows = {
        f"v{n}": torch.from_numpy(draw.standard_normal((300, 16)).astype("f4")) for n in range(16)
    }
    write_features(folder / "rows.h5", rows.items())
    segments = [{"segment": [20.0 * i, 20.0 * i + 12], "label": "ab"[i % 2]} for i in range(10)]
    database = {name: {"duration": 300.0, "annotations": segments} for name in rows}
    write_json(folder / "rows.json", {"database": database})
    build_index(folder / "index", ContrastMatcher(), ((k, v, 1.0) for k, v in rows.items()))
    lines = [f"v{n % 3000},{n % 900},{n % 900 + 2},l{n % 50}" for n in range(240_000)]
    (folder / "table.csv").write_text("video,start,end,label\n" + "\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def film(place: Path) -> None:
    """A minute of noise, joined with itself twenty times: its clock starts again each time."""
    av = pytest.importorskip("av")
    pytest.importorskip("openvino")
    draw = np.random.default_rng(0)
    with av.open(str(place / "part.ts"), "w") as output:
        stream = output.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(1500):
            picture = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    (place / "long.ts").write_bytes((place / "part.ts").read_bytes() * 20)


class Running:
    """A command in a process of its own, with a terminal to talk to."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.terminal, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 80))  # a bar has no room in a terminal of no width
        self.process = start(["-m", "relocal_pyg", *words], folder, theirs, theirs)
        os.close(theirs)
        self.said = b""

    def listen(self, seconds: float) -> bool:
        """Take what is said within some seconds; False once nothing more can come."""
        if not select.select([self.terminal], [], [], seconds)[0]:
            return True
        try:
            heard = os.read(self.terminal, 1 << 16)
        except OSError:  # a terminal without anyone at its other end
            return False
        self.said += heard
        return bool(heard)

    def await_work(self, out: Path, talking: bool) -> None:
        """Until it holds what it is to write, or, ``talking``, until it says something."""
        deadline = time.monotonic() + 300
        while not (self.said if talking else any(out.rglob(".relocal-*lock"))):
            assert self.listen(0.02), self.said.decode()
            assert time.monotonic() < deadline, self.said.decode()

    def children(self) -> list[int]:
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
                found += [int(word) for word in (task / "children").read_text().split()]
        return found

    def end(self, number: int) -> tuple[str, float]:
        """Send a signal; the last line it said, and how many seconds it went on."""
        handles = []
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(child))
        began = time.monotonic()
        os.kill(self.process.pid, number)
        while self.listen(LIMIT):
            assert time.monotonic() - began < LIMIT, self.said.decode()
        self.process.join(LIMIT)
        took = time.monotonic() - began
        for handle in handles:  # readable once the process is gone
            assert select.select([handle], [], [], LIMIT)[0]
            os.close(handle)
        return self.said.decode().replace("\r", "\n").strip().splitlines()[-1].strip(), took

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        os.close(self.terminal)


@pytest.fixture
def running(place: Path, tmp_path: Path) -> Iterator[object]:
    import socket

    started: list[Running] = []
    (place / "out").unlink(missing_ok=True)
    (place / "out").symlink_to(tmp_path)

    def start(words: list[str]) -> Running:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        started.append(Running([port if word == "PORT" else word for word in words], place))
        return started[-1]

    yield start
    for each in started:
        each.close()


SIGNALS = [signal.SIGTERM, signal.SIGINT]
CASES = [
    (name, talking, number)
    for talking, names in ((False, sorted(set(COMMANDS) - {"serve"})), (True, TALKING))
    for name in names
    for number in SIGNALS
    # Those that can be met at two times meet one signal at each: both are handled by one function.
    if FULL or name not in TALKING or name == "serve" or number == SIGNALS[talking]
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "talking", "number"), CASES)
def test_a_command_ends_when_it_is_told_to(
    place: Path, tmp_path: Path, running, request, figure, name: str, talking: bool, number: int
) -> None:
    if name in FILMS:
        request.getfixturevalue("film")
    words, target = COMMANDS[name]
    for _ in range(5):
        command = running(words)
        command.await_work(tmp_path, talking)
        last, took = command.end(number)
        if command.process.exitcode != 0 or name == "serve":
            break
        # On a busy machine it may be done before it is told: nothing was seen, so once more.
        for each in tmp_path.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    figure("signals", f"{name}: {took:.2f} s after {signal.Signals(number).name}")
    assert "Traceback" not in command.said.decode()
    if name == "serve" and command.process.exitcode == 0:  # a signal is how serving ends
        assert "open http" in command.said.decode()
    else:
        assert last.endswith("relocal: interrupted")
        assert command.process.exitcode == 130
    assert not (place / target).exists()
    # A lock is free when its holder is gone; the file that carried it does no harm.
    assert all(each.name.endswith("lock") for each in tmp_path.rglob(".relocal-*"))
    if (tmp_path / "run" / "last").exists():  # what training goes on from
        verify_manifest(tmp_path / "run" / "last", "checkpoint")


def test_a_command_ends_while_it_starts(place: Path) -> None:
    """Before anything but Python itself is imported: no traceback either."""
    # Tests that run in the background ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = subprocess.Popen(
        [sys.executable, "-m", "relocal_pyg", "find", "q.npy", "r.npy"],
        cwd=place,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    signal.signal(signal.SIGINT, before)
    status = Path(f"/proc/{command.pid}/status")
    while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & 1 << signal.SIGTERM - 1:
        assert command.poll() is None
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=LIMIT)[1] == b"relocal: interrupted\n"


@pytest.mark.parametrize(
    "fault",
    [
        "def __init__(self): signal.raise_signal(signal.SIGINT)\n def __del__(self): self.absent",
        "def __del__(self): signal.raise_signal(signal.SIGINT)",
        # Sent once more while it is being noticed that it was lost.
        "def __del__(self):\n  threading.Timer = Early\n  signal.raise_signal(signal.SIGINT)",
        # As a progress bar does, which is drawn once more when it is closed.
        "def __init__(self): signal.raise_signal(signal.SIGINT)\n"
        " def __del__(self): print('bar', file=sys.stderr)",
        # As a lock that is given back twice, where the signal comes between two of its steps.
        "def __init__(self):\n  try: signal.raise_signal(signal.SIGINT)\n"
        "  finally: threading.Lock().release()",
    ],
    ids=["half made", "in a destructor", "at once", "shown again", "in a lock"],
)
def test_an_interrupt_among_destructors_is_one_line_and_not_lost(fault: str) -> None:
    script = f"""
import signal, sys, threading, time, types, warnings
from relocal_pyg.__main__ import main
Timer = threading.Timer
class Early(Timer):
 def start(self):
  threading.Timer = Timer
  signal.raise_signal(signal.SIGINT)
class Fault:
 {fault}
def command():
    async def waits(): ...
    waiting = waits()  # thrown away without being awaited, which Python warns of
    Fault()
    time.sleep(60)
sys.modules["relocal_pyg.apps.cli"] = types.SimpleNamespace(main=command)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 130
    assert ended.stderr in ("relocal: interrupted\n", "bar\nrelocal: interrupted\n")
