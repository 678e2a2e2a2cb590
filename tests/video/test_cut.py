from __future__ import annotations

import numpy as np
import pytest

from relocal_pyg.errors import OutputError, UsageError, VideoError
from relocal_pyg.video.cut import cut_clip
from relocal_pyg.video.decode import frames, probe

av = pytest.importorskip("av")


def flat(level, height=48, width=64):
    return np.full((height, width, 3), level, dtype=np.uint8)


def numbers(path):
    """Time and frame number, written as half the grey level."""
    shown = list(frames(path))
    return [t for t, _ in shown], [float(p.mean()) / 2 for _, p in shown]


def key_frames(path):
    with av.open(str(path)) as video:
        return [float(p.pts * p.time_base) for p in video.demux(video=0) if p.is_keyframe]


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


@pytest.mark.parametrize(("start", "end"), RANGES)
@pytest.mark.parametrize("suffixes", [(".mp4", ".mp4"), (".mp4", ".mkv"), (".mkv", ".mp4")])
def test_copying_starts_at_the_key_frame_before(tmp_path, write_video, start, end, suffixes):
    pictures = [flat(2 * i) for i in range(100)]
    source = write_video(tmp_path / f"a{suffixes[0]}", pictures, options={"g": "12", "bf": "2"})
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
    begins = key_frames(source)[0]
    shown = cut_clip(source, 1.2, 1.9, target)
    with av.open(str(target)) as clip:
        samples = sum(frame.samples for frame in clip.decode(audio=0))
    before = [time - begins for time in key_frames(source) if time - begins <= 1.2]
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
        assert probe(target).rotation == (0 if reencode else 90)


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
def test_errors_leave_what_was_there(steps_video, bad_videos, tmp_path, reencode):
    target = tmp_path / "clip.mp4"
    target.write_text("old")
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
        assert target.read_text() == "old"
    with pytest.raises(OutputError) as caught:
        cut_clip(steps_video, 0.0, 1.0, tmp_path / "clip.nonsense", reencode=reencode)
    assert caught.value.file == str(tmp_path / "clip.nonsense")
    with pytest.raises(UsageError, match="overwrite"):
        cut_clip(steps_video, 0.0, 1.0, steps_video, reencode=reencode)
    assert len(numbers(steps_video)[0]) == 100
