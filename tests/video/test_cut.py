from __future__ import annotations

import re
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from relocal_pyg.errors import OutputError, UsageError, VideoError
from relocal_pyg.video.cut import cut_clip, describe_source
from relocal_pyg.video.decode import filtered, frames, probe

av = pytest.importorskip("av")


def flat(level, height=48, width=64):
    return np.full((height, width, 3), level, dtype=np.uint8)


def numbers(path):
    """Time and frame number, written as half the grey level."""
    shown = list(frames(path))
    return [t for t, _ in shown], [float(p.mean()) / 2 for _, p in shown]


def key_frames(path):
    """Seconds of the file's own clock."""
    with av.open(str(path)) as video:
        zero = video.start_time / 1e6
        return [float(p.pts * p.time_base) - zero for p in video.demux(video=0) if p.is_keyframe]


RANGES = [(0.0, 1.0), (1.3, 2.5), (0.96, 1.0), (3.9, 9.0), (0.0, 4.0)]


@pytest.mark.parametrize(("start", "end"), RANGES)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_reencoding_is_frame_exact(steps_video, tmp_path, start, end, suffix):
    target = tmp_path / f"clip{suffix}"
    shown = cut_clip(steps_video, start, end, target, reencode=True)
    wanted = [i for i in range(100) if start - 1e-6 <= i / 25 < end - 1e-6]
    times, found = numbers(target)
    assert found == pytest.approx(wanted, abs=1.5)
    assert times == pytest.approx([(i - wanted[0]) / 25 for i in wanted], abs=1e-3)
    assert shown[0] == pytest.approx(wanted[0] / 25, abs=1e-6)
    assert shown[1] == pytest.approx(min((wanted[-1] + 1) / 25, end), abs=1e-6)


def test_reencoding_can_be_ended(steps_video, tmp_path):
    sizes = []

    def check(written):
        sizes.append(written.stat().st_size if written.exists() else 0)
        if len(sizes) == 30:
            raise OutputError("that is enough")

    with pytest.raises(OutputError, match="enough"):
        cut_clip(steps_video, 0.0, 4.0, tmp_path / "clip.mp4", reencode=True, check=check)
    assert len(sizes) == 30
    assert list(tmp_path.glob("*clip*")) == []


@pytest.fixture(scope="module")
def steps(tmp_path_factory, write_video):
    """Films of 100 pictures of grey level 2 i, a key frame every 12."""
    folder, pictures = tmp_path_factory.mktemp("steps"), [flat(2 * i) for i in range(100)]
    return {
        suffix: write_video(folder / f"a{suffix}", pictures, options={"g": "12", "bf": "2"})
        for suffix in (".mp4", ".mkv")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("start", "end"), RANGES)
@pytest.mark.parametrize("suffixes", [(".mp4", ".mp4"), (".mp4", ".mkv"), (".mkv", ".mp4")])
def test_copying_starts_at_the_key_frame_before(steps, tmp_path, start, end, suffixes):
    source = steps[suffixes[0]]
    target = tmp_path / f"clip{suffixes[1]}"
    first, last = cut_clip(source, start, end, target)
    before = [time for time in key_frames(source) if time <= start + 1e-6]
    assert first == pytest.approx(before[-1], abs=1e-6)
    key = round(first * 25)
    assert min(end, 4.0) - 1e-6 <= last <= end + 0.2
    times, found = numbers(target)
    wanted = [i for i in range(key, 100) if i / 25 < end - 1e-6]
    # Every frame up to the end is there; frames just after it may be.
    assert found[: len(wanted)] == pytest.approx(wanted, abs=1.5)
    assert times[: len(wanted)] == pytest.approx([(i - key) / 25 for i in wanted], abs=2e-3)
    assert len(found) <= len(wanted) + 4
    assert times[-1] + 0.04 == pytest.approx(last - first, abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_sound_is_copied_too(tmp_path, write_video, suffix):
    source = write_video(
        tmp_path / f"a{suffix}", [flat(2 * i) for i in range(75)], audio=True, options={"g": "25"}
    )
    target = tmp_path / f"clip{suffix}"
    shown = cut_clip(source, 1.2, 1.9, target)
    with av.open(str(target)) as clip:
        samples = sum(frame.samples for frame in clip.decode(audio=0))
    before = [time for time in key_frames(source) if time <= 1.2]
    assert shown[0] == pytest.approx(before[-1], abs=1e-6)
    assert samples / 16000 == pytest.approx(1.9 - before[-1], abs=0.15)
    cut_clip(source, 1.2, 1.9, target, reencode=True)
    with av.open(str(target)) as clip:
        assert not clip.streams.audio


def test_uneven_times_and_turned_pictures_survive(tmp_path, write_video):
    stored = flat(0)
    stored[:24] = (250, 0, 0)
    times = [0.0, 0.1, 0.15, 0.6, 0.7]
    source = write_video(tmp_path / "a.mp4", [stored] * 5, times=times, rotate=(-90, False))
    upright = next(frames(source))[1]
    for reencode in (False, True):
        target = tmp_path / f"clip{reencode}.mp4"
        cut_clip(source, 0.0, 0.65, target, reencode=reencode)
        shown = list(frames(target))
        assert [t for t, _ in shown[:4]] == pytest.approx(times[:4], abs=2e-3)
        assert np.median(np.abs(shown[0][1].astype(int) - upright)) < 12
        assert probe(target).rotation == 90


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
def test_frames_before_the_edit_list_of_a_trimmed_file_are_not_counted(tmp_path, write_video):
    whole = write_video(tmp_path / "x.mp4", moving(120), options={"g": "50"})
    assert describe_source(whole).frame_count == 120
    command = ["ffmpeg", "-v", "error", "-ss", "1.3", "-i", str(whole), "-c", "copy"]
    subprocess.run([*command, str(tmp_path / "cut.mp4")], check=True)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames > 3.5 * 25 + 1
    source = describe_source(tmp_path / "cut.mp4")
    assert source.duration == pytest.approx(3.5, abs=0.01)
    assert abs(source.frame_count - 3.5 * 25) <= 1


def test_odd_sides_lose_a_row(tmp_path, write_video):
    source = write_video(tmp_path / "a.mp4", [flat(100, 47, 63)] * 5, codec="mpeg4")
    cut_clip(source, 0.0, 1.0, tmp_path / "clip.mp4", reencode=True)
    assert next(frames(tmp_path / "clip.mp4"))[1].shape == (46, 62, 3)


def test_without_h264_mpeg4_is_written(steps_video, tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    cut_clip(steps_video, 1.0, 2.0, tmp_path / "clip.mp4", reencode=True)
    assert probe(tmp_path / "clip.mp4").codec == "mpeg4"
    assert len(numbers(tmp_path / "clip.mp4")[0]) == 25


def test_a_raw_stream_has_to_be_reencoded(tmp_path, write_video):
    source = write_video(tmp_path / "a.h264", [flat(2 * i) for i in range(20)])
    with pytest.raises(VideoError, match="re-encode"):
        cut_clip(source, 0.2, 0.4, tmp_path / "clip.mp4")
    cut_clip(source, 0.2, 0.4, tmp_path / "clip.mp4", reencode=True)
    assert numbers(tmp_path / "clip.mp4")[1] == pytest.approx([5, 6, 7, 8, 9], abs=1.5)


@pytest.mark.parametrize("reencode", [False, True])
def test_errors_leave_nothing_behind(steps_video, bad_videos, tmp_path, reencode):
    target = tmp_path / "clip.mp4"
    for source, start, end, kind in [
        (steps_video, 50.0, 51.0, VideoError),
        (bad_videos["text"], 0.0, 1.0, VideoError),
        (bad_videos["missing"], 0.0, 1.0, VideoError),
        (steps_video, 2.0, 1.0, UsageError),
        (steps_video, -1.0, 1.0, UsageError),
        (steps_video, 0.0, float("nan"), UsageError),
    ]:
        with pytest.raises(kind) as caught:
            cut_clip(source, start, end, target, reencode=reencode)
        assert "\n" not in str(caught.value)
        assert not target.exists()
    with pytest.raises(OutputError) as caught:
        cut_clip(steps_video, 0.0, 1.0, tmp_path / "clip.nonsense", reencode=reencode)
    assert caught.value.file == str(tmp_path / "clip.nonsense")
    with pytest.raises(UsageError, match="overwrite"):
        cut_clip(steps_video, 0.0, 1.0, steps_video, reencode=reencode)
    assert len(numbers(steps_video)[0]) == 100


def pictures_of(path, size=(48, 64), **options):
    return np.stack([picture for _, picture in frames(path, size=size, **options)]).astype(float)


def described(path):
    """What a player needs beside the pictures: codec tag, pixel aspect, colours, depth."""
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        frame = next(video.decode(stream))
        context = stream.codec_context
        return {
            "tag": context.codec_tag,
            "aspect": stream.sample_aspect_ratio or context.sample_aspect_ratio,
            "colours": (frame.color_primaries, frame.color_trc, frame.colorspace),
            "range": frame.color_range or 1,  # unsaid is limited
            "bits": max(part.bits for part in frame.format.components),
        }


def odd_video(path, count=50, codec="libx264", pix_fmt="yuv420p", tag=None, **properties):
    """Pictures at 25 Hz whose stream has the given properties."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    options = {"x265-params": "log-level=error:keyint=25"} if codec == "libx265" else {"g": "25"}
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for name, value in properties.items():
            setattr(stream.codec_context, name, value)
        if tag:
            stream.codec_context.codec_tag = tag
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(flat(20 + 4 * i), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


ODD = {
    "aspect": {"sample_aspect_ratio": Fraction(64, 45)},
    "bt709": {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1},
    "full range": {"pix_fmt": "yuvj420p", "color_range": 2},
    "hdr": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "tag": "hvc1",
        **{"color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1},
    },
    "hvc1": {"codec": "libx265", "tag": "hvc1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("reencode", [False, True])
def test_a_clip_is_shown_as_its_source_is(tmp_path, kind, reencode):
    source = odd_video(tmp_path / "a.mp4", **ODD[kind])
    target = tmp_path / "clip.mp4"
    begin, end = cut_clip(source, 1.0, 2.0, target, reencode=reencode)
    assert (begin, end) == (pytest.approx(1.0), pytest.approx(2.0))
    before, after = described(source), described(target)
    if reencode and kind == "hvc1":
        before["tag"] = after["tag"]  # 8 bits are written as H.264
    assert after == before
    difference = pictures_of(target) - pictures_of(source, start=1.0, end=2.0)
    assert np.abs(difference).mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".avi", ".nut"])
@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p", "yuyv422", "bgr24", "gray", "rgb555le"])
def test_raw_pictures_are_copied_as_they_are_stored(tmp_path, suffix, layout):
    """Only the name of the codec says how they are laid out."""
    with av.open(str(tmp_path / f"a{suffix}"), "w") as output:
        stream = output.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for number in range(30):
            picture = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=layout)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    cut_clip(tmp_path / f"a{suffix}", 1, 2, tmp_path / f"clip{suffix}")
    shown = [list(frames(tmp_path / f"{name}{suffix}")) for name in ("a", "clip")]
    assert len(shown[1]) == 10
    for (_, before), (_, after) in zip(shown[0][10:20], shown[1], strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [("a.mkv", "ffv1", "gray"), ("a.mkv", "ffv1", "bgr0"), ("a.mov", "png", "rgb24")],
)
def test_values_that_reach_from_0_to_255_are_as_bright_when_encoded_anew(
    tmp_path, name, codec, layout
):
    """A clip of other values than it is tagged with is darker and harder, by 8 in 100 here."""
    levels = [10, 60, 120, 200, 245]
    with av.open(str(tmp_path / name), "w") as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        stream.codec_context.color_range = 2
        for number in range(20):
            picture = np.full((48, 64, 3), levels[number % 5], np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format=layout, dst_color_range=2)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    cut_clip(tmp_path / name, 0.5, 1.5, tmp_path / "clip.mp4", reencode=True)
    shown = [picture.mean() for _, picture in frames(tmp_path / "clip.mp4")]
    assert shown == pytest.approx(2 * levels, abs=3)


PALETTES = ["rawvideo.avi", "rawvideo.mov", "rawvideo.nut", "msrle.avi", "targa.mov"]


@pytest.fixture(scope="module", params=PALETTES)
def palette_film(tmp_path_factory, request):
    """A film with a palette, and the mean colour of each picture."""
    source = tmp_path_factory.mktemp("palette") / request.param
    palette = np.zeros((256, 4), np.uint8)
    palette[:] = np.arange(256)[:, None] * [0, 0, 1, 2] % 256  # ARGB, of which all is opaque
    palette[:, 0] = 255
    with av.open(str(source), "w") as output:
        stream = output.add_stream(source.stem, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for number in range(30):
            indices = np.full((48, 64), 4 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    shown = [picture.mean((0, 1)) for _, picture in frames(source)]
    assert np.ptp(shown, axis=0).max() > 100
    middle = [picture.mean((0, 1)) for _, picture in frames(source, start=1.0)]
    np.testing.assert_array_equal(middle, shown[10:])
    return source, shown


@pytest.mark.slow
def test_a_film_with_a_palette_is_encoded_anew(palette_film, tmp_path):
    source, shown = palette_film
    cut_clip(source, 1, 2, tmp_path / "anew.mp4", reencode=True)
    anew = [picture.mean((0, 1)) for _, picture in frames(tmp_path / "anew.mp4")]
    assert np.abs(np.subtract(anew, shown[10:20])).max() < 12


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".avi", ".mov", ".nut", ".mkv"])
def test_colours_that_lie_apart_from_the_pictures_are_kept_or_the_copy_is_refused(
    palette_film, tmp_path, suffix
):
    """Raw pictures with a palette: AVI and MOV give it with the first one alone."""
    source, shown = palette_film
    try:
        cut_clip(source, 1, 2, tmp_path / f"clip{suffix}")
    except (OutputError, VideoError):
        assert not (tmp_path / f"clip{suffix}").exists()
    else:
        copied = [picture.mean((0, 1)) for _, picture in frames(tmp_path / f"clip{suffix}")]
        np.testing.assert_array_equal(copied, shown[10:20])


def test_one_picture_that_stays_is_a_clip(tmp_path, write_video):
    """A picture each 5 s: from 6 to 9 s there is one on the screen, though none begins."""
    pictures = [flat(level) for level in (30, 120, 210, 60)]
    source = write_video(tmp_path / "slides.mp4", pictures, times=[0, 5, 10, 15])
    target = tmp_path / "clip.mp4"
    assert cut_clip(source, 6.0, 9.0, target, reencode=True) == (6.0, 9.0)
    assert probe(target).duration == pytest.approx(3.0, abs=0.05)
    assert np.abs(pictures_of(target) - 120).max() < 6
    assert cut_clip(source, 8.0, 12.0, target, reencode=True) == (8.0, 12.0)
    shown = list(frames(target, rate_hz=1.0))
    assert [round(float(picture.mean()), -1) for _, picture in shown] == [120, 120, 210, 210]


@pytest.mark.slow
def test_a_clip_of_a_film_that_begins_late_is_cut_by_its_clock(tmp_path, write_video):
    source = tmp_path / "late.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("mpeg4", rate=25, options={"g": "25", "qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("aac", rate=16000, layout="mono")
        for first in range(0, 16000 * 7, 1024):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, first, Fraction(1, 16000)
            output.mux(sound.encode(frame))
        output.mux(sound.encode())
        for i in range(100):
            frame = av.VideoFrame.from_ndarray(flat(2 * i), format="rgb24")
            frame.pts, frame.time_base = 75 + i, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    for reencode in (True, False):
        target = tmp_path / f"clip{reencode}.mp4"
        shown = cut_clip(source, 5.0, 6.0, target, reencode=reencode)
        assert shown[0] == pytest.approx(5.0, abs=0.01) or (not reencode and shown[0] < 5)
        assert shown[1] == pytest.approx(6.0, abs=0.09)
        first = round((shown[0] - 3) * 25)
        assert numbers(target)[1][: 75 - first] == pytest.approx(range(first, 75), abs=1.5)
    # From its beginning on the first picture stands, as a player shows it.
    assert cut_clip(source, 0.0, 6.0, target, reencode=True)[0] == 0
    assert probe(target).duration == pytest.approx(6.0, abs=0.1)


def test_pictures_of_another_size_on_the_way_are_scaled(tmp_path):
    """Two transport streams of different size, one after the other."""
    joined = tmp_path / "joined.ts"
    parts = []
    for name, (height, width) in {"a": (48, 64), "b": (96, 128)}.items():
        with av.open(str(tmp_path / f"{name}.ts"), "w") as output:
            stream = output.add_stream("mpeg2video", rate=25, options={"qmin": "1", "qmax": "2"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(25):
                picture = flat(60 if name == "a" else 180, height, width)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        parts.append((tmp_path / f"{name}.ts").read_bytes())
    joined.write_bytes(b"".join(parts))
    target = tmp_path / "clip.mp4"
    cut_clip(joined, 0.2, 1.8, target, reencode=True)
    shown = pictures_of(target, size=None)
    assert shown.shape[1:] == (48, 64, 3)
    assert np.abs(shown[:19] - 60).max() < 8
    assert np.abs(shown[-19:] - 180).max() < 8
    with pytest.raises(VideoError, match="starts again on the way: re-encode"):
        cut_clip(joined, 0.2, 1.8, tmp_path / "copy.ts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stretch", "reencode"),
    [
        ("av1.mp4", (6, 9), False),
        ("hvc1.mov", (4, 8), False),
        ("sar.mp4", (4, 8), True),
        ("hdr.mp4", (4, 8), True),
        ("slides.mp4", (6, 10), True),
        ("late_video.ts", (11, 14), False),
        ("late_video.mkv", (11, 14), True),
    ],
)
def test_odd_files_are_cut_to_what_they_show(shared_data, tmp_path, name, stretch, reencode):
    source = shared_data.parent / "cases" / "video" / name
    if not source.is_file():
        pytest.skip("no odd files here")
    target = tmp_path / f"clip{'.mp4' if reencode else source.suffix}"
    start, end = cut_clip(source, *stretch, target, reencode=reencode)
    before, after = described(source), described(target)
    for kept in ("aspect", "colours", "range", "bits", *([] if reencode else ["tag"])):
        assert after[kept] == before[kept], kept
    wanted = pictures_of(source, start=start, end=end, rate_hz=5.0)
    found = pictures_of(target, rate_hz=5.0)[: len(wanted)]
    assert len(found) >= len(wanted) - 1
    assert np.abs(found - wanted[: len(found)]).mean() < 4


def moving(count=100):
    """Pictures of which no two are alike, and one scene is red."""
    shown = [np.full((48, 64, 3), (2 * i, 90, 60), dtype=np.uint8) for i in range(count)]
    for i, picture in enumerate(shown):
        picture[:, i % 56 : i % 56 + 8] = 250
    return shown


def copied(tmp_path, source, suffix=None, start=2.0):
    """The pictures of a copy, and those that the source shows from there on."""
    target = tmp_path / f"clip{suffix or source.suffix}"
    first, _ = cut_clip(source, start, 3.0, target)
    found, wanted = pictures_of(target), pictures_of(source, start=first)
    return found, wanted[: len(found)]


def recorded(path, codec, form, size=(64, 48), **options):
    """A film of another pixel format than ``write_video`` gives."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, form
        for i, picture in enumerate(moving()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(*size, format=form)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".tod", ".qt", ".trp", ".mpe", ".divx", ".lrv"])
def test_a_suffix_that_ffmpeg_does_not_write_is_copied_as_its_source_is(tmp_path, suffix):
    kind = {".qt": "mov", ".trp": "ts", ".divx": "avi", ".lrv": "mp4"}.get(suffix, "mpg")
    codec = {"mpg": "mpeg2video", "avi": "mpeg4"}.get(kind, "libx264")
    whole = recorded(tmp_path / f"whole.{kind}", codec, "yuv420p", g="12")
    source = whole.rename(tmp_path / f"camera{suffix}")
    found, wanted = copied(tmp_path, source)
    assert len(found) >= 25
    assert np.abs(found - wanted).max() == 0
    with pytest.raises(OutputError, match="output format"):
        cut_clip(source, 2.0, 3.0, tmp_path / "clip.nonsense")


def test_a_copy_that_begins_with_no_whole_picture_is_refused(tmp_path, write_video):
    """Intra refresh: pictures come to be over a second, none is whole of itself."""
    options = {"x264-params": "intra-refresh=1:keyint=25"}
    source = write_video(tmp_path / "a.mp4", moving(), options=options)
    with pytest.raises(OutputError, match="come out otherwise.*re-encode") as caught:
        cut_clip(source, 2.0, 3.0, tmp_path / "clip.mp4")
    assert caught.value.file == str(tmp_path / "clip.mp4")
    cut_clip(source, 0.0, 1.0, tmp_path / "clip.mp4")  # its first picture is whole


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".h264"])
def test_a_copy_keeps_turn_and_pixel_aspect_or_is_refused(tmp_path, write_video, suffix):
    source = write_video(tmp_path / "a.mp4", moving(), rotate=(90, False), options={"g": "12"})
    keeps = suffix in (".mp4", ".mkv")
    if keeps:
        found, wanted = copied(tmp_path, source, suffix)
        assert np.abs(found - wanted).max() == 0
    else:
        with pytest.raises(OutputError, match="come out otherwise") as caught:
            cut_clip(source, 2.0, 3.0, tmp_path / f"clip{suffix}")
        assert ".relocal" not in str(caught.value)
    wide = tmp_path / "wide.mp4"  # the container alone says so
    with av.open(str(source)) as given, av.open(str(wide), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0], opaque=True)
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    if suffix == ".mp4":
        cut_clip(wide, 2.0, 3.0, tmp_path / "aspect.mp4")
        with av.open(str(tmp_path / "aspect.mp4")) as clip:
            assert clip.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    else:
        with pytest.raises(OutputError, match="come out otherwise"):
            cut_clip(wide, 2.0, 3.0, tmp_path / f"aspect{suffix}")


def test_raw_pictures_are_copied_into_matroska(tmp_path):
    found, wanted = copied(tmp_path, recorded(tmp_path / "a.mkv", "rawvideo", "yuv420p"))
    assert len(found) == 25
    assert np.abs(found - wanted).max() == 0


def test_a_palette_of_the_first_picture_is_not_lost_in_a_copy(tmp_path):
    source = recorded(tmp_path / "a.mov", "qtrle", "gray", g="12")
    assert np.abs(pictures_of(source, start=2.0)[0] - pictures_of(source)[50]).max() == 0
    with pytest.raises(VideoError, match="palette.*re-encode"):
        cut_clip(source, 2.0, 3.0, tmp_path / "clip.mov")


@pytest.mark.slow
def test_mxf_is_copied_where_its_pictures_may_be_counted(tmp_path):
    """MXF numbers its pictures: a copy that leaves some out would show all others too early."""
    size = {"size": (256, 120), "profile": "dnxhr_lb"}
    found, wanted = copied(tmp_path, recorded(tmp_path / "a.mxf", "dnxhd", "yuv422p", **size))
    assert len(found) == 25
    assert np.abs(found - wanted).max() == 0
    source = recorded(tmp_path / "b.mxf", "mpeg2video", "yuv420p", bf="2", g="12")
    with pytest.raises(OutputError, match="numbered.*re-encode"):
        cut_clip(source, 2.0, 3.0, tmp_path / "clip2.mxf")
    cut_clip(source, 2.0, 3.0, tmp_path / "clip2.mkv")


@pytest.mark.slow
def test_a_program_stream_is_copied_around_a_stamp_that_goes_back(tmp_path):
    """FFmpeg's own stamp the wrong picture; none may then be shown before it is decoded."""
    source = recorded(
        tmp_path / "a.mpg", "mpeg2video", "yuv420p", bf="2", g="12", qmin="2", qmax="2"
    )
    for tenth in range(36):
        cut_clip(source, tenth / 10, tenth / 10 + 0.5, tmp_path / f"clip{tenth}.mpg")


def test_an_avi_whose_list_of_key_frames_is_lost_is_not_cut_at_any_picture(tmp_path):
    """It lies at the end of the file; without it every picture passes for a key frame."""
    whole = recorded(tmp_path / "a.avi", "msmpeg4", "yuv420p", g="12").read_bytes()
    source = tmp_path / "torn.avi"
    source.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(OutputError, match="come out otherwise.*re-encode"):
        cut_clip(source, 1.2, 2.0, tmp_path / "clip.avi")
    cut_clip(source, 1.2, 2.0, tmp_path / "clip.mp4", reencode=True)


@pytest.mark.parametrize("suffix", [".avi", ".wmv"])
def test_a_clip_begins_at_once_where_the_container_keeps_times_of_decoding_alone(
    tmp_path, steps_video, suffix
):
    target = tmp_path / f"clip{suffix}"
    cut_clip(steps_video, 1.0, 2.0, target, reencode=True)
    times, found = numbers(target)
    assert times == pytest.approx([i / 25 for i in range(25)], abs=2e-3)
    assert found == pytest.approx(range(25, 50), abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_woven_fields_stay_woven_fields(tmp_path, order):
    """Players show the two fields of a picture one after the other, if they are told."""
    if "libx264" not in av.codecs_available or not shutil.which("ffprobe"):
        pytest.skip("this FFmpeg writes no H.264, or nothing tells the order")
    source, target = tmp_path / "a.mp4", tmp_path / "clip.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"flags": "+ildct"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        weave = None
        for number, picture in enumerate(moving(50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            weave = weave or filtered(frame, ("setfield", order))
            frame = weave(frame)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    cut_clip(source, 1.0, 2.0, target, reencode=True)
    for path in (source, target):
        asked = ["-show_entries", "frame=interlaced_frame,top_field_first", "-of", "csv=p=0"]
        said = subprocess.check_output(["ffprobe", "-v", "error", *asked, str(path)], text=True)
        orders = set(re.findall(r"^[01],[01]", said, re.MULTILINE))  # others are of side data
        assert orders == {"1,1" if order == "tff" else "1,0"}
