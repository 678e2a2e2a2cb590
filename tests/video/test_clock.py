"""Whose clock, which stream, pictures that stay on: times are those of the file, as players count.

Film of most tests: 12 s at 12.5 pictures a second, grey levels that tell each picture.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from relocal_pyg.errors import UsageError, VideoError
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.video import FunctionBackbone, extract_video, find_moments, write_found_page
from relocal_pyg.video.container import Clock
from relocal_pyg.video.cut import describe_source
from relocal_pyg.video.decode import VideoWarning, droppable, frames, pictures, probe
from relocal_pyg.video.page import write_contact_sheet

av = pytest.importorskip("av")

BLOCKS = FunctionBackbone(
    lambda frames: frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1),
    "blocks",
    dim=144,
    size=(48, 64),
)
#: File, and where the three seconds of the query are on its own clock.
CASES = {
    "b.mp4": (6.0, 9.0),
    "late_video.mp4": (11.0, 14.0),
    "late_video.mkv": (11.0, 14.0),
    "late_video.ts": (11.0, 14.0),
    "dvb.ts": (7.25, 10.25),
    "two.mkv": (6.0, 9.0),
    "two.mp4": (6.0, 9.0),
    "hold.mp4": (3.04, 9.04),
    "hold.gif": (3.0, 7.0),
    "concat_reset.ts": (7.04, 10.04),
    "av1.mp4": (6.0, 9.0),
    "sar.mp4": (6.0, 9.0),
    "hdr.mp4": (6.0, 9.0),
}


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> Path:
    folder = shared_data.parent / "cases" / "video"
    if not folder.is_dir():
        pytest.skip("no odd files here")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_odd_files_are_answered_by_their_own_clock(cases, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", VideoWarning)  # none of them is damaged
        found = find_moments(
            cases / "q.mp4", cases / name, model=ContrastMatcher(), backbone=BLOCKS, top_k=1
        )
    start, end = CASES[name]
    step = max(found.seconds_per_step, 0.12)
    assert not found.problems
    assert found.moments[0].start == pytest.approx(start, abs=2 * step)
    assert found.moments[0].end == pytest.approx(end, abs=2 * step)


def levels(path, **options):
    shown = list(frames(path, **options))
    return [t for t, _ in shown], [round(float(p.mean()) / 2) for _, p in shown]


def flat(level, height=48, width=64):
    return np.full((height, width, 3), level, dtype=np.uint8)


def film(
    path,
    start=0.0,
    sound_from=None,
    times=None,
    options=None,
    container=None,
    extra=0,
    codec="mpeg4",
):
    """75 pictures from ``start`` on, a stream of stills before them where ``extra`` says so."""
    times = [start + i / 12.5 for i in range(75)] if times is None else times
    with av.open(str(path), "w", options=container or {}) as output:
        streams = []
        for _ in range(extra):
            small = output.add_stream("mjpeg", rate=1)
            small.width, small.height, small.pix_fmt = 32, 24, "yuvj420p"
            small.disposition = 0
            streams.append(small)
        exact = {"qmin": "1", "qmax": "1", **(options or {})}
        video = output.add_stream(codec, rate=25, options=exact)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        if extra:
            video.disposition = av.stream.Disposition.default
        sound = output.add_stream("aac", rate=16000, layout="mono") if sound_from else None
        output.start_encoding()
        for small in streams:
            for second in range(4):
                still = av.VideoFrame.from_ndarray(flat(9, 24, 32), format="rgb24")
                still.pts, still.time_base = second, Fraction(1, 1)
                output.mux(small.encode(still.reformat(format="yuvj420p")))
            output.mux(small.encode())
        if sound is not None:
            for first in range(0, int(16000 * (times[-1] - sound_from[0])), 1024):
                samples = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                samples.sample_rate, samples.time_base = 16000, Fraction(1, 16000)
                samples.pts = first + int(16000 * sound_from[0])
                output.mux(sound.encode(samples))
            output.mux(sound.encode())
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(flat(2 * i), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            output.mux(video.encode(frame))
        output.mux(video.encode())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
def test_pictures_that_begin_late_keep_their_time(tmp_path, suffix):
    path = film(tmp_path / f"late{suffix}", start=5.0, sound_from=(0.0,))
    assert probe(path).start == pytest.approx(5.0, abs=0.1)
    times, numbers = levels(path)
    assert times == pytest.approx([5 + i / 12.5 for i in range(75)], abs=0.1)
    assert numbers == pytest.approx(list(range(75)), abs=1.5)
    assert probe(path).duration == pytest.approx(11.0, abs=0.2)
    # Before the first picture the grid shows it; the step's number times its length is the time.
    times, numbers = levels(path, rate_hz=12.5)
    assert len(times) == pytest.approx(137, abs=3)
    assert numbers[:60] == pytest.approx([0] * 60, abs=1.5)
    assert numbers[-75:] == pytest.approx(list(range(75)), abs=2.5)
    assert levels(path, start=8.0, end=8.4)[1] == pytest.approx([37, 38, 39, 40, 41], abs=2.6)


def test_a_film_across_the_wrap_of_its_clock(tmp_path):
    # The clock of transport streams has 33 bits: it starts again after 26.5 hours.
    path = film(tmp_path / "wrap.ts", container={"output_ts_offset": "95441"})
    times, numbers = levels(path)
    assert times == pytest.approx([i / 12.5 for i in range(75)], abs=1e-3)
    assert numbers == pytest.approx(list(range(75)), abs=1.5)


@pytest.mark.slow
def test_an_edit_list_hides_what_it_hides(tmp_path):
    """A cut by stream copy: the clip shows from its edit on, as players do."""
    source = film(tmp_path / "a.mp4", options={"g": "25"})
    clip = tmp_path / "clip.mp4"
    with av.open(str(source)) as reading, av.open(str(clip), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream, opaque=True)
        for packet in reading.demux(stream):
            if packet.dts is None:
                continue
            shift = round(1.0 / stream.time_base)  # one second before zero is not shown
            packet.dts, packet.pts, packet.stream = packet.dts - shift, packet.pts - shift, copy
            writing.mux(packet)
    times, numbers = levels(clip)
    assert times[0] == pytest.approx(0.0, abs=1e-6)
    assert numbers == pytest.approx(list(range(13, 75)), abs=1.5)
    assert len(levels(clip, rate_hz=12.5)[0]) == 62


@pytest.mark.slow
def test_times_of_avi_run_backwards_and_nothing_is_damaged(tmp_path):
    path = film(tmp_path / "b.avi", times=[i / 25 for i in range(75)], options={"bf": "2"})
    problems: list[str] = []
    times, numbers = levels(path, report=problems.append)
    assert not problems
    assert len(times) >= 74
    assert np.diff(times) == pytest.approx(1 / 25, abs=0.045)
    assert numbers == sorted(numbers)
    assert times[-1] == pytest.approx(74 / 25, abs=0.13)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_last_picture_stays_as_long_as_it_says(tmp_path, suffix):
    """The stream copy writes the length of the last packet; no encoder of PyAV does."""
    source = film(tmp_path / "a.mp4", options={"bf": "0"})
    path = tmp_path / f"hold{suffix}"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream, opaque=True)
        packets = [packet for packet in reading.demux(stream) if packet.dts is not None]
        packets[-1].duration = round(6 / stream.time_base)
        for packet in packets:
            packet.stream = copy
            writing.mux(packet)
    problems: list[str] = []
    times, numbers = levels(path, rate_hz=12.5, report=problems.append)
    assert not problems
    assert len(times) / 12.5 == pytest.approx(74 / 12.5 + 6, abs=0.1)
    assert probe(path).fps_nominal == pytest.approx(12.5, rel=0.02)
    assert levels(path, start=8.0, end=9.0, rate_hz=4)[1] == pytest.approx([74] * 4, abs=1.5)
    video = extract_video(path, BLOCKS, 12.5)
    assert video.duration == pytest.approx(74 / 12.5 + 6, abs=0.1)


def test_the_default_stream_is_looked_at_and_another_on_request(tmp_path):
    path = film(tmp_path / "two.mkv", extra=1)
    told = probe(path)
    assert (told.width, told.height) == (64, 48)
    assert told.stream == "stream 1 (mpeg4, 64 x 48): the default one of 2 video streams"
    other = probe(path, stream=0)
    assert (other.width, other.height) == (32, 24)
    assert other.stream == "stream 0 (mjpeg, 32 x 24): as asked for"
    with pytest.raises(UsageError, match=r"has no video stream 7 \(its video streams: 0, 1\)"):
        probe(path, stream=7)
    assert next(frames(path, stream=0))[1].shape == (24, 32, 3)


@pytest.mark.slow
def test_pictures_of_an_answer_are_those_of_the_stream_that_was_searched(tmp_path):
    path = film(tmp_path / "two.mkv", extra=1)  # what is not the default stream is dark
    options = {"model": ContrastMatcher(), "backbone": BLOCKS, "include_query": True}
    found = find_moments(path, path, stream=0, **options)
    write_found_page(tmp_path / "page.html", found)
    shown = re.findall(
        r'src="data:image/jpeg;base64,([^"]+)"', (tmp_path / "page.html").read_text()
    )
    pictures = [Image.open(io.BytesIO(base64.b64decode(each))) for each in shown]
    assert len(pictures) >= 6
    assert max(np.asarray(each).mean() for each in pictures) < 20
    ranked = [(describe_source(path), moment) for moment in found.moments[:1]]
    for stream, dark in ((0, True), (None, False)):
        write_contact_sheet(tmp_path / f"{stream}.png", ranked, stream)
        sheet = np.asarray(Image.open(tmp_path / f"{stream}.png"))[40:140, 880:920]
        assert (sheet.mean() < 20) == dark


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_a_picture_too_large_is_refused_before_its_memory_is_taken(tmp_path, monkeypatch):
    path = tmp_path / "large.mov"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(flat(9, 64, 64), format="rgb24")))
        output.mux(stream.encode())
    data = path.read_bytes()
    forged = tmp_path / "forged.mov"
    # The size stands in the PNG's own header, then its checksum; the container says 64 x 64 still.
    head = data.index(b"IHDR")
    import zlib

    fields = b"IHDR" + (16000).to_bytes(4, "big") * 2 + data[head + 12 : head + 17]
    checksum = zlib.crc32(fields).to_bytes(4, "big")
    forged.write_bytes(data[:head] + fields + checksum + data[head + 21 :])
    code = (
        "import sys\n"
        "from relocal_pyg.errors import VideoError\n"
        "from relocal_pyg.video.decode import probe\n"
        "try: probe(sys.argv[1])\n"
        "except VideoError as error: print(error)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, str(forged)], capture_output=True, text=True, check=True
    )
    words, peak = done.stdout.splitlines()
    assert "forged.mov: " in words
    assert int(peak) < 300_000  # kilobytes; the picture has 768 megabytes


@pytest.mark.slow
def test_frames_that_no_other_needs_are_left_out_and_the_rest_is_the_same(tmp_path, write_video):
    if "libx264" not in av.codecs_available:
        pytest.skip("this FFmpeg writes no H.264")
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    moving = [np.roll(ground, i, axis=1) for i in range(100)]
    options = {"bf": "3", "b-pyramid": "none", "b_strategy": "0", "g": "50", "sc_threshold": "0"}
    path = write_video(tmp_path / "a.mp4", moving, options=options)
    assert droppable(path, 25.0) == "DEFAULT"
    skip = droppable(path, 6.25)
    assert skip in ("BIDIR", "NONREF")

    def shown(skip):
        found = pictures(path, report=pytest.fail, skip=skip)
        return {round(t, 6): f.to_ndarray(format="gray") for t, _, f in found}

    whole, kept = shown("DEFAULT"), shown(skip)
    assert len(whole) == 100
    assert 25 <= len(kept) <= 30
    assert all(np.array_equal(whole[time], kept[time]) for time in kept)
    assert droppable(path, 0.4) == "NONKEY"


@pytest.mark.parametrize(
    ("stamps", "shown", "dropped", "jumps"),
    [
        ([0, 1, 2, 3, 2, 5, 6], range(7), 0, False),  # the stamp of the picture before
        ([0, 1, 4, 2, 3, 8, 9], [0, 1, 4, 5, 6, 8, 9], 0, False),
        ([0, 0, 2, 2, 4, 4], range(6), 0, False),  # one for two pictures
        ([0, 1, 2, 200_000, 200_001, 200_002], range(6), 0, True),  # a clock set anew
        ([0, 1, 200_000, 3, 4], range(5), 0, True),  # one wild stamp
        ([0, 1, 2, -5000, 4, 5], [0, 1, 2, 4, 5], 1, False),
        ([None, None, None], range(3), 0, False),
    ],
)
def test_wrong_stamps_are_mended_and_pictures_are_kept(stamps, shown, dropped, jumps):
    base = Fraction(1, 25)
    nothing = dict.fromkeys(["guessed_rate", "base_rate", "duration", "start_time"])
    context = SimpleNamespace(skip_frame="DEFAULT", has_b_frames=False)
    nothing |= {"codec_context": context}
    stream = SimpleNamespace(time_base=base, average_rate=25, metadata={}, **nothing)
    kind = SimpleNamespace(name="any")
    clock = Clock(SimpleNamespace(start_time=0, duration=None, format=kind), stream)
    pictures = [SimpleNamespace(pts=s, dts=None, duration=1, time_base=base) for s in stamps]
    placed = [item for picture in [*pictures, None] for item in clock.place(picture)]
    assert [time for time, _ in placed] == pytest.approx([step / 25 for step in shown])
    assert [frame for _, frame in placed] == [f for f in pictures if f.pts != -5000]
    assert (clock.backwards, clock.jump is not None) == (dropped, jumps)


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="no regular file"):
        probe(tmp_path / "pipe.mp4")


def test_of_a_film_that_begins_with_damage_every_frame_is_decoded(tmp_path, write_video):
    """Where the beginning tells nothing, nothing is left out."""
    path = write_video(tmp_path / "a.mp4", [flat(i) for i in range(99)], codec="mpeg4")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pos is not None and p.size]
        places = [(packet.pos, packet.size) for packet in packets]
    data = bytearray(path.read_bytes())
    for place, size in places[5:9]:
        data[place : place + size] = bytes(size)
    path.write_bytes(data)
    assert droppable(path, 3.125) == "DEFAULT"
    raw = write_video(tmp_path / "a.h264", [flat(i) for i in range(99)])
    assert droppable(raw, 3.125) == "DEFAULT"


def test_of_a_film_of_key_frames_one_a_step_is_decoded(tmp_path):
    path = film(tmp_path / "intra.mkv", options={"g": "1"})
    assert droppable(path, 3.125) == "NONKEY"

    def shown(apart):
        found = pictures(path, report=pytest.fail, skip="NONKEY", apart=apart)
        return [
            (round(t, 3), round(float(f.to_ndarray(format="rgb24").mean()) / 2))
            for t, _, f in found
        ]

    assert len(shown(0.0)) == 75
    times, numbers = zip(*shown(0.99 / 3.125), strict=True)
    assert times == pytest.approx([0.32 * i for i in range(19)], abs=1e-3)
    assert numbers == pytest.approx(range(0, 75, 4), abs=1.5)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_a_film_does_not_end_with_its_last_key_frame(tmp_path, suffix):
    """Also where others are not decoded: a scan of key frames has to know how far the film goes."""
    codec = "flv" if suffix == ".flv" else "mpeg4"
    path = film(tmp_path / f"a{suffix}", options={"g": "37"}, codec=codec)
    for apart in (0.0, 5.0):
        found = list(pictures(path, report=pytest.fail, skip="NONKEY", apart=apart))
        assert found[-1][0] < 4
        assert found[-1][1] == pytest.approx(6.0, abs=0.05)


def test_a_decoder_that_gives_nothing_more_is_damage(tmp_path):
    """HEVC whose references are lost: no error, no picture, and packets until the end."""
    if "libx265" not in av.codecs_available:
        pytest.skip("this FFmpeg writes no HEVC")
    whole, torn = tmp_path / "whole.mkv", tmp_path / "torn.mkv"
    with av.open(str(whole), "w") as output:
        stream = output.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(120):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(flat(i), format="rgb24")))
        output.mux(stream.encode())
    with av.open(str(whole)) as reading, av.open(str(torn), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream, opaque=True)
        for number, packet in enumerate(reading.demux(stream)):
            if packet.size and not 25 <= number < 60:
                packet.stream = copy
                writing.mux(packet)
    problems: list[str] = []
    shown = list(pictures(torn, report=problems.append))
    assert len(shown) < 40
    assert shown[-1][1] < 1.6  # it is not said to stay on
    assert problems == [f"ends at {shown[-1][1]:.1f} s of the stated 4.8 s"]
