"""Sums and means of losses that several processes share.

Data-parallel training averages gradients over processes. These make the average that of the whole
batch; with one process they change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def sum_over_ranks(total: Tensor) -> Tensor:
    """A process's share of a sum over the batch, such that the average over processes is the sum.

    Example:
        >>> sum_over_ranks(torch.tensor(2.0)).item()
        2.0
    """
    return total * distributed.get_world_size() if distributed.is_initialized() else total


def mean_over_ranks(total: Tensor, count: int) -> Tensor:
    """A process's share of a mean over the batch whose terms are shared out unevenly.

    Args:
        total: Sum of this process's terms.
        count: How many they are; may be 0.

    Returns:
        A value whose average over processes is the mean of all terms; 0 where there are none.
    """
    number = torch.tensor(float(count), device=total.device)
    if not distributed.is_initialized():
        return total / number.clamp(min=1)
    distributed.all_reduce(number)
    return total * (distributed.get_world_size() / number.clamp(min=1))
