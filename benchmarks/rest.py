"""Loader, proposals, dynamic programming and import time."""

from __future__ import annotations

import time

import torch
from torch_geometric.loader import DataLoader

from benchmarks.measuring import Table, interleaved, median_seconds, run_python
from relocal_pyg.data.proposals import geometric_lengths, sliding_windows
from relocal_pyg.models import ContrastMatcher, FrameLevel, MultiGraphRelocalizer
from relocal_pyg.moments import nms
from relocal_pyg.training import PAPER


def loader(quick: bool) -> Table:
    """How long a training step waits for its triplets."""
    from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic

    sizes = {"train_classes": 6, "val_classes": 2, "test_classes": 2, "train_videos": 4}
    protocol = synthetic(SyntheticConfig(**sizes))
    count, steps = (2, 2) if quick else (32, 6)
    changes = {"hidden_channels": 8, "num_steps": 6} if quick else {}
    config = PAPER.network.__class__(**changes)
    table = Table(
        f"loader: share of a paper-shaped step ({count} triplets) spent waiting",
        ["edges", "wait ms", "step ms", "share %"],
    )
    for stored in (False, True):
        model = MultiGraphRelocalizer.from_config(protocol.features.dim, config).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        dataset = model.training_set(protocol, num_samples=count * steps, seed=0)
        dataset.materialize = stored
        waited = worked = 0.0
        clock = time.perf_counter()
        for batch in DataLoader(dataset, batch_size=count):
            got = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            model.training_losses(batch)["loss"].backward()
            optimizer.step()
            waited, worked = waited + got - clock, worked + time.perf_counter() - got
            clock = time.perf_counter()
        share = 100 * waited / (waited + worked)
        name = "stored" if stored else "none (default)"
        table.add(name, waited / steps * 1e3, worked / steps * 1e3, share)
    return table


def proposals(quick: bool) -> Table:
    table = Table("proposals", ["what", "ms"])
    num = 100 if quick else 5_000
    lengths = geometric_lengths(5, num // 10)
    windows = sliding_windows(num, lengths)
    scores = torch.rand(len(windows))
    table.add(
        f"{len(windows)} windows of {num} steps",
        median_seconds(lambda: sliding_windows(num, lengths)) * 1e3,
    )
    table.add(
        f"suppression of {len(windows)}", median_seconds(lambda: nms(windows, scores, 0.7)) * 1e3
    )
    features, query = torch.randn(num, 64), torch.randn(20, 64)
    table.add(
        f"contrast scores of {len(windows)}",
        median_seconds(lambda: ContrastMatcher().rank(query, features, windows)) * 1e3,
    )
    return table


def dynamic_programming(quick: bool) -> Table:
    table = Table("frame-level baseline: exact dynamic programming", ["query x reference", "ms"])
    for m, n in [(5, 20)] if quick else [(20, 200), (40, 400), (40, 1600)]:
        query, reference = torch.randn(m, 64), torch.randn(n, 64)
        whole = torch.tensor([[0.0, float(n)]])
        seconds = median_seconds(
            lambda q=query, r=reference, w=whole: FrameLevel().rank(q, r, w), 3
        )
        table.add(f"{m} x {n}", seconds * 1e3)
    return table


def imports(quick: bool) -> Table:
    table = Table("import time, fresh interpreters", ["what", "s", "times torch_geometric"])
    lines = {
        "import torch_geometric": "import torch_geometric",
        "import relocal_pyg": "import relocal_pyg",
        "import relocal_pyg.nn": "import relocal_pyg.nn",
        "relocal --help": "from relocal_pyg.apps.cli import main; main(['--help'])",
    }
    calls = {name: (lambda code=code: run_python(code)) for name, code in lines.items()}
    times = interleaved(calls, 1 if quick else 5)
    for name, seconds in times.items():
        table.add(name, seconds, seconds / times["import torch_geometric"])
    return table
