"""The video-level baseline: one vector a segment, by an LSTM, and a triplet loss on distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torch_geometric.data import Data

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pair_data import nearest_steps
from relocal_pyg.data.samples import PartnerSamples
from relocal_pyg.errors import AnnotationError
from relocal_pyg.models.base import Ranking, Surroundings, TrainableRelocalizer, arguments
from relocal_pyg.moments import tiou

#: A positive segment overlaps its ground truth by more than this (section 5.3.1).
POSITIVE_TIOU = 0.8

#: A negative segment overlaps every ground truth by less than this (section 5.3.1).
NEGATIVE_TIOU = 0.2

#: Feature values of segments that are encoded at once: bounds memory, changes no result.
CHUNK_VALUES = 4_000_000

#: Pairs drawn before giving up on finding a reference with a negative segment.
ATTEMPTS = 100


class VideoLevel(TrainableRelocalizer):
    r"""Video-level LSTM (section 5.3.1 of the paper).

    "They use LSTM as the video encoder and the L2-normalized last hidden state in LSTM is selected
    as video representations for video segments." Query and segments share one encoder :math:`f`.
    Positive and negative segment come from one reference video, with tIoU over 0.8 and less than
    0.2, and

    .. math:: L = \mathrm{mean} \max\bigl(0,\; \lVert f(q) - f(p) \rVert_2^2
        - \lVert f(q) - f(n) \rVert_2^2 + \mathrm{margin}\bigr).

    The answer is the proposal of least distance. Hidden size, margin, distance and how segments are
    searched are not in the paper: 128, 0.5, squared L2 and the given proposals are ours. Adam at
    1e-3 suits it.

    Args:
        in_channels: Width F of a feature step.
        hidden_channels: Size of the hidden state.
        margin: Margin of the triplet loss; squared distances lie in ``[0, 4]``.

    Example:
        >>> model = VideoLevel(8, hidden_channels=4)
        >>> model.embed([torch.rand(3, 8), torch.rand(5, 8)]).norm(dim=1).round(decimals=4).tolist()
        [1.0, 1.0]
    """

    title = "Video-level LSTM"

    def __init__(
        self, in_channels: int, hidden_channels: int = 128, *, margin: float = 0.5
    ) -> None:
        self._config = arguments(locals())
        super().__init__()
        self.in_channels = in_channels
        self.margin = margin
        self.lstm = nn.LSTM(in_channels, hidden_channels, batch_first=True)

    def embed(self, clips: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Unit vectors ``[B, hidden_channels]`` of clips ``[m_i, F]`` of any lengths."""
        last = torch.tensor([len(clip) for clip in clips], device=clips[0].device) - 1
        # The LSTM runs forward: the state at a clip's last step has seen none of the padding.
        states, _ = self.lstm(pad_sequence(list(clips), batch_first=True))
        at_last = states[torch.arange(len(clips), device=last.device), last]
        return functional.normalize(at_last, dim=-1)

    def embed_windows(self, reference: Tensor, windows: Tensor) -> Tensor:
        """Unit vectors of many windows of one reference; equal to :meth:`embed` of each.

        Windows that start together are prefixes of one another, so one pass over the longest of
        them encodes all.

        Args:
            reference: ``[n, F]``.
            windows: int64 ``[M, 2]``, half-open steps inside the reference.

        Returns:
            ``[M, hidden_channels]``.
        """
        starts, group = windows[:, 0].unique(return_inverse=True)
        length = windows[:, 1] - windows[:, 0]
        longest = torch.zeros_like(starts).scatter_reduce(0, group, length, "amax")
        # By length, so that what is encoded together needs little padding.
        order = longest.argsort()
        embedded = reference.new_empty(len(windows), self.lstm.hidden_size)
        per_chunk = max(1, CHUNK_VALUES // (int(longest.max()) * reference.shape[1]))
        for chunk in order.split(per_chunk):
            steps = torch.arange(int(longest[chunk].max()), device=reference.device)
            inputs = reference[(starts[chunk, None] + steps).clamp(max=len(reference) - 1)]
            states, _ = self.lstm(inputs)
            row = torch.full_like(starts, -1)
            row[chunk] = torch.arange(len(chunk), device=row.device)
            mine = (row[group] >= 0).nonzero().flatten()
            at_last = states[row[group[mine]], length[mine] - 1]
            embedded[mine] = functional.normalize(at_last, dim=-1).to(embedded.dtype)
        return embedded

    @torch.no_grad()
    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Rank the proposals (in steps) by distance to the query; scores are minus the distance."""
        segments = self.embed_windows(reference, nearest_steps(proposals, len(reference)))
        distance = (segments - self.embed([query])).square().sum(dim=1)
        return Ranking.sort(proposals, -distance, proposals)

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Dataset[Data]:
        """Triplets with both segments in one reference: :class:`SegmentTriplets`."""
        return SegmentTriplets(protocol, num_samples=num_samples, seed=seed)

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Triplet loss of a batch of :class:`SegmentTriplets`."""
        query, positive, negative = (
            self.embed(batch[name].split(batch[f"{name}_steps"].tolist()))
            for name in ("query", "positive", "negative")
        )
        near = (query - positive).square().sum(dim=1)
        far = (query - negative).square().sum(dim=1)
        loss = (near - far + self.margin).clamp(min=0).mean()
        return {"loss": loss, "near": near.mean(), "far": far.mean()}


class SegmentTriplets(PartnerSamples[Data]):
    """Samples of a query, a positive and a negative segment of one reference of its class.

    Each sample is a ``Data`` with ``query``, ``positive`` and ``negative`` ``[., F]`` and their
    lengths ``query_steps``, ``positive_steps``, ``negative_steps`` ``[1]``. Sample ``i`` depends on
    ``(seed, i)`` alone.
    """

    stream = "segments"

    def draw(self, rng: np.random.Generator) -> Data:
        """Draw a query and two segments of one reference."""
        for _ in range(ATTEMPTS):
            query = self._sampler.query(rng)
            reference = self._sampler.positive(query, rng)
            start = reference.moment[0] - reference.context[0]
            own = (start, start + reference.query_steps)
            positives = similar_windows(own, reference.num_steps)
            positive = positives[int(rng.integers(len(positives)))]
            length = int(positive[1] - positive[0])
            # Similar, not equal: the length alone must not tell the two apart.
            length = int(rng.integers(max(1, round(0.8 * length)), round(1.25 * length) + 1))
            negatives = distant_windows(length, reference.truths, reference.num_steps)
            if len(negatives):
                break
        else:
            raise AnnotationError(
                "no reference has a segment away from its action: the references seem to be trimmed"
            )
        negative = negatives[int(rng.integers(len(negatives)))]
        clip, video = self.protocol.query(query), self.protocol.reference(reference)
        near, far = (video[slice(*segment.tolist())] for segment in (positive, negative))
        return Data(
            query=clip,
            positive=near,
            negative=far,
            query_steps=torch.tensor([len(clip)]),
            positive_steps=torch.tensor([len(near)]),
            negative_steps=torch.tensor([len(far)]),
            num_nodes=1,
        )


def similar_windows(truth: tuple[int, int], num_steps: int) -> Tensor:
    """Every whole-step window with tIoU over 0.8 with a ground truth, int64 ``[P, 2]``.

    Example:
        >>> similar_windows((4, 10), 20).tolist()
        [[3, 10], [4, 9], [4, 10], [4, 11], [5, 10]]
    """
    start, end = truth
    # A boundary further away than a quarter of the truth's length leaves the tIoU at 0.8 or less.
    reach = (end - start) // 4
    starts = torch.arange(max(start - reach, 0), start + reach + 1)
    ends = torch.arange(end - reach, min(end + reach, num_steps) + 1)
    windows = torch.cartesian_prod(starts, ends)
    return windows[tiou(windows, torch.tensor([truth])) > POSITIVE_TIOU]


def distant_windows(length: int, truths: list[tuple[int, int]], num_steps: int) -> Tensor:
    """Every window of a length with tIoU below 0.2 with each ground truth, int64 ``[P, 2]``."""
    starts = torch.arange(max(num_steps - length + 1, 0))
    windows = torch.stack([starts, starts + length], dim=1)
    overlap = tiou(windows[:, None], torch.tensor(truths)[None])
    return windows[(overlap < NEGATIVE_TIOU).all(dim=1)]
