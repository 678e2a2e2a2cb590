"""One query beside many references at once: what a network sees of a few proposals of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from relocal_pyg.data.resample import resample_positions, window_positions
from relocal_pyg.models.contrast import contrast_scores
from relocal_pyg.models.pair_inputs import PairInputBuilder, extend


@dataclass(frozen=True)
class ComparedVideos:
    """A query and V references of R steps in all, with M proposals in all.

    Attributes:
        query_x: What the network sees of the query beside each reference, ``[V, T, C]``.
        query_mask: ``[T]``, False at padding.
        rows: What it sees of the references, one after the other, ``[R, C]``; a flag of proposals
            comes apart.
        positions: Row of each step of each proposal, ``[M, T]``.
        mask: ``[M, T]``, False at padding.
        inside: The flag ``[M, T, 1]``, or None.
        prior: ``[M]``, the training-free score, or zeros.
        owner: ``[M]``, the reference of each proposal.
    """

    query_x: Tensor
    query_mask: Tensor
    rows: Tensor
    positions: Tensor
    mask: Tensor
    inside: Tensor | None
    prior: Tensor
    owner: Tensor


@torch.no_grad()
def compare_videos(
    inputs: PairInputBuilder,
    query: Tensor,
    references: Sequence[Tensor],
    proposals: Sequence[Tensor],
    query_video: Tensor | None = None,
) -> ComparedVideos:
    """:meth:`PairInputBuilder.compare` and ``windows`` of many references, a few calls for all.

    Args:
        inputs: The network's inputs.
        query: ``[m, F]``.
        references: ``[n, F]`` each.
        proposals: ``[., 2]`` in steps, for each reference.
        query_video: Features ``[v, F]`` of the video around the query, or None.
    """
    config = inputs.config
    lengths = torch.tensor([len(reference) for reference in references])
    counts = torch.tensor([len(some) for some in proposals])
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    of_row = torch.arange(len(lengths)).repeat_interleave(lengths)
    rows, some = torch.cat(list(references)), torch.cat(list(proposals))
    queries = query.expand(len(lengths), -1, -1)
    extra: list[Tensor] = []
    query_extra: list[Tensor] = []
    prior = rows.new_zeros(len(some))
    if inputs.adapter is not None:
        means = torch.stack([reference.mean(dim=0) for reference in references])
        around = means
        if query_video is not None and len(query_video):
            around = query_video.mean(dim=0, keepdim=True)
        queries = query - around[:, None]
        queries = inputs.adapter(queries / _size(queries.norm(dim=2).mean(dim=1))[:, None, None])
        queries = queries.expand(len(lengths), -1, -1)
        rows = rows - means[of_row]
        sizes = torch.stack([part.mean() for part in rows.norm(dim=1).split(lengths.tolist())])
        rows = inputs.adapter(rows / _size(sizes)[of_row, None])
        units, unit_queries = (
            functional.normalize(rows, dim=1),
            functional.normalize(queries, dim=2),
        )
        direction = functional.normalize(queries.mean(dim=1), dim=1)
        similarity = (units * direction[of_row]).sum(dim=1)
        if config.similarity:
            split = units.split(lengths.tolist())
            tables = [one @ part.T for one, part in zip(unit_queries, split, strict=True)]
            usual = torch.stack([part.mean(dim=0) for part in split])
            extra = [
                similarity,
                torch.cat([table.amax(dim=0) for table in tables]),
                (units * unit_queries.mean(dim=1)[of_row]).sum(dim=1),
            ]
            query_extra = [
                (unit_queries @ direction[..., None])[..., 0],
                torch.stack([table.amax(dim=1) for table in tables]),
                (unit_queries @ usual[..., None])[..., 0],
            ]
        if config.prior == "contrast":
            prior = _prior(similarity, lengths, proposals, counts)
    if config.context > 0:
        query_extra.append(queries.new_ones(queries.shape[:2]))
    if not config.appearance:
        queries, rows = queries[..., :0], rows[:, :0]
    seen = torch.cat([queries, *(channel[..., None] for channel in query_extra)], dim=2)
    chosen, query_mask = resample_positions(torch.tensor(len(query)), config.num_steps)
    return ComparedVideos(
        seen[:, chosen] * query_mask[:, None].to(seen),
        query_mask,
        torch.cat([rows, *(channel[:, None] for channel in extra)], dim=1),
        *_windows(inputs, some, lengths, owner),
        prior,
        owner,
    )


def _windows(
    inputs: PairInputBuilder, proposals: Tensor, lengths: Tensor, owner: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions among the rows of all references, mask and flag."""
    config, ends = inputs.config, lengths[owner]
    first = (lengths.cumsum(dim=0) - lengths)[owner]
    bounds = extend(proposals, config.context, int(lengths.max())).round().long()
    # A window is at least a step long and inside its own reference before all become one.
    start = torch.minimum(bounds[:, 0], ends - 1)
    past = torch.minimum(bounds[:, 1], ends)
    whole = torch.stack([start + first, past + first], dim=1).double()
    positions, mask = window_positions(int(lengths.sum()), whole, config.num_steps)
    if config.context == 0:
        return positions, mask, None
    middle = positions - first[:, None] + 0.5
    inside = (middle > proposals[:, :1]) & (middle < proposals[:, 1:]) & mask
    return positions, mask, inside[..., None]


def _prior(
    similarity: Tensor, lengths: Tensor, proposals: Sequence[Tensor], counts: Tensor
) -> Tensor:
    """Training-free scores, references and proposals padded to a common length."""
    padded = torch.nn.utils.rnn.pad_sequence(
        list(similarity.split(lengths.tolist())), batch_first=True
    )
    whole = similarity.new_tensor([0.0, 1.0])
    windows = whole.repeat(len(counts), int(counts.max()), 1)
    real = torch.arange(windows.shape[1]) < counts[:, None]
    windows[real] = torch.cat(list(proposals)).to(windows)
    return contrast_scores(padded, windows, num_steps=lengths)[real]


def _size(norms: Tensor) -> Tensor:
    return norms.clamp(min=1e-6)
