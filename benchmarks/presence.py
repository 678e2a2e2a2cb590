"""Where the coefficients of presence without labels come from: ``python -m benchmarks.presence``.

Pairs are drawn from simulated worlds, half of which hold the action; of those that do not some show
nothing that means anything: random walks, noise, stills, fades, pans, slides. Two logistics are
fitted, presence whatever is answered, and moments to the pretrained matcher's answers, and checked
on worlds of other seeds and wider ranges.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import make_null_pairs, make_pairs
from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.datasets.endless import Rows, draw_world
from relocal_pyg.datasets.simulation import WorldConfig
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.evaluation.statistics import auroc_interval, calibration_error
from relocal_pyg.io.seeding import generator
from relocal_pyg.models import ContrastMatcher, MultiGraphMatcher
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.presence import FACTS, Logistic, moment_facts
from relocal_pyg.moments import tiou
from relocal_pyg.training.pretrain import draw_query, same_footage
from relocal_pyg.training.validation import fit_best

#: Windows that a model chooses from, about.
WINDOWS = 1000
#: Videos in which nothing happens.
NOTHING = ("walk", "noise", "constant", "fade", "pan", "slides")


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]``, or None for a bare clip.
        truths: ``[K, 2]`` in steps; empty where the reference does not hold the action.
        kind: What it is one of, for the tables.
    """

    query: Tensor
    reference: Tensor
    query_video: Tensor | None
    truths: Tensor
    kind: str


def nothing(
    rng: np.random.Generator, kind: str, count: int, width: int, keep: float | None = None
) -> Rows:
    """A video ``[count, width]`` in which nothing happens.

    Args:
        rng: Where chance comes from.
        kind: One of :data:`NOTHING`.
        count: Steps.
        width: Channels.
        keep: How much of a walk stays from step to step; .9 to .99 where None.
    """
    scale = np.exp(rng.choice([0.0, 1.0]) * rng.normal(size=width))
    level = rng.choice([0.0, 1.0, 4.0]) * rng.normal(size=width)
    grain = rng.choice([0.0, 0.001, 0.02]) * rng.normal(size=(count, width))
    step = np.arange(count)
    if kind == "walk":
        keep = float(1 - 10 ** -rng.uniform(1, 2)) if keep is None else keep
        rows = rng.normal(size=(count, width))
        for now in range(1, count):
            rows[now] = keep * rows[now - 1] + np.sqrt(1 - keep**2) * rows[now]
    elif kind == "noise":
        rows = rng.normal(size=(count, width))
    elif kind == "constant":
        rows = grain
    elif kind == "fade":
        first, last = 2 * rng.normal(size=(2, width))
        edges = np.sort(rng.uniform(0, count, 2)) if rng.random() < 0.5 else (0, count)
        share = np.clip((step - edges[0]) / max(edges[1] - edges[0], 1), 0, 1)[:, None]
        rows = (1 - share) * first + share * last + grain
    elif kind == "pan":
        knots = rng.normal(size=(int(rng.integers(3, 9)), width))
        place = step / count * (len(knots) - 1)
        low = place.astype(np.int64)
        share = (0.5 - 0.5 * np.cos(np.pi * (place - low)))[:, None]
        rows = (1 - share) * knots[low] + share * knots[low + 1] + grain
    else:
        stills = rng.normal(size=(int(rng.integers(2, 12)), width))
        rows = stills[np.sort(rng.integers(0, len(stills), count))] + grain
    return (rows * scale + level).astype(np.float32)


def endless(seed: int, count: int, *, wide: bool = False) -> Iterator[Asked]:
    """Questions from worlds without end, each from one of its own; half hold the action."""
    for number in range(count):
        rng = generator(seed, "presence", number)
        world = draw_world(rng, wide=wide)
        query, video = draw_query(world)
        chance, held = rng.random(), rng.random() < 0.5
        answers = int(rng.integers(1, world.staging.answers + 1))
        kind: str = world.look.kind
        truths: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
        if held:
            copy = same_footage(rng, query) if chance < 0.1 else None
            cover = 0.1 <= chance < 0.16
            scene = world.video(1 if chance < 0.16 else answers, cover=cover, copy=copy)
            rows, truths = scene.rows, scene.truths
        elif chance < 0.55:
            # As long as those that hold the action.
            world.staging = replace(world.staging, room=world.staging.room + answers)
            rows = world.video(0).rows
        elif chance < 0.67:
            other = world.others[int(rng.integers(len(world.others)))]
            rows = world.video(answers, cover=chance < 0.59, action=other).rows
        else:
            kind = NOTHING[rng.integers(len(NOTHING))]
            steps = int(min(1500, max(5, len(query) * np.exp(rng.uniform(0, 3.5)))))
            if chance < 0.9:
                video = nothing(rng, NOTHING[rng.integers(len(NOTHING))], len(video), len(video.T))
                start = int(rng.integers(0, len(video) - len(query) + 1))
                query = video[start : start + len(query)]
            rows = nothing(rng, kind, steps, len(video.T))
        whole = None if rng.random() < 0.5 else torch.from_numpy(video)
        spans = torch.from_numpy(np.asarray(truths, dtype=np.float64)).reshape(-1, 2)
        yield Asked(torch.from_numpy(query.copy()), torch.from_numpy(rows), whole, spans, kind)


def staged(seed: int, worlds: int) -> Iterator[Asked]:
    """Questions from worlds like that of the synthetic protocol, of many sizes and strengths."""
    for number in range(worlds):
        rng = generator(seed, "presence", "staged", number)
        protocol = _draw_protocol(rng, seed * 1000 + number)
        threshold = rng.uniform(0.3, 1.2) if rng.random() < 0.3 else None
        items = protocol.splits["test"]
        pairs = make_pairs(items, split="test", protocol=protocol.name).pairs[:6]
        for pair in (*pairs, *make_null_pairs(protocol, "test").pairs[:6]):
            sides = (protocol.query(pair.query), protocol.reference(pair.reference))
            around = protocol.reference(pair.query)
            if threshold is not None:
                query, reference, around = (
                    torch.relu(rows - threshold * rows.std()) for rows in (*sides, around)
                )
            else:
                query, reference = sides
            truths = torch.tensor(pair.reference.truths, dtype=torch.float64).reshape(-1, 2)
            bare = rng.random() < 0.5
            yield Asked(query, reference, None if bare else around, truths, "staged")


def _draw_protocol(rng: np.random.Generator, seed: int) -> Protocol:
    channels, core = int(rng.choice([16, 32, 64, 128, 256])), int(rng.integers(1, 4))
    ranges = {
        "noise": (0.3, 1.5),
        "style": (0.2, 2),
        "drift": (0.2, 1.6),
        "variation": (0.1, 0.7),
        "activity": (0, 0.8),
        "scene": (0, 1),
        "core_shown": (0.5, 1),
        "optional_shown": (0.1, 0.7),
        "pace": (1.2, 5),
        "drift_steps": (4, 40),
        "distractors": (0.1, 0.9),
        "partial": (0, 0.6),
    }
    width = min(int(channels * rng.uniform(0.1, 0.5)), channels - 4)
    strengths: dict[str, Any] = {name: float(rng.uniform(*ends)) for name, ends in ranges.items()}
    world = WorldConfig(
        seed=seed,
        channels=channels,
        nuisance_channels=width,
        core=core,
        sub_actions_per_theme=10 if core == 1 else 6,
        **strengths,
    )
    shortest = int(rng.choice([4, 6, 10]))
    usual = int(shortest * rng.uniform(1.3, 2.5))
    longest = int(usual * rng.uniform(1.5, 3))
    return synthetic(
        SyntheticConfig(
            world=world,
            shortest_moment=shortest,
            usual_moment=usual,
            longest_moment=longest,
            shortest_reference=max(40, 2 * longest),
            longest_reference=max(130, int(longest * rng.uniform(4, 10))),
            train_classes=8,
            train_videos=2,
            val_videos=2,
            test_videos=2,
        )
    )


def unrelated(seed: int, kind: str, count: int, keep: float | None = None) -> Iterator[Asked]:
    """Two videos of one kind of nothing that have nothing to do with each other."""
    for number in range(count):
        rng = generator(seed, "unrelated", kind, keep, number)
        width = int(rng.choice([16, 64, 128, 512]))
        lengths = int(rng.integers(40, 200)), int(rng.integers(40, 400))
        video, reference = (
            torch.from_numpy(nothing(rng, kind, steps, width, keep)) for steps in lengths
        )
        size = int(rng.integers(6, min(30, lengths[0] // 3)))
        start = int(rng.integers(0, lengths[0] - size))
        query, whole = video[start : start + size], None if rng.random() < 0.5 else video
        name = kind if keep is None else f"{kind} {keep}"
        yield Asked(query, reference, whole, torch.zeros(0, 2), name)


def answer(asked: Asked, model: Relocalizer, count: int = 3) -> tuple[Tensor, Tensor]:
    """Facts ``[A, 11]`` of a model's best answers, and which of them are right."""
    proposals = default_proposals(len(asked.reference), len(asked.query), limit=WINDOWS)
    ranking = model.rank(asked.query, asked.reference, proposals, query_video=asked.query_video)
    found = ranking.best(len(asked.reference), count)
    moments = torch.tensor([[each.start, each.end] for each in found])
    facts = moment_facts(asked.query, asked.reference, moments, asked.query_video)
    overlap = tiou(moments[:, None].double(), asked.truths[None].double())
    return facts[:, :-1], (overlap > 0.5).any(dim=1).double()


def gather(stream: Iterable[Asked], model: Relocalizer) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Facts ``[N, 3, V]`` of the answers, right ``[N, 3]``, held ``[N]``, and kinds.

    Where there are fewer than three answers the first stands for the others.
    """
    rows, right, held, kinds = [], [], [], []
    for asked in tqdm(stream, unit="pair"):
        facts, hits = answer(asked, model)
        filled = [*range(len(facts)), 0, 0][:3]
        rows.append(facts[filled])
        right.append(hits[filled])
        held.append(float(len(asked.truths) > 0))
        kinds.append(asked.kind)
    return torch.stack(rows), torch.stack(right), torch.tensor(held), kinds


def fit_presence(facts: Tensor, held: Tensor, kinds: list[str]) -> Logistic:
    """From what :func:`gather` gives."""
    # Nothing counts four times: a false alarm there is worse than a doubt elsewhere.
    times = torch.tensor([4 if kind in NOTHING else 1 for kind in kinds])
    group = torch.arange(len(held)).repeat_interleave(times)
    return fit_best(facts[group, 0, : len(FACTS)], held[group], group)


def fit_moment(facts: Tensor, right: Tensor) -> Logistic:
    """From what :func:`gather` gives."""
    group = torch.arange(len(right)).repeat_interleave(right.shape[1])
    return fit_best(facts.flatten(0, 1), right.flatten(), group)


def report(name: str, values: Tensor, happened: Tensor) -> str:
    """One line about probabilities ``[N]`` and what happened ``[N]``."""
    places = [[str(n) for n in range(int(c))] for c in (happened.sum(), (1 - happened).sum())]
    yes, no = values[happened > 0], values[happened == 0]
    if not len(yes) or not len(no):
        return f"{name}: N {len(values)}, all of one kind: ask for more"
    area, low, high = auroc_interval(yes[None], no[None], *places)
    error, chance = calibration_error(values, happened)
    shares = (100 * float((each >= 0.5).float().mean()) for each in (yes, no))
    return (
        f"{name}: N {len(values)}, AUROC {100 * area:.1f} ({100 * low:.1f} to {100 * high:.1f}), "
        f"ECE {100 * error:.1f} (by chance {100 * chance:.1f}), "
        ".5 or more in {:.0f} % of what is so, {:.0f} % of what is not".format(*shares)
    )


def main() -> None:
    """Draw, fit, check, and print what stands in :mod:`relocal_pyg.models.presence`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presence", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1300, help="from worlds without end")
    parser.add_argument("--worlds", type=int, default=90, help="like the synthetic protocol's")
    parser.add_argument("--judged", type=int, default=600, help="that the pretrained one answers")
    parser.add_argument("--held-out", type=int, default=300, help="pairs of wider ranges")
    parser.add_argument("--draws", type=int, default=200, help="of each kind of nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    matcher, pretrained = ContrastMatcher(), MultiGraphMatcher.pretrained()
    stream = chain(endless(21, options.pairs), staged(22, options.worlds))
    facts, _, held, kinds = gather(stream, matcher)
    presence = fit_presence(facts, held, kinds)
    facts, right, _, _ = gather(endless(25, options.judged), pretrained)
    moment = fit_moment(facts, right)
    for name, found in (("_PRESENCE", presence), ("_MOMENT", moment)):
        print(f"{name} = Logistic(")
        for part in (found.mean, found.scale, found.weights):
            print("    (" + ", ".join(f"{value:.4f}" for value in part) + "),")
        print(f"    {found.bias:.4f},\n)")
    facts, right, held, _ = gather(endless(23, options.held_out, wide=True), pretrained)
    told = presence(facts[:, 0, : len(FACTS)])
    print(report("held-out worlds, present", told, held))
    print(report("held-out worlds, right", torch.minimum(moment(facts[:, 0]), told), right[:, 0]))
    for kind in NOTHING:
        for keep in (0.9, 0.95, 0.99) if kind == "walk" else (None,):
            facts = gather(unrelated(24, kind, options.draws, keep), matcher)[0]
            alarms = int((presence(facts[:, 0, : len(FACTS)]) >= 0.5).sum())
            print(f"two videos of {kind} {keep or ''}: {alarms} false alarms of {options.draws}")


if __name__ == "__main__":
    main()
