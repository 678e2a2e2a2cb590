from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.pairs import PairList, make_null_pairs
from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.datasets.custom import custom
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import UsageError


def item(number: int, video: str, label: str, moments: list[tuple[int, int]]) -> Item:
    return Item(f"{video}#{number}", video, label, (0, 100), moments[0], tuple(moments), 0.5)


def protocol(**splits: list[Item]) -> Protocol:
    return Protocol(
        "made",
        {name: tuple(items) for name, items in splits.items()},
        None,  # type: ignore[arg-type]
        lambda reference, steps: default_proposals(reference.num_steps, steps),
    )


@pytest.fixture(scope="module")
def small() -> Protocol:
    return synthetic(
        SyntheticConfig(train_classes=4, val_classes=3, test_classes=4, val_videos=3, test_videos=4)
    )


def test_no_null_reference_shows_the_class_in_any_split(small: Protocol) -> None:
    shown = {(i.video_id, i.label) for items in small.splits.values() for i in items}
    for split in ("val", "test"):
        nulls = make_null_pairs(small, split)
        assert len(nulls) + len(nulls.without_reference) == len(small.splits[split])
        assert len(nulls) > 0
        videos = {i.video_id: i.context for i in small.splits[split]}
        for pair in nulls.pairs:
            other = pair.reference
            assert (other.video_id, pair.query.label) not in shown
            assert other.context == videos[other.video_id]
            assert other.num_steps >= pair.query.query_steps
            assert other.truths == []
            assert small.reference(other).shape == (other.num_steps, small.features.dim)
            assert len(small.proposals(other, pair.query)) > 0


def test_the_draw_is_the_same_whatever_the_order_and_is_hashed(
    small: Protocol, tmp_path: Path
) -> None:
    nulls = make_null_pairs(small, "test")
    turned = {name: tuple(reversed(items)) for name, items in small.splits.items()}
    assert make_null_pairs(replace(small, splits=turned), "test").sha256 == nulls.sha256
    assert make_null_pairs(small, "test", seed=7).sha256 != nulls.sha256
    nulls.save(tmp_path / "nulls.json")
    assert PairList.load(tmp_path / "nulls.json") == nulls


def test_where_every_video_shows_the_class_the_longest_free_stretch_is_taken() -> None:
    items = [
        item(0, "a", "run", [(10, 30)]),
        item(0, "b", "run", [(20, 40), (35, 50)]),
        item(1, "b", "jump", [(60, 90)]),
    ]
    nulls = make_null_pairs(protocol(test=items), "test")
    found = {p.query.item_id: (p.reference.video_id, p.reference.context) for p in nulls.pairs}
    # "jump" is nowhere in a; both show "run", so its queries get 50-100 of b and 30-100 of a.
    assert found == {"a#0": ("b", (50, 100)), "b#0": ("a", (30, 100)), "b#1": ("a", (0, 100))}
    assert [" free of run" in p.reference.item_id for p in nulls.pairs] == [True, True, False]


def test_a_class_of_another_split_counts_and_short_stretches_do_not() -> None:
    queries = [item(0, "a", "run", [(0, 55)]), item(0, "b", "run", [(10, 46), (54, 90)])]
    elsewhere = item(0, "c", "walk", [(50, 60)])
    free = make_null_pairs(protocol(test=[*queries, elsewhere]), "test")
    assert {p.reference.item_id for p in free.pairs[:2]} == {"c@0-100"}
    # With a training action of that class in c its stretch is left; of b 10 steps are, too few.
    hidden = item(1, "c", "run", [(0, 5)])
    nulls = make_null_pairs(protocol(train=[hidden], test=[*queries, elsewhere]), "test")
    places = {p.query.item_id: p.reference.item_id for p in nulls.pairs}
    assert places["a#0"] == "c@5-100 free of run"
    assert places["b#0"] in ("c@5-100 free of run", "a@55-100 free of run")


def test_a_query_that_fits_nowhere_is_named() -> None:
    nulls = make_null_pairs(protocol(test=[item(0, "a", "run", [(0, 90)])]), "test")
    assert nulls.pairs == ()
    assert nulls.without_reference == ("a#0",)
    with pytest.raises(UsageError, match="no split 'val'"):
        make_null_pairs(protocol(test=[]), "val")


def test_stretches_of_real_recordings_are_free_of_the_class(shared_data: Path) -> None:
    root = shared_data / "50salads"
    salads = custom(
        root / "features.h5", root / "annotations.json", holdout="subject", unseen_classes=5
    )
    nulls = make_null_pairs(salads, "test_seen")
    marked: dict[tuple[str, str], torch.Tensor] = {}
    for items in salads.splits.values():
        for each in items:
            steps = marked.setdefault((each.video_id, each.label), torch.zeros(2000).bool())
            for start, end in each.moments:
                steps[start:end] = True
    assert any(" free of " in pair.reference.item_id for pair in nulls.pairs)
    for pair in nulls.pairs:
        steps = marked.get((pair.reference.video_id, pair.query.label))
        assert steps is None or not steps[slice(*pair.reference.context)].any()
        assert pair.reference.num_steps >= pair.query.query_steps
