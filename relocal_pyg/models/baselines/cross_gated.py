"""Cross-gated bilinear matching: every step is start, end, inside or outside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torch_geometric.data import Data

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.samples import PartnerSamples
from relocal_pyg.models.base import Ranking, Surroundings, TrainableRelocalizer, arguments


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
        # Both cells' weights [2, 2C, 4C] and biases [2, 1, 4C], to run them at once.
        cells = (self.forward_cell, self.backward_cell)
        weight = torch.stack([torch.cat([c.weight_ih, c.weight_hh], dim=1).T for c in cells])
        shift = torch.stack([c.bias_ih + c.bias_hh for c in cells])[:, None]
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


#: Longest moment that the public code decodes, in steps.
DECODED_STEPS = 64

#: Ranges in a ranking at most: far more than anyone reads, far fewer than a long video has.
RANKED = 5000

#: Weight of steps where a moment starts or ends.
BOUNDARY_WEIGHT = 10.0

#: Share of the training samples whose reference loses some background on either side.
CROPPED = 0.9

#: References drawn for a query until one is at least as long as it.
ATTEMPTS = 10


class CrossGated(TrainableRelocalizer):
    r"""Cross-gated bilinear matching (Feng et al., ECCV 2018), after fengyang0317/video_reloc.

    One LSTM encodes query and reference. A matching RNN
    (:class:`CrossMatching`) reads the reference forward and
    backward, a pointer LSTM follows, and each step gets log probabilities :math:`\ell` of start,
    end, inside and outside. The answer is the range ``[i, i + L)`` that
    maximises start of its first step plus end of its last plus the mean of inside
    (:func:`decode`). Given proposals are ignored.

    Trained by cross entropy with soft labels (:func:`step_labels`) in which boundaries weigh 10
    times, on references with randomly cropped background. The public code's settings: Adam 1e-3,
    batches of 128, 1000 steps, gradient norm at most 5, no weight decay. Its batches are bucketed
    by the reference's length; here they are padded.

    Args:
        in_channels: Width F of a feature step.
        hidden_channels: Width of every LSTM and of the attention.
        num_factors: Factors of the bilinear form.
        encoder_dropout: On the encoder's outputs.
        matching_dropout: On the matching RNN's outputs.
        max_steps: Longest moment decoded, in steps; where None 64, or the longest moment of the
            training split where that is longer.

    Example:
        >>> model = CrossGated(8, 4).eval()
        >>> ranking = model.rank(torch.rand(3, 8), torch.rand(9, 8), None)
        >>> ranking.moments.shape
        torch.Size([45, 2])
    """

    title = "Cross-gated bilinear matching"

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 128,
        *,
        num_factors: int = 8,
        encoder_dropout: float = 0.4,
        matching_dropout: float = 0.2,
        max_steps: int | None = None,
    ) -> None:
        self._config = arguments(locals())
        super().__init__()
        self.in_channels = in_channels
        self.max_steps = max_steps
        self.encoder = nn.LSTM(in_channels, hidden_channels, batch_first=True)
        self.encoder_dropout = nn.Dropout(encoder_dropout)
        self.matching = CrossMatching(hidden_channels, num_factors)
        self.matching_dropout = nn.Dropout(matching_dropout)
        self.pointer = nn.LSTM(2 * hidden_channels, hidden_channels, batch_first=True)
        self.labels = nn.Linear(hidden_channels, 4)
        # Found in training and needed to use the weights: kept with them.
        self.decoded_steps: Tensor
        self.register_buffer("decoded_steps", torch.tensor(max_steps or DECODED_STEPS))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all learnable parameters as TensorFlow 1, which the public code uses, would."""
        for module in self.modules():
            reset_like_tensorflow(module)

    def forward(
        self, query: Tensor, reference: Tensor, query_steps: Tensor, reference_steps: Tensor
    ) -> Tensor:
        """Logits of start, end, inside and outside for every reference step.

        Args:
            query: ``[B, m, F]``, padded at the end.
            reference: ``[B, n, F]``, padded at the end.
            query_steps: Lengths ``[B]``.
            reference_steps: Lengths ``[B]``.

        Returns:
            ``[B, n, 4]``; what stands at padding means nothing and reaches no other step.
        """
        hidden_query = self.encoder_dropout(self.encoder(query)[0])
        hidden_reference = self.encoder_dropout(self.encoder(reference)[0])
        matched = self.matching(hidden_query, hidden_reference, query_steps, reference_steps)
        states, _ = self.pointer(self.matching_dropout(matched))
        logits: Tensor = self.labels(states)
        return logits

    @torch.no_grad()
    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """Rank ranges of at most ``max_steps`` steps by :func:`decode`; the best 5000 are given."""
        lengths = [torch.tensor([len(clip)], device=query.device) for clip in (query, reference)]
        logits = self(query[None], reference[None], *lengths)
        log_probabilities = torch.log_softmax(logits[0], dim=-1)
        moments, scores = decode(log_probabilities, max(int(self.decoded_steps), 1))
        best = scores.argsort(descending=True, stable=True)[:RANKED]
        return Ranking(moments[best].to(reference.dtype), scores[best])

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Dataset[Data]:
        """Queries and references of their class: :class:`LabelledPairs`."""
        if self.max_steps is None:
            longest = max(item.query_steps for item in protocol.splits["train"])
            self.decoded_steps.fill_(max(longest, DECODED_STEPS))
        return LabelledPairs(protocol, num_samples=num_samples, seed=seed)

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Weighted cross entropy, a mean over the steps, of a batch of :class:`LabelledPairs`."""
        query_steps, reference_steps = batch.query_steps, batch.reference_steps
        lengths = reference_steps.tolist()
        query = pad_sequence(list(batch.query.split(query_steps.tolist())), batch_first=True)
        reference = pad_sequence(list(batch.reference.split(lengths)), batch_first=True)
        logits = self(query, reference, query_steps, reference_steps)
        inside = torch.arange(logits.shape[1], device=logits.device) < reference_steps[:, None]
        # The weights are not divided out again: boundaries raise the loss.
        entropy = functional.cross_entropy(logits[inside], batch.labels, reduction="none")
        return {"loss": (entropy * batch.weights).mean()}


class LabelledPairs(PartnerSamples[Data]):
    """Samples of a query and a reference of its class with labels for every reference step.

    The query is an action of the training split, the reference an action of its class in another
    video with what surrounds it, at least as long as the query where one of ten draws is. In 90 %
    of the samples a random part of the background before the first and after the last action is cut
    off.

    Each sample is a ``Data`` with ``query`` ``[m, F]``, ``reference`` ``[n, F]``, ``labels``
    ``[n, 4]``, ``weights`` ``[n]``, ``query_steps`` and ``reference_steps`` ``[1]``. Sample ``i``
    depends on ``(seed, i)`` alone.
    """

    stream = "labelled"

    def draw(self, rng: np.random.Generator) -> Data:
        """Draw a query and a reference with labels."""
        query = self._sampler.query(rng)
        reference: Item = self._sampler.positive(query, rng)
        for _ in range(ATTEMPTS - 1):
            if reference.num_steps >= query.query_steps:
                break
            reference = self._sampler.positive(query, rng)
        start, end = 0, reference.num_steps
        truths = sorted(reference.truths)
        if rng.random() < CROPPED:
            start = int(rng.integers(truths[0][0] + 1))
            end -= int(rng.integers(end - max(last for _, last in truths) + 1))
        labels, weights = step_labels(
            [(first - start, last - start) for first, last in truths], end - start
        )
        clip = self.protocol.query(query)
        return Data(
            query=clip,
            reference=self.protocol.reference(reference)[start:end],
            labels=labels,
            weights=weights,
            query_steps=torch.tensor([len(clip)]),
            reference_steps=torch.tensor([end - start]),
            num_nodes=1,
        )


def step_labels(truths: list[tuple[int, int]], num_steps: int) -> tuple[Tensor, Tensor]:
    """Soft labels of start, end, inside and outside ``[n, 4]``, and the weight of steps ``[n]``.

    A moment ``[a, b)`` starts at step a, ends at step b - 1 and is inside on all of its steps; what
    holds at a step shares its label equally. The weight is 10 where a moment starts or ends.

    Example:
        >>> labels, weights = step_labels([(1, 3)], 4)
        >>> labels[1].tolist(), labels[3].tolist(), weights.tolist()
        ([0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 10.0, 10.0, 1.0])
    """
    start, end = torch.tensor(truths).T
    labels = torch.zeros(num_steps, 4)
    labels[start, 0] = 1
    labels[end - 1, 1] = 1
    step = torch.arange(num_steps)[:, None]
    labels[:, 2] = ((step >= start) & (step < end)).any(dim=1)
    labels[:, 3] = 1 - labels[:, 2]
    heavy = labels[:, :2].any(dim=1)
    weights = torch.where(heavy, BOUNDARY_WEIGHT, 1.0)
    return labels / labels.sum(dim=1, keepdim=True), weights


def decode(log_probabilities: Tensor, max_steps: int) -> tuple[Tensor, Tensor]:
    r"""Score every range ``[i, i + L)`` of at most ``max_steps`` steps.

    .. math:: \ell^{start}_i + \ell^{end}_{i + L - 1}
        + \mathrm{mean}\,\{\ell^{inside}_j : i \le j \le i + \max(L - 2, 0)\}

    The mean leaves out the last step, unless it is the only one, as the public code does.

    Args:
        log_probabilities: ``[n, 4]`` in the order start, end, inside, outside.
        max_steps: Longest range.

    Returns:
        int64 ranges ``[R, 2]``, shorter first and then earlier first, and scores ``[R]``.
    """
    num = len(log_probabilities)
    start, end, inside, _ = log_probabilities.double().unbind(dim=1)
    total = functional.pad(inside.cumsum(dim=0), (1, 0))
    length = torch.arange(1, min(max_steps, num) + 1, device=inside.device)[:, None]
    first = torch.arange(num, device=inside.device).expand(len(length), -1)
    fits = first + length <= num
    first, length = first[fits], length.expand(-1, num)[fits]
    covered = (length - 1).clamp(min=1)
    mean = (total[first + covered] - total[first]) / covered
    scores = start[first] + end[first + length - 1] + mean
    moments = torch.stack([first, first + length], dim=1)
    return moments, scores.to(log_probabilities.dtype)
