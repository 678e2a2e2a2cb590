"""Options of commands that read video files. No torch is imported before a function needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from relocal_pyg.errors import UsageError

if TYPE_CHECKING:
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
