"""``python -m benchmarks.accuracy.worlds [RUN ...]``: held-out worlds, where designs are chosen.

Worlds of other seeds than any training, from ranges a quarter wider. No real set is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.accuracy.recipes import FREE
from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.datasets.endless import KINDS, World, draw_world
from relocal_pyg.io.seeding import generator
from relocal_pyg.models import ContrastMatcher, Relocalizer, load_model
from relocal_pyg.models.compare import cosines
from relocal_pyg.moments import tiou
from relocal_pyg.training.pretrain import draw_query, same_footage

#: Clips in a folder, of one of the world's nine classes each.
CLIPS = 20


@dataclass(frozen=True)
class Case:
    """One query in one reference.

    Attributes:
        families: What it counts for in the table.
        known: What a model is told beside them.
    """

    families: tuple[str, ...]
    query: Tensor
    reference: Tensor
    truths: Tensor
    known: dict[str, Tensor | float | None]


def draw_cases(count: int) -> Iterator[Case]:
    """``count`` pairs, every kind of features as often as any other, the same ones every time."""
    for number in range(count):
        rng = generator(5, "held out", number)
        kind = KINDS[number % len(KINDS)]
        world = draw_world(rng, kind=kind, wide=True)
        query, video = draw_query(world)
        copied = number % 8 == 7
        copy = same_footage(rng, query) if copied else None
        reference = world.video(1 if copied else int(rng.integers(1, 4)), copy=copy)
        second = world.staging.second
        families = (
            "all",
            kind,
            f"order: {world.actions.order}",
            "lengths differ" if world.actions.tempo > 0.6 else "lengths alike",
            "seconds known" if second else "seconds unknown",
            *(["copies"] if copied else []),
        )
        known: dict[str, Tensor | float | None] = {
            "query_video": torch.from_numpy(video) if rng.random() < 0.6 else None,
            "seconds_per_step": 1 / second if second else None,
        }
        rows = torch.from_numpy(reference.rows)
        truths = torch.from_numpy(reference.truths)
        yield Case(families, torch.from_numpy(query), rows, truths.double(), known)


def overlap(model: Relocalizer, case: Case) -> float:
    """tIoU of the first answer with the nearest truth."""
    windows = default_proposals(len(case.reference), len(case.query), limit=1500)
    best = model.rank(case.query, case.reference, windows, **case.known).moments[0]
    return float(tiou(best.double(), case.truths).max())


@torch.no_grad()
def scores_of_clips(model: Relocalizer | None, query: Tensor, clips: Sequence[Tensor]) -> Tensor:
    """How well each clip of a folder answers a query, ``[N]``: the score of its best window.

    Args:
        model: None for the cosine of means centred by the mean of the folder.
        query: ``[m, F]``.
        clips: ``[n, F]`` each.
    """
    background = torch.cat(list(clips)).mean(dim=0)
    if model is None:
        means = torch.stack([rows.mean(dim=0) for rows in (query, *clips)]) - background
        return cosines(means[:1], means[1:])[0]
    windows = [default_proposals(len(clip), len(query), limit=500) for clip in clips]
    found = model.rank_videos(query, clips, windows, background=background)
    return torch.stack([ranking.scores[0] for ranking in found])


def own_and_mates(scores: Tensor, own: int, mates: Sequence[int]) -> list[float]:
    """Rank of the query's own clip, and of another of its class beside those of other classes.

    The second is that of a folder with a single class mate, the mean over which one it is.
    """
    others = torch.ones(len(scores), dtype=torch.bool)
    others[[own, *mates]] = False
    ahead = (scores[others][None] >= scores[list(mates)][:, None]).sum(dim=1)
    return [1 + float((scores > scores[own]).sum()), 1 + float(ahead.double().mean())]


def ranks_in_folders(model: Relocalizer | None, count: int) -> Tensor:
    """:func:`own_and_mates` ``[count, 2]`` in folders of clips that are nothing but an action."""
    ranks = []
    for number in range(count):
        clips, mates = _folder(draw_world(generator(5, "held-out folder", number), wide=True))
        ranks.append(own_and_mates(scores_of_clips(model, clips[0], clips), 0, mates))
    return torch.tensor(ranks).double()


def _folder(world: World) -> tuple[list[Tensor], list[int]]:
    """Clips that hold nothing but an action, the query first, and which show its class."""
    clips, mates = [world.video(1, cover=True)], [1, 2]
    clips += [world.video(1, cover=True) for _ in mates]
    for number in range(CLIPS - len(clips)):
        action = world.others[number % len(world.others)]
        clips.append(world.video(1, cover=True, action=action))
    return [torch.from_numpy(clip.rows) for clip in clips], mates


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    count: int = 240,
    folders: int = 48,
) -> None:
    """Print hits at tIoU .5 and .7 and mean tIoU, in percent, and ranks in folders.

    Args:
        runs: Checkpoints of ``relocal pretrain`` beside what needs no run.
        count: Pairs.
        folders: Folders of 20 clips.
    """
    torch.set_num_threads(1)
    systems: dict[str, Callable[[], Relocalizer]] = {"Contrast matcher": ContrastMatcher, **FREE}
    systems |= {str(run): lambda run=run: load_model(run) for run in runs}  # type: ignore[misc]
    cases = list(draw_cases(count))
    families = list(dict.fromkeys(name for case in cases for name in case.families))
    for name, make in systems.items():
        model = make()
        found = np.array([overlap(model, case) for case in cases])
        print(name)
        for family in families:
            own = found[[family in case.families for case in cases]]
            hits = f"{100 * (own > 0.5).mean():5.1f} {100 * (own > 0.7).mean():5.1f}"
            print(f"  {family:<18} {len(own):>4} {hits} {100 * own.mean():5.1f}", flush=True)
        print(_ranks(model, folders))
    print("Cosine of means, centred by the folder")
    print(_ranks(None, folders))


def _ranks(model: Relocalizer | None, folders: int) -> str:
    own, mate = ranks_in_folders(model, folders).mean(dim=0).tolist()
    return f"  rank in {folders} folders: own file {own:.2f}, one of its class {mate:.2f}"


if __name__ == "__main__":
    tyro.cli(main)
