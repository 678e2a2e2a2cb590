from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from forked import CONTEXT
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import distributed_run  # noqa: E402


def written(folder: Path) -> dict:
    return {"weights": load_file(folder / "last" / "model.safetensors")} | {
        file.stem: json.loads(file.read_text()) for file in folder.glob("rank*.json")
    }


@pytest.mark.slow
def test_two_processes_train_as_one(short_videos, tmp_path):
    """One process is this one; two are started once, for every kind of network in turn."""
    for kind in distributed_run.KINDS:
        distributed_run.main(tmp_path / "one" / kind, 1, kind, short_videos)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = (port, tmp_path / "two", short_videos)
    ranks = [CONTEXT.Process(target=distributed_run.rank, args=(n, *place)) for n in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(300)
        each.kill()  # one that waits for the other in vain
    assert [each.exitcode for each in ranks] == [0, 0]
    for kind in distributed_run.KINDS:
        check(written(tmp_path / "one" / kind), written(tmp_path / "two" / kind), kind)


def check(one: dict, two: dict, kind: str) -> None:
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
