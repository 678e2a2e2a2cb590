"""What a search index asks of a model: a fingerprint, what to keep of a video, exact scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from relocal_pyg.errors import UsageError
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
from relocal_pyg.moments import decode_offsets
from relocal_pyg.search.scorer import AdaptedPooling, CentredPooling, PairScorer, Pooling


class Engine(Protocol):
    """A model behind an index.

    Attributes:
        keeps_states: Whether a proposal is encoded once for every query.
        pooling: What a first stage looks at.
        looks_closer: Whether finer windows around the best moments are to be looked at as well.
    """

    keeps_states: bool
    pooling: Pooling
    looks_closer: bool

    def encode(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[M, T, d]`` of proposals and their lengths ``[M]``; empty where none are kept.

        Args:
            features: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
        """

    def score(self, query: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[M]`` and offsets ``[M, 2]`` of encoded proposals of any videos."""

    def answer(
        self,
        query: Tensor,
        videos: Sequence[Tensor],
        proposals: Sequence[Tensor],
        query_video: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments ``[M, 2]`` in steps, scores ``[M]``, and the number ``[M]`` of each one's video.

        Args:
            query: ``[m, F]``.
            videos: Features ``[n, F]`` of each.
            proposals: Some proposals ``[., 2]`` of each.
            query_video: ``[v, F]`` around the query, or None.
        """


def fingerprint(model: Relocalizer) -> str:
    """SHA-256 of a model's kind, settings and weights.

    Two models with one fingerprint give one answer, so that what was stored for one serves the
    other.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    settings = model.config() if hasattr(model, "config") else vars(model)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    if isinstance(model, torch.nn.Module):
        for name, value in sorted(model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def engine_of(model: Relocalizer, dtype: torch.dtype) -> Engine:
    """The engine for a model.

    Args:
        model: A :class:`MultiGraphRelocalizer`, or a system without training.
        dtype: Arithmetic per pair of a network.

    Raises:
        UsageError: The model is trained but another system than ours.
    """
    if isinstance(model, MultiGraphRelocalizer):
        return _NetworkEngine(model, dtype)
    if model.trainable:
        raise UsageError(f"an index holds no {model.title}: use the network, or no model")
    return _FreeEngine(model)


class _NetworkEngine:
    def __init__(self, model: MultiGraphRelocalizer, dtype: torch.dtype) -> None:
        self.scorer = PairScorer(model, dtype)
        self.keeps_states = self.scorer.keeps_states
        self.looks_closer = model.refinement == "windows"
        self.pooling: Pooling = (
            CentredPooling() if self.keeps_states else AdaptedPooling(model.inputs)
        )

    @property
    def _moves(self) -> bool:
        return self.scorer.model.refinement == "offsets"

    def encode(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        if not self.keeps_states:
            return _nothing(proposals)
        states, mask = self.scorer.encode_proposals(features, proposals)
        return states.transpose(0, 1), mask.sum(dim=1)

    def score(self, query: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(states.shape[1]) < lengths[:, None]
        proposals = states.transpose(0, 1).float(), mask
        scores, offsets = self.scorer.score_states(self.scorer.encode_query(query), proposals)
        return scores, offsets if self._moves else torch.zeros_like(offsets)

    def answer(
        self,
        query: Tensor,
        videos: Sequence[Tensor],
        proposals: Sequence[Tensor],
        query_video: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores, offsets = self.scorer.score_videos(query, videos, proposals, query_video)
        moments = torch.cat(list(proposals))
        if self._moves:
            moments = decode_offsets(moments, offsets)
        return moments, scores, _owners([len(some) for some in proposals])


class _FreeEngine:
    keeps_states = False
    looks_closer = False

    def __init__(self, model: Relocalizer) -> None:
        self.model = model
        self.pooling: Pooling = CentredPooling()

    def encode(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        return _nothing(proposals)

    def score(self, query: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def answer(
        self,
        query: Tensor,
        videos: Sequence[Tensor],
        proposals: Sequence[Tensor],
        query_video: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs = zip(videos, proposals, strict=True)
        found = [self.model.rank(query, *pair, query_video=query_video) for pair in pairs]
        scores = [ranking.scores for ranking in found]
        moments = torch.cat([ranking.moments for ranking in found])
        return moments, torch.cat(scores), _owners([len(some) for some in scores])


def _nothing(proposals: Tensor) -> tuple[Tensor, Tensor]:
    return proposals.new_zeros(len(proposals), 0, 0), proposals.new_zeros(len(proposals)).long()


def _owners(counts: list[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
