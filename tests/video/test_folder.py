from __future__ import annotations

import os
import random
import threading

import h5py
import numpy as np
import pytest
import torch

from relocal_pyg.data.annotations import Quarantine
from relocal_pyg.data.features import FeatureStore, write_features
from relocal_pyg.errors import FeatureError, OutputError, UsageError, VideoError
from relocal_pyg.io.read import id_problem
from relocal_pyg.io.write import writing
from relocal_pyg.video.backbones import FunctionBackbone
from relocal_pyg.video.decode import VideoWarning
from relocal_pyg.video.extract import extract_video
from relocal_pyg.video.folder import extract_folder, find_videos, passed_over, read_times, video_id
from relocal_pyg.video.rows import FeatureCache

pytest.importorskip("av")


def noise(seed, count=20):
    return list(np.random.default_rng(seed).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path, write_video):
    """Five videos, one in a subfolder, beside files that are none."""
    videos = tmp_path / "videos"
    (videos / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.mp4", "b.mkv", "c.mp4", "d.MP4", "sub/e.mp4"]):
        made = write_video(tmp_path / f"made{name[name.index('.') :].lower()}", noise(i, 20 + i))
        made.rename(videos / name)
    (videos / "notes.txt").write_text("no video")
    (videos / ".hidden.mp4").write_text("no video")
    return videos


class Counting:
    """A backbone that counts its frames and can fail on its way."""

    def __init__(self, fail_after=None):
        self.count = 0
        self.fail_after = fail_after
        self.lock = threading.Lock()

    def __call__(self, frames):
        with self.lock:
            self.count += len(frames)
            if self.fail_after is not None and self.count > self.fail_after:
                raise KeyboardInterrupt
        return frames.float().mean((1, 2))

    def backbone(self):
        return FunctionBackbone(self, "mean", 3, (12, 16))


@pytest.mark.slow
def test_everything_lands_in_a_feature_file(folder, tmp_path):
    counting = Counting()
    output = tmp_path / "out" / "features.h5"
    done = extract_folder(folder, output, counting.backbone(), 12.5)
    assert (done.computed, done.reused, done.problems) == (5, 0, {})
    store = FeatureStore(output)
    assert store.ids == ["a", "b", "c", "d", "e"] == list(done.digests)
    for name, file in find_videos(folder).items():
        cache = FeatureCache(tmp_path / "cache")
        alone = extract_video(file, counting.backbone(), 12.5, cache=cache)
        assert torch.equal(store.read(name), alone.features)
        assert done.digests[name] == alone.digest
        times = read_times(output, name)
        assert times.dtype == torch.float64
        k = torch.arange(len(alone.features), dtype=torch.float64)
        torch.testing.assert_close(times, torch.stack([k, k + 1], 1) * 0.08)
        # At 25 frames a second the grid falls on frames.
        torch.testing.assert_close(times[:, 0], alone.times, rtol=0, atol=1e-6)
    write_features(tmp_path / "b.h5", [("a", np.ones((2, 2)))])
    with pytest.raises(FeatureError, match="z: is not among the videos"):
        read_times(output, "z")
    with pytest.raises(FeatureError, match="'times'"):
        read_times(tmp_path / "b.h5", "a")


@pytest.mark.slow
def test_features_keep_the_key_asked_for(folder, tmp_path):
    output = tmp_path / "f.h5"
    extract_folder(folder, output, Counting().backbone(), 5.0, key="frames")
    assert FeatureStore(output, key="frames").dim == 3
    with pytest.raises(UsageError, match="times"):
        extract_folder(folder, output, Counting().backbone(), 5.0, key="times")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_run_goes_on_where_it_stopped(folder, tmp_path, workers):
    whole = Counting()
    extract_folder(folder, tmp_path / "whole.h5", whole.backbone(), 25.0, workers=workers)
    assert whole.count == 20 + 21 + 22 + 23 + 24
    output = tmp_path / "f.h5"
    first = Counting(fail_after=70)
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, first.backbone(), 25.0, workers=1)
    assert not output.exists()
    finished = len(list((tmp_path / "f.h5.cache").glob("*.safetensors")))
    assert finished == 3
    second = Counting()
    done = extract_folder(folder, output, second.backbone(), 25.0, workers=workers)
    assert (done.computed, done.reused) == (2, 3)
    assert second.count == 23 + 24
    with h5py.File(output) as a, h5py.File(tmp_path / "whole.h5") as b:
        assert sorted(a) == sorted(b)
        for name in b:
            for key in ("features", "times"):
                assert np.array_equal(a[name][key][:], b[name][key][:])
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    third = Counting()
    assert extract_folder(folder, output, third.backbone(), 25.0).reused == 5
    assert third.count == 0


def test_an_error_stops_the_videos_that_are_running(steps_video, bad_videos, tmp_path, monkeypatch):
    """One video is bad and the run strict: the other ends at its next batch."""
    made: list[threading.Event] = []

    class Recorded(threading.Event):
        def __init__(self):
            super().__init__()
            made.append(self)

    count = 0

    def run(frames):
        nonlocal count
        count += len(frames)
        assert made[0].wait(timeout=20)  # until the run is being stopped
        return frames.float().mean((1, 2))

    monkeypatch.setattr(threading, "Event", Recorded)
    files = [steps_video, bad_videos["text"]]
    backbone = FunctionBackbone(run, "waits", 3, (8, 8))
    with pytest.raises(VideoError, match="text"):
        extract_folder(
            files, tmp_path / "f.h5", backbone, 100.0, workers=2, quarantine=Quarantine(strict=True)
        )
    assert count in (0, 32)  # of 100 frames, at the first batch
    assert not list((tmp_path / "f.h5.cache").glob("*.safetensors"))


@pytest.mark.parametrize("workers", [1, 3])
def test_copies_are_extracted_once(folder, tmp_path, workers):
    copies = [tmp_path / f"copy{i}.mp4" for i in range(4)]
    for copy in copies:
        copy.write_bytes((folder / "a.mp4").read_bytes())
    counting = Counting()
    done = extract_folder(copies, tmp_path / "f.h5", counting.backbone(), 25.0, workers=workers)
    assert counting.count == 20
    assert (done.computed, done.reused) == (1, 3)
    assert len(set(done.digests.values())) == 1


def test_threads_of_torch_are_given_back(folder, tmp_path):
    before = torch.get_num_threads()
    extract_folder(folder, tmp_path / "f.h5", Counting().backbone(), 5.0, workers=2)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_bad_file_is_set_aside(folder, bad_videos, tmp_path):
    for kind in ("text", "audio_only", "empty"):
        (folder / f"{kind}.mp4").write_bytes(bad_videos[kind].read_bytes())
    quarantine = Quarantine()
    output = tmp_path / "f.h5"
    done = extract_folder(folder, output, Counting().backbone(), 5.0, quarantine=quarantine)
    assert done.computed == 5
    assert {(r.file, r.record) for r in quarantine.records} == {
        (str(folder / f"{kind}.mp4"), kind) for kind in ("text", "audio_only", "empty")
    }
    assert FeatureStore(output).ids == ["a", "b", "c", "d", "e"]
    with pytest.raises(VideoError, match="audio_only|empty|text"):
        extract_folder(
            folder, output, Counting().backbone(), 5.0, quarantine=Quarantine(strict=True)
        )


@pytest.mark.slow
def test_damaged_videos_are_used_and_named(folder, tmp_path, write_video):
    whole = write_video(tmp_path / "w.mp4", noise(9, 50), container={"movflags": "faststart"})
    (folder / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for reused in (False, True):
        with pytest.warns(VideoWarning, match="half.mp4"):
            done = extract_folder(folder, tmp_path / "f.h5", Counting().backbone(), 5.0)
        assert list(done.problems) == ["half"]
        assert done.reused == (6 if reused else 0)


@pytest.mark.slow
def test_features_of_a_film_that_can_no_longer_be_read_are_not_lost(folder, tmp_path):
    output, backbone = tmp_path / "features.h5", Counting().backbone()
    extract_folder(folder, output, backbone, 12.5)
    before = output.read_bytes()
    (folder / "a.mp4").write_bytes(b"a copy that broke off")
    with pytest.raises(OutputError, match="can no longer be read, 'a' first"):
        extract_folder(folder, output, backbone, 12.5)
    assert output.read_bytes() == before
    with writing(force=True):
        extract_folder(folder, output, backbone, 12.5)
    assert FeatureStore(output).ids == ["b", "c", "d", "e"]


def test_only_bad_files_is_an_error(bad_videos, tmp_path):
    output = tmp_path / "f.h5"
    with pytest.raises(VideoError, match="no video could be used.*is empty"):
        extract_folder(bad_videos["empty"], output, Counting().backbone(), 5.0)
    assert not output.exists()


@pytest.mark.slow
def test_faults_of_the_backbone_end_the_run(folder, tmp_path):
    broken = FunctionBackbone(lambda x: x.float().mean((1, 2)), "broken", 7, (8, 8))
    with pytest.raises(FeatureError, match="broken"):
        extract_folder(folder, tmp_path / "f.h5", broken, 5.0, workers=2)


def test_every_video_has_an_id_of_its_own(tmp_path):
    for name in ("a.mp4", "a.avi", "day1/park.mp4", "day2/park.mp4", "b.3g2", "c.QT", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "again").symlink_to(tmp_path / "day1")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    found = find_videos(tmp_path)
    assert list(found) == ["a.avi", "a.mp4", "b", "c", "day1-park", "day2-park"]
    assert found == find_videos(tmp_path)
    assert passed_over(tmp_path) == {".txt": 1}
    # A file that is added does not rename those that are known.
    known = {"b": (tmp_path / "b.3g2").resolve()}
    (tmp_path / "b.mp4").write_bytes(b"x")
    assert find_videos(tmp_path, known)["b"] == tmp_path / "b.3g2"
    assert {"b.3g2", "b.mp4"} <= set(find_videos(tmp_path))
    # One by itself neither, nor a file that is there by a link too.
    assert find_videos(tmp_path / "day1" / "park.mp4", {"park": tmp_path / "x"}).keys() == {
        "park.mp4"
    }
    (tmp_path / "day3").mkdir()
    (tmp_path / "day3" / "film.mp4").write_bytes(b"x")
    (tmp_path / "day3" / "a link.mp4").symlink_to("film.mp4")
    first = find_videos(tmp_path / "day3")
    assert len(first) == 2
    assert find_videos(tmp_path / "day3", {k: v.resolve() for k, v in first.items()}) == first


@pytest.mark.parametrize("count", [2, 3, 12])
def test_ids_are_distinct_whatever_the_names(tmp_path, count):
    draw = random.Random(count)
    for _ in range(40):
        names = {
            "/".join(draw.choice(["a", "b", "a-b", "."]) for _ in range(draw.randint(0, 2)))
            + "/"
            + draw.choice(["a", "b", "a-b", "a.mp4"])
            + draw.choice([".mp4", ".avi", ".MP4"])
            for _ in range(count)
        }
        files = sorted({tmp_path / name for name in names})
        found = find_videos(files)
        assert sorted(found.values()) == files
        assert all(id_problem(name) is None for name in found)


def test_usage(folder, tmp_path):
    backbone = Counting().backbone()
    with pytest.raises(UsageError, match="workers"):
        extract_folder(folder, tmp_path / "f.h5", backbone, workers=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no video files"):
        extract_folder(tmp_path / "empty", tmp_path / "f.h5", backbone)
    with pytest.raises(UsageError, match="no videos"):
        extract_folder([], tmp_path / "f.h5", backbone)
    with pytest.raises(UsageError, match="plain name"):
        extract_folder(folder, tmp_path / "f.h5", backbone, key="a/b")
    with pytest.raises(UsageError, match="'/'"):
        extract_folder({"../a": folder / "a.mp4"}, tmp_path / "f.h5", backbone)
    assert not (tmp_path / "f.h5.cache").exists()  # said before anything is read
    (folder / "sub" / "a.mkv").write_bytes((folder / "a.mp4").read_bytes())
    assert {"a.mp4", "a.mkv"} <= set(find_videos(folder))
    assert "a" not in find_videos(folder)
    (tmp_path / "out.h5").mkdir()
    with pytest.raises(OutputError):
        extract_folder(folder / "a.mp4", tmp_path / "out.h5", backbone, cache=tmp_path / "c")


@pytest.mark.parametrize(
    "name",
    [
        "a.mp4",
        "a.b.mp4",
        "...mp4",
        ".mp4",
        "a\\b.mp4",
        "x" * 240 + "é☃☃☃☃☃☃☃.mp4",
        "a\tb.mp4",
        "\udcff.mp4",
    ],
)
def test_ids_are_safe(name):
    assert id_problem(video_id(name)) is None
    assert video_id(f"folder/{name}") == video_id(name)


def test_ids_are_composed():
    assert video_id("e\u0301.mp4") == video_id("\u00e9.mp4") == "\u00e9"
    assert video_id("my clip-1.mp4") == "my clip-1"
