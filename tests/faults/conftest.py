"""Scripts in processes of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import run

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # for the films and files of benchmarks.bombs

#: Scripts that the tests start in processes of their own; no tests to collect.
collect_ignore = [
    "forked.py",
    "fuzz_hdf5.py",
    "kill_ranks.py",
    "kill_training.py",
    "kill_writers.py",
    "read_rows.py",
]


@pytest.fixture
def script() -> Callable[..., Any]:
    """Run a script of this folder in a process of its own; give the JSON it prints last."""

    def start(name: str, *arguments: object) -> Any:
        done = run(HERE / name, *arguments)
        sys.stderr.write(done.stderr[-10000:])  # shown when the test fails
        assert done.returncode == 0
        return json.loads(done.stdout.splitlines()[-1])

    return start
