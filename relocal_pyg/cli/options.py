"""Options that several commands share. No torch is imported before a function needs it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relocal_pyg.errors import UsageError

if TYPE_CHECKING:
    from relocal_pyg.datasets.protocol import Protocol

ProtocolName = Literal[
    "synthetic",
    "custom",
    "anet-vrl",
    "anet12-80-10-10",
    "thumos14-14-6",
    "simulated-anet-vrl",
]


@dataclass(frozen=True)
class DataOptions:
    """Which data, split how."""

    protocol: ProtocolName = "synthetic"
    """The data set and its split; "custom" is any HDF5 of features with ActivityNet JSON or CSV."""
    root: Path | None = None
    """Folder with the data set's own files (annotations, lists)."""
    features: Path | None = None
    """HDF5 file of features; features.h5 inside --root where left out."""
    annotations: Path | None = None
    """custom: annotation file; annotations.json inside --root where left out."""
    key: str = "c3d_features"
    """Name of the feature array inside a video's group."""
    unseen_classes: int = 0
    """custom: how many classes to keep out of training and test apart."""
    holdout: Literal["subject", "video"] = "video"
    """custom: what training and test never share."""
    background: str = "background"
    """custom: label that is never an action."""
    split_seed: int = 0
    """Seed of the split, where the protocol draws one."""
    strict: bool = False
    """Stop at the first bad record instead of setting it aside."""


def load_protocol(options: DataOptions) -> Protocol:
    """Open the protocol that the options name.

    Raises:
        UsageError: An option that the protocol needs is missing.
        RelocalError: A file cannot be used.
    """
    if options.protocol == "synthetic":
        from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic

        return synthetic(_seeded(SyntheticConfig(), options.split_seed))
    if options.root is None and (options.protocol != "custom" or options.features is None):
        raise UsageError(f"--root is needed for the protocol {options.protocol}")
    root = options.root or Path()
    features = options.features or root / "features.h5"
    if options.protocol == "custom":
        return _custom(options, features, options.annotations or root / "annotations.json")
    if options.protocol == "simulated-anet-vrl":
        from relocal_pyg.datasets.synthetic import simulated_anet_vrl

        return simulated_anet_vrl(root)
    if options.protocol == "anet-vrl":
        from relocal_pyg.datasets.activitynet import anet_vrl

        return anet_vrl(root, features=features)
    if options.protocol == "anet12-80-10-10":
        from relocal_pyg.datasets.activitynet import anet12

        return anet12(root, features, seed=options.split_seed)
    from relocal_pyg.datasets.thumos14 import thumos14

    return thumos14(root, features, seed=options.split_seed)


def describe(options: DataOptions) -> dict[str, Any]:
    """The options as plain values, for a run's record; paths are made absolute."""
    return {
        key: str(value.resolve()) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(options).items()
    }


def restore(record: dict[str, Any]) -> DataOptions:
    """The options that :func:`describe` recorded."""
    paths = ("root", "features", "annotations")
    return DataOptions(
        **{
            key: Path(value) if key in paths and value is not None else value
            for key, value in record.items()
        }
    )


def _custom(options: DataOptions, features: Path, annotations: Path) -> Protocol:
    from relocal_pyg.data.checks import Quarantine
    from relocal_pyg.datasets.custom import custom

    quarantine = Quarantine(strict=options.strict)
    protocol = custom(
        features,
        annotations,
        key=options.key,
        unseen_classes=options.unseen_classes,
        holdout=options.holdout,
        background=options.background,
        seed=options.split_seed,
        quarantine=quarantine,
    )
    if quarantine.records:
        print(quarantine.summary())
    return protocol


def _seeded(config: Any, seed: int) -> Any:
    return dataclasses.replace(config, world=dataclasses.replace(config.world, seed=seed))
