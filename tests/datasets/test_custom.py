"""One's own data: held-out people and classes, and everything that can be wrong with it."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from relocal_pyg.data import Item, make_pairs, write_features
from relocal_pyg.data.annotations import Segment, Video
from relocal_pyg.data.checks import Quarantine
from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets import custom
from relocal_pyg.datasets.building import all_items, split_names, tied_classes, video_items
from relocal_pyg.datasets.custom import split_custom
from relocal_pyg.errors import AnnotationError, FeatureError, UsageError

LABELS = ("background", "run", "jump", "wave", "bend")


def write(folder: Path, subjects: int = 10, videos: int = 2, named: bool = True) -> Path:
    """Each video holds each label once, 4 s each, from 0 to 20 s; two steps a second."""
    rng = np.random.default_rng(0)
    database = {}
    for subject in range(subjects):
        for video in range(videos):
            rows = [
                {"segment": [4 * i, 4 * i + 4], "label": label} for i, label in enumerate(LABELS)
            ]
            entry = {"duration": 20.0, "annotations": rows}
            database[f"{subject}-{video}"] = entry | ({"subject": subject} if named else {})
    (folder / "a.json").write_text(json.dumps({"database": database}))
    arrays = ((name, rng.standard_normal((40, 3))) for name in database)
    write_features(folder / "a.h5", arrays)
    return folder


def make(folder: Path, **options: object) -> Protocol:
    return custom(folder / "a.h5", folder / "a.json", **options)  # type: ignore[arg-type]


def people(items: tuple[Item, ...]) -> set[str | None]:
    return {item.subject for item in items}


def labels(items: tuple[Item, ...]) -> set[str]:
    return {item.label for item in items}


@pytest.mark.parametrize("seed", range(5))
def test_held_out_people_and_classes(tmp_path: Path, seed: int) -> None:
    protocol = make(write(tmp_path), unseen_classes=2, seed=seed)
    splits = protocol.splits
    assert list(splits) == ["train", "val", "test_seen", "test_unseen"]
    assert protocol.test_splits() == ["test_seen", "test_unseen"]
    counts = {split: (len(people(items)), len(labels(items))) for split, items in splits.items()}
    assert counts == {"train": (7, 2), "val": (1, 2), "test_seen": (2, 2), "test_unseen": (2, 2)}
    assert people(splits["test_seen"]) == people(splits["test_unseen"])
    for first, second in (("train", "val"), ("train", "test_seen"), ("val", "test_seen")):
        assert not people(splits[first]) & people(splits[second])
        assert labels(splits[first]) == labels(splits[second])
    assert not labels(splits["train"]) & labels(splits["test_unseen"])
    assert "background" not in labels(splits["train"]) | labels(splits["test_unseen"])
    assert protocol.about["test_unseen_from"] == "held-out subjects"
    assert protocol.exclude == "video"
    for split, items in splits.items():
        pairs = make_pairs(items, split=split, protocol=protocol.name)
        assert len(pairs) == len(items)


@pytest.mark.parametrize("seed", range(4))
def test_validation_gets_two_videos_of_each_class_where_it_can(seed: int) -> None:
    """One action a video, as in ActivityNet: drawn blindly, most classes would make no pair."""
    videos = {
        f"{label}-{number}": Video(f"{label}-{number}", 9.0, (Segment(1.0, 3.0, label),))
        for label in "abcdefgh"
        for number in range(8)
    }
    steps = dict.fromkeys(videos, 18)
    items, _ = split_custom(videos, steps, holdout="video", val_share=0.13, seed=seed)
    found = {split: Counter(item.label for item in items[split]) for split in items}
    dealt = 0
    for label in "abcdefgh":
        if found["test_seen"][label] <= 4:
            assert found["train"][label] >= 2
            assert found["val"][label] == 2
        dealt += found["val"][label]
    assert 8 <= dealt <= 17
    # The test part is drawn as ever, whatever validation is given.
    other, _ = split_custom(videos, steps, holdout="video", val_share=0.3, seed=seed)
    assert other["test_seen"] == items["test_seen"]


def test_a_class_is_validated_whole_before_another_is_begun() -> None:
    videos = {
        f"{label}-{number}": Video(f"{label}-{number}", 9.0, (Segment(1.0, 3.0, label),))
        for label in "abcdefghij"
        for number in range(10)
    }
    steps = dict.fromkeys(videos, 18)
    items, _ = split_custom(videos, steps, holdout="video", val_share=0.02, seed=3)
    counts = Counter(item.label for item in items["val"])
    assert set(counts.values()) == {2}
    assert 2 <= sum(counts.values()) <= 4


def test_items_and_features_agree(tmp_path: Path) -> None:
    protocol = make(write(tmp_path), name="mine")
    store = FeatureStore(tmp_path / "a.h5")
    assert protocol.name == "mine"
    for item in protocol.splits["train"]:
        number = int(item.item_id.split("#")[1])
        assert LABELS[number] == item.label
        assert item.moment == (8 * number, 8 * number + 8)
        assert item.context == (0, 40)
        assert item.seconds_per_step == 0.5
        assert torch.equal(
            protocol.query(item), store.read(item.video_id, 8 * number, 8 * number + 8)
        )
    copy = pickle.loads(pickle.dumps(protocol))
    assert torch.equal(copy.proposals(item), protocol.proposals(item))
    assert copy.splits == protocol.splits


def test_draws_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    first = make(write(tmp_path), unseen_classes=1).splits
    assert make(tmp_path, unseen_classes=np.int64(1)).splits == first
    content = json.loads((tmp_path / "a.json").read_text())
    turned = {"database": dict(reversed(content["database"].items()))}
    (tmp_path / "a.json").write_text(json.dumps(turned))
    assert make(tmp_path, unseen_classes=1).splits == first
    assert make(tmp_path, unseen_classes=1, seed=1).splits != first


def test_without_subjects_videos_are_held_out(tmp_path: Path) -> None:
    protocol = make(write(tmp_path, named=False))
    assert protocol.about["holdout"] == "video"
    assert list(protocol.splits) == ["train", "val", "test_seen"]
    groups = [{item.video_id for item in items} for items in protocol.splits.values()]
    assert [len(group) for group in groups] == [14, 2, 4]
    with pytest.raises(AnnotationError, match="names no subject"):
        make(tmp_path, holdout="subject")


@pytest.mark.slow
def test_unseen_classes_by_name_and_too_few_of_them(tmp_path: Path) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    for name, video in content["database"].items():
        if name not in ("0-0", "1-0", "2-0"):
            video["annotations"] = [r for r in video["annotations"] if r["label"] != "wave"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = {}
    for seed in range(12):
        protocol = make(tmp_path, unseen_classes=["wave"], seed=seed)
        assert labels(protocol.splits["test_unseen"]) == {"wave"}
        found[protocol.about["test_unseen_from"]] = len(protocol.splits["test_unseen"])
    assert found["all videos"] == 3
    assert found.get("held-out subjects", 2) == 2


def test_window_lengths(tmp_path: Path) -> None:
    protocol = make(write(tmp_path))
    lengths = (protocol.proposals(protocol.splits["train"][0]) @ torch.tensor([-1.0, 1.0])).unique()
    assert lengths.tolist() == [8]
    protocol = make(tmp_path, lengths=(5, 40), stride=0.2)
    windows = protocol.proposals(protocol.splits["train"][0])
    assert len(windows) == 36 + 1
    (tmp_path / "list.txt").write_text("# 1\n0-0\n1\n1\n0\n1\n0 0 0 0.5 1.0\n")
    protocol = make(tmp_path, proposals=tmp_path / "list.txt")
    items = {item.video_id: item for group in protocol.splits.values() for item in group}
    assert protocol.proposals(items["0-0"]).tolist() == [[20, 40]]


def test_a_table_with_seconds_per_step(tmp_path: Path) -> None:
    write(tmp_path)
    lines = ["video,start,end,label"]
    for subject in range(10):
        lines += [f"{subject}-0,4,6.5,run", f"{subject}-1,1,2,jump", f"{subject}-0,9,11,jump"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(AnnotationError, match="seconds_per_step"):
        custom(tmp_path / "a.h5", tmp_path / "a.csv")
    protocol = custom(tmp_path / "a.h5", tmp_path / "a.csv", seconds_per_step=0.5)
    runs = [item for item in protocol.splits["train"] if item.label == "run"]
    assert {item.moment for item in runs} == {(8, 13)}


def test_what_cannot_be_used_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["database"]["absent"] = content["database"]["0-0"]
    content["database"]["0-0"]["annotations"][1]["segment"] = [8, 4]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["1-0/features"][7] = np.nan
        del file["2-0/features"]
        file["2-0/features"] = np.ones((40, 9), np.float32)
        del file["3-0/features"]
        file["3-0/features"] = np.ones((0, 3), np.float32)
    quarantine = Quarantine()
    protocol = make(tmp_path, quarantine=quarantine)
    records = {entry.record for entry in quarantine.records}
    assert {"0-0 segment 1", "absent", "1-0", "2-0", "3-0"} <= records
    used = {item.video_id for items in protocol.splits.values() for item in items}
    assert used == {f"{s}-{v}" for s in range(10) for v in range(2)} - {"1-0", "2-0", "3-0"}
    assert protocol.about["set_aside"] == len(quarantine) == 6
    with pytest.warns(UserWarning, match="6 records set aside"):
        make(tmp_path)
    with pytest.raises(AnnotationError, match="0-0 segment 1"):
        make(tmp_path, quarantine=Quarantine(strict=True))
    unchecked = Quarantine()
    used = {
        item.video_id
        for items in make(tmp_path, quarantine=unchecked, check_values=False).splits.values()
        for item in items
    }
    assert "1-0" in used


def test_a_video_of_unknown_length_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path)
    content = json.loads((folder / "a.json").read_text())
    content["database"]["0-0"]["duration"] = None
    (folder / "a.json").write_text(json.dumps(content))
    quarantine = Quarantine()
    splits = make(folder, quarantine=quarantine).splits
    assert "0-0" not in {item.video_id for items in splits.values() for item in items}
    assert [(entry.record, entry.reason) for entry in quarantine.records] == [
        ("0-0", "the duration is not known: give seconds_per_step")
    ]
    splits = make(folder, seconds_per_step=0.5).splits
    assert "0-0" in {item.video_id for items in splits.values() for item in items}
    for entry in content["database"].values():
        del entry["duration"]
    (folder / "a.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="give seconds_per_step"):
        make(folder)


def test_a_callers_store_and_lengths(tmp_path: Path) -> None:
    folder = write(tmp_path, subjects=5)
    with h5py.File(folder / "a.h5", "a") as file:
        file.create_dataset("0-/features", data=np.ones((4, 5), np.float32))
    store = FeatureStore(folder / "a.h5")
    assert store.dim == 5
    protocol = custom(store, folder / "a.json", lengths=[4, 8], quarantine=Quarantine())
    assert (protocol.features.dim, store.dim, store.width) == (3, 5, None)
    assert protocol.propose.lengths == (4, 8)
    assert store.read("0-").shape == (4, 5)
    with pytest.raises(UsageError, match="key is 'other'"):
        custom(store, folder / "a.json", key="other")
    for wrong in (5, (), (0,), ("a",)):
        with pytest.raises(UsageError, match="length"):
            custom(store, folder / "a.json", lengths=wrong, quarantine=Quarantine())


def test_the_width_is_that_of_most_videos(tmp_path: Path) -> None:
    """Not that of the first in the file, which is set aside; in another process too."""
    write(tmp_path)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["0/features"] = np.ones((40, 7))
    with pytest.warns(UserWarning, match="0: has 7 channels, most videos 3"):
        protocol = make(tmp_path)
    item = protocol.splits["train"][0]
    for features in (protocol.features, pickle.loads(pickle.dumps(protocol.features))):
        assert features.dim == 3
        assert features.read(item.video_id).shape == (40, 3)


def test_a_subsampled_store(tmp_path: Path) -> None:
    write(tmp_path)
    protocol = custom(FeatureStore(tmp_path / "a.h5", subsample=3), tmp_path / "a.json")
    item = protocol.splits["train"][0]
    assert item.num_steps == 14
    assert item.seconds_per_step == 20 / 14


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"unseen_classes": 4}, UsageError, "there are 4 classes"),
        ({"unseen_classes": -1}, UsageError, "unseen_classes is -1"),
        ({"unseen_classes": 1.5}, UsageError, "unseen_classes is 1.5"),
        ({"unseen_classes": "fly"}, UsageError, "no such class: 'fly'"),
        ({"unseen_classes": ["fly"]}, UsageError, "no such class: 'fly'"),
        ({"unseen_classes": ["background"]}, UsageError, "no such class"),
        ({"unseen_classes": LABELS[1:]}, UsageError, "every class is to be unseen"),
        ({"holdout": "camera"}, UsageError, "holdout is 'camera'"),
        ({"test_share": 0.0}, UsageError, "test_share is 0.0"),
        ({"val_share": "0.1"}, UsageError, "val_share is '?0.1"),
        ({"seconds_per_step": "1"}, UsageError, "seconds_per_step is '?1"),
        ({"stride": float("nan")}, UsageError, "stride is nan"),
        ({"lengths": [4, -1]}, UsageError, "a window's length is -1"),
        ({"test_share": 0.6, "val_share": 0.5}, UsageError, "shares"),
        ({"key": "other"}, FeatureError, "has usable features"),
    ],
)
def test_wrong_options(
    tmp_path: Path, options: dict[str, object], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        make(write(tmp_path), **options)


def test_too_little_data(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="2 subjects cannot be split"):
        make(write(tmp_path, subjects=2))
    videos = {
        str(n): Video(str(n), 10.0, (Segment(1, 2, "background" if n else "run"),))
        for n in range(20)
    }
    with pytest.raises(AnnotationError, match="has no action"):
        split_custom(videos, dict.fromkeys(videos, 10))


@pytest.mark.parametrize("count", [8, 10, 12, 20])
def test_what_is_held_out_of_few_videos_has_pairs(count: int) -> None:
    """One action a video, of two kinds: a test without two of a kind would ask nothing."""
    videos = {str(n): Video(str(n), 10.0, (Segment(1, 4, "ab"[n % 2]),)) for n in range(count)}
    for seed in range(20):
        items, _ = split_custom(videos, dict.fromkeys(videos, 10), seed=seed)
        shown = {split: Counter(item.label for item in items[split]) for split in items}
        assert sum(sum(each.values()) for each in shown.values()) == count
        assert max(shown["val"].values()) >= 2
        assert max(shown["train"].values()) >= 2
        assert max(shown["test_seen"].values()) >= 2
        assert sum(shown["test_seen"].values()) <= max(3, round(0.2 * count))


def test_other_background_labels(tmp_path: Path) -> None:
    write(tmp_path)
    assert "background" in labels(make(tmp_path, background=None).splits["train"])
    assert "run" not in labels(make(tmp_path, background="run").splits["train"])


def test_several_truths_and_doubles_in_one_video() -> None:
    segments = (
        Segment(0.0, 1.0, "run"),
        Segment(0.2, 0.9, "run"),
        Segment(0.2, 0.9, "jump"),
        Segment(5.0, 7.0, "run"),
    )
    video = Video("v", 10.0, segments, subject="anna")
    items = video_items(video, 10)
    assert [(item.item_id, item.label, item.moment) for item in items] == [
        ("v#0", "run", (0, 1)),
        ("v#2", "jump", (0, 1)),
        ("v#3", "run", (5, 7)),
    ]
    assert items[0].moments == items[2].moments == ((0, 1), (5, 7))
    assert items[0].subject == "anna"
    others = [Video("w", 5.0, segments), Video("x", None, segments)]
    assert all_items([video, *others], {"v": 10, "x": 10}.get) == items
    assert video_items(video, 10, labels=[]) == []


def test_dealing_out_names() -> None:
    names = [f"class {n}" for n in range(50)]
    sizes = {"train": 30, "val": 5, "test": 15}
    dealt = split_names(names, sizes, seed=4)
    assert {split: len(group) for split, group in dealt.items()} == sizes
    assert sorted(sum(dealt.values(), [])) == sorted(names)
    assert split_names(reversed(names), sizes, seed=4) == dealt
    assert split_names(names, sizes, seed=5) != dealt
    tied = [names[:3], names[10:14]]
    for seed in range(20):
        for group in split_names(names, sizes, seed, tied).values():
            assert len(set(group) & set(tied[0])) in (0, 3)
            assert len(set(group) & set(tied[1])) in (0, 4)
    with pytest.raises(UsageError, match="cannot be split"):
        split_names(names, {"train": 49}, 0)
    with pytest.raises(UsageError, match="cannot be split"):
        split_names(names, {"train": 51}, 0)
    with pytest.raises(UsageError, match="cannot be split"):
        split_names("abcd", {"train": 2, "test": 2}, 0, ["abc"])


def test_tied_classes_are_joined_transitively() -> None:
    def video(number: int, *found: str) -> Video:
        return Video(str(number), 9.0, tuple(Segment(0, 1, label) for label in found))

    videos = [
        video(0, "a", "b"),
        video(1, "b", "c"),
        video(2, "c"),
        video(3, "d"),
        video(4, "d", "a"),
    ]
    assert tied_classes(videos, 0.4) == [["a", "b", "c", "d"]]
    assert tied_classes(videos) == []


def test_fifty_salads(shared_data: Path) -> None:
    folder = shared_data / "50salads"
    protocol = custom(folder / "features.h5", folder / "annotations.json", unseen_classes=4)
    splits = protocol.splits
    counts = {split: (len(people(items)), len(labels(items))) for split, items in splits.items()}
    assert counts == {
        "train": (18, 13),
        "val": (2, 13),
        "test_seen": (5, 13),
        "test_unseen": (5, 4),
    }
    everyone = [people(splits[split]) for split in ("train", "val", "test_seen")]
    assert sum(map(len, everyone)) == len(set.union(*everyone)) == 25
    assert {item.seconds_per_step for item in splits["train"]} == {1.0}
    raw = json.loads((folder / "annotations.json").read_text())["database"]
    for item in splits["test_seen"]:
        found = {
            tuple(map(int, row["segment"]))
            for row in raw[item.video_id]["annotations"]
            if row["label"] == item.label
        }
        assert set(item.moments) == found
    lengths = protocol.propose.lengths  # type: ignore[attr-defined]
    assert 1 <= lengths[0] <= 5
    assert 50 <= lengths[-1] <= 60
    for split, items in splits.items():
        pairs = make_pairs(items, split=split, protocol=protocol.name)
        assert len(pairs) == len(items)
        assert all(pair.query.video_id != pair.reference.video_id for pair in pairs.pairs)
