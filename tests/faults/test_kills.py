"""kill -9, SIGTERM and Ctrl-C at any time: nothing broken, nothing mixed, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from forked import start

from relocal_pyg.data import write_features

pytestmark = pytest.mark.faults


@pytest.fixture
def other_disk(tmp_path: Path):
    """A folder on another file system than that of temporary files."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    folder = shared / f"relocal-faults-{os.getpid()}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def check_kills(results: list[dict], figure, where: str) -> None:
    for result in results:
        figure(
            "kill -9 during save",
            f"{result['kind']}{where}: {len(result['broken'])}/{result['kills']} unreadable, mixed "
            "or older than acknowledged",
        )
        assert result["broken"] == []
        assert result["left"] == []  # temporaries of the killed writers are swept
        assert result["steps"] >= result["kills"]  # the writers did write


@pytest.mark.slow
def test_a_killed_writer_leaves_what_was_there_or_what_it_wrote(
    tmp_path: Path, script, count, figure
):
    kinds = [f"checkpoint:{count(12, 200)}"]
    kinds += [f"{kind}:{count(5, 50)}" for kind in ("features", "report", "index")]
    check_kills(script("kill_writers.py", tmp_path, 0, *kinds), figure, "")


@pytest.mark.slow
def test_the_same_on_another_file_system(other_disk: Path, script, count, figure):
    result = script("kill_writers.py", other_disk, 1, f"checkpoint:{count(6, 200)}")
    check_kills(result, figure, " on another file system")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_training_resumes_to_the_same_bits(
    tmp_path: Path, script, count, figure, workers: int
):
    runs, names = count(1, 10), ("SIGKILL", "SIGTERM", "SIGINT")
    for result in script("kill_training.py", tmp_path, workers, runs, workers, *names):
        name = result["signal"]
        figure(
            "resume",
            f"{name}, {workers} workers: {result['equal']}/{runs} sha256-equal after "
            f"{result['stops']} interruptions",
        )
        assert result["equal"] == runs
        assert result["stops"] > 0
        assert set(result["codes"]) <= ({-signal.SIGKILL} if name == "SIGKILL" else {130})


@pytest.mark.slow
def test_a_killed_rank_and_a_relaunch_give_the_same_bits(tmp_path: Path, script, count, figure):
    runs = count(1, 10)
    result = script("kill_ranks.py", tmp_path, runs, 0)
    figure(
        "resume",
        f"SIGKILL of one of two data-parallel ranks at a random step, relaunch: "
        f"{result['equal']}/{runs} sha256-equal",
    )
    assert set(result["codes"]) <= {-signal.SIGKILL, 1}
    assert result["equal"] == runs


@pytest.mark.slow
def test_the_command_stopped_by_a_signal_says_so_in_one_line_and_resumes(tmp_path: Path):
    rng = np.random.default_rng(0)
    names = [f"v{number}" for number in range(12)]
    write_features(tmp_path / "f.h5", ((name, rng.standard_normal((30, 6))) for name in names))
    database = {
        name: {"duration": 30, "annotations": [{"segment": [5, 15], "label": "ab"[number % 2]}]}
        for number, name in enumerate(names)
    }
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    run = tmp_path / "run"
    words = ["-m", "relocal_pyg", "train", str(run), "--protocol", "custom", "--steps", "100000"]
    words += ["--features", str(tmp_path / "f.h5"), "--annotations", str(tmp_path / "a.json")]
    said, errors = tmp_path / "said", tmp_path / "errors"
    with said.open("w") as out, errors.open("w") as err:
        process = start(words, tmp_path, out.fileno(), err.fileno())
    while "\nstep 0" not in said.read_text():  # training is not yet under way
        process.join(0.05)
        assert process.is_alive(), errors.read_text()
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 130
    assert errors.read_text().splitlines()[-1] == "relocal: interrupted"
    assert "Traceback" not in errors.read_text()
    progress = json.loads((run / "last" / "progress.json").read_text())["progress"]
    assert progress["history"]
