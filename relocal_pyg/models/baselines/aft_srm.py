"""A reconstruction of AFT+SRM: attention-based fusion tensor and semantic relevance measurement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pair_data import PairData, resample, resample_windows
from relocal_pyg.data.samples import TripletDataset
from relocal_pyg.models.base import Ranking, Surroundings, TrainableRelocalizer, arguments, separate
from relocal_pyg.moments import decode_offsets
from relocal_pyg.nn.losses import offset_loss, triplet_loss
from relocal_pyg.nn.network import PairEncoder

#: Proposals scored at once: bounds memory, changes no result.
CHUNK = 32


class AFTSRM(TrainableRelocalizer):
    """AFT+SRM, a RECONSTRUCTION: neither a paper with its layers nor code could be had.

    What is known of the method (Zhou et al., arXiv 2007.09877, who compare with it; the group's
    later publication is Huo et al., IEEE TMM 25, 2023): proposals are given; an attention-based
    fusion module turns the relevance of every query step to every proposal step into an
    "attention-based fusion tensor"; a CNN alone fuses it; a semantic relevance measurement gives
    the relevance of the pair; triplets are chosen as for the multi-graph network. Everything else
    here is ours, so its figures are those of this stand-in and of nothing else.

    Encoder, sampling, losses and refinement are those of
    :class:`~relocal_pyg.models.MultiGraphRelocalizer` with the paper's settings (triplets of
    two classes, margin 0.5, L1 regression that reaches its own layer only), so that a comparison of
    the two compares the fusion: :class:`FusionTensor`, then three ``Conv3x3-BN-ReLU`` of 64, 128
    and 128 channels with 2x2 pooling between them, an average over the map and a layer each for the
    score (with tanh) and the offsets ``[Tc, Tl]``.

    Args:
        in_channels: Width F of a feature step.
        hidden_channels: Width of the LSTMs.
        num_steps: T.
        num_factors: Channels of the tensor for each of its two attentions.
        widths: Channels of the three convolutions.
        dropout: On the LSTM outputs.
        margin: Margin of the triplet loss.

    Example:
        >>> model = AFTSRM(8, 4, num_steps=6, widths=(4, 4, 4)).eval()
        >>> len(model.localize(torch.rand(3, 8), torch.rand(30, 8), top_k=2))
        2
    """

    title = "AFT+SRM (reconstruction)"
    reconstructed = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 128,
        *,
        num_steps: int = 40,
        num_factors: int = 8,
        widths: tuple[int, int, int] = (64, 128, 128),
        dropout: float = 0.4,
        margin: float = 0.5,
    ) -> None:
        self._config = arguments(locals())
        super().__init__()
        self.in_channels = in_channels
        self.num_steps = num_steps
        self.margin = margin
        self.encoder = PairEncoder(in_channels, hidden_channels, dropout)
        self.fusion = FusionTensor(hidden_channels, num_factors)
        first, second, third = widths
        self.relevance = nn.Sequential(
            *_block(self.fusion.out_channels, first),
            # Rounding up: a map of a single step has something to pool as well.
            nn.MaxPool2d(2, ceil_mode=True),
            *_block(first, second),
            nn.MaxPool2d(2, ceil_mode=True),
            *_block(second, third),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.score = nn.Linear(third, 1)
        self.offsets = nn.Linear(third, 2)

    def parameter_groups(
        self, learning_rate: float, offset_learning_rate: float
    ) -> list[dict[str, Any]]:
        """Two groups, as for the multi-graph network: everything else, and the regression layer."""
        head = list(self.offsets.parameters())
        return separate(list(self.parameters()), head, learning_rate, offset_learning_rate)

    def forward(self, query: Tensor, proposal: Tensor) -> tuple[Tensor, Tensor]:
        """Score pairs.

        Args:
            query: ``[B, T, F]``, zero at padding.
            proposal: ``[B, T, F]``, zero at padding.

        Returns:
            Scores ``[B]`` in ``[-1, 1]`` and offsets ``[B, 2]``.
        """
        return self._relate(
            self.encoder.encode_query(query), self.encoder.encode_proposal(proposal)
        )

    def _relate(self, query: Tensor, proposal: Tensor) -> tuple[Tensor, Tensor]:
        # Channels last in memory: the same numbers, half of the time on a processor.
        fused = self.fusion(query, proposal).contiguous(memory_format=torch.channels_last)
        pooled = self.relevance(fused)
        # As for the multi-graph network, the regression loss trains its own layer only.
        return torch.tanh(self.score(pooled)).squeeze(-1), self.offsets(pooled.detach())

    @torch.no_grad()
    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Score every proposal (in steps) and refine each by its offsets."""
        clip, _ = resample(query, self.num_steps)
        hidden_query = self.encoder.encode_query(clip[None])
        scores, offsets = [], []
        for part in proposals.split(CHUNK):
            segments, _ = resample_windows(reference, part, self.num_steps)
            hidden = self.encoder.encode_proposal(segments)
            score, offset = self._relate(hidden_query.expand(len(part), -1, -1), hidden)
            scores.append(score)
            offsets.append(offset)
        refined = decode_offsets(proposals, torch.cat(offsets))
        return Ranking.sort(refined, torch.cat(scores), proposals)

    def training_set(
        self, protocol: Protocol, *, num_samples: int, seed: int
    ) -> Dataset[tuple[PairData, PairData]]:
        """The triplets of the multi-graph network with the paper's settings."""
        return TripletDataset(
            protocol, num_samples=num_samples, seed=seed, num_steps=self.num_steps
        )

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Triplet and regression loss of a batch of triplets."""
        positive, negative = batch
        # One batch of both sides, so that batch normalisation sees positives and negatives alike.
        x = torch.cat([positive.x, negative.x]).unflatten(0, (-1, 2, self.num_steps))
        scores, offsets = self(x[:, 0], x[:, 1])
        near, far = scores.chunk(2)
        ranking = triplet_loss(near, far, self.margin)
        regression = offset_loss(offsets[: len(near)], positive.offsets)
        return {"loss": ranking + regression, "ranking": ranking, "regression": regression}


class FusionTensor(nn.Module):
    r"""Relevance of every query step to every proposal step, in several channels.

    With :math:`S_{ij} = q_i^T W p_j / \sqrt d`, A its softmax over j and B its softmax over i, both
    times T so that their mean is 1,

    .. math:: X_{cij} = (u_c \cdot q_i)(v_c \cdot p_j) A_{ij}, \quad
        X_{c'ij} = (u_c \cdot q_i)(v_c \cdot p_j) B_{ij}

    for each of the factors c, and a last channel :math:`|\cos(q_i, p_j)|`. Ours; see
    :class:`AFTSRM`.

    Args:
        channels: Width d of the hidden states.
        num_factors: Factors c.

    Shapes:
        - **input:** hidden states ``[B, T, d]`` and ``[B, T, d]``
        - **output:** ``[B, 2 num_factors + 1, T, T]``
    """

    def __init__(self, channels: int, num_factors: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.out_channels = 2 * num_factors + 1
        self.relation = nn.Linear(channels, channels, bias=False)
        self.query_factors = nn.Linear(channels, num_factors, bias=False)
        self.proposal_factors = nn.Linear(channels, num_factors, bias=False)

    def forward(self, query: Tensor, proposal: Tensor) -> Tensor:
        """Fuse hidden states; shapes as above."""
        similarity = query @ self.relation(proposal).mT / self.channels**0.5
        row = torch.softmax(similarity, dim=2) * similarity.shape[2]
        column = torch.softmax(similarity, dim=1) * similarity.shape[1]
        product = torch.einsum(
            "bic,bjc->bcij", self.query_factors(query), self.proposal_factors(proposal)
        )
        cosine = functional.normalize(query, dim=-1) @ functional.normalize(proposal, dim=-1).mT
        return torch.cat(
            [product * row[:, None], product * column[:, None], cosine.abs()[:, None]], dim=1
        )


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
