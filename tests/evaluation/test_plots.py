from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.metrics.pairwise import cosine_similarity

from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import map_at_1, plots
from relocal_pyg.evaluation.plots import svg_text
from relocal_pyg.graph import PairGraph


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [
        t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_visible()
    ]


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Start, end and middle height of every bar."""
    found = []
    for collection in axes.collections:
        for path in collection.get_paths() if collection.get_array() is None else []:
            box = path.get_extents()
            found.append((box.x0, box.x1, (box.y0 + box.y1) / 2))
    return found


def test_timeline_draws_every_span_at_its_time() -> None:
    figure = plots.timeline(
        20.0,
        100.0,
        [(60.0, 70.0), (10.0, 30.0)],
        {"A": [(12.0, 31.0), (50.0, 60.0)], "B": []},
        proposals=[(0.0, 10.0), (40.0, 90.0)],
    )
    axes = figure.axes[0]
    drawn = {(round(a, 3), round(b, 3)) for a, b, _ in bars(axes)}
    wanted = {(0, 20), (0, 100), (10, 30), (60, 70), (12, 31), (50, 60), (0, 10), (40, 90)}
    assert wanted <= drawn
    height = dict(
        zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True)
    )
    assert list(height) == ["Query", "Reference", "Ground truth", "Proposals", "A", "B"]
    assert (12, 31, height["A"]) in [(round(a), round(b), y) for a, b, y in bars(axes)]
    assert axes.get_xlabel() == "time (s)"
    assert axes.get_xlim()[1] >= 100
    words = texts(figure)
    assert {"10.0–30.0 s, 60.0–70.0 s", "12.0–31.0 s", "no answer", "20.0 s long"} <= set(words)


def test_timeline_shows_a_query_longer_than_the_reference() -> None:
    figure = plots.timeline(50.0, 20.0, [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)], {})
    assert figure.axes[0].get_xlim()[1] >= 50
    assert "1.0–2.0 s, 3.0–4.0 s, …" in texts(figure)


def test_timeline_says_how_many_proposals_it_leaves_out() -> None:
    many = [(float(i), float(i + 5)) for i in range(500)]
    figure = plots.timeline(5.0, 600.0, [(1.0, 2.0)], {}, proposals=many)
    assert "Proposals\n(200 of 500)" in texts(figure)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_timeline_refuses_a_length_that_is_none(bad: float) -> None:
    with pytest.raises(UsageError, match="query_seconds"):
        plots.timeline(bad, 1.0, [], {})
    with pytest.raises(UsageError, match="reference_seconds"):
        plots.timeline(1.0, bad, [], {})


@pytest.mark.slow
def test_names_are_drawn_letter_by_letter(tmp_path: Path) -> None:
    evil = "$\\frac{$ <b> \x1b[0m 走る"
    figure = plots.timeline(5.0, 9.0, [(1.0, 2.0)], {evil: [(1.0, 2.0)]}, title=evil)
    svg = svg_text(figure)
    assert "$\\frac{$ &lt;b&gt; \\x1b[0m 走る" in svg
    assert "\x1b" not in svg
    history = [{"step": 0.0, evil: 1.0}]
    for other in (
        plots.recall_curve({evil: [0.2, 0.9]}, muted=[evil], title=evil),
        plots.training_curves(history, title=evil),
        plots.similarity_map(np.eye(3), np.eye(3), title=evil),
    ):
        assert "$\\frac{$ &lt;b&gt; \\x1b[0m 走る" in svg_text(other)


def test_similarity_map_is_the_cosine_in_seconds() -> None:
    generator = np.random.default_rng(0)
    query, reference = generator.normal(size=(6, 4)), generator.normal(size=(15, 4))
    figure = plots.similarity_map(
        query, reference, (4.0, 9.0), truths=[(5.0, 10.0)], seconds_per_step=2.0,
        query_seconds_per_step=0.5,
    )  # fmt: skip
    axes = figure.axes[0]
    image = axes.images[0]
    assert np.allclose(image.get_array(), cosine_similarity(query, reference))
    assert tuple(image.get_extent()) == (0, 30, 0, 3)
    low, high = image.get_clim()
    assert low == -high
    lines = {tuple(line.get_xdata()) for line in axes.lines}
    assert {(4.0, 9.0), (5.0, 10.0)} <= lines
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("reference time (s)", "query time (s)")
    assert "cosine similarity" in texts(figure)


@pytest.mark.slow
def test_explanation_map_draws_what_had_a_say_in_seconds(tmp_path: Path) -> None:
    table = np.zeros((4, 50))
    table[:, 20:26] = np.random.default_rng(0).normal(size=(4, 6))
    table[0, 3] = 0.001 * np.abs(table).max()
    figure = plots.explanation_map(
        table, (11.0, 13.0), seconds_per_step=0.5, query_seconds_per_step=2.0, query_start=3.0
    )
    axes = figure.axes[0]
    image = axes.images[0]
    assert np.allclose(image.get_array(), table[:, 20:26])
    assert tuple(image.get_extent()) == (10, 13, 3, 11)
    low, high = image.get_clim()
    assert low == -high == -np.abs(table).max()
    above = axes.child_axes[0]
    heights = [patch.get_height() for patch in above.patches]
    assert np.allclose(heights, table[:, 20:26].sum(axis=0))
    assert {11.0, 13.0} <= {line.get_xdata()[0] for line in axes.lines}
    assert "added to the score" in texts(figure)
    figure.savefig(tmp_path / "map.png")
    assert imread(tmp_path / "map.png").shape[2] == 4
    # Nothing had a say: the moment itself is drawn.
    nothing = plots.explanation_map(np.zeros((2, 9)), (3.0, 5.0), title="$x")
    assert tuple(nothing.axes[0].images[0].get_extent())[:2] == (3, 5)


@pytest.mark.parametrize("graph", [PairGraph(8, 3), PairGraph(5, 2, weight="exponential")])
def test_adjacency_shows_the_matrix_and_the_neighbours_of_one_step(graph: PairGraph) -> None:
    figure = plots.adjacency(graph, step=1)
    left, right = figure.axes[0], figure.axes[1]
    dense = graph.dense()
    assert np.allclose(left.images[0].get_array(), dense.numpy())
    steps = graph.num_steps
    across = {tuple(line.get_xdata()) for line in right.lines if tuple(line.get_ydata()) == (1, 0)}
    assert across == {(1, j) for j in range(steps) if dense[1, steps + j] > 0}
    inside = sum(1 for j in range(steps) if dense[1, j] > 0 and j != 1)
    assert len(right.patches) == inside
    assert f"({int((dense[1] > 0).sum())} with itself)" in right.get_title(loc="left")
    assert len(figure.axes) == (2 if graph.weight == "binary" else 3)


def test_adjacency_refuses_a_step_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="0 to 7"):
        plots.adjacency(PairGraph(8, 3), step=8)


def test_training_curves_part_losses_from_scores() -> None:
    history = [
        {"step": 0.0, "val_score": 0.2},
        {"step": 10.0, "loss": 3.0, "val_score": 0.4},
        {"step": 20.0, "loss": 2.0, "val_score": 0.3},
    ]
    figure = plots.training_curves(history, best_step=10)
    losses, scores = figure.axes
    assert losses.lines[0].get_xydata().tolist() == [[10, 3], [20, 2]]
    assert scores.lines[0].get_xydata().tolist() == [[0, 0.2], [10, 0.4], [20, 0.3]]
    assert list(scores.lines[1].get_xdata()) == [10, 10]
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("optimiser step", "loss")
    assert len(plots.training_curves([{"step": 0.0}]).axes) == 1
    for bad in ([], [{"loss": 1.0}]):
        with pytest.raises(UsageError, match="step"):
            plots.training_curves(bad)


def test_recall_curve_passes_through_the_scores() -> None:
    tious = torch.tensor([0.0, 0.3, 0.55, 0.55, 0.81, 1.0], dtype=torch.float64)
    axes = plots.recall_curve({"A": tious, "B": [0.1]}, muted=["B"]).axes[0]
    curve = axes.lines[0]
    x, y = curve.get_xdata(), curve.get_ydata()
    for threshold, value in map_at_1(tious).items():
        # Drawn as steps: the height at a threshold is that of the last point not beyond it.
        assert y[np.searchsorted(x, threshold, side="right") - 1] == pytest.approx(100 * value)
    assert axes.lines[1].get_linestyle() == "--"
    assert axes.get_xlabel() == "tIoU threshold"


@pytest.mark.slow
def test_pictures_can_be_saved_and_hold_something(tmp_path: Path) -> None:
    figures = {
        "timeline": plots.timeline(5.0, 9.0, [(1.0, 2.0)], {"A": [(1.0, 2.0)]}, title="x"),
        "map": plots.similarity_map(torch.eye(4), torch.eye(9)[:, :4]),
        "graph": plots.adjacency(PairGraph(40, 3)),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        pixels = imread(tmp_path / f"{name}.png")
        assert pixels.shape[1] == round(7.2 * 150)
        assert pixels[..., :3].std() > 0.02


@pytest.mark.slow
def test_svg_is_the_same_in_every_process_which_imports_what_it_draws_with_when_it_draws() -> None:
    """Also where sets and dicts are walked in another order and another picture came before."""
    code = (
        "import sys; from relocal_pyg.evaluation import plots;"
        "assert 'matplotlib' not in sys.modules;"
        "picture = plots.timeline(5.0, 9.0, [(1.0, 2.0)], {'A': [(1.0, 2.0)]});"
        "sys.stdout.write(plots.svg_text(picture));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    alone = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    svg_text(plots.recall_curve({"B": [0.5]}))
    # The tests' own process has a seed of its own.
    assert svg_text(plots.timeline(5.0, 9.0, [(1.0, 2.0)], {"A": [(1.0, 2.0)]})) == alone
    assert "1.0" in alone
    assert "<svg" in alone
