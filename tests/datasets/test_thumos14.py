"""THUMOS14: 14 classes to train on, 6 to test on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from relocal_pyg.data import Item, make_pairs, write_features
from relocal_pyg.data.annotations import Video
from relocal_pyg.data.checks import Quarantine
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.datasets import thumos14
from relocal_pyg.datasets.thumos14 import EXCLUDED, thumos14_items, thumos14_videos
from relocal_pyg.errors import FeatureError


@pytest.fixture(scope="module")
def videos(shared_data: Path) -> dict[str, Video]:
    quarantine = Quarantine()
    found = thumos14_videos(shared_data / "thumos14", quarantine)
    assert len(quarantine) == 30
    assert sum(name in entry.record for entry in quarantine.records for name in EXCLUDED) == 22
    return found


def labels(items: list[Item]) -> set[str]:
    return {item.label for item in items}


def names(items: list[Item]) -> set[str]:
    return {item.video_id for item in items}


@pytest.mark.slow
def test_the_videos(videos: dict[str, Video]) -> None:
    assert len(videos) == 410
    assert not set(EXCLUDED) & set(videos)
    subsets = [video.subset for video in videos.values()]
    assert (subsets.count("val"), subsets.count("test")) == (200, 210)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_fourteen_and_six_classes_in_disjoint_videos(videos: dict[str, Video], seed: int) -> None:
    items = thumos14_items(videos, seed=seed)
    assert len(labels(items["train"])) == 14
    assert len(labels(items["test"])) == 6
    assert labels(items["val"]) <= labels(items["train"])
    assert not labels(items["test"]) & labels(items["train"])
    groups = [names(items[split]) for split in ("train", "val", "test")]
    # At most a handful of videos have classes of both sides.
    assert 400 <= sum(map(len, groups)) == len(set.union(*groups)) <= 410
    assert 0.1 < len(groups[1]) / len(groups[0] | groups[1]) < 0.2
    together = ({"CliffDiving", "Diving"}, {"CricketBowling", "CricketShot"})
    for pair in together:
        assert len(pair & labels(items["test"])) in (0, 2)


@pytest.mark.slow
def test_items_are_whole_videos_with_every_truth(videos: dict[str, Video]) -> None:
    items = thumos14_items(videos)
    assert thumos14_items(dict(reversed(videos.items()))).keys() == items.keys()
    for item in items["test"]:
        steps = int(videos[item.video_id].duration * 30 // 16)  # type: ignore[operator]
        assert item.context == (0, steps)
        same = {s for s in videos[item.video_id].segments if s.label == item.label}
        assert 1 <= len(item.moments) <= len(same)
        start, end = (step * item.seconds_per_step for step in item.moment)
        number = int(item.item_id.split("#")[1])
        segment = videos[item.video_id].segments[number]
        assert start <= segment.start + 1e-3
        assert end >= segment.end - 1e-3
        assert end - start <= segment.end - segment.start + 2 * item.seconds_per_step + 1e-3
    pairs = make_pairs(items["test"], split="test", protocol="thumos14")
    assert pairs.without_reference == ()
    assert len(pairs) == len(items["test"])


@pytest.mark.slow
def test_the_order_of_videos_does_not_matter(videos: dict[str, Video]) -> None:
    turned = thumos14_items(dict(reversed(videos.items())), seed=3)
    for split, items in thumos14_items(videos, seed=3).items():
        assert sorted(items) == sorted(turned[split])


def write_root(root: Path) -> dict[str, int]:
    lengths = {}
    for subset, word, first in (("validation", "val", 0), ("test", "test", 50)):
        folder = root / f"temporal_annotations_{subset}"
        folder.mkdir(parents=True)
        durations = []
        for label in range(20):
            lines = []
            for video in range(2):
                name = f"video_{subset}_{first + 2 * label + video:07d}"
                lines.append(f"{name} 2.0 {4 + label % 3}.0\n")
                durations.append(f"{name}.mp4\n20.0\n")
                lengths[name] = 40
            (folder / f"Class{label:02d}_{word}.txt").write_text("".join(lines))
        durations.append("video_test_0000270.mp4\n20.0\n")
        (root / f"{subset}_durations.txt").write_text("".join(durations))
    with (root / "temporal_annotations_test" / "Class00_test.txt").open("a") as stream:
        stream.write("video_test_0000270 1.0 2.0\n")
    return lengths


@pytest.mark.slow
def test_the_protocol(tmp_path: Path) -> None:
    lengths = write_root(tmp_path)
    del lengths["video_validation_0000000"]
    lengths["video_test_0000270"] = 40
    write_features(tmp_path / "a.h5", ((name, np.ones((n, 3))) for name, n in lengths.items()))
    store = FeatureStore(tmp_path / "a.h5")
    protocol = thumos14(tmp_path, store)
    assert sum(len(items) for items in protocol.splits.values()) == 79
    assert len({item.label for item in protocol.splits["test"]}) == 6
    assert protocol.exclude == "video"
    assert protocol.test_splits() == ["test"]
    item = protocol.splits["train"][0]
    assert item.seconds_per_step == 0.5
    assert protocol.query(item).shape == (item.query_steps, 3)
    assert len(protocol.proposals(item)) > 3
    json.dumps(protocol.about)
    (tmp_path / "list.txt").write_text(f"# 1\n{item.video_id}\n1\n1\n0\n1\n0 0 0 0.25 0.5\n")
    listed = thumos14(tmp_path, store, proposals=tmp_path / "list.txt")
    assert listed.proposals(item).tolist() == [[10, 20]]
    write_features(tmp_path / "b.h5", [("video_test_0000050", np.ones((40, 3)))])
    with pytest.raises(FeatureError, match="has features"):
        thumos14(tmp_path, FeatureStore(tmp_path / "b.h5"))
