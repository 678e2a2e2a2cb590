"""Opening a video file with PyAV so that a stranger's file can do no harm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from relocal_pyg.errors import UsageError, VideoError

#: Containers that point at other files or addresses; a stranger's video must not open those.
INDIRECT_FORMATS = frozenset(
    [
        *("concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp", "tty", "vobsub"),
        *("alsa", "fbdev", "kmsgrab", "oss", "video4linux2,v4l2", "webm_dash_manifest", "x11grab"),
    ]
)


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream, cover pictures aside.

    Args:
        path: The video file.

    Yields:
        The ``av`` container and stream.

    Raises:
        VideoError: Missing, empty, a directory, not a video, or without a video stream.
        UsageError: PyAV is not installed.
    """
    av = import_av()
    file = check_file(path)
    options = {"protocol_whitelist": "file", "format_whitelist": _readable_formats()}
    try:
        # "file:" keeps a colon in the name from being read as a protocol; tags may be in any
        # encoding and are of no use here.
        container = av.open(f"file:{file}", metadata_errors="ignore", options=options)
    except failures() as error:
        raise VideoError(f"is not a video FFmpeg reads: {reason(error)}", file=path) from None
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise VideoError("has no video stream", file=path)
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("its codec is not known to this FFmpeg", file=path)
        # Without threads of its own the decoder is faster at small sizes and repeatable.
        stream.thread_type = "NONE"
        yield container, stream


def seek_before(container: Any, stream: Any, seconds: float) -> bool:
    """Go to the key frame at or before a time, counted from the start of the stream.

    Some containers land elsewhere all the same: look at what comes.

    Returns:
        Whether the container could seek at all.
    """
    if stream.start_time is None:
        return False
    try:
        # Half a millisecond more, so that rounding does not lead to the key frame before.
        offset = stream.start_time + math.floor((seconds + 5e-4) / stream.time_base)
        container.seek(offset, stream=stream, backward=True)
    except failures():
        return False
    return True


def check_file(path: str | Path) -> Path:
    """Give the absolute path of a file that exists, is no directory and is not empty.

    Raises:
        VideoError: It is not such a file.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise VideoError("is a directory, a video file wanted", file=path)
        if not file.exists():
            raise VideoError("no such file", file=path)
        if file.stat().st_size == 0:
            raise VideoError("is empty", file=path)
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot be opened: {reason(error)}", file=path) from None
    return file.absolute()


@cache
def failures() -> tuple[type[Exception], ...]:
    """What PyAV raises on bad files; its own errors share no base with the built-in ones."""
    return (import_av().FFmpegError, OSError, ValueError, LookupError, OverflowError)


def reason(error: BaseException) -> str:
    """The words of an error, without the numbers and the path FFmpeg adds."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def import_av() -> Any:
    """Give the ``av`` module.

    Raises:
        UsageError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UsageError("reading videos needs PyAV: pip install 'relocal_pyg[video]'") from None
    return av


@cache
def _readable_formats() -> str:
    return ",".join(sorted(import_av().formats_available - INDIRECT_FORMATS))
