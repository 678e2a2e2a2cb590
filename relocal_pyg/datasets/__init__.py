"""Named protocols: a data set, its split and its proposals.

These are plain imports on purpose: ``custom``, ``synthetic`` and ``thumos14`` share their names
with modules, and a name imported on demand would give now the function and now the module.
"""

from relocal_pyg.data.items import FeatureSource, ProposalSource, Protocol
from relocal_pyg.datasets.activitynet import anet12, anet_vrl
from relocal_pyg.datasets.custom import custom
from relocal_pyg.datasets.synthetic import synthetic
from relocal_pyg.datasets.thumos14 import thumos14

__all__ = [
    "FeatureSource",
    "ProposalSource",
    "Protocol",
    "anet12",
    "anet_vrl",
    "custom",
    "synthetic",
    "thumos14",
]
