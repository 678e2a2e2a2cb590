"""Is the action in this reference at all? Probabilities where nobody calibrated on labels.

Similarities mean nothing by themselves: those of one backbone lie between .8 and .95, those of
another around 0. So the reference is asked what chance gives on it: the query is turned round along
a random half of the reference's principal axes, which keeps its strength along every axis and its
changes over time, and shows something else. An action that is there beats such surrogates.

Not in the paper. After the surrogates of time series analysis (Theiler et al., 1992) that keep all
second-order statistics, here across channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.pair_data import nearest_steps
from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.io.seeding import generator
from relocal_pyg.models.similarity import Rows, contrast_scores, own_centres
from relocal_pyg.moments import tiou

#: What presence is judged by, the same for every answer in a reference. Standard scores among
#: surrogates: ``meeting``, of the best window by how well its steps meet any query step, inside
#: minus around; ``diagonal``, of the query laid over the reference step by step; ``coverage``, of
#: how well query steps are met in that window. And whether the two videos could say anything about
#: each other: ``aligned``, log of the root mean square of all cosines over that of the reference
#: with itself; ``shared``, the same over that of directions drawn at random, between 0 and 1.
FACTS = ("meeting", "diagonal", "coverage", "aligned", "shared")
#: What the probability of a moment is judged by beside these: its own coverage; how well query
#: steps are met outside it; how far the best diagonal lies above those elsewhere; its length over
#: the query's, the distance of the two lengths, and the reference's length over the query's (logs).
MOMENT_FACTS = (*FACTS, "own coverage", "outside", "diagonal lead", "length", "stretch", "room")

#: Surrogates, principal axes at most, steps that they are taken from, and steps of the query shown.
SURROGATES, AXES, SAMPLE, PLACES = 24, 128, 512, 32
#: Paces, as multiples of the query's length, at which it is laid over the reference.
PACES = (0.7, 1.0, 1.4)
#: Windows that the best is taken of, about.
WINDOWS = 2000


@dataclass(frozen=True)
class Logistic:
    """Log odds, linear in standardised facts.

    Attributes:
        mean: Means of the facts it was fitted to; an unknown fact counts as its mean.
        scale: Their standard deviations.
        weights: One a fact.
        bias: Log odds at the mean.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def __call__(self, facts: Tensor) -> Tensor:
        """Probabilities ``[N]`` of facts ``[N, V]``."""
        mean, scale, weights = facts.new_tensor([self.mean, self.scale, self.weights])
        rows = (torch.where(facts.isnan(), mean, facts) - mean) / scale
        return torch.sigmoid(rows @ weights + self.bias)


_PRESENCE = Logistic(
    (0.6749, 0.3889, 0.4209, -0.7636, 0.3101),
    (1.5241, 1.3900, 1.3850, 0.7217, 0.3194),
    (0.3626, 0.2152, 0.1184, 0.6494, 0.4258),
    -0.6255,
)
_MOMENT = Logistic(
    (0.5168, 0.4012, 0.4277, -0.6293, 0.4766, -0.7216, 0.4422, 2.1783, -0.0023, 0.2374, 1.8577),
    (1.3885, 1.4926, 1.2433, 0.6390, 0.3643, 2.3268, 0.2285, 2.2950, 0.3412, 0.2451, 0.7696),
    (0.0874, 0.2226, -0.0723, 0.1187, 0.2956, 0.4425, -0.1306, 0.0564, -0.0402, -0.3358, -0.3107),
    -1.7795,
)


def judge(
    query: Tensor,
    reference: Rows,
    moments: Tensor,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> tuple[Tensor, float]:
    """How probable answers are, whichever model gave them.

    The coefficients were fitted on simulated videos, half of which hold the action
    (``python -m benchmarks.presence``). Answers ``[A, 2]`` are in steps; other arguments as of
    :func:`~relocal_pyg.models.similarity.step_similarity`.

    Returns:
        float64 ``[A]``, that each moment is right (tIoU above 0.5), and that the reference holds
        the action at all. The first is never above the second.
    """
    facts = moment_facts(query, reference, moments, query_video, background)
    facts, told = facts[:, :-1], float(facts[0, -1])
    presence = told * float(_PRESENCE(facts[:1, : len(FACTS)]))
    return _MOMENT(facts).clamp(max=presence), presence


@torch.no_grad()
def moment_facts(
    query: Tensor,
    reference: Rows,
    moments: Tensor,
    query_video: Rows | None = None,
    background: Tensor | None = None,
) -> Tensor:
    """The :data:`MOMENT_FACTS` of answers; arguments as in :func:`judge`.

    Returns:
        float64 ``[A, 12]``, NaN where there is nothing to compare with; the last column is how much
        the pair can tell at all, 0 to 1.
    """
    pair = _Pair.of(query, reference, *own_centres(reference, query_video, background))
    count, steps = len(pair.reference), len(pair.query)
    shown = pair.query[_places(torch.tensor([[0, steps]]), steps)[0]]
    signs = torch.cat([shown.new_ones(1, len(shown[0])), _signs()[:, : len(shown[0])].to(shown)])
    tables = (shown * signs[:, None]) @ pair.reference.T
    windows = nearest_steps(default_proposals(count, steps, limit=WINDOWS), count)
    meeting, best = contrast_scores(tables.amax(dim=1), windows.float()).max(dim=1)
    coverage = _coverage(tables, windows[best])
    diagonal, lead = _diagonals(pair, signs)
    sample = pair.reference[:: -(-count // 200)]
    alike, itself = (
        table.std(correction=0).clamp(min=1e-3) for table in (tables[0], sample @ sample.T)
    )
    aligned = (alike / itself).log()
    # Unit rows that share nothing have a root mean square cosine of one over the root of F.
    shared = (alike * math.sqrt(pair.width)).clamp(1, math.e).log()
    facts = [*(_standard(each) for each in (meeting, diagonal, coverage)), aligned, shared]
    bare = query_video is None and background is None
    told = _told(pair, torch.stack(facts[:3]).mean(), coverage[0], bare)
    whole = nearest_steps(moments.float(), count)
    own = _coverage(tables[:1].expand(len(whole), -1, -1), whole)
    own = torch.stack([_standard(torch.cat([each[None], coverage[1:]])) for each in own])
    # The best before and after each: a table for every answer would take gigabytes.
    ways = torch.stack([tables[0], tables[0].flip(1)])
    before, after = functional.pad(ways, (1, 0), value=-torch.inf).cummax(dim=2).values
    outside = torch.maximum(before[:, whole[:, 0]], after[:, count - whole[:, 1]]).mean(dim=0)
    length = ((whole[:, 1] - whole[:, 0]) / steps).log()
    columns = [
        *(fact.expand(len(whole)) for fact in facts),
        own,
        outside.masked_fill(outside.isinf(), torch.nan),
        lead.expand(len(whole)),
        length,
        length.abs(),
        torch.tensor(count / steps).log().expand(len(whole)),
        told.expand(len(whole)),
    ]
    return torch.stack([column.double() for column in columns], dim=1)


@dataclass(frozen=True)
class _Pair:
    """Unit rows of both sides, ``[m, r]`` and ``[n, r]``, along the reference's principal axes.

    ``width`` is how many channels vary: a constant one shows nothing.
    """

    query: Tensor
    reference: Tensor
    width: int

    @classmethod
    def of(cls, query: Tensor, reference: Rows, query_centre: Tensor, centre: Tensor) -> _Pair:
        """Centre both sides, and turn them into the axes of at most :data:`SAMPLE` steps."""
        stride = -(-len(reference) // SAMPLE)
        kept, first = [], 0
        for block in reference.split(SAMPLE):
            kept.append(_unit(block[-first % stride :: stride], centre))
            first += len(block)
        sample = torch.cat(kept).double()
        values, vectors = torch.linalg.eigh(sample @ sample.T)
        strong = (values > 1e-7 * len(sample)).nonzero().flatten().flip(0)[:AXES]
        axes = (sample.T @ vectors[:, strong] / values[strong].sqrt()).to(query.dtype)
        if len(strong) == 0:  # a still: nothing that could be told apart
            axes = query.new_zeros(query.shape[1], 1)
        rows = [_unit(block, centre) @ axes for block in reference.split(SAMPLE)]
        width = max(1, int((sample != 0).any(dim=0).sum()))
        return cls(_unit(query, query_centre) @ axes, torch.cat(rows), width)


def _told(pair: _Pair, evidence: Tensor, coverage: Tensor, bare: bool) -> Tensor:
    """How much a pair tells, 0 to 1, by the mean of its standard scores and its best coverage."""
    copied = (coverage - 0.8) / 0.15
    energy = pair.query.square().mean(dim=0) * pair.reference.square().mean(dim=0)
    directions = energy.sum().square() / energy.square().sum().clamp(min=1e-30)
    # Along d directions there are 2^d ways to turn the query round: of one nothing can be said.
    told = (2 - 2 ** (2 - directions)).clamp(0, 1)
    # What does not beat its surrogates is not there, whatever the two videos share.
    told = told * torch.sigmoid(2 * evidence)
    # Noise has no order from step to step; nothing but a copy stands out of it.
    rows = pair.reference
    order = (rows[1:] * rows[:-1]).sum() / rows.square().sum().clamp(min=1e-30) + 1 / len(rows)
    told = told * torch.maximum((order - 0.05) / 0.15, copied).clamp(0, 1)
    if bare:  # It differs from the reference as a whole: what stays as it is shows no action.
        change = (pair.query - pair.query.mean(dim=0)).square().sum()
        change = change / pair.query.square().sum().clamp(min=1e-30)
        told = told * torch.maximum(change / 0.1, copied).clamp(0, 1)
    return told


def _unit(rows: Tensor, centre: Tensor) -> Tensor:
    """Unit rows less the centre; 0 for what differs from it by rounding only."""
    moved = rows - centre
    still = moved.norm(dim=1) <= 1e-5 * rows.norm(dim=1)
    return functional.normalize(moved, dim=1).masked_fill(still[:, None], 0)


@cache
def _signs() -> Tensor:
    """Which axes each surrogate turns round, ``[S, AXES]`` of -1 and 1, the same for every pair."""
    draws = generator(0, "presence", "surrogates").integers(0, 2, size=(SURROGATES, AXES))
    return torch.from_numpy(draws * 2.0 - 1).float()


def _places(windows: Tensor, most: int = PLACES) -> Tensor:
    """Steps ``[W, P]`` spread evenly over windows ``[W, 2]``, every one of short ones."""
    share = (torch.arange(min(most, PLACES)) + 0.5) / min(most, PLACES)
    inside = windows[:, :1] + share * (windows[:, 1:] - windows[:, :1])
    return torch.minimum(inside.long(), windows[:, 1:] - 1)


def _coverage(tables: Tensor, windows: Tensor) -> Tensor:
    """Mean over query steps of the best cosine in a window: tables ``[W, P, n]`` to ``[W]``."""
    place = _places(windows)[:, None].expand(-1, tables.shape[1], -1)
    return tables.gather(2, place).amax(dim=2).mean(dim=1)


def _diagonals(pair: _Pair, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Best mean cosine along a diagonal, of the query and each surrogate ``[1 + S]``, and its lead.

    Correlations of every axis come from Fourier transforms, and those of a surrogate are their sum
    with other signs. The lead is that of the first over the best place that does not overlap, in
    standard deviations of the others (NaN where there is none).
    """
    count = len(pair.reference)
    size = 1 << (count - 1).bit_length()
    spectrum = torch.fft.rfft(pair.reference.T.contiguous(), n=size)
    places, means = [], []
    for length in sorted({min(max(1, round(pace * len(pair.query))), count) for pace in PACES}):
        rows = functional.interpolate(pair.query.T[None], size=length, mode="linear")[0]
        own = torch.fft.rfft(rows.contiguous(), n=size).conj()
        correlation = torch.fft.irfft(spectrum * own, n=size)[:, : count - length + 1]
        means.append(signs @ correlation / length)
        start = torch.arange(means[-1].shape[1])
        places.append(torch.stack([start, start + length], dim=1))
    values, where = torch.cat(means, dim=1), torch.cat(places)
    best, number = values.max(dim=1)
    apart = tiou(where[number[:1]], where) == 0
    rival = values[0][apart].amax() if apart.any() else best.new_tensor(torch.nan)
    return best, (best[0] - rival) / best[1:].std(correction=0).clamp(min=0.01)


def _standard(values: Tensor) -> Tensor:
    """Standard score of the first among the others, cut where more says no more."""
    spread = values[1:].std(correction=0).clamp(min=0.01)
    return ((values[0] - values[1:].mean()) / spread).clamp(-5, 15)
