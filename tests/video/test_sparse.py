"""Long references: a picture every second step, and means of rows between them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from relocal_pyg.video import FeatureCache, FunctionBackbone, VideoFeatures, find_moments
from relocal_pyg.video import rows as module
from relocal_pyg.video.rows import RowWriter, twice_as_often

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def features(rows: torch.Tensor, repeats: list[int], duration: float, rate: float) -> VideoFeatures:
    writer = RowWriter(rows.shape[1])
    writer.add(rows, repeats)
    shown = torch.arange(len(rows)).double()
    return VideoFeatures(writer.finish(), shown, 1 / rate, duration, "digest", {})


@pytest.mark.parametrize("block", [1, 5, 7, 512])
@pytest.mark.parametrize("odd", [False, True])
def test_between_two_pictures_stands_their_mean(monkeypatch, block, odd):
    """Against a loop over steps that knows where the shot ends."""
    monkeypatch.setattr(module, "BLOCK", block)
    turn = np.arange(23)[:, None] * np.array([0.3, 0.3, 0.5, 0.5])
    rows = np.cos(turn + np.array([0, np.pi / 2] * 2))  # as much change from row to row everywhere
    rows[11:] += 20  # a cut between rows 10 and 11
    repeats = [1] * 23
    repeats[4], repeats[17] = 3, 2  # pictures that stay on
    steps = np.repeat(np.arange(23), repeats)
    expected = []
    for step, row in enumerate(steps):
        stays = repeats[row] > 1 or row == 10 or step == len(steps) - 1
        expected += [rows[row], rows[row] if stays else (rows[row] + rows[row + 1]) / 2]
    duration = len(expected) / 2 - (0.75 if odd else 0.25)
    video = features(torch.tensor(rows).float(), repeats, duration, 1.0)
    made = twice_as_often(video)
    expected = expected[:-1] if odd else expected
    assert made.seconds_per_step == 0.5
    assert made.digest == ""
    assert len(made) == len(expected) == np.ceil(2 * duration)
    assert torch.allclose(made.features, torch.tensor(np.array(expected)).float(), atol=1e-4)
    assert made.blocks.repeats[4:6].tolist() == [1, 1]
    assert made.blocks.repeats[8] == 6  # kept once


def test_one_picture_is_one_row():
    made = twice_as_often(features(torch.ones(1, 2), [5], 4.6, 1.0))
    assert made.blocks.repeats.tolist() == [10]
    assert torch.equal(made.features, torch.ones(10, 2))


@pytest.fixture(scope="module")
def films(tmp_path_factory, write_video):
    """A bar that sweeps at a pace of its own in every shot of 4 s, 72 s in all, and one of them."""

    def sweep(shot: int, noise: int) -> list[np.ndarray]:
        rng, pictures = np.random.default_rng(shot), []
        ground = rng.integers(30, 120, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
        pace, grain = rng.uniform(0.2, 1.5), np.random.default_rng(noise)
        for number in range(100):
            picture = ground + grain.normal(scale=4, size=(48, 64, 3))
            place = int(28 + 27 * np.sin(pace * number / 4))
            picture[:, place : place + 9] = 230
            pictures.append(picture.clip(0, 255).astype(np.uint8))
        return pictures

    folder = tmp_path_factory.mktemp("sparse")
    options = {"g": "50", "preset": "veryfast"}
    long = [picture for shot in range(18) for picture in sweep(shot, shot)]
    film = write_video(folder / "film.mp4", long, options=options)
    clip = write_video(folder / "clip.mp4", sweep(11, 99), options=options)
    short = write_video(folder / "short.mp4", sweep(11, 99)[:50], options=options)
    return {"film": film, "clip": clip, "short": short}


def counting(seen: list[int]) -> FunctionBackbone:
    def run(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        return frames.float().reshape(len(frames), 6, 4, 8, 4, 3).mean((2, 4)).flatten(1)

    return FunctionBackbone(run, "counting", dim=144, size=(24, 32))


def test_a_long_reference_takes_half_of_the_pictures(films):
    seen: list[int] = []
    found = find_moments(films["clip"], films["film"], backbone=counting(seen), top_k=1)
    sparse = sum(seen)
    seen.clear()
    whole = find_moments(
        films["clip"], films["film"], backbone=counting(seen), top_k=1, rate_hz=6.25
    )
    assert sparse == pytest.approx(sum(seen) / 2, abs=3)
    assert found.seconds_per_step == whole.seconds_per_step == 0.16
    assert len(found.similarity) == len(whole.similarity) == 450
    assert found.settings["query_steps"] == whole.settings["query_steps"] == 25
    assert found.settings["frames_per_second"] == 3.125
    assert whole.settings["frames_per_second"] == 6.25
    for answer in (found, whole):
        best = answer.moments[0]
        assert abs(best.start - 44) < 0.5
        assert abs(best.end - 48) < 0.5


def test_a_clip_of_few_pictures_and_a_short_reference_keep_them_all(films):
    found = find_moments(films["short"], films["film"], backbone=counting([]))
    assert found.settings["frames_per_second"] == 6.25
    found = find_moments(films["clip"], films["clip"], backbone=counting([]))
    assert found.settings["frames_per_second"] == 6.25


@pytest.mark.slow
@pytest.mark.parametrize("exhaustive", [True, False])
def test_a_cache_of_every_step_is_used_and_one_of_half_of_them_too(films, tmp_path, exhaustive):
    seen: list[int] = []
    options = {"backbone": counting(seen), "cache": FeatureCache(tmp_path / "cache")}
    whole = find_moments(films["clip"], films["film"], rate_hz=6.25, **options)
    seen.clear()
    again = find_moments(films["clip"], films["film"], exhaustive=exhaustive, **options)
    assert seen == []
    assert again.moments == whole.moments
    assert again.settings["frames_per_second"] == 6.25
    options["cache"] = FeatureCache(tmp_path / "other")
    first = find_moments(films["clip"], films["film"], **options)
    seen.clear()
    again = find_moments(films["clip"], films["film"], exhaustive=exhaustive, **options)
    assert seen == []
    assert again.moments == first.moments
    assert again.settings["frames_per_second"] == 3.125


def test_key_frames_speak_for_more_places_of_a_longer_video(films, monkeypatch):
    """Two places of 6 s at least; half of 72 s at most where that is the share."""
    monkeypatch.setattr("relocal_pyg.video.find.COARSE_FROM", 60.0)
    monkeypatch.setattr("relocal_pyg.video.find.PLACES", 1)
    seconds = []
    for share in (0.0, 0.5):
        monkeypatch.setattr("relocal_pyg.video.find.PLACES_SHARE", share)
        options = {"backbone": counting([]), "top_k": 1, "exhaustive": False}
        words = find_moments(films["short"], films["film"], **options).settings["looked_at"]
        found = re.fullmatch(r"every key frame, and every step of (\d+) of 72 s", words)
        assert found is not None, words
        seconds.append(int(found[1]))
    assert 6 <= seconds[0] <= 13
    assert 15 <= seconds[1] <= 38
