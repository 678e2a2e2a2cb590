"""R@1 and mIoU of ``relocal find`` on real actions: from mp4 files, nothing tuned, nothing trained.

python -m benchmarks.weizmann --root DATA

DATA holds ``clips/<action>/<performer>.mp4``, ``untrimmed/<performer>.mp4`` and
``annotations.json`` (``{performer: [{"label", "start", "end"}]}``, seconds): the Weizmann actions
of four classes and nine performers. Every action of one performer is looked for in the video of
every other: 288 pairs. The controls are the same network with random weights, and chance: a random
window of the same proposals.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.accuracy.worlds import own_and_mates, scores_of_clips
from relocal_pyg.models import Chance, ContrastMatcher, MultiGraphMatcher
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.moments import tiou
from relocal_pyg.video import Backbone, EfficientNetLite0, FeatureCache, VideoQuery, find_moments
from relocal_pyg.video.extract import extract_video

#: Pictures a second of the clips that are ranked in a folder.
RATE = 12.5


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    overlaps: torch.Tensor

    def text(self) -> str:
        shares = [
            float((self.overlaps >= threshold).float().mean()) for threshold in (0.3, 0.5, 0.7)
        ]
        numbers = " ".join(f"{value:>7.3f}" for value in [*shares, float(self.overlaps.mean())])
        return f"{self.name:<46} {len(self.overlaps):>4} {numbers}"


def main(root: Path, performers: int = 9, cache: Path | None = None) -> None:
    """Print the table.

    Args:
        root: Folder of the data.
        performers: Use the first so many.
        cache: Keep features here.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureCache(cache or Path(scratch))
        trained, untrained = EfficientNetLite0(), EfficientNetLite0(pretrained=False)
        print(f"{'':<46} {'N':>4} {'R@1 .3':>7} {'.5':>7} {'.7':>7} {'mIoU':>7}")
        for cut in (False, True):
            kind = "cut from its own video" if cut else "bare clip"
            pairs = list(all_pairs(root, performers, cut))
            systems: list[tuple[str, Backbone, Relocalizer | None]] = [
                ("contrast matcher", trained, ContrastMatcher()),
                ("pretrained matcher", trained, MultiGraphMatcher.pretrained()),
                ("control: untrained weights", untrained, None),
                ("control: chance", trained, Chance()),
            ]
            for name, backbone, model in systems:
                overlaps = measure(pairs, backbone, model, store)
                print(Row(f"{kind}, {name}", overlaps).text(), flush=True)
        clips = read_clips(root, trained, store)
        named = {"contrast matcher": ContrastMatcher(), "cosine of centred means": None}
        for name, each in {"pretrained matcher": MultiGraphMatcher.pretrained(), **named}.items():
            own, mate = ranks_in_folder(each, clips).mean(dim=0).tolist()
            title = f"folder of {len(clips)} clips, {name}"
            print(f"{title:<46} own {own:.2f}, one of its class {mate:.2f}", flush=True)


def all_pairs(
    root: Path, performers: int, cut: bool
) -> Iterator[tuple[VideoQuery, Path, list[list[float]]]]:
    """Query, reference and the true moments in it, for every pair of performers."""
    truths = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    names = sorted(truths)[:performers]
    for performer in names:
        for action in truths[performer]:
            query = VideoQuery(root / "clips" / action["label"] / f"{performer}.mp4")
            if cut:
                film = root / "untrimmed" / f"{performer}.mp4"
                query = VideoQuery(film, action["start"], action["end"])
            for other in names:
                same = [a for a in truths[other] if a["label"] == action["label"]]
                if other != performer and same:
                    moments = [[a["start"], a["end"]] for a in same]
                    yield query, root / "untrimmed" / f"{other}.mp4", moments


def measure(
    pairs: list[tuple[VideoQuery, Path, list[list[float]]]],
    backbone: Backbone,
    model: Relocalizer | None,
    cache: FeatureCache,
) -> torch.Tensor:
    """Overlap of the best answer with the nearest true moment, for every pair."""
    overlaps = []
    for query, reference, truths in pairs:
        found = find_moments(query, reference, backbone=backbone, model=model, cache=cache, top_k=1)
        best = found.moments[0]
        overlaps.append(float(tiou([best.start, best.end], truths).max()))
    return torch.tensor(overlaps)


def read_clips(
    root: Path, backbone: Backbone, cache: FeatureCache
) -> list[tuple[str, torch.Tensor]]:
    """Label and rows of every clip."""
    return [
        (file.parent.name, extract_video(file, backbone, RATE, cache=cache).features)
        for file in sorted((root / "clips").glob("*/*.mp4"))
    ]


def ranks_in_folder(
    model: Relocalizer | None, clips: list[tuple[str, torch.Tensor]]
) -> torch.Tensor:
    """Ranks ``[N, 2]`` of each clip itself, and of another of its action in their folder."""
    ranks = []
    for number, (label, query) in enumerate(clips):
        scores = scores_of_clips(model, query, [rows for _, rows in clips])
        mates = [n for n, (other, _) in enumerate(clips) if other == label and n != number]
        ranks.append(own_and_mates(scores, number, mates))
    return torch.tensor(ranks).double()


if __name__ == "__main__":
    tyro.cli(main)
