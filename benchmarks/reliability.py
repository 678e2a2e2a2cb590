"""``python -m benchmarks.reliability [GOAL ...] [--quick] [--json FILE]``: every goal, measured.

Runs the tests behind each goal with full counts (``RELOCAL_FAULTS=full``) and prints what they
measured: half an hour on two cores. ``--quick`` takes the counts of continuous integration.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.bombs import OWN
from benchmarks.measuring import machine

ROOT = Path(__file__).resolve().parents[1]

#: Goal, what was promised, and the tests that measure it (arguments of pytest).
GOALS: dict[str, tuple[str, list[list[str]]]] = {
    "kill -9 during save": (
        "0/200 unreadable or mixed, on the same and another file system; never older than told",
        [["tests/faults/test_kills.py", "-k", "writer or file_system"]],
    ),
    "full disk": (
        "a typed error, the old file intact",
        [
            ["tests/faults/test_damage.py", "-k", "full_disk"],
            ["tests/test_storage.py", "-k", "full_disk"],
            ["tests/test_bad_inputs.py", "-k", "test_41"],
        ],
    ),
    "corruption": (
        ">= 99.9 % of 1,000 bit flips of a checkpoint raise, 0 silent",
        [["tests/faults/test_damage.py", "-k", "not full_disk"]],
    ),
    "resume": (
        "sha256-equal weights 10/10: kill -9, SIGTERM, Ctrl-C; 0 and 2 workers; a dead rank",
        [
            ["tests/faults/test_kills.py", "-k", "resume or command or rank"],
            ["tests/training/test_interrupts.py"],
        ],
    ),
    "code execution": (
        "0 payloads run over every reader; nothing in the source that could",
        [
            ["tests/test_bad_inputs.py", "-k", "test_37"],
            ["tests/test_architecture.py", "-k", "can_run"],
        ],
    ),
    "bad inputs": ("41/41 as tabled, 0 tracebacks", [["tests/test_bad_inputs.py"]]),
    "fuzz": ("10,000 spoilt files: 0 uncaught, 0 hanging", [["tests/faults/test_fuzz.py"]]),
    "outputs": (
        "0 of 500 outputs reach an input; nothing foreign replaced; two writers 50 of 50",
        [["tests/faults/test_outputs.py"]],
    ),
    "text": (
        "blanks, Unicode forms, separators, clocks and rates: read as meant, or said",
        [["tests/faults/test_text.py"]],
    ),
    "numbers": (
        "every number is checked where it enters, in one line",
        [["tests/faults/test_numbers.py"]],
    ),
    "foreign files": (
        "arrays, manifests, JSON and what is no file: an answer or one line, < 300 MB",
        [["tests/faults/test_foreign.py"]],
    ),
    "odd files": (
        "60 films, containers by codecs by clocks: found within a step of where ffmpeg shows it",
        [["tests/video/test_odd_files.py"], ["tests/video/test_clock.py"]],
    ),
    "cuts": (
        "clips are shown as their source is: pictures, aspect, colours, depth, tag, length",
        [["tests/video/test_cut.py"]],
    ),
    "short clips": (
        "a query that covers its reference, or is in the index, comes first",
        [["tests/search/test_short_clips.py"]],
    ),
    "signals": (
        "Ctrl-C and SIGTERM end every command within two seconds, in one line, nothing half done",
        [["tests/faults/test_signals.py"]],
    ),
    "bombs": (
        "47 bombs of ten kinds: an answer or one line, < 300 MB over a sound file's",
        [["tests/test_bad_inputs.py", "-k", "bomb"], ["tests/faults/test_import_bombs.py"]],
    ),
    "mutations": (
        "10,000 mutated shards, manifests, arrays and sidecars of an index: an answer or one line, "
        "none over 10 s",
        [],
    ),
    "loader": (
        "0 wrong rows under fork, spawn, forkserver; descriptors flat; < 50 MB over 40,000 reads",
        [["tests/faults/test_loaders.py"]],
    ),
    "numerics": (
        "no NaN in weights, finite answers to odd features, the same bits twice",
        [["tests/faults/test_numerics.py"]],
    ),
    "invariance": (
        "alone or in a batch, padded or not, permuted edges: float64 1e-12, float32 1e-5",
        [
            ["tests/nn", "tests/models", "-k", "one_by_one or pair_by_pair or padding or permut"],
            ["tests/nn/test_inference.py"],
        ],
    ),
    "gradients": (
        "gradcheck of layers and losses in float64; torch.compile parity",
        [["tests/nn", "tests/models", "-k", "grad or compile"]],
    ),
    "shards": (
        "1, 2, 8 shards, Ray, killed workers: identical bytes",
        [["tests/search/test_shards.py"], ["tests/faults/test_killed_shards.py"]],
    ),
    "append": (
        "an index that is added to is searched meanwhile: whole shards, right answers",
        [["tests/faults/test_append.py"], ["tests/search/test_index.py", "-k", "while_videos"]],
    ),
    "load": (
        "the page under many clients: bounded queue, clear refusals, no lost request, flat memory",
        [["tests/apps/serve/test_load.py", "tests/apps/serve/test_limits.py"]],
    ),
}


@dataclass
class Row:
    """What became of a goal."""

    goal: str
    promised: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)


def measure(goal: str, quick: bool) -> Row:
    """Run the tests of a goal and collect the figures they note."""
    promised, runs = GOALS[goal]
    row, started = Row(goal, promised), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "figures"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RELOCAL_FIGURES": str(notes)}
        environment["RELOCAL_FAULTS"] = "quick" if quick else "full"
        for arguments in runs:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout):
                kind = "failed" if kind == "error" else kind
                setattr(row, kind, getattr(row, kind) + int(number))
            if done.returncode:
                row.failed = max(row.failed, 1)
                print(done.stdout[-3000:], file=sys.stderr)
        if notes.exists():
            noted = [json.loads(line) for line in notes.read_text("utf-8").splitlines()]
            row.figures = [text for name, text in noted if name == goal]
        if goal in OWN:
            with contextlib.chdir(folder):
                for figure, fault in OWN[goal](quick):
                    row.passed, row.failed = row.passed + (not fault), row.failed + bool(fault)
                    row.figures.append(figure + (f" -- WRONG: {fault}" if fault else ""))
    row.seconds = time.perf_counter() - started
    return row


def text(row: Row) -> str:
    """A row of the table for reading."""
    state = "FAILED" if row.failed else "held"
    tests = f"{row.passed} tests passed, {row.failed} failed, {row.skipped} skipped"
    lines = [f"{row.goal}: {state} ({tests}, {row.seconds:.0f} s)", f"  goal: {row.promised}"]
    return "\n".join([*lines, *(f"  {figure}" for figure in row.figures)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("goals", nargs="*", help=f"of {', '.join(GOALS)}; all where none is named")
    parser.add_argument("--quick", action="store_true", help="the counts of CI")
    parser.add_argument("--json", default="reliability.json", help="where the figures go")
    options = parser.parse_args(arguments)
    unknown = set(options.goals) - set(GOALS)
    if unknown:
        parser.error(f"no goal {', '.join(sorted(unknown))}: {', '.join(GOALS)}")
    rows = []
    for goal in options.goals or GOALS:
        rows.append(measure(goal, options.quick))
        print(text(rows[-1]), flush=True)
    with open(options.json, "w", encoding="utf-8") as stream:
        json.dump({"machine": machine(), "rows": [asdict(row) for row in rows]}, stream, indent=1)
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
