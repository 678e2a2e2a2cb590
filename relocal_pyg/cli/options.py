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
    """Annotation file; annotations.json inside --root where left out (anet12-80-10-10:
    activity_net.v1-2.json; anet-vrl needs none, its times are steps without one)."""
    proposals: Path | None = None
    """Proposal list in the released format; sliding windows where left out."""
    subsample: int = 1
    """Use every SUBSAMPLE-th step of the file: 2 for the published C3D features of anet-vrl."""
    key: str = "c3d_features"
    """Name of the feature array inside a video's group."""
    unseen_classes: int = 0
    """custom: how many classes to keep out of training and test apart."""
    holdout: Literal["subject", "video"] = "video"
    """custom: what training and test never share."""
    background: str = "background"
    """custom: label that is never an action."""
    seconds_per_step: float | None = None
    """custom: duration of a step; each video's duration divided by its steps where left out."""
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
    if options.protocol == "custom":
        return _custom(options, root)
    if options.protocol == "simulated-anet-vrl":
        from relocal_pyg.datasets.simulation import simulated_anet_vrl

        return simulated_anet_vrl(root, options.annotations)
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.datasets import anet12, anet_vrl, thumos14

    path = options.features or root / "features.h5"
    features = FeatureStore(path, key=options.key, subsample=options.subsample)
    if options.protocol == "anet-vrl":
        return anet_vrl(root, features, options.annotations)
    seed, proposals = options.split_seed, options.proposals
    if options.protocol == "anet12-80-10-10":
        annotations = options.annotations or root / "activity_net.v1-2.json"
        return anet12(annotations, features, seed=seed, proposals=proposals)
    return thumos14(root, features, seed=seed, proposals=proposals)


def describe(options: DataOptions) -> dict[str, Any]:
    """The options as plain values, for a run's record; paths are made absolute."""
    return {
        key: str(value.resolve()) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(options).items()
    }


def restore(record: dict[str, Any]) -> DataOptions:
    """The options that :func:`describe` recorded."""
    paths = ("root", "features", "annotations", "proposals")
    values: dict[str, Any] = {
        key: Path(value) if key in paths and value is not None else value
        for key, value in record.items()
    }
    return DataOptions(**values)


def _custom(options: DataOptions, root: Path) -> Protocol:
    from relocal_pyg.data.checks import Quarantine
    from relocal_pyg.datasets.custom import custom

    quarantine = Quarantine(strict=options.strict)
    protocol = custom(
        options.features or root / "features.h5",
        options.annotations or root / "annotations.json",
        key=options.key,
        proposals=options.proposals,
        unseen_classes=options.unseen_classes,
        holdout=options.holdout,
        background=options.background,
        seconds_per_step=options.seconds_per_step,
        seed=options.split_seed,
        quarantine=quarantine,
    )
    if quarantine.records:
        print(quarantine.summary())
    return protocol


def _seeded(config: Any, seed: int) -> Any:
    return dataclasses.replace(config, world=dataclasses.replace(config.world, seed=seed))
