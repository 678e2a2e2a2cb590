"""Ours: the paper's graphs over similarities alone, so that one set of weights fits any features.

The paper's own network (:mod:`relocal_pyg.models.multi_graph`) reads features and needs labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Batch, Data

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pair_data import resample, window_positions
from relocal_pyg.data.proposals import ROUNDS, look_closer
from relocal_pyg.data.samples import ListDataset, WindowList
from relocal_pyg.errors import UsageError
from relocal_pyg.graph import PairGraph
from relocal_pyg.models.base import Ranking, Surroundings, TrainableRelocalizer, evaluating
from relocal_pyg.models.compare import (
    MEASURES,
    NUM_KIND,
    NUM_MEASURES,
    NUM_NODE,
    NUM_PLACED,
    TABLES,
    Comparison,
    similarity_tables,
)
from relocal_pyg.models.network_config import MatcherConfig
from relocal_pyg.moments import Moment
from relocal_pyg.nn.inference import InferenceNetwork
from relocal_pyg.nn.losses import listwise_loss
from relocal_pyg.nn.network import MultiGraphFusion, PairEncoder, PairNetwork

#: Windows scored at once: bounds memory, changes no result.
CHUNK = 1024
#: Ways to refine: proposals as they are, or finer windows around the best as well.
REFINEMENTS = ("none", "windows")
#: Numbers of a comparison beyond which it is large; of the usual videos an hour and more.
MANY_NUMBERS = 30_000_000
#: Windows of a reference that the network scores, at most.
MOST = 2500
#: Steps of the shortest queries of training; the steps of shorter ones are cut in :data:`PARTS`.
SHORTEST = 4
#: Equal parts of a step, each with its row.
PARTS = 4
#: Unit of the score before its tanh, in logits of a ranking.
UNIT = 0.1


@dataclass(frozen=True)
class Inputs:
    """One query and some windows of one reference, as the network sees them.

    Attributes:
        query: Nodes ``[T, C]``.
        query_mask: ``[T]``, False at padding.
        windows: Nodes ``[M, T, C]``.
        mask: ``[M, T]``.
        scalars: ``[M, S]``, what the head is told of each window.
        kind: ``[D]``, what it is told of the pair.
    """

    query: Tensor
    query_mask: Tensor
    windows: Tensor
    mask: Tensor
    scalars: Tensor
    kind: Tensor


class Member(nn.Module):
    """One of the networks whose mean score is the matcher's: encoder, graphs and head."""

    #: Padded steps stay out of the LSTMs, of edges and of the pool.
    mask_padding = True

    def __init__(self, config: MatcherConfig, graphs: Sequence[PairGraph]) -> None:
        super().__init__()
        self.graphs, self.blind = graphs, config.blind
        width, inner = config.hidden_channels, config.head_channels
        self.encoder = PairEncoder(NUM_NODE + NUM_PLACED, width, dropout=0.0)
        self.fusion = MultiGraphFusion(
            width, len(config.ks), config.num_layers, residual=True, graph_conv=config.graph_conv
        )
        self.weigh = nn.Sequential(
            nn.Linear(NUM_KIND, inner // 2), nn.Tanh(), nn.Linear(inner // 2, 2 * NUM_MEASURES)
        )
        told = width + 2 * NUM_MEASURES + 2 + NUM_KIND
        self.head = nn.Sequential(
            nn.Linear(told, inner),
            nn.LayerNorm(inner),
            nn.Tanh(),
            nn.Linear(inner, inner // 2),
            nn.LayerNorm(inner // 2),
            nn.Tanh(),
            nn.Linear(inner // 2, 1),
        )
        for layer in (self.weigh[-1], self.head[-1]):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():  # starts at inside minus around, the first measure
            self.weigh[-1].bias[0] = 1  # type: ignore[operator]

    def forward(self, inputs: Sequence[Inputs]) -> Tensor:
        """Logits ``[sum M]`` of the windows of several pairs."""
        owner = torch.cat(
            [torch.full_like(p.mask[:, 0], n, dtype=torch.long) for n, p in enumerate(inputs)]
        )
        query_mask = torch.stack([part.query_mask for part in inputs])
        told = next(self.parameters()).dtype
        rows = torch.stack([p.query for p in inputs]).to(told)
        query = self.encoder.encode_query(rows, query_mask)
        mask = torch.cat([part.mask for part in inputs])
        rows = torch.cat([p.windows for p in inputs]).to(told)
        hidden = self.encoder.encode_proposal(rows, mask)
        nodes = torch.cat([query[owner], hidden], dim=1)
        real = torch.cat([query_mask[owner], mask], dim=1)
        pooled = self.fusion.pooled(nodes, self.graphs, real, nodes.shape[1])
        kind = torch.stack([part.kind for part in inputs])
        return self.weigh_windows(pooled, torch.cat([p.scalars for p in inputs]), kind, owner)

    def weigh_windows(self, pooled: Tensor, scalars: Tensor, kind: Tensor, owner: Tensor) -> Tensor:
        """Logits ``[M]`` from the pooled graphs and what the head is told beside them.

        They are ``[M, d]``, ``[M, S]`` and ``[V, D]``; ``owner`` says to which of the V pairs a
        window belongs.
        """
        scalars, kind = scalars.to(pooled), kind.to(pooled)
        if self.training:
            kept = torch.rand(len(kind), 1, device=kind.device) >= self.blind
            kind = kind * kept
        prior = (self.weigh(kind)[owner] * scalars[:, : 2 * NUM_MEASURES]).sum(dim=1)
        added: Tensor = self.head(torch.cat([pooled, scalars, kind[owner]], dim=1)).squeeze(1)
        return prior + added


class MultiGraphMatcher(TrainableRelocalizer):
    """The multi-graph network over similarities of steps: features of any width, no labels.

    A node carries how its step compares with the other video; a head reads the pooled graph next to
    numbers that classic matchers would give the window, standardised by what chance gives on the
    same reference. The score is a mixture of those numbers, weighed for each pair, plus what the
    network has to add, the mean over a few networks; untrained, it ranks as the contrast matcher
    does.

    Args:
        **settings: Fields of :class:`MatcherConfig`.

    Raises:
        UsageError: A setting is out of range.

    Example:
        >>> model = MultiGraphMatcher(hidden_channels=16, num_steps=8).eval()
        >>> len(model.localize(torch.rand(4, 8), torch.rand(30, 8), top_k=2))
        2
    """

    title = "Multi-graph matcher"
    ends_in_tanh = True
    starts_informed = True
    max_videos = 128  # comparing two videos is most of the work
    refines: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = config = MatcherConfig(**settings)
        if config.paces[0] != 1:
            raise UsageError(f"paces {config.paces}: 1 first, and others between 0.1 and 10 wanted")
        self.graphs = [
            PairGraph(config.num_steps, k, config.weight, normalization=config.normalization)
            for k in config.ks
        ]
        members = (Member(config, self.graphs) for _ in range(config.num_members))
        self.members = cast("Sequence[Member]", nn.ModuleList(members))
        self.register_buffer("refines", torch.tensor(1))

    @classmethod
    def from_config(cls, config: MatcherConfig) -> MultiGraphMatcher:
        """Build the network from a preset's settings, untrained."""
        return cls(**asdict(config))

    @classmethod
    def pretrained(cls) -> MultiGraphMatcher:
        """The weights that come with the package: trained on simulated worlds, ready to use."""
        from relocal_pyg.models.checkpoint import load_model

        model = load_model("pretrained")
        assert isinstance(model, cls)
        return model

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return asdict(self.settings)

    # What the network sees

    def look(self, comparison: Comparison, windows: Tensor) -> Inputs:
        """The inputs of some windows ``[M, 2]`` (steps) of a reference that was compared."""
        query, query_mask = self.query_nodes(comparison)
        positions, mask = self.shown(comparison, windows)
        placed = comparison.placed(windows, positions, mask)
        nodes = torch.cat([comparison.reference_nodes[positions], placed], dim=-1)
        nodes = nodes * mask[..., None]
        scalars = comparison.scalars(windows)
        return Inputs(query, query_mask, nodes, mask, scalars, comparison.kind)

    def shown(self, comparison: Comparison, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Which steps are shown of windows and of what is around them: ``[M, T]`` and mask."""
        count = len(comparison.reference_nodes)
        side = (windows[:, 1:] - windows[:, :1]) * self.settings.context
        wider = torch.cat([windows[:, :1] - side, windows[:, 1:] + side], dim=1).clamp(0, count)
        return window_positions(count, wider, self.settings.num_steps)

    def query_nodes(self, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """Nodes ``[T, C]`` of the query and mask; all of it is inside, at its own place."""
        nodes = comparison.query_nodes
        placed = nodes.new_zeros(len(nodes), NUM_PLACED)
        placed[:, 0] = 1
        placed[:, 1] = (torch.arange(len(nodes), device=nodes.device) + 0.5) / len(nodes) - 0.5
        return resample(torch.cat([nodes, placed], dim=1), self.settings.num_steps)

    # Scores with gradients

    def forward(self, inputs: Sequence[Inputs]) -> Tensor:
        """Scores ``[sum M]`` of the windows of several pairs before the last tanh."""
        logits = torch.stack([member(inputs) for member in self.members]).mean(dim=0)
        return UNIT * (logits + self.plain(torch.cat([part.scalars for part in inputs])))

    def plain(self, scalars: Tensor) -> Tensor:
        """Logits ``[M]`` of the contrast of rows and of smoothed rows as they are."""
        contrasts = scalars[:, NUM_MEASURES :: len(MEASURES)][:, :2].sum(dim=1)
        return self.settings.contrast * contrasts

    # Ranking

    @torch.no_grad()
    def scorer(
        self,
        query: Tensor,
        reference: Tensor,
        query_video: Tensor | None = None,
        background: Tensor | None = None,
        seconds_per_step: float | None = None,
        inference: Sequence[InferenceNetwork] | None = None,
    ) -> WindowScorer:
        """Scores of any windows of one reference, without gradients, by exact algebra.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            query_video: ``[v, F]`` or None.
            background: Row ``[F]`` that both sides are centred by, or None: see
                :func:`relocal_pyg.models.compare.similarity_tables`.
            seconds_per_step: Duration of a step, or None: likewise.
            inference: A result of :meth:`inference` to use again; made on the spot where None.
        """
        merged = self.inference() if inference is None else inference
        with evaluating(self):
            comparisons = [
                Comparison(
                    stretched(query, pace), reference, query_video, background, seconds_per_step
                )
                for pace in self.settings.paces
            ]
            return WindowScorer(self, comparisons, merged)

    def inference(self) -> list[InferenceNetwork]:
        """The weights of each member as they are now, merged for inference."""
        # It has all of a PairNetwork that pooled() reads; its head is another.
        members = cast("Sequence[PairNetwork]", self.members)
        return [InferenceNetwork(member, self.graphs) for member in members]

    @property
    def dtype(self) -> torch.dtype:
        """Videos are compared in float32 at least: short floats are for the network alone."""
        return torch.promote_types(super().dtype, torch.float32)

    @property
    def refinements(self) -> tuple[str, ...]:
        """:data:`REFINEMENTS`."""
        return REFINEMENTS

    @property
    def refinement(self) -> str:
        """The way to refine that :meth:`rank` takes."""
        return REFINEMENTS[int(self.refines)]

    def set_refinement(self, way: str) -> None:
        """Remember which way validated best."""
        self.refines.fill_(REFINEMENTS.index(way))

    @property
    def rounds(self) -> Sequence[Sequence[float]]:
        """:data:`relocal_pyg.data.proposals.ROUNDS` where finer windows are looked at."""
        return ROUNDS if self.refinement == "windows" else ()

    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Score proposals, and finer windows around the best unless validation said otherwise.

        Of more than :data:`MOST` proposals the network sees those of
        :meth:`WindowScorer.shortlist`; the others are left out of the ranking.
        """
        way = self.refinement
        return self._ways(query, reference, proposals, around, ways=(way,))[way]

    def rankings(
        self, query: Tensor, reference: Tensor, proposals: Tensor, **known: Any
    ) -> dict[str, Ranking]:
        """The answers by each of :attr:`refinements`; arguments as in :meth:`rank`."""
        return self._ways(*self._enter(query, reference, proposals, Surroundings(**known)))

    @torch.no_grad()
    def rank_videos(
        self, query: Tensor, references: Sequence[Tensor], proposals: Sequence[Tensor], **known: Any
    ) -> list[Ranking]:
        """See :meth:`relocal_pyg.models.base.Relocalizer.rank_videos`."""
        merged, around = self.inference(), Surroundings(**known)
        pairs = zip(references, proposals, strict=True)
        entered = (self._enter(query, *pair, around) for pair in pairs)
        return [self._ways(*each, merged, ("none",))["none"] for each in entered]

    @torch.no_grad()
    def _ways(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        around: Surroundings,
        inference: Sequence[InferenceNetwork] | None = None,
        ways: Sequence[str] = REFINEMENTS,
    ) -> dict[str, Ranking]:
        """The answers by each of ``ways``; query and reference are compared once."""
        query, reference, around, parts = in_parts(query, reference, around)
        known = around.query_video, around.background, around.seconds_per_step
        score = self.scorer(query, reference, *known, inference)
        if len(proposals) > MOST:
            proposals = proposals[score.shortlist(proposals * parts, MOST)]
        raw = score(proposals * parts)
        found = {"none": Ranking.sort(proposals, torch.tanh(raw), proposals)}
        if "windows" in ways:
            moments, raw, origins = look_closer(proposals * parts, raw, score, len(reference))
            moments = score.comparison.aligned(moments) / parts
            found["windows"] = Ranking.sort(moments, torch.tanh(raw), origins / parts)
        return found

    def _explain(
        self, query: Tensor, reference: Tensor, window: Tensor, around: Surroundings
    ) -> Tensor:
        """How much each pair of steps added to the score of a moment.

        Gradient times input over the five tables of the query as it is, summed: what a small change
        would do. Whatever else is derived from a table follows it, except what chance gives.
        """
        query, reference, around, parts = in_parts(query, reference, around)
        # Only in training does cudnn keep what the gradient of an LSTM needs.
        with evaluating(self), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            known = around.query_video, None, around.seconds_per_step
            tables = similarity_tables(query, reference, *known).requires_grad_()
            comparison = Comparison(query, reference, *known, tables)
            raw = self([self.look(comparison, window * parts)])
            (gradient,) = torch.autograd.grad(raw.sum(), tables)
        added = (gradient * tables).sum(dim=0).detach()
        return added.view(len(query) // parts, parts, -1, parts).sum(dim=(1, 3))

    def scored_span(self, moment: Moment) -> tuple[float, float]:
        """A finer window is scored itself."""
        return moment.start, moment.end

    # Training

    def training_set(
        self, protocol: Protocol, *, num_samples: int, seed: int
    ) -> torch.utils.data.Dataset[Data]:
        """Lists of the protocol's ``"train"`` split."""
        return ListDataset(
            protocol,
            num_samples=num_samples,
            seed=seed,
            list_length=self.settings.list_length,
            far_proposals=self.settings.far_proposals,
            target_temperature=self.settings.target_temperature,
        )

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of each list of the batch."""
        return self.list_losses([WindowList.of(sample) for sample in batch.to_data_list()])

    def list_losses(self, lists: Sequence[WindowList]) -> dict[str, Tensor]:
        """Cross entropy of lists, whose features may differ in width from list to list."""
        inputs, counts = [], []
        for each in lists:
            for reference, windows in zip(each.references, each.windows, strict=True):
                known = each.query_video, each.background, each.seconds_per_step
                with torch.no_grad():
                    found = Comparison(each.query, reference, *known)
                    inputs.append(self.look(found, windows))
            counts.append(sum(map(len, each.windows)))
        losses = []
        for each, raw in zip(lists, self(inputs).split(counts), strict=True):
            overlap = torch.cat(list(each.overlaps)).to(raw)[None]
            loss = listwise_loss(raw[None], overlap, target_temperature=each.temperature)
            losses.append(loss)
        loss = torch.stack(losses).mean()
        return {"loss": loss, "ranking": loss}


def is_large(query: Tensor, steps: int) -> bool:
    """Whether a query ``[m, F]`` and a reference of so many steps take more than about a gigabyte.

    The matcher holds rows and tables whole; the contrast matcher reads blocks.
    """
    return steps * max(query.shape[1], 8 * len(query)) > MANY_NUMBERS


def in_parts(
    query: Tensor, reference: Tensor, around: Surroundings
) -> tuple[Tensor, Tensor, Surroundings, int]:
    """A short query and its videos with each step in :data:`PARTS`, and in how many it is.

    What training never showed, a query of fewer than :data:`SHORTEST` steps, is then none.
    """
    if len(query) >= SHORTEST or is_large(query, PARTS * len(reference)):
        return query, reference, around, 1
    query, reference = (rows.repeat_interleave(PARTS, dim=0) for rows in (query, reference))
    video, seconds = around.query_video, around.seconds_per_step
    finer = replace(
        around,
        query_video=None if video is None else video.repeat_interleave(PARTS, dim=0),
        seconds_per_step=None if seconds is None else seconds / PARTS,
    )
    return query, reference, finer, PARTS


def stretched(rows: Tensor, pace: float) -> Tensor:
    """Rows ``[n, F]`` brought to ``pace`` times their number, at least two, along straight lines.

    Example:
        >>> stretched(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), 0.5).flatten().tolist()
        [1.0, 5.0]
    """
    if pace == 1:
        return rows
    count = max(2, round(len(rows) * pace))
    return functional.interpolate(rows.T[None], count, mode="linear", align_corners=False)[0].T


class WindowScorer:
    """Scores of any windows of one reference: query and reference are compared once for all."""

    def __init__(
        self,
        model: MultiGraphMatcher,
        comparisons: Sequence[Comparison],
        inference: Sequence[InferenceNetwork],
    ) -> None:
        self.model, self.comparison, self.inference = model, comparisons[0], inference
        self._queries = []
        for comparison in comparisons:
            nodes, mask = model.query_nodes(comparison)
            rows, real = nodes[None].to(next(model.parameters())), mask[None]
            hidden = [member.encoder.encode_query(rows, real)[0] for member in model.members]
            self._queries.append((comparison, hidden, mask))

    @torch.no_grad()
    def __call__(self, windows: Tensor) -> Tensor:
        """Scores ``[M]``, before the last tanh, of windows ``[M, 2]`` in steps."""
        model, found = self.model, []
        with evaluating(model):
            for part in windows.split(CHUNK):
                positions, mask = model.shown(self.comparison, part)
                owner = torch.zeros_like(positions[:, 0])
                scores = []
                for comparison, queries, query_mask in self._queries:
                    placed = comparison.placed(part, positions, mask)
                    scalars, kind = comparison.scalars(part), comparison.kind[None]
                    members = zip(model.members, queries, self.inference, strict=True)
                    for member, query, merged in members:
                        rows = comparison.reference_nodes.to(merged.exact)
                        states = merged.encode(rows, positions, mask, placed)
                        pooled = merged.pooled(query, query_mask, states, mask)
                        logits = member.weigh_windows(pooled, scalars, kind, owner)
                        scores.append(UNIT * (logits + model.plain(scalars)))
                found.append(torch.stack(scores).mean(dim=0))
        return torch.cat(found)

    @torch.no_grad()
    def shortlist(self, windows: Tensor, count: int) -> Tensor:
        """Positions, in order, of at most ``count`` windows ``[M, 2]`` worth the network's time.

        By contrast and diagonal alone, prefix sums and a few look-ups; no window is made. Half of
        them are the best of the two as the network weighs them for this pair, the others the best
        by each in each table: of the same footage one of these is far ahead of all else, further
        than any world of training showed.
        """
        quick = self.comparison.quick(windows)
        # Of two windows of one reference a measure says the same, standardised or not.
        kind = self.comparison.kind.to(next(self.model.parameters()))
        told = [member.weigh(kind) for member in self.model.members]
        standard, plain = torch.stack(told).mean(dim=0).chunk(2)
        weights = standard / self.comparison.scale + plain
        score = quick @ weights.view(len(TABLES), -1)[:, :2].flatten()
        best = [score.topk(min(count // 2, len(windows))).indices]
        each = min(count // 2 // quick.shape[1], len(windows))
        best.append(quick.topk(each, dim=0).indices.flatten())
        return torch.cat(best).unique()
