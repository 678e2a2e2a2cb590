"""What a result was computed with: versions and the kind of machine, never its name."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

import torch

from relocal_pyg.version import __version__

#: Packages whose version can change a result.
PACKAGES = (
    "torch",
    "torch-geometric",
    "lightning-fabric",
    "torchmetrics",
    "numpy",
    "pandas",
    "h5py",
    "safetensors",
    "torch-scatter",
    "av",
    "scikit-learn",
    "faiss-cpu",
)


def environment() -> dict[str, object]:
    """Facts to keep beside a result, for JSON.

    Returns:
        ``relocal_pyg``, ``python``, ``platform`` (system and processor kind), ``device``,
        ``threads``, ``cpus`` and ``packages``: version by name of those installed. Nothing names
        the host, the user or a folder.

    Example:
        >>> environment()["packages"]["torch"] == metadata.version("torch")
        True
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "relocal_pyg": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }
