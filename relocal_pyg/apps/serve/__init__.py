"""A local web page to find moments in videos: the extra ``relocal_pyg[serve]``.

Made for one person on one machine: it listens on the loopback address alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
