"""Real clips: query of one performer, reference of another, from mp4 files."""

from __future__ import annotations

import json

import pytest
import torch

from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.models.similarity import contrast_scores, step_similarity
from relocal_pyg.moments import seconds_to_steps, tiou
from relocal_pyg.video.backbones import EfficientNetLite0
from relocal_pyg.video.decode import frames, probe
from relocal_pyg.video.extract import extract_video, sampling_rate
from relocal_pyg.video.rows import FeatureCache

pytest.importorskip("av")
pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def weizmann(shared_data):
    return shared_data / "weizmann"


@pytest.fixture(scope="module")
def extract(weizmann_features):
    cache = FeatureCache(weizmann_features)
    backbone = EfficientNetLite0()
    return lambda path, rate: extract_video(path, backbone, rate, cache=cache)


@pytest.mark.slow
def test_shapes_and_times(weizmann, extract):
    path = weizmann / "untrimmed" / "p0.mp4"
    video = extract(path, 12.5)
    assert video.features.shape == (142, 1280)
    assert torch.isfinite(video.features).all()
    every_second = [time for time, _ in frames(path, every=2)]
    assert video.times.tolist() == pytest.approx(every_second)
    assert video.duration == pytest.approx(11.36)


@pytest.mark.slow
def test_moments_are_found_across_performers(weizmann, extract, count):
    """All 288 pairs, every day those of six performers; training-free matcher."""
    performers = count(6, 9)
    annotations = json.loads((weizmann / "annotations.json").read_text())
    annotations = {name: annotations[name] for name in sorted(annotations)[:performers]}
    overlaps: dict[str, list[float]] = {"bare": [], "cut": []}
    for performer, segments in annotations.items():
        for segment in segments:
            start, end, label = segment["start"], segment["end"], segment["label"]
            clip = weizmann / "clips" / label / f"{performer}.mp4"
            rate = sampling_rate(probe(clip).duration, probe(clip).fps_nominal)
            bare = extract(clip, rate).features
            whole = extract(weizmann / "untrimmed" / f"{performer}.mp4", rate)
            first, last = seconds_to_steps(
                torch.tensor([start, end]), whole.seconds_per_step, len(whole.features)
            ).tolist()
            for other in annotations:
                if other == performer:
                    continue
                reference = extract(weizmann / "untrimmed" / f"{other}.mp4", rate)
                (truth,) = (
                    [s["start"], s["end"]] for s in annotations[other] if s["label"] == label
                )
                for kind, query, around in (
                    ("bare", bare, None),
                    ("cut", whole.features[first:last], whole.features),
                ):
                    windows = default_proposals(len(reference.features), len(query))
                    similarity = step_similarity(query, reference.features, around)
                    best = windows[contrast_scores(similarity, windows).argmax()]
                    found = best * reference.seconds_per_step
                    overlaps[kind].append(tiou(found, truth).item())
    scores = {kind: torch.tensor(values) for kind, values in overlaps.items()}
    assert len(scores["bare"]) == 4 * performers * (performers - 1)
    assert (scores["bare"] > 0.5).float().mean() >= 0.62
    assert scores["bare"].mean() >= 0.60
    assert (scores["cut"] > 0.5).float().mean() >= 0.80
    assert scores["cut"].mean() >= 0.74
