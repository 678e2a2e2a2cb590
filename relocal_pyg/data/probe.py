"""Looking into an untrusted feature file from a child process, which may hang or crash alone.

``python -m relocal_pyg.data.probe FILE KEY MAX_BYTES VALUES`` is the child: it imports neither
torch nor anything else heavy and prints one JSON value per line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from relocal_pyg.data.hdf5 import MAX_BYTES, Record, check_key, scan
from relocal_pyg.errors import FeatureError


def probe_features(
    path: str | Path,
    key: str = "c3d_features",
    *,
    max_bytes: int = MAX_BYTES,
    values: bool = True,
    time_limit: float = 10.0,
) -> list[Record]:
    """Look at every video of a feature file in a child process.

    Args:
        path: The HDF5 file.
        key: Name of the data set inside each group.
        max_bytes: Largest array that a video may declare.
        values: Read all values too: checksums, NaN and infinities.
        time_limit: Seconds without a sign of life after which the child is killed.

    Returns:
        One record per video, sorted by name.

    Raises:
        FeatureError: The file as a whole cannot be used, or reading it hangs or crashes.
    """
    check_key(key)
    command = [sys.executable, "-m", __name__, os.path.abspath(path), key]
    command += [str(max_bytes), str(int(values))]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )
    records, done = [], False
    try:
        for line in _lines(child, path, time_limit):
            if "error" in line:
                raise FeatureError(line["error"], file=path, record=line["record"])
            if "name" in line:
                records.append(Record(**line))
            done = done or "done" in line
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    if not done:
        raise FeatureError("crashes the HDF5 reader: do not use this file", file=path)
    return records


def _lines(
    child: subprocess.Popen[bytes], path: str | Path, time_limit: float
) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    pending = b""
    while True:
        if not select.select([child.stdout], [], [], time_limit)[0]:
            raise FeatureError(
                f"hangs the HDF5 reader (no progress in {time_limit:g} s): do not use this file",
                file=path,
            )
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from map(json.loads, lines)


def main() -> None:
    """Be the child."""
    path, key, max_bytes, values = sys.argv[1:]
    try:
        for record in scan(path, key, max_bytes=int(max_bytes), values=values == "1"):
            print(json.dumps(asdict(record) if record else {}), flush=True)
        print('{"done": true}', flush=True)
    except FeatureError as error:
        print(json.dumps({"error": error.reason, "record": error.record}), flush=True)


if __name__ == "__main__":
    main()
