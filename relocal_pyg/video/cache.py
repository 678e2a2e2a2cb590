"""Features of one video, and a folder that keeps them under the hash of what they came from."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from relocal_pyg.errors import OutputError
from relocal_pyg.storage import replace_file
from relocal_pyg.video.rows import RowFile

#: Rows read or written at once.
BLOCK = 512


@dataclass(frozen=True)
class VideoFeatures:
    """Features of one video.

    Attributes:
        features: float32 ``[n, F]``, mapped from a file where ``rows`` is given: at 1,280 channels
            5 KiB a step, so an hour at 3.125 Hz is 58 MB once all of it is looked at.
        times: float64 ``[n]``, seconds at which the (first) frame of each step appears.
        seconds_per_step: Step k stands for ``[k, k + 1) * seconds_per_step`` seconds.
        duration: Seconds that could be decoded.
        digest: SHA-256 of the file's bytes and the settings together.
        settings: What the features were made with, plain values.
        problems: Damage met on the way, one line each.
        reused: Read from a :class:`FeatureCache`, not computed now.
        rows: The file that the features are mapped from.
    """

    features: Tensor
    times: Tensor
    seconds_per_step: float
    duration: float
    digest: str
    settings: dict[str, Any]
    problems: tuple[str, ...] = ()
    reused: bool = False
    rows: RowFile | None = field(default=None, repr=False, compare=False)

    @property
    def blocks(self) -> RowFile | Tensor:
        """The features, to be taken in blocks with ``split``: without all of them in memory."""
        return self.features if self.rows is None else self.rows


class FeatureCache:
    """Features that need not be computed again, one safetensors file a video.

    A file is written all or nothing and carries a checksum: what was interrupted or damaged is not
    found, and extracted again.

    Args:
        folder: Made where it does not exist.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be made ({error.strerror})", file=folder) from None
        self._locks: dict[str, threading.Lock] = {}

    def lock(self, digest: str) -> threading.Lock:
        """Held by the thread that computes a digest, so that another waits and finds it done."""
        return self._locks.setdefault(digest, threading.Lock())

    def get(self, digest: str) -> VideoFeatures | None:
        """Give what was stored under a digest, or None where nothing whole is there."""
        try:
            with safe_open(self._file(digest), framework="pt") as stored:
                content = json.loads((stored.metadata() or {})["content"])
                times = stored.get_tensor("times")
            rows = _open_rows(self._file(digest))
            if content.pop("checksum") != _checksum(rows, times, content):
                return None
            content["problems"] = tuple(content["problems"])
            return VideoFeatures(rows.tensor(), times, **content, reused=True, rows=rows)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def put(self, video: VideoFeatures) -> None:
        """Store features under their digest.

        Raises:
            OutputError: The file cannot be written.
        """
        content: dict[str, Any] = {
            "seconds_per_step": video.seconds_per_step,
            "duration": video.duration,
            "digest": video.digest,
            "settings": video.settings,
            "problems": list(video.problems),
        }
        content["checksum"] = _checksum(video.blocks, video.times, content)
        with replace_file(self._file(video.digest)) as temporary, temporary.open("wb") as file:
            file.write(_header(video, {"content": json.dumps(content)}))
            file.write(video.times.numpy().tobytes())
            for block in video.blocks.split(BLOCK):
                file.write(block.numpy().tobytes())

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _header(video: VideoFeatures, metadata: dict[str, str]) -> bytes:
    """Beginning of a safetensors file: its own writer wants every tensor in memory, twice."""
    shape = list(video.features.shape)
    middle, end = 8 * shape[0], 8 * shape[0] + 4 * shape[0] * shape[1]
    header = {
        "__metadata__": metadata,
        "times": {"dtype": "F64", "shape": shape[:1], "data_offsets": [0, middle]},
        "features": {"dtype": "F32", "shape": shape, "data_offsets": [middle, end]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _open_rows(path: Path) -> RowFile:
    """The features in a safetensors file whose header was found to be sound."""
    file = path.open("rb")
    length = int.from_bytes(file.read(8), "little")
    entry = json.loads(file.read(length))["features"]
    count, width = entry["shape"]
    if entry["dtype"] != "F32":
        raise ValueError("features are kept as float32")
    return RowFile(file, 8 + length + entry["data_offsets"][0], (count, width))


def _checksum(features: RowFile | Tensor, times: Tensor, content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(f"features torch.float32 {list(features.shape)}".encode())
    for block in features.split(BLOCK):
        digest.update(block.numpy().tobytes())
    digest.update(f"times {times.dtype} {list(times.shape)}".encode())
    digest.update(times.numpy().tobytes())
    return digest.hexdigest()
