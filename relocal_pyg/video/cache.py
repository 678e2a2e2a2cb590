"""Features of one video, and a folder that keeps them under the hash of what they came from."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from relocal_pyg.errors import OutputError
from relocal_pyg.storage import replace_file


@dataclass(frozen=True)
class VideoFeatures:
    """Features of one video.

    Attributes:
        features: float32 ``[n, F]``, in memory: at 1,280 channels 5 KiB a step, so an hour at
            3.125 Hz is 58 MB.
        times: float64 ``[n]``, seconds at which the (first) frame of each step appears.
        seconds_per_step: Step k stands for ``[k, k + 1) * seconds_per_step`` seconds.
        duration: Seconds that could be decoded.
        digest: SHA-256 of the file's bytes and the settings together.
        settings: What the features were made with, plain values.
        problems: Damage met on the way, one line each.
        reused: Read from a :class:`FeatureCache`, not computed now.
    """

    features: Tensor
    times: Tensor
    seconds_per_step: float
    duration: float
    digest: str
    settings: dict[str, Any]
    problems: tuple[str, ...] = ()
    reused: bool = False


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
                tensors = {name: stored.get_tensor(name) for name in ("features", "times")}
            if content.pop("checksum") != _checksum(tensors, content):
                return None
            content["problems"] = tuple(content["problems"])
            return VideoFeatures(**tensors, **content, reused=True)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def put(self, video: VideoFeatures) -> None:
        """Store features under their digest.

        Raises:
            OutputError: The file cannot be written.
        """
        tensors = {"features": video.features.contiguous(), "times": video.times.contiguous()}
        content: dict[str, Any] = {
            "seconds_per_step": video.seconds_per_step,
            "duration": video.duration,
            "digest": video.digest,
            "settings": video.settings,
            "problems": list(video.problems),
        }
        content["checksum"] = _checksum(tensors, content)
        with replace_file(self._file(video.digest)) as temporary:
            save_file(tensors, temporary, metadata={"content": json.dumps(content)})

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _checksum(tensors: dict[str, Tensor], content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
