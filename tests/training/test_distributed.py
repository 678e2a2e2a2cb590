from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("distributed_run.py")


def train(out: Path, devices: int, kind: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    launcher = [sys.executable]
    if devices > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={devices}"]
    command = [*launcher, str(SCRIPT), str(out), str(devices), kind]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {"weights": load_file(out / "last" / "model.safetensors")} | {
        file.stem: json.loads(file.read_text()) for file in out.glob("rank*.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["triplets", "lists"])
def test_two_processes_train_as_one(tmp_path, kind):
    one, two = train(tmp_path / "one", 1, kind), train(tmp_path / "two", 2, kind)
    for name, weight in one["weights"].items():
        if kind == "lists" and name.endswith("head.6.bias"):
            continue  # what is added to every score of a list changes no loss: it moves by rounding
        difference = weight.double() - two["weights"][name].double()
        assert difference.abs().max() < 1e-6, name
    # Validation happens at the start and at the end, on 5 pairs: each pair once in all.
    assert one["rank0"]["answered"] == 10
    assert two["rank0"]["answered"] + two["rank1"]["answered"] == 10
    scores = [
        [row["val_score"] for row in run["history"]]
        for run in (one["rank0"], two["rank0"], two["rank1"])
    ]
    assert scores[0] == scores[1] == scores[2]
