"""The site: ``sphinx-build -W docs site``, with the extra ``relocal_pyg[docs]``."""

from importlib.metadata import version as installed

project = "relocal_pyg"
author = "The relocal_pyg authors"
copyright = "2026, the relocal_pyg authors"  # noqa: A001
version = release = installed("relocal_pyg")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "relocal_pyg"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

autosummary_generate = True
autosummary_imported_members = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Names of shapes and of extras stand in docstrings for people, not for links.
napoleon_use_ivar = True
napoleon_custom_sections = [("Shapes", "params_style")]
nitpicky = False
suppress_warnings = ["myst.xref_missing", "ref.python"]
