"""Kill writers at random times and look at what they leave: ``FOLDER SEED KIND:KILLS ...``.

One process imports everything and forks the writers, so that a kill costs milliseconds. Each writer
says on a pipe which step it has written; what is found afterwards must be whole and not older.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from relocal_pyg.data import FeatureStore, write_features
from relocal_pyg.errors import RelocalError
from relocal_pyg.io.write import write_json
from relocal_pyg.models import ContrastMatcher, VideoLevel
from relocal_pyg.search import SearchIndex, add_videos, build_index
from relocal_pyg.training.loop import Progress, load_state, save_state

torch.set_num_threads(1)


class Checkpoint:
    """A model of 2 MiB, every weight of which is the step, and its optimiser."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "last"
        self.model = VideoLevel(64, 256)
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def write(self, step: int) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(float(step))
        self.optimizer.param_groups[0]["lr"] = float(step)
        save_state(self.place, self.model, self.optimizer, Progress(step=step), {})

    def read(self) -> int:
        progress = load_state(self.place, self.model, self.optimizer, {})
        steps = {float(value) for p in self.model.parameters() for value in (p.min(), p.max())}
        steps |= {float(self.optimizer.param_groups[0]["lr"])}
        if steps != {float(progress.step)}:
            raise ValueError(f"a mixture: {sorted(steps)} and {progress.step}")
        return progress.step


class Features:
    """A feature file, as extraction writes it video by video."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "features.h5"

    def write(self, step: int) -> None:
        rows = np.full((200, 64), step, np.float32)
        write_features(self.place, ((f"v{number}", rows) for number in range(20)))

    def read(self) -> int:
        store = FeatureStore(self.place)
        values = {float(value) for name in store.ids for value in store.read(name).unique()}
        store.close()
        if len(values) != 1 or len(store.ids) != 20:
            raise ValueError(f"a mixture: {values}")
        return int(values.pop())


class Report:
    """A JSON report."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "report.json"

    def write(self, step: int) -> None:
        write_json(self.place, [step] * 20_000)

    def read(self) -> int:
        values = json.loads(self.place.read_text())
        if len(values) != 20_000 or len(set(values)) != 1:
            raise ValueError("a mixture")
        return int(values[0])


class Index:
    """A search index to which one video a step is added."""

    def __init__(self, folder: Path) -> None:
        self.place, self.model = folder / "index", ContrastMatcher()

    def write(self, step: int) -> None:
        rows = torch.full((30, 8), float(step)) + torch.arange(8)
        write = add_videos if (self.place / "index.json").exists() else build_index
        write(self.place, self.model, [(f"v{step}", rows, 1.0)])

    def read(self) -> int:
        opened = SearchIndex(self.place, self.model)
        ids = [name for shard in opened.shards for name in shard.ids]
        if sorted(ids) != sorted(f"v{step}" for step in range(len(ids))):
            raise ValueError(f"holds {ids}")
        return len(ids) - 1


KINDS: dict[str, Callable[[Path], Checkpoint | Features | Report | Index]] = {
    "checkpoint": Checkpoint,
    "features": Features,
    "report": Report,
    "index": Index,
}


def kill_one(work: Checkpoint | Features | Report | Index, first: int, wait: float) -> int:
    """Fork a writer, kill it ``wait`` seconds after its first step; the last step it told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        step = first
        while True:
            work.write(step)
            os.write(writing, f"{step}\n".encode())
            step += 1
    os.close(writing)
    with os.fdopen(reading) as told:
        line = told.readline()
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = [line, *told]
    return int([text for text in lines if text.endswith("\n")][-1])


def kill_many(kind: str, folder: Path, kills: int, rng: random.Random) -> dict[str, object]:
    """Kill as often, each time after a random wait; look at what is there every time."""
    folder.mkdir()
    work = KINDS[kind](folder)
    started = time.perf_counter()
    work.write(0)
    period = max(time.perf_counter() - started, 0.002)
    step, broken = 0, []
    for _ in range(kills):
        told = kill_one(work, step + 1, rng.uniform(0, 2 * period))
        try:
            step = work.read()
            if step < told:
                broken.append(f"step {step} is older than {told}")
        except (RelocalError, ValueError, OSError) as error:
            broken.append(repr(error))
            break
    work.write(step + 1)
    left = [name for name in os.listdir(folder) if name.startswith(".")]
    return {"kind": kind, "broken": broken, "left": left, "steps": step, "kills": kills}


def main() -> None:
    folder, seed, *wanted = sys.argv[1:]
    rng = random.Random(int(seed))
    results = []
    for each in wanted:
        kind, kills = each.split(":")
        results.append(kill_many(kind, Path(folder) / kind, int(kills), rng))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
