"""``relocal pretrain``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import tyro

from relocal_pyg.apps.cli.options import Natural, Output, Steps


def pretrain(
    out: Annotated[Path, Output(folder="run"), tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    steps: Steps = None,
    seed: Natural = 0,
    worlds: Natural = 45,
) -> None:
    """Train the matcher that needs no labels, on simulated worlds: how the shipped weights came.

    Two networks are trained, and their scores averaged: one on simulated features alone, one on
    drawn films as well. A run that was cut off goes on when the command is given again. The result
    is used by "relocal find --model OUT".

    Args:
        out: Run folder to write.
        steps: Optimiser steps of each network, instead of those of the shipped weights.
        seed: Seed of worlds and weights.
        worlds: Worlds of drawn films, twelve processor-seconds each; with none there is one
            network.
    """
    import torch

    from relocal_pyg.datasets.endless import FootageWorld
    from relocal_pyg.models import MultiGraphMatcher
    from relocal_pyg.training.pretrain import MEMBERS, PretrainConfig, joined
    from relocal_pyg.training.pretrain import pretrain as run

    torch.set_flush_denormal(True)  # Adam's moments of weights that rest become denormal, and slow
    say = functools.partial(print, flush=True)
    footage: list[FootageWorld] = []
    if worlds:
        from relocal_pyg.video.backbones import EfficientNetLite0
        from relocal_pyg.video.drawn import keep_footage

        footage = keep_footage(out / "footage", seed, worlds, EfficientNetLite0())
    networks: list[MultiGraphMatcher] = []
    for name in MEMBERS if worlds else ("features",):
        config = PretrainConfig(steps=steps or MEMBERS[name], seed=seed)
        say(f"network {name}: {config.steps} steps")
        films = footage if name == "films" else []
        networks.append(run(config, folder=out / name, log=say, footage=films))
    joined(networks).save(out / "best")
    print(f"checkpoint: {out / 'best'}")
