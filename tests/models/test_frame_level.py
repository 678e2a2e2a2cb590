from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from relocal_pyg.errors import UsageError
from relocal_pyg.models.baselines.frame_level import (
    FrameLevel,
    Variant,
    diagonal_blocks,
    least_average_paths,
    pattern_paths,
    step_distances,
)

Array = NDArray[np.float64]


def every_path(m: int, n: int) -> list[list[tuple[int, int]]]:
    """All paths from row 0 to row m - 1, built cell by cell."""
    paths, growing = [], [[(0, s)] for s in range(n)]
    while growing:
        path = growing.pop()
        i, j = path[-1]
        if i == m - 1:
            paths.append(path)
        growing += [
            [*path, (i + di, j + dj)]
            for di, dj in ((1, 0), (0, 1), (1, 1))
            if i + di < m and j + dj < n
        ]
    return paths


@pytest.mark.slow
def test_least_average_path_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    paths = {(m, n): every_path(m, n) for m in range(1, 5) for n in range(1, 7)}
    for _ in range(1000):
        m, n = int(rng.integers(1, 5)), int(rng.integers(1, 7))
        table = rng.random((m, n))
        means = [np.mean([table[cell] for cell in path]) for path in paths[m, n]]
        best = paths[m, n][int(np.argmin(means))]
        found = least_average_paths(torch.tensor(table))
        top = int(found.scores.argmax())
        assert math.isclose(-float(found.scores[top]), min(means), rel_tol=1e-12)
        assert found.moments[top].tolist() == [best[0][1], best[-1][1] + 1]
        # Other end steps: a path that exists, with its own mean, so never better than the best.
        for (start, end), score in zip(found.moments.tolist(), found.scores.tolist(), strict=True):
            own = [
                mean
                for mean, path in zip(means, paths[m, n], strict=True)
                if path[0][1] == start and path[-1][1] == end - 1
            ]
            assert any(math.isclose(-score, mean, rel_tol=1e-9) for mean in own)


def test_constant_and_single_cell_tables() -> None:
    for shape in ((1, 1), (1, 5), (4, 1), (3, 7)):
        found = least_average_paths(torch.full(shape, 0.25, dtype=torch.float64))
        torch.testing.assert_close(found.scores, torch.full_like(found.scores, -0.25))
        assert (found.moments[:, 1] > found.moments[:, 0]).all()


def naive_pattern(s: Array, low: float, discontinue: int) -> tuple[list[list[int]], list[float]]:
    m, n = s.shape
    cells: dict[tuple[int, int], tuple[float, int, int]] = {}
    for i in range(m):
        for j in range(n):
            options = []
            for di, dj, share in ((1, 1, 1.0), (1, 0, 0.5), (0, 1, 0.5)):
                weight, first, run = cells.get((i - di, j - dj), (0.0, j, 0))
                if run > discontinue or weight == 0:
                    weight, first, run = 0.0, j, 0
                options.append((weight + share * s[i, j], first, run))
            weight, first, run = max(options, key=lambda option: option[0])
            cells[i, j] = (weight, first, run + 1 if s[i, j] < low else 0)
    best = [max((cells[i, j] for i in range(m)), key=lambda cell: cell[0]) for j in range(n)]
    return [[cell[1], j + 1] for j, cell in enumerate(best)], [cell[0] for cell in best]


@pytest.mark.parametrize("discontinue", [0, 1, 3])
def test_pattern_paths_equal_the_loop(discontinue: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        table = 2 * rng.random((int(rng.integers(1, 7)), int(rng.integers(1, 12))))
        moments, scores = naive_pattern(table, 1.0, discontinue)
        found = pattern_paths(torch.tensor(table), discontinue=discontinue)
        np.testing.assert_allclose(found.scores.numpy(), scores)
        assert found.moments.tolist() == moments


def test_diagonal_blocks_equal_the_loop() -> None:
    rng = np.random.default_rng(2)
    for m, n in ((1, 1), (4, 3), (3, 9), (5, 20)):
        table = rng.random((m, n))
        found = diagonal_blocks(torch.tensor(table))
        expected = {}
        for length in {min(max(1, round(scale * m)), n) for scale in (0.5, 1.0, 2.0)}:
            for s in range(n - length + 1):
                p = max(m, length)
                path = [(t * m // p, s + t * length // p) for t in range(p)]
                assert {cell[1] for cell in path} == set(range(s, s + length))
                assert {cell[0] for cell in path} == set(range(m))
                expected[s, s + length] = -np.mean([table[cell] for cell in path])
        given = {(a, b): x for (a, b), x in zip(found.moments.tolist(), found.scores, strict=True)}
        assert given.keys() == expected.keys()
        assert all(math.isclose(given[key], expected[key]) for key in expected)


def test_distances_equal_cdist() -> None:
    query, reference = torch.randn(4, 6).double(), torch.randn(9, 6).double()
    query[1] = 0
    rows, columns = (torch.nn.functional.normalize(x) for x in (query, reference))
    expected = torch.cdist(rows, columns).square()
    torch.testing.assert_close(step_distances(query, reference), expected)


@pytest.mark.parametrize("variant", ["average", "chou", "block"])
def test_finds_a_copy(variant: Variant) -> None:
    # What surrounds the action is unlike it: "chou" stops only at cells of low similarity.
    reference = torch.randn(80, 32) - 1
    reference[30:42] += 2
    query = reference[30:42] + 0.2 * torch.randn(12, 32)
    ranking = FrameLevel(variant, min_steps=6, max_steps=30).rank(query, reference, None)
    start, end = ranking.moments[0].tolist()
    assert abs(start - 30) <= 4
    assert abs(end - 42) <= 4
    assert (ranking.scores.diff() <= 0).all()
    assert len(ranking.moments) > 5
    length = ranking.moments.diff(dim=1)
    assert length.min() >= 6
    assert length.max() <= 30


@pytest.mark.parametrize("variant", get_args(Variant))
def test_rows_that_are_no_numbers_come_to_an_end(variant: Variant) -> None:
    """``localize`` refuses them before."""
    reference = torch.rand(9, 4)
    reference[3, 1] = torch.nan
    ranking = FrameLevel(variant).rank(torch.rand(3, 4), reference, torch.zeros(0, 2))
    assert len(ranking.scores) > 0


def test_a_variant_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="variant"):
        FrameLevel("diagonal")  # type: ignore[arg-type]
    for limits in ({"min_steps": 0}, {"min_steps": 5, "max_steps": 4}, {"max_steps": 2.5}):
        with pytest.raises(UsageError, match="_steps"):
            FrameLevel(**limits)


def test_limits_that_nothing_fits_are_ignored() -> None:
    ranking = FrameLevel(min_steps=50).rank(torch.randn(3, 4), torch.randn(8, 4), None)
    assert len(ranking.moments) == 8
