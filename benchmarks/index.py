"""A search over many videos, against scoring every pair by the plain network.

``python -m benchmarks index`` compares models; ``python -m benchmarks.index --videos 10000 100000``
builds and searches indices of that many videos, to see what grows.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
import tyro
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import Table, alone, median_seconds, peak_mebibytes
from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pair_data import resample, resample_windows
from relocal_pyg.datasets.simulation import SimulatedFeatures
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import check_number
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.models import ContrastMatcher, MultiGraphMatcher, MultiGraphRelocalizer
from relocal_pyg.models.base import Relocalizer, TrainableRelocalizer
from relocal_pyg.models.compare import Comparison
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.search.index import Hit
from relocal_pyg.search.storage import index_proposals
from relocal_pyg.training import PAPER, RECOMMENDED, Preset, fit
from relocal_pyg.training.recipe import build_network

#: Proposals of a video.
WINDOWS = 100

COLUMNS = [
    "model, first stage",
    "build s",
    "MiB",
    "building a quarter +MiB",
    "building all +MiB",
    "query ms",
    "every pair plainly ms",
    "times",
    "every pair by the index ms",
    "recall@10",
]


def run(quick: bool) -> Table:
    """Every video of an index holds actions that the networks were not trained on."""
    classes, each = (2, 2) if quick else (100, 20)
    protocol = synthetic(SyntheticConfig(test_classes=classes, test_videos=each))
    items = protocol.splits["test"]
    names = sorted({item.video_id for item in items})
    videos = [(name, protocol.features.read(name), 0.5) for name in names]
    step = max(1, len(items) // 10)
    queries = [protocol.features.read(item.video_id, *item.moment) for item in items[::step]]
    table = Table(f"index: {len(videos)} videos x {WINDOWS} proposals", COLUMNS)
    # The last model takes half a minute to look at every pair: two queries are enough of that.
    models = {
        "contrast matcher": (ContrastMatcher(), 10),
        "recommended network": (_trained(protocol, quick), 10),
        "the paper's network": (_trained(protocol, quick, PAPER), 2),
    }
    for name, (model, count) in models.items():
        folder = Path(tempfile.mkdtemp())
        try:
            _measure(table, name, model, videos, queries[: 1 if quick else count], folder)
        finally:
            shutil.rmtree(folder)
    return table


def windows(num_steps: int) -> Tensor:
    """As many as :data:`WINDOWS` of those that an index takes by default."""
    found = index_proposals(num_steps)
    return found[torch.linspace(0, len(found) - 1, WINDOWS).long()]


def _trained(protocol: Protocol, quick: bool, preset: Preset = RECOMMENDED) -> TrainableRelocalizer:
    seed_torch(0, "weights")
    network = replace(preset.network, hidden_channels=16) if quick else preset.network
    model = build_network(network, protocol.features.dim)
    if not quick:
        fit(model, protocol, config=RECOMMENDED.training, show_progress=False)
    return model.eval()


def _measure(
    table: Table,
    name: str,
    model: Relocalizer,
    videos: Sequence[tuple[str, Tensor, float]],
    queries: Sequence[Tensor],
    folder: Path,
) -> None:
    def build(place: str, count: int) -> None:
        build_index(folder / place, model, videos[:count], proposals=windows)

    quarter = peak_mebibytes(lambda: build("quarter", len(videos) // 4))
    whole = peak_mebibytes(lambda: build("whole", len(videos)))
    start = measuring.clock()
    build("index", len(videos))
    built = measuring.clock() - start
    size = sum(f.stat().st_size for f in (folder / "index").rglob("*") if f.is_file()) / 2**20
    opened = SearchIndex(folder / "index", model)
    start = measuring.clock()
    exhaustive = [opened.search(query, first_stage=None) for query in queries]
    looked = (measuring.clock() - start) / len(queries)
    sample = videos[:: max(1, len(videos) // 40)]

    def plainly() -> None:
        for _, features, _ in sample:
            places = windows(len(features))
            with torch.no_grad():
                if isinstance(model, MultiGraphMatcher):
                    model([model.look(Comparison(queries[0], features), places)])
                elif isinstance(model, MultiGraphRelocalizer):
                    x, real = resample(queries[0], model.settings.num_steps)
                    shown, mask = resample_windows(features, places, model.settings.num_steps)
                    query = x.expand(len(places), -1, -1), real.expand(len(places), -1)
                    model.network(query[0], shown, model.graphs, query[1], mask)
                else:
                    model.rank(queries[0], features, places)

    plain = median_seconds(plainly, 3) * len(videos) / len(sample)
    for stage in ("scan", "faiss") if find_spec("faiss") else ("scan",):
        opened.search(queries[0], first_stage=stage)  # faiss makes its lists
        start = measuring.clock()
        found = [opened.search(query, first_stage=stage) for query in queries]
        query = (measuring.clock() - start) / len(queries)
        table.add(
            f"{name}, {stage}",
            built,
            size,
            quarter,
            whole,
            query * 1e3,
            plain * 1e3,
            plain / query,
            looked * 1e3,
            recall(exhaustive, found),
        )


def recall(wanted: Sequence[Sequence[Hit]], found: Sequence[Sequence[Hit]]) -> float:
    """Share of the wanted answers that were found, to a hundredth of a second; NaN for none."""

    def places(hits: Sequence[Hit]) -> set[tuple[str, float, float]]:
        return {(hit.video_id, round(hit.start, 2), round(hit.end, 2)) for hit in hits}

    pairs = [(places(one), places(other)) for one, other in zip(wanted, found, strict=True)]
    every = sum(len(one) for one, _ in pairs)
    return sum(len(one & other) for one, other in pairs) / every if every else math.nan


GROWTH = [
    "videos",
    "steps",
    "proposals",
    "build s",
    "videos/s",
    "building +MiB",
    "GiB",
    "open s",
    "open and verify s",
    "first query s",
    "query s",
    "searching +MiB",
    "every proposal s",
    "recall@10",
]


def main(
    videos: tuple[int, ...] = (10_000, 100_000),
    queries: int = 20,
    exhaustive: int = 5,
    folder: Path | None = None,
) -> None:
    """Measure how an index grows, with the contrast matcher, in processor time of one thread.

    Args:
        videos: Sizes, rising. Each index is of simulated videos of 40 to 130 steps of 64 channels.
        queries: Clips that are searched for.
        exhaustive: Of those, how many are also compared with every proposal of the index.
        folder: Where the indices are built and left; a temporary folder where left out.
    """
    torch.set_num_threads(1)
    measuring.use_clock("cpu")
    table = Table(f"index: {WINDOWS} proposals a video", GROWTH)
    place = Path(tempfile.mkdtemp()) if folder is None else folder
    try:
        for count in videos:
            _grow(table, count, queries, exhaustive, place / str(count))
            print(table.text(), flush=True)
    finally:
        if folder is None:
            shutil.rmtree(place)


def _grow(table: Table, count: int, queries: int, exhaustive: int, folder: Path) -> None:
    check_number(count, "videos", least=2, whole=True)
    classes = min(100, count // 2)
    config = SyntheticConfig(
        train_classes=1, val_classes=1, test_classes=classes, test_videos=count // classes
    )
    protocol = synthetic(config)
    assert isinstance(protocol.features, SimulatedFeatures)
    protocol.features.cached = 1
    items = protocol.splits["test"]
    names = sorted({item.video_id for item in items})
    chosen = items[:: max(1, len(items) // queries)][:queries]
    clips = [protocol.features.read(item.video_id, *item.moment) for item in chosen]
    model = ContrastMatcher()

    def build() -> tuple[float, int]:
        drawing, steps = 0.0, 0

        def drawn() -> Iterator[tuple[str, Tensor, float]]:
            nonlocal drawing, steps
            for name in names:
                start = measuring.clock()
                rows = protocol.features.read(name)
                drawing, steps = drawing + measuring.clock() - start, steps + len(rows)
                yield name, rows, 0.5

        start = measuring.clock()
        build_index(folder, model, drawn(), proposals=windows)
        return measuring.clock() - start - drawing, steps

    (built, steps), building = alone(build)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**30

    def search() -> list[float]:
        times = [measuring.clock()]
        SearchIndex(folder, model)
        times.append(measuring.clock())
        opened = SearchIndex(folder, model, verify=False)
        times.append(measuring.clock())
        opened.search(clips[0])
        times.append(measuring.clock())
        for clip in clips:
            opened.search(clip)
        times.append(measuring.clock())
        return [after - before for before, after in itertools.pairwise(times)]

    (verified, opening, first, asked), searching = alone(search)
    opened = SearchIndex(folder, model, verify=False)
    start = measuring.clock()
    wanted = [opened.search(clip, first_stage=None) for clip in clips[:exhaustive]]
    looked = (measuring.clock() - start) / max(1, exhaustive)
    found = [opened.search(clip) for clip in clips[:exhaustive]]
    table.add(
        *(len(names), steps, sum(int(shard.first_proposal[-1]) for shard in opened.shards)),
        *(built, len(names) / built, building, size, opening, verified, first),
        *(asked / len(clips), searching, looked, recall(wanted, found)),
    )


if __name__ == "__main__":
    tyro.cli(main)
