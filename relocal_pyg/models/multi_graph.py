"""The network of the paper: multi-graph feature fusion over query and proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pair_data import (
    PairData,
    resample,
    resample_positions,
    resample_windows,
    window_positions,
)
from relocal_pyg.data.samples import TripletDataset
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.models.base import (
    Ranking,
    Surroundings,
    TrainableRelocalizer,
    evaluating,
    separate,
)
from relocal_pyg.models.network_config import NetworkConfig, check_settings
from relocal_pyg.moments import decode_offsets
from relocal_pyg.nn.inference import InferenceNetwork
from relocal_pyg.nn.losses import offset_loss, triplet_loss
from relocal_pyg.nn.network import PairNetwork


class MultiGraphRelocalizer(TrainableRelocalizer):
    r"""Multi-graph feature fusion (Zhou et al., arXiv 2007.09877, sections 4.2 to 4.8).

    Query and proposal are brought to T steps, pass an LSTM each, become the ``2T`` nodes of K
    graphs, pass L multi-graph layers, are averaged, and two heads give the score in ``[-1, 1]`` and
    the offsets ``[Tc, Tl]``. With the defaults this is the paper's network to the letter;
    ``graph_conv=False`` is its "Ours (CNN)".

    Two methods score: :meth:`forward` with gradients, and :meth:`score` without, by exact algebra.

    Args:
        in_channels: Width F of a feature step.
        **settings: Fields of :class:`NetworkConfig`.

    Raises:
        UsageError: A setting is out of range.

    Example:
        >>> model = MultiGraphRelocalizer(8, hidden_channels=16, num_steps=5).eval()
        >>> moments = model.localize(torch.rand(4, 8), torch.rand(30, 8), top_k=2)
        >>> len(moments)
        2
    """

    title = "Multi-graph fusion"
    ends_in_tanh = True
    in_channels: int

    def __init__(self, in_channels: int, **settings: Any) -> None:
        super().__init__()
        self.in_channels = check_settings({"in_channels": in_channels})["in_channels"]
        self.settings = config = NetworkConfig(**settings)
        self.graphs = [
            PairGraph(config.num_steps, k, config.weight, normalization=config.normalization)
            for k in config.ks
        ]
        self.network = PairNetwork(
            self.in_channels,
            config.hidden_channels,
            num_graphs=len(config.ks),
            num_layers=config.num_layers,
            graph_conv=config.graph_conv,
            dropout=config.dropout,
            head_channels=config.head_channels,
            mask_padding=config.mask_padding,
        )

    @classmethod
    def from_config(cls, in_channels: int, config: NetworkConfig) -> MultiGraphRelocalizer:
        """Build the network from a preset's settings."""
        return cls(in_channels, **asdict(config))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"in_channels": self.in_channels, **asdict(self.settings)}

    # Scores with gradients

    def forward(self, data: Data) -> tuple[Tensor, Tensor]:
        """Score a batch of :class:`~relocal_pyg.data.PairData`.

        Args:
            data: ``x`` [B 2T, F], ``step_mask`` [B 2T]; where edges are stored and the network's
                are binary and not normalised, they are used.

        Returns:
            Scores ``[B]`` in ``[-1, 1]`` and offsets ``[B, 2]``.

        Raises:
            FeatureError: ``x`` has another width, or its pairs another T.
        """
        x, mask = self._split(data)
        graphs = self._graphs(data)
        raw, offsets = self.network(x[:, 0], x[:, 1], graphs, mask[:, 0], mask[:, 1])
        return torch.tanh(raw), offsets

    def _split(self, data: Data) -> tuple[Tensor, Tensor]:
        """Features ``[B, 2, T, F]`` and mask ``[B, 2, T]`` of queries and proposals."""
        steps = self.settings.num_steps
        pairs = getattr(data, "num_graphs", 1)  # of a batch
        if not isinstance(data, Batch | PairData):  # nodes may be of any number of pairs
            pairs = max(len(data.x) // (2 * steps), 1)
        wanted = [pairs * 2 * steps, self.in_channels]
        if list(data.x.shape) != wanted:
            raise FeatureError(
                f"x has shape {list(data.x.shape)}, {wanted} wanted: {pairs} pairs of T = {steps}"
            )
        return data.x.view(-1, 2, steps, self.in_channels), data.step_mask.view(-1, 2, steps)

    def _graphs(self, data: Data, more: Data | None = None) -> Sequence[Any]:
        """The stored edges, of two batches those of both, or the graphs that they stand for."""
        keys = [f"edge_index_k{k}" for k in self.settings.ks]
        # What is stored carries weights of its own choice, and no degrees.
        plain = self.settings.weight == "binary" and self.settings.normalization == "none"
        if not plain or not all(key in (more or data) and key in data for key in keys):
            return self.graphs
        if more is None:
            return [data[key] for key in keys]
        return [torch.cat([data[key], more[key] + len(data.x)], dim=1) for key in keys]

    # Scores without gradients

    @torch.no_grad()
    def score(
        self,
        query: Tensor,
        references: Sequence[Tensor],
        windows: Sequence[Tensor],
        inference: InferenceNetwork | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score windows of one reference, or of many together, by exact algebra.

        Args:
            query: ``[m, F]``.
            references: ``[n, F]`` each.
            windows: ``[., 2]`` in steps, for each reference; M in all.
            inference: A result of :meth:`inference` to use again; made on the spot where None.

        Returns:
            Scores ``[M]`` in ``[-1, 1]`` and offsets ``[M, 2]``, reference by reference.
        """
        merged = self.inference() if inference is None else inference
        lengths = torch.tensor([len(reference) for reference in references], device=query.device)
        counts = torch.tensor([len(some) for some in windows], device=query.device)
        owner = torch.arange(len(lengths), device=query.device).repeat_interleave(
            counts, output_size=sum(map(len, windows))
        )
        first = lengths.cumsum(dim=0) - lengths
        positions, mask = window_positions(
            lengths[owner], torch.cat(list(windows)), self.settings.num_steps
        )
        positions = positions + first[owner, None]
        with evaluating(self):
            hidden, real = self._encode_query(query)
            rows = torch.cat(list(references))
            raw, offsets = merged.score_windows(hidden, real, rows, positions, mask)
        return torch.tanh(raw), offsets

    def _encode_query(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[T, d]`` and mask ``[T]`` of a query ``[m, F]``."""
        x, mask = resample(query, self.settings.num_steps)
        return self.network.encode_query(x[None], mask[None])[0], mask

    def inference(self, dtype: torch.dtype | None = None) -> InferenceNetwork:
        """The weights as they are now, merged for inference; ``dtype`` as there."""
        return InferenceNetwork(self.network, self.graphs, dtype)

    # Ranking

    @property
    def refinements(self) -> tuple[str, ...]:
        """Proposals as they are, or moved by the regression head, as :meth:`rank` always does."""
        return ("none", "offsets")

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Score every proposal and move each by the regression head (section 4.8)."""
        scores, offsets = self.score(query, [reference], [proposals])
        return Ranking.sort(decode_offsets(proposals, offsets), scores, proposals)

    def rank_videos(
        self, query: Tensor, references: Sequence[Tensor], proposals: Sequence[Tensor], **_: Any
    ) -> list[Ranking]:
        """See :meth:`relocal_pyg.models.base.Relocalizer.rank_videos`."""
        own = next(self.parameters())
        windows = [some.to(own.device) for some in proposals]
        rows = [reference.to(own) for reference in references]
        scores, offsets = self.score(query.to(own), rows, windows)
        counts = [len(some) for some in windows]
        each = zip(windows, offsets.split(counts), scores.split(counts), strict=True)
        return [Ranking.sort(decode_offsets(*moved), score, moved[0]) for *moved, score in each]

    @torch.no_grad()
    def encode(self, reference: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """LSTM states ``[M, T, d]`` and lengths ``[M]``: the same of a proposal for every query."""
        rows, windows = reference.to(next(self.parameters())), proposals.to(self.device)
        positions, mask = window_positions(len(rows), windows, self.settings.num_steps)
        return self.inference().encode(rows, positions, mask).transpose(0, 1), mask.sum(dim=1)

    @torch.no_grad()
    def score_encoded(
        self, query: Tensor, states: Tensor, lengths: Tensor, proposals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`relocal_pyg.models.base.Relocalizer.score_encoded`."""
        own, device = next(self.parameters()), self.device
        mask = torch.arange(states.shape[1], device=device) < lengths.to(device)[:, None]
        hidden, real = self._encode_query(query.to(own))
        kept = states.to(own).transpose(0, 1)
        raw, offsets = self.inference().score(hidden, real, kept, mask)
        return decode_offsets(proposals.to(device), offsets), torch.tanh(raw)

    def _explain(
        self, query: Tensor, reference: Tensor, window: Tensor, around: Surroundings
    ) -> Tensor:
        """Gradient times weight over the edges between the videos, brought back from T steps.

        First-order: it says what a small change would do, and does not sum to the score. An edge
        counts in every layer and in both directions; steps that were thinned out get nothing.

        Raises:
            UsageError: The network joins no steps (``graph_conv=False``).
        """
        if not self.settings.graph_conv:
            raise UsageError(
                "a network without graph convolution joins no steps: nothing to explain"
            )
        steps = self.settings.num_steps
        with evaluating(self), torch.no_grad():
            hidden, mask = self._encode_query(query)
            x, shown = resample_windows(reference, window, steps)
            sides = hidden[None], self.network.encode_proposal(x, shown)
        masks = mask[None], shown
        real = torch.cat(masks, dim=1)[0] if self.settings.mask_padding else None
        edges, weights = [], []
        for graph in self.graphs:
            matrix = graph.matmul(torch.eye(2 * steps, device=query.device).to(query), real)
            target, source = matrix.nonzero(as_tuple=True)
            edges.append(torch.stack([source, target]))
            weights.append(matrix[target, source].requires_grad_())
        with evaluating(self), torch.enable_grad():
            raw, _ = self.network.fuse(*sides, edges, *masks, edge_weights=weights)
        gradients = torch.autograd.grad(raw.sum(), weights)
        slots = query.new_zeros(2 * steps, 2 * steps)
        for edge, weight, gradient in zip(edges, weights, gradients, strict=True):
            slots[edge[1], edge[0]] += gradient * weight.detach()
        joined = slots[:steps, steps:] + slots[steps:, :steps].T
        joined = joined * mask[:, None] * shown
        rows, _ = resample_positions(torch.tensor(len(query), device=query.device), steps)
        columns, _ = window_positions(len(reference), window, steps)
        table = query.new_zeros(len(query), len(reference))
        return table.index_put_((rows[:, None], columns), joined, accumulate=True)

    # Training

    def parameter_groups(
        self, learning_rate: float, offset_learning_rate: float
    ) -> list[dict[str, Any]]:
        """Everything but the regression head, and the regression head (section 5.2.2)."""
        head = list(self.network.offset_head.parameters())
        return separate(list(self.parameters()), head, learning_rate, offset_learning_rate)

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Dataset[Any]:
        """Triplets of the protocol's ``"train"`` split."""
        return TripletDataset(
            protocol,
            num_samples=num_samples,
            seed=seed,
            num_steps=self.settings.num_steps,
            ks=self.settings.ks,
            negatives=self.settings.negatives,
        )

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch of triplets (section 4.7)."""
        positive, negative = batch
        # One pass over both sides, so that batch normalisation sees positives and negatives alike.
        scores, offsets = self._score_triplets(positive, negative)
        near, far = scores.chunk(2)
        ranking = self.ranks * triplet_loss(near, far, self.settings.margin)
        regression = offset_loss(offsets[: len(near)], positive.offsets)
        return {"loss": ranking + regression, "ranking": ranking, "regression": regression}

    def _score_triplets(self, positive: Batch, negative: Batch) -> tuple[Tensor, Tensor]:
        """Scores of all positives, then of all negatives; their common queries are encoded once."""
        near, near_mask = self._split(positive)
        far, far_mask = self._split(negative)
        network, query_mask = self.network, near_mask[:, 0].repeat(2, 1)
        mask = torch.cat([near_mask[:, 1], far_mask[:, 1]])
        raw, offsets = network.fuse(
            network.encode_query(near[:, 0], near_mask[:, 0]).repeat(2, 1, 1),
            network.encode_proposal(torch.cat([near[:, 1], far[:, 1]]), mask),
            self._graphs(positive, negative),
            query_mask,
            mask,
        )
        return torch.tanh(raw), offsets
