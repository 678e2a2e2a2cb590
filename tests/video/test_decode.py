from __future__ import annotations

import builtins
import struct
import subprocess
import sys
import weakref
from fractions import Fraction
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from relocal_pyg.errors import UsageError, VideoError
from relocal_pyg.video import container, decode
from relocal_pyg.video.cut import cut_clip
from relocal_pyg.video.decode import VideoWarning, frames, probe

av = pytest.importorskip("av")


def flat(level, height=48, width=64):
    return np.full((height, width, 3), level, dtype=np.uint8)


def levels(path, **options):
    """Time and frame number (written as half the grey level) of each item."""
    shown = list(frames(path, **options))
    return [t for t, _ in shown], [round(float(p.mean()) / 2) for _, p in shown]


UNEVEN = [0.0, 0.04, 0.5, 0.501, 2.5, 2.54, 3.0, 3.2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts"])
def test_times_are_those_written(tmp_path, write_video, suffix):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = write_video(tmp_path / f"a{suffix}", [flat(2 * i) for i in range(40)], codec=codec)
    times, numbers = levels(path)
    assert times == pytest.approx([i / 25 for i in range(40)], abs=1e-6)
    assert numbers == pytest.approx(list(range(40)), abs=2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_uneven_times_counted_from_the_first_frame(tmp_path, write_video, suffix, offset):
    pictures = [flat(20 * i) for i in range(len(UNEVEN))]
    path = write_video(tmp_path / f"a{suffix}", pictures, times=[t + offset for t in UNEVEN])
    times, _ = levels(path)
    assert times == pytest.approx(UNEVEN, abs=1e-6)
    stated = probe(path)
    assert stated.duration == pytest.approx(3.24, abs=0.2)


@pytest.mark.parametrize("rate", [1.0, 7.3, 12.5, 40.0])
def test_rate_gives_the_picture_on_the_screen(tmp_path, write_video, rate):
    pictures = [flat(20 * i) for i in range(len(UNEVEN))]
    path = write_video(tmp_path / "a.mp4", pictures, times=UNEVEN)
    times, numbers = levels(path, rate_hz=rate)
    grid = np.arange(len(times)) / rate
    expected = [max(i for i, t in enumerate(UNEVEN) if t <= g + 1e-3) for g in grid]
    assert [n / 10 for n in numbers] == pytest.approx(expected, abs=0.2)
    assert times == pytest.approx([UNEVEN[i] for i in expected], abs=1e-6)
    # The last picture stays for its own duration, then the video ends.
    assert 3.2 <= len(times) / rate < 3.2 + 0.2 + 1 / rate


def test_every_second_frame(steps_video):
    times, numbers = levels(steps_video, every=2)
    assert times == pytest.approx([i * 0.08 for i in range(50)], abs=1e-6)
    assert numbers == pytest.approx(list(range(0, 100, 2)), abs=1)
    assert levels(steps_video, rate_hz=12.5)[0] == pytest.approx(times, abs=1e-6)


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.5), (1.3, 2.5), (1.0, 1.04), (3.9, None), (0.5, 99.0)]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_range_is_exact(tmp_path, write_video, start, end, suffix):
    pictures = [flat(2 * i) for i in range(100)]
    path = write_video(tmp_path / f"a{suffix}", pictures, options={"g": "12", "bf": "2"})
    expected = [i for i in range(100) if start - 1e-6 <= i / 25 < (end or 9) - 1e-6]
    times, numbers = levels(path, start=start, end=end)
    assert times == pytest.approx([i / 25 for i in expected], abs=1e-6)
    assert numbers == pytest.approx(expected, abs=1)
    # On a grid the first item is what the screen shows at the start.
    times, numbers = levels(path, start=start, end=end, rate_hz=25)
    assert numbers[0] == pytest.approx(int(start * 25 + 1e-6), abs=1)
    assert times[0] <= start + 1e-3


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirroring_are_applied(tmp_path, write_video, degrees, mirrored):
    stored = flat(0)
    stored[:24, :32] = (250, 0, 0)
    stored[:24, 32:] = (0, 250, 0)
    stored[24:, :32] = (0, 0, 250)
    path = write_video(tmp_path / "a.mp4", [stored] * 3, rotate=(degrees, mirrored))
    # PyAV's degrees count against the clock, as numpy's do; it mirrors after turning.
    expected = np.rot90(stored, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    shown = next(frames(path))[1]
    assert shown.shape == expected.shape
    assert np.median(np.abs(shown.astype(int) - expected)) < 12
    stated = probe(path)
    assert (stated.height, stated.width) == expected.shape[:2]
    if not mirrored:
        assert stated.rotation == -degrees % 360
    scaled = next(frames(path, size=(20, 10)))[1]
    assert scaled.shape == (20, 10, 3)
    coarse = expected[:: len(expected) // 4][1:4:2, :: expected.shape[1] // 4][:, 1:4:2]
    assert np.abs(scaled[5:20:10, 2:10:5].astype(int) - coarse).max() < 80


@pytest.mark.parametrize(
    ("number", "turns", "mirrored"),
    [(1, 0, 0), (3, 2, 0), (6, 3, 0), (8, 1, 0), (2, 0, 1), (4, 2, 1), (5, 1, 1), (7, 3, 1)],
)
@pytest.mark.parametrize("suffix", [".jpg", ".avi", ".mov", ".mkv"])
def test_what_a_camera_notes_in_its_pictures_is_heeded(tmp_path, number, turns, mirrored, suffix):
    """EXIF, which this FFmpeg hands out and PyAV has no name for."""
    stored = flat(0)
    stored[:24, :32] = 250
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x112, 3, 1, number, 0)
    noted = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    with av.open(str(tmp_path / "plain.avi"), "w") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        encoded = list(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        data = bytes([*encoded, *stream.encode()][0])
        output.mux(av.Packet(data))
    data = data[:2] + noted + data[2:]
    path = tmp_path / f"camera{suffix}"
    if suffix == ".jpg":
        path.write_bytes(data)
    else:
        with av.open(str(path), "w") as output:
            stream = output.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            for at in range(30):
                packet = av.Packet(data)
                packet.pts = packet.dts = at
                packet.time_base, packet.stream = Fraction(1, 10), stream
                packet.is_keyframe = True
                output.mux(packet)
    shown = next(frames(path))[1]
    # Numbers 5 and 7 are a picture mirrored first and then turned.
    expected = np.rot90(stored[:, ::-1] if mirrored else stored, turns)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 12
    assert mirrored or probe(path).rotation == -turns * 90 % 360
    if suffix != ".jpg":
        for reencode in (False, True):
            cut_clip(path, 1, 2, tmp_path / "clip.mkv", reencode=reencode)
            again = next(frames(tmp_path / "clip.mkv"))[1]
            assert again.shape == expected.shape
            assert np.median(np.abs(again.astype(int) - expected)) < 12


def test_odd_sizes(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", [flat(100, 47, 63)] * 3, codec="mpeg4")
    shown = next(frames(path))[1]
    assert shown.shape == (47, 63, 3)
    assert np.abs(shown.astype(int) - 100).max() < 6
    assert next(frames(path, size=(33, 17)))[1].shape == (33, 17, 3)
    stated = probe(path)
    assert (stated.width, stated.height, stated.rotation) == (63, 47, 0)


def test_probe(steps_video):
    stated = probe(steps_video)
    assert stated.duration == pytest.approx(4.0)
    assert stated.fps_nominal == pytest.approx(25.0)
    assert (stated.width, stated.height, stated.num_frames_estimate) == (64, 48, 100)
    assert stated.codec in ("h264", "mpeg4")


def test_a_raw_stream_has_no_timestamps_but_times(tmp_path, write_video):
    path = write_video(tmp_path / "a.h264", [flat(2 * i) for i in range(20)])
    times, numbers = levels(path)
    assert times == pytest.approx([i / 25 for i in range(20)], abs=1e-6)
    assert numbers == pytest.approx(list(range(20)), abs=1)
    assert levels(path, start=0.4)[1] == pytest.approx(list(range(10, 20)), abs=1)
    assert probe(path).num_frames_estimate is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty"),
        ("text", "is not a video"),
        ("directory", "is a directory"),
        ("missing", "no such file"),
        ("headless", "is not a video"),
        ("noise", "is not a video"),
        ("audio_only", "no video stream"),
        ("no_frames", "no frame|no video stream|not a video"),
        ("playlist", "is not a video"),
        ("nul", "cannot be opened|no such file"),
    ],
)
@pytest.mark.parametrize("call", [probe, lambda path: list(frames(path, rate_hz=5))])
def test_bad_files_give_one_line_that_names_them(bad_videos, kind, words, call):
    path = bad_videos[kind]
    with pytest.raises(VideoError, match=words) as caught:
        call(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path).replace("\0", "\\x00"))
    # Nothing of PyAV shows through, not even as the cause of a traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as output:
        if "libmp3lame" not in av.codecs_available:
            pytest.skip("this FFmpeg writes no mp3")
        sound = output.add_stream("libmp3lame", rate=16000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(flat(9, 32, 32), format="rgb24")))
        samples = np.zeros((1, 1152), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(sound.encode(frame))
        output.mux(sound.encode())
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


@pytest.mark.slow
def test_a_broken_tail_gives_what_decodes_and_says_so(tmp_path, write_video):
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
    whole = write_video(tmp_path / "a.mp4", list(noise), container={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.warns(VideoWarning) as caught:
        times, _ = levels(cut)
    assert 10 < len(times) < 90
    assert times == pytest.approx([i / 25 for i in range(len(times))], abs=1e-6)
    assert any("of the stated 4.0 s" in str(w.message) for w in caught)
    assert all(str(w.message).startswith(str(cut)) for w in caught)
    problems: list[str] = []
    levels(cut, report=problems.append)
    assert any("of the stated" in problem for problem in problems)
    assert probe(cut).duration == pytest.approx(4.0)


@pytest.mark.slow
def test_damage_in_the_middle_is_survived(tmp_path, write_video):
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
    options = {"g": "10"}
    whole = write_video(tmp_path / "a.mp4", list(noise), codec="mpeg4", options=options)
    data = bytearray(whole.read_bytes())
    middle, hole = len(data) // 2, len(data) // 10
    data[middle : middle + hole] = bytes(hole)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    problems: list[str] = []
    times, _ = levels(path, report=problems.append)
    assert any("damaged" in problem for problem in problems)
    # The frames after the damage keep their times.
    assert times[-1] == pytest.approx(99 / 25, abs=1e-6)
    assert 50 < len(times) < 100


def test_a_jump_is_believed_where_the_header_bears_it_out(tmp_path, write_video):
    pictures, times = [flat(20 * i) for i in range(4)], [0.0, 0.5, 9000.0, 9000.5]
    problems: list[str] = []
    whole = write_video(tmp_path / "a.mkv", pictures, times)
    assert len(levels(whole, rate_hz=1, report=problems.append)[0]) == 9001
    assert not problems
    # Written as a live stream is: no length in the header.
    live = write_video(tmp_path / "live.mkv", pictures, times, container={"live": "1"})
    assert len(levels(live, rate_hz=10, report=problems.append)[0]) < 30
    assert any("jumps" in problem for problem in problems)
    assert levels(live, report=problems.append)[0] == pytest.approx(
        [0.0, 0.5, 0.54, 1.04], abs=1e-3
    )


@pytest.mark.slow
def test_a_clock_that_starts_again_goes_on(tmp_path, write_video):
    once = write_video(tmp_path / "once.ts", [flat(2 * i) for i in range(50)])
    thrice = tmp_path / "thrice.ts"
    thrice.write_bytes(once.read_bytes() * 3)
    problems: list[str] = []
    times, numbers = levels(thrice, report=problems.append)
    assert times == pytest.approx([i / 25 for i in range(150)], abs=1e-4)
    assert numbers == pytest.approx(list(range(50)) * 3, abs=1.5)
    assert not problems
    times, numbers = levels(thrice, start=3.0, end=4.6)
    assert times == pytest.approx([i / 25 for i in range(75, 115)], abs=1e-4)
    assert numbers == pytest.approx([*range(25, 50), *range(15)], abs=1.5)


def test_pictures_behind_one_stamp_are_not_lost_where_no_rate_is_known(tmp_path):
    path = tmp_path / "still.mpg"  # all of them fit one packet of a program stream
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 60_000)
        for number in range(20):
            picture = np.full((48, 64, 3), 10 * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 2400 * number, Fraction(1, 60_000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    shown = list(frames(path))
    assert [round(float(picture.mean()) / 10) for _, picture in shown] == list(range(20))
    assert [time for time, _ in shown] == pytest.approx([0.04 * i for i in range(20)])
    assert probe(path).fps_nominal is None


def test_ranges_that_show_nothing(steps_video):
    for options in ({"rate_hz": 5.0}, {"every": 1}, {}):
        with pytest.raises(VideoError, match="shows no frame"):
            list(frames(steps_video, start=50.0, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"rate_hz": 5.0, "every": 2},
        {"rate_hz": 0.0},
        {"rate_hz": float("nan")},
        {"every": 0},
        {"start": -1.0},
        {"start": 2.0, "end": 2.0},
        {"start": float("nan")},
        {"end": float("nan")},
        {"size": (0, 5)},
        {"size": (8, 8, 3)},
        {"size": 8},
        {"size": (8.5, 8)},
    ],
)
def test_arguments_out_of_range_are_refused_at_once(steps_video, options):
    with pytest.raises(UsageError):
        frames(steps_video, **options)


def test_a_huge_frame_is_refused(steps_video, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="64 x 48 pixels") as caught:
        list(frames(steps_video))
    assert caught.value.file == str(steps_video)


@pytest.mark.slow
def test_a_photograph_that_is_too_large_is_told_why(tmp_path):
    """Of a photograph the size is not known before it is decoded."""
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(VideoError, match="at most 67,108,864 pixels"):
        list(frames(tmp_path / "a.png"))


@pytest.mark.slow
def test_memory_is_bounded(steps_video):
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Watched(np.ndarray):
        """An array that can be in a weak set."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    original = decode.np.ascontiguousarray

    def watched(array):
        copy = original(array).view(Watched)
        alive.add(copy)
        return copy

    decode.np.ascontiguousarray, undo = watched, original
    try:
        for _ in frames(steps_video):
            most = max(most, len(alive))
    finally:
        decode.np.ascontiguousarray = undo
    assert most <= 2


def test_without_pyav_the_extra_is_named(steps_video, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "av")
    monkeypatch.setattr(builtins, "__import__", refuse)
    container.failures.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'relocal_pyg\[video\]'"):
        list(frames(steps_video))
    with pytest.raises(UsageError, match="relocal_pyg"):
        probe(steps_video)


def test_a_colon_or_odd_bytes_in_a_name(tmp_path, write_video):
    plain = write_video(tmp_path / "a.mp4", [flat(5)] * 3)
    for name in ("http:x.mp4", "été ☃.mp4", "a%d.mp4"):
        odd = tmp_path / name
        odd.write_bytes(plain.read_bytes())
        assert len(list(frames(odd))) == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path, write_video):
    """Peak memory of a process of its own, 100 and 1,000 frames of 640 x 360 (0.7 MB as RGB)."""
    code = (
        "import resource, sys\n"
        "from relocal_pyg.video.decode import frames\n"
        "for path in sys.argv[1:]:\n"
        "    count = sum(1 for _ in frames(path))\n"
        "    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    paths = []
    for count in (100, 1000):
        options = {"preset": "ultrafast", "g": "50"}
        path = write_video(
            tmp_path / f"{count}.mp4",
            [flat(i % 256, 360, 640) for i in range(50)] * (count // 50),
            options=options,
        )
        paths.append(str(path))
    result = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    first, before, second, after = map(int, result.stdout.split())
    assert (first, second) == (100, 1000)
    assert after - before < 25


@pytest.mark.slow
def test_a_file_torn_within_its_last_packet_ends_there(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 480, 640, 3), dtype=np.uint8)
    shown = [*noise, *[noise[-1]] * 100]  # far less than the header states is left
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        for picture in shown:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    reports = []
    *_, (_, end, _) = decode.pictures(path, report=reports.append)
    assert end < 4.0
    assert reports[-1].startswith(f"ends at {end:.1f} s of the stated")


def test_a_tile_of_a_photograph_is_not_taken_for_all_of_it():
    """As telephones store them (HEIC, AVIF): tiles, and maybe a small picture of the whole."""
    kinds = av.stream.Disposition

    def stream(index, disposition, size):
        codec = SimpleNamespace(canonical_name="hevc")
        found = Mock(index=index, disposition=disposition)
        found.codec_context = SimpleNamespace(width=size, height=size, codec=codec)
        return found

    tiles = [stream(index, kinds.dependent, 512) for index in range(4)]
    file = SimpleNamespace(streams=SimpleNamespace(video=tiles))
    with pytest.raises(VideoError, match="tiles: save it as JPEG or PNG"):
        container.choose_stream(file, "a.heic", None)
    file.streams.video = [*tiles, stream(4, kinds(0), 320)]
    assert container.choose_stream(file, "a.heic", None)[0].index == 4
