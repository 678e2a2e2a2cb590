"""MATR: a transformer over query and reference, with soft alignment of the two."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torch_geometric.data import Data

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.samples import PartnerSampler, SeededSamples
from relocal_pyg.errors import UsageError
from relocal_pyg.models.base import Ranking, Surroundings, TrainableRelocalizer, arguments

#: Cost of a cell that no path may enter.
WALL = 1e9


def alignment_table(cost: Tensor, gamma: float, *, subsequence: bool) -> Tensor:
    r"""Soft dynamic time warping: costs of the best paths that end in each cell.

    .. math:: D_{ij} = C_{ij} + \min{}^\gamma (D_{i-1,j-1}, D_{i-1,j}, D_{i,j-1}), \quad
        \min{}^\gamma(x) = -\gamma \log \textstyle\sum e^{-x / \gamma}

    Filled one anti-diagonal at a time, so ``M + N - 1`` operations do it for the whole batch.

    Args:
        cost: ``[B, M, N]``: M steps of the reference, N of the query.
        gamma: Softness; 0 takes the hard minimum.
        subsequence: Paths may start at any reference step; else at the first one.
    """
    batch, rows, columns = cost.shape
    row = torch.arange(rows, device=cost.device)
    column = torch.arange(rows + columns - 1, device=cost.device)[:, None] - row
    real = (column >= 0) & (column < columns)
    place = column.clamp(0, columns - 1)
    skewed = cost[:, row.expand_as(place), place]
    wall = cost.new_full((batch, 1), WALL)
    before = last = cost.new_full((batch, rows), WALL)
    diagonals = []
    for number in range(rows + columns - 1):
        ways = [
            torch.cat([wall, before[:, :-1]], dim=1),
            torch.cat([wall, last[:, :-1]], dim=1),
            last,
        ]
        first = column[number] == 0
        if not subsequence:
            first = first & (row == 0)
        # One virtual start a row: the first column has no cell to its left or across.
        entry = cost.new_full((rows,), WALL).masked_fill(first, 0)
        least = _least(torch.stack([*ways, entry.expand(batch, -1)], dim=-1), gamma)
        now = torch.where(real[number], skewed[:, number] + least, WALL)
        diagonals.append(now)
        before, last = last, now
    straight = torch.stack(diagonals, dim=1)
    across = row[:, None] + torch.arange(columns, device=cost.device)
    return straight[:, across, row[:, None].expand_as(across)]


def _least(costs: Tensor, gamma: float) -> Tensor:
    """Soft minimum over the last dimension; of gamma 0 the hard one."""
    if gamma > 0:
        return -gamma * torch.logsumexp(-costs / gamma, dim=-1)
    return costs.min(dim=-1).values


def alignment_loss(
    cost: Tensor, steps: Tensor, query_steps: Tensor, gamma: float, *, subsequence: bool
) -> Tensor:
    """Cost ``[B]`` of aligning the whole query, divided by its length.

    Costs ``[B, M, N]`` are padded at the end of both, lengths are ``[B]``; gamma 0 takes hard
    minima, and ``subsequence`` aligns to any part of the reference.
    """
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))  # a short float holds no wall
    table = alignment_table(cost, gamma, subsequence=subsequence)
    pairs = torch.arange(len(table), device=cost.device)
    ends = table[pairs, :, query_steps - 1]
    if not subsequence:
        found = ends[pairs, steps - 1]
    else:
        inside = torch.arange(ends.shape[1], device=cost.device) < steps[:, None]
        found = _least(torch.where(inside, ends, WALL), gamma)
    return found / query_steps


def best_alignment(cost: Tensor, steps: Tensor, query_steps: Tensor) -> Tensor:
    """Which reference steps the cheapest path of the whole query passes, bool ``[B, M]``.

    Arguments as in :func:`alignment_loss`. The gradient of a hard minimum is the path itself.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        # Copies: what was made in inference mode can have no gradient outside of it either.
        free, steps, query_steps = (part.detach().clone() for part in (cost, steps, query_steps))
        free.requires_grad_()
        total = alignment_loss(free, steps, query_steps, 0.0, subsequence=True).sum()
        path = torch.autograd.grad(total, free)[0]
    return (path > 0).any(dim=2)


def interval_loss(spans: Tensor, truths: Tensor) -> Tensor:
    """Smooth L1 plus one minus generalised IoU of spans ``[N, 2]``, summed over N."""
    low, high = torch.maximum(spans, truths), torch.minimum(spans, truths)
    overlap = (high[:, 1] - low[:, 0]).clamp(min=0)
    union = (spans[:, 1] - spans[:, 0]) + (truths[:, 1] - truths[:, 0]) - overlap
    hull = (low[:, 1] - high[:, 0]).clamp(min=1e-9)
    generalised = overlap / union.clamp(min=1e-9) - (hull - union) / hull
    smooth = functional.smooth_l1_loss(spans, truths, reduction="none").sum()
    return smooth + (1 - generalised).sum()


class _Attention(nn.Module):
    """Multi-head attention with positions on queries and keys, then add and norm."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, place: Tensor, memory: Tensor, memory_place: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """Attend from ``x`` [B, n, C] to ``memory`` [B, m, C]; ``hidden`` [B, m] is not seen."""
        found, _ = self.attention(
            x + place, memory + memory_place, memory, key_padding_mask=hidden, need_weights=False
        )
        out: Tensor = self.norm(x + self.dropout(found))
        return out


class _FeedForward(nn.Module):
    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(channels, width), nn.Linear(width, channels)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(torch.relu(self.inner(x)))
        out: Tensor = self.norm(x + self.dropout(self.outer(inner)))
        return out


class _Head(nn.Module):
    """Three convolutions over time; padding is zero before each."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        widths = [channels, channels, channels, out]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, M, C]`` and real steps ``[B, M]`` to ``[B, M, out]``."""
        x = x.transpose(1, 2)
        for number, layer in enumerate(self.layers):
            x = layer((torch.relu(x) if number else x) * mask[:, None])
        return x.transpose(1, 2)


class MATR(TrainableRelocalizer):
    r"""MATR (ICCV 2025), rebuilt from its article: ``reconstructed=True``.

    Query and reference are projected, joined and encoded by one transformer; a decoder with learned
    slots reads the reference where the query aligns; two convolutional heads give each reference
    step a score and the distances to a moment's ends. Soft alignment before and after the encoder
    is trained alongside. Its published code does not run, so nothing here was compared with it; the
    defaults are a small network that trains in minutes.

    Where the article is silent or cannot be followed: distances are ``(-sigmoid, +sigmoid)``, a
    step's time is its middle, alignment is of a subsequence, the decoder's mean is joined to every
    step. Given proposals are ignored. A reference longer than ``max_steps`` is read at fewer.

    Args:
        in_channels: Width F of a feature step.
        hidden_channels: Width d.
        num_layers: Layers of the encoder, and of the decoder.
        heads: Attention heads.
        feed_forward: Width inside the feed-forward parts.
        slots: Learned vectors of the decoder.
        dropout: In the transformer.
        input_dropout: In the projections.
        fusion: ``"channel"``: the decoder's mean beside every step; ``"sequence"``: joined in time,
            as the article says, which only the last three steps can see; ``"none"``: left out.
        align: ``"subsequence"``: the query to any part of the reference; ``"global"``: to all of
            it, as the article says.
        before: Weight of the alignment loss before the encoder; 0 is the article's ablation.
        after: Weight of the one after it.
        background: Weight of steps outside the moment in the score's loss.
        query_positions: Give the query positions too.
        self_supervised: Train on clips of the training videos themselves, without labels.
        reversal: Reverse time in some of those clips.
        max_steps: Steps of a reference at most.
        gamma: Softness of the alignment.

    Example:
        >>> model = MATR(8, 16, heads=2).eval()
        >>> model.rank(torch.rand(4, 8), torch.rand(30, 8), None).moments.shape
        torch.Size([30, 2])
    """

    title = "MATR"
    reconstructed: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 128,
        *,
        num_layers: int = 2,
        heads: int = 8,
        feed_forward: int = 256,
        slots: int = 10,
        dropout: float = 0.1,
        input_dropout: float = 0.5,
        fusion: Literal["channel", "sequence", "none"] = "channel",
        align: Literal["subsequence", "global"] = "subsequence",
        before: float = 1.0,
        after: float = 1.0,
        background: float = 0.1,
        query_positions: bool = True,
        self_supervised: bool = False,
        reversal: bool = True,
        max_steps: int = 512,
        gamma: float = 0.1,
    ) -> None:
        self._config = arguments(locals())
        if hidden_channels % heads or hidden_channels % 2:
            raise UsageError("hidden_channels must be even and a multiple of heads")
        if fusion not in ("channel", "sequence", "none") or align not in ("subsequence", "global"):
            raise UsageError(f"no such fusion or alignment: {fusion}, {align}")
        super().__init__()
        self.in_channels, width = in_channels, hidden_channels
        self.reference_in = self._projection(in_channels + 2, width, input_dropout)
        self.query_in = self._projection(in_channels, width, input_dropout)
        self.kinds = nn.Parameter(torch.empty(2, width))
        self.slots = nn.Parameter(torch.empty(slots, width))
        sizes, feed = (width, heads, dropout), (width, feed_forward, dropout)
        self.encoder = nn.ModuleList(_Attention(*sizes) for _ in range(num_layers))
        self.encoder_feed = nn.ModuleList(_FeedForward(*feed) for _ in range(num_layers))
        self.decoder = nn.ModuleList(_Attention(*sizes) for _ in range(num_layers))
        self.cross = nn.ModuleList(_Attention(*sizes) for _ in range(num_layers))
        self.decoder_feed = nn.ModuleList(_FeedForward(*feed) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.join = nn.Linear(2 * width, width) if fusion == "channel" else None
        self.score_head, self.span_head = _Head(width, 1), _Head(width, 2)
        self.reset_parameters()

    @staticmethod
    def _projection(channels: int, width: int, dropout: float) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, width), nn.ReLU(),
            nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width),
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Reset all learnable parameters: matrices by Xavier, kinds and slots at random."""
        for module in reversed(list(self.modules())):  # attention after the layer inside it
            if isinstance(module, nn.Linear | nn.Conv1d | nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
        for name, parameter in self.named_parameters():
            if name in ("kinds", "slots"):
                nn.init.normal_(parameter, std=0.02 if name == "kinds" else 1.0)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def encode_sides(
        self, query: Tensor, reference: Tensor, query_steps: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Both sides before and after the encoder.

        Args:
            query: ``[B, N, F]``, padded at the end.
            reference: ``[B, M, F]``, padded at the end.
            query_steps: Lengths ``[B]``.
            steps: Lengths ``[B]``.

        Returns:
            Reference and query before, reference and query after (``[B, M, d]``, ``[B, N, d]``),
            and the positions ``[B, M, d]`` of the reference.
        """
        number = torch.arange(reference.shape[1], device=reference.device)
        share = number / steps[:, None]
        ends = torch.stack([share, share + 1 / steps[:, None]], dim=-1).clamp(max=1)
        rows = torch.cat([functional.normalize(reference, dim=-1), ends.to(reference)], dim=-1)
        target = self.reference_in(rows) + self.kinds[0]
        clip = self.query_in(functional.normalize(query, dim=-1)) + self.kinds[1]
        place = _sine(steps, reference.shape[1], target.shape[2]).to(target)
        query_place = _sine(query_steps, query.shape[1], target.shape[2]).to(clip)
        if not self._config["query_positions"]:
            query_place = torch.zeros_like(query_place)
        x, where = torch.cat([target, clip], dim=1), torch.cat([place, query_place], dim=1)
        hidden = ~torch.cat([_mask(steps, target), _mask(query_steps, clip)], dim=1)
        for attention, feed in zip(self.encoder, self.encoder_feed, strict=True):
            x = feed(attention(x, where, x, where, hidden))
        after, query_after = x.split([target.shape[1], clip.shape[1]], dim=1)
        return target, clip, after, query_after, place

    def forward(
        self, query: Tensor, reference: Tensor, query_steps: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score and span of every reference step, and the alignment loss.

        Arguments as in :meth:`encode_sides`.

        Returns:
            Logits ``[B, M]``, spans ``[B, M, 2]`` as shares of the reference's length, and the
            weighted alignment loss ``[B]``.
        """
        target, clip, after, query_after, place = self.encode_sides(
            query, reference, query_steps, steps
        )
        mask, lengths = _mask(steps, target), (steps, query_steps)
        part = self._config["align"] == "subsequence"
        alignment = target.new_zeros(len(target))
        for name, left, right in (("before", target, clip), ("after", after, query_after)):
            if self._config[name] > 0:
                cost, soft = _cosine_cost(left, right), self._config["gamma"]
                loss = alignment_loss(cost, *lengths, soft, subsequence=part)
                alignment = alignment + self._config[name] * loss
        decoded = after
        if self._config["fusion"] != "none":
            seen = mask
            if part:
                seen = best_alignment(_cosine_cost(after, query_after), *lengths)
            slots = self._decode(after, place, ~seen)
            if self.join is not None:
                mean = slots.mean(dim=1, keepdim=True).expand_as(after)
                decoded = self.join(torch.cat([after, mean], dim=-1))
            else:
                decoded, mask = _follow(after, slots, steps)
        count = reference.shape[1]
        logits = self.score_head(decoded, mask)[:, :count, 0]
        before, beyond = torch.sigmoid(self.span_head(decoded, mask)[:, :count]).unbind(dim=-1)
        middle = (torch.arange(count, device=logits.device) + 0.5) / steps[:, None]
        spans = torch.stack([middle - before, middle + beyond], dim=-1)
        return logits, spans, alignment

    def _decode(self, memory: Tensor, place: Tensor, hidden: Tensor) -> Tensor:
        """What the slots read of the reference, ``[B, slots, d]``."""
        where = self.slots.expand(len(memory), -1, -1)
        x = torch.zeros_like(where)
        for own, cross, feed in zip(self.decoder, self.cross, self.decoder_feed, strict=True):
            x = own(x, where, x, where, None)
            x = feed(cross(x, where, memory, place, hidden))
        out: Tensor = self.decoder_norm(x)
        return out

    @torch.no_grad()
    def _rank(
        self, query: Tensor, reference: Tensor, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """One moment for every step of the reference, by its score; proposals are ignored."""
        num = len(reference)
        if num > self._config["max_steps"]:
            kept = torch.linspace(0, num - 1, self._config["max_steps"]).round().long()
            reference = reference[kept.to(reference.device)]
        lengths = [torch.tensor([len(rows)], device=query.device) for rows in (query, reference)]
        logits, spans, _ = self(query[None], reference[None], *lengths)
        moments = (spans[0] * num).clamp(0, num)
        # A span that touches an end of the video still has a length.
        moments[:, 0] = torch.minimum(moments[:, 0], moments[:, 1] - 1e-3).clamp(min=0)
        moments[:, 1] = torch.maximum(moments[:, 1], moments[:, 0] + 1e-3)
        return Ranking.sort(moments, torch.sigmoid(logits[0]))

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Dataset[Data]:
        """Queries and references of their class, or clips of one video: :class:`SpanPairs`."""
        return SpanPairs(
            protocol,
            num_samples=num_samples,
            seed=seed,
            self_supervised=self._config["self_supervised"],
            reversal=self._config["reversal"],
            max_steps=self._config["max_steps"],
        )

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Score, span and alignment losses of a batch of :class:`SpanPairs`."""
        query_steps, steps = batch.query_steps, batch.reference_steps
        query = pad_sequence(list(batch.query.split(query_steps.tolist())), batch_first=True)
        reference = pad_sequence(list(batch.reference.split(steps.tolist())), batch_first=True)
        logits, spans, alignment = self(query, reference, query_steps, steps)
        truths = batch.truth / steps[:, None]
        mask = _mask(steps, logits)
        inside = foreground(truths, steps, logits.shape[1])
        weights = torch.where(inside, 1.0, self._config["background"]) * mask
        entropy = functional.binary_cross_entropy_with_logits(
            logits, inside.to(logits), weights, reduction="sum"
        )
        score = entropy / mask.sum()
        wanted = truths[:, None].expand_as(spans)[inside]
        span = interval_loss(spans[inside], wanted) / inside.sum()
        mean = alignment.mean()
        return {"loss": score + span + mean, "score": score, "span": span, "alignment": mean}


class SpanPairs(SeededSamples[Data]):
    """Samples of a query, a reference and the one moment to find.

    Each sample is a ``Data`` with ``query`` ``[m, F]``, ``reference`` ``[n, F]``, ``truth``
    ``[1, 2]`` in steps, ``query_steps`` and ``reference_steps`` ``[1]``.
    """

    stream = "spans"

    def __init__(
        self,
        protocol: Protocol,
        *,
        num_samples: int,
        seed: int,
        self_supervised: bool = False,
        reversal: bool = True,
        max_steps: int = 512,
    ) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        self.self_supervised, self.reversal, self.max_steps = self_supervised, reversal, max_steps
        self._items = sorted(protocol.splits["train"])
        self._sampler = None if self_supervised else PartnerSampler(self._items)

    def draw(self, rng: np.random.Generator) -> Data:
        """Draw a query, a reference and a moment."""
        if self._sampler is None:
            video = self._items[int(rng.integers(len(self._items)))]
            rows = self.protocol.reference(video)
            longest = max(len(rows) // 2, 1)
            length = int(rng.integers(min(4, longest), longest + 1))
            start = int(rng.integers(len(rows) - length + 1))
            truth = (start, start + length)
            clip = changed(rows[start : start + length], rng, self.reversal)
        else:
            query = self._sampler.query(rng)
            item = self._sampler.positive(query, rng)
            clip, rows = self.protocol.query(query), self.protocol.reference(item)
            truth = item.truths[int(rng.integers(len(item.truths)))]
        spare = max(len(rows) - self.max_steps, 0)
        first = int(np.clip((sum(truth) - self.max_steps) // 2, 0, spare))
        rows = rows[first : first + self.max_steps]
        return Data(
            query=clip,
            reference=rows,
            truth=torch.tensor([[truth[0] - first, truth[1] - first]]).clamp(0, len(rows)).float(),
            query_steps=torch.tensor([len(clip)]),
            reference_steps=torch.tensor([len(rows)]),
            num_nodes=1,
        )


def changed(clip: Tensor, rng: np.random.Generator, reversal: bool) -> Tensor:
    """Half of the clips as they are; the others reversed, noisy, half or twice as fast."""
    if rng.random() < 0.5:
        return clip
    way = int(rng.integers(0 if reversal else 1, 4))
    if way == 0:
        return clip.flip(0)
    if way == 1:
        noise = torch.from_numpy(rng.normal(size=tuple(clip.shape))).to(clip)
        return clip + 0.1 * clip.std(correction=0) * noise
    return clip.repeat_interleave(2, dim=0) if way == 2 else clip[::2]


def foreground(truths: Tensor, steps: Tensor, count: int) -> Tensor:
    """Steps whose middle lies in the moment, bool ``[B, M]``; its first step where none does.

    Args:
        truths: ``[B, 2]`` as shares of the reference's length.
        steps: Lengths ``[B]``.
        count: M.
    """
    number = torch.arange(count, device=truths.device)
    middle = (number + 0.5) / steps[:, None]
    inside = (middle >= truths[:, :1]) & (middle <= truths[:, 1:]) & (number < steps[:, None])
    first = (truths[:, 0] * steps).floor().long().clamp(max=steps - 1)
    alone = functional.one_hot(first, count).bool() & ~inside.any(dim=1, keepdim=True)
    return inside | alone


def _cosine_cost(reference: Tensor, query: Tensor) -> Tensor:
    left, right = functional.normalize(reference, dim=-1), functional.normalize(query, dim=-1)
    return 1 - left @ right.transpose(1, 2)


def _mask(steps: Tensor, like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) < steps[:, None]


def _sine(steps: Tensor, count: int, channels: int) -> Tensor:
    """Sine positions ``[B, count, channels]``, one turn over the length of each video."""
    share = 2 * math.pi * (torch.arange(count, device=steps.device) + 1) / steps[:, None]
    pair = torch.arange(channels // 2, device=steps.device)
    angle = share[..., None] / 10_000 ** (2 * pair / channels)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def _follow(rows: Tensor, slots: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The slots behind the last real step of each reference, and the mask of what is real."""
    out = functional.pad(rows, (0, 0, 0, slots.shape[1]))
    place = steps[:, None] + torch.arange(slots.shape[1], device=rows.device)
    out = out.scatter(1, place[..., None].expand_as(slots), slots)
    return out, _mask(steps + slots.shape[1], out)
