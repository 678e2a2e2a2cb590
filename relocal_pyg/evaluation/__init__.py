"""How good answers are: metrics, the loop that asks models, tables and the report page."""

import lazy_loader

# What is here, and in which module, is listed in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
