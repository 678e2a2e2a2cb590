"""LSTM states of many windows of one video, without making the windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relocal_pyg.nn.products import project, tanh_


@torch.no_grad()
def window_states(
    lstm: nn.LSTM,
    table: Tensor,
    positions: Tensor,
    mask: Tensor,
    extra: Tensor | None = None,
    *,
    skip_padding: bool = False,
) -> Tensor:
    """Hidden states of windows whose rows are gathered from a table.

    The input's share of the gates is a matrix product per row of the table, not per row of every
    window, which is most of the work where windows overlap. Equal to running the LSTM on the
    gathered windows, with zero rows at padding.

    Args:
        lstm: One layer, forward in time, batch first.
        table: Rows ``[n, C]``.
        positions: Row numbers ``[M, T]``.
        mask: Real steps ``[M, T]``, each row true up to the window's length.
        extra: Further channels ``[M, T, E]`` after the ``C`` of the table, zero at padding; flags
            count as 0 and 1.
        skip_padding: Leave padded steps out; their states are 0.

    Returns:
        States ``[T, M, d]``, time first.
    """
    width = lstm.hidden_size
    weight, recurrent, *biases = (_reorder(parameter) for parameter in lstm.parameters())
    bias = biases[0] + biases[1]
    channels = table.shape[1]
    inputs = project(table, weight[:, :channels].contiguous(), bias)
    # One more row stands for padding.
    inputs = torch.cat([inputs, bias[None]])
    lengths = mask.sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    rows = torch.where(mask, positions, len(table))[order].T.contiguous()
    flags = None if extra is None else extra[order].transpose(0, 1).to(table)
    steps, count = rows.shape
    alive = [count] * steps
    if skip_padding:
        alive = mask.sum(dim=0).tolist()
    states = table.new_zeros(steps, count, width)
    cell = table.new_zeros(count, width)
    for step, active in enumerate(alive):
        if active == 0:
            break
        gates = inputs.index_select(0, rows[step, :active])
        if flags is not None:
            gates.addmm_(flags[step, :active], weight[:, channels:].T)
        if step > 0:
            gates = project(states[step - 1, :active], recurrent, add=gates)
        enter, forget, leave = gates[:, : 3 * width].sigmoid_().chunk(3, dim=1)
        fresh = tanh_(gates[:, 3 * width :].contiguous())
        now = cell[:active].mul_(forget).addcmul_(enter, fresh)
        torch.mul(leave, tanh_(now.clone()), out=states[step, :active])
    back = torch.empty_like(order)
    back[order] = torch.arange(count, device=order.device)
    return states.index_select(1, back)


def _reorder(weight: Tensor) -> Tensor:
    """Gates from (in, forget, new, out) to (in, forget, out, new): the sigmoids side by side."""
    enter, forget, fresh, leave = weight.detach().chunk(4)
    return torch.cat([enter, forget, leave, fresh])
