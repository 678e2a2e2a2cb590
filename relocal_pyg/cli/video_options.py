"""Options of commands that read video files. No torch is imported before a function needs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relocal_pyg.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from relocal_pyg.models.base import Relocalizer
    from relocal_pyg.video.backbones import Backbone


@dataclass(frozen=True)
class BackboneOptions:
    """Which network turns frames into features."""

    backbone: Literal["efficientnet-lite0", "c3d"] = "efficientnet-lite0"
    """Network; the weights of efficientnet-lite0 come with the extra "video"."""
    weights: Path | None = None
    """c3d: file of its published weights (.pickle, .pt, .pth or .safetensors)."""
    pca: Path | None = None
    """Project the features by a PCA that relocal_pyg.video.fit_pca fitted and saved."""


def load_backbone(options: BackboneOptions) -> Backbone:
    """Build the network that the options name.

    Raises:
        UsageError: c3d without weights, or weights for a network that brings its own.
        CheckpointError: A file cannot be read.
    """
    from relocal_pyg.video.pca import PCA

    network: Backbone
    if options.backbone == "c3d":
        from relocal_pyg.video.c3d import C3D

        if options.weights is None:
            raise UsageError("c3d needs --weights: its published weights are not in this package")
        network = c3d = C3D()
        c3d.load_weights(options.weights)
    elif options.weights is not None:
        raise UsageError(f"{options.backbone} brings its own weights: leave --weights out")
    else:
        from relocal_pyg.video.backbones import EfficientNetLite0

        network = EfficientNetLite0()
    return network if options.pca is None else PCA.load(options.pca).after(network)


def describe_extraction(
    options: BackboneOptions, backbone: Backbone, rate_hz: float
) -> dict[str, Any]:
    """What a run records of how its videos were turned into features, as plain values."""
    network = {
        key: str(value.resolve()) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
    }
    return {"backbone": backbone.name, "rate_hz": rate_hz, "network": network}


def load_network(
    options: BackboneOptions, rate_hz: float | None, run: Path | None, model: Relocalizer
) -> tuple[Backbone, float | None]:
    """The network for the videos of a search, and the frames per second.

    A model that "relocal train --videos" trained has to see features made as those it learned from:
    where the options say nothing, its run does.

    Args:
        options: What the user asked for.
        rate_hz: Frames per second that the user asked for.
        run: Run folder or checkpoint of the model; None for a model without one.
        model: The model.

    Returns:
        The network, and the rate: the user's, else the run's, else None.

    Raises:
        UsageError: The options name another network than that of the run.
        CheckpointError: ``run.json`` is damaged, or a file that it names cannot be read.
        FeatureError: The model takes features of another width.
    """
    from relocal_pyg.video.search import check_width

    record = None if run is None else _recorded_extraction(run)
    if record is None:
        backbone = load_backbone(options)
    else:
        said = options != BackboneOptions()
        backbone = load_backbone(options if said else record.network)
        if backbone.name != record.backbone:
            raise UsageError(
                f"was trained on features of {record.backbone}, this is {backbone.name}"
                + (": leave --backbone, --weights and --pca out" if said else ""),
                file=run,
            )
        rate_hz = record.rate_hz if rate_hz is None else rate_hz
    check_width(model, backbone, run)
    return backbone, rate_hz


@dataclass(frozen=True)
class _Recorded:
    backbone: str
    rate_hz: float
    network: BackboneOptions


def _recorded_extraction(run: Path) -> _Recorded | None:
    """What :func:`describe_extraction` recorded; None where the features came from elsewhere."""
    from relocal_pyg.reading import read_json

    files = [folder / "run.json" for folder in (run, run.parent)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    record = read_json(file, CheckpointError)
    try:
        made = record.get("features")
        if made is None:
            return None
        network = made["network"]
        weights, pca = (
            None if network[k] is None else Path(network[k]) for k in ("weights", "pca")
        )
        options = BackboneOptions(network["backbone"], weights, pca)
        recorded = _Recorded(str(made["backbone"]), float(made["rate_hz"]), options)
        if options.backbone not in ("efficientnet-lite0", "c3d") or not recorded.rate_hz > 0:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError("does not say how its features were made", file=file) from None
    return recorded
