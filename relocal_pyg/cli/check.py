"""``relocal check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def check(
    features: Annotated[Path, tyro.conf.Positional],
    annotations: Annotated[Path, tyro.conf.Positional],
    *,
    key: str = "c3d_features",
    report: Path | None = None,
    strict: bool = False,
) -> None:
    """Read a data set and report every bad record.

    Args:
        features: HDF5 file of features.
        annotations: ActivityNet JSON or CSV.
        key: Name of the feature array inside a video's group.
        report: Write the bad records as JSON here.
        strict: Stop at the first bad record with exit code 2.
    """
    from relocal_pyg.data.checks import check_dataset
    from relocal_pyg.errors import ascii_line

    quarantine = check_dataset(features, annotations, key=key, strict=strict)
    for record in quarantine.records:
        print(ascii_line(f"{record.file}: {record.record}: {record.reason}"))
    print(quarantine.summary())
    if report is not None:
        quarantine.save(report)
        print(f"report: {report}")
