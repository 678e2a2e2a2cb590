"""Drawn films: the same for the same numbers, people that move, and actions where they are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from relocal_pyg.io.seeding import generator  # noqa: E402
from relocal_pyg.video import FunctionBackbone, VideoQuery, find_moments  # noqa: E402
from relocal_pyg.video.drawn import Camera as Tripod  # noqa: E402
from relocal_pyg.video.drawn import (  # noqa: E402
    Movement,
    draw_film,
    draw_footage,
    draw_movement,
    draw_person,
    draw_place,
    keep_footage,
)

GREY = FunctionBackbone(
    lambda frames: frames.float().mean(3).view(len(frames), 4, 8, 4, 8).mean((2, 4)).flatten(1),
    "grey blocks",
    dim=16,
    size=(32, 32),
)


def test_a_movement_comes_again_after_its_seconds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        movement = draw_movement(rng)
        time = rng.uniform(0, 10, size=30)
        joints = movement.joints(time)
        assert joints.shape == (30, 8)
        assert np.allclose(joints, movement.joints(time + movement.seconds))
        assert joints.std(axis=0).max() > 0.01


def test_only_the_person_moves_before_a_tripod() -> None:
    rng = np.random.default_rng(1)
    place, person = draw_place(rng, 64), draw_person(rng)
    still = np.zeros((3, 8))
    waving = still.copy()
    waving[:, 0] = [0.2, 1.5, 3.0]
    tripod = Tripod(shake=0, pan=0, light=0, noise=0, grey=False)
    first, *others = draw_film(np.random.default_rng(2), 64, person, place, tripod, still)
    assert all(np.array_equal(first, other) for other in others)
    moved = np.stack(list(draw_film(np.random.default_rng(2), 64, person, place, tripod, waving)))
    changed = (moved != moved[:1]).any(axis=(0, 3))
    assert 0.001 < changed.mean() < 0.3
    assert not changed[:, -8:].any()


@pytest.mark.slow
def test_worlds_are_the_same_again_and_kept(tmp_path: Path) -> None:
    world = draw_footage(6, 0, GREY)
    again, other = keep_footage(tmp_path, 6, 2, GREY)
    read = keep_footage(
        tmp_path, 6, 1, FunctionBackbone(lambda _: torch.ones(0), "none", 16, (32, 32))
    )
    for one, two, three in zip(world.films, again.films, read[0].films, strict=True):
        assert np.array_equal(one.rows, two.rows)
        assert np.array_equal(one.rows, three.rows)
        assert one.actions == two.actions == three.actions
    assert not np.array_equal(world.films[0].rows[:9], other.films[0].rows[:9])
    for film in world.films:
        ends = [step for _, first, last in film.actions for step in (first, last)]
        assert ends == sorted(ends)
        assert ends[-1] <= len(film.rows)


def test_another_person_does_the_same_thing_a_little_differently() -> None:
    rng = generator(0, "own")
    movement = draw_movement(rng)
    time = np.linspace(0, movement.seconds, 40)
    near, far = movement.own(rng, 0.03), movement.own(rng, 0.25)

    def distance(other: Movement) -> float:
        share = time / movement.seconds * other.seconds
        return float(np.abs(other.joints(share) - movement.joints(time)).mean())

    assert 0 < distance(near) < distance(far)


@pytest.mark.slow
def test_what_is_repeated_at_one_place_is_found_every_time_and_where_it_begins(
    tmp_path, write_video
) -> None:
    """Somebody does the same over and over; half of it is looked for."""
    rng, period, times = generator(5, "rep"), 9.5, 5
    movement = replace(draw_movement(rng), seconds=period)
    joints = movement.joints(np.arange(round(period * times * 25)) / 25)
    place = draw_place(rng, 240)
    tripod = Tripod(shake=0, pan=0, light=0.03, noise=4, grey=False)
    pictures = draw_film(rng, 240, draw_person(rng), place, tripod, joints)
    film = write_video(tmp_path / "film.mp4", list(pictures))
    query = VideoQuery(film, 2 * period, 2.5 * period)
    found = find_moments(query, film, top_k=times).moments
    begins = np.array([each.start for each in found])
    for number in {*range(times)} - {2}:
        assert np.abs(begins - number * period).min() <= 0.3
