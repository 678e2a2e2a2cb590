"""How proposals are made: sliding windows, and actionness grouped into candidate moments."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
