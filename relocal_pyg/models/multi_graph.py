"""The network of the paper: multi-graph feature fusion over query and proposal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.samples import ListDataset, TripletDataset
from relocal_pyg.errors import FeatureError, UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.models.base import Ranking, TrainableRelocalizer
from relocal_pyg.models.explanations import explain_by_edges, explain_by_similarity
from relocal_pyg.models.listwise import listwise_losses
from relocal_pyg.models.network_config import NetworkConfig
from relocal_pyg.models.pair_inputs import PairInputBuilder, PairInputs
from relocal_pyg.models.refining import REFINEMENTS, Refinement, refine
from relocal_pyg.models.window_scorer import WindowScorer
from relocal_pyg.moments import Moment
from relocal_pyg.nn.distributed import sum_over_ranks
from relocal_pyg.nn.inference import PairScoring
from relocal_pyg.nn.losses import offset_loss, triplet_loss
from relocal_pyg.nn.network import PairNetwork

#: Largest score that its tanh is undone for: the last float32 below 1.
SATURATED = 1 - 2**-24


class MultiGraphRelocalizer(TrainableRelocalizer):
    r"""Multi-graph feature fusion (Zhou et al., arXiv 2007.09877, sections 4.2 to 4.8).

    Query and proposal are brought to T steps, pass an LSTM each, become the ``2T`` nodes of K
    graphs, pass L multi-graph layers, are averaged, and two heads give the score in ``[-1, 1]`` and
    the offsets ``[Tc, Tl]``. With the defaults this is the paper's network to the letter;
    ``graph_conv=False`` is its "Ours (CNN)".

    Args:
        in_channels: Width F of a feature step.
        **network: Fields of :class:`NetworkConfig`.

    Raises:
        UsageError: A setting is out of range.

    Example:
        >>> model = MultiGraphRelocalizer(8, hidden_channels=16, num_steps=5).eval()
        >>> moments = model.localize(torch.rand(4, 8), torch.rand(30, 8), top_k=2)
        >>> len(moments)
        2
    """

    title = "Multi-graph fusion"
    refines: Tensor

    def __init__(self, in_channels: int, **network: Any) -> None:
        super().__init__()
        network["ks"] = tuple(network.get("ks", NetworkConfig.ks))
        network["head_channels"] = tuple(network.get("head_channels", NetworkConfig.head_channels))
        self.in_channels = in_channels
        self.network_config = config = NetworkConfig(**network)
        if in_channels < 1 or config.num_steps < 1 or not config.ks:
            raise UsageError("in_channels and num_steps must be at least 1, ks not empty")
        if not config.target_temperature > 0:
            raise UsageError("target_temperature must be above 0")
        self.graphs = [
            PairGraph(config.num_steps, k, config.weight, normalization=config.normalization)
            for k in config.ks
        ]
        self.inputs = PairInputBuilder(in_channels, config)
        self.network = PairNetwork(
            self.inputs.out_channels,
            config.hidden_channels,
            num_graphs=len(config.ks),
            num_layers=config.num_layers,
            graph_conv=config.graph_conv,
            residual=config.residual,
            dropout=config.dropout,
            head_channels=config.head_channels,
            mask_padding=config.mask_padding,
            zero_start=config.prior != "none",
            head_norm=config.head_norm,
        )
        # Found in training and needed to use the weights: kept with them.
        self.register_buffer("refines", torch.tensor(REFINEMENTS.index("offsets")))

    @classmethod
    def from_config(cls, in_channels: int, config: NetworkConfig) -> MultiGraphRelocalizer:
        """Build the network from a preset's settings."""
        return cls(in_channels, **asdict(config))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"in_channels": self.in_channels, **asdict(self.network_config)}

    def parameter_groups(
        self, learning_rate: float, offset_learning_rate: float
    ) -> list[dict[str, Any]]:
        """Two groups: everything but the regression head, and the regression head.

        Two groups of one Adam are the paper's two Adams, because the regression head reads a
        detached vector (section 5.2.2).
        """
        head = list(self.network.offset_head.parameters())
        known = {id(parameter) for parameter in head}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [
            {"params": rest, "lr": learning_rate},
            {"params": head, "lr": offset_learning_rate, "weight_decay": 0.0},
        ]

    def forward(self, data: Data) -> tuple[Tensor, Tensor]:
        """Score a batch of :class:`PairData`.

        Args:
            data: ``x`` [B 2T, C], ``step_mask`` [B 2T]; where edges are stored they are used.

        Returns:
            Scores ``[B]`` in ``[-1, 1]`` and offsets ``[B, 2]``.

        Raises:
            FeatureError: ``x`` has another width, or its rows are no multiple of 2T.
        """
        x, mask = self._split(data)
        graphs = self._graphs(data)
        raw, offsets = self.network(x[:, 0], x[:, 1], graphs, mask[:, 0], mask[:, 1])
        return torch.tanh(raw), offsets

    def _split(self, data: Data) -> tuple[Tensor, Tensor]:
        """Features ``[B, 2, T, C]`` and mask ``[B, 2, T]`` of queries and proposals."""
        steps = self.network_config.num_steps
        if data.x.shape[-1] != self.inputs.out_channels or len(data.x) % (2 * steps):
            raise FeatureError(
                f"x has shape {tuple(data.x.shape)}, [B * {2 * steps}, "
                f"{self.inputs.out_channels}] wanted"
            )
        return data.x.view(-1, 2, steps, data.x.shape[-1]), data.step_mask.view(-1, 2, steps)

    def _graphs(self, data: Data) -> Sequence[Any]:
        """The edges that the data hold, or the graphs they stand for."""
        keys = [f"edge_index_k{k}" for k in self.network_config.ks]
        return [data[key] for key in keys] if all(key in data for key in keys) else self.graphs

    def score_proposals(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        query_video: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score the proposals of one reference.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
            query_video: ``[v, F]`` or None.

        Returns:
            Scores ``[M]`` in ``[-1, 1]`` and offsets ``[M, 2]``.
        """
        raw, offsets = self.raw_list_scores(query, reference, proposals, query_video)
        return torch.tanh(raw), offsets

    def raw_list_scores(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        query_video: Tensor | None,
        rotation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`score_proposals` before the last tanh, with gradients.

        Arguments as there; ``rotation``, orthogonal ``[F, F]``, turns every feature.
        """
        inputs = self.inputs(query, reference, proposals, query_video, rotation)
        raw, offsets = self.run(inputs)
        return raw + inputs.prior, offsets

    def run(self, inputs: PairInputs) -> tuple[Tensor, Tensor]:
        """The network alone: logits ``[M]`` without the prior, and offsets ``[M, 2]``."""
        hidden_query = self.network.encode_query(inputs.query_x[None], inputs.query_mask[None])
        hidden = self.network.encode_proposal(inputs.proposal_x, inputs.proposal_mask)
        count = len(hidden)
        return self.network.fuse(
            hidden_query.expand(count, -1, -1),
            hidden,
            self.graphs,
            inputs.query_mask.expand(count, -1),
            inputs.proposal_mask,
        )

    @torch.no_grad()
    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Score every proposal and refine each by the regression head (section 4.8).

        A network trained on lists refines in whichever way validated best, see
        :attr:`refinement`.
        """
        way = self.refinement
        return self.rankings(query, reference, proposals, query_video=query_video, ways=(way,))[way]

    @torch.no_grad()
    def rankings(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
        ways: Sequence[Refinement] | None = None,
        scoring: PairScoring | None = None,
    ) -> dict[str, Ranking]:
        """The answers of :meth:`rank` by each way to refine them.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
            query_video: ``[v, F]`` or None.
            ways: Some :attr:`refinements`; all where None.
            scoring: As in :meth:`score_fast`.
        """
        score: Callable[[Tensor], tuple[Tensor, Tensor]]
        if self.training:
            score = partial(self.raw_list_scores, query, reference, query_video=query_video)
        else:
            score = self.window_scorer(query, reference, query_video, scoring)
        raw, offsets = score(proposals)
        return {
            way: refine(way, proposals, raw, offsets, lambda w: score(w)[0], len(reference))
            for way in (self.refinements if ways is None else ways)
        }

    @property
    def refinements(self) -> tuple[Refinement, ...]:
        """The ways to refine that validation compares."""
        return REFINEMENTS if self.network_config.finer_windows else ("none", "offsets")

    @property
    def refinement(self) -> Refinement:
        """The way to refine that :meth:`rank` takes; until training chose one, by offsets."""
        return REFINEMENTS[int(self.refines)]

    def set_refinement(self, way: str) -> None:
        """Remember which way to refine validated best."""
        # The paper always refines by offsets; only a network trained on lists may choose.
        if self.network_config.objective == "listwise":
            self.refines.fill_(self.refinements.index(way))

    def explain(
        self,
        query: Tensor,
        reference: Tensor,
        moment: tuple[float, float],
        query_video: Tensor | None = None,
    ) -> Tensor:
        """How much each meeting of two steps added to the score of a moment.

        Gradient times input over the cosines of steps; for a network that does not compare steps,
        over the edges of the graphs between the videos. Both are first-order: they say what a small
        change would do, and do not sum to the score.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            moment: Start and end in steps: the proposal, where an answer was refined.
            query_video: ``[v, F]`` or None.

        Returns:
            ``[m, n]``, in units of the score before its tanh.

        Raises:
            UsageError: The network joins no steps (``graph_conv=False``).
        """
        was_training = self.training
        self.eval()
        place = torch.tensor([moment], dtype=reference.dtype)
        # Only in training does cudnn keep what the gradient of an LSTM needs.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            if self.inputs.compares:
                found = explain_by_similarity(self, query, reference, place, query_video)
            else:
                found = explain_by_edges(self, query, reference, place)
        self.train(was_training)
        return found

    def scored_span(self, moment: Moment) -> tuple[float, float]:
        """A finer window is scored itself; of an offset moment, its proposal was scored."""
        if self.refinement == "windows":
            return moment.start, moment.end
        return super().scored_span(moment)

    def raw_scores(self, scores: Tensor) -> Tensor:
        """Scores before the last tanh."""
        return torch.atanh(scores.double().clamp(-SATURATED, SATURATED))

    def scoring(self, dtype: torch.dtype | None = None, chunk: int | None = None) -> PairScoring:
        """The network's weights as they are now, merged for inference."""
        return PairScoring(self.network, self.graphs, dtype, chunk)

    def score_fast(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        query_video: Tensor | None = None,
        scoring: PairScoring | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`score_proposals` by exact algebra, for inference.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
            query_video: ``[v, F]`` or None.
            scoring: A result of :meth:`scoring` to use again; made on the spot where None.

        Returns:
            Scores ``[M]`` before the last tanh, and offsets ``[M, 2]``.
        """
        return self.window_scorer(query, reference, query_video, scoring)(proposals)

    @torch.no_grad()
    def window_scorer(
        self,
        query: Tensor,
        reference: Tensor,
        query_video: Tensor | None = None,
        scoring: PairScoring | None = None,
    ) -> WindowScorer:
        """:meth:`score_fast` for windows that come in several batches; arguments as there."""
        scoring = self.scoring() if scoring is None else scoring
        return WindowScorer(self.network, self.inputs, scoring, query, reference, query_video)

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Dataset[Any]:
        """Triplets, or lists, of the protocol's ``"train"`` split."""
        config = self.network_config
        if config.objective == "listwise":
            return ListDataset(
                protocol,
                num_samples=num_samples,
                seed=seed,
                list_length=config.list_length,
                far_proposals=config.far_proposals,
                target_temperature=config.target_temperature,
            )
        return TripletDataset(
            protocol,
            num_samples=num_samples,
            seed=seed,
            num_steps=config.num_steps,
            ks=config.ks,
            negatives=config.negatives,
        )

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch of triplets (section 4.7) or of lists."""
        if self.network_config.objective == "listwise":
            return listwise_losses(self, batch)
        positive, negative = batch
        # One pass over both sides, so that batch normalisation sees positives and negatives alike.
        scores, offsets = self._score_triplets(positive, negative)
        near, far = scores.chunk(2)
        ranking = sum_over_ranks(triplet_loss(near, far, self.network_config.margin))
        regression = offset_loss(offsets[: len(near)], positive.offsets)
        return {"loss": ranking + regression, "ranking": ranking, "regression": regression}

    def _score_triplets(self, positive: Batch, negative: Batch) -> tuple[Tensor, Tensor]:
        """Scores of all positives, then of all negatives; their common queries are encoded once."""
        near, near_mask = self._split(positive)
        far, far_mask = self._split(negative)
        network, query_mask = self.network, near_mask[:, 0].repeat(2, 1)
        mask = torch.cat([near_mask[:, 1], far_mask[:, 1]])
        graphs = [self._graphs(side) for side in (positive, negative)]
        if graphs[0] is not self.graphs:
            shift = len(positive.x)
            graphs[0] = [torch.cat([p, n + shift], dim=1) for p, n in zip(*graphs, strict=True)]
        raw, offsets = network.fuse(
            network.encode_query(near[:, 0], near_mask[:, 0]).repeat(2, 1, 1),
            network.encode_proposal(torch.cat([near[:, 1], far[:, 1]]), mask),
            graphs[0],
            query_mask,
            mask,
        )
        return torch.tanh(raw), offsets
