"""Containers by codecs by patterns of time stamps: a planted scene is found where ffmpeg shows it.

The films are made by the program ``ffmpeg``, and where the scene is in them is measured by it too:
the stamps of the pictures less the start of the file, and ``-ss`` has to show the same.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from relocal_pyg.errors import OutputError
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.video import FunctionBackbone, find_moments
from relocal_pyg.video.cut import cut_clip
from relocal_pyg.video.decode import frames

pytest.importorskip("av")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to make the films"),
]

BLOCKS = FunctionBackbone(
    lambda frames: frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1),
    "blocks",
    dim=144,
    size=(48, 64),
)
SHORT_GROUPS = "-g 12"
FULL = os.environ.get("RELOCAL_FAULTS") == "full"
#: Containers and what is in them.
STREAMS = {
    "mp4 h264": ("mp4", "libx264 -bf 3"),
    "mov h264": ("mov", "libx264 -bf 0"),
    "mkv h264": ("mkv", "libx264 -bf 2"),
    "ts h264": ("ts", "libx264 -bf 2"),
    "flv h264": ("flv", "libx264 -bf 2"),
    "mp4 hevc": ("mp4", "libx265 -x265-params log-level=error"),
    "webm vp9": ("webm", "libvpx-vp9 -deadline realtime"),
    "webm vp8": ("webm", "libvpx -deadline realtime"),
    "avi mpeg4": ("avi", "mpeg4 -bf 2"),
    "avi mjpeg": ("avi", "mjpeg"),
    "mpg mpeg2": ("mpg", "mpeg2video -bf 2"),
    "wmv wmv2": ("wmv", "wmv2"),
}
#: Arguments before the input, filters and arguments after it.
PATTERNS = {
    "plain": ("", "null", ""),
    "29.97": ("", "fps=30000/1001", ""),
    "late": ("late", "null", "-fps_mode vfr"),
    "uneven": ("", "select='not(mod(n\\,3))+lt(mod(n\\,50)\\,20)'", "-fps_mode vfr"),
    "shifted": ("", "null", "-output_ts_offset 7.3"),
}


LEVELS = "signalstats,metadata=print:file=-"


def ffmpeg(*words: str | Path, cwd: Path | None = None) -> str:
    return program("ffmpeg", "-y", "-nostdin", *words, cwd=cwd)


def program(name: str, *words: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [name, "-v", "error", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )
    if done.returncode:
        pytest.skip(done.stderr.splitlines()[-1] if done.stderr else "ffmpeg cannot")
    return done.stdout


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twelve seconds without loss, and the three from 6 s on, which alone are bright."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("parts")
    shown = []
    for level, count in ((20, 75), (40, 75), (150, 75), (30, 75)):
        picture = draw.integers(level, level + 80, (6, 8)).repeat(8, 0).repeat(8, 1)
        noise = draw.normal(scale=4, size=(count, 48, 64))
        shown.append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    raw = folder / "film.gray"
    raw.write_bytes(np.concatenate(shown).tobytes())
    whole, clip = folder / "film.mkv", folder / "clip.mkv"
    form = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "64x48", "-r", "25", "-i"]
    ffmpeg(*form, raw, "-c:v", "ffv1", whole)
    ffmpeg("-ss", "6", "-t", "3", "-i", whole, "-c:v", "ffv1", clip)
    return whole, clip


def bright(path: Path) -> tuple[float, float]:
    """From when to when ffmpeg shows bright pictures, in seconds since the start of the file.

    Without ``-copyts`` it would count from the start of the streams that it is told to read, which
    for MPEG-TS is not where ``-ss`` and players count from.
    """
    said = program("ffprobe", "-of", "json", "-show_entries", "format=start_time", path)
    zero = float(json.loads(said)["format"].get("start_time", 0))
    said = ffmpeg("-copyts", "-i", path, "-map", "0:v", "-vf", LEVELS, "-f", "null", "-")
    times = [float(time) - zero for time in re.findall(r"pts_time:([-0-9.]+)", said)]
    shown = [time for time, level in zip(times, levels(said), strict=True) if level > 140]
    start, last = min(shown), max(shown)
    end = min(time for time in times if time > last)
    # Two places in one run of the program, each told in a file of its own.
    sought = {start - 0.3: path.with_name("before.txt"), start + 0.3: path.with_name("after.txt")}
    words: list[str | Path] = []
    for time in sought:
        words += ["-ss", f"{time:.3f}", "-i", path]
    for number, told in enumerate(sought.values()):
        words += ["-map", f"{number}:v", "-frames:v", "1"]
        words += ["-vf", LEVELS.replace("-", told.name), "-f", "null", "-"]
    ffmpeg(*words, cwd=path.parent)
    for time, told in sought.items():
        said = told.read_text()
        # Which is the next picture after that that can be sought to.
        shown_at = time + float(re.findall(r"pts_time:([-0-9.]+)", said)[0])
        least, most = (start - 0.2, end + 0.2) if levels(said)[0] > 140 else (-1.0, start + 0.2)
        assert least < shown_at < most, (path.name, time)
    return start, end


def levels(said: str) -> list[float]:
    return [float(level) for level in re.findall(r"YAVG=([0-9.]+)", said)]


def write(path: Path, whole: Path, codec: str, before: str, filters: str, after: str) -> Path:
    """Write a film; ``before`` says whether it has sound, and which of the two is late."""
    sound = ["-f", "lavfi", "-i", "sine=duration=15"]
    inputs: dict[str, list[str | Path]] = {
        "": ["-i", whole],
        "late": ["-itsoffset", "3", "-i", whole, *sound],
        "sound": ["-i", whole, *sound],
        "late sound": ["-i", whole, "-itsoffset", "4", *sound],
    }
    codec = f"{codec} -pix_fmt {'yuvj420p' if 'mjpeg' in codec else 'yuv420p'} {SHORT_GROUPS}"
    ffmpeg(*inputs[before], "-vf", filters, "-c:v", *codec.split(), *after.split(), path)
    return path


def check(path: Path, clip: Path, whose: str, figure) -> None:
    """Found where it is, cut to the same pictures, and nothing is called damaged."""
    start, end = bright(path)
    # Which matcher ranks has nothing to do with the file: the cheapest.
    found = find_moments(clip, path, model=ContrastMatcher(), backbone=BLOCKS, top_k=1)
    step, best = found.seconds_per_step, found.moments[0]
    off = max(abs(best.start - start), abs(best.end - end))
    figure("odd files", f"{whose}: {off / step:.2f} steps")
    assert not found.problems
    assert off <= step + 0.04  # and a picture, since steps begin between pictures
    target = path.with_name("clip.mkv")
    begin, until = cut_clip(path, start, end, target, reencode=True)
    assert (begin, until) == (pytest.approx(start, abs=0.09), pytest.approx(end, abs=0.09))
    shown = [picture.astype(float) for _, picture in frames(path, start=start, end=end)]
    again = [picture.astype(float) for _, picture in frames(target)]
    assert len(again) - len(shown) in (0, 1)  # a last picture that stays is written twice
    assert np.mean([np.abs(a - b).mean() for a, b in zip(shown, again, strict=False)]) < 4


#: Of the sixty a fifth is enough every day: each stream and each pattern, but not together.
FILES = [
    (stream, pattern)
    for (row, stream), (column, pattern) in itertools.product(
        enumerate(STREAMS), enumerate(PATTERNS)
    )
    if FULL or (row + column) % 5 == 0
]


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "pattern"), FILES)
def test_a_scene_is_found_and_cut_where_ffmpeg_shows_it(
    parts: tuple[Path, Path], tmp_path: Path, figure, stream: str, pattern: str
) -> None:
    whole, clip = parts
    (suffix, codec), (before, filters, after) = STREAMS[stream], PATTERNS[pattern]
    path = write(tmp_path / f"film.{suffix}", whole, codec, before, filters, after)
    check(path, clip, f"{stream}, {pattern}", figure)


#: Others of the same kinds: codec, which stream is late, arguments.
SIBLINGS = {
    "late sound.mp4": ("libx264 -bf 2", "late sound", ""),
    "late sound.mkv": ("libx264 -bf 2", "late sound", ""),
    "late sound.ts": ("libx264 -bf 2", "late sound", ""),
    "late sound.mpg": ("mpeg2video -bf 2", "late sound", ""),
    "late sound.flv": ("libx264 -bf 2", "late sound", ""),
    "late sound.wmv": ("wmv2", "late sound", ""),
    "late sound.wtv": ("mpeg2video", "late sound", ""),
    "late and shifted.wmv": ("wmv2", "late", "-fps_mode vfr -output_ts_offset 7.3"),
    "late and shifted.flv": ("libx264 -bf 2", "late", "-output_ts_offset 7.3"),
    "late and shifted.ts": ("libx264 -bf 2", "late", "-output_ts_offset 7.3"),
    "late and shifted.vob": ("mpeg2video -bf 2", "late", "-fps_mode vfr -output_ts_offset 7.3"),
    "pictures that stay.ogv": ("libtheora", "late", "-fps_mode cfr"),
    "far.nut": ("mpeg4 -bf 2", "late", "-output_ts_offset 7.3"),
    "far.wmv": ("wmv2", "", "-output_ts_offset 5000"),
    "far.mpg": ("mpeg2video -bf 2", "", "-muxpreload 5 -muxdelay 3"),
    "far.mkv": ("libx264 -bf 2", "", "-output_ts_offset 95437"),
    "far.wtv": ("mpeg2video", "", "-output_ts_offset 7.3"),
    "live and far.mkv": ("libx264 -bf 2", "", "-live 1 -output_ts_offset 7.3"),
    "wrapped.m2ts": ("libx264 -bf 2", "", "-output_ts_offset 95437"),
    "wrapped.ts": ("libx264 -bf 2", "sound", "-output_ts_offset 95437"),
    "wrapped.mpg": ("mpeg2video -bf 2", "", "-output_ts_offset 95437"),
    "below zero.ts": ("libx264 -bf 2", "sound", "-output_ts_offset -2 -avoid_negative_ts disabled"),
    "below zero.wmv": ("wmv2", "sound", "-output_ts_offset -2 -avoid_negative_ts disabled"),
    "below zero.mp4": ("libx264", "sound", "-output_ts_offset -2 -avoid_negative_ts disabled"),
    "many held back.vob": ("mpeg2video -bf 4", "sound", ""),
    "many held back.mpg": ("mpeg2video -bf 8", "", ""),
    "many held back.ts": ("libx264 -bf 8 -b_strategy 0 -x264-params b-pyramid=normal", "", ""),
    "mpeg-1.mpg": ("mpeg1video -bf 3", "sound", ""),
    "few stamps.mpg": ("libx264 -bf 2", "", "-f vob"),
    "no edit list.mp4": ("libx264 -bf 2", "sound", "-use_editlist 0"),
    "early by its offsets.mov": ("libx264 -bf 2", "", "-movflags negative_cts_offsets"),
    "in pieces.mp4": (
        *("libx264 -bf 2", "sound"),
        "-output_ts_offset 7.3 -movflags frag_keyframe+empty_moov+default_base_moof",
    ),
}


#: Every day the first, the third and so on of each kind.
TRIED = [
    name
    for _, names in itertools.groupby(SIBLINGS, lambda name: Path(name).stem)
    for place, name in enumerate(names)
    if FULL or place % 2 == 0
]


@pytest.mark.parametrize("name", TRIED)
def test_others_of_the_same_kinds(parts: tuple[Path, Path], tmp_path: Path, figure, name) -> None:
    whole, clip = parts
    codec, before, after = SIBLINGS[name]
    check(write(tmp_path / name, whole, codec, before, "null", after), clip, name, figure)


@pytest.mark.parametrize("name", ["a.mp4 b.mp4", "a.mp4 b.mkv", "a.mkv b.mov", "a.wmv b.wmv"])
def test_a_stream_copy_of_a_part(parts: tuple[Path, Path], tmp_path: Path, figure, name) -> None:
    """An edit list, or times before zero, hide what is between the key frame and the cut."""
    whole, clip = parts
    first, second = (tmp_path / each for each in name.split())
    write(first, whole, "wmv2" if first.suffix == ".wmv" else "libx264 -bf 2", "", "null", "")
    ffmpeg("-ss", "2.13", "-i", first, "-c", "copy", second)
    check(second, clip, f"a part, {name}", figure)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_a_recording_that_begins_anywhere(
    parts: tuple[Path, Path], tmp_path: Path, figure, suffix: str
) -> None:
    whole, clip = parts
    codec = "libx264 -bf 2" if suffix == "ts" else "mpeg2video -bf 2"
    film = write(tmp_path / f"film.{suffix}", whole, codec, "sound", "null", "").read_bytes()
    unit = {"ts": 188, "mpg": 2048}[suffix]
    path = tmp_path / f"tail.{suffix}"
    path.write_bytes(film[len(film) // 5 // unit * unit :])
    check(path, clip, path.name, figure)


@pytest.mark.parametrize("suffix", ["mpg", "vob", "ts", "flv", "mp4"])
def test_a_cut_by_copy_shows_the_scene_at_its_time(
    parts: tuple[Path, Path], tmp_path: Path, suffix: str
) -> None:
    """Also where single stamps of decoding go back, which no container takes."""
    codec = "mpeg2video -bf 2" if suffix in ("mpg", "vob") else "libx264 -bf 2"
    path = write(tmp_path / f"film.{suffix}", parts[0], codec, "sound", "null", "")
    start, end = bright(path)
    begin, until = cut_clip(path, start - 0.5, end + 0.5, tmp_path / "clip.mkv")
    assert begin <= start - 0.45
    assert until >= end + 0.45
    shown = bright(tmp_path / "clip.mkv")
    assert shown == (pytest.approx(start - begin, abs=0.05), pytest.approx(end - begin, abs=0.05))


def test_pictures_without_stamps_are_not_left_out_of_a_copy(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    """Small pictures share a packet of a program stream, and a stamp: H.264 has no other."""
    path = write(tmp_path / "film.mpg", parts[0], "libx264 -bf 2", "", "null", "-f vob")
    with pytest.raises(OutputError, match="some pictures have no time stamps.*re-encode"):
        cut_clip(path, 5.5, 9.5, tmp_path / "clip.mkv")
    assert not (tmp_path / "clip.mkv").exists()
    cut_clip(path, 5.5, 9.5, tmp_path / "clip.mkv", reencode=True)
    assert bright(tmp_path / "clip.mkv") == (
        pytest.approx(0.5, abs=0.05),
        pytest.approx(3.5, abs=0.05),
    )
