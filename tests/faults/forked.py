"""Scripts in processes of their own that need not import torch: forks of one that has it."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

#: Processes start here with what takes seconds to import, and nothing of this package.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch_geometric.nn", "scipy.stats", "lightning_fabric", "torchmetrics"]
)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """``python`` with these words, a file or ``-m`` first; what it printed and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("out", "err")]
        with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
            arguments = list(map(str, words))
            process = start(arguments, Path.cwd(), out.fileno(), err.fileno())
            process.join()
        assert process.exitcode is not None
        texts = [output.read_text() for output in outputs]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def run_code(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """``python -c``, as above."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(code)
        return run(script, *words)


def start(words: list[str], folder: Path, out: int, err: int) -> BaseProcess:
    """``python`` with some words, a file or ``-m`` first, in a folder and with its own streams."""
    # They cross to the process as connections, which close their own copies.
    streams = [Connection(os.dup(number)) for number in (out, err)]
    process = CONTEXT.Process(target=_python, args=(words, folder, {**os.environ}, streams))
    process.start()
    return process


def _python(
    words: list[str], folder: Path, environment: dict[str, str], streams: list[Connection]
) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # a process of this one's own is no server's
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1) for number in (1, 2))
    # Tests that run in the background ignore Ctrl-C, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(words)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
