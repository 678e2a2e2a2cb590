"""Models on disk: a folder of ``model.safetensors``, ``config.json`` and ``manifest.json``."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from relocal_pyg import __version__
from relocal_pyg.errors import CheckpointError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import sha256_file, verify_manifest
from relocal_pyg.io.tensors import check_tensors, read_tensors, save_tensors
from relocal_pyg.io.write import replace_folder
from relocal_pyg.models.base import TrainableRelocalizer
from relocal_pyg.models.calibrated import FILE, Confidence, read_confidence, write_confidence

#: Raised when the layout changes; a newer one is refused.
FORMAT = 1

#: The weights that come with the package, and what they must hash to.
PRETRAINED = Path(__file__).parent / "pretrained"
PRETRAINED_SHA256 = "45bbcf48db41598177e3a4f043232159130027820d333ff18b081cb27e864a8a"

_MODULES = {
    "MultiGraphRelocalizer": "multi_graph",
    "MultiGraphMatcher": "matcher",
    "VideoLevel": "baselines.video_level",
    "SST": "baselines.sst",
    "CrossGated": "baselines.cross_gated",
    "AFTSRM": "baselines.aft_srm",
}


def save_model(model: TrainableRelocalizer, folder: str | Path) -> None:
    """Write a model as a checkpoint folder, all or nothing.

    Raises:
        OutputError: The folder cannot be written; what it held is intact.
    """
    with replace_folder(Path(folder), "model") as temporary:
        write_model(model, temporary)


def write_model(model: TrainableRelocalizer, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` into an existing folder.

    A calibrated model takes its ``confidence.json`` along.
    """
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_tensors(weights, folder / "model.safetensors")
    config = {
        "format": FORMAT,
        "version": __version__,
        "model": type(model).__name__,
        "config": model.config(),
    }
    text = json.dumps(config, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text, encoding="utf-8")
    if model.calibration is not None:
        digest = sha256_file(folder / "model.safetensors")
        write_confidence(folder, digest, model.calibration)


def load_model(folder: str | Path) -> TrainableRelocalizer:
    """Read a model that ``save`` or training wrote; nothing in the folder is ever unpickled.

    Args:
        folder: A checkpoint folder, or a run folder, whose ``best`` checkpoint is then read;
            ``"pretrained"`` for the matcher that comes with the package.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: No checkpoint there, a file damaged, a newer format, an unknown model, a
            tensor missing, extra or of another shape (it is named), or a damaged calibration.
    """
    shipped = str(folder) == "pretrained"
    folder = given = PRETRAINED if shipped else Path(folder)
    if shipped and sha256_file(folder / "model.safetensors") != PRETRAINED_SHA256:
        raise CheckpointError(
            "is not the file that was shipped: install relocal_pyg again", file=folder
        )
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    config = read_config(folder)
    module = import_module(f"relocal_pyg.models.{_MODULES[config['model']]}")
    try:
        model: TrainableRelocalizer = getattr(module, config["model"])(**config["config"])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = f"settings do not fit: {error}"
        raise CheckpointError(reason, file=folder / "config.json") from None
    load_weights(model, folder)
    model.calibration = _confidence(folder, given)
    return model.eval()


def _confidence(folder: Path, given: Path) -> Confidence | None:
    """The calibration kept in the folder that was named, or beside a run's ``best``."""
    beside = [folder.parent] if folder.name == "best" else []
    for place in dict.fromkeys([given, folder, *beside]):
        if (place / FILE).exists():
            digest = sha256_file(folder / "model.safetensors")
            return read_confidence(place / FILE, digest).get("model")
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a checkpoint folder after its manifest.

    Raises:
        CheckpointError: Missing, damaged, newer, or of an unknown model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError("no checkpoint here: config.json is missing", file=folder)
    verify_manifest(folder)
    config = read_json(file, CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError("is not an object", file=file)
    model, layout = config.get("model"), config.get("format")
    if not isinstance(model, str) or not isinstance(layout, int):
        raise CheckpointError("names no model and format", file=file)
    if layout > FORMAT:
        raise CheckpointError(
            f"format {layout} is newer than this version reads ({FORMAT}): upgrade relocal_pyg",
            file=file,
        )
    if model not in _MODULES:
        raise CheckpointError("names a model that does not exist", file=file, record=str(model))
    if not isinstance(config.get("config"), dict):
        raise CheckpointError("holds no settings", file=file, record="config")
    return config


def load_weights(model: TrainableRelocalizer, folder: Path) -> None:
    """Load ``model.safetensors`` of a folder into a model of the same shape.

    Raises:
        CheckpointError: Unreadable, or a tensor is missing, extra, of another shape or not finite.
    """
    file = folder / "model.safetensors"
    weights = read_tensors(file)
    check_tensors(weights, model.state_dict(), file)
    model.load_state_dict(weights)
