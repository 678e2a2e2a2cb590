"""Weights of multi-graph layers for inference, the linear maps between two layers merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relocal_pyg.nn.multi_graph_conv import MultiGraphConv
from relocal_pyg.nn.products import project


class LayerWeights(NamedTuple):
    """Weights of a multi-graph layer, ``[out, in]``, K parts where it has K branches."""

    in_weight: Tensor
    in_bias: Tensor
    weights: list[Tensor]
    out_weights: list[Tensor]
    out_bias: Tensor
    exact_weight: Tensor
    exact_bias: Tensor

    @classmethod
    def of(cls, layer: MultiGraphConv, dtype: torch.dtype) -> LayerWeights:
        """Copy the weights of a layer."""
        weight, bias = layer.lin_out.weight.detach().clone(), layer.lin_out.bias.detach().clone()
        return cls(
            layer.lin_in.weight.detach().to(dtype, copy=True),
            layer.lin_in.bias.detach().to(dtype, copy=True),
            [conv.lin.weight.detach().to(dtype, copy=True) for conv in layer.convs],
            _parts(weight, layer.num_graphs, dtype),
            bias.to(dtype),
            weight,
            bias,
        )

    def enter(self, x: Tensor) -> Tensor:
        """The first 1x1 convolution."""
        return project(x.flatten(0, 1), self.in_weight, self.in_bias).view_as(x)

    def leave(self, sums: Tensor, number: Tensor | int) -> Tensor:
        """The last 1x1 convolution, of sums ``[N, K d]`` over so many nodes."""
        return sums @ self.exact_weight.T + number * self.exact_bias


def merge(
    layer: MultiGraphConv, following: MultiGraphConv, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """The last 1x1 convolution of a layer and the first of the next one, in K parts, and bias."""
    leave, enter = layer.lin_out, following.lin_in
    bias = enter.weight @ leave.bias + enter.bias
    return _parts(enter.weight @ leave.weight, layer.num_graphs, dtype), bias.to(dtype)


def _parts(weight: Tensor, number: int, dtype: torch.dtype) -> list[Tensor]:
    """The columns of each branch, each part contiguous."""
    return [part.contiguous() for part in weight.to(dtype).chunk(number, dim=1)]


def apply(x: Tensor, weight: Tensor, act: Literal["none", "tanh"] = "none") -> Tensor:
    """Multiply features ``[T, N, d]``."""
    return project(x.flatten(0, 1), weight, act=act).view(*x.shape[:-1], -1)


def mix(active: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """A 1x1 convolution of concatenated branches, K times ``[2T, N, d]`` to ``[2T, N, d]``."""
    out = project(active[0].flatten(0, 1), weights[0], bias)
    for branch, weight in zip(active[1:], weights[1:], strict=True):
        out = project(branch.flatten(0, 1), weight, add=out)
    return out.view_as(active[0])


def sums(active: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Sums over nodes, branches side by side, ``[N, K d]``."""
    return torch.cat([branch.sum(dim=0, dtype=dtype) for branch in active], dim=1)


def masked(x: Tensor, real: Tensor | None) -> Tensor:
    """Set pads to zero in place."""
    return x if real is None else x.mul_(real)
