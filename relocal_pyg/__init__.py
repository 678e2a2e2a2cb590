"""Find the moment of a long video that means the same as a query clip."""

from relocal_pyg.version import __version__

__all__ = ["__version__"]
