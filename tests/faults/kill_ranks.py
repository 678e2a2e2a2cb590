"""Kill one of two data-parallel processes, start both again, compare: ``FOLDER RUNS SEED``.

As ``kill_training.py``, whose run this is; when one rank has died the other is ended too, as a
launcher does, and the run is launched again from its checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

from kill_training import ended, fork, weights


def launch(folder: Path) -> list[int]:
    """Start both ranks; their process numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        os.environ.update(shared, LOCAL_RANK=str(rank), NODE_RANK="0", RANK=str(rank))
        children.append(fork(folder, 0, devices=2))
    return children


def main() -> None:
    folder, runs, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    started = time.perf_counter()
    assert [ended(child) for child in launch(folder / "whole")] == [0, 0]
    length = time.perf_counter() - started
    wanted, equal, stops = weights(folder / "whole"), 0, 0
    for run in range(runs):
        place = folder / f"run{run}"
        children = launch(place)
        time.sleep(rng.uniform(0.2, 0.9) * length)
        victim = rng.randrange(2)
        os.kill(children[victim], signal.SIGKILL)
        stops += ended(children[victim]) != 0
        os.kill(children[1 - victim], signal.SIGKILL)
        ended(children[1 - victim])
        codes = [ended(child) for child in launch(place)]
        equal += codes == [0, 0] and weights(place) == wanted
    print(json.dumps({"equal": equal, "stops": stops}))


if __name__ == "__main__":
    main()
