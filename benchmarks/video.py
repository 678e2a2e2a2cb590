"""Where the time of a search in one video goes: decoder, scaler, network, all of it.

python -m benchmarks.video FILE [--query-start 30 --query-seconds 3]

Processor time (of all threads) and wall time of each stage on the same file, in one run, and the
ratio to decoding every frame. The query is a stretch of the file itself, in features already, so
that the reference alone is measured; loading and converting the network is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from relocal_pyg.video import EfficientNetLite0, VideoQuery, cut_clip, find_moments, probe
from relocal_pyg.video.decode import droppable, grid, painter, pictures
from relocal_pyg.video.extract import sampling_rate


@dataclass(frozen=True)
class Stage:
    """What one stage took, in seconds, and how many pictures it handled."""

    name: str
    processor: float
    wall: float
    pictures: int


def main(
    file: tyro.conf.Positional[Path],
    query_start: float = 30.0,
    query_seconds: float = 3.0,
    scratch: Path = Path("query-of-benchmark.mp4"),
) -> None:
    """Print the table.

    Args:
        file: A video of several minutes.
        query_start: Seconds at which the query is cut out of it.
        query_seconds: Length of the query.
        scratch: Where the query is written for the run.
    """
    torch.set_num_threads(1)
    backbone = EfficientNetLite0()
    cut_clip(file, query_start, query_start + query_seconds, scratch, reencode=True)
    try:
        print_table(file, stages(file, VideoQuery(scratch), backbone))
    finally:
        scratch.unlink()


def stages(file: Path, query: VideoQuery, backbone: EfficientNetLite0) -> list[Stage]:
    """Measure every stage once, the cheap ones first."""
    info = probe(file)
    clip = probe(query.path)
    # Of a long file a picture is looked at every second step.
    rate = sampling_rate(clip.duration or 3.0, info.fps_nominal) / 2
    skip = droppable(file, rate)

    def decoded(skip: str) -> Callable[[], int]:
        return lambda: sum(1 for _ in pictures(file, report=print, skip=skip, apart=0.5))

    def scaled() -> int:
        paint = painter(file, backbone.size, backbone.interpolation)
        shown = grid(pictures(file, report=print, skip=skip), rate, early=0.5 / rate)
        return sum(1 for _, _, frame in shown if paint(frame).size)

    def searched(exhaustive: bool) -> Callable[[], int]:
        def run() -> int:
            found = find_moments(query, file, backbone=backbone, exhaustive=exhaustive)
            best = found.moments[0]
            print(
                f"  {found.settings['looked_at']}; {found.settings['share_seen']:.0%} of the "
                f"pictures; best {best.start:.2f} to {best.end:.2f} s"
            )
            pictures = found.reference_seconds * found.settings["frames_per_second"]
            return round(found.settings["share_seen"] * pictures)

        return run

    batch = torch.randint(0, 255, (32, *backbone.size, 3), dtype=torch.uint8)
    steps = round((info.duration or 0.0) * rate)

    def forward() -> int:
        for _ in range(-(-steps // 32)):
            backbone(batch)
        return steps

    work: Iterable[tuple[str, Callable[[], int]]] = [
        ("decode every frame", decoded("DEFAULT")),
        (f"decode, skip_frame={skip}", decoded(skip)),
        ("decode key frames", decoded("NONKEY")),
        ("decode and scale what is sampled", scaled),
        ("network alone", forward),
        ("search, exhaustive", searched(True)),
        ("search, key frames first", searched(False)),
    ]
    return [measured(name, run) for name, run in work]


def measured(name: str, run: Callable[[], int]) -> Stage:
    """Time one stage: all threads of this process."""
    processor, wall = time.process_time(), time.perf_counter()
    count = run()
    return Stage(name, time.process_time() - processor, time.perf_counter() - wall, count)


def print_table(file: Path, measured_stages: list[Stage]) -> None:
    """Print the stages, and their ratio to the first one."""
    info = probe(file)
    print(f"{file.name}: {info.duration:.0f} s, {info.width} x {info.height}, {info.codec}")
    print(
        f"{'':<36} {'cpu s':>8} {'wall s':>8} {'wall/cpu':>8} {'of decoding':>11} {'pictures':>9}"
    )
    for stage in measured_stages:
        print(
            f"{stage.name:<36} {stage.processor:>8.1f} {stage.wall:>8.1f} "
            f"{stage.wall / stage.processor:>8.2f} "
            f"{stage.processor / measured_stages[0].processor:>11.2f} {stage.pictures:>9}"
        )


if __name__ == "__main__":
    tyro.cli(main)
