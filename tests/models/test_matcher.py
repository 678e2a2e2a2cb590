"""The matcher over similarities, and what it is told of a pair."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor
from torch_geometric.loader import DataLoader

from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import UsageError
from relocal_pyg.models import ContrastMatcher, MultiGraphMatcher, load_model
from relocal_pyg.models.compare import (
    MEASURES,
    NUM_KIND,
    PLACES,
    TABLES,
    Comparison,
    best_path,
    cosines,
    similarity_tables,
)
from relocal_pyg.models.matcher import PARTS, stretched
from relocal_pyg.models.similarity import LocalRows, contrast_scores, step_similarity
from relocal_pyg.moments import tiou


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _videos(rng: torch.Generator, m: int = 9, n: int = 60, width: int = 7) -> list[Tensor]:
    return [torch.randn(k, width, generator=rng).cumsum(dim=0) for k in (m, n, 25)]


def _model(**settings: int) -> MultiGraphMatcher:
    """A network whose last layers are not zero."""
    torch.manual_seed(5)
    model = MultiGraphMatcher(**{"hidden_channels": 16, "num_steps": 10, **settings})
    for member in model.members:
        for layer in (member.weigh[-1], member.head[-1]):
            torch.nn.init.normal_(layer.weight, 0, 0.3)
    return model.eval()


def _column(table: str, measure: str) -> int:
    return TABLES.index(table) * len(MEASURES) + MEASURES.index(measure)


# What it is told


def test_best_path_is_that_of_brute_force(rng: torch.Generator) -> None:
    tables = torch.randn(4, 5, 6, generator=rng)

    def best(table: Tensor) -> float:
        @functools.cache
        def total(i: int, j: int) -> float:
            cell = float(table[i, j])
            before = [total(i - 1, j) + cell] if i else []
            before += [total(i, j - 1) + cell] if j else []
            before += [total(i - 1, j - 1) + 2 * cell] if i and j else []
            return max(before, default=2 * cell)

        return total(table.shape[0] - 1, table.shape[1] - 1) / sum(table.shape)

    expected = torch.tensor([best(table) for table in tables])
    torch.testing.assert_close(best_path(tables), expected)


@pytest.mark.parametrize("video", [False, True])
def test_first_measure_is_the_contrast_matcher(rng: torch.Generator, video: bool) -> None:
    query, reference, around = _videos(rng)
    query_video = around if video else None
    windows = default_proposals(len(reference), len(query))
    found = Comparison(query, reference, query_video).measure(windows)[
        :, _column("centred", "contrast")
    ]
    expected = contrast_scores(step_similarity(query, reference, query_video), windows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_diagonal_and_coverage_are_those_of_the_window(rng: torch.Generator) -> None:
    query, reference, _ = _videos(rng)
    comparison = Comparison(query, reference)
    table = comparison.tables[TABLES.index("alike")]
    start, end = 11, 31
    rows = [(2 * p + 1) * len(query) // (2 * PLACES) for p in range(PLACES)]
    steps = [start + (2 * p + 1) * (end - start) // (2 * PLACES) for p in range(PLACES)]
    cells = torch.stack([torch.stack([table[i, j] for j in steps]) for i in rows])
    found = comparison.measure(torch.tensor([[start, end]]).float())[0]
    torch.testing.assert_close(found[_column("alike", "diagonal")], cells.diagonal().mean())
    torch.testing.assert_close(found[_column("alike", "coverage")], cells.amax(dim=1).mean())
    torch.testing.assert_close(found[_column("alike", "path")], best_path(cells))


def test_quick_measures_are_the_first_two_of_all(rng: torch.Generator) -> None:
    query, reference, _ = _videos(rng)
    comparison = Comparison(query, reference)
    windows = default_proposals(len(reference), len(query))
    both = comparison.measure(windows).view(-1, len(TABLES), len(MEASURES))[:, :, :2].flatten(1)
    torch.testing.assert_close(comparison.quick(windows), both)


def test_what_is_done_in_the_same_way_is_found_to_the_step(rng: torch.Generator) -> None:
    """Windows near the same, or near the same at another pace, move there; others stay."""
    query, reference = torch.randn(20, 12, generator=rng), torch.randn(200, 12, generator=rng)
    reference[50:70] = query + 0.2 * torch.randn(20, 12, generator=rng)
    reference[120:150] = stretched(query, 1.5)
    near = [[47, 67], [53, 70], [48, 70], [54, 72], [125, 155], [113, 143]]
    far = [[10, 30], [90, 110], [57, 77], [180, 200], [0, 9]]
    windows = torch.tensor(near + far, dtype=torch.float32)
    wanted = [[50, 70]] * 4 + [[120, 150]] * 2 + far
    assert Comparison(query, reference).aligned(windows).tolist() == wanted
    few = Comparison(query[:5], reference)  # five steps have no order to speak of
    assert torch.equal(few.aligned(windows), windows)


def test_same_footage_is_alike_and_chance_is_not(rng: torch.Generator) -> None:
    rows = torch.randn(400, 32, generator=rng) + 5
    table = similarity_tables(rows[100:140], rows)[TABLES.index("alike")]
    torch.testing.assert_close(table[torch.arange(40), torch.arange(100, 140)], torch.ones(40))
    assert abs(float(table[:, 200:].mean())) < 0.05


@pytest.mark.parametrize(("m", "n"), list(itertools.product((1, 2, 3, 40), (1, 2, 5, 30))))
def test_any_lengths_are_finite(rng: torch.Generator, m: int, n: int) -> None:
    query, reference, _ = _videos(rng, m, n)
    comparison = Comparison(query, reference)
    assert comparison.kind.shape == (NUM_KIND,)
    windows = default_proposals(n, m)
    model = _model()
    assert torch.isfinite(comparison.scalars(windows)).all()
    ranking = model.rank(query, reference, windows)
    assert torch.isfinite(ranking.scores).all()


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["constant", "zero"])
def test_stills_and_black_are_finite(rng: torch.Generator, rows: str) -> None:
    query, reference, _ = _videos(rng)
    reference = reference[:1].repeat(50, 1) * float(rows == "constant")
    ranking = _model().rank(query, reference, default_proposals(50, len(query)))
    assert torch.isfinite(ranking.scores).all()


# What it does not depend on


@pytest.mark.slow
def test_width_order_and_scale_of_channels_are_nothing_to_it(rng: torch.Generator) -> None:
    query, reference, video = _videos(rng)
    windows = default_proposals(len(reference), len(query))
    model = _model()
    expected = model.scorer(query, reference, video)(windows)
    order = torch.randperm(query.shape[1], generator=rng)

    def other(rows: Tensor, scale: float) -> Tensor:
        return scale * torch.cat([rows[:, order], rows.new_zeros(len(rows), 5)], dim=1)

    for scale in (3, 1e-8, 1e10):
        sides = [other(rows, scale) for rows in (query, reference, video)]
        torch.testing.assert_close(model.scorer(*sides)(windows), expected, rtol=1e-3, atol=1e-4)
        kinds = [Comparison(*each).reference_nodes for each in (sides, (query, reference, video))]
        torch.testing.assert_close(*kinds, rtol=1e-3, atol=1e-3)


def test_untrained_it_ranks_as_the_contrast_matcher(rng: torch.Generator) -> None:
    query, reference, _ = _videos(rng)
    windows = default_proposals(len(reference), len(query))
    model = MultiGraphMatcher()
    model.set_refinement("none")
    found = model.eval().rank(query, reference, windows)
    expected = ContrastMatcher().rank(query, reference, windows)
    torch.testing.assert_close(found.moments[0], expected.moments[0])


# One answer by every way


def test_exact_algebra_gives_the_scores_of_the_network(rng: torch.Generator) -> None:
    query, reference, video = _videos(rng)
    windows = default_proposals(len(reference), len(query))
    model = _model()
    inputs = model.look(Comparison(query, reference, video), windows)
    other = model.look(Comparison(query, reference), windows[:7])
    with torch.no_grad():
        together = model([inputs, other])
    fast = model.scorer(query, reference, video)(windows)
    torch.testing.assert_close(together[: len(windows)], fast, rtol=1e-4, atol=1e-5)
    alone = model.scorer(query, reference)(windows[:7])
    torch.testing.assert_close(together[len(windows) :], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_paces_average_the_scores_of_stretched_queries(rng: torch.Generator) -> None:
    query, reference, video = _videos(rng)
    windows = default_proposals(len(reference), len(query))
    weights = _model().state_dict()
    both = MultiGraphMatcher(hidden_channels=16, num_steps=10, paces=(1.0, 2.0)).eval()
    both.load_state_dict(weights)
    found = both.scorer(query, reference, video)(windows)
    one, two = (
        _model().scorer(stretched(query, pace), reference, video)(windows) for pace in (1.0, 2.0)
    )
    torch.testing.assert_close(found, (one + two) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_more_windows_than_the_network_takes(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, reference, _ = _videos(rng)
    windows = default_proposals(len(reference), len(query))
    model = MultiGraphMatcher().eval()
    whole = model.rank(query, reference, windows)
    monkeypatch.setattr("relocal_pyg.models.matcher.MOST", len(windows) // 3)
    part = model.rank(query, reference, windows)
    torch.testing.assert_close(whole.moments[0], part.moments[0])
    assert len(part.moments) < len(whole.moments)


def test_background_is_what_both_sides_are_centred_by(rng: torch.Generator) -> None:
    query, reference, _ = _videos(rng)
    background, shift = torch.randn(7, generator=rng), torch.randn(7, generator=rng)
    table = similarity_tables(query, reference, background=background)[0]
    moved = similarity_tables(query + shift, reference + shift, background=background + shift)[0]
    torch.testing.assert_close(table, moved, rtol=1e-3, atol=1e-5)
    own = similarity_tables(query, reference, background=reference.mean(dim=0))
    centred = [number for number, name in enumerate(TABLES) if name != "alike"]
    torch.testing.assert_close(own[centred], similarity_tables(query, reference)[centred])


def test_chance_of_a_library_is_that_of_its_mean_direction(rng: torch.Generator) -> None:
    """Two pictures that lie as near as any two of the library are worth 0, the same picture 1."""
    background = 5 * torch.ones(64)
    rows = background + torch.randn(400, 64, generator=rng)
    table = similarity_tables(rows[:30], rows, background=background)[TABLES.index("alike")]
    assert abs(float(table[:, 30:].mean())) < 0.05
    torch.testing.assert_close(table[torch.arange(30), torch.arange(30)], torch.ones(30))


def test_a_second_is_what_smooths_and_what_motion_is_seen_over(rng: torch.Generator) -> None:
    """The tables of known steps are those of the contrast matcher's rows."""
    query, reference, video = _videos(rng)
    tables = similarity_tables(query, reference, video, seconds_per_step=0.25)
    for number, deviation in ((1, False), (2, True)):
        parts = [
            torch.cat(list(LocalRows(rows, 2, deviation).split(100)))
            for rows in (query, reference, video)
        ]
        rows, columns, around = parts
        expected = cosines(rows - around.mean(dim=0), columns - columns.mean(dim=0))
        torch.testing.assert_close(
            contrast_scores(tables[number].mean(dim=0), torch.tensor([[5.0, 20.0]])),
            contrast_scores(expected.mean(dim=0), torch.tensor([[5.0, 20.0]])),
            rtol=0,
            atol=0.05 if deviation is False else 1e-4,
        )
    longer = similarity_tables(query, reference, video, seconds_per_step=2.0)
    torch.testing.assert_close(longer, similarity_tables(query, reference, video))


def test_explanation_is_the_slope_of_the_score(rng: torch.Generator) -> None:
    query, reference, _ = _videos(rng)
    model = _model()
    moment = (10.0, 20.0)
    found = model.explain(query, reference, moment)
    tables = similarity_tables(query, reference).double()
    place = torch.tensor([moment]).double()
    exact = _model().double().eval()

    def score(share: float) -> float:
        scaled = Comparison(query.double(), reference.double(), tables=tables * share)
        with torch.no_grad():
            return float(exact([exact.look(scaled, place)]))

    slope = (score(1 + 1e-4) - score(1 - 1e-4)) / 2e-4
    assert float(found.sum()) == pytest.approx(slope, rel=1e-2, abs=1e-4)
    assert found.shape == (len(query), len(reference))


def test_every_weight_learns_from_the_lists_of_a_protocol() -> None:
    protocol = synthetic(SyntheticConfig(train_classes=3, train_videos=3, val_videos=2))
    model = _model().train()
    samples = model.training_set(protocol, num_samples=2, seed=0)
    losses = model.training_losses(next(iter(DataLoader(samples, batch_size=2))))
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert all(weight.grad is not None for weight in model.parameters())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="num_steps"):
        MultiGraphMatcher(num_steps=0)
    with pytest.raises(UsageError, match="paces"):
        MultiGraphMatcher(paces=(0.5,))


# The weights that come with the package


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "width", "kept", "place", "noise"),
    [(300, 40, 0.8, 120, 0.02), (2000, 64, 0.9, 100, 0.1)],  # more windows than it takes
)
def test_pretrained_finds_the_same_footage_to_the_step(
    rng: torch.Generator, steps: int, width: int, kept: float, place: int, noise: float
) -> None:
    film = torch.randn(steps, width, generator=rng)
    for step in range(1, steps):
        film[step] = kept * film[step - 1] + (1 - kept**2) ** 0.5 * film[step]
    clip = 0.8 * film[place : place + 40] + noise * torch.randn(40, width, generator=rng)
    moment = MultiGraphMatcher.pretrained().localize(clip, film, top_k=1)[0]
    assert float(tiou([moment.start, moment.end], [place, place + 40.0])) >= 0.95


@pytest.mark.slow
def test_pretrained_takes_any_width(rng: torch.Generator) -> None:
    model = load_model("pretrained")
    for width in (1, 12, 700):
        query, reference, _ = _videos(rng, width=width)
        assert len(model.localize(query, reference, top_k=2)) == 2


# Short queries


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_clip_of_few_steps_is_found(rng: torch.Generator, count, length: int) -> None:
    """Each step shows one of eight scenes, but for the clip, which shows a ninth."""
    model = load_model("pretrained")
    for start in range(2, 50, count(12, 6)):
        scenes = torch.randn(9, 16, generator=rng)
        video, reference = scenes[torch.randint(8, (2, 60), generator=rng)]
        for rows in (video, reference):
            rows[start : start + length] = scenes[8]
            rows += 0.3 * torch.randn(rows.shape, generator=rng)
        clip, place = video[start : start + length], (start, start + length)
        best = model.localize(clip, reference, query_video=video, top_k=1)[0]
        # One of two steps covers a step to exactly a half.
        assert tiou((best.start, best.end), place) >= 0.5


@pytest.mark.slow
def test_a_movement_of_few_channels_is_found(rng: torch.Generator) -> None:
    """Three joints turn smoothly; somebody else moves as the clip does, a little otherwise."""
    model, found = load_model("pretrained"), 0
    for start in [*range(10, 98, 11)] * 2:
        walk = torch.randn(3, 150, 3, generator=rng).cumsum(dim=1)
        video, reference, other = walk[:, 15:] - walk[:, :-15]
        reference[start : start + 24] = video[60:84]
        reference += 0.15 * other
        best = model.localize(video[60:84], reference, query_video=video, top_k=1)[0]
        found += int(tiou((best.start, best.end), (start, start + 24)) > 0.5)
    assert found >= 12  # step by step, 10


def test_what_a_step_added_is_what_its_parts_added(rng: torch.Generator) -> None:
    model, (query, reference, video) = _model(), _videos(rng, m=3)
    parts = [rows.repeat_interleave(PARTS, dim=0) for rows in (query, reference, video)]
    added = model.explain(query, reference, (20, 23), video, 1.0)
    finer = model.explain(*parts[:2], (20 * PARTS, 23 * PARTS), parts[2], 1 / PARTS)
    torch.testing.assert_close(
        added, finer.view(3, PARTS, 60, PARTS).sum(dim=(1, 3)), rtol=1e-4, atol=1e-6
    )
    assert added.abs().sum() > 0
