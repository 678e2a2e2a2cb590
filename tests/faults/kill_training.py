"""Interrupt training at random times, resume, compare: ``FOLDER WORKERS RUNS SEED SIGNAL ...``.

One process imports everything and forks the runs. A run is interrupted several times before it may
end; its last checkpoint and the weights it keeps must be those of a run left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.utils.tensorboard  # noqa: F401 - forked runs then find it imported

from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.models import MultiGraphRelocalizer
from relocal_pyg.training import TrainingConfig, fit

torch.set_num_threads(1)
STEPS = 12
SIZES = {"train_classes": 3, "val_classes": 2, "test_classes": 1}
STOPS = (signal.SIGINT, signal.SIGTERM)
PROTOCOL = synthetic(SyntheticConfig(**SIZES, train_videos=3, val_videos=2, test_videos=2))


def train(folder: Path, workers: int, devices: int = 1) -> None:
    """The run: dropout, a decaying rate and momentum, so that each has to be restored."""
    seed_torch(0, "weights")
    model = MultiGraphRelocalizer(
        PROTOCOL.features.dim, hidden_channels=8, num_steps=6, head_channels=(6, 4), dropout=0.2
    )
    config = TrainingConfig(
        batch_size=2,
        steps=STEPS,
        learning_rate=1e-2,
        decay=True,
        warmup=3,
        validate_every=2,
        max_validation_pairs=2,
        num_workers=workers,
    )
    options = {"devices": devices, "resume": True, "show_progress": False}
    fit(model, PROTOCOL, config=config, out=folder, **options)


def fork(folder: Path, workers: int) -> int:
    """Start a run; its process number. Handlers are the parent's, so no signal comes too early."""
    parent, code = os.getpid(), 1
    # Python ignores what is raised in the functions it calls after a fork: one that a signal cut
    # short would leave threading half set up, which no run started from a command line ever is.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        child = os.fork()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if child:
            return child
        train(folder, workers)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        if os.getpid() != parent:
            sys.stderr.flush()
            os._exit(code)
    raise OSError("cannot start a process")


def weights(folder: Path) -> list[str]:
    return [
        hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("last", "best")
    ]


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    folder, workers, runs, seed = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    rng = random.Random(seed)
    for number in STOPS:  # as the command line has them
        signal.signal(number, signal.default_int_handler)
    started = time.perf_counter()
    assert ended(fork(folder / "whole", workers)) == 0
    length = time.perf_counter() - started
    wanted = weights(folder / "whole")
    results = []
    for name in sys.argv[5:]:
        equal, stops, codes = 0, 0, set()
        for run in range(runs):
            place, before = folder / f"{name}{run}", stops
            # A run that a faster machine ended before it was stopped shows nothing: once more.
            while stops == before:
                shutil.rmtree(place, ignore_errors=True)
                for _ in range(3):
                    child = fork(place, workers)
                    time.sleep(rng.uniform(0, 0.6 * length))
                    os.kill(child, getattr(signal, name))
                    code = ended(child)
                    if code:
                        stops += 1
                        codes.add(code)
            equal += ended(fork(place, workers)) == 0 and weights(place) == wanted
        results.append({"signal": name, "equal": equal, "stops": stops, "codes": sorted(codes)})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
