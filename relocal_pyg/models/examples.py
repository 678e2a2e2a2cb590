"""Several examples and counter-examples of one thing: what they have in common, as a direction.

It is learned from the steps of the examples against the rest of their own videos, by a light
logistic regression; where there is no rest, the mean of the examples stands for them, less a little
of what was said not to be meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.errors import UsageError
from relocal_pyg.models.base import (
    Ranking,
    Relocalizer,
    Surroundings,
    Wrapper,
    as_features,
    as_rows,
)
from relocal_pyg.models.similarity import (
    BLOCK,
    Rows,
    best_cosines,
    contrast_scores,
    motion_rows,
    on_cpu,
    pair_centres,
)

#: Steps of examples, and of what they are told apart from, that are learned from.
POSITIVES, NEGATIVES = 150, 300
#: What a counter-example takes away where there is nothing else to be told apart from.
AWAY = 0.25
#: Where the threshold lies between what the rest of the query's video gives and its own steps, to
#: which the direction was fitted. Those of a bare clip are not known; between two groups it is .45.
#: At least so much of the own steps' similarity: at zero is what is like neither, such as an action
#: that the query's video does not show.
SHARE, BARE_SHARE, LEAST = 0.25, 0.45, 0.2
#: How far the logarithms of lengths of one thing spread, before examples tell; counts as two.
SPREAD = 0.5
#: Windows of an example's own video that tell how far scores spread.
_WINDOWS = 500


@dataclass(frozen=True)
class Example:
    """A stretch of a video that shows what is looked for, or does not.

    Attributes:
        rows: Features ``[m, F]``; arrays are checked and made tensors where they are used.
        video: Features ``[v, F]`` of its whole video, where known.
        good: False for a counter-example.
        alone: Whether the rest of the video is something else. Not so where the stretch is an
            answer somebody said yes to: there may be more of them.
    """

    rows: Tensor
    video: Rows | None = None
    good: bool = True
    alone: bool = True


@dataclass(frozen=True)
class Trace:
    """How similar every step of a reference is to what is looked for.

    Attributes:
        similarity: ``[n]`` in ``[-1, 1]``.
        own: Mean similarity of the examples' own steps; of the reference's more similar steps
            where no example has a video around it.
        other: Mean similarity of the rest of their videos; of the reference's other steps.
        level: Similarity from which on a step shows it.
        guessed: Whether no example says what it is to be told apart from.
    """

    similarity: Tensor
    own: float
    other: float
    level: float
    guessed: bool = False


class ByExamples(Wrapper):
    """Any model, asked with several examples at once.

    The score of a window is what the model gives it, the mean over the examples that show the
    action, plus inside minus around of the similarity to the learned direction, each in units of
    its spread over the first example's own video, plus how usual its length is. Ours; the paper has
    one query.

    Args:
        model: Any model.
        examples: Further examples and counter-examples; the query of :meth:`rank` is one more.

    Example:
        >>> from relocal_pyg.models import ContrastMatcher
        >>> draw = torch.Generator().manual_seed(0)
        >>> video, other = (torch.rand(40, 8, generator=draw) for _ in range(2))
        >>> model = ByExamples(ContrastMatcher(), [Example(video[4:9], video)])
        >>> len(model.localize(other[10:15], video, query_video=other, top_k=2))
        2
    """

    title = "Several examples"
    by_blocks = True  # the model takes them as it wants them

    def __init__(self, model: Relocalizer, examples: Sequence[Example]) -> None:
        super().__init__(model)
        self.examples = checked(examples)

    def _rank(
        self, query: Tensor, reference: Rows, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        examples = (Example(query, around.query_video), *self.examples)
        shown = [example for example in examples if example.good]
        step, background = around.seconds_per_step, around.background

        def measure(video: Rows, windows: Tensor) -> tuple[Tensor, Tensor]:
            """What the model says of windows, and what the learned direction says."""
            learned = trace(examples, video, step, background).similarity
            said = torch.stack([self._said(each, video, windows, around) for each in shown])
            return said.mean(dim=0), contrast_scores(learned.to(windows.device), windows)

        said, learned = measure(reference, proposals)
        own = next((each for each in shown if _rest(each) is not None), None)
        video = reference if own is None or own.video is None else own.video
        size = len(query if own is None else own.rows)
        if background is None or own is not None:
            windows = default_proposals(len(video), size, limit=_WINDOWS).to(proposals.device)
            scales = [each.std(correction=0).clamp(min=1e-6) for each in measure(video, windows)]
            said = said / scales[0] + usual_length(shown, proposals)
            learned = learned / scales[1]
        # Otherwise clips of a library: nothing but the clips, whose scores have to compare.
        return Ranking.sort(proposals, said + learned, proposals)

    def _said(self, example: Example, video: Rows, windows: Tensor, around: Surroundings) -> Tensor:
        """The model's scores ``[M]`` of windows, before they are squashed."""
        ranking = self.model.rank(
            example.rows.to(windows.device),
            video,
            windows,
            query_video=example.video,
            seconds_per_step=around.seconds_per_step,
            background=around.background,
        )
        return self.model.raw_scores(ranking.scores_of(windows))


def usual_length(shown: Sequence[Example], windows: Tensor) -> Tensor:
    """Half the log-likelihood ``[M]`` of lengths of windows: log-normal as those of examples are.

    Of the variance two lengths that lie :data:`SPREAD` off are known before.
    """
    known = torch.tensor([float(len(example.rows)) for example in shown]).log()
    variance = (2 * SPREAD**2 + (known - known.mean()).square().sum()) / (1 + len(known))
    off = (windows[:, 1] - windows[:, 0]).log() - known.mean().to(windows)
    return -off.square() / (4 * variance.to(windows))


def trace(
    examples: Sequence[Example],
    reference: Rows,
    seconds_per_step: float | None = None,
    background: Tensor | None = None,
) -> Trace:
    """Similarity of every step of a reference to what examples have in common.

    Args:
        examples: At least one that is good.
        reference: ``[n, F]``.
        seconds_per_step: Of all videos, where known: steps of less than a second are compared by
            what moves too (:func:`relocal_pyg.models.similarity.motion_rows`).
        background: Mean row ``[F]`` of a library that all belong to, where there is one.

    Raises:
        UsageError: No example is good.
        FeatureError: Widths differ.
    """
    if not any(example.good for example in examples):
        raise UsageError("only counter-examples: say what is looked for too")
    examples = checked(examples)
    reference = on_cpu(as_rows(reference, "reference", examples[0].rows.shape[1]))
    background = on_cpu(background)
    similarity = own = other = torch.zeros(())
    sides = [motion_rows(reference, seconds_per_step)]
    for example in examples:
        # A bare clip moves inside itself alone.
        video = example.rows if example.video is None else example.video
        sides += [motion_rows(rows, seconds_per_step) for rows in (example.rows, video)]
    for number, kinds in enumerate(zip(*sides, strict=True)):
        (share, long), rest = kinds[0], kinds[1:]
        usual = background if number == 0 else None
        good: list[Tensor] = []
        bad: list[Tensor] = []
        around: list[Tensor] = []
        reference_centre = torch.zeros(())  # the mean of what each of them asks for
        for place, example in enumerate(examples):
            clip, video = (torch.cat(list(rows.split(BLOCK))) for _, rows in rest[2 * place :][:2])
            whole = None if example.video is None else video
            centre, theirs = pair_centres(clip, long, whole, usual)
            reference_centre = reference_centre + theirs / len(examples)
            span = _rest(example)
            if span is not None:
                clip = video[span[0] : span[1]]  # smoothed with what lies around it
            (good if example.good else bad).append(functional.normalize(clip - centre, dim=1))
            if span is not None and example.good and example.alone:
                left = torch.cat([video[: span[0]], video[span[1] :]])
                around.append(functional.normalize(left - centre, dim=1))
        direction = _direction(good, bad, around)
        values = best_cosines(direction[None], long, reference_centre)
        similarity = similarity + share * values
        own = own + share * torch.cat([rows @ direction for rows in good]).mean()
        if around:
            other = other + share * torch.cat([rows @ direction for rows in around]).mean()
    if any(map(has_rest, examples)):
        high, low = float(own), float(other)
        return Trace(similarity, high, low, max(low + SHARE * (high - low), LEAST * high))
    return level_of(similarity)


def checked(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Examples of float32, on the CPU, all of the width of the first.

    Raises:
        FeatureError: One has not such rows.
    """
    found: list[Example] = []
    for number, each in enumerate(examples):
        name = f"example {number}"
        rows, video = as_features(each.rows, name).cpu(), on_cpu(each.video)
        width = (found[0].rows if found else rows).shape[1]
        as_rows(rows, name, width)
        if video is not None and len(video) > 0:
            video = as_rows(video, f"video of {name}", width)
        found.append(replace(each, rows=rows, video=video))
    return tuple(found)


def has_rest(example: Example) -> bool:
    """Whether an example says what it is to be told apart from."""
    return example.good and example.alone and _rest(example) is not None


def level_of(similarity: Tensor) -> Trace:
    """The trace where nothing tells what the examples' own videos give elsewhere.

    The two groups of steps that differ most (Otsu, 1979).
    """
    values = similarity.double().sort().values
    count = torch.arange(1, len(values), dtype=torch.float64)
    high = low = float(values.mean())
    if len(count):
        below = values.cumsum(dim=0)[:-1]
        above = (values.sum() - below) / (len(values) - count)
        below = below / count
        best = int((count * (len(values) - count) * (above - below).square()).argmax())
        high, low = float(above[best]), float(below[best])
    return Trace(similarity, high, low, low + BARE_SHARE * (high - low), guessed=True)


def _rest(example: Example) -> tuple[int, int] | None:
    """Where an example lies in its video; None for a bare clip, or where it is all of it."""
    if example.video is None or len(example.video) < len(example.rows) + 2:
        return None
    size, first, kept = len(example.rows), 0, None
    for block in example.video.split(BLOCK):
        kept = block if kept is None else torch.cat([kept[-size:], block])
        start = first + len(block) - len(kept)
        for place in (kept == example.rows[0].to(kept)).all(dim=1).nonzero()[:, 0].tolist():
            if torch.equal(kept[place : place + size], example.rows.to(kept)):
                return start + place, start + place + size
        first += len(block)
    return None


def _direction(good: list[Tensor], bad: list[Tensor], around: list[Tensor]) -> Tensor:
    """The unit direction ``[F]`` that tells examples from what they are not."""
    if not around:
        mean = _common(good)
        return functional.normalize(mean - AWAY * _common(bad), dim=0) if bad else mean
    positives = torch.cat([_thinned(rows, POSITIVES // len(good)) for rows in good])
    # What somebody said no to counts as much as all the rest.
    negatives = [_thinned(rows, NEGATIVES // len(around)) for rows in around]
    negatives += [_thinned(rows, NEGATIVES // len(bad)) for rows in bad]
    return separate(positives, torch.cat(negatives))


def _common(sides: list[Tensor]) -> Tensor:
    means = torch.stack([functional.normalize(rows.mean(dim=0), dim=0) for rows in sides])
    return functional.normalize(means.mean(dim=0), dim=0)


def _thinned(rows: Tensor, most: int) -> Tensor:
    """Rows spread evenly, at most so many."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, max(most, 1)).round().long()]


@torch.inference_mode(False)
@torch.enable_grad()
def separate(positives: Tensor, negatives: Tensor) -> Tensor:
    """Unit direction ``[F]`` of a logistic regression of unit rows, both sides weighing the same.

    C is 1; ``[P, F]`` and ``[N, F]``.
    """
    rows = torch.cat([positives, negatives]).detach().double()
    # All lies in the span of the rows: so many numbers are enough, however wide they are.
    basis = torch.linalg.qr(rows.T).Q if rows.shape[1] > len(rows) else None
    seen = rows if basis is None else rows @ basis
    count = torch.tensor([len(positives), len(negatives)])
    sides = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(count)
    weights = (count.sum() / (2 * count)).double().repeat_interleave(count)
    found = seen.new_zeros(seen.shape[1] + 1, requires_grad=True)
    search = torch.optim.LBFGS([found], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        odds = (seen @ found[:-1] + found[-1]) * sides
        total = (weights * functional.softplus(-odds)).sum() + found[:-1].square().sum() / 2
        total.backward()
        return total

    search.step(loss)
    direction = found.detach()[:-1]
    direction = direction if basis is None else basis @ direction
    return functional.normalize(direction, dim=0).to(positives)
