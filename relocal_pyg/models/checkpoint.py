"""Reading models: their folders, and what validation says about the weights of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relocal_pyg.errors import CheckpointError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import read_config, sha256_file
from relocal_pyg.io.tensors import check_tensors, read_tensors
from relocal_pyg.io.write import write_json
from relocal_pyg.models.base import FORMAT, TrainableRelocalizer
from relocal_pyg.models.calibrated import FILE, Calibrated, Confidence, read_confidence

_WEIGHTS, _CONFIG, _CHOICE = "model.safetensors", "config.json", "choice.json"

#: The weights that come with the package, by name, and what they must hash to.
PRETRAINED = {"pretrained": "27744e2504cd4f2710eaa6742181aea39820dd8c104900fcfad37beddd1786ba"}

_MODULES = {
    "MultiGraphRelocalizer": "multi_graph",
    "MultiGraphMatcher": "matcher",
    "VideoLevel": "baselines.video_level",
    "SST": "baselines.sst",
    "CrossGated": "baselines.cross_gated",
    "AFTSRM": "baselines.aft_srm",
    "MATR": "baselines.matr",
}


def load_model(folder: str | Path) -> TrainableRelocalizer | Calibrated:
    """Read a model that ``save`` or training wrote; nothing in the folder is ever unpickled.

    Args:
        folder: A checkpoint folder, or a run folder, whose ``best`` checkpoint is then read;
            ``"pretrained"`` for the matcher that comes with the package.

    Returns:
        The model in evaluation mode; :class:`~relocal_pyg.models.calibrated.Calibrated` where the
        folder holds probabilities for these weights.

    Raises:
        CheckpointError: No checkpoint there, a file damaged, a newer format, an unknown model, a
            setting out of range, a tensor missing, extra or of another shape (it is named), or a
            damaged calibration.
    """
    wanted = PRETRAINED.get(str(folder))
    folder = given = Path(folder) if wanted is None else Path(__file__).parent / str(folder)
    if wanted is not None and sha256_file(folder / _WEIGHTS) != wanted:
        raise CheckpointError(
            "is not the file that was shipped: install relocal_pyg again", file=folder
        )
    if not (folder / _CONFIG).is_file() and (folder / "best" / _CONFIG).is_file():
        folder = folder / "best"
    kind, settings, weights = _migrate(
        checked_config(folder), read_tensors(folder / _WEIGHTS), folder
    )
    module = import_module(f"relocal_pyg.models.{_MODULES[kind]}")
    try:
        with torch.device("meta"):  # nothing is allocated before the shapes are known to fit
            model: TrainableRelocalizer = getattr(module, kind)(**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = f"settings do not fit: {error}"
        raise CheckpointError(reason, file=folder / _CONFIG) from None
    check_tensors(weights, model.state_dict(), folder / _WEIGHTS)
    double = any(value.dtype == torch.float64 for value in weights.values())
    model = model.double() if double else model.float()
    model.to_empty(device="cpu").load_state_dict(weights)
    confidence = _confidence(folder, given)
    return model.eval() if confidence is None else Calibrated(model.eval(), confidence)


def _confidence(folder: Path, given: Path) -> Confidence | None:
    """The calibration kept in the folder that was named, or beside a run's ``best``."""
    beside = [folder.parent] if folder.name == "best" else []
    for place in dict.fromkeys([given, folder, *beside]):
        if (place / FILE).exists():
            digest = sha256_file(folder / _WEIGHTS)
            return read_confidence(place / FILE, digest).get("model")
    return None


def checked_config(folder: Path) -> dict[str, Any]:
    """:func:`relocal_pyg.io.record.read_config` of a model that exists.

    Raises:
        CheckpointError: As there, or of an unknown model.
    """
    config, file = read_config(folder, FORMAT, _WEIGHTS), folder / _CONFIG
    if config["model"] not in _MODULES:
        reason = "names a model that does not exist"
        raise CheckpointError(reason, file=file, record=config["model"])
    return config


#: Settings of a network before there were two, and their values where they changed nothing.
_PLAIN = {
    "residual": False,
    "head_norm": "batch",
    "objective": "triplet",
    "prior": "none",
    "context": 0.0,
    "similarity": False,
    "appearance": True,
    "rotation": False,
    "far_proposals": 0,
    "finer_windows": False,
}


def _migrate(
    config: dict[str, Any], weights: dict[str, Tensor], folder: Path
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Model, settings and weights as they are today, of any format that can be read."""
    kind, settings = config["model"], dict(config["config"])
    if kind == "MultiGraphMatcher" and config["format"] < 3:  # it was one network
        settings.setdefault("num_members", 1)
        own = {"refines": weights.pop("refines")} if "refines" in weights else {}
        return kind, settings, own | {f"members.0.{name}": w for name, w in weights.items()}
    if kind != "MultiGraphRelocalizer" or config["format"] > 1:
        return kind, settings, weights
    if all(settings.get(name, value) == value for name, value in _PLAIN.items()):
        for name in (*_PLAIN, "list_length", "target_temperature"):
            settings.pop(name, None)
        return kind, settings, {name: w for name, w in weights.items() if name != "refines"}
    odd = sorted(name for name, value in _PLAIN.items() if settings.get(name, value) != value)
    raise CheckpointError(
        f"was trained with options that this version has not ({', '.join(odd)}): train again",
        file=folder / _CONFIG,
    )


def load_weights(model: TrainableRelocalizer, folder: Path) -> None:
    """Load ``model.safetensors`` of a folder into a model of the same kind and shape.

    Raises:
        CheckpointError: Damaged, or a tensor is missing, extra, of another shape or not finite.
    """
    kind, file = read_config(folder, FORMAT, _WEIGHTS)["model"], folder / _WEIGHTS
    if kind != type(model).__name__:
        raise CheckpointError(f"is of {kind}, {type(model).__name__} wanted", file=file)
    weights = read_tensors(file)
    check_tensors(weights, model.state_dict(), file)
    model.load_state_dict(weights)


@dataclass(frozen=True)
class Choice:
    """The weights that were kept, beside their start and the training-free matcher.

    Attributes:
        trained: Validation score of the weights that were kept, see
            :func:`relocal_pyg.training.loop.validate`.
        matcher: That of the contrast matcher on the same pairs.
        step: Step of the weights that were kept; 0 where no training beat the start.
        pairs: Number of validation pairs.
        videos: Number of their references' videos.
        gain: Score of what training found minus that of step 0, and the ends of its paired 95 %
            interval over videos, None where it is not known. Where step 0 was kept, of the best
            weights that were turned down. None where nothing was validated beside step 0.
    """

    trained: float
    matcher: float
    step: int
    pairs: int
    videos: int = 0
    gain: tuple[float, float | None, float | None] | None = None

    @property
    def use_matcher(self) -> bool:
        """Whether the matcher is the better one to search with."""
        return self.matcher > self.trained

    def __str__(self) -> str:
        """One line for a reader.

        Example:
            >>> print(Choice(trained=0.2, matcher=0.3, step=50, pairs=40))
            the training-free contrast matcher beats it on 40 validation pairs: 0.300 against 0.200
        """
        scores = f"{self.trained:.3f} against {self.matcher:.3f}"
        if self.use_matcher:
            scores = f"{self.matcher:.3f} against {self.trained:.3f}"
            verdict = "the training-free contrast matcher beats it"
        elif self.step == 0:
            verdict = "no training beat its start, which is not behind the training-free matcher,"
        else:
            verdict = "it is not behind the training-free contrast matcher"
        return f"{verdict} on {self.pairs} validation pairs: {scores}"

    def bought(self) -> str:
        """What the labels bought, in points of the validation score; empty where not known.

        Example:
            >>> print(Choice(0.5, 0.3, 50, 100, 12, (0.083, 0.021, 0.14)).bought())
            training gained +8.3 points (95 % +2.1 to +14.0) over its start, 100 pairs of 12 videos
        """
        if self.gain is None:
            return ""
        value, low, high = (None if end is None else f"{100 * end:+.1f}" for end in self.gain)
        ends = f" (95 % {low} to {high})" if low and high else ""
        asked = f"{self.pairs} pairs of {self.videos} videos"
        if self.step:
            return f"training gained {value} points{ends} over its start, {asked}"
        why = "no more than chance" if ends else "too few videos to tell from chance"
        return f"training changed {value} points{ends}, {why}: its start was kept, {asked}"

    def save(self, run: Path) -> None:
        """Write ``choice.json`` into a run folder.

        Raises:
            OutputError: The file cannot be written.
        """
        write_json(run / _CHOICE, asdict(self))


def read_choice(run: str | Path) -> Choice | None:
    """The choice of a run folder; None where nothing was recorded.

    Raises:
        CheckpointError: ``choice.json`` is damaged.
    """
    file = Path(run) / _CHOICE
    if not file.is_file():
        return None
    record = read_json(file, CheckpointError)
    try:
        gain = record.get("gain")
        if gain is not None:
            value, low, high = (None if end is None else float(end) for end in gain)
            gain = (float(value or 0.0), low, high)
        return Choice(
            float(record["trained"]),
            float(record["matcher"]),
            int(record["step"]),
            int(record["pairs"]),
            int(record.get("videos", 0)),
            gain,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is not a record of validation ({error!r})", file=file) from None
