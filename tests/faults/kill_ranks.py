"""Kill one of two data-parallel processes, launch both again, compare: ``FOLDER RUNS SEED``.

What ``torchrun --max-restarts=0`` does, with forks, so that nothing is imported twice: when one
rank dies the launcher ends the other and gives up. A rank kills itself with SIGKILL, so that the
other finds it dead in the middle of whatever they do together; the run is then launched again and
goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from kill_training import STEPS, train, weights
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from relocal_pyg.models import MultiGraphRelocalizer

#: Seconds after which a launch counts as hanging.
LIMIT = 300

#: A rank, the number of its forward pass in this launch, and whether it dies after it or before.
Death = tuple[int, int, bool]


def rank(folder: str, death: Death | None) -> None:
    """One of the two processes."""
    plain, passes = MultiGraphRelocalizer.training_losses, 0

    def deadly(self: MultiGraphRelocalizer, batch: object) -> object:
        nonlocal passes
        passes += 1
        due = death is not None and (int(os.environ["RANK"]), passes) == death[:2]
        if due and not death[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        losses = plain(self, batch)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses

    MultiGraphRelocalizer.training_losses = deadly
    train(Path(folder), workers=0, devices=2)


def launch(folder: Path, death: Death | None = None) -> int:
    """Run both ranks; an exit code.

    -9 where the launcher saw the killed rank first, 1 where it saw the other fail for it, 0 where
    both came to their end.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # a free port
        run_id=folder.name,
        local_addr="127.0.0.1",  # the machine's name need not lead back to it
        start_method="fork",
        max_restarts=0,
    )
    signal.alarm(LIMIT)
    try:
        elastic_launch(config, rank)(str(folder), death)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    finally:
        signal.alarm(0)
    return 0


def main() -> None:
    folder, runs, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    for number in (signal.SIGINT, signal.SIGTERM):  # as the command line has them
        signal.signal(number, signal.default_int_handler)
    assert launch(folder / "whole") == 0
    wanted, equal, codes, deaths = weights(folder / "whole"), 0, [], []
    for run in range(runs):
        place = folder / f"run{run}"
        death = rng.randrange(2), rng.randint(1, STEPS), rng.random() < 0.5
        deaths.append(death)
        codes.append(launch(place, death))
        equal += launch(place) == 0 and weights(place) == wanted
    print(json.dumps({"equal": equal, "codes": codes, "deaths": deaths}))


if __name__ == "__main__":
    main()
