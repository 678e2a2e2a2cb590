"""The published re-localization split, rebuilt and read."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.data import Item, make_pairs, read_activitynet, write_features
from relocal_pyg.data.annotations import Segment, Video
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.datasets import anet12, anet_vrl
from relocal_pyg.datasets.activitynet import (
    VideoLength,
    anet12_items,
    anet_vrl_items,
    build_anet_vrl,
    merge_segments,
    read_anet_vrl,
    read_lengths,
    read_permutation,
)
from relocal_pyg.errors import AnnotationError, FeatureError

#: Split: published items, identical, with a randomly cropped context, of absent videos, classes,
#: videos.
PUBLISHED = {
    "train": (7593, 7195, 101, 297, 160, 3791),
    "val": (829, 756, 19, 54, 20, 444),
    "test": (978, 932, 16, 30, 20, 494),
}


class Sources:
    def __init__(self, folder: Path) -> None:
        self.published = folder / "video_reloc"
        self.annotations = folder / "activitynet" / "activity_net.v1-3.json"
        self.videos = read_activitynet(self.annotations, as_published=True)
        self.lengths = read_lengths(self.published / "length.json")
        self.permutation = read_permutation(self.published / "perm.npy")

    @cache  # noqa: B019
    def build(self, **options: int) -> dict[str, list[Item]]:
        return build_anet_vrl(self.videos, self.lengths, self.permutation, **options)


@pytest.fixture(scope="module")
def sources(shared_data: Path) -> Sources:
    return Sources(shared_data)


@pytest.fixture(scope="module")
def published(sources: Sources) -> dict[str, list[Item]]:
    return anet_vrl_items(sources.published, sources.annotations)


def by_moment(items: list[Item]) -> dict[tuple[str, tuple[int, int]], Item]:
    result = {(item.video_id, item.moment): item for item in items}
    assert len(result) == len(items)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("split", PUBLISHED)
def test_the_published_items_are_built_exactly(
    sources: Sources, published: dict[str, list[Item]], split: str
) -> None:
    total, identical, cropped, absent, classes, videos = PUBLISHED[split]
    items = published[split]
    assert len(items) == total
    assert len({item.label for item in items}) == classes
    assert len({item.video_id for item in items}) == videos
    present = by_moment([item for item in items if item.video_id in sources.videos])
    assert total - len(present) == absent
    uncropped = by_moment(sources.build(max_steps=10**9)[split])
    built = by_moment(sources.build()[split])
    # No action is missing, none is extra, each has the published class, id and seconds.
    assert set(built) == set(uncropped) == set(present)
    short = {key for key, item in uncropped.items() if item.num_steps <= 300}
    assert len(short) == identical
    assert len(built) - len(short) == cropped
    for key, item in built.items():
        wanted = present[key]
        if key in short:
            assert item == wanted
            continue
        assert replace(item, context=wanted.context) == wanted
        for context in (item.context, wanted.context):
            whole = uncropped[key].context
            assert context[1] - context[0] == 300
            assert whole[0] <= context[0] <= item.moment[0]
            assert item.moment[1] <= context[1] <= whole[1]


def test_the_classes_are_those_of_the_few_shot_line(published: dict[str, list[Item]]) -> None:
    """sauradip/fewshotQAT and MICLAB-BUPT/VAL-VLM list the same 160, 20 and 20 classes."""
    test = """Hurling, Polishing forniture, BMX, Riding bumper cars, Starting a campfire,
        Walking the dog, Preparing salad, Plataform diving, Breakdancing, Camel ride,
        Hand car wash, Making an omelette, Shuffleboard, Calf roping, Shaving legs, Snatch,
        Cleaning sink, Rope skipping, Drinking coffee, Pole vault"""
    val = """Swinging at the playground, Dodgeball, Ballet, Playing harmonica, Paintball, Cumbia,
        Rafting, Hula hoop, Cheerleading, Vacuuming floor, Playing blackjack, Waxing skis,
        Curling, Using the rowing machine, Ironing clothes, Playing guitarra, Sumo,
        Putting in contact lenses, Brushing hair, Volleyball"""
    labels = {split: {item.label for item in items} for split, items in published.items()}
    assert labels["test"] == set(" ".join(test.split()).split(", "))
    assert labels["val"] == set(" ".join(val.split()).split(", "))
    assert len(set.union(*labels.values())) == sum(map(len, labels.values())) == 200


@pytest.mark.slow
def test_crops_depend_on_the_seed_and_the_item_alone(sources: Sources) -> None:
    some = dict(list(sources.videos.items())[:4000])
    everything = {item for items in sources.build().values() for item in items}
    names = sorted({s.label for video in some.values() for s in video.segments})
    assert len(names) == 200
    part = build_anet_vrl(some, sources.lengths, sources.permutation)
    assert {item for items in part.values() for item in items} <= everything
    other = {item for items in sources.build(seed=1).values() for item in items}
    moved = {item.item_id for item in everything - other}
    assert 100 < len(moved) <= 136


def test_items_stay_inside_their_videos(sources: Sources, published: dict[str, list[Item]]) -> None:
    for items in published.values():
        for item in items:
            assert 0 <= item.context[0] <= item.moment[0] < item.moment[1] <= item.context[1]
            assert item.context[1] <= sources.lengths[item.video_id].num_steps
            assert 1 <= item.query_steps <= 32
            assert item.num_steps <= 300
        assert len({item.item_id for item in items}) == len(items)
    groups = {split: {item.video_id for item in items} for split, items in published.items()}
    assert not groups["train"] & groups["test"]
    labels = {split: {item.label for item in items} for split, items in published.items()}
    assert not labels["train"] & labels["test"]


def test_published_pairs(published: dict[str, list[Item]]) -> None:
    train = published["train"]
    steps = defaultdict(list)
    for item in sorted(train, key=lambda item: item.num_steps):
        steps[item.label].append(item.num_steps)
    ordered = sum(
        len(steps[item.label]) - bisect_left(steps[item.label], item.query_steps) for item in train
    )
    assert ordered == 480_297
    test = published["test"]
    shares = {}
    for exclude in ("none", "item", "video"):
        pairs = make_pairs(test, split="test", protocol="anet-vrl", exclude=exclude)
        assert len(pairs) == 978
        assert pairs.without_reference == ()
        shares[exclude] = sum(p.query.video_id == p.reference.video_id for p in pairs.pairs) / 978
    # Exact chance of meeting the own video is 6.6 %, its standard error at 978 queries 0.8 %.
    assert abs(shares["none"] - 0.066) < 3 * 0.008
    assert shares["item"] < shares["none"]
    assert shares["video"] == 0


@pytest.mark.slow
def test_published_items_without_annotations(sources: Sources) -> None:
    items = anet_vrl_items(sources.published)["val"]
    raw = json.loads((sources.published / "val.json").read_text())
    assert Counter(item.label for item in items) == Counter(str(entry["label"]) for entry in raw)
    assert {item.seconds_per_step for item in items} == {1.0}


def video(*segments: tuple[float, float, str], duration: float = 160.0) -> Video:
    return Video("v", duration, tuple(Segment(*segment) for segment in segments))


def build(example: Video, num_steps: int = 100, **options: int) -> list[Item]:
    labels = {segment.label for segment in example.segments}
    labels |= {f"zz{number:03d}" for number in range(200 - len(labels))}
    filler = Video("w", 400.0, tuple(Segment(2 * n, 2 * n + 1, x) for n, x in enumerate(labels)))
    lengths = {"v": VideoLength(1600, num_steps)}
    result = build_anet_vrl({"v": example, "w": filler}, lengths, list(range(200)), **options)
    return result["train"]


def test_a_context_ends_at_the_neighbours_of_the_same_class() -> None:
    # 1,600 frames in 160 s: a step of 16 frames is 1.6 s.
    items = build(video((8, 16, "a"), (40, 48, "b"), (80, 96, "a"), (112, 120, "a")))
    assert [(item.label, item.context, item.moment) for item in items] == [
        ("a", (0, 51), (5, 11)),
        ("b", (0, 100), (25, 31)),
        ("a", (10, 71), (50, 61)),
        ("a", (60, 100), (70, 76)),
    ]
    assert [item.item_id for item in items] == ["v#0", "v#1", "v#2", "v#3"]
    assert items[0].seconds_per_step == 1.6


def test_long_and_empty_moments_are_dropped() -> None:
    assert [item.query_steps for item in build(video((0, 49.6, "a"), (60, 112, "b")))] == [32]
    assert build(video((159, 160, "a")), num_steps=80) == []
    assert build(Video("v", None, (Segment(1, 2, "a"),))) == []


def test_long_contexts_are_cropped() -> None:
    (item,) = build(video((80, 88, "a")), max_steps=20)
    assert item.num_steps == 20
    assert item.context[0] <= 50 < 56 <= item.context[1]


def test_merging() -> None:
    def merge(*segments: tuple[float, float, str]) -> list[tuple[float, float, str]] | None:
        merged = merge_segments(Segment(*segment) for segment in segments)
        return None if merged is None else [(s.start, s.end, s.label) for s in merged]

    assert merge((5, 9, "a"), (0, 2, "a"), (6, 7, "a"), (9, 12, "a")) == [(0, 2, "a"), (5, 12, "a")]
    assert merge((0, 2, "a"), (2, 3, "b")) is None
    assert merge((0, 9, "a"), (3, 4, "a"), (8, 10, "b")) is None
    assert merge() == []


def test_malformed_sources(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for content in (
        [{"id": "a"}],
        3,
        [{"id": "a", "label": 1, "location": [0, 5], "groundtruth": [2, 9]}],
    ):
        bad.write_text(json.dumps(content))
        with pytest.raises(AnnotationError, match="is not a list of items"):
            read_anet_vrl(bad)
    for content in ([], {"a": {"n_feat": 3}}, {"a": {"n_feat": "x", "n_frames": 3}}):
        bad.write_text(json.dumps(content) if content != [] else "[]")
        with pytest.raises(AnnotationError, match="is not a list of lengths"):
            read_lengths(bad)
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    for name in ("none.npy", "bad.json", "object.npy"):
        with pytest.raises(AnnotationError, match="numbers|does not exist"):
            read_permutation(tmp_path / name)
    with pytest.raises(AnnotationError, match="the permutation has 2 entries"):
        build_anet_vrl({"v": video((0, 1, "a"))}, {}, [0, 1])


@pytest.mark.slow
def test_reading_from_files_equals_building_from_values(
    sources: Sources, published: dict[str, list[Item]], tmp_path: Path
) -> None:
    first = dict(list(sources.videos.items())[:3000])
    database = {
        name: {
            "duration": entry.duration,
            "annotations": [
                {"segment": [s.start, s.end], "label": s.label} for s in entry.segments
            ],
        }
        for name, entry in first.items()
    }
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    built = build_anet_vrl(
        tmp_path / "a.json", sources.published / "length.json", sources.published / "perm.npy"
    )
    assert built == build_anet_vrl(first, sources.lengths, sources.permutation)


def features_of(path: Path, lengths: dict[str, int]) -> FeatureStore:
    rng = np.random.default_rng(0)
    write_features(path, ((name, rng.standard_normal((n, 4))) for name, n in lengths.items()))
    return FeatureStore(path)


def test_the_protocol(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        raw = [
            {"id": f"{split}{i}", "label": number, "location": [5, 40], "groundtruth": [3, 3 + i]}
            for i in range(1, 5)
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(raw))
    names = [f"{split}{i}" for split in ("train", "val", "test") for i in range(1, 5)]
    lengths = {f"v_{name}": 40 for name in names} | {"v_train4": 39}
    store = features_of(tmp_path / "a.h5", lengths)
    with pytest.warns(UserWarning, match="1 items have no features"):
        protocol = anet_vrl(tmp_path, store)
    assert protocol.exclude == "none"
    assert {split: len(items) for split, items in protocol.splits.items()} == {
        "train": 3,
        "val": 4,
        "test": 4,
    }
    item = protocol.splits["train"][1]
    assert torch.equal(protocol.query(item), store.read("v_train2", 8, 10))
    assert protocol.reference(item).shape == (35, 4)
    assert protocol.proposals(item)[:, 1].max() == 35
    assert protocol.about["items_without_features"] == 1
    json.dumps(protocol.about)
    write_features(tmp_path / "c.h5", ((name, store.read(name) + 1) for name in store.ids))
    others = FeatureStore(tmp_path / "c.h5"), FeatureStore(tmp_path / "a.h5", key="features")
    with pytest.warns(UserWarning, match="1 items"):
        prints = {anet_vrl(tmp_path, other).fingerprint for other in (store, *others)}
    assert len(prints) == 3
    empty = features_of(tmp_path / "b.h5", {"train1": 40})
    with pytest.raises(FeatureError, match="no item of split 'val'"):
        anet_vrl(tmp_path, empty)


@pytest.mark.slow
def test_activitynet12_classes_are_dealt_out(shared_data: Path) -> None:
    folder = shared_data / "activitynet"
    lengths = read_lengths(shared_data / "video_reloc" / "length.json")
    steps = {name: length.num_steps for name, length in lengths.items()}
    items = anet12_items(folder / "activity_net.v1-2.json", steps.get)
    labels = {split: {item.label for item in group} for split, group in items.items()}
    assert {split: len(group) for split, group in labels.items()} == {
        "train": 80,
        "val": 10,
        "test": 10,
    }
    assert len(set.union(*labels.values())) == 100
    videos = [{item.video_id for item in group} for group in items.values()]
    assert sum(map(len, videos)) == len(set.union(*videos))
    # 7,190 of 7,202 videos: the others have classes of two splits or no usable action.
    assert sum(map(len, videos)) == 7190
    for item in items["test"][:200]:
        assert item.context == (0, steps[item.video_id])
        assert item.moment in item.moments
    again = anet12_items(folder / "activity_net.v1-2.json", steps.get, seed=1)
    assert {item.label for item in again["test"]} != labels["test"]


def test_the_activitynet12_protocol(tmp_path: Path) -> None:
    database = {
        f"{label}{number}": {
            "duration": 20.0,
            "annotations": [
                {"segment": [2, 6], "label": label},
                {"segment": [10, 20.001], "label": label},
            ],
        }
        for label in "abcdefghij"
        for number in range(3)
    }
    database["mixed"] = {
        "duration": 20.0,
        "annotations": [{"segment": [2, 6], "label": label} for label in "abcdefghij"],
    }
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    store = features_of(tmp_path / "a.h5", {name: 40 for name in database if name != "a0"})
    (tmp_path / "list.txt").write_text("# 1\nb0\n1\n1\n0\n1\n0 0 0 0.1 0.3\n")
    protocol = anet12(tmp_path / "a.json", store, proposals=tmp_path / "list.txt")
    assert {split: len(items) for split, items in protocol.splits.items()} in (
        {"train": 48, "val": 6, "test": 4},
        {"train": 48, "val": 4, "test": 6},
        {"train": 46, "val": 6, "test": 6},
    )
    assert protocol.exclude == "video"
    assert protocol.about["videos"] == 29
    assert protocol.about["videos_left_out"] == 2
    json.dumps(protocol.about)
    items = {item.item_id: item for group in protocol.splits.values() for item in group}
    item = items["b0#1"]
    assert item.moments == ((4, 12), (20, 40))
    assert item.seconds_per_step == 0.5
    assert protocol.proposals(item).tolist() == [[4, 12]]
    windows = anet12(tmp_path / "a.json", store).proposals(item)
    assert len(windows) > 5
