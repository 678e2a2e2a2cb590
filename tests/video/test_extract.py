from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from relocal_pyg.errors import FeatureError, OutputError, UsageError, VideoError
from relocal_pyg.video import extract as module
from relocal_pyg.video.backbones import FunctionBackbone
from relocal_pyg.video.decode import VideoWarning, droppable, frames, probe
from relocal_pyg.video.extract import extract_video, progress_bar, sampling_rate
from relocal_pyg.video.rows import FeatureCache

av = pytest.importorskip("av")


def flat(level, height=48, width=64):
    return np.full((height, width, 3), level, dtype=np.uint8)


def mean_colour(calls=None, name="mean", clip_frames=1, clip_stride=1, size=(24, 32)):
    def run(batch):
        if calls is not None:
            calls.append(len(batch))
        return batch.float().flatten(1, -2).mean(1)

    return FunctionBackbone(run, name, 3, size, clip_frames, clip_stride)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [25.0, 12.5, 7.0])
@pytest.mark.parametrize("batch", [1, 7, 500])
def test_rows_are_those_of_the_frames(steps_video, rate, batch):
    video = extract_video(steps_video, mean_colour(), rate, batch_frames=batch)
    shown = list(frames(steps_video, rate_hz=rate, size=(24, 32)))
    expected = torch.tensor(np.stack([p.mean((0, 1)) for _, p in shown])).float()
    torch.testing.assert_close(video.features, expected, rtol=1e-4, atol=1e-3)
    assert video.times.tolist() == [t for t, _ in shown]
    assert video.times.dtype == torch.float64
    assert video.seconds_per_step == pytest.approx(1 / rate)
    assert video.duration == pytest.approx(4.0, abs=1e-6)
    assert len(video.features) == int(np.ceil(4.0 * rate))
    assert video.settings["rate_hz"] == rate
    json.dumps(video.settings)


def test_a_picture_that_stays_is_computed_once(tmp_path, write_video):
    times = [0.0, 0.04, 3.0, 3.04]
    path = write_video(tmp_path / "a.mp4", [flat(60 * i) for i in range(4)], times=times)
    calls: list[int] = []
    video = extract_video(path, mean_colour(calls), 25.0)
    assert sum(calls) == 4
    assert len(video.features) == pytest.approx(3.08 * 25, abs=1)
    shown = list(frames(path, rate_hz=25.0))
    expected = torch.tensor([p[..., 0].mean() for _, p in shown]).float()
    torch.testing.assert_close(video.features[:, 0], expected, rtol=0, atol=1.0)


@pytest.mark.parametrize("stride", [4, 16, 20])
@pytest.mark.parametrize("count", [3, 16, 40, 41])
def test_clips_cover_every_frame(tmp_path, write_video, stride, count):
    path = write_video(tmp_path / "a.mp4", [flat(5 * i) for i in range(count)])
    seen: list[torch.Tensor] = []

    def run(clips):
        assert clips.shape[1:] == (16, 24, 32, 3)
        seen.append(clips)
        return clips.float().mean((1, 2, 3))

    backbone = FunctionBackbone(run, "clips", 3, (24, 32), clip_frames=16, clip_stride=stride)
    video = extract_video(path, backbone)  # no rate: that of the video
    shown = [p for _, p in frames(path, rate_hz=25.0, size=(24, 32))]
    starts = [0]
    while starts[-1] + 16 < count and starts[-1] + stride < count:
        starts.append(starts[-1] + stride)
    padded = [*shown, *[shown[-1]] * 16]
    expected = np.stack([np.stack(padded[start : start + 16]) for start in starts])
    assert torch.equal(torch.cat(seen), torch.from_numpy(expected))
    assert len(video.features) == len(starts)
    assert video.times.tolist() == pytest.approx([start / 25 for start in starts])
    assert video.seconds_per_step == pytest.approx(stride / 25)
    assert video.duration == pytest.approx(count / 25)


def test_default_rate_of_an_image_network(steps_video):
    assert extract_video(steps_video, mean_colour()).seconds_per_step == pytest.approx(0.32)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.44, 5.0, 5.2, 11.0, 40.0, 600.0])
def test_sampling_rate_follows_the_query(seconds):
    rate = sampling_rate(seconds)
    assert 1.0 <= rate <= 12.5
    steps = seconds * rate
    # Enough steps wherever the usual sampling gives them, half as many where twice that does, no
    # more than twice as many unless the rate is already about one a second.
    assert steps >= 16 or (steps >= 8 and rate == 6.25) or rate == 12.5
    assert steps < 32 or rate < 2
    assert sampling_rate(seconds, fps=30.0) == rate
    assert sampling_rate(seconds, fps=5.0) == min(rate, 5.0)
    assert sampling_rate(seconds, fps=0.1) == 1.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_an_empty_query_has_no_rate(seconds):
    with pytest.raises(UsageError, match="query"):
        sampling_rate(seconds)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.float().mean((1, 2))[:, :2],
        lambda x: x.float().mean((1, 2))[:1].repeat(len(x) + 1, 1),
        lambda x: x.float().mean((1, 2)) / 0 * 0,
        lambda x: x.numpy(),
    ],
)
def test_a_wrong_backbone_is_named(steps_video, function):
    with pytest.raises(FeatureError, match="backbone wrong gave"):
        extract_video(steps_video, FunctionBackbone(function, "wrong", 3, (8, 8)), 5.0)


def test_bad_videos_and_arguments(bad_videos, steps_video):
    for name in ("empty", "text", "audio_only", "missing"):
        with pytest.raises(VideoError) as caught:
            extract_video(bad_videos[name], mean_colour(), 5.0)
        assert caught.value.file == str(bad_videos[name])
    with pytest.raises(UsageError, match="batch_frames"):
        extract_video(steps_video, mean_colour(), batch_frames=0)
    with pytest.raises(UsageError, match="rate_hz"):
        extract_video(steps_video, mean_colour(), 0.0)


def test_progress_rises_to_the_duration(steps_video, capsys):
    seen: list[tuple[float, float | None]] = []
    extract_video(
        steps_video,
        mean_colour(),
        12.5,
        batch_frames=8,
        progress=lambda done, total: seen.append((done, total)),
    )
    done = [d for d, _ in seen]
    assert len(seen) == 7
    assert done == sorted(done)
    assert seen[-1] == (pytest.approx(4.0), pytest.approx(4.0))
    with progress_bar("steps") as tick:
        extract_video(steps_video, mean_colour(), 12.5, progress=tick)
    assert capsys.readouterr().err == ""  # no terminal, no bar


@pytest.mark.slow
def test_a_piece_of_an_avi_says_what_is_missing(tmp_path):
    """Without its list of pictures FFmpeg takes the length of an AVI from its size."""
    noise, whole = np.random.default_rng(0), tmp_path / "a.avi"
    with av.open(str(whole), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for _ in range(250):
            picture = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    assert extract_video(whole, mean_colour(), 5.0).problems == ()
    piece, file = tmp_path / "piece.avi", whole.read_bytes()
    piece.write_bytes(file[: len(file) * 6 // 10])
    video = extract_video(piece, mean_colour(), 5.0, report=lambda problem: None)
    assert "of the stated 10.0 s" in video.problems[-1]
    assert probe(piece).duration == 10
    # In a pipe the header keeps what stood there before anybody knew how many there would be.
    piped, count = tmp_path / "piped.avi", (250).to_bytes(4, "little")
    assert file[:300].count(count) == 2
    piped.write_bytes(file[:300].replace(count, (1 << 30).to_bytes(4, "little")) + file[300:])
    assert extract_video(piped, mean_colour(), 5.0).problems == ()
    held = tmp_path / "held.avi"
    held.write_bytes(empty_last(file, 100))
    video = extract_video(held, mean_colour(), 5.0)
    assert (len(video.features), video.problems) == (50, ())


def empty_last(avi: bytes, count: int) -> bytes:
    """An AVI whose last pictures are empty, which says that the one before stays on."""
    movi, old = avi.index(b"movi") + 4, avi.index(b"idx1")
    number, made, index = 0, b"", b""
    while movi < old:
        size = int.from_bytes(avi[movi + 4 : movi + 8], "little")
        kept = avi[movi + 8 : movi + 8 + size] if number < 250 - count else b""
        entry = old + 8 + 16 * number
        places = 4 + len(made), len(kept)
        index += avi[entry : entry + 8] + b"".join(n.to_bytes(4, "little") for n in places)
        made += (
            avi[movi : movi + 4] + len(kept).to_bytes(4, "little") + kept + b"\0" * (len(kept) % 2)
        )
        movi, number = movi + 8 + size + size % 2, number + 1
    head = avi[: avi.index(b"movi") - 4] + (len(made) + 4).to_bytes(4, "little") + b"movi"
    whole = head + made + b"idx1" + len(index).to_bytes(4, "little") + index
    return whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:]


def test_damage_is_reported_and_kept(tmp_path, write_video):
    noise = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    whole = write_video(tmp_path / "a.mp4", list(noise), container={"movflags": "faststart"})
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    cache = FeatureCache(tmp_path / "cache")
    with pytest.warns(VideoWarning) as caught:
        video = extract_video(path, mean_colour(), 12.5, cache=cache)
    assert any("of the stated 2.0 s" in str(warning.message) for warning in caught)
    assert video.problems
    assert video.duration == pytest.approx(len(video.features) / 12.5)
    assert video.duration < 1.5
    told: list[str] = []
    again = extract_video(path, mean_colour(), 12.5, cache=cache, report=told.append)
    assert again.reused
    assert tuple(told) == again.problems == video.problems


def test_cache_is_used_and_equal(tmp_path, steps_video, monkeypatch):
    cache = FeatureCache(tmp_path / "deep" / "cache")
    first = extract_video(steps_video, mean_colour(), 10.0, cache=cache)
    copy = tmp_path / "other name.mp4"
    copy.write_bytes(steps_video.read_bytes())
    monkeypatch.setattr(module, "probe", None)  # nothing is decoded
    second = extract_video(copy, mean_colour(), 10.0, cache=cache)
    assert (first.reused, second.reused) == (False, True)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.times, second.times)
    assert (first.duration, first.seconds_per_step) == (second.duration, second.seconds_per_step)
    assert first.settings == second.settings


@pytest.mark.slow
def test_other_settings_or_content_are_extracted_anew(tmp_path, steps_video, write_video):
    cache = FeatureCache(tmp_path / "cache")
    digests = [
        extract_video(steps_video, backbone, rate, cache=cache).digest
        for backbone, rate in [
            (mean_colour(), 10.0),
            (mean_colour(), 5.0),
            (mean_colour(name="other"), 10.0),
            (mean_colour(size=(24, 30)), 10.0),
        ]
    ]
    other = write_video(tmp_path / "other.mp4", [flat(3)] * 5)
    digests.append(extract_video(other, mean_colour(), 10.0, cache=cache).digest)
    assert len(set(digests)) == 5
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 5


@pytest.mark.slow
def test_a_damaged_entry_is_not_trusted(tmp_path, steps_video):
    cache = FeatureCache(tmp_path / "cache")
    video = extract_video(steps_video, mean_colour(), 25.0, cache=cache)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    good = file.read_bytes()
    generator = np.random.default_rng(0)
    for position in range(100):
        data = bytearray(good)
        # Half of them among the settings at the beginning.
        reach = len(data) if position % 2 else 900
        data[int(generator.integers(reach))] ^= 1 << int(generator.integers(8))
        file.write_bytes(data)
        found = cache.get(video.digest)
        if found is not None:  # the flipped bit changed nothing that counts
            assert torch.equal(found.features, video.features)
            assert torch.equal(found.times, video.times)
            assert found.settings == video.settings
            assert found.seconds_per_step == video.seconds_per_step
    for data in (b"", good[:50], good[:-7], b"\xff" * 8):
        file.write_bytes(data)
        assert cache.get(video.digest) is None
    assert not extract_video(steps_video, mean_colour(), 25.0, cache=cache).reused
    assert cache.get(video.digest) is not None
    assert cache.get("0" * 64) is None


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        FeatureCache(tmp_path / "file")


def test_a_cache_is_kept_in_a_folder_of_its_own(tmp_path, steps_video):
    """A folder of somebody's weights is no cache, and what is put into one stays."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="did not write"):
        FeatureCache(tmp_path / "weights", most=0)
    for rate in (5, 10):
        extract_video(steps_video, mean_colour(), rate, cache=FeatureCache(tmp_path / "all"))
    largest = max(each.stat().st_size for each in (tmp_path / "all").glob("*.safetensors"))
    cache = FeatureCache(tmp_path / "cache", most=largest)
    (tmp_path / "cache" / "model.safetensors").write_text("mine")
    digests = [
        extract_video(steps_video, mean_colour(), rate, cache=cache).digest for rate in (5, 10)
    ]
    assert [cache.get(digest) is None for digest in digests] == [True, False]
    assert (tmp_path / "cache" / "model.safetensors").read_text() == "mine"
    (tmp_path / "cache" / "model.safetensors").unlink()
    (tmp_path / "cache" / "manifest.json").unlink()  # as caches were before
    assert FeatureCache(tmp_path / "cache").get(digests[1]) is not None
    extract_video(steps_video, mean_colour(), 5, cache=FeatureCache(tmp_path / "none", most=0))
    assert not list((tmp_path / "none").glob("*.safetensors"))


def test_one_rate_is_looked_up_by_its_value(tmp_path, steps_video):
    cache = FeatureCache(tmp_path / "cache")
    assert not extract_video(steps_video, mean_colour(), 5, cache=cache).reused
    assert extract_video(steps_video, mean_colour(), 5.0, cache=cache).reused


def test_a_pipe_and_strange_facts_in_a_cache_are_not_found(tmp_path, steps_video):
    """Opening a pipe would wait for ever, and hears no signal meanwhile."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    cache = FeatureCache(tmp_path / "cache")
    video = extract_video(steps_video, mean_colour(), 5, cache=cache)
    file = tmp_path / "cache" / f"{video.digest}.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as stored:
        good = stored.metadata()["content"]
    save_file(tensors, file, {"content": good})
    assert cache.get(video.digest) is not None
    for content in ("5", "null", '"a"', "[" * 100_000, "{}", "[]"):
        save_file(tensors, file, {"content": content})
        assert cache.get(video.digest) is None
    file.unlink()
    os.mkfifo(file)
    assert cache.get(video.digest) is None


def test_a_cache_that_cannot_be_written_is_a_warning_where_it_is_for_speed_alone(
    tmp_path, steps_video, monkeypatch
):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relocal_pyg.video.rows.save_blocks", full)
    with pytest.raises(OutputError, match="No space left"):
        extract_video(steps_video, mean_colour(), 5, cache=FeatureCache(tmp_path / "needed"))
    cache = FeatureCache(tmp_path / "cache", needed=False)
    with pytest.warns(UserWarning, match="cache: features are not kept: .*No space left"):
        video = extract_video(steps_video, mean_colour(), 5, cache=cache)
    assert len(video)


def test_threads_that_fill_a_small_cache_do_not_meet(tmp_path, steps_video):
    video = extract_video(steps_video, mean_colour(), 5, cache=FeatureCache(tmp_path / "first"))
    (stored,) = (tmp_path / "first").glob("*.safetensors")
    cache = FeatureCache(tmp_path / "cache", most=2 * stored.stat().st_size)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.put(replace(video, digest=f"{n:064x}")), range(40)))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    (tmp_path / "cache" / f"{'f' * 64}.safetensors").symlink_to("taken by another process")
    cache.put(replace(video, digest="e" * 64))
    assert cache.get("e" * 64) is not None


def test_a_cache_file_is_what_the_library_reads(tmp_path, steps_video):
    from safetensors.torch import load_file

    video = extract_video(steps_video, mean_colour(), 5.0, cache=FeatureCache(tmp_path / "cache"))
    held = load_file(tmp_path / "cache" / f"{video.digest}.safetensors")
    assert torch.equal(held["shown"], video.shown)
    assert held["repeats"].tolist() == video.blocks.repeats.tolist()
    assert torch.equal(held["features"].repeat_interleave(held["repeats"], dim=0), video.features)


@pytest.mark.slow
def test_many_steps(tmp_path, write_video):
    pictures = [flat(i % 250, 16, 16) for i in range(2100)]
    path = write_video(tmp_path / "a.mp4", pictures, rate=100)
    video = extract_video(path, mean_colour(size=(16, 16)), 100.0)
    assert video.features.shape == (2100, 3)
    expected = torch.arange(2100) % 250
    assert (video.features[:, 0] - expected).abs().median() < 3
    assert video.times.tolist() == pytest.approx([i / 100 for i in range(2100)], abs=1e-6)


def test_a_picture_that_stays_for_thousands_of_steps(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", [flat(10), flat(200), flat(200)], times=[0, 1, 40])
    calls: list[int] = []
    video = extract_video(path, mean_colour(calls, size=(16, 16)), 100.0)
    assert len(video.features) == len(video.times) > 3900
    assert sum(calls) <= 3
    assert (video.features[:99, 0] < 50).all()
    assert (video.features[101:, 0] > 150).all()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("clip_frames", [1, 16])
def test_a_picture_that_stays_for_ages_is_refused_at_once(tmp_path, write_video, clip_frames):
    """Steps that nobody can keep are counted, not gone through one by one."""
    pictures = [np.full((48, 64, 3), 90, np.uint8)] * 2
    path = write_video(tmp_path / "ages.mkv", pictures, times=[0.0, 2_000_000.0])
    backbone = mean_colour(clip_frames=clip_frames, clip_stride=clip_frames)
    with pytest.raises(VideoError, match="has more than 5000000 steps at 100 Hz: lower the rate"):
        extract_video(path, backbone, 100.0)


def moving(seconds=30, rate=10, hold=()):
    """Pictures that all differ, each with the seconds at which it appears."""
    times = [i / rate for i in range(int(seconds * rate))]
    times = [t for t in times if not any(start < t < end for start, end in hold)]
    shown = []
    for number in range(len(times)):
        picture = flat(40 + number % 160)
        picture[:, number % 60 : number % 60 + 4] = (250, number % 250, 0)
        shown.append(picture)
    return shown, times


FULL = os.environ.get("RELOCAL_FAULTS") == "full"
#: Every day each container with each rate, and with and without a picture that stays.
STRETCHES = [
    (suffix, rate, hold)
    for suffix in (".mp4", ".mkv", ".avi", ".ts", ".mov")
    for rate in (2.5, 7.0)
    for hold in ((), ((6.0, 19.0),))
    if FULL or (rate == 7.0) == bool(hold)
]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "rate", "hold"), STRETCHES)
def test_stretches_side_by_side_give_the_same_rows(
    tmp_path, write_video, monkeypatch, suffix, rate, hold
):
    monkeypatch.setattr(module, "_LONG", 5.0)
    shown, times = moving(hold=hold)
    options, codec = {"g": "16", "bf": "3"}, "libx264"
    if suffix == ".avi":
        options, codec, times = {"g": "16"}, "mpeg4", None
    path = write_video(tmp_path / f"a{suffix}", shown, times, 10, codec, options=options)
    taken = []
    together = module._in_one
    monkeypatch.setattr(
        module, "_in_one", lambda parts: taken.append(len(parts)) or together(parts)
    )
    alone = extract_video(path, mean_colour(), rate)
    several = extract_video(path, mean_colour(), rate, threads=4)
    assert taken[0] == 1
    assert taken[1] == 4 or hold or suffix == ".ts"  # which has no index
    np.testing.assert_array_equal(several.features, alone.features)
    np.testing.assert_array_equal(several.blocks.repeats, alone.blocks.repeats)
    np.testing.assert_array_equal(several.shown, alone.shown)
    assert several.duration == alone.duration
    assert several.problems == alone.problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["torn", "hole", "end"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_stretches_of_a_damaged_film_are_those_of_the_whole(
    tmp_path, write_video, monkeypatch, spoilt, suffix
):
    monkeypatch.setattr(module, "_LONG", 5.0)
    options = {"g": "16", "bf": "0" if suffix == ".avi" else "3"}
    container = {"movflags": "faststart"} if suffix == ".mp4" else None
    path = write_video(
        tmp_path / f"a{suffix}", moving()[0], rate=10, options=options, container=container
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if spoilt == "torn":
        del data[int(0.6 * len(data)) :]
    elif spoilt == "hole":
        data[middle : middle + len(data) // 40] = bytes(len(data) // 40)
    else:
        data[-(len(data) // 40) :] = bytes(len(data) // 40)
    path.write_bytes(data)
    try:
        alone = extract_video(path, mean_colour(), 5.0, report=lambda _: None)
    except VideoError as error:
        with pytest.raises(VideoError, match=str(error).split(": ")[-1][:20]):
            extract_video(path, mean_colour(), 5.0, report=lambda _: None, threads=4)
        return
    several = extract_video(path, mean_colour(), 5.0, report=lambda _: None, threads=4)
    assert len(several.features) == len(alone.features)
    assert several.duration == pytest.approx(alone.duration)
    assert bool(several.problems) == bool(alone.problems)
    differing = (several.features != alone.features).any(dim=1).float().mean()
    assert differing < 0.15  # what a decoder shows where there is damage depends on where it began


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_the_listener_raises_ends_every_stretch(tmp_path, write_video, monkeypatch, error):
    monkeypatch.setattr(module, "_LONG", 5.0)
    path = write_video(tmp_path / "a.mp4", moving()[0], rate=10, options={"g": "16"})
    before = threading.active_count()

    def slow(batch):
        assert threading.active_count() < 30
        return batch.float().flatten(1, -2).mean(1)

    def stop(done, stated):
        raise error

    backbone = FunctionBackbone(slow, "slow", 3, (24, 32), 1, 1)
    with pytest.raises(error):
        extract_video(path, backbone, 25.0, threads=4, progress=stop, batch_frames=1)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert threading.active_count() == before


@pytest.mark.slow
def test_key_frames_alone_are_taken_as_they_come(tmp_path, write_video, monkeypatch):
    monkeypatch.setattr(module, "_LONG", 5.0)
    path = write_video(tmp_path / "a.mp4", moving()[0], rate=10, options={"g": "2", "bf": "0"})
    assert droppable(path, 2.5) == "NONKEY"
    alone = extract_video(path, mean_colour(), 2.5)
    several = extract_video(path, mean_colour(), 2.5, threads=4)
    np.testing.assert_array_equal(several.features, alone.features)
