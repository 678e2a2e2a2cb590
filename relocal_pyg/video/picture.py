"""Decoded PyAV frames as the RGB pictures a player would show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Frames larger than this many pixels are refused: a forged header must not take the memory.
MAX_PIXELS = 8192 * 8192


class Orientation:
    """How a video's pictures are turned and mirrored, as its first frame says.

    The display matrix belongs to the stream. It is read once also because a frame asked for its
    side data lives on until the garbage collector runs: asking every frame took 200 MB.

    Args:
        frame: An ``av.VideoFrame``.

    Attributes:
        swaps_axes: Whether width and height change places.
    """

    def __init__(self, frame: Any) -> None:
        self._matrix = 1, 0, 0, 1
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is not None:
            # Nine 32-bit numbers, row by row; the upper left 2 x 2 turns and mirrors.
            a, b, _, c, d = (int(cell) for cell in np.frombuffer(bytes(data), dtype=np.int32)[:5])
            self._matrix = a, b, c, d
        a, b, c, d = self._matrix
        self.swaps_axes = abs(b) + abs(c) > abs(a) + abs(d)

    @property
    def rotation(self) -> int:
        """Clockwise degrees (0, 90, 180, 270) by which a player turns the stored picture."""
        a, b, c, d = self._matrix
        if a * d - b * c < 0:  # mirrored: the turn that follows the mirroring
            a, b = -a, -b
        return round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360

    def apply(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn and mirror a stored picture ``[H, W, 3]``; the result is contiguous."""
        a, b, c, d = self._matrix
        # The stored pixel (x, y) is shown at (a x + c y, b x + d y), y pointing down.
        if self.swaps_axes:
            stored = stored.transpose(1, 0, 2)
            flip_x, flip_y = c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return np.ascontiguousarray(stored[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def to_rgb(
    frame: Any, orientation: Orientation, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Scale and convert a frame, then turn it.

    Args:
        frame: An ``av.VideoFrame``.
        orientation: Of its video.
        size: Height and width after turning; the displayed size where None.

    Returns:
        RGB uint8 ``[height, width, 3]``, contiguous and owned by the caller.

    Raises:
        ValueError: The frame is larger than :data:`MAX_PIXELS`.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"{frame.width} x {frame.height} pixels are too many")
    # FFmpeg smooths before it shrinks; bicubic keeps more detail than its default, bilinear.
    wanted: dict[str, Any] = {"interpolation": "BICUBIC"}
    if size is not None:
        height, width = reversed(size) if orientation.swaps_axes else size
        wanted |= {"width": width, "height": height}
    return orientation.apply(frame.to_ndarray(format="rgb24", **wanted))
