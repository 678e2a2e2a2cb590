"""One decoded PyAV frame as the RGB picture a player would show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Frames larger than this many pixels are refused: a forged header must not take the memory.
MAX_PIXELS = 8192 * 8192


def to_rgb(frame: Any, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Scale, convert and turn a frame as its display matrix says.

    Args:
        frame: An ``av.VideoFrame``.
        size: Height and width after turning; the stored size where None.

    Returns:
        RGB uint8 ``[height, width, 3]``, contiguous and owned by the caller.

    Raises:
        ValueError: The frame is larger than :data:`MAX_PIXELS`.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"{frame.width} x {frame.height} pixels are too many")
    a, b, c, d = _display_matrix(frame)
    turned = _swaps_axes(frame)
    # Bicubic, as EfficientNet was trained; FFmpeg smooths before it shrinks.
    wanted: dict[str, Any] = {"interpolation": "BICUBIC"}
    if size is not None:
        height, width = reversed(size) if turned else size
        wanted |= {"width": width, "height": height}
    picture = frame.to_ndarray(format="rgb24", **wanted)
    # The stored pixel (x, y) is shown at (a x + c y, b x + d y), y pointing down.
    if turned:
        picture = picture.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def displayed_size(frame: Any) -> tuple[int, int]:
    """Width and height in pixels after turning."""
    return (frame.height, frame.width) if _swaps_axes(frame) else (frame.width, frame.height)


def rotation(frame: Any) -> int:
    """Clockwise degrees (0, 90, 180, 270) by which a player turns the stored picture."""
    a, b, c, d = _display_matrix(frame)
    if a * d - b * c < 0:  # mirrored: the turn that follows the mirroring
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360


def _swaps_axes(frame: Any) -> bool:
    a, b, c, d = _display_matrix(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    # Nine 32-bit numbers, row by row; the upper left 2 x 2 turns and flips.
    a, b, _, c, d = (int(cell) for cell in np.frombuffer(bytes(data), dtype=np.int32)[:5])
    return a, b, c, d
