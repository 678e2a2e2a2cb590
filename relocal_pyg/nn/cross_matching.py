"""The matching RNN of cross-gated bilinear matching (Feng et al., ECCV 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossMatching(nn.Module):
    r"""Matching RNN with attention, cross gating and a factorised bilinear form.

    At reference step t, with :math:`s` the RNN's last output, in either direction

    .. math::
        a = \mathrm{softmax}_i\, w^T \tanh(W_q h^q_i + W_p [h^r_t; s] + b), \quad
        f = \textstyle\sum_i a_i h^q_i \\
        \tilde r = h^r_t \odot \sigma(U_r f + b_r), \quad
        \tilde f = f \odot \sigma(U_q h^r_t + b_q) \\
        z_c = \textstyle\sum_{k} (W_b \tilde r + b_b)_{ck} (W_b \tilde f + b_b)_{ck}, \quad
        s = \mathrm{LSTM}(z, s)

    Both factors of the bilinear form share one projection, and both directions share everything
    but the LSTM cell, as in the public code.

    Args:
        channels: Width of every vector.
        num_factors: Factors of the bilinear form.

    Shapes:
        - **input:** query ``[B, m, C]``, reference ``[B, n, C]``, their lengths ``[B]`` each
        - **output:** ``[B, n, 2C]``, forward then backward
    """

    def __init__(self, channels: int = 128, num_factors: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.num_factors = num_factors
        self.attend_query = nn.Linear(channels, channels, bias=False)
        self.attend_reference = nn.Linear(2 * channels, channels)
        self.attention = nn.Linear(channels, 1)
        self.query_gate = nn.Linear(channels, channels)
        self.reference_gate = nn.Linear(channels, channels)
        self.bilinear = nn.Linear(channels, channels * num_factors)
        self.forward_cell = nn.LSTMCell(channels, channels)
        self.backward_cell = nn.LSTMCell(channels, channels)

    def forward(
        self, query: Tensor, reference: Tensor, query_steps: Tensor, reference_steps: Tensor
    ) -> Tensor:
        """Match; shapes as above. Padding reaches no real step."""
        size, num, channels = reference.shape
        order = reversed_steps(reference_steps, num)[..., None].expand(-1, -1, channels)
        # Both directions run at once: [2, B, ...] everywhere, all that needs no state beforehand.
        both = torch.stack([reference, reference.gather(1, order)])
        keys = self.attend_query(query)
        from_reference, from_state = self.attend_reference.weight.split(channels, dim=1)
        prepared = functional.linear(both, from_reference, self.attend_reference.bias)
        query_gates = torch.sigmoid(self.query_gate(both))
        padding = torch.arange(query.shape[1], device=query.device) >= query_steps[:, None]
        bias = torch.zeros_like(padding, dtype=keys.dtype).masked_fill(padding, -torch.inf)
        weight, shift = self._cell_weights()
        state = cell = reference.new_zeros(2, size, channels)
        states = []
        for t in range(num):
            probe = prepared[:, :, t] + functional.linear(state, from_state)
            energy = self.attention(torch.tanh(keys + probe[:, :, None])).squeeze(-1)
            share = torch.softmax(energy + bias, dim=-1)
            summary = torch.einsum("dbm,bmc->dbc", share, query)
            gated_reference = both[:, :, t] * torch.sigmoid(self.reference_gate(summary))
            gated_query = summary * query_gates[:, :, t]
            factors = self.bilinear(torch.stack([gated_reference, gated_query]))
            product = factors[0] * factors[1]
            matched = product.unflatten(-1, (channels, self.num_factors)).sum(dim=-1)
            gates = torch.baddbmm(shift, torch.cat([matched, state], dim=-1), weight)
            enter, forget, fresh, leave = gates.chunk(4, dim=-1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(fresh)
            state = torch.sigmoid(leave) * torch.tanh(cell)
            states.append(state)
        forward, backward = torch.stack(states, dim=2)
        return torch.cat([forward, backward.gather(1, order)], dim=-1)

    def _cell_weights(self) -> tuple[Tensor, Tensor]:
        """Both cells' weights ``[2, 2C, 4C]`` and biases ``[2, 1, 4C]``, to run them at once."""
        cells = (self.forward_cell, self.backward_cell)
        weight = torch.stack([torch.cat([c.weight_ih, c.weight_hh], dim=1).T for c in cells])
        bias = torch.stack([c.bias_ih + c.bias_hh for c in cells])
        return weight, bias[:, None]


def reversed_steps(lengths: Tensor, num: int) -> Tensor:
    """Positions ``[B, n]`` that turn each row's real steps round and leave its padding in place.

    Example:
        >>> reversed_steps(torch.tensor([2, 3]), 3).tolist()
        [[1, 0, 2], [2, 1, 0]]
    """
    step = torch.arange(num, device=lengths.device).expand(len(lengths), -1)
    turned = lengths[:, None] - 1 - step
    return torch.where(turned >= 0, turned, step)


def reset_like_tensorflow(module: nn.Module) -> None:
    """TensorFlow 1's starting point for a layer: Xavier, no bias, forget gates biased by 1."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LSTM | nn.LSTMCell):
        width = module.hidden_size
        # There, input and state share one matrix, whose size sets the range.
        bound = math.sqrt(6 / (module.input_size + 5 * width))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "weight" in name:
                    parameter.uniform_(-bound, bound)
                else:
                    parameter.zero_()
                    if "bias_ih" in name:
                        parameter[width : 2 * width] = 1
