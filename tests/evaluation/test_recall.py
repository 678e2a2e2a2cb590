from __future__ import annotations

import pytest
import torch

from relocal_pyg.errors import UsageError
from relocal_pyg.evaluation import oracle
from relocal_pyg.evaluation.metrics import recall_by_budget
from relocal_pyg.moments import tiou


def make_case(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def moments(count: int) -> torch.Tensor:
        start = torch.randint(40, (count, 1), generator=generator)
        return torch.cat([start, start + torch.randint(1, 30, (count, 1), generator=generator)], 1)

    return [moments(n) for n in (0, 1, 7, 40, 120)], [moments(n) for n in (2, 1, 3, 1, 2)]


def test_recall_is_that_of_the_best_of_the_first_proposals() -> None:
    for some, right in zip(*make_case(0), strict=True):
        budgets = (1, 5, 50)
        found = recall_by_budget(some, right, budgets)
        for row, budget in zip(found, budgets, strict=True):
            wanted = [max((tiou(p, t).item() for p in some[:budget]), default=0.0) for t in right]
            assert row.tolist() == pytest.approx(wanted, abs=1e-6)


def test_oracle_is_the_best_of_all_pairs() -> None:
    for some, right in zip(*make_case(1), strict=True):
        wanted = max((tiou(p, t).item() for p in some for t in right), default=0.0)
        assert oracle(some, right).item() == pytest.approx(wanted, abs=1e-6)


def test_more_proposals_never_recall_less() -> None:
    proposals, truths = make_case(2)
    values = recall_by_budget(proposals[4], truths[4], range(1, 130))
    assert (values.diff(dim=0) >= 0).all()
    assert (values[0] < values[-1]).any()


def test_a_budget_beyond_the_list_takes_the_whole_list() -> None:
    proposals, truths = make_case(3)
    few = recall_by_budget(proposals[2], truths[2], (7, 100))
    assert torch.equal(few[0], few[1])
    assert recall_by_budget(proposals[0], truths[0]).tolist() == [[0.0, 0.0]] * 5


def test_nothing_to_find_is_no_error() -> None:
    proposals, _ = make_case(3)
    with pytest.raises(UsageError, match="budget is 0"):  # it took all proposals
        recall_by_budget(proposals[2], torch.zeros(1, 2), (0,))
    assert oracle(proposals[2], torch.zeros(0, 2)).item() == 0
    assert recall_by_budget(proposals[2], torch.zeros(0, 2)).shape == (5, 0)
