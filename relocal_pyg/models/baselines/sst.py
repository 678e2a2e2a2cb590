"""The SST baseline: single-stream temporal action proposals, which never look at the query."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torch_geometric.data import Data

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.samples import SeededSamples
from relocal_pyg.io.seeding import generator
from relocal_pyg.models.base import Ranking, Surroundings, TrainableRelocalizer, arguments
from relocal_pyg.models.matchers import CosineMatcher
from relocal_pyg.moments import nms, tiou

#: An anchor is positive where its tIoU with an action is larger (JaywongWang/SST-Tensorflow).
POSITIVE_TIOU = 0.5

#: Blocks in a training sample: 2048 frames at 16 a step, and one (JaywongWang/SST-Tensorflow).
TRAINING_BLOCKS = 129

#: Most confident anchors that non-maximum suppression looks at.
CONSIDERED = 5000

#: Training samples looked at to balance the anchors.
COUNTED = 500

#: Bounds of the weight of positives.
LARGEST_WEIGHT = 100.0


class SST(TrainableRelocalizer):
    r"""Single-stream temporal action proposals (Buch et al., CVPR 2017; section 5.3.1).

    A stack of GRUs reads the reference once; at each time ``t`` K sigmoids say whether an action
    ends there that started ``j`` steps before: anchor ``(t, j)`` is ``[t - j, t + 1)``,
    ``j = 0 .. K - 1``. With :math:`y_{tj} = 1` where its tIoU with an action is over 0.5,

    .. math:: L = -\mathrm{mean}_{t,\, j \le t}\; w_j\, y_{tj} \log c_{tj}
        + (1 - y_{tj}) \log(1 - c_{tj})

    with :math:`w_j` the ratio of negatives to positives of anchor j in training. The answer is the
    most confident anchor after non-maximum suppression at tIoU 0.8. The query is ignored, and so
    are given proposals. Sizes follow JaywongWang/SST-Tensorflow: 2 layers of 128, K = 32, dropout
    0.3, Adam 1e-3. The published code writes segments that end a step early; here they do not. The
    paper says that SST "also use triplet as training input", which the loss has no place for: it is
    trained as in its own publication, on actions of every class.

    The anchors are too short for some data sets. The reference is then read in blocks of ``stride``
    steps, each averaged; ``stride`` is such that K blocks cover 95 % of the training moments.

    Args:
        in_channels: Width F of a feature step.
        hidden_channels: Width of the GRUs.
        num_layers: GRUs in the stack.
        num_anchors: K.
        dropout: Between GRUs and before the sigmoids.
        stride: Steps of a block; found in training where None.
        nms_threshold: Of two anchors with a larger tIoU only the more confident is kept.
        rerank: "SST + cosine", ours: of the ``num_reranked`` most confident answers, the order is
            that of the cosine of the query's mean and the moment's.
        num_reranked: See ``rerank``.

    Example:
        >>> model = SST(8, 16, num_anchors=4).eval()
        >>> ranking = model.rank(torch.rand(2, 8), torch.rand(9, 8), None)
        >>> bool((ranking.moments[:, 1] - ranking.moments[:, 0]).max() <= 4)
        True
    """

    title = "SST"

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 128,
        *,
        num_layers: int = 2,
        num_anchors: int = 32,
        dropout: float = 0.3,
        stride: int | None = None,
        nms_threshold: float = 0.8,
        rerank: bool = False,
        num_reranked: int = 50,
    ) -> None:
        self._config = arguments(locals())
        super().__init__()
        self.in_channels = in_channels
        self.num_anchors = num_anchors
        self.fixed_stride = stride
        self.nms_threshold = nms_threshold
        self.rerank = rerank
        self.num_reranked = num_reranked
        if rerank:
            self.title = "SST + cosine"
        self.gru = nn.GRU(
            in_channels,
            hidden_channels,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.confidence = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(hidden_channels, num_anchors)
        )
        # Found in training and needed to read the weights: kept with them.
        self.stride: Tensor
        self.positive_weight: Tensor
        self.register_buffer("stride", torch.tensor(stride or 1))
        self.register_buffer("positive_weight", torch.ones(num_anchors))

    def forward(self, blocks: Tensor) -> Tensor:
        """Logits of the anchors, ``[..., n, F] -> [..., n, K]``; entry ``(t, j)`` ends at t."""
        states, _ = self.gru(blocks)
        logits: Tensor = self.confidence(states)
        return logits

    @torch.no_grad()
    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Rank the model's own moments (in steps) by confidence, or re-rank them by cosine."""
        stride = min(max(int(self.stride), 1), len(reference))
        confidence = torch.sigmoid(self(block_means(reference, stride)))
        blocks, number = confidence.shape
        anchors, valid = anchor_windows(blocks, number, confidence.device)
        anchors, scores = anchors[valid], confidence[valid]
        best = scores.argsort(descending=True, stable=True)[:CONSIDERED]
        moments = (anchors[best] * stride).clamp(max=len(reference)).to(reference.dtype)
        kept = nms(moments, scores[best], self.nms_threshold)
        moments, scores = moments[kept], scores[best][kept]
        if not self.rerank:
            return Ranking(moments, scores)
        ranking = CosineMatcher().rank(query, reference, moments[: self.num_reranked])
        return Ranking(ranking.moments, ranking.scores)

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Dataset[Data]:
        """Stretches of training references: :class:`AnchorSamples`.

        Sets ``stride``, where it is not fixed, and ``positive_weight`` from the training split.
        """
        items = protocol.splits["train"]
        if self.fixed_stride is None:
            lengths = np.array([item.query_steps for item in items])
            self.stride.fill_(math.ceil(float(np.quantile(lengths, 0.95)) / self.num_anchors))
        samples = AnchorSamples(
            protocol,
            num_samples=num_samples,
            seed=seed,
            num_anchors=self.num_anchors,
            stride=int(self.stride),
        )
        self.positive_weight.copy_(samples.positive_weight())
        return samples

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Weighted binary cross entropy of a batch of :class:`AnchorSamples`."""
        steps = batch.reference_steps
        lengths = steps.tolist()
        references = pad_sequence(list(batch.reference.split(lengths)), batch_first=True)
        labels = pad_sequence(list(batch.labels.split(lengths)), batch_first=True)
        logits = self(references)
        _, valid = anchor_windows(logits.shape[1], logits.shape[2], steps.device)
        inside = torch.arange(logits.shape[1], device=steps.device) < steps[:, None]
        valid = valid & inside[..., None]
        loss = functional.binary_cross_entropy_with_logits(
            logits[valid], labels[valid], pos_weight=self.positive_weight.expand_as(logits)[valid]
        )
        return {"loss": loss}


class AnchorSamples(SeededSamples[Data]):
    """Samples of a stretch of a reference and the labels of its anchors.

    A sample is at most :data:`TRAINING_BLOCKS` blocks around an action drawn uniformly: ``Data``
    with ``reference`` ``[n, F]`` (means of ``stride`` steps), ``labels`` ``[n, K]`` and
    ``reference_steps`` ``[1]``. Sample ``i`` depends on ``(seed, i)`` alone.
    """

    stream = "anchors"

    def __init__(
        self, protocol: Protocol, *, num_samples: int, seed: int, num_anchors: int, stride: int
    ) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        self.num_anchors, self.stride = num_anchors, stride
        self._items = sorted(protocol.splits["train"])
        # Proposals know no classes: whatever class an action of the video has, it is one.
        self._actions: dict[str, set[tuple[int, int]]] = {}
        for item in self._items:
            self._actions.setdefault(item.video_id, set()).update(item.moments)

    def draw(self, rng: np.random.Generator) -> Data:
        """Draw a stretch of a reference and label its anchors."""
        item, start, end = self._stretch(rng)
        features = self.protocol.features.read(item.video_id, start, end)
        blocks = block_means(features, self.stride)
        return Data(
            reference=blocks,
            labels=self._labels(item, start, end),
            reference_steps=torch.tensor([len(blocks)]),
            num_nodes=1,
        )

    def positive_weight(self) -> Tensor:
        """Ratio of negatives to positives of each anchor ``[K]``, between 1 and 100."""
        positives, total = torch.zeros(self.num_anchors), torch.zeros(self.num_anchors)
        for number in range(COUNTED):
            item, start, end = self._stretch(generator(self.seed, "balance", number))
            labels = self._labels(item, start, end)
            _, valid = anchor_windows(*labels.shape)
            positives += (labels * valid).sum(dim=0)
            total += valid.sum(dim=0)
        return ((total - positives) / positives.clamp(min=1e-3)).clamp(1, LARGEST_WEIGHT)

    def _stretch(self, rng: np.random.Generator) -> tuple[Item, int, int]:
        """An item and the steps of its video that are shown, with its moment inside."""
        item = self._items[int(rng.integers(len(self._items)))]
        size = min(item.num_steps, TRAINING_BLOCKS * self.stride)
        first, last = item.context[0], item.context[1] - size
        low = min(max(item.moment[1] - size, first), last)
        high = max(min(item.moment[0], last), low)
        start = int(rng.integers(low, high + 1))
        return item, start, start + size

    def _labels(self, item: Item, start: int, end: int) -> Tensor:
        anchors, _ = anchor_windows(-(-(end - start) // self.stride), self.num_anchors)
        actions = torch.tensor(sorted(self._actions[item.video_id]), dtype=torch.float64) - start
        overlap = tiou(anchors[..., None, :] * float(self.stride), actions)
        return (overlap > POSITIVE_TIOU).any(dim=-1).float()


def anchor_windows(
    num_blocks: int, num_anchors: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Anchors ``[t - j, t + 1)`` in blocks ``[n, K, 2]``, and which start inside the video.

    Example:
        >>> windows, valid = anchor_windows(3, 2)
        >>> windows[2].tolist(), valid[0].tolist()
        ([[2, 3], [1, 3]], [True, False])
    """
    end = torch.arange(num_blocks, device=device)[:, None].expand(-1, num_anchors)
    start = end - torch.arange(num_anchors, device=device)
    return torch.stack([start, end + 1], dim=-1), start >= 0


def block_means(features: Tensor, stride: int) -> Tensor:
    """Means of blocks of ``stride`` steps, the last maybe shorter: ``[ceil(n / stride), F]``.

    Example:
        >>> block_means(torch.tensor([[1.0], [3.0], [5.0]]), 2).flatten().tolist()
        [2.0, 5.0]
    """
    missing = -len(features) % stride
    padded = functional.pad(features, (0, 0, 0, missing)).unflatten(0, (-1, stride))
    counts = torch.full((len(padded), 1), float(stride), device=features.device)
    counts[-1] -= missing
    return padded.sum(dim=1) / counts.to(features.dtype)
