"""docs/pyg.md: its code runs, and what it names exists on both sides."""

from __future__ import annotations

import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

from relocal_pyg.graph import PairGraph
from relocal_pyg.models import Relocalizer
from relocal_pyg.nn import SumConv

TEXT = (Path(__file__).parents[1] / "docs" / "pyg.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::UserWarning")  # GraphGym without its extras says so
def test_the_code_runs_from_top_to_bottom():
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/pyg.md", "exec"), names)


def test_the_cheat_sheet_names_what_exists():
    names = re.findall(r"`((?:relocal_pyg|torch|torch_geometric)\.[\w.]+)`", TEXT)
    assert len(names) >= 16
    for name in names:
        assert pkgutil.resolve_name(name) is not None


def test_every_layer_and_model_is_in_the_generated_list():
    assert "<!-- cheat sheet -->" in TEXT
    table = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "conf.py"))["cheat_sheet"]()
    listed = re.findall(
        r"^\| \{py:class\}`~([\w.]+)` \| [\w`].*\. \| (?:yes|no) \|", table, re.MULTILINE
    )
    for room, kind in (("nn", torch.nn.Module), ("models", Relocalizer)):
        module = importlib.import_module(f"relocal_pyg.{room}")
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type) and issubclass(found, kind):
                assert f"{found.__module__}.{name}" in listed
    assert len(listed) == len(table.splitlines()) - 2 >= 20


def test_torch_scatter_sums_the_same():
    scatter = pytest.importorskip("torch_scatter")
    graph, x = PairGraph(7, 2), torch.randn(14, 5)
    source, target = graph.edge_index()
    wanted = scatter.scatter_add(x[source], target, dim=0, dim_size=14)
    torch.testing.assert_close(SumConv(5, 5).sum_neighbors(x, graph), wanted)
