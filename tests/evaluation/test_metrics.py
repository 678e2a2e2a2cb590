from __future__ import annotations

import copy
import json
import math
import pickle
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import MetricCollection

from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import (
    MomentMAP,
    best_tiou,
    check_monotone,
    length_buckets,
    map_at_1,
    stack_moments,
)
from relocal_pyg.evaluation.metrics import above

Span = tuple[int, int]
THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def exact_tiou(first: Span, second: Span) -> Fraction:
    """tIoU of whole-step ranges by counting steps."""
    one, other = set(range(*first)), set(range(*second))
    return Fraction(len(one & other), len(one | other)) if one | other else Fraction(0)


def random_spans(count: int, generator: torch.Generator, limit: int = 30) -> list[Span]:
    starts = torch.randint(limit, (count,), generator=generator)
    lengths = torch.randint(1, limit, (count,), generator=generator)
    return [(int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_a_collection_names_thresholds_with_its_prefix() -> None:
    """One metric alone in a collection, as in a Lightning module, was a TypeError."""
    together = MetricCollection([MomentMAP((0.5, 0.75))], prefix="val/", postfix="-x")
    found = together(torch.tensor([0.6, 0.2]))
    assert {name: value.item() for name, value in found.items()} == {
        "val/0.5-x": 0.5,
        "val/0.75-x": 0.0,
    }
    alone = MomentMAP((0.5,))(torch.tensor([0.6]))
    assert alone == {0.5: 1.0}
    assert json.loads(json.dumps([*alone])) == [0.5]
    (key,) = alone
    assert key + 1 == 1 + key == 1.5


def test_default_thresholds_are_those_of_the_paper() -> None:
    metric = MomentMAP()
    metric.update(torch.tensor([[0, 4]]), torch.tensor([[0, 4]]))
    assert list(metric.compute()) == list(THRESHOLDS)
    assert all(isinstance(key, float) for key in metric.compute())
    assert metric.compute()[0.5] == 1


@pytest.mark.parametrize("strict", [True, False])
def test_map_counts_exact_fractions(generator: torch.Generator, strict: bool) -> None:
    pred, true = random_spans(500, generator), random_spans(500, generator)
    metric = MomentMAP(strict=strict)
    metric.update(torch.tensor(pred), torch.tensor(true))
    overlaps = [exact_tiou(p, t) for p, t in zip(pred, true, strict=True)]
    for threshold, value in metric.compute().items():
        limit = Fraction(str(threshold))
        hits = sum(o > limit or (o == limit and not strict) for o in overlaps)
        assert value.item() == hits / 500
    if strict:
        assert map_at_1(best_tiou(torch.tensor(pred), torch.tensor(true))) == metric.compute()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shared", "total", "threshold"), [(3, 5, 0.6), (7, 10, 0.7), (9, 10, 0.9)]
)
def test_an_overlap_equal_to_the_threshold_is_not_above_it(
    dtype: torch.dtype, shared: int, total: int, threshold: float
) -> None:
    pred = torch.tensor([[0, shared]], dtype=dtype)
    true = torch.tensor([[0, total]], dtype=dtype)
    for strict in (True, False):
        metric = MomentMAP((threshold,), strict=strict)
        metric.update(pred, true)
        assert metric.compute()[threshold] == (not strict)


def test_updates_in_parts_and_merged_equal_one_update(generator: torch.Generator) -> None:
    pred = torch.tensor(random_spans(101, generator))
    true = torch.tensor(random_spans(101, generator))
    whole, parts, left, right = (MomentMAP(average=True) for _ in range(4))
    whole.update(pred, true)
    for rows in torch.arange(101).split(17):
        parts.update(pred[rows], true[rows])
    left.update(pred[:40], true[:40])
    right.update(pred[40:], true[40:])
    left.merge_state(right)
    assert parts.compute() == whole.compute() == left.compute()
    with pytest.raises(UsageError, match="the same thresholds"):
        MomentMAP().merge_state(MomentMAP((0.1, 0.3, 0.5, 0.7, 0.9)))
    assert 0 < whole.compute()[0.5] < 1


def test_metric_resets_copies_pickles_and_joins_a_collection() -> None:
    pred, true = torch.tensor([[0, 4]]), torch.tensor([[0, 5]])
    metric = MomentMAP((0.5, 0.9))
    assert metric(pred, true) == {0.5: 1, 0.9: 0}
    assert copy.deepcopy(metric).compute() == metric.compute()
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
    together = MetricCollection({"all": MomentMAP((0.5,)), "lax": MomentMAP((0.8,), strict=False)})
    together.update(pred, true)
    assert together.compute() == {0.5: 1, 0.8: 1}
    metric.reset()
    assert metric.total == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"thresholds": (0.5,)}, {"thresholds": (0.8,)}),
        ({"thresholds": (0.8,)}, {"thresholds": (0.8,), "strict": False}),
        ({"thresholds": (0.8, 0.5)}, {"thresholds": (0.5, 0.8)}),
    ],
)
def test_a_collection_counts_each_setting_for_itself(one: Any, other: Any) -> None:
    """The first batch is the same for both: a collection takes them for copies if it can."""
    batches = [torch.tensor([0.95, 0.1]), torch.tensor([0.8, 0.6, 0.9])]
    together = MetricCollection({"one": MomentMAP(**one), "other": MomentMAP(**other)})
    alone = [MomentMAP(**one), MomentMAP(**other)]
    for batch in batches:
        together.update(batch)
        for metric in alone:
            metric.update(batch)
    for name, metric in zip(("one", "other"), alone, strict=True):
        assert together[name].compute() == metric.compute()


def test_copies_in_a_collection_are_still_counted_once() -> None:
    together = MetricCollection({"one": MomentMAP(), "average": MomentMAP(average=True)})
    together.update(torch.tensor([0.9, 0.1]))
    assert len(together.compute_groups) == 1


def test_average_is_the_mean_over_five_thresholds_and_not_the_mean_tiou(
    generator: torch.Generator,
) -> None:
    pred = torch.tensor(random_spans(200, generator))
    true = torch.tensor(random_spans(200, generator))
    exact = [exact_tiou(p, t) for p, t in zip(pred.tolist(), true.tolist(), strict=True)]
    hits = [sum(o > Fraction(t, 10) for o in exact) for t in (5, 6, 7, 8, 9)]
    metric = MomentMAP((0.95,), average=True)
    metric.update(pred, true)
    average = metric.compute()["avg_mAP@1"].item()
    assert average == pytest.approx(sum(hits) / 5 / 200, abs=1e-12)
    assert abs(average - float(sum(exact)) / 200) > 0.05


def test_several_truths_and_recall_at_k(generator: torch.Generator) -> None:
    answers = [random_spans(5, generator) for _ in range(80)]
    truths = [random_spans(1 + i % 3, generator) for i in range(80)]
    pred, true = torch.tensor(answers), stack_moments(truths)
    for k in (1, 3, 5, 9):
        metric = MomentMAP()
        metric.update(pred[:, :k], true)
        for threshold, value in metric.compute().items():
            limit = Fraction(str(threshold))
            hits = sum(
                max(exact_tiou(a, t) for a in some[:k] for t in right) > limit
                for some, right in zip(answers, truths, strict=True)
            )
            assert value.item() == hits / 80
    first = MomentMAP()
    first.update(pred[:, 0], true)
    again = MomentMAP()
    again.update(pred[:, :1], true)
    assert first.compute() == again.compute()


def test_overlaps_are_float64_whatever_comes_in() -> None:
    """0.35 of a second at hour 27 is lost in float32, and so is the verdict."""
    pred = torch.tensor([[100_000.35, 100_001.0]], dtype=torch.float64)
    true = torch.tensor([[100_000.0, 100_001.0]], dtype=torch.float64)
    assert best_tiou(pred, true).item() == pytest.approx(0.65, abs=1e-9)
    assert best_tiou(pred.float(), true.float()).dtype == torch.float64
    assert MomentMAP()(pred, true)[0.6].dtype == torch.float64


def test_figures_are_fetched_from_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for the device a threshold would make counting slower than answering."""
    waits = 0
    for name in ("item", "tolist", "__float__", "__bool__"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, *args: object, original: Any = original) -> object:
            nonlocal waits
            waits += 1
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    metric = MomentMAP(tuple(i / 50 for i in range(51)))
    metric.update(torch.tensor([[0, 4]]), torch.tensor([[0, 5]]))
    metric.compute()
    assert waits <= 4


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(*[st.floats(-50, 50)] * 2, st.floats(0, 50), st.floats(0.01, 50)),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=60, deadline=None)
def test_never_rises_with_the_threshold(rows: list[tuple[float, float, float, float]]) -> None:
    pred = torch.tensor([[a, b] for a, b, _, _ in rows])
    true = torch.tensor([[s, s + length] for _, _, s, length in rows], dtype=torch.float64)
    metric = MomentMAP(tuple(i / 20 for i in range(21)))
    metric.update(pred, true)
    values = [value.item() for value in metric.compute().values()]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


def test_a_row_that_rises_is_refused() -> None:
    printed = {0.5: 49.28, 0.6: 49.05, 0.7: 49.30}  # Table 1 of the paper
    with pytest.raises(ValueError, match="rises from 49.05 at tIoU 0.6 to 49.3 at 0.7"):
        check_monotone(printed)
    check_monotone({0.7: 0.2, 0.5: 0.4})


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 2), r"\[2, 3\]"),
        (torch.zeros(2), torch.ones(2), r"\[2\]"),
        (torch.zeros(3, 2), torch.tensor([[0.0, 1.0]] * 2), "same N"),
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([[0.0, 1.0]]), "not finite"),
        (torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), "before it ends"),
        (torch.zeros(1, 0, 2), torch.tensor([[0.0, 1.0]]), "wanted"),
    ],
)
def test_bad_moments_are_refused(pred: Tensor, true: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MomentMAP().update(pred, true)


@pytest.mark.parametrize(
    "overlaps",
    [
        torch.tensor([[0.0, 10.0], [3.0, 9.0]]),  # moments whose truths were forgotten
        torch.tensor([[0.0, 1.0]]),
        torch.tensor(0.5),
        torch.tensor([0.5, math.nan]),
        torch.tensor([0.5, 1.1]),
        torch.tensor([-0.1]),
        torch.tensor([0, 2]),
        "overlaps",
    ],
)
def test_only_overlaps_come_without_truths(overlaps: Any) -> None:
    metric = MomentMAP()
    with pytest.raises(UsageError):
        metric.update(overlaps)
    assert metric.total == 0


@pytest.mark.parametrize("kind", [list, torch.tensor, torch.tensor([0]).new_tensor])
def test_known_overlaps_are_counted_in_any_form(kind: Any) -> None:
    metric = MomentMAP((0.5,))
    metric.update(kind([1, 0, 1, 1]))
    assert metric.compute() == {0.5: 0.75}


def test_bad_options_are_refused() -> None:
    with pytest.raises(UsageError, match="thresholds"):
        MomentMAP(())
    with pytest.raises(UsageError, match="thresholds"):
        MomentMAP((0.5, 1.5))


@pytest.mark.filterwarnings("ignore:.*compute.*update:UserWarning")
def test_no_query_gives_nan_and_not_zero() -> None:
    assert torch.isnan(MomentMAP().compute()[0.5])
    assert math.isnan(map_at_1(torch.zeros(0))[0.5])
    assert stack_moments([]).shape == (0, 1, 2)


def test_an_empty_answer_overlaps_nothing() -> None:
    assert best_tiou(stack_moments([[]]), torch.tensor([[0, 4]])).tolist() == [[0.0]]
    assert best_tiou(torch.tensor([[4, 0]]), torch.tensor([[0, 4]])).tolist() == [0.0]


def test_length_buckets_part_all_queries_once() -> None:
    lengths = torch.tensor([0.5, 9.99, 10.0, 29.9, 30.0, 500.0])
    buckets = length_buckets(lengths)
    assert torch.stack(list(buckets.values())).sum(dim=0).tolist() == [1] * 6
    assert [inside.sum().item() for inside in buckets.values()] == [2, 2, 2]
    assert list(length_buckets(lengths, (1.5,))) == ["< 1.5 s", ">= 1.5 s"]
    for wrong in ((), (30.0, 10.0)):  # falling ones put long truths among the short
        with pytest.raises(UsageError, match="rising"):
            length_buckets(lengths, wrong)
    whole = length_buckets(torch.tensor([1, 2]), (1.5,))  # bounds are not cut to whole numbers
    assert whole["< 1.5 s"].tolist() == [True, False]


def test_whole_overlaps_meet_thresholds_as_they_are() -> None:
    found = above(torch.tensor([0, 1]), (0.5, 1.0), strict=False)
    assert found.tolist() == [[False, False], [True, True]]


def test_one_threshold_and_lists_of_double_precision() -> None:
    metric = MomentMAP(0.5)
    metric.update([[0.1, 0.7], [0.0, 1.0]], [[0.1, 0.7], [5.0, 6.0]])
    assert {key: float(value) for key, value in metric.compute().items()} == {0.5: 0.5}
    assert best_tiou([[0.1, 0.7]], [[0.1, 0.7]]).dtype == torch.float64
    assert float(best_tiou([[0.1, 0.4]], [[0.1, 0.7]])) == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(UsageError, match="numbers"):
        metric.update("ab", "ab")
