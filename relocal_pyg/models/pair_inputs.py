"""From a query, a reference and its proposals to the node features of every pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from relocal_pyg.data.pair_data import resample, window_positions
from relocal_pyg.models.matchers import contrast_scores
from relocal_pyg.models.network_config import NetworkConfig

#: Channels added to each node where ``NetworkConfig.similarity`` is set.
SIMILARITY_CHANNELS = 3


@dataclass(frozen=True)
class PairInputs:
    """Node features of one query against M proposals.

    Attributes:
        query_x: ``[T, C]``.
        query_mask: ``[T]``, False at padding.
        proposal_x: ``[M, T, C]``.
        proposal_mask: ``[M, T]``.
        prior: ``[M]``, the training-free score, or zeros.
    """

    query_x: Tensor
    query_mask: Tensor
    proposal_x: Tensor
    proposal_mask: Tensor
    prior: Tensor


@dataclass(frozen=True)
class Compared:
    """One query and one reference, before any proposal is looked at.

    Attributes:
        query_x: ``[T, C]``.
        query_mask: ``[T]``, False at padding.
        reference: ``[n, C]``, or ``[n, C - 1]`` where proposals come with a flag.
        similarity: ``[n]`` of each step to the query, where it makes a prior.
        table: ``[m, n]``, cosine of every query step with every reference step, where steps are
            compared; whatever else compares them is made of it.
    """

    query_x: Tensor
    query_mask: Tensor
    reference: Tensor
    similarity: Tensor | None
    table: Tensor | None = None

    def prior(self, proposals: Tensor) -> Tensor:
        """The training-free score ``[M]`` of proposals ``[M, 2]`` in steps, or zeros."""
        if self.similarity is None:
            return self.reference.new_zeros(len(proposals))
        return contrast_scores(self.similarity, proposals)


class PairInputBuilder(nn.Module):
    """Builds :class:`PairInputs`; with the paper's settings it only brings both sides to T steps.

    Args:
        in_channels: Width F of a feature step.
        config: ``context``, ``similarity``, ``prior`` and ``num_steps`` are looked at.
    """

    def __init__(self, in_channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.compares = config.similarity or config.prior != "none"
        self.out_channels = in_channels if config.appearance else 0
        if config.similarity:
            self.out_channels += SIMILARITY_CHANNELS
        if config.context > 0:
            self.out_channels += 1
        # Starts as the identity, so that an untrained network compares the features as they are.
        self.adapter = _Adapter(in_channels) if self.compares else None

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        query_video: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> PairInputs:
        """Build the inputs of one query and the proposals of one reference.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            proposals: ``[M, 2]`` in steps.
            query_video: ``[v, F]`` or None for a bare clip.
            rotation: Orthogonal ``[F, F]`` applied to every feature, or None.
        """
        return self.place(self.compare(query, reference, query_video, rotation), proposals)

    def place(self, compared: Compared, proposals: Tensor) -> PairInputs:
        """The inputs of some proposals ``[M, 2]`` in steps of a reference that was compared."""
        positions, mask, inside = self.windows(len(compared.reference), proposals)
        proposal_x = compared.reference[positions]
        if inside is not None:
            proposal_x = torch.cat([proposal_x, inside.to(proposal_x)], dim=-1)
        proposal_x = proposal_x * mask[..., None].to(proposal_x)
        prior = compared.prior(proposals)
        return PairInputs(compared.query_x, compared.query_mask, proposal_x, mask, prior)

    def compare(
        self,
        query: Tensor,
        reference: Tensor,
        query_video: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Compared:
        """All that does not depend on the proposals; arguments as in :meth:`forward`."""
        config = self.config
        similarity = table = None
        extra: list[Tensor] = []
        query_extra: list[Tensor] = []
        if self.adapter is not None:
            query, reference = centre(query, reference, query_video)
            if rotation is not None:
                query, reference = query @ rotation, reference @ rotation
            query, reference = self.adapter(query), self.adapter(reference)
            unit_query = functional.normalize(query, dim=1)
            unit_reference = functional.normalize(reference, dim=1)
            table = unit_query @ unit_reference.T
            # The similarity to the query's mean direction is a weighted sum of those to its steps.
            mean = query.mean(dim=0)
            direction = functional.normalize(mean, dim=0)
            shares = query.norm(dim=1) / (len(query) * mean.norm().clamp(min=1e-12))
            similarity = shares @ table
            if config.similarity:
                extra = [similarity, table.amax(dim=0), table.mean(dim=0)]
                query_extra = [unit_query @ direction, table.amax(dim=1), table.mean(dim=1)]
            if config.prior != "contrast":
                similarity = None
        if config.context > 0:
            # The flag that windows() gives the proposals: all of a query is inside.
            query_extra.append(query.new_ones(len(query)))
        if not config.appearance:
            query, reference = query[:, :0], reference[:, :0]
        query_x, query_mask = resample(_append(query, query_extra), config.num_steps)
        return Compared(query_x, query_mask, _append(reference, extra), similarity, table)

    def windows(self, num_steps: int, proposals: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Which steps of a reference the network sees for each proposal.

        Args:
            num_steps: Steps of the reference.
            proposals: ``[M, 2]`` in steps.

        Returns:
            Positions ``[M, T]``, mask ``[M, T]``, and with ``context`` a flag ``[M, T, 1]``:
            whether a step is inside the proposal itself.
        """
        windows = extend(proposals, self.config.context, num_steps)
        positions, mask = window_positions(num_steps, windows, self.config.num_steps)
        if self.config.context == 0:
            return positions, mask, None
        middle = positions + 0.5
        inside = (middle > proposals[:, :1]) & (middle < proposals[:, 1:]) & mask
        return positions, mask, inside[..., None]


class _Adapter(nn.Module):
    """A residual map of features whose last layer starts at zero."""

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, hidden)
        self.outer = nn.Linear(hidden, channels, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, F]`` to ``[n, F]``."""
        out: Tensor = features + self.outer(torch.tanh(self.inner(features)))
        return out


def centre(query: Tensor, reference: Tensor, query_video: Tensor | None) -> tuple[Tensor, Tensor]:
    """Subtract from each side the mean of its own video and bring steps to a mean length of 1.

    A bare clip, whose video is unknown, is centred by the reference. What all of a video looks like
    (place, camera, person) goes; what sets its moments apart stays.
    """
    mean = reference.mean(dim=0)
    query_mean = mean if query_video is None or len(query_video) == 0 else query_video.mean(dim=0)
    return _unit_scale(query - query_mean), _unit_scale(reference - mean)


def extend(proposals: Tensor, share: float, num_steps: int) -> Tensor:
    """Lengthen proposals by a share of their length on either side, inside ``[0, num_steps]``.

    Example:
        >>> extend(torch.tensor([[4.0, 8.0]]), 0.5, 9).tolist()
        [[2.0, 9.0]]
    """
    side = (proposals[:, 1:] - proposals[:, :1]) * share
    bounds = torch.cat([proposals[:, :1] - side, proposals[:, 1:] + side], dim=1)
    return bounds.clamp(0, num_steps)


def random_rotation(channels: int, like: Tensor) -> Tensor:
    """A random orthogonal matrix ``[channels, channels]``, from torch's global generator."""
    return torch.linalg.qr(torch.randn(channels, channels, dtype=like.dtype))[0]


def _unit_scale(features: Tensor) -> Tensor:
    return features / features.norm(dim=1).mean().clamp(min=1e-6)


def _append(features: Tensor, channels: list[Tensor]) -> Tensor:
    return torch.cat([features, *(channel[:, None] for channel in channels)], dim=1)
