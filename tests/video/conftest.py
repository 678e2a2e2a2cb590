"""Videos written by the tests themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

#: Milliseconds: every time below is a whole number of them.
BASE = Fraction(1, 1000)


def flat(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def write(
    path: Path,
    pictures: Sequence[np.ndarray],
    times: Sequence[float] | None = None,
    rate: int = 25,
    codec: str = "libx264",
    rotate: tuple[float, bool] | None = None,
    audio: bool = False,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write pictures at times (seconds); evenly at ``rate`` where no times are given."""
    if codec == "libx264" and codec not in av.codecs_available:
        codec = "mpeg4"
    times = [i / rate for i in range(len(pictures))] if times is None else times
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2] if len(pictures) else (48, 64)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = BASE
        if rotate is not None:
            stream.set_display_rotation(rotate[0], hflip=rotate[1])
        sound = output.add_stream("aac", rate=16000, layout="mono") if audio else None
        output.start_encoding()
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / BASE), BASE
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            write_sound(output, sound, max(times, default=1.0))
    return path


def write_sound(output: object, stream: object, seconds: float) -> None:
    for first in range(0, int(16000 * seconds), 1024):
        samples = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, first, Fraction(1, 16000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    return write


@pytest.fixture(scope="session")
def _steps_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("steps") / "steps.mp4"
    return write(path, [flat(2 * i) for i in range(100)], options={"g": "12", "bf": "2"})


@pytest.fixture
def steps_video(_steps_video: Path, tmp_path: Path) -> Path:
    """100 frames at 25 Hz, frame i of grey level 2 i, a key frame every 12 frames."""
    return Path(shutil.copy(_steps_video, tmp_path))


@pytest.fixture(scope="session")
def bad_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are no videos, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    whole = write(folder / "whole.mp4", [flat(i) for i in range(30)])
    files = {
        name: folder / f"{name}.mp4"
        for name in ("empty", "text", "directory", "missing", "headless", "no_frames", "noise")
    }
    files["empty"].write_bytes(b"")
    files["text"].write_text("a shopping list\n" * 50)
    files["directory"].mkdir()
    # The table of contents of an mp4 is at its end.
    files["headless"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    write(files["no_frames"], [])
    files["audio_only"] = folder / "audio_only.mp4"
    with av.open(str(files["audio_only"]), "w") as output:
        write_sound(output, output.add_stream("aac", rate=16000, layout="mono"), 1.0)
    files["playlist"] = folder / "playlist.mp4"
    files["playlist"].write_text("ffconcat version 1.0\nfile whole.mp4\n")
    files["nul"] = Path("a\0b.mp4")
    return files
