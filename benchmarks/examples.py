"""What further examples and a round of feedback are worth, on real videos.

python -m benchmarks.examples DATA [--asked N] [--sets weizmann 50salads] [--models contrast]

Asked is for an action in a video of somebody else. With K examples, each a stretch of a video of
its own, the model is asked as ``find --query A --query B ...`` asks it. A round of feedback: one
example is looked for in six other videos; of the answers, best first, somebody says yes to the
first three right ones (tIoU .5) and no to the first three that share less than a tenth with
anything right; with those as examples the video is asked again. Nothing is trained on these sets,
so every class is unseen.

Of the same questions, in every row: the share whose first answer is right (tIoU > .5), and the
share of all occurrences that the first five answers hold; 95 % intervals over videos, also of the
difference to one example.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.accuracy.sets import load
from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.evaluation.statistics import bootstrap_interval
from relocal_pyg.io.seeding import generator
from relocal_pyg.models import ContrastMatcher, MultiGraphMatcher
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.examples import ByExamples, Example
from relocal_pyg.moments import Moment, tiou

MODELS = {"contrast": ContrastMatcher, "pretrained": MultiGraphMatcher.pretrained}
#: Videos judged in a round; judgements of each kind; answers of a question.
JUDGED, SAID, ANSWERS = 6, 3, 5
ROWS = ("1 example", "2 examples", "5 examples", "1 example and a round of feedback")


@dataclass(frozen=True)
class Question:
    """An action to look for.

    Attributes:
        reference: The video to look in.
        truths: Where it is there, in steps.
        examples: Items of other people, five of them, each of a video of its own.
        others: Yet other videos, whose answers are judged, and where it is there.
    """

    reference: str
    truths: list[tuple[int, int]]
    examples: tuple[Item, ...]
    others: tuple[tuple[str, list[tuple[int, int]]], ...]


def questions(protocol: Protocol, count: int, seed: int) -> Iterator[Question]:
    """Draw questions: a class and a reference uniformly, the same for the same numbers."""
    by_label: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in sorted(item for items in set(protocol.splits.values()) for item in items):
        if item.label != "background":
            by_label[item.label][item.video_id].append(item)
    every = [(label, video) for label, videos in by_label.items() for video in videos]
    rng = generator(seed, "questions")
    for place in rng.permutation(len(every))[:count]:
        label, video = every[place]
        videos = by_label[label]
        subject = videos[video][0].subject
        others = [
            name
            for name, items in videos.items()
            if name != video and (subject is None or items[0].subject != subject)
        ]
        if len(others) > 5:
            drawn = [others[number] for number in rng.permutation(len(others))]
            examples = [videos[name][int(rng.integers(len(videos[name])))] for name in drawn[:5]]
            judged = [(name, _truths(videos[name])) for name in drawn[5 : 5 + JUDGED]]
            yield Question(video, _truths(videos[video]), tuple(examples), tuple(judged))


def _truths(items: list[Item]) -> list[tuple[int, int]]:
    return sorted({item.moment for item in items})


class Asker:
    """One model on the videos of one protocol."""

    def __init__(self, model: Relocalizer, protocol: Protocol) -> None:
        self.model, self.protocol = model, protocol

    def example(self, item: Item) -> Example:
        video = self.protocol.features.read(item.video_id)
        return Example(video[slice(*item.moment)], video)

    def answers(self, name: str, query: Example, more: Sequence[Example] = ()) -> list[Moment]:
        """The first answers in a video, in its steps."""
        model = ByExamples(self.model, more) if more else self.model
        video = self.protocol.features.read(name)
        return model.localize(
            query.rows, video, top_k=ANSWERS, nms_threshold=0.2, query_video=query.video
        )

    def feedback(self, question: Question) -> list[Example]:
        """What one example finds in other videos, judged."""
        query, found = self.example(question.examples[0]), []
        for name, truths in question.others:
            found += [(each, name, truths) for each in self.answers(name, query)]
        found.sort(key=lambda answer: -answer[0].score)
        said: dict[bool, list[Example]] = {True: [], False: []}
        for moment, name, truths in found:
            overlap = float(tiou([moment.start, moment.end], truths).max())
            good = overlap >= 0.5
            if (good or overlap < 0.1) and len(said[good]) < SAID:
                video = self.protocol.features.read(name)
                start, end = round(moment.start), max(round(moment.end), round(moment.start) + 1)
                said[good].append(Example(video[start:end], video, good, alone=False))
        return said[True] + said[False]

    def scores(self, question: Question) -> list[tuple[float, float]]:
        """For each of :data:`ROWS`: is the first answer right, and what share was found."""
        first, *more = map(self.example, question.examples)
        truths = torch.tensor(question.truths, dtype=torch.float64)
        scores = []
        for further in ([], more[:1], more, self.feedback(question)):
            found = self.answers(question.reference, first, further)
            spans = torch.tensor([[each.start, each.end] for each in found], dtype=torch.float64)
            table = tiou(spans[:, None], truths[None])
            scores.append(
                (float(table[0].max() > 0.5), float((table.amax(dim=0) >= 0.5).double().mean()))
            )
        return scores


def main(
    data: Path,
    /,
    asked: int = 30,
    seed: int = 0,
    sets: tuple[Literal["weizmann", "50salads"], ...] = ("weizmann", "50salads"),
    models: tuple[Literal["contrast", "pretrained"], ...] = ("contrast", "pretrained"),
) -> None:
    """Print the tables.

    Args:
        data: Folder of the real data.
        asked: Questions of each set at most.
        seed: Seed of the draw.
        sets: Which data.
        models: Which models.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for name in sets:
            protocol = load(name, 0, data, Path(scratch))
            drawn = list(questions(protocol, asked, seed))
            videos = [question.reference for question in drawn]
            for model in models:
                asker = Asker(MODELS[model](), protocol)
                table = torch.tensor([asker.scores(question) for question in drawn]).double()
                print(f"{name}, {model}, N = {len(drawn)} in {len(set(videos))} videos", flush=True)
                for row, words in enumerate(ROWS):
                    print(f"  {words:<36}" + line(table[:, row], table[:, 0], videos), flush=True)


def line(values: torch.Tensor, base: torch.Tensor, videos: Sequence[str]) -> str:
    """Mean, interval, and how it compares with one example, of both figures."""
    told = []
    for column, what in enumerate(("mAP@1", "recall")):
        own, first = values[:, column], base[:, column]
        low, high = bootstrap_interval(own, videos)
        text = f"{what} {own.mean():.3f} [{low:.3f}, {high:.3f}]"
        if not torch.equal(own, first):
            low, high = bootstrap_interval(own - first, videos)
            text += f" x{own.mean() / first.mean():.2f} ({low:+.3f} to {high:+.3f})"
        told.append(text)
    return "  ".join(told)


if __name__ == "__main__":
    tyro.cli(main)
