"""``relocal pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from relocal_pyg.apps.cli.options import Natural, Output, Steps


def pretrain(
    out: Annotated[Path, Output(folder="run"), tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    steps: Steps = None,
    seed: Natural = 0,
    worlds: Natural = 0,
) -> None:
    """Train the matcher that needs no labels, on simulated worlds: how the shipped weights came.

    A run that was cut off goes on when the command is given again. The result is used by
    "relocal find --model OUT".

    Args:
        out: Run folder to write.
        steps: Optimiser steps, instead of those of the shipped weights.
        seed: Seed of worlds and weights.
        worlds: Worlds of drawn films, twelve processor-seconds each, that a part of the lists comes
            from; "pretrained-video" took 45 and 16,000 steps.
    """
    import torch

    from relocal_pyg.training.pretrain import PretrainConfig
    from relocal_pyg.training.pretrain import pretrain as run

    torch.set_flush_denormal(True)  # Adam's moments of weights that rest become denormal, and slow
    config = PretrainConfig(seed=seed)
    if steps is not None:
        config = PretrainConfig(steps=steps, seed=seed)
    footage = []
    if worlds:
        from relocal_pyg.video.backbones import EfficientNetLite0
        from relocal_pyg.video.drawn import keep_footage

        footage = keep_footage(out / "footage", seed, worlds, EfficientNetLite0())
    run(config, folder=out, log=lambda line: print(line, flush=True), footage=footage)
    print(f"checkpoint: {out / 'best'}")
