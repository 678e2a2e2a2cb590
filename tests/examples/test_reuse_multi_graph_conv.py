"""The example of reuse keeps the accuracy that it states."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch_geometric.data import Data


@pytest.fixture(scope="module")
def example(load) -> ModuleType:
    return load("reuse_multi_graph_conv")


def test_exact_hops_against_matrix_powers(example: ModuleType) -> None:
    path = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    data = example.ExactHops(4)(Data(edge_index=path, num_nodes=5))
    for hop in (1, 2, 3, 4):
        pairs = set(map(tuple, data[f"edge_index_hop{hop}"].t().tolist()))
        assert pairs == {(i, j) for i in range(4) for j in range(4) if abs(i - j) == hop}
        assert torch.isfinite(data[f"edge_weight_hop{hop}"]).all()
    # The end of the path has one neighbour, which has two.
    first = data.edge_index_hop1.t().tolist().index([0, 1])
    assert data.edge_weight_hop1[first].item() == pytest.approx(2**-0.5)


@pytest.mark.slow
def test_reaches_the_stated_accuracy(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reuse_multi_graph_conv.py"])
    example.main()
    printed = capsys.readouterr().out
    assert float(printed.split()[-1]) > 0.95
    assert example.train(epochs=20, graphs=False) < 0.6
