"""Worlds without end, the lists drawn from them, and the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.data.samples import WindowList
from relocal_pyg.datasets.endless import (
    KINDS,
    ORDERS,
    Footage,
    FootageWorld,
    Own,
    World,
    draw_world,
)
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.models import MultiGraphMatcher, load_model
from relocal_pyg.models.network_config import MatcherConfig
from relocal_pyg.training.pretrain import (
    PretrainConfig,
    best_overlap,
    candidates,
    draw_list,
    footage_list,
    joined,
    labelled_list,
    pretrain,
    resampled,
)

CONFIG = MatcherConfig()


@pytest.fixture(scope="module")
def lists(count: Callable[[int, int], int]) -> list[WindowList]:
    """The first lists of a stream."""
    return [draw_list(3, number, CONFIG) for number in range(count(30, 60))]


@pytest.mark.slow
def test_a_list_depends_on_seed_and_number_alone(lists: list[WindowList]) -> None:
    for number in (7, 8):  # of a labelled set, and of a world of its own
        first, again, other = lists[number], draw_list(3, number, CONFIG), draw_list(1, 7, CONFIG)
        torch.testing.assert_close(first.query, again.query)
        for one, two in zip(first.windows, again.windows, strict=True):
            torch.testing.assert_close(one, two)
        assert other.query.shape != first.query.shape or not torch.equal(other.query, first.query)


@pytest.mark.slow
def test_lists_are_whole_windows_with_their_overlap(lists: list[WindowList]) -> None:
    best = []
    for drawn in lists:
        assert torch.isfinite(drawn.query).all()
        for rows, windows, overlaps in zip(
            drawn.references, drawn.windows, drawn.overlaps, strict=True
        ):
            assert torch.isfinite(rows).all()
            assert rows.shape[1] == drawn.query.shape[1]
            assert len(windows) == len(overlaps) > 0
            assert (windows[:, 0] < windows[:, 1]).all()
            assert windows.min() >= 0
            assert windows.max() <= len(rows)
            assert (windows == windows.round()).all()
        best.append(float(drawn.overlaps[0].max()))
    assert min(best) > 0.5
    assert np.mean(best) > 0.9


@pytest.mark.slow
def test_a_list_of_films_asks_for_what_one_of_them_shows(count: Callable[[int, int], int]) -> None:
    """Rows are unit vectors of the class that is shown: whatever overlaps is of the query's."""

    def film(*classes: int) -> Footage:
        ends = 24 * np.arange(len(classes) + 1)
        rows = np.eye(8, dtype=np.float32)[list(classes)].repeat(24, axis=0).repeat(40, axis=1)
        spans = zip(classes, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        return Footage(rows, tuple(spans))

    worlds = [FootageWorld((film(0, 1, 2, 3), film(2, 4, 0, 5), film(6, 0, 2, 1)), 12.5)]
    kinds = set()
    for number in range(count(30, 60)):
        drawn = footage_list(0, number, CONFIG, worlds)
        again = footage_list(0, number, CONFIG, worlds)
        torch.testing.assert_close(drawn.references[0], again.references[0])
        wanted = drawn.query[len(drawn.query) // 2]
        for rows, windows, overlaps in zip(
            drawn.references, drawn.windows, drawn.overlaps, strict=True
        ):
            shown = (rows == wanted).all(dim=1)
            for (start, end), overlap in zip(windows.long().tolist(), overlaps, strict=True):
                both = int(shown[start:end].sum())
                union = end - start + int(shown.sum()) - both
                # A row at either end may count or not, by rounding.
                assert abs(both - float(overlap) * union) <= 2.5
        kinds.add(len(drawn.references) > 2)
    assert kinds == {True, False}


@pytest.mark.slow
def test_every_kind_of_world_is_drawn() -> None:
    rng = np.random.default_rng(0)
    worlds = [draw_world(rng) for _ in range(200)]
    assert {world.look.kind for world in worlds} == set(KINDS)
    assert {world.actions.order for world in worlds} == set(ORDERS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_answers_are_where_the_video_says(kind: str, order: str) -> None:
    rng = np.random.default_rng(1)
    world = draw_world(rng, kind=kind, order=order)  # type: ignore[arg-type]
    video = world.video(2)
    assert video.rows.dtype == np.float32
    assert np.isfinite(video.rows).all()
    (_, first), (second, last) = video.truths
    assert first <= second < last <= len(video.rows)
    assert len(world.video(0).truths) == 0


def test_two_performances_are_closer_than_two_classes() -> None:
    """What a list calls right is nearer in meaning than what it calls wrong."""
    rng = np.random.default_rng(2)
    right, wrong = [], []
    for _ in range(40):
        world = draw_world(rng, order="any")
        one, two = (world.perform(world.target, 12, Own(world)).mean(axis=0) for _ in range(2))
        three = world.perform(world.others[0], 12, Own(world)).mean(axis=0)
        right.append(np.linalg.norm(one - two))
        wrong.append(np.linalg.norm(one - three))
    assert np.mean(np.array(right) < wrong) > 0.75


def test_no_rival_is_the_target_itself() -> None:
    rng = np.random.default_rng(4)
    for number in range(60):
        world = draw_world(rng, order=ORDERS[number % 2])
        rival = world.rival()
        same = set(rival.parts) == set(world.target.parts)
        assert not same or (world.actions.order == "fixed" and rival.backwards)
        assert all(not set(other.parts) & set(world.target.parts) for other in world.others)


def test_a_copy_is_put_in_as_it_is() -> None:
    world = draw_world(np.random.default_rng(5))
    copy = np.full((6, world.look.channels), 7, dtype=np.float32)
    video = world.video(1, copy=copy)
    start, end = video.truths[0]
    np.testing.assert_array_equal(video.rows[start:end], copy)


def test_joined_networks_score_as_their_mean() -> None:
    small = {"num_members": 1, "hidden_channels": 8, "num_steps": 6}
    alone = [MultiGraphMatcher(**small, contrast=3.5) for _ in range(3)]
    for model in alone:
        for layer in (model.members[0].weigh[-1], model.members[0].head[-1]):
            torch.nn.init.normal_(layer.weight, 0, 0.3)
    whole = joined(alone)
    assert whole.settings.contrast == 3.5
    query, reference = torch.randn(6, 5), torch.randn(40, 5)
    windows = torch.tensor([[0.0, 6.0], [10.0, 15.0], [12.0, 30.0]])
    scores = [each.eval().scorer(query, reference)(windows) for each in alone]
    assert not torch.allclose(scores[0], scores[1])
    torch.testing.assert_close(
        whole.scorer(query, reference)(windows), torch.stack(scores).mean(dim=0)
    )


def test_resampling_keeps_a_straight_line() -> None:
    line = np.arange(12, dtype=np.float32)[:, None]
    np.testing.assert_allclose(resampled(line, 2.0)[:, 0], np.arange(6) * 2 + 0.5)
    assert len(resampled(line, 0.5)) == 24


def test_candidates_hold_one_that_fits() -> None:
    truths = np.array([[13, 29]])
    windows = candidates(np.random.default_rng(0), 20, 90, truths)
    assert float(best_overlap(windows, truths).max()) > 0.9
    assert len(torch.unique(windows, dim=0)) == len(windows)


SMALL = MatcherConfig(hidden_channels=8, num_steps=6, list_length=8, far_proposals=4)


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    config = PretrainConfig(steps=4, lists=2, warmup=1)
    said: list[str] = []
    whole = pretrain(config, SMALL, log=said.append, report_every=2)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, SMALL, tmp_path, log=stop, report_every=2)
    resumed = pretrain(config, SMALL, tmp_path, log=said.append, report_every=2)
    kept = load_model(tmp_path).state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, resumed.state_dict()[name])
        torch.testing.assert_close(value, kept[name])
    assert len(said) == 3
    films = [FootageWorld((Footage(np.zeros((4, 8), np.float32), ()),), 12.5)]
    for other, footage in ((replace(config, seed=1), []), (config, films)):
        with pytest.raises(UsageError, match="other settings"):
            pretrain(other, SMALL, tmp_path, footage=footage)
    state = tmp_path / "state.pt"
    for content in (b"", b"text", state.read_bytes()[:400]):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match="start afresh"):
            pretrain(config, SMALL, tmp_path)


def test_the_rate_may_stand_from_the_beginning_to_the_end() -> None:
    config = PretrainConfig(steps=1, lists=1, warmup=0, decay=0.0)
    for value in pretrain(config, SMALL, log=str).state_dict().values():
        assert torch.isfinite(value).all()


@pytest.mark.slow
def test_how_long_a_run_is_may_be_decided_while_the_rate_stands(tmp_path: Path) -> None:
    config = PretrainConfig(steps=4, lists=1, warmup=1, decay=0.5)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(replace(config, steps=100), SMALL, tmp_path, log=stop, report_every=2)
    resumed = pretrain(config, SMALL, tmp_path).state_dict()
    for name, value in pretrain(config, SMALL).state_dict().items():
        torch.testing.assert_close(value, resumed[name])


@pytest.mark.slow
def test_it_learns() -> None:
    """Lists of a stream that it never saw."""
    sizes = {"hidden_channels": 16, "num_steps": 10, "list_length": 20, "far_proposals": 8}
    network = MatcherConfig(num_members=1, **sizes)
    unseen = [draw_list(1, number, network) for number in range(6)]

    def loss(model: MultiGraphMatcher) -> float:
        with torch.no_grad():
            return float(model.eval().list_losses(unseen)["loss"])

    config = PretrainConfig(steps=12, lists=2, warmup=2, learning_rate=5e-3)
    trained = pretrain(config, network, log=str)
    assert loss(trained) < 0.95 * loss(MultiGraphMatcher(**asdict(network)))


@pytest.mark.slow
def test_lists_of_labelled_sets_are_drawn_like_the_others(lists: list[WindowList]) -> None:
    one, again = (labelled_list(0, 5, CONFIG) for _ in range(2))
    torch.testing.assert_close(one.query, again.query)
    assert float(one.overlaps[0].max()) > 0.5
    assert one.references[0].shape[1] == one.query.shape[1]
    share = [drawn.seconds_per_step is None for drawn in lists]
    assert 0.5 < np.mean(share) < 1


def test_a_film_is_spliced_where_something_begins() -> None:
    """Style that drifts slowly is drawn anew at the ends of an answer, where a film was cut."""
    jumps = []
    for spliced in (False, True):
        rng = np.random.default_rng(6)
        world = draw_world(rng, kind="linear")
        look = replace(world.look, drift=30.0, keep=0.99, cuts=0.0, noise=0.0, blur=1, repeat=1)
        staging = replace(world.staging, spliced=spliced, stills=0.0)
        world = World(rng, world.actions, staging, look)
        videos = [world.video(1) for _ in range(20)]
        change = [np.linalg.norm(np.diff(video.rows, axis=0), axis=1) for video in videos]
        starts = [video.truths[0, 0] for video in videos]
        pairs = [(c[s - 1], np.median(c)) for c, s in zip(change, starts, strict=True) if s]
        jumps.append(np.mean([at / usual for at, usual in pairs]))
    assert jumps[1] > 3 * jumps[0]
