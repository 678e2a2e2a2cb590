"""Matrix products and tanh of single precision by oneDNN, where PyTorch itself would not use it.

For float32 on a CPU PyTorch multiplies with MKL, which leaves half of an AMD processor's vector
width unused, and computes tanh with a portable library. oneDNN, which every build of PyTorch for
x86 contains, does both at full width: on one Zen 5 core 190 against 88 GFLOP/s, and tanh in a ninth
of the time. Results differ by rounding alone. Everywhere else these functions are PyTorch's own.

No layer calls them: a loop opts in with :class:`FastProducts`, exact inference calls
:func:`project`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Multiplications, or numbers of a tanh, below which a call of oneDNN costs more than it saves.
SMALL = 100_000
#: The same where gradients are wanted too, for which oneDNN needs turned copies.
SMALL_WITH_GRADIENTS = 100_000_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` of ``[..., C]`` and ``[D, C]``, with gradients of any order.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)).tolist()[0]
        [4.0, 4.0, 4.0, 4.0]
    """
    plain = torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling()
    full = x.dtype == weight.dtype == torch.float32
    if plain or not full or not _worth_it(x, len(weight) * x.numel(), SMALL_WITH_GRADIENTS):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], -1)


def tanh(x: Tensor) -> Tensor:
    """``torch.tanh``, with gradients of any order."""
    if torch.compiler.is_compiling() or not _worth_it(x, x.numel(), SMALL):
        return torch.tanh(x)
    out: Tensor = _Tanh.apply(x)
    return out


class FastProducts(TorchFunctionMode):
    """Where it is entered, ``F.linear`` and ``torch.tanh`` are :func:`linear` and :func:`tanh`.

    Whatever module is called inside computes with oneDNN, and so does the backward pass of what was
    computed; the layers themselves are plain PyTorch. Made for training and inference loops:
    gradients of any order, but no ``torch.func.vmap`` and no forward-mode differentiation.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> with FastProducts():
        ...     layer(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Swap the two functions; everything else is as it was."""
        return _FAST.get(func, func)(*args, **(kwargs or {}))


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

    ``x`` is ``[..., C]``, ``weight`` ``[D, C]``, ``bias`` ``[D]``; ``add`` ``[..., D]`` goes
    without ``act`` only.

    Example:
        >>> project(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), act="tanh").item()
        0.7615941762924194
    """
    short = x.is_cpu and x.dtype == torch.bfloat16 == weight.dtype
    if short and not multiplies_bfloat16():
        full = [None if each is None else each.float() for each in (bias, add)]
        return project(x.float(), weight.float(), full[0], act=act, add=full[1]).bfloat16()
    rows = x.reshape(-1, x.shape[-1])
    if not _worth_it(x, len(weight) * x.numel(), SMALL):
        out = F.linear(rows, weight, bias)
        if add is not None:
            out.add_(add.reshape(out.shape))
        elif act == "tanh":
            out = torch.tanh(out)
    elif add is not None:
        out = OPERATOR.binary(rows, add.reshape(len(rows), -1), weight, bias, "add")
    else:
        out = OPERATOR(rows, weight, bias, act, [], "")
    return out.view(*x.shape[:-1], len(weight))


@torch.no_grad()
def tanh_(x: Tensor) -> Tensor:
    """``Tensor.tanh_``, for inference; the result may be another tensor."""
    if not _worth_it(x, x.numel(), SMALL // 10):
        return x.tanh_()
    return x.to_mkldnn().tanh_().to_dense(x.dtype)


class _Linear(torch.autograd.Function):
    """A product whose gradients are such products too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = OPERATOR(x, weight, bias, "none", [], "")
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            linear(grad.contiguous(), weight.T.contiguous()) if to_x else None,
            linear(grad.T.contiguous(), x.T.contiguous()) if to_weight else None,
            grad.sum(dim=0) if to_bias else None,
        )


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.contiguous().to_mkldnn().tanh_().to_dense(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return grad * (1 - out * out)


def _worth_it(x: Tensor, work: int, least: int) -> bool:
    """Whether oneDNN does it, and so much work, in multiplications or numbers, pays for a call."""
    if work < least or x.device.type != "cpu" or OPERATOR is None:
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and multiplies_bfloat16())


def multiplies_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 here: it needs AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_FAST = {F.linear: linear, torch.tanh: tanh, Tensor.tanh: tanh}
#: That of torch.compile; a build or a version without it, None here, does the same with MKL.
OPERATOR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
