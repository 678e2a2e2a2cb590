"""What a search index asks of a model: a fingerprint, what to keep of a video, exact scores."""

from __future__ import annotations

import hashlib
import json
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.errors import UsageError
from relocal_pyg.models.base import Ranking, Relocalizer
from relocal_pyg.models.contrast import contrast_scores
from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
from relocal_pyg.search.scorer import PairScorer


class Engine(Protocol):
    """A model behind an index.

    Attributes:
        keeps_states: Whether a proposal is encoded once for every query.
    """

    keeps_states: bool

    def encode(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[M, T, d]`` of proposals and their lengths ``[M]``; empty where none are kept.

        Args:
            features: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
        """

    def score(self, query: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[M]`` and offsets ``[M, 2]`` of encoded proposals of any videos."""

    def rank(
        self, query: Tensor, features: Tensor, proposals: Tensor, query_video: Tensor | None
    ) -> Ranking:
        """Exact answer for some proposals of one video."""


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


def pooled_vectors(features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
    r"""The contrast matcher's score as an inner product, for a first stage.

    With :math:`u_t` the centred unit rows of a video and :math:`\bar r` its mean, a proposal keeps
    :math:`v = \mathrm{mean}_{in}\, u - \tfrac12 \mathrm{mean}_{around}\, u` and
    :math:`v \cdot \bar r`. A bare query of mean :math:`\bar q` then scores
    :math:`(v \cdot \bar q - v \cdot \bar r) / |\bar q - \bar r|`, exactly what
    :class:`~relocal_pyg.models.ContrastMatcher` gives it.

    Args:
        features: ``[n, F]``.
        proposals: ``[M, 2]`` in steps.

    Returns:
        ``v`` ``[M, F]`` and :math:`v \cdot \bar r` ``[M]``.
    """
    mean = features.mean(dim=0)
    rows = functional.normalize(features - mean, dim=1)
    # Every channel is a row of similarities of its own.
    vectors = contrast_scores(rows.T, proposals[None]).T
    return vectors, vectors @ mean


class _NetworkEngine:
    def __init__(self, model: MultiGraphRelocalizer, dtype: torch.dtype) -> None:
        self.scorer = PairScorer(model, dtype)
        self.keeps_states = self.scorer.keeps_states

    def encode(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        if not self.keeps_states:
            return _nothing(proposals)
        states, mask = self.scorer.encode_proposals(features, proposals)
        return states.transpose(0, 1), mask.sum(dim=1)

    def score(self, query: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(states.shape[1]) < lengths[:, None]
        proposals = states.transpose(0, 1).float(), mask
        scores, offsets = self.scorer.score_states(self.scorer.encode_query(query), proposals)
        return scores, offsets if self.scorer.model.refines else torch.zeros_like(offsets)

    def rank(
        self, query: Tensor, features: Tensor, proposals: Tensor, query_video: Tensor | None
    ) -> Ranking:
        return self.scorer.rank(query, features, proposals, query_video)


class _FreeEngine:
    keeps_states = False

    def __init__(self, model: Relocalizer) -> None:
        self.model = model

    def encode(self, features: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        return _nothing(proposals)

    def score(self, query: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def rank(
        self, query: Tensor, features: Tensor, proposals: Tensor, query_video: Tensor | None
    ) -> Ranking:
        return self.model.rank(query, features, proposals, query_video=query_video)


def _nothing(proposals: Tensor) -> tuple[Tensor, Tensor]:
    return proposals.new_zeros(len(proposals), 0, 0), proposals.new_zeros(len(proposals)).long()
