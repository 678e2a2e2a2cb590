"""From files to tensors: features, annotations, proposals, pairs of clips as graphs.

Names are imported when they are first used, so that looking into a feature file needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
