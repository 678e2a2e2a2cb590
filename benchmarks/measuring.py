"""Timing, memory and the machine."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

#: What is read before and after a call. On a machine that others use too, take the processor time
#: of one thread: wall time there measures the others.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def use_clock(name: str) -> None:
    """Take the times of every later measurement with this clock."""
    global clock
    clock = CLOCKS[name]


@dataclass
class Table:
    """Rows of one part; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, *row: Any) -> None:
        self.rows.append(list(row))

    def text(self) -> str:
        cells = [[_show(value) for value in row] for row in [self.columns, *self.rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        return "\n".join([self.title, *lines])


def median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time after one call that warms up."""
    return interleaved({"it": call}, repeats)["it"]


def interleaved(calls: dict[Any, Callable[[], object]], repeats: int = 5) -> dict[Any, float]:
    """Median wall time of several things taken in turns, so that a busy moment meets them all."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            _wait()
            start = clock()
            call()
            _wait()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mebibytes(call: Callable[[], object]) -> float:
    """Memory that a call adds at its peak, seen by a child process of its own."""
    return alone(lambda: [call(), None][1])[1]


def alone(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, as JSON can hold it, and MiB that it adds at its peak, in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the child's high-water mark starts at what it shares with its parent
        torch.set_num_threads(1)
        before = _resident()
        found = call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with os.fdopen(write, "w") as stream:
            json.dump([found, max(0.0, peak - before)], stream)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    found, peak = json.loads(answer or "[null, NaN]")
    return found, peak


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """The best GFLOP/s of a square product by the fastest library at hand: the measured peak."""
    from relocal_pyg.nn.products import project

    x, w = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = min(median_seconds(lambda: project(x, w), 5), median_seconds(lambda: x @ w, 5))
    return 2 * size**3 / best / 1e9


def machine() -> dict[str, Any]:
    """One line about the machine, without its name."""
    able = torch.cpu.get_capabilities()
    return {
        "processor": str(able.get("cpu_name", "unknown")),
        "threads": torch.get_num_threads(),
        "avx512_bf16": bool(able.get("avx512_bf16")),
        "amx_bf16": bool(able.get("amx_bf16")),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none: not measured",
    }


def run_python(code: str) -> float:
    """Wall time of a fresh interpreter that runs a line."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _resident() -> float:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
