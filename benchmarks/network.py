"""A whole layer, a training step, and search, at the shape of the paper."""

from __future__ import annotations

import torch
from torch_geometric.data import Batch

from benchmarks.measuring import Table, interleaved, matmul_rate
from relocal_pyg.data import PairData
from relocal_pyg.models import MultiGraphRelocalizer
from relocal_pyg.nn import MultiGraphConv
from relocal_pyg.nn.products import FastProducts
from relocal_pyg.training import PAPER

#: The paper's T, d, K and L and our tests' tiny one.
PAPER_SIZE = {"num_steps": 40, "hidden_channels": 500, "ks": (1, 2, 3), "num_layers": 2}
TINY = {"num_steps": 6, "hidden_channels": 16, "ks": (1, 2), "num_layers": 2}


def layer(quick: bool) -> Table:
    size = TINY if quick else PAPER_SIZE
    model = _model(size)
    channels, steps = size["hidden_channels"], size["num_steps"]
    conv = MultiGraphConv(channels, channels, len(size["ks"]))
    batch = 2 if quick else 32
    x = torch.randn(batch, 2 * steps, channels, requires_grad=True)
    coo = _coo(model, batch)

    def both(stored: bool) -> None:
        x.grad = None
        with FastProducts():
            out = conv(x.flatten(0, 1), coo).view_as(x) if stored else conv(x, model.graphs)
        out.sum().backward()

    times = interleaved({"COO": lambda: both(True), "default": lambda: both(False)}, 5)
    table = Table(
        f"layer: MultiGraphConv, batch {batch}, forward + backward, float32",
        ["way", "ms", "times COO"],
    )
    for name, seconds in times.items():
        table.add(name, seconds * 1e3, times["COO"] / seconds)
    return table


def training_step(quick: bool) -> Table:
    size, count = (TINY, 3) if quick else (PAPER_SIZE, 32)
    model = _model(size).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=0.01)
    batches = {stored: _triplets(size, count, stored) for stored in (True, False)}

    def step(stored: bool, short: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        with FastProducts(), torch.autocast("cpu", torch.bfloat16, enabled=short):
            loss = model.training_losses(batches[stored])["loss"]
        loss.backward()
        optimizer.step()

    calls = {
        "COO, float32": lambda: step(True, False),
        "default, float32": lambda: step(False, False),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # an LSTM has no other way
        calls["COO, bf16-mixed"] = lambda: step(True, True)
        calls["default, bf16-mixed"] = lambda: step(False, True)
    times = interleaved(calls, 1 if quick else 5)
    table = Table(
        f"training step: {count} triplets, forward + backward + Adam",
        ["way", "ms", "times COO float32", "GFLOP/s of products"],
    )
    work = _training_flops(size, count)
    for name, seconds in times.items():
        ratio = times["COO, float32"] / seconds
        table.add(name, seconds * 1e3, ratio, work / seconds / 1e9 if "default" in name else "")
    return table


def search(quick: bool) -> Table:
    size, count = (TINY, 10) if quick else (PAPER_SIZE, 512)
    model = _model(size).eval()
    steps, width = size["num_steps"], size["hidden_channels"]
    query = 0.3 * torch.randn(steps, width)
    states = 0.3 * torch.randn(steps, count, width)
    part = min(count, 32)
    mask, coo, net = torch.ones(part, steps, dtype=torch.bool), _coo(model, part), model.network

    @torch.no_grad()
    def plain(stored: bool) -> torch.Tensor:
        graphs = coo if stored else model.graphs
        hidden = states.transpose(0, 1)
        pairs = query.expand(part, -1, -1)
        whole = count // part * part
        with FastProducts():
            parts = hidden[:whole].split(part)
            return torch.cat([net.fuse(pairs, h, graphs, mask, mask)[0] for h in parts])

    calls = {"plain, COO": lambda: plain(True), "plain, default": lambda: plain(False)}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        scoring = model.inference(dtype)
        calls[f"scorer, {name}"] = lambda s=scoring: s.score(query, None, states, None)[0]
    times = interleaved(calls, 1 if quick else 3)
    exact = torch.tanh(plain(True))
    table = Table(
        f"search: 1 query x {count} proposals, LSTM states kept",
        ["way", "ms", "pairs/s", "times plain COO", "largest difference"],
    )
    for name, call in calls.items():
        difference = (torch.tanh(call())[: len(exact)] - exact).abs().max().item()
        seconds = times[name]
        table.add(name, seconds * 1e3, count / seconds, times["plain, COO"] / seconds, difference)
    return table


def rates(quick: bool) -> Table:
    table = Table("matmul: the measured peak of this processor", ["type", "GFLOP/s"])
    size = 64 if quick else 1024
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        table.add(name, matmul_rate(dtype, size))
    x = torch.randn(size, size)
    table.add("float32, torch.mm alone", 2 * size**3 / interleaved({"": lambda: x @ x})[""] / 1e9)
    return table


def _model(size: dict) -> MultiGraphRelocalizer:
    torch.manual_seed(0)
    network = PAPER.network.__class__(**size)
    return MultiGraphRelocalizer.from_config(size["hidden_channels"], network)


def _coo(model: MultiGraphRelocalizer, batch: int) -> list[torch.Tensor]:
    shift = model.graphs[0].num_nodes * torch.arange(batch)
    return [(g.edge_index()[:, None] + shift[None, :, None]).flatten(1) for g in model.graphs]


def _triplets(size: dict, count: int, stored: bool) -> tuple[Batch, Batch]:
    width, steps = size["hidden_channels"], size["num_steps"]
    queries, near, far = torch.randn(3, count, steps + 5, width)

    def side(proposals: torch.Tensor) -> Batch:
        pairs = zip(queries, proposals, strict=True)
        return Batch.from_data_list(
            [
                PairData.from_features(
                    q, p, steps, size["ks"], materialize=stored, offsets=torch.zeros(1, 2)
                )
                for q, p in pairs
            ]
        )

    return side(near), side(far)


def _training_flops(size: dict, count: int) -> float:
    """Multiplications and additions of the products that the default path does."""
    width, steps, graphs = size["hidden_channels"], size["num_steps"], len(size["ks"])
    rows = 2 * count * 2 * steps
    layers = size["num_layers"] * graphs + (size["num_layers"] - 1) * graphs
    sums = size["num_layers"] * graphs * 2 * steps * width
    lstm = 3 * count * steps * 8 * width**2
    return 3 * 2 * (rows * (layers * width**2 + sums) + lstm)
