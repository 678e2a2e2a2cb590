"""Does ``--all`` count? Drawn films in which one action comes 3 to 30 times among others.

python -m benchmarks.repetitions [FILMS] [SEED]

The query is one performance of the action by another figure in another place, inside its film. Of
three kinds of films, each as often: performances of several movements with other actions between
them; of one movement each, likewise; and runs of one to five movements back to back. Paces differ.
The films are drawn, written as mp4 and searched as ``relocal find --all`` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from relocal_pyg.io.seeding import generator
from relocal_pyg.moments import tiou
from relocal_pyg.video import VideoQuery, find_moments
from relocal_pyg.video.example import FILMS, Film, pictures

RATE = 25
#: Seconds of one movement at the usual pace.
MOVEMENT = 1 / 1.1
ACTIONS = ("jacks", "wave", "bend")
KINDS = ("performances", "movements", "runs")


@dataclass(frozen=True)
class Drawn:
    """One question.

    Attributes:
        query: Film of the query, and its seconds there.
        reference: The film to look in.
        truths: Seconds of every repetition.
        kind: One of :data:`KINDS`.
    """

    query: Path
    span: tuple[float, float]
    reference: Path
    truths: list[tuple[float, float]]
    kind: str


def draw(folder: Path, seed: int, number: int) -> Drawn:
    """Draw a query and a reference; the same for the same numbers."""
    rng = generator(seed, "repetitions", number)
    kind = KINDS[number % len(KINDS)]
    action = ACTIONS[rng.integers(len(ACTIONS))]
    others = ["walk", *(name for name in ACTIONS if name != action)]
    count = int(np.exp(rng.uniform(np.log(3), np.log(30.99))))

    def one() -> tuple[str, float, float]:
        movements = int(rng.integers(2, 5)) if kind == "performances" else 1
        pace = float(rng.uniform(0.75, 1.25))
        return action, movements * MOVEMENT / pace, pace

    def rest() -> tuple[str, float, float]:
        name = str(rng.choice(others))
        return name, float(rng.uniform(1.5, 4)), float(rng.uniform(0.75, 1.25))

    parts, left = [rest()], count
    while left:
        run = min(left, int(rng.integers(1, 6)) if kind == "runs" else 1)
        parts += [one() for _ in range(run)] + [rest()]
        left -= run
    around = [rest(), rest(), one(), rest(), rest()]
    query = folder / f"query-{number}.mp4", folder / f"film-{number}.mp4"
    spans = [
        write(file, film, own)
        for file, film, own in zip(query, FILMS.values(), (around, parts), strict=True)
    ]
    return Drawn(
        query[0],
        next(span for name, *span in spans[0] if name == action),
        query[1],
        [(start, end) for name, start, end in spans[1] if name == action],
        kind,
    )


def write(path: Path, look: Film, parts: list[tuple[str, float, float]]) -> list[tuple]:
    """Write a film of actions, each so many seconds long at some pace; gives name and seconds."""
    spans, count = [], 0
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
        for name, seconds, pace in parts:
            first = count
            for picture in played(look, name, seconds, pace):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = count, Fraction(1, RATE)
                output.mux(stream.encode(frame))
                count += 1
            spans.append((name, first / RATE, count / RATE))
        output.mux(stream.encode())
    return spans


def played(look: Film, name: str, seconds: float, pace: float) -> Iterator[NDArray[np.uint8]]:
    every = list(pictures(look._replace(actions=((name, seconds * pace + 1),))))
    for number in range(round(seconds * RATE)):
        yield every[int(number * pace)]


def main(films: int = 50, seed: int = 1, /) -> None:
    """Count in so many films, drawn by a seed."""
    near, once, held = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(films):
            drawn = draw(Path(folder), seed, number)
            query = VideoQuery(drawn.query, *drawn.span)
            found = find_moments(query, drawn.reference, every=True)
            count, truths = found.count, torch.tensor(drawn.truths)
            assert count is not None
            spans = torch.tensor([[each.start, each.end] for each in found.moments]).reshape(-1, 2)
            hits = (tiou(spans[:, None], truths[None]) > 0.5).sum(dim=0)
            near.append(abs(count.number - len(truths)) <= 1)
            once += (hits == 1).tolist()
            held.append(count.low <= len(truths) <= count.high)
            print(f"{drawn.kind:>12}: {len(truths):>2} times, counted {count.number}", flush=True)
    for words, what in (
        ("films whose count is off by at most one", near),
        ("repetitions found exactly once at tIoU .5", once),
        ("films whose count lies in its 95 % interval", held),
    ):
        print(f"{words}: {np.mean(what):.1%} of {len(what)}")


if __name__ == "__main__":
    tyro.cli(main)
