"""``relocal propose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from relocal_pyg.cli.options import DataOptions, load_protocol


def propose(
    out: Annotated[Path, tyro.conf.Positional],
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    *,
    tag: Literal["paper", "ssn-code"] = "paper",
    steps: int = 500,
    seed: int = 0,
) -> None:
    """Train an actionness classifier on the training split and write TAG proposals of every video.

    Args:
        out: Proposal list to write, in the released text format.
        data: Which data.
        tag: Thresholds and tolerances: the article's even grid, or those of the released code.
        steps: Optimiser steps of the classifier.
        seed: Seed of the classifier.
    """
    from relocal_pyg.proposals import PAPER, SSN_CODE, fit_actionness
    from relocal_pyg.proposals import propose as write_proposals

    protocol = load_protocol(data)
    classifier = fit_actionness(protocol, steps=steps, seed=seed)
    config = PAPER if tag == "paper" else SSN_CODE
    records = write_proposals(protocol, classifier, out, config=config, show_progress=True)
    total = sum(len(record.moments) for record in records)
    print(f"{total} proposals of {len(records)} videos: {out}")
