"""Score and regression modules (section 4.6; their layers from section 5.2.2 and Fig. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class ScoreHead(nn.Module):
    """Similarity of a pair from its pooled feature (section 4.6.1).

    ``FC-BN-Tanh`` for each of ``widths``, which the paper does not give, then ``FC-Tanh``.

    Args:
        in_channels: Size ``d`` of the pooled feature.
        widths: Sizes of the hidden layers.
        zero_last: Start the last layer at 0, so that every score starts at 0.
        norm: ``"batch"`` (the paper), or ``"layer"``, which a pair's batch mates do not change.

    Shapes:
        - **input:** pooled features ``[..., in_channels]``
        - **output:** scores ``[...]`` in ``[-1, 1]``

    Example:
        >>> ScoreHead(16).eval()(torch.randn(4, 7, 16)).shape
        torch.Size([4, 7])
    """

    def __init__(
        self,
        in_channels: int = 500,
        widths: Sequence[int] = (256, 64),
        zero_last: bool = False,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        self.zero_last = zero_last
        self.mlp = _mlp(in_channels, widths, norm, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all learnable parameters and running statistics."""
        _reset(self.mlp, self.zero_last)

    def forward(self, x: Tensor) -> Tensor:
        """Score pooled features; shapes as above."""
        return torch.tanh(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Scores ``[...]`` before the final tanh."""
        return _run(self.mlp, x).squeeze(-1)


class OffsetHead(nn.Module):
    """Offsets ``[Tc, Tl]`` of a proposal from the pooled feature of its pair (section 4.6.2).

    The layers of :class:`ScoreHead` with two unbounded outputs;
    :func:`relocal_pyg.moments.decode_offsets` applies them.

    Args:
        in_channels: Size ``d`` of the pooled feature.
        widths: Sizes of the hidden layers.
        zero_last: Start the last layer at 0, so that every proposal starts unchanged.
        norm: As in :class:`ScoreHead`.

    Shapes:
        - **input:** pooled features ``[..., in_channels]``
        - **output:** offsets ``[..., 2]`` as ``[Tc, Tl]``

    Example:
        >>> OffsetHead(16, zero_last=True).eval()(torch.randn(1, 16)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self,
        in_channels: int = 500,
        widths: Sequence[int] = (256, 64),
        zero_last: bool = False,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        self.zero_last = zero_last
        self.mlp = _mlp(in_channels, widths, norm, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all learnable parameters and running statistics."""
        _reset(self.mlp, self.zero_last)

    def forward(self, x: Tensor) -> Tensor:
        """Predict offsets from pooled features; shapes as above."""
        return _run(self.mlp, x)


def _mlp(
    in_channels: int, widths: Sequence[int], norm: Literal["batch", "layer"], out_channels: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        between = nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width)
        layers += [nn.Linear(in_channels, width), between, nn.Tanh()]
        in_channels = width
    return nn.Sequential(*layers, nn.Linear(in_channels, out_channels))


def _reset(mlp: nn.Sequential, zero_last: bool) -> None:
    for layer in mlp:
        if isinstance(layer, nn.Linear | nn.BatchNorm1d | nn.LayerNorm):
            layer.reset_parameters()
    last = mlp[-1]
    if zero_last and isinstance(last, nn.Linear):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def _run(mlp: nn.Sequential, x: Tensor) -> Tensor:
    """Apply to ``[..., F]``; batch normalisation itself takes ``[N, F]`` only."""
    out: Tensor = mlp(x.reshape(-1, x.shape[-1]))
    return out.reshape(*x.shape[:-1], -1)
