"""The synthetic protocol: what is promised about its classes, videos, features and files."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.pairs import make_pairs
from relocal_pyg.datasets.custom import custom
from relocal_pyg.datasets.simulation import (
    ANET_WORLD,
    BACKGROUND,
    ActionClass,
    SimulatedFeatures,
    VideoPlan,
    World,
    WorldConfig,
    simulate_features,
    simulated_anet_vrl,
)
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.models.matchers import ContrastMatcher
from relocal_pyg.moments import tiou

#: A few videos, for tests that do not need the statistics of many.
SMALL = SyntheticConfig(
    train_classes=4, val_classes=2, test_classes=3, train_videos=3, val_videos=2, test_videos=2
)
#: A world in which a step is nothing but what it shows.
PLAIN = WorldConfig(variation=0, style=0, drift=0, gain=0, noise=0)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return synthetic()


@pytest.fixture(scope="module")
def features(protocol: Protocol) -> SimulatedFeatures:
    assert isinstance(protocol.features, SimulatedFeatures)
    return protocol.features


def digest(source: SimulatedFeatures) -> str:
    found = hashlib.sha256()
    for video_id, array in source.arrays():
        found.update(video_id.encode() + array.tobytes())
    return found.hexdigest()


def class_of(protocol: Protocol, item: Item) -> ActionClass:
    return protocol.features.world.classes[int(item.label.removeprefix("action_"))]


def world_videos(config: WorldConfig, count: int = 40, num_steps: int = 120) -> SimulatedFeatures:
    """Videos with one action of class 0 in steps 50 to 70."""
    plans = {f"v{n}": VideoPlan(num_steps, ((50, 70, 0),)) for n in range(count)}
    return SimulatedFeatures(World(config, 8), plans)


# --- the same seed, the same bytes -----------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    first, again = synthetic(SMALL), synthetic(SMALL)
    other = synthetic(replace(SMALL, world=WorldConfig(seed=1)))
    assert first.splits == again.splits
    assert digest(first.features) == digest(again.features)
    assert first.splits != other.splits
    assert digest(first.features) != digest(other.features)


def test_layout_is_the_same_on_every_machine(protocol: Protocol) -> None:
    # Only whole numbers and operations that IEEE 754 rounds alike everywhere go into it.
    text = json.dumps(
        [(i.item_id, i.label, i.context, i.moment) for k in protocol.splits.values() for i in k]
    )
    assert hashlib.sha256(text.encode()).hexdigest().startswith("223a5c744630de92")
    pairs = make_pairs(protocol.splits["test"], split="test", protocol=protocol.name)
    assert len(pairs) == 190
    assert not pairs.without_reference


def test_reading_order_cache_and_pickle_change_nothing() -> None:
    source = synthetic(SMALL).features
    videos = list(source.plans)
    forgetful = SimulatedFeatures(source.world, source.plans, cached=1)
    copy = pickle.loads(pickle.dumps(source))
    for video in (*reversed(videos), *videos):
        assert torch.equal(forgetful.read(video), source.read(video))
        assert torch.equal(copy.read(video), source.read(video))
    assert len(forgetful._cache) == 1


def test_what_was_read_can_be_changed_without_harm() -> None:
    source = synthetic(SMALL).features
    before = source.read("train_0000").clone()
    source.read("train_0000").zero_()
    assert torch.equal(source.read("train_0000"), before)


# --- splits ----------------------------------------------------------------------------------


def test_classes_and_videos_are_disjoint(protocol: Protocol) -> None:
    for kind in ("label", "video_id", "item_id"):
        sets = [{getattr(i, kind) for i in items} for items in protocol.splits.values()]
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert {name: len({i.label for i in items}) for name, items in protocol.splits.items()} == {
        "train": 40,
        "val": 8,
        "test": 16,
    }
    for name, items in protocol.splits.items():
        assert protocol.about["classes"][name] == sorted({i.label for i in items})
        assert len({i.item_id for i in items}) == len(items)
        for label in {i.label for i in items}:
            assert len({i.video_id for i in items if i.label == label}) >= 2
    assert protocol.test_splits() == ["test"]
    json.dumps(protocol.about)


def test_no_two_classes_have_the_same_core_but_they_share_sub_actions(
    features: SimulatedFeatures,
) -> None:
    classes = features.world.classes
    assert len({frozenset(c.core) for c in classes}) == len(classes) == 64
    assert len({v for c in classes for v in c.core}) < 3 * len(classes) / 2
    for c in classes:
        assert len({*c.core, *c.optional}) == 5
        assert len({v // 6 for v in c.core}) == 1
        assert c.optional[0] // 6 == c.core[0] // 6


@pytest.mark.slow
def test_lengths_and_layout_lie_in_their_bounds(protocol: Protocol) -> None:
    seen = {}
    for items in protocol.splits.values():
        for item in items:
            assert 40 <= item.num_steps <= 130
            assert 6 <= item.query_steps <= 32
            assert 0 <= item.moment[0] < item.moment[1] <= item.context[1]
            assert item.moments == (item.moment,)
            assert len(protocol.features.read(item.video_id)) == item.num_steps
            seen.setdefault(item.video_id, []).append(item)
    for items in seen.values():
        assert len({item.label for item in items}) == len(items) <= 2
        spans = sorted(item.moment for item in items)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    share = np.mean([len(items) == 2 for items in seen.values()])
    assert share == pytest.approx(0.5, abs=4 * 0.5 / len(seen) ** 0.5)
    moments = [i.query_steps for items in protocol.splits.values() for i in items]
    assert 12 <= np.median(moments) <= 17
    starts = [i.moment[0] / (i.num_steps - i.query_steps) for i in protocol.splits["train"]]
    assert np.histogram(starts, bins=4, range=(0, 1))[0].min() > 0.15 * len(starts)


@pytest.mark.slow
def test_proposals_are_few_and_hold_nearly_every_moment(protocol: Protocol) -> None:
    best, counts = [], []
    for item in protocol.splits["test"]:
        windows = protocol.proposals(item)
        assert windows.min() >= 0
        assert windows.max() <= item.num_steps
        best.append(float(tiou(windows, torch.tensor(item.truths).float()).max()))
        counts.append(len(windows))
    assert np.mean(np.array(best) > 0.5) == 1.0
    assert np.mean(np.array(best) > 0.7) > 0.95
    assert 80 < np.mean(counts) < 200
    pickle.loads(pickle.dumps(protocol))


# --- Figure 2 --------------------------------------------------------------------------------


def test_performances_fill_their_steps_and_leave_none_out() -> None:
    world = World(WorldConfig(), 8)
    rng = np.random.default_rng(0)
    for num_steps in (1, 2, 3, 7, 40):
        for _ in range(20):
            track = world.perform(rng, world.classes[3], num_steps)
            assert len(track) == num_steps
            changes = 1 + np.count_nonzero(np.diff(track))
            # Every sub-action is one stretch, and a step is the least of it.
            assert changes == len(set(track.tolist())) <= max(1, num_steps // 2)
            assert set(track.tolist()) <= {*world.classes[3].core, *world.classes[3].optional}


@pytest.mark.slow
def test_subset_order_and_speed_vary_between_videos(
    protocol: Protocol, features: SimulatedFeatures
) -> None:
    subsets, orders, paces, shown = {}, {}, [], []
    for item in protocol.splits["train"]:
        track = features.sub_actions(item.video_id)[slice(*item.moment)]
        assert BACKGROUND not in track
        action = class_of(protocol, item)
        names, first, counts = np.unique(track, return_index=True, return_counts=True)
        assert set(names.tolist()) <= {*action.core, *action.optional}
        assert set(names.tolist()) & set(action.core)
        subsets.setdefault(item.label, set()).add(frozenset(names.tolist()))
        if item.query_steps >= 12:
            # Short moments leave sub-actions out for want of room.
            shown.append(np.mean([v in names for v in action.core]))
            if len(names) > 1:
                paces.append(counts.max() / counts.min())
        where = dict(zip(names.tolist(), first.tolist(), strict=True))
        if where.keys() >= set(action.core):
            order = tuple(sorted(action.core, key=where.__getitem__))
            orders.setdefault(item.label, set()).add(order)
    assert all(len(found) >= 3 for found in subsets.values())
    assert np.mean([len(found) >= 2 for found in orders.values()]) > 0.9
    assert 1.3 < np.median(paces) < 3.5
    # At least one core sub-action is always seen, which adds .2 ** 3 / 3 to the mean.
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


# --- looks -----------------------------------------------------------------------------------


def test_a_plain_world_shows_prototypes_scenes_and_smooth_transitions() -> None:
    source = world_videos(PLAIN, count=5)
    world = source.world
    for video, features in source.arrays():
        track = source.sub_actions(video)
        wanted = np.stack([world.prototypes[v] + 0.5 * world.activity for v in track])
        scene = features[np.argmax((track[:-2] < 0) & (track[1:-1] < 0) & (track[2:] < 0)) + 1]
        assert np.abs(world.scenes * 0.5 - scene).max(axis=1).min() < 2e-4
        wanted[track == BACKGROUND] = scene
        ahead, behind = np.roll(wanted, -1, axis=0), np.roll(wanted, 1, axis=0)
        blended = 0.5 * wanted + 0.25 * (ahead + behind)
        np.testing.assert_allclose(features[1:-1], blended[1:-1], atol=2e-4)
        assert np.abs(features @ world.nuisance.T).max() < 1e-3


@pytest.mark.slow
def test_style_is_one_constant_per_video_and_drift_changes_inside_it() -> None:
    # Strengths are lengths over all 24 nuisance dimensions.
    style = world_videos(replace(PLAIN, style=2.0), count=60)
    means = []
    for _, features in style.arrays():
        nuisance = features @ style.world.nuisance.T
        assert nuisance.std(axis=0).max() < 1e-3
        means.append(nuisance.mean(axis=0))
    assert np.std(means) * 24**0.5 == pytest.approx(2.0, rel=0.1)
    assert len({tuple(mean) for mean in np.round(means, 3).tolist()}) == 60

    drift = world_videos(replace(PLAIN, drift=1.5, cuts=0.0), count=60)
    tracks = np.stack([array @ drift.world.nuisance.T for _, array in drift.arrays()])
    assert tracks.std() * 24**0.5 == pytest.approx(1.5, rel=0.1)
    for lag in (1, 6, 12):
        product = (tracks[:, lag:] * tracks[:, :-lag]).mean() / (tracks**2).mean()
        assert product == pytest.approx(np.exp(-lag / 12), abs=0.05)
    # A cut at every step leaves no memory at all.
    cut = world_videos(replace(PLAIN, drift=1.5, cuts=1.0), count=20)
    tracks = np.stack([array @ cut.world.nuisance.T for _, array in cut.arrays()])
    assert abs((tracks[:, 1:] * tracks[:, :-1]).mean()) < 0.05 * (tracks**2).mean()
    assert tracks.std() * 24**0.5 == pytest.approx(1.5, rel=0.1)


@pytest.mark.slow
def test_noise_variation_and_gain_have_their_strengths() -> None:
    plain = world_videos(PLAIN, count=20)
    noisy = world_videos(replace(PLAIN, noise=1.6), count=20)
    residue = np.stack(
        [a - b for (_, a), (_, b) in zip(noisy.arrays(), plain.arrays(), strict=True)]
    )
    assert residue.std() * 64**0.5 == pytest.approx(1.6, rel=0.05)

    varied = world_videos(replace(PLAIN, variation=0.5), count=20)
    norms = []
    for video in plain.plans:
        track = plain.sub_actions(video)
        inner = (track[1:-1] == track[:-2]) & (track[1:-1] == track[2:]) & (track[1:-1] >= 0)
        delta = (varied.read(video) - plain.read(video)).numpy()[1:-1][inner]
        norms += np.linalg.norm(delta, axis=1).tolist()
    assert np.mean(norms) == pytest.approx(0.5, rel=0.1)

    gained = world_videos(replace(PLAIN, gain=0.2), count=20)
    ratios = []
    for video in plain.plans:
        before, after = plain.read(video).numpy(), gained.read(video).numpy()
        # One factor per channel and video; taken where rounding does not blur it.
        strongest = np.abs(before).argmax(axis=0), np.arange(before.shape[1])
        ratio = after[strongest] / before[strongest]
        np.testing.assert_allclose(after, before * ratio, atol=1e-3)
        ratios += ratio.tolist()
    assert np.std(ratios) == pytest.approx(0.2, rel=0.1)


@pytest.mark.slow
def test_gaps_show_distractors_of_other_themes_and_partial_matches() -> None:
    def gaps(config: WorldConfig) -> tuple[World, np.ndarray]:
        source = world_videos(config, count=100)
        tracks = [source.sub_actions(video) for video in source.plans]
        return source.world, np.stack([np.r_[track[:50], track[70:]] for track in tracks])

    world, quiet = gaps(WorldConfig(distractors=0))
    assert (quiet == BACKGROUND).all()
    world, foreign = gaps(WorldConfig(distractors=1, partial=0, optional=0))
    active = foreign[foreign != BACKGROUND]
    assert not np.isin(active // 6, [0]).any()
    assert set(active // 6) == set(range(1, 8))
    # Activity lasts 10.3 steps on average and rests 2.5: most of the gap is active.
    assert 0.7 < (foreign != BACKGROUND).mean() < 0.9
    world, partial = gaps(WorldConfig(distractors=1, partial=1, optional=0))
    active = partial[partial != BACKGROUND]
    borrowed = np.isin(active, world.classes[0].core)
    assert 0.3 < borrowed.mean() < 0.7
    assert not (active[~borrowed] // 6 == 0).any()


def test_a_world_of_one_theme_has_no_distractors() -> None:
    source = SimulatedFeatures(World(WorldConfig(themes=1), 2), {"v": VideoPlan(60, ((5, 9, 1),))})
    track = source.sub_actions("v")
    assert (track[:5] == BACKGROUND).all()
    assert (track[9:] == BACKGROUND).all()


@pytest.mark.slow
def test_training_free_matching_is_above_chance_and_nuisance_is_what_holds_it_back(
    protocol: Protocol, features: SimulatedFeatures
) -> None:
    pairs = make_pairs(protocol.splits["test"], split="test", protocol=protocol.name).pairs
    meaning = torch.tensor(features.world.meaning.T.copy()).float()
    matcher = ContrastMatcher()
    hits: dict[str, list[float]] = {"given": [], "cleaned": [], "centre": []}
    for pair in pairs:
        inputs = [protocol.query(pair.query), protocol.reference(pair.reference)]
        inputs.append(protocol.reference(pair.query))
        windows = protocol.proposals(pair.reference)
        truth = torch.tensor(pair.reference.truths).float()
        for name, project in (("given", None), ("cleaned", meaning)):
            query, reference, video = (x if project is None else x @ project for x in inputs)
            answer = matcher.rank(query, reference, windows, query_video=video).moments[0]
            hits[name].append(float(tiou(answer, truth[0])))
        num = float(pair.reference.num_steps)
        hits["centre"].append(float(tiou([num / 4, num * 3 / 4], truth[0])))
    score = {name: np.mean(np.array(found) > 0.5) for name, found in hits.items()}
    assert 0.25 < score["given"] < 0.5
    assert score["given"] > score["centre"] + 0.1
    assert score["cleaned"] > score["given"] + 0.05


# --- files -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_written_files_read_back_equal(tmp_path: Path, write_synthetic) -> None:
    made = synthetic(SMALL)
    written = write_synthetic(tmp_path, SMALL)
    assert written.splits == made.splits
    assert isinstance(written.features, FeatureStore)
    with h5py.File(tmp_path / "features.h5") as file:
        assert set(file) == set(made.features.plans)
        for video in file:
            stored = file[video]["features"]
            assert stored.dtype == np.float32
            assert np.array_equal(stored[:], made.features.read(video).numpy())
            assert torch.equal(written.features.read(video), made.features.read(video))
    content = json.loads((tmp_path / "annotations.json").read_text())
    database = content["database"]
    assert set(database) == set(made.features.plans)
    for split, subset in (("train", "training"), ("val", "validation"), ("test", "testing")):
        wanted = {(i.video_id, i.label, i.moment) for i in made.splits[split]}
        found = {
            (video, a["label"], (a["segment"][0] / 0.5, a["segment"][1] / 0.5))
            for video, entry in database.items()
            if entry["subset"] == subset
            for a in entry["annotations"]
        }
        assert found == wanted
    for video, entry in database.items():
        assert entry["duration"] == 0.5 * len(made.features.read(video))


@pytest.mark.slow
def test_custom_reads_what_was_written(tmp_path: Path, write_synthetic) -> None:
    made = write_synthetic(tmp_path, SMALL)
    unseen = made.about["classes"]["test"]
    read = custom(
        tmp_path / "features.h5",
        tmp_path / "annotations.json",
        unseen_classes=unseen,
        holdout="video",
        test_share=0.3,
    )
    assert read.about["set_aside"] == 0
    wanted = {(i.video_id, i.label, i.context, i.moment) for k in made.splits.values() for i in k}
    found = {(i.video_id, i.label, i.context, i.moment) for k in read.splits.values() for i in k}
    assert found <= wanted
    assert {label for _, label, _, _ in found} >= set(unseen)
    for item in read.splits["test_unseen"]:
        assert item.label in unseen
        assert item.seconds_per_step == 0.5
        assert torch.equal(read.query(item), made.features.read(item.video_id, *item.moment))


# --- simulated features over given items -----------------------------------------------------


def item(video: str, label: str, context: tuple[int, int], *moments: tuple[int, int]) -> Item:
    return Item(f"{video}#{moments[0][0]}", video, label, context, moments[0], moments)


def test_simulated_features_show_each_label_in_its_moments() -> None:
    items = [
        item("a", "dive", (0, 90), (10, 30), (60, 80)),
        item("a", "jump", (20, 140), (95, 120)),
        item("b", "jump", (0, 40), (0, 1)),
    ]
    source = simulate_features(items)
    assert source.dim == ANET_WORLD.channels
    assert source.read("a").shape == (140, source.dim)
    assert source.read("b", 3, 7).shape == (4, source.dim)
    dive, jump = source.world.classes
    track = source.sub_actions("a")
    for span, action in (((10, 30), dive), ((60, 80), dive), ((95, 120), jump)):
        assert set(track[slice(*span)].tolist()) <= {*action.core, *action.optional}
    assert source.sub_actions("b")[0] in {*jump.core, *jump.optional}
    shuffled = simulate_features(items[::-1])
    assert torch.equal(shuffled.read("a"), source.read("a"))


def test_actions_that_meet_share_no_step() -> None:
    items = [item("a", "x", (0, 50), (5, 20)), item("a", "y", (0, 50), (15, 30), (16, 18))]
    plan = simulate_features(items).plans["a"]
    assert plan.actions == ((5, 20, 0), (20, 30, 1))


@pytest.mark.slow
def test_simulated_anet_vrl_keeps_published_items(shared_data: Path) -> None:
    folder = shared_data / "video_reloc"
    protocol = simulated_anet_vrl(folder)
    assert [len(protocol.splits[name]) for name in ("train", "val", "test")] == [7593, 829, 978]
    assert len(protocol.features.world.classes) == 200
    labels = [{item.label for item in items} for items in protocol.splits.values()]
    assert sum(map(len, labels)) == 200
    record = json.loads((folder / "test.json").read_text())[17]
    wanted = tuple(record["location"][0] + step for step in record["groundtruth"])
    item = next(
        i for i in protocol.splits["test"] if (i.video_id, i.moment) == (record["id"], wanted)
    )
    assert item.context == tuple(record["location"])
    for item in protocol.splits["test"][:30]:
        features = protocol.reference(item)
        assert features.shape == (item.num_steps, ANET_WORLD.channels)
        assert torch.isfinite(features).all()
        number = sorted(set.union(*labels)).index(item.label)
        action = protocol.features.world.classes[number]
        track = protocol.features.sub_actions(item.video_id)[slice(*item.moment)]
        assert set(track.tolist()) <= {*action.core, *action.optional}
        assert len(protocol.proposals(item)) >= 1
    assert (protocol.name, protocol.exclude) == ("simulated-anet-vrl", "video")
    json.dumps(protocol.about)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 20, "nuisance_channels": 19},
        {"nuisance_channels": -1},
        {"core": 7},
        {"core": 0},
        {"themes": 0},
        {"scenes": 0},
        {"pace": 0.5},
        {"noise": float("nan")},
        {"drift": -1.0},
        {"channels": 64.5},
        {"seed": 0.5},
    ],
)
def test_contradictory_worlds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        WorldConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shortest_moment": 0},
        {"shortest_moment": 12},
        {"usual_moment": 40},
        {"shortest_moment": 10, "longest_moment": 10},
        {"longest_reference": 60},
        {"shortest_reference": 131},
        {"test_videos": 1},
        {"val_classes": 0},
        {"train_videos": 2.5},
        {"second_action": float("nan")},
        {"seconds_per_step": 0.0},
    ],
)
def test_contradictory_layouts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        SyntheticConfig(**wrong)


def test_more_classes_than_sets_of_sub_actions_are_refused() -> None:
    config = WorldConfig(themes=2)
    assert len({c.core for c in World(config, 40).classes}) == 40
    with pytest.raises(UsageError, match="themes"):
        World(config, 41)


def test_unknown_videos_and_steps_are_named(features: SimulatedFeatures) -> None:
    with pytest.raises(FeatureError, match="nowhere"):
        features.read("nowhere")
    num_steps = len(features.read("test_0000"))
    for start, end in ((0, num_steps + 1), (5, 5), (-1, 3)):
        with pytest.raises(FeatureError, match=f"test_0000: has {num_steps} steps"):
            features.read("test_0000", start, end)
