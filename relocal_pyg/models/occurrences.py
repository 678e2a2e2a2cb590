"""Every occurrence of an action in a reference, each once, and how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.errors import check_number
from relocal_pyg.models.base import Relocalizer, as_features, as_rows
from relocal_pyg.models.examples import Example, Trace, trace
from relocal_pyg.models.similarity import Rows, cosine_blocks, mean_row, on_cpu, pair_centres
from relocal_pyg.moments import Moment, tiou

#: Log odds between what the rest of the query's video gives and its own steps.
STEEPNESS = 8.0
#: Shares of the query's length: gaps closed, and shortest occurrence (one movement of a query that
#: repeats itself, where that is less); its shortest and longest where movements follow each other
#: without a rest, from which length on they may.
GAP, SHORTEST = 0.25, 0.4
FASTEST, SLOWEST, SEVERAL = 0.6, 1.6, 1.4
#: The rule where no example says what is not meant.
GUESS = "a guess, as a bare clip does not say what else there is"
#: Shares of the length at which a movement is compared with the query.
_PLACES = (torch.arange(16) + 0.5) / 16
#: By how much a movement's diagonal has to beat chance.
_ORDER = 0.15
#: Least likeness to itself of a query that repeats, and its rise above the dip before.
_PEAK, _RISE = 0.1, 0.4


@dataclass(frozen=True)
class Count:
    """How many occurrences there are.

    Attributes:
        number: Those whose probability reaches the threshold.
        low: As few as there may be: 2.5 % of the Poisson binomial distribution of all candidates.
        high: As many as there may be, 97.5 %.
        expected: Its mean.
        threshold: The probability from which on a moment counts.
        rule: Where probabilities come from, in words.
    """

    number: int
    low: int
    high: int
    expected: float
    threshold: float
    rule: str

    def more(self, known: int) -> Count:
        """The same with some that are certain."""
        numbers = (self.number + known, self.low + known, self.high + known, self.expected + known)
        return Count(*numbers, self.threshold, self.rule)

    def __str__(self) -> str:
        right = "" if self.low <= self.number <= self.high else " are right"
        span = f" (95 %: {self.low} to {self.high}{right})" if right or self.low < self.high else ""
        guess = f"; {self.rule}" if self.rule == GUESS else ""
        return f"{self.number}{span}, those of probability {self.threshold:g} or more{guess}"


def occurrences(
    model: Relocalizer,
    query: Tensor,
    reference: Rows,
    *,
    query_video: Rows | None = None,
    examples: Sequence[Example] = (),
    seconds_per_step: float | None = None,
    background: Tensor | None = None,
    least: float = 0.5,
    without: Sequence[tuple[float, float, bool]] = (),
    seen: Trace | None = None,
) -> tuple[list[Moment], Count]:
    """All moments of a reference that show what a query shows, none twice.

    Stretches of steps more similar to the query (:func:`relocal_pyg.models.examples.trace`)
    than a threshold between the query's own steps and the rest of its video. Where the query is one
    movement and a stretch holds several, one after the other, they are told apart by their order. A
    query that repeats itself stands for a stretch of any number of its movements.

    Args:
        model: Gives scores; and probabilities, where it was calibrated on labels.
        query: ``[m, F]``.
        reference: ``[n, F]``.
        query_video: ``[v, F]`` that the query was cut from, where known.
        examples: Further examples.
        seconds_per_step: Of all videos, where known.
        background: Mean row ``[F]`` of a library, where there is one.
        least: Probability from which on a moment is given.
        without: Stretches in steps that are no answers, see :func:`is_known`.
        seen: Similarity of the reference's steps, where it is at hand.

    Returns:
        Moments in steps, most probable first, and their count.

    Raises:
        FeatureError: Rows are not finite, not there, or of different widths.
        UsageError: ``least`` or ``seconds_per_step`` is out of range.
    """
    check_number(least, "least", least=0, most=1)
    if seconds_per_step is not None:
        check_number(seconds_per_step, "seconds_per_step", above=0)
    query = as_features(query, "query").cpu()
    reference = on_cpu(as_rows(reference, "reference", query.shape[1]))
    query_video, background = map(on_cpu, (query_video, background))
    wanted = (Example(query, query_video), *examples)
    seen = trace(wanted, reference, seconds_per_step, background) if seen is None else seen
    spans = [
        span
        for span in separated(seen, query, reference, query_video, background)
        if not any(is_known(span, other) for other in without)
    ]
    rule = "similarity between the rest of the query's video and the query itself"
    rule = GUESS if seen.guessed else rule
    if not spans:
        return [], count_of([], least, rule)
    places = torch.tensor(spans, dtype=torch.float32)
    ranking = model.rank(
        query,
        reference,
        places,
        query_video=query_video,
        seconds_per_step=seconds_per_step,
        background=background,
    ).cpu()
    scores = ranking.scores_of(places)
    # By how similar the steps of a stretch are.
    means = torch.stack([seen.similarity[a:b].double().mean() for a, b in spans]) - seen.level
    chances, presence = torch.sigmoid(STEEPNESS * means / max(seen.own - seen.other, 1e-6)), None
    # What chance gives on the reference says nothing of one that is full of the action.
    if ranking.probabilities is not None and getattr(model, "confidence", None) is not None:
        chances, presence = ranking.probabilities(places.double(), scores.double())
        rule = "calibrated on labels"
    moments = [
        Moment(float(start), float(end), score, probability=chance, presence=presence)
        for (start, end), score, chance in zip(
            spans, scores.tolist(), chances.tolist(), strict=True
        )
    ]
    moments.sort(key=lambda moment: -(moment.probability or 0))
    count = count_of(chances.tolist(), least, rule)
    return moments[: count.number], count


#: How many answers may lie in one place that is left out: so many more are asked for.
ROOM = 10
#: Of two answers with a larger tIoU only the better is given: people want other places, not other
#: cuts of one place.
APART = 0.2


def same_place(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two stretches share more than a fifth of the shorter one."""
    common = min(first[1], second[1]) - max(first[0], second[0])
    return common > 0.2 * min(first[1] - first[0], second[1] - second[0])


def same_answer(first: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the first is another cut of the other or mostly inside it.

    Two answers of one list may share as much as :data:`APART`: a no to one leaves the other.

    Example:
        >>> [same_answer(each, (3.8, 4.6)) for each in ((4.2, 6.0), (4.4, 4.7), (3.8, 5.0))]
        [False, True, True]
    """
    common = min(first[1], other[1]) - max(first[0], other[0])
    return 2 * common > first[1] - first[0] or float(tiou(first, other)) > APART


def is_known(span: tuple[float, float], said: tuple[float, float, bool]) -> bool:
    """Whether a stretch lies where somebody said yes (True), or is what somebody said no to."""
    return (same_place if said[2] else same_answer)(span, said[:2])


def count_of(chances: Sequence[float], least: float, rule: str = "") -> Count:
    """Count candidates that may each be one, independently.

    Example:
        >>> count = count_of([0.9, 0.9, 0.6, 0.2], 0.5)
        >>> count.number, count.low, count.high, round(count.expected, 1)
        (3, 1, 4, 2.6)
        >>> str(count_of([0.3] * 9, 0.2))
        '9 (95 %: 0 to 6 are right), those of probability 0.2 or more'
    """
    odds = torch.ones(1, dtype=torch.float64)
    for chance in chances:
        odds = functional.pad(odds, (0, 1)) * (1 - chance) + functional.pad(odds, (1, 0)) * chance
    total = odds.cumsum(dim=0)
    low, high = (int((total < share).sum()) for share in (0.025, 0.975))
    number = sum(chance >= least for chance in chances)
    return Count(number, low, min(high, len(chances)), float(sum(chances)), least, rule)


def separated(
    seen: Trace,
    query: Tensor,
    reference: Rows,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> list[tuple[int, int]]:
    """Stretches ``[start, end)`` of steps that are one occurrence each, in order of time."""
    size = len(query)
    found: list[tuple[int, int]] = []
    for start, end in _runs(seen.similarity > seen.level):
        if found and start - found[-1][1] < GAP * size:
            start = found.pop()[0]
        found.append((start, end))
    # What changes in the course of the query: its own mean says nothing of order.
    change = functional.normalize(query - mean_row(query), dim=1)
    period = _period(change)
    shortest = min(SHORTEST * size, period or size)
    found = [(start, end) for start, end in found if end - start >= shortest]
    if period or all(end - start <= SEVERAL * size for start, end in found):
        return found
    centre = pair_centres(query, reference, query_video, background)[1]
    rows = torch.cat([change[(_PLACES * size).long()], change.mean(dim=0, keepdim=True)])
    table = torch.cat(list(cosine_blocks(rows, reference, centre)), dim=1)
    single: list[tuple[int, int]] = []
    for start, end in found:
        parts = [(start, end)]
        if end - start > SEVERAL * size:
            cuts, mean = _movements(table[:-1, start:end], size)
            if mean - float(table[-1, start:end].mean()) > _ORDER:
                parts = [(start + a, start + b) for a, b in zip(cuts, cuts[1:], strict=False)]
        single += parts
    return single


def _runs(on: Tensor) -> list[tuple[int, int]]:
    """Stretches of True."""
    edges = torch.diff(functional.pad(on.int(), (1, 1)))
    starts, ends = ((edges == way).nonzero()[:, 0].tolist() for way in (1, -1))
    return list(zip(starts, ends, strict=True))


def _period(change: Tensor) -> int:
    """Steps after which a clip begins again, from its directions ``[m, F]``; 0 where it does not.

    The first distance at which their cosines rise well above what they are at a smaller one.
    """
    size = len(change)
    waves = (torch.fft.rfft(some.double(), 2 * size, dim=0) for some in change.split(64, dim=1))
    sums = torch.fft.irfft(torch.stack([each.abs().square().sum(dim=1) for each in waves]).sum(0))
    likeness = (sums[:size] / torch.arange(size, 0, -1))[: max(size * 3 // 4, 1)].tolist()
    least = math.inf
    for lag in range(2, len(likeness) - 1):
        peak, least = likeness[lag], min(least, likeness[lag - 1])
        if peak > _PEAK and peak - least > _RISE and likeness[lag - 1] <= peak > likeness[lag + 1]:
            return lag
    return 0


def _movements(places: Tensor, size: int) -> tuple[list[int], float]:
    """Cut a stretch where movements begin, so that each runs along with the query.

    From cosines ``[P, L]`` of some places of the query, of ``size`` steps: steps at which movements
    begin and end, 0 to L, and the mean along their diagonals.
    """
    length = places.shape[1]
    shortest, longest = max(2, round(FASTEST * size)), min(round(SLOWEST * size), length)
    steps = torch.arange(shortest, max(longest + 1, shortest))
    place = torch.arange(len(places))
    column = (_PLACES * steps[:, None]).long() - steps[:, None]  # seen from the end
    best, before = torch.full((length + 1,), -math.inf, dtype=torch.float64), [0] * (length + 1)
    best[0] = 0.0
    for end in range(shortest, length + 1):
        fit = slice(0, max(end - shortest + 1, 0))
        along = places[place, end + column[fit]].mean(dim=1) * steps[fit]
        best[end], way = (best[end - steps[fit]] + along).max(dim=0)
        before[end] = end - int(steps[way])
    if best[length] == -math.inf:
        return [0, length], -1.0
    cuts = [length]
    while cuts[-1]:
        cuts.append(before[cuts[-1]])
    return cuts[::-1], float(best[length]) / length
