"""PairGraph against the literal slices of section 4.3 and dense algebra."""

from __future__ import annotations

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from relocal_pyg.errors import UsageError
from relocal_pyg.graph import DENSE_STEPS_PER_BIT, PairGraph, _kept

SHAPES = [(1, 1), (1, 4), (2, 1), (2, 2), (3, 2), (5, 3), (8, 3), (8, 5), (7, 7), (6, 9), (40, 3)]
WEIGHTS = [
    ("binary", "none"),
    ("binary", "mean"),
    ("binary", "sym"),
    ("laplacian", "none"),
    ("exponential", "none"),
    ("exponential", "mean"),
]


def literal_slices(steps: int, k: int) -> Tensor:
    """The paper's three assignments, read as they stand with 2T in place of "21"."""
    a = torch.zeros(2 * steps, 2 * steps, dtype=torch.float64)
    for i in range(steps):
        for j in range(max(0, i - k), min(steps - 1, i + k) + 1, 1):
            a[i, j] = a[steps + i, steps + j] = 1.0
        for j in range(steps + i, steps - 1, -k):
            a[i, j] = 1.0
        for j in range(steps + i, 2 * steps, k):
            a[i, j] = 1.0
    a[steps:, :steps] = a[:steps, steps:].T
    return a


def weighted(steps: int, k: int, weight: str, normalization: str, mask: Tensor) -> Tensor:
    """Weights by loops over a masked graph, straight from section 4.4."""
    a = literal_slices(steps, k) * mask[:, None] * mask[None]
    nodes = range(2 * steps)
    if weight == "exponential":
        s = steps
        decay = [
            [torch.exp(torch.tensor(-((i - j) ** 2) / (2 * s * s))) for j in nodes] for i in nodes
        ]
        a = a * torch.tensor(decay)
    if weight == "laplacian":
        a = a + torch.diag(mask.double())
    degree = a.sum(1).clamp(min=1e-300)
    if normalization == "mean":
        return torch.diag(1 / degree) @ a
    if normalization == "sym" or weight == "laplacian":
        root = torch.diag(degree**-0.5)
        return torch.nan_to_num(root @ a @ root)
    return a


@pytest.mark.parametrize(("steps", "k"), [*SHAPES, (8, 1), (8, 2), (40, 1), (40, 2), (40, 5)])
def test_equals_the_literal_slices(steps: int, k: int) -> None:
    expected = literal_slices(steps, k)
    graph = PairGraph(steps, k)
    assert torch.equal(graph.dense(torch.float64), expected)
    assert torch.equal(expected, expected.T)
    source, target = graph.edge_index()
    rebuilt = torch.zeros_like(expected).index_put((target, source), torch.ones(()).double(), True)
    assert torch.equal(rebuilt, expected)


@pytest.mark.parametrize(
    ("k", "edges", "degrees"), [(1, 3436, (42, 43)), (2, 1988, (23, 25)), (3, 1604, (18, 21))]
)
def test_edge_counts_at_forty_steps(k: int, edges: int, degrees: tuple[int, int]) -> None:
    edge_index = PairGraph(40, k).edge_index()
    assert edge_index.dtype == torch.long
    assert edge_index.shape == (2, edges)
    counts = edge_index[1].bincount()
    assert (int(counts.min()), int(counts.max())) == degrees
    assert int((edge_index[0] == edge_index[1]).sum()) == 80


def test_edges_are_sorted_by_target_then_source() -> None:
    source, target = PairGraph(6, 2).edge_index()
    key = target * 12 + source
    assert torch.equal(key, key.sort().values)
    assert len(key.unique()) == len(key)


@pytest.mark.parametrize(("weight", "normalization"), WEIGHTS)
@pytest.mark.parametrize(("steps", "k"), [(1, 1), (5, 2), (4, 9)])
def test_weights(steps: int, k: int, weight: str, normalization: str) -> None:
    graph = PairGraph(steps, k, weight, normalization=normalization)
    expected = weighted(steps, k, weight, normalization, torch.ones(2 * steps))
    torch.testing.assert_close(graph.dense(torch.float64), expected, rtol=1e-6, atol=1e-7)
    source, target = graph.edge_index()
    torch.testing.assert_close(graph.edge_weight(torch.float64), expected[target, source])


def test_exponential_counts_all_nodes_and_takes_a_scale() -> None:
    graph = PairGraph(5, 1, weight="exponential", scale=2.0)
    same_step = graph.dense(torch.float64)[0, 5]
    assert same_step.item() == pytest.approx(2.718281828459045 ** (-25 / 8))


@pytest.mark.parametrize(("weight", "normalization"), WEIGHTS)
@pytest.mark.parametrize(("steps", "k"), SHAPES)
def test_matmul_equals_the_dense_product(
    steps: int, k: int, weight: str, normalization: str
) -> None:
    graph = PairGraph(steps, k, weight, normalization=normalization)
    x = torch.randn(2, 3, 2 * steps, 4, dtype=torch.float64)
    expected = torch.einsum("ts,abse->abte", graph.dense(torch.float64), x)
    methods = ["auto", "dense"] + (["closed_form"] if weight != "exponential" else [])
    for method in methods:
        torch.testing.assert_close(graph.matmul(x, method=method), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            graph.matmul(x[0, 0], method=method), expected[0, 0], rtol=0, atol=1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "k"), [(2000, 1), (2000, 3), (1500, 64), (900, 901)])
def test_the_closed_form_does_not_cancel_in_float32(steps: int, k: int) -> None:
    # A large mean is what ruins differences of running sums.
    x = torch.randn(2 * steps, 3) + 1000.0
    graph = PairGraph(steps, k)
    exact = graph.matmul(x.double(), method="closed_form")
    torch.testing.assert_close(
        graph.matmul(x, method="closed_form").double(), exact, rtol=1e-5, atol=0
    )
    rows = torch.randint(2 * steps, (50,))
    torch.testing.assert_close(graph.dense(torch.float64)[rows] @ x.double(), exact[rows])


@pytest.mark.parametrize(("weight", "normalization"), WEIGHTS)
def test_mask_drops_the_edges_of_pads(weight: str, normalization: str) -> None:
    steps, k = 5, 2
    graph = PairGraph(steps, k, weight, normalization=normalization)
    mask = torch.rand(3, 2 * steps) < 0.6
    mask[1] = False  # nothing real
    mask[2] = True
    x = torch.randn(3, 2 * steps, 4, dtype=torch.float64)
    clean = x.masked_fill(~mask[..., None], 0)
    expected = torch.stack(
        [
            weighted(steps, k, weight, normalization, m.double()) @ c
            for m, c in zip(mask, clean, strict=True)
        ]
    )
    dirty = x.masked_fill(~mask[..., None], float("nan"))
    methods = ["dense"] + (["closed_form"] if weight != "exponential" else [])
    for method in methods:
        out = graph.matmul(dirty, mask, method=method)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)
        assert (out[~mask] == 0).all()
        torch.testing.assert_close(
            graph.matmul(x, mask[2], method=method), graph.matmul(x, method=method)
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "closed_form"])
def test_gradients(method: str) -> None:
    graph = PairGraph(4, 3, "laplacian")
    x = torch.randn(2, 8, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 8) < 0.7
    for used in (None, mask):

        def run(x: Tensor, used: Tensor | None = used) -> Tensor:
            return graph.matmul(x, used, method=method)

        assert torch.autograd.gradcheck(run, x, check_batched_grad=True)
        assert torch.autograd.gradcheck(run, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x: run(x).square(), x)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 40, 299, 400])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_blocks_of_the_closed_form_join_without_a_seam(
    k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = PairGraph(300, k)
    x = torch.randint(-8, 8, (2, 600, 3)).to(dtype)
    expected = (graph.dense(torch.float64) @ x.double()).to(dtype)
    for numbers in (1, 500, 1 << 18):
        monkeypatch.setattr("relocal_pyg.graph.BLOCK_NUMBERS", numbers)
        monkeypatch.setattr("relocal_pyg.graph.LARGE_BYTES", numbers)
        out = graph.matmul(x, method="closed_form")
        tolerance = 2.0 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(out, expected, rtol=0.02, atol=tolerance)
        spread = x[:1].expand(4, -1, -1).transpose(0, 1).contiguous().transpose(0, 1)
        torch.testing.assert_close(graph.matmul(spread, method="closed_form")[3], out[0])


@pytest.mark.parametrize("steps", [6, 110])
def test_a_transform_or_a_mode_leaves_nothing_behind_in_the_cache(steps: int) -> None:
    graph, x = PairGraph(steps, 2, "laplacian"), torch.randn(3, 2 * steps, 4)
    expected = graph.dense() @ x
    torch.func.grad(lambda x: graph.matmul(x).sum())(x)
    with FakeTensorMode() as mode:
        assert graph.matmul(mode.from_tensor(x)).shape == x.shape
    other = PairGraph(steps, 3)
    with FakeTensorMode() as mode:
        other.matmul(mode.from_tensor(x))
    torch.testing.assert_close(graph.matmul(x), expected)
    torch.testing.assert_close(other.matmul(x), other.dense() @ x)
    kept = _kept(PairGraph.dense, graph, x)
    assert torch.equal(copy.deepcopy(kept), graph.dense())
    assert pickle.dumps(kept)  # a wrapper of torch.func has no storage to write


def test_auto_uses_the_closed_form_for_long_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the dense matrix was built")

    monkeypatch.setattr("relocal_pyg.graph._kept", refuse)
    for k in (1, 3, 10):
        long = PairGraph(DENSE_STEPS_PER_BIT * k.bit_length() + 1, k)
        long.matmul(torch.randn(long.num_nodes, 2))
        short = PairGraph(DENSE_STEPS_PER_BIT * k.bit_length(), k)
        with pytest.raises(AssertionError, match="dense"):
            short.matmul(torch.randn(short.num_nodes, 2))


def test_a_cache_filled_in_inference_mode_serves_training() -> None:
    graph = PairGraph(9, 4, "laplacian")
    x = torch.randn(18, 2)
    with torch.inference_mode():
        graph.matmul(x, method="dense")
        graph.matmul(x, torch.ones(18, dtype=torch.bool), method="dense")
    leaf = x.clone().requires_grad_()
    graph.matmul(leaf, method="dense").sum().backward()
    graph.matmul(leaf, torch.ones(18, dtype=torch.bool), method="dense").sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * graph.dense().sum(0)[:, None].expand(18, 2))


def test_is_a_value() -> None:
    graph = PairGraph(8, 2)
    assert graph == PairGraph(8, 2) == copy.deepcopy(graph) == pickle.loads(pickle.dumps(graph))
    assert len({graph, PairGraph(8, 2), PairGraph(8, 3), PairGraph(8, 2, "laplacian")}) == 3
    with pytest.raises(AttributeError):
        graph.k = 3  # type: ignore[misc]
    assert "num_steps=8" in repr(graph)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 0},
        {"k": 0},
        {"weight": "gaussian"},
        {"normalization": "max"},
        {"weight": "laplacian", "normalization": "mean"},
        {"scale": -1.0},
        {"scale": float("nan")},
        *({name: count} for name in ("num_steps", "k") for count in (1.5, 2.0, True, None, "3")),
        {"k": float("nan")},
        {"k": float("inf")},
        {"scale": None},
    ],
)
def test_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        PairGraph(**arguments)  # type: ignore[arg-type]


def test_a_small_count_of_numpy_does_not_overflow() -> None:
    graph = PairGraph(np.int8(100), np.int8(2))  # type: ignore[arg-type]
    assert graph.num_nodes == 200
    assert torch.equal(graph.edge_index(), PairGraph(100, 2).edge_index())


def test_matmul_refuses_another_number_of_nodes_and_a_missing_closed_form() -> None:
    for x in (torch.randn(7, 2), torch.randn(8), torch.tensor(1.0)):
        with pytest.raises(UsageError, match="8 nodes"):
            PairGraph(4, 1).matmul(x)
    with pytest.raises(UsageError, match="method 'fast'"):
        PairGraph(4, 1).matmul(torch.randn(8, 2), method="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="closed form"):
        PairGraph(4, 1, "exponential").matmul(torch.randn(8, 2), method="closed_form")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile needs g++")
def test_compiles_without_a_graph_break() -> None:
    plain, weighted_graph = PairGraph(6, 2), PairGraph(6, 3, "laplacian")

    def run(x: Tensor, mask: Tensor) -> Tensor:
        first = plain.matmul(x, method="closed_form") + weighted_graph.matmul(x, method="dense")
        return first + weighted_graph.matmul(x, mask)

    x, mask = torch.randn(3, 12, 4), torch.rand(3, 12) < 0.7
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(x, mask), run(x, mask))


def test_whole_numbers_are_summed_but_not_averaged() -> None:
    counts = torch.randint(9, (8, 3))
    graph = PairGraph(4, 2)
    for method in ("dense", "closed_form"):
        assert torch.equal(graph.matmul(counts, method=method), graph.dense().long() @ counts)
    for other in (PairGraph(4, 2, "exponential"), PairGraph(4, 2, normalization="mean")):
        with pytest.raises(UsageError, match="whole numbers"):
            other.matmul(counts)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["dense", "closed_form"])
@pytest.mark.parametrize(
    ("weight", "normalization"), [("binary", "mean"), ("binary", "sym"), ("laplacian", "none")]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_short_and_complex_floats_are_normalised_as_others(
    dtype: torch.dtype, weight: str, normalization: str, method: str, masked: bool
) -> None:
    """403 neighbours of 300 are beyond the largest float16, and their number beyond bfloat16."""
    graph = PairGraph(400, 1, weight, normalization=normalization)  # type: ignore[arg-type]
    x = torch.randn(800, 2, dtype=dtype) + 300
    mask = torch.ones(800, dtype=torch.bool) if masked else None
    out = graph.matmul(x, mask, method)  # type: ignore[arg-type]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    wanted = graph.dense(torch.float64).to(wide) @ x.to(wide)
    assert out.dtype == dtype
    torch.testing.assert_close(out.to(wide), wanted, rtol=8e-3, atol=0)


def test_the_least_scale_leaves_each_node_to_itself() -> None:
    for scale in (1e-200, 5e-324):
        assert torch.equal(PairGraph(5, 2, "exponential", scale=scale).dense(), torch.eye(10))
