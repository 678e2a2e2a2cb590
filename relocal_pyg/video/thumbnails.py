"""Small JPEG pictures of a video at given times."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from relocal_pyg.errors import UsageError, VideoError
from relocal_pyg.video.decode import frames, probe


def thumbnails(path: str | Path, times: Iterable[float], height: int = 96) -> list[bytes | None]:
    """The pictures on the screen at given times, as JPEG.

    Args:
        path: The video file.
        times: Seconds.
        height: Pixels; the width follows from the video, at most 4 times as much.

    Returns:
        A JPEG file for each time; None where the video shows nothing then.

    Raises:
        VideoError: The file cannot be decoded at all.
        UsageError: ``height`` is out of range.
    """
    from PIL import Image

    if not 1 <= height <= 1024:
        raise UsageError(f"height is {height}, 1 to 1024 wanted")
    info = probe(path)
    width = round(height * min(max(info.width / info.height, 0.25), 4))
    pictures: list[bytes | None] = []
    for time in times:
        shown = frames(
            path, rate_hz=10.0, start=max(time, 0.0), size=(height, width), report=_keep_quiet
        )
        try:
            _, picture = next(shown)
        except VideoError:
            pictures.append(None)
            continue
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=80)
        pictures.append(buffer.getvalue())
    return pictures


def spread(start: float, end: float, count: int) -> Sequence[float]:
    """Times in the middle of ``count`` equal parts of a stretch.

    Example:
        >>> spread(2.0, 6.0, 2)
        [3.0, 5.0]
    """
    return [start + (end - start) * (i + 0.5) / count for i in range(count)]


def _keep_quiet(problem: str) -> None:
    """Damage has been reported when the features were extracted."""
