"""How much each meeting of a query step with a reference step added to a network's score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relocal_pyg.data.pair_data import resample_positions
from relocal_pyg.errors import UsageError

if TYPE_CHECKING:
    from relocal_pyg.models.multi_graph import MultiGraphRelocalizer


def explain_by_similarity(
    model: MultiGraphRelocalizer,
    query: Tensor,
    reference: Tensor,
    moment: Tensor,
    query_video: Tensor | None,
) -> Tensor:
    """Gradient times input over the table of step similarities.

    Prior and similarity channels are functions of that table; where nodes carry their features as
    well, what those add is left out.

    Args:
        model: A network that compares steps, in evaluation mode.
        query: ``[m, F]``.
        reference: ``[n, F]``.
        moment: ``[1, 2]`` in steps.
        query_video: ``[v, F]`` or None.

    Returns:
        ``[m, n]``.
    """
    # The table hangs on its own, whether or not the weights are frozen.
    compared = model.inputs.compare(query.clone().requires_grad_(), reference, query_video)
    assert compared.table is not None
    inputs = model.inputs.place(compared, moment)
    raw, _ = model.run(inputs)
    (gradient,) = torch.autograd.grad((raw + inputs.prior).sum(), compared.table)
    return (gradient * compared.table).detach()


def explain_by_edges(
    model: MultiGraphRelocalizer, query: Tensor, reference: Tensor, moment: Tensor
) -> Tensor:
    """Gradient times weight over the edges between the videos, brought back from T steps.

    An edge counts in every layer and in both directions; steps that were thinned out get nothing.

    Args:
        model: A network whose nodes carry features alone, in evaluation mode.
        query: ``[m, F]``.
        reference: ``[n, F]``.
        moment: ``[1, 2]`` in steps.

    Returns:
        ``[m, n]``.

    Raises:
        UsageError: The network has no edges.
    """
    config, network = model.network_config, model.network
    if not config.graph_conv:
        raise UsageError("a network without graph convolution joins no steps: nothing to explain")
    steps = config.num_steps
    with torch.no_grad():
        inputs = model.inputs(query, reference, moment)
        sides = (
            network.encode_query(inputs.query_x[None], inputs.query_mask[None]),
            network.encode_proposal(inputs.proposal_x, inputs.proposal_mask),
        )
    masks = inputs.query_mask[None], inputs.proposal_mask
    real = torch.cat(masks, dim=1)[0] if config.mask_padding else None
    edges, weights = [], []
    for graph in model.graphs:
        matrix = graph.matmul(torch.eye(2 * steps).to(query), real)
        target, source = matrix.nonzero(as_tuple=True)
        edges.append(torch.stack([source, target]))
        weights.append(matrix[target, source].requires_grad_())
    raw, _ = network.fuse(*sides, edges, *masks, edge_weights=weights)
    gradients = torch.autograd.grad(raw.sum(), weights)
    slots = torch.zeros(2 * steps, 2 * steps).to(query)
    for edge, weight, gradient in zip(edges, weights, gradients, strict=True):
        slots[edge[1], edge[0]] += gradient * weight.detach()
    met = slots[:steps, steps:] + slots[steps:, :steps].T
    met = met * masks[0][0, :, None] * masks[1]
    rows, _ = resample_positions(torch.tensor(len(query)), steps)
    columns, _, _ = model.inputs.windows(len(reference), moment)
    table = torch.zeros(len(query), len(reference)).to(query)
    return table.index_put_((rows[:, None], columns), met, accumulate=True)
