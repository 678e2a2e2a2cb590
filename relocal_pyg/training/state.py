"""What a training run has to remember to go on exactly where it stopped."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from relocal_pyg.errors import CheckpointError
from relocal_pyg.models.base import TrainableRelocalizer
from relocal_pyg.models.checkpoint import load_weights, write_model
from relocal_pyg.reading import read_json
from relocal_pyg.storage import replace_folder, verify_manifest


@dataclass
class Progress:
    """Counters and history of a run; plain values only, kept as JSON.

    Attributes:
        step: Optimiser steps done.
        best_step: Step of the best validation so far.
        best_score: Its validation score, see :func:`relocal_pyg.training.validation.validate`.
        stale: Validations since then.
        history: One record per validation and per logged step.
    """

    step: int = 0
    best_step: int = -1
    best_score: float = -1.0
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(
    folder: Path,
    model: TrainableRelocalizer,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Write weights, optimiser and counters as one checkpoint folder, all or nothing.

    Args:
        folder: The checkpoint folder; what it held is replaced only when the new one is complete.
        model: Its weights and configuration are written.
        optimizer: Its state is written.
        progress: Counters and history.
        identity: What must be equal for the run to be resumed (settings, seed, protocol).

    Raises:
        OutputError: The folder cannot be written; the old one is intact.
    """
    with replace_folder(folder) as temporary:
        write_model(model, temporary)
        packed = (
            io.BytesIO()
        )  # torch reports a full disk as a RuntimeError; a file of ours does not
        torch.save({"optimizer": optimizer.state_dict()}, packed)
        (temporary / "state.pt").write_bytes(packed.getbuffer())
        record = {"progress": vars(progress), "identity": identity}
        (temporary / "progress.json").write_text(json.dumps(record), encoding="utf-8")


def load_state(
    folder: Path,
    model: TrainableRelocalizer,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> Progress:
    """Restore what :func:`save_state` wrote.

    Raises:
        CheckpointError: Damaged, or written by a run with other settings (the first one is named).
    """
    verify_manifest(folder)
    file = folder / "progress.json"
    record = read_json(file, CheckpointError)
    try:
        saved = dict(record["identity"])
        progress = Progress(**record["progress"])
        kinds = {name: type(value) for name, value in vars(Progress()).items()}
        sound = all(isinstance(value, kinds[name]) for name, value in vars(progress).items())
        if not sound or not all(isinstance(row["step"], int | float) for row in progress.history):
            raise ValueError("a counter is of another type")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is no record of a run ({error})", file=file) from None
    for key, value in json.loads(json.dumps(identity)).items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"was written with {key} = {saved.get(key)!r}, this run has {value!r}: "
                "use another output folder",
                file=folder,
                record="progress.json",
            )
    load_weights(model, folder)
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # torch raises whatever its readers meet
        reason = f"cannot be read ({error}); start afresh"
        raise CheckpointError(reason, file=folder / "state.pt") from None
    return progress
