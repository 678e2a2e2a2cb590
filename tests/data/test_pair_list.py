"""Evaluation pairs: who may meet whom, the same draw everywhere, the hash."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import relocal_pyg
from relocal_pyg.data import Item, PairList, make_pairs
from relocal_pyg.data.items import Pair, Protocol
from relocal_pyg.data.pairs import read_pairs
from relocal_pyg.errors import AnnotationError, UsageError


def item(
    video: str, number: int, label: str, moment: tuple[int, int], context: tuple[int, int] = (0, 50)
) -> Item:
    return Item(f"{video}#{number}", video, label, context, moment, (moment,), 0.5)


ITEMS = [
    item(f"{label}{video}", number, label, (10 * number, 10 * number + 4 + video))
    for label in ("a", "b")
    for video in range(5)
    for number in range(3)
]


def draw(items: list[Item] = ITEMS, **options: object) -> PairList:
    return make_pairs(items, split="test", protocol="p", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("exclude", ["none", "item", "video"])
@pytest.mark.parametrize("min_reference", ["query", None])
def test_references_are_those_allowed_by_brute_force(
    exclude: str, min_reference: str | None
) -> None:
    items = [*ITEMS, item("short", 0, "a", (0, 5), (0, 6)), item("own", 0, "b", (0, 9), (0, 9))]
    met = Counter()
    for seed in range(60):
        pairs = draw(items, seed=seed, exclude=exclude, min_reference=min_reference)
        assert [pair.query.item_id for pair in pairs.pairs] == sorted(i.item_id for i in items)
        for pair in pairs.pairs:
            met[pair.query.item_id, pair.reference.video_id, pair.reference.context] += 1
    for query in items:
        allowed = {
            (other.video_id, other.context)
            for other in items
            if other.label == query.label
            and (min_reference is None or other.num_steps >= query.query_steps)
            and (exclude != "video" or other.video_id != query.video_id)
            and (
                exclude != "item"
                or (other.video_id, other.context) != (query.video_id, query.context)
            )
        }
        drawn = {key[1:] for key in met if key[0] == query.item_id}
        # With 60 draws of at most 7 candidates, missing one has a chance of 1e-4.
        assert drawn == allowed


def test_shared_references_count_once() -> None:
    items = [item("q", 0, "a", (0, 4)), item("single", 0, "a", (0, 4))]
    items += [item("many", number, "a", (number, number + 4)) for number in range(30)]
    drawn = Counter(
        next(p for p in draw(items, seed=seed).pairs if p.query.video_id == "q").reference.video_id
        for seed in range(200)
    )
    assert 60 < drawn["single"] < 140


def test_the_draw_is_uniform() -> None:
    items = [item(f"v{number}", 0, "a", (0, 4)) for number in range(6)]
    counts = Counter(
        (pair.query.item_id, pair.reference.item_id)
        for seed in range(600)
        for pair in draw(items, seed=seed).pairs
    )
    assert len(counts) == 30
    # 600 draws of 5: mean 120, standard deviation 9.8.
    assert min(counts.values()) > 120 - 5 * 9.8
    assert max(counts.values()) < 120 + 5 * 9.8


def test_neither_order_nor_other_classes_matter() -> None:
    shuffled = ITEMS.copy()
    random.Random(0).shuffle(shuffled)
    assert draw(shuffled) == draw()
    assert draw(shuffled).sha256 == draw().sha256
    only_a = draw([entry for entry in ITEMS if entry.label == "a"])
    assert set(only_a.pairs) == {pair for pair in draw().pairs if pair.query.label == "a"}
    hashes = {
        draw(seed=seed, exclude=exclude).sha256
        for seed, exclude in itertools.product((6, 7), ("none", "item", "video"))
    }
    assert len(hashes) == 6


def test_a_seed_of_numpy_is_a_seed() -> None:
    assert draw(seed=np.int64(7)).sha256 == draw(seed=7).sha256


@pytest.mark.slow
def test_another_process_draws_the_same() -> None:
    code = (
        "from relocal_pyg.data import Item, make_pairs\n"
        f"items = {ITEMS!r}\n"
        "print(make_pairs(set(items), split='test', protocol='p').sha256)"
    )
    root = str(Path(relocal_pyg.__file__).parents[1])
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "123"},
    )
    assert output.stdout.strip() == draw().sha256


def test_queries_without_a_reference_are_named() -> None:
    items = [item("v", 0, "lonely", (0, 4)), item("v", 1, "lonely", (5, 9)), *ITEMS]
    pairs = draw(items)
    assert pairs.without_reference == ("v#0", "v#1")
    assert len(pairs) == len(ITEMS)
    assert draw(items, exclude="none").without_reference == ()


def test_wrong_options_and_items() -> None:
    with pytest.raises(UsageError, match="exclude"):
        draw(exclude="all")
    for seed in (6.0, "6"):  # drawn as of another seed, and kept as of 6
        with pytest.raises(UsageError, match="seed"):
            draw(seed=seed)
    with pytest.raises(UsageError, match="min_reference"):
        draw(min_reference="long")
    with pytest.raises(AnnotationError, match="two items"):
        draw([ITEMS[0], ITEMS[0]])


def test_a_sample_is_of_many_videos_and_in_order() -> None:
    rows = [
        Item(f"{video:02d}#{i}", f"{video:02d}", "run", (0, 40), (i, i + 2), ((i, i + 2),))
        for video in range(20)
        for i in range(10)
    ]
    pairs = make_pairs(rows, split="val", protocol="p")
    small, large = pairs.sample(20), pairs.sample(60)
    assert [len(small), len(large), len(pairs)] == [20, 60, 200]
    assert len({pair.query.video_id for pair in small.pairs}) > 8
    assert set(small.pairs) < set(large.pairs) < set(pairs.pairs)
    for sample in (small, large):
        assert list(sample.pairs) == [pair for pair in pairs.pairs if pair in set(sample.pairs)]
        assert sample.sha256 != pairs.sha256
    assert pairs.sample(20) == small
    assert pairs.sample(None) is pairs.sample(200) is pairs
    other = make_pairs(rows, split="val", protocol="p", seed=7).sample(20)
    assert {p.query for p in other.pairs} != {p.query for p in small.pairs}
    with pytest.raises(UsageError, match="limit is -1"):
        draw().sample(-1)


def test_a_saved_list_comes_back(tmp_path: Path) -> None:
    pairs = draw([*ITEMS, item("v", 0, "lonely", (0, 4))])
    pairs.save(tmp_path / "pairs.json")
    loaded = PairList.load(tmp_path / "pairs.json")
    assert loaded == pairs
    assert loaded.sha256 == pairs.sha256
    assert loaded.pairs[0].query.truths == pairs.pairs[0].query.truths


def test_a_changed_list_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    draw().save(file)
    content = json.loads(file.read_text())
    changes = [
        {"seed": 7},
        {"exclude": "none"},
        {"without_reference": ["x"]},
        {"pairs": content["pairs"][1:]},
        {"items": {**content["items"], "a0#0": {**content["items"]["a0#0"], "moment": [0, 9]}}},
        {"sha256": "0"},
    ]
    for change in changes:
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(AnnotationError, match="was changed"):
            PairList.load(file)
    broken = [
        [],
        {},
        {**content, "pairs": [["x", "y"]]},
        {**content, "items": [1]},
        {**content, "items": {**content["items"], "a0#0": {}}},
    ]
    for value in broken:
        file.write_text(json.dumps(value))
        with pytest.raises(AnnotationError, match="is not a pair list"):
            PairList.load(file)


def test_a_fixed_list_of_others(tmp_path: Path):
    whole = [("v1", (0, 40)), ("v2", (10, 50)), ("v1", (40, 60)), ("v2", (50, 70))]
    items = [item(video, n, "jump", place, place) for n, (video, place) in enumerate(whole)]
    protocol = Protocol("theirs", {"test": tuple(items)}, None, None)
    rows = ["query,query_start,query_end,reference,start,end,label"]
    rows += ["v1,2,8,v2,30,35,jump", "v1,2,8,v2,12,20,jump", "v2,12,20,v1,0,5,"]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    pairs = read_pairs(path, protocol, "fixed")
    assert [pair.reference.truths for pair in pairs.pairs] == [[(2, 10), (20, 25)], [(0, 5)]]
    assert [pair.query.moment for pair in pairs.pairs] == [(2, 8), (12, 20)]
    pairs.save(tmp_path / "pairs.json")
    assert read_pairs(tmp_path / "pairs.json", protocol, "fixed") == pairs
    # Of the same ids, but other videos, or the same item with another moment.
    longer = [item(video, n, "jump", (0, 80), (0, 80)) for n, (video, _) in enumerate(whole)]
    with pytest.raises(AnnotationError, match=r"pairs.json: v1@2-8: .*made from other data"):
        read_pairs(tmp_path / "pairs.json", replace(protocol, splits={"test": longer}), "fixed")
    drawn = PairList((Pair(items[0], items[1]),), "theirs", "test", 0, "none")
    drawn.save(tmp_path / "drawn.json")
    moved = [items[0], replace(items[1], moment=(20, 30), moments=((20, 30),))]
    twice = replace(protocol, splits={"test": tuple(items), "all": tuple(items)})
    for theirs in (protocol, twice):
        assert read_pairs(tmp_path / "drawn.json", theirs, "fixed") == drawn
    with pytest.raises(AnnotationError, match=rf"drawn.json: {items[1].item_id}: .*other data"):
        read_pairs(tmp_path / "drawn.json", replace(protocol, splits={"test": moved}), "fixed")
    # One clip, or one reference, of two classes is asked for twice.
    path.write_text("\n".join([*rows[:2], "v1,2,8,v2,30,35,run"]) + "\n")
    both = read_pairs(path, protocol, "fixed")
    both.save(tmp_path / "pairs.json")
    assert PairList.load(tmp_path / "pairs.json") == both
    assert [pair.query.label for pair in both.pairs] == ["jump", "run"]
    # A video may be searched in several stretches: that of the moment is meant.
    path.write_text(f"{rows[0]}\nv1,45,50,v2,60,65,\nv1,45,50,v2,30,35,\n")
    apart = read_pairs(path, protocol, "fixed").pairs
    assert [pair.query.context for pair in apart] == [(40, 60)] * 2
    assert [pair.reference.context for pair in apart] == [(50, 70), (10, 50)]
    assert [pair.reference.truths for pair in apart] == [[(10, 15)], [(20, 25)]]
    for row, words in (
        ("v1,2,8,nobody,0,5,", "line 2: no split has a video 'nobody'"),
        ("v1,2,8,v2,12", "line 2.*whole numbers of steps wanted"),
        ("v1,2,8,v2,0,5,", "line 2.*outside its video"),
        ("v1,two,8,v2,12,15,", "line 2.*whole numbers of steps wanted"),
        ("v1,0_2,8,v2,12,15,", "line 2.*whole numbers of steps wanted"),
    ):
        path.write_text(f"{rows[0]}\n{row}\n")
        with pytest.raises(AnnotationError, match=words):
            read_pairs(path, protocol, "fixed")
    path.write_text(f"{rows[0].title()}\nv2,12,20,v1,0,5,\n")  # heads in any case
    assert read_pairs(path, protocol, "fixed").pairs == pairs.pairs[1:]
    path.write_text("query,reference,start,end\nv2,v1,0,5\n")
    with pytest.raises(AnnotationError, match="has no column query_start, query_end"):
        read_pairs(path, protocol, "fixed")
    path.write_text(rows[0] + "\n")
    with pytest.raises(AnnotationError, match="no pair"):
        read_pairs(path, protocol, "fixed")
