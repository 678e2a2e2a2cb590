"""From two video files to moments: planted patterns, awkward files, the command."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from relocal_pyg.apps.cli import main
from relocal_pyg.apps.cli.find import moments_table
from relocal_pyg.errors import FeatureError, UsageError, VideoError
from relocal_pyg.formats import Source, render, to_clips
from relocal_pyg.models import ContrastMatcher, MultiGraphRelocalizer
from relocal_pyg.moments import Moment, tiou
from relocal_pyg.video import (
    FeatureCache,
    Found,
    FunctionBackbone,
    VideoQuery,
    find_moments,
    probe,
    write_found_page,
)
from relocal_pyg.video.page import thumbnails, timeline_svg

WriteVideo = Callable[..., Path]

#: The picture in 6 x 8 blocks: enough to tell one texture from another.
BLOCKS = FunctionBackbone(
    lambda frames: frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1),
    "blocks",
    dim=144,
    size=(48, 64),
)


def texture(seed: int, count: int, noise: int = 100) -> list[np.ndarray]:
    """Frames of one random chequered picture, noisy."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(30, 225, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
    wobble = np.random.default_rng(seed + noise).normal(scale=6, size=(count, 48, 64, 3))
    return list(np.clip(blocks + wobble, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> dict[str, Path]:
    """A 12 s reference with texture 7 from 5 to 8 s, and queries of that texture."""
    folder = tmp_path_factory.mktemp("planted")
    before, after = texture(1, 125), texture(2, 100)
    long = [*before, *texture(7, 75), *after]
    pattern = texture(7, 75, noise=200)
    return {
        "reference": write_video(folder / "reference.mp4", long),
        "clip": write_video(folder / "clip.mp4", pattern),
        "film": write_video(folder / "film.mp4", [*texture(3, 50), *pattern, *texture(4, 50)]),
    }


def overlap(moment: Moment, start: float, end: float) -> float:
    return float(tiou([moment.start, moment.end], [start, end]))


@pytest.fixture(scope="module")
def answer(planted: dict[str, Path]) -> Found:
    """The clip in the reference, with all defaults but the network."""
    return find_moments(planted["clip"], planted["reference"], backbone=BLOCKS)


@pytest.mark.slow
def test_a_planted_pattern_is_found_within_a_step(answer):
    found = answer
    best = found.moments[0]
    assert found.seconds_per_step == pytest.approx(0.16)
    assert abs(best.start - 5) <= found.seconds_per_step + 1e-6
    assert abs(best.end - 8) <= found.seconds_per_step + 1e-6
    assert found.settings["query_centred_by"] == "the reference"
    assert found.span == (0.0, pytest.approx(3.0))
    assert len(found.similarity) == found.settings["reference_steps"]
    assert [m.score for m in found.moments] == sorted(
        (m.score for m in found.moments), reverse=True
    )
    for i, one in enumerate(found.moments):
        assert 0 <= one.start < one.end <= found.reference_seconds
        assert all(overlap(one, o.start, o.end) <= 0.2 + 1e-6 for o in found.moments[:i])


@pytest.mark.slow
def test_a_query_inside_a_longer_video_is_centred_by_it(planted):
    query = VideoQuery(planted["film"], 2.0, 5.0)
    found = find_moments(query, planted["reference"], backbone=BLOCKS, top_k=1)
    assert len(found.moments) == 1
    assert overlap(found.moments[0], 5, 8) > 0.9
    assert found.settings["query_centred_by"] == "its own video"
    assert found.span == (2.0, 5.0)
    assert found.query_seconds == pytest.approx(7.0)


@pytest.mark.slow
def test_half_a_range_reaches_to_the_border(planted):
    options = {"backbone": BLOCKS, "top_k": 1, "include_query": True}
    assert VideoQuery(str(planted["film"])) == VideoQuery(planted["film"])
    head = find_moments(VideoQuery(planted["film"], end=2.0), planted["film"], **options)
    assert head.span == (0.0, 2.0)
    assert overlap(head.moments[0], 0, 2) > 0.9
    tail = find_moments(VideoQuery(planted["film"], start=5.0), planted["film"], **options)
    assert tail.span == (5.0, pytest.approx(7.0))
    assert overlap(tail.moments[0], 5, 7) > 0.9


@pytest.mark.slow
def test_the_rate_follows_the_query_and_can_be_given(planted, tmp_path, write_video):
    clip = write_video(tmp_path / "long.mp4", texture(7, 150))
    found = find_moments(clip, planted["reference"], backbone=BLOCKS)
    assert found.settings["frames_per_second"] == 3.125
    found = find_moments(clip, planted["reference"], backbone=BLOCKS, rate_hz=2.0)
    assert found.seconds_per_step == 0.5
    assert abs(found.moments[0].start - 5) <= 0.5


@pytest.mark.slow
def test_the_map_is_the_cosine_of_centred_rows(planted, answer):
    def rows(path: Path) -> torch.Tensor:
        from relocal_pyg.video import extract_video

        return extract_video(path, BLOCKS, 6.25).features.double()

    query, reference = rows(planted["clip"]), rows(planted["reference"])
    mean = reference.mean(0)
    expected = torch.stack(
        [torch.cosine_similarity((row - mean)[None], reference - mean) for row in query]
    )
    assert answer.step_map.shape == expected.shape
    assert torch.allclose(answer.step_map.double(), expected, atol=1e-4)


@pytest.mark.slow
def test_long_maps_are_pooled(planted, answer, monkeypatch):
    monkeypatch.setattr("relocal_pyg.video.find.MAP_ROWS", 8)
    monkeypatch.setattr("relocal_pyg.video.find.MAP_COLUMNS", 25)
    small = find_moments(planted["clip"], planted["reference"], backbone=BLOCKS).step_map
    assert small.shape == (8, 25)
    assert small[:, 12:16].min() > 0.8
    assert float(small.max()) <= 1.0 + 1e-5
    assert answer.step_map.shape[1] == 75


@pytest.mark.slow
def test_a_stretch_of_the_reference_that_is_not_meant_is_no_answer(planted, answer):
    given, best = (planted["clip"], planted["reference"]), answer.moments[0]
    not_this = [VideoQuery(planted["reference"], best.start, best.end)]
    for moment in find_moments(*given, backbone=BLOCKS, unlike=not_this).moments:
        shared = min(moment.end, best.end) - max(moment.start, best.start)
        assert shared <= 0.5 * (moment.end - moment.start)
        assert overlap(moment, best.start, best.end) <= 0.2


@pytest.mark.slow
def test_the_query_itself_is_no_answer_unless_asked_for(tmp_path, write_video):
    """A texture that is shown twice: the other time is the answer."""
    shots = [texture(1, 75), texture(7, 75), texture(2, 75), texture(7, 75, noise=300)]
    film = write_video(tmp_path / "film.mp4", [picture for shot in shots for picture in shot])
    query = VideoQuery(film, 3.0, 6.0)
    found = find_moments(query, film, backbone=BLOCKS)
    assert overlap(found.moments[0], 9, 12) > 0.85
    assert found.settings["query_left_out"]
    for moment in found.moments:
        shared = min(moment.end, 6) - max(moment.start, 3)
        assert shared <= 0.2 * min(moment.end - moment.start, 3) + 0.1
    both = find_moments(query, film, backbone=BLOCKS, include_query=True, top_k=2)
    assert not both.settings["query_left_out"]
    assert max(overlap(moment, 3, 6) for moment in both.moments) > 0.85


@pytest.fixture(scope="module")
def long_film(tmp_path_factory, write_video) -> Path:
    """150 s, a key frame a second; texture 7 from 61.3 to 64.3 s and from 120.5 to 123.5 s."""
    shots = [texture(100 + i, 20) for i in range(75)]
    pictures = [picture for shot in shots for picture in shot]
    for first, noise in ((613, 300), (1205, 400)):
        pictures[first : first + 30] = texture(7, 30, noise=noise)
    path = tmp_path_factory.mktemp("long") / "film.mp4"
    return write_video(path, pictures, rate=10, options={"g": "10", "preset": "veryfast"})


@pytest.mark.slow
def test_key_frames_say_where_to_look_in_a_long_film(planted, long_film):
    seen = []

    def count(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        return BLOCKS(frames)

    counting = FunctionBackbone(count, "counting", dim=144, size=(48, 64))
    options = {"backbone": counting, "top_k": 2}
    found = find_moments(planted["clip"], long_film, exhaustive=False, **options)
    coarse, share = sum(seen), found.settings["share_seen"]
    seen.clear()
    whole = find_moments(planted["clip"], long_film, **options)
    assert found.settings["looked_at"].startswith("every key frame, and every step of ")
    assert whole.settings["looked_at"] == "every step"
    assert whole.settings["share_seen"] == 1.0
    assert coarse < 0.8 * sum(seen)
    assert share < 0.8
    assert len(found.similarity) == len(whole.similarity) == found.settings["reference_steps"]
    # Among places that were chosen because they look like the clip, none can stand out.
    assert {(each.probability, each.presence) for each in found.moments} == {(None, None)}
    assert None not in {each.presence for each in whole.moments}
    for start in (61.3, 120.5):
        for answer in (found, whole):
            assert max(overlap(m, start, start + 3) for m in answer.moments) > 0.85


@pytest.mark.slow
def test_of_a_very_long_video_the_matcher_that_reads_blocks_answers(planted, answer, monkeypatch):
    assert answer.matcher.startswith("Multi-graph")
    numbers = 144 * answer.settings["reference_steps"]
    monkeypatch.setattr("relocal_pyg.models.matcher.MANY_NUMBERS", numbers - 1)
    found = find_moments(planted["clip"], planted["reference"], backbone=BLOCKS)
    assert found.matcher.startswith("Contrast")


@pytest.mark.slow
def test_key_frames_too_far_apart_mean_that_all_is_looked_at(planted, long_film, tmp_path):
    from relocal_pyg.video import cut_clip

    clip = tmp_path / "short.mp4"
    cut_clip(planted["clip"], 0.5, 1.4, clip, reencode=True)  # shorter than a key frame's second
    options = {"model": ContrastMatcher(), "backbone": BLOCKS, "exhaustive": False}
    found = find_moments(clip, long_film, **options)
    assert found.settings["looked_at"].startswith("every step (key frames lie too far apart")
    assert found.settings["share_seen"] == 1.0


@pytest.mark.slow
def test_one_file_is_decoded_once_and_a_cache_is_used(planted, tmp_path):
    calls = []

    def count(frames: torch.Tensor) -> torch.Tensor:
        calls.append(len(frames))
        return BLOCKS(frames)

    counting = FunctionBackbone(count, "counting", dim=144, size=(48, 64))
    query = VideoQuery(planted["film"], 2.0, 5.0)
    find_moments(query, planted["film"], backbone=counting)
    once = sum(calls)
    assert once == 44
    cache = FeatureCache(tmp_path / "cache")
    find_moments(query, planted["film"], backbone=counting, cache=cache)
    find_moments(query, planted["film"], backbone=counting, cache=cache)
    assert sum(calls) == 2 * once


@pytest.mark.slow
def test_a_clip_network_keeps_the_full_rate(planted):
    clips = FunctionBackbone(
        lambda clips: BLOCKS(clips[:, 0]), "clips", 144, (48, 64), clip_frames=16, clip_stride=16
    )
    found = find_moments(planted["clip"], planted["reference"], backbone=clips)
    assert found.settings["frames_per_second"] == pytest.approx(25)
    assert found.seconds_per_step == pytest.approx(0.64)
    assert overlap(found.moments[0], 5, 8) > 0.7


def test_a_model_of_another_width_is_refused_before_anything_is_decoded(planted):
    model = MultiGraphRelocalizer(500, num_steps=4, hidden_channels=4)
    with pytest.raises(FeatureError, match="144 channels.*takes 500"):
        find_moments(planted["clip"], planted["reference"], model=model, backbone=BLOCKS)


def test_a_trained_model_ranks(planted):
    torch.manual_seed(0)
    model = MultiGraphRelocalizer(144, num_steps=4, hidden_channels=4).eval()
    found = find_moments(
        planted["clip"], planted["reference"], model=model, backbone=BLOCKS, rate_hz=2.0
    )
    assert found.matcher == model.title
    assert found.moments
    assert all(0 <= m.start < m.end <= found.reference_seconds for m in found.moments)


@pytest.mark.parametrize("span", [(3.0, 3.0), (-1.0, 2.0), (4.0, 2.0), (float("nan"), 2.0)])
def test_empty_ranges_are_refused(planted, span):
    with pytest.raises(UsageError, match="empty or negative|is 'nan'"):
        VideoQuery(planted["film"], *span)


def test_a_range_behind_the_end_is_refused(planted):
    with pytest.raises(UsageError, match="ends at 7 s"):
        find_moments(VideoQuery(planted["film"], 50.0), planted["reference"], backbone=BLOCKS)
    with pytest.raises(UsageError, match="top_k"):
        find_moments(planted["film"], planted["reference"], backbone=BLOCKS, top_k=0)


@pytest.mark.slow
def test_times_are_those_of_an_uneven_frame_rate(planted, tmp_path, write_video):
    # The same pictures; those before the pattern last twice as long.
    pictures = [*texture(1, 125), *texture(7, 75), *texture(2, 100)]
    times = [i * 0.08 if i < 125 else 10 + (i - 125) * 0.04 for i in range(300)]
    uneven = write_video(tmp_path / "uneven.mp4", pictures, times)
    best = find_moments(planted["clip"], uneven, backbone=BLOCKS).moments[0]
    assert abs(best.start - 10) <= 0.16 + 1e-6
    assert abs(best.end - 13) <= 0.16 + 1e-6


@pytest.mark.slow
def test_a_turned_reference_is_seen_upright(planted, tmp_path, write_video):
    # Stored on its side with a note that says so, as phones do.
    upright = [*texture(1, 60), *texture(7, 75), *texture(2, 60)]
    stored = [np.ascontiguousarray(np.rot90(picture)) for picture in upright]
    turned = write_video(tmp_path / "turned.mp4", stored, rotate=(-90, False))
    info = probe(turned)
    if (info.width, info.height) != (64, 48):
        pytest.skip("this PyAV does not store the rotation")
    best = find_moments(planted["clip"], turned, backbone=BLOCKS).moments[0]
    assert overlap(best, 2.4, 5.4) > 0.9


@pytest.mark.slow
def test_a_broken_tail_is_reported_and_the_rest_searched(planted, tmp_path, write_video):
    pictures = [*texture(1, 50), *texture(7, 75), *texture(2, 200)]
    whole = write_video(tmp_path / "whole.mkv", pictures, options={"g": "12"})
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    found = find_moments(planted["clip"], broken, backbone=BLOCKS)
    assert overlap(found.moments[0], 2, 5) > 0.9
    assert found.reference_seconds < 12
    assert found.problems
    assert "broken.mkv" in found.problems[0]


@pytest.mark.parametrize(
    "kind", ["empty", "text", "directory", "missing", "headless", "no_frames", "audio_only"]
)
def test_files_that_are_no_videos(planted, bad_videos, kind, capsys):
    with pytest.raises(VideoError):
        find_moments(planted["clip"], bad_videos[kind], backbone=BLOCKS)
    assert main(["find", str(planted["clip"]), str(bad_videos[kind])]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("relocal: ")
    assert kind in printed.err
    assert len(printed.err.splitlines()) == 1
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.slow
def test_the_command_writes_every_form(planted, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["find", str(planted["clip"]), str(planted["reference"]), "--top-k", "2"]
    arguments += ["--cut", str(out / "clips"), "--cache", str(tmp_path / "cache")]
    for form in ("json", "csv", "srt", "report"):
        arguments += [f"--{form}", str(out / f"found.{form}")]
    assert main([*arguments, "--reencode"]) == 0
    printed = capsys.readouterr().out
    assert "Multi-graph matcher, pretrained (simulated worlds" in printed
    assert "6.25 frames a second" in printed

    record = json.loads((out / "found.json").read_text())
    best = record["moments"][0]
    # The same as from Python; noise is no strength of a network that knows photographs.
    cache = FeatureCache(tmp_path / "cache")
    found = find_moments(planted["clip"], planted["reference"], top_k=2, cache=cache)
    assert [m["start"] for m in record["moments"]] == [m.start for m in found.moments]
    assert record["settings"]["backbone"] == "efficientnet-lite0-160-max"
    assert record["query_span"] == [0.0, 3.0]
    with (out / "found.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["start"]) for row in rows] == [m["start"] for m in record["moments"]]
    cues = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3}) --> ", (out / "found.srt").read_text())
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in cues]
    assert seconds == sorted(round(m["start"], 3) for m in record["moments"])
    clip = probe(out / "clips" / "reference-1.mp4")
    assert clip.duration == pytest.approx(best["end"] - best["start"], abs=0.05)
    assert "data:image/jpeg" in (out / "found.report").read_text()


@pytest.mark.slow
def test_stream_copies_say_that_they_begin_early(planted, tmp_path, capsys):
    arguments = [str(planted["clip"]), str(planted["reference"]), "--top-k", "1", "--rate", "4"]
    assert main(["find", *arguments, "--cut", str(tmp_path)]) == 0
    assert "key frame before" in capsys.readouterr().out
    assert (tmp_path / "reference-1.mp4").stat().st_size > 0


def test_videos_and_features_do_not_mix(planted, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    array, film = str(tmp_path / "a.npy"), str(planted["film"])
    assert main(["find", film, array]) == 2
    assert "not one of each" in capsys.readouterr().err
    assert main(["find", array, array, "--cut", str(tmp_path)]) == 2
    assert "--cut needs video files" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_other_features_is_one_line(planted, tmp_path, capsys):
    MultiGraphRelocalizer(500, num_steps=4, hidden_channels=4).save(tmp_path / "model")
    arguments = [str(planted["clip"]), str(planted["reference"])]
    assert main(["find", *arguments, "--model", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert "takes 500" in error
    assert len(error.splitlines()) == 1


def test_subtitles_are_in_order_of_time():
    moments = [Moment(3700.25, 3702.0, 0.9), Moment(1.0, 2.5, 0.5)]
    assert render("srt", to_clips([(Source("a.mp4"), moment) for moment in moments], "x")) == (
        "1\n00:00:01,000 --> 00:00:02,500\nmoment 2, score 0.500\n\n"
        "2\n01:01:40,250 --> 01:01:42,000\nmoment 1, score 0.900\n"
    )
    assert "1:01:40.250" in moments_table(moments)


def test_thumbnails_show_their_moment(planted):
    from io import BytesIO

    from PIL import Image

    first, second, behind = thumbnails(planted["reference"], [1.0, 6.0, 500.0], height=48)
    assert behind is None
    for jpeg, seed in ((first, 1), (second, 7)):
        assert jpeg is not None
        shown = np.asarray(Image.open(BytesIO(jpeg)), dtype=float)
        assert shown.shape == (48, 64, 3)
        assert np.abs(shown - texture(seed, 1)[0]).mean() < 15
    with pytest.raises(UsageError):
        thumbnails(planted["reference"], [0.0], height=0)


@pytest.mark.slow
def test_names_of_files_are_inert_in_the_page(planted, tmp_path):
    evil = tmp_path / "<img src=x onerror=alert(1)>&\"'.mp4"
    evil.write_bytes(planted["clip"].read_bytes())
    found = find_moments(evil, planted["reference"], backbone=BLOCKS, top_k=3)
    write_found_page(tmp_path / "page.html", found, why="<b>why</b>")
    html = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in html
    assert "<b>why" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "<script" not in html
    assert html.count('id="moment-') == len(found.moments)


@pytest.mark.slow
def test_moments_that_overlap_have_lanes_of_their_own(answer):
    from dataclasses import replace

    moments = [Moment(0, 4, 1.0), Moment(2, 6, 0.9), Moment(4, 5, 0.8), Moment(11.999, 12, 0.7)]
    svg = timeline_svg(replace(answer, moments=moments))
    tops = [float(y) for y in re.findall(r'class="bar" x="[^"]+" y="([^"]+)"', svg)]
    assert tops[0] == tops[2] == tops[3] < tops[1]
    assert svg.count("<a href=") == 4


@pytest.mark.slow
def test_what_made_the_score_is_told_and_pictured(planted, tmp_path):
    from dataclasses import replace

    query = VideoQuery(planted["film"], 2.0, 5.0)
    found = find_moments(
        query, planted["reference"], model=ContrastMatcher(), backbone=BLOCKS, explain=True
    )
    best = found.moments[0]
    assert float(found.explanation.sum()) == pytest.approx(best.score, abs=1e-4)
    inside = round(best.start / found.seconds_per_step), round(best.end / found.seconds_per_step)
    assert found.explanation[:, slice(*inside)].sum() > 0
    assert found.explanation.shape[1] == found.settings["reference_steps"]
    judged = replace(best, probability=0.7, presence=0.3)
    told = replace(found, moments=[judged, *found.moments[1:]])
    write_found_page(tmp_path / "page.html", told)
    html = (tmp_path / "page.html").read_text()
    assert "added to the score of the best moment" in html
    assert "probability 0.70" in html
    assert "Probably not in this video: probability 0.30, below 0.5." in html
    plain = find_moments(
        query, planted["reference"], model=ContrastMatcher(), backbone=BLOCKS, top_k=1
    )
    assert plain.explanation is None
    write_found_page(tmp_path / "plain.html", plain)
    assert "added to the score" not in (tmp_path / "plain.html").read_text()


@pytest.mark.slow
def test_no_answer_has_a_page_too(answer, tmp_path):
    from dataclasses import replace

    write_found_page(tmp_path / "none.html", replace(answer, moments=[], problems=("a: torn",)))
    html = (tmp_path / "none.html").read_text()
    assert "Nothing was found" in html
    assert "a: torn" in html


@pytest.mark.slow
def test_real_actions_are_found_across_performers(shared_data: Path, weizmann_features: Path):
    """A part of the 288 pairs of benchmarks/weizmann.py, and the same thresholds.

    All of them by matcher and features alone: tests/video/test_weizmann.py.
    """
    root = shared_data / "weizmann"
    truths = json.loads((root / "annotations.json").read_text())
    cache = FeatureCache(weizmann_features)
    overlaps: dict[str, list[float]] = {"bare": [], "cut": []}
    for performer, other in (("p0", "p1"), ("p1", "p2"), ("p2", "p0")):
        for action in truths[performer]:
            queries = {
                "bare": VideoQuery(root / "clips" / action["label"] / f"{performer}.mp4"),
                "cut": VideoQuery(
                    root / "untrimmed" / f"{performer}.mp4", action["start"], action["end"]
                ),
            }
            for kind, query in queries.items():
                found = find_moments(
                    query,
                    root / "untrimmed" / f"{other}.mp4",
                    model=ContrastMatcher(),
                    cache=cache,
                    top_k=1,
                )
                best = found.moments[0]
                overlaps[kind] += [
                    overlap(best, truth["start"], truth["end"])
                    for truth in truths[other]
                    if truth["label"] == action["label"]
                ]
    assert len(overlaps["bare"]) == len(overlaps["cut"]) == 12
    bare, cut = (np.array(overlaps[kind]) for kind in ("bare", "cut"))
    assert (bare >= 0.5).mean() > 0.5
    assert (cut >= 0.5).mean() > 0.7
    assert cut.mean() > bare.mean()


@pytest.mark.parametrize("name", ["\ud800.mp4", "a\0b.mp4", 300 * "x"])
def test_a_name_that_no_file_can_have_is_said(steps_video, name):
    for query, reference in ((name, steps_video), (steps_video, name)):
        with pytest.raises(VideoError):
            find_moments(query, reference)
