"""The site: ``sphinx-build -W docs site``, with the extra ``relocal_pyg[docs]``."""

import inspect
import re
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


def cheat_sheet() -> str:
    """Every public layer and model, from its class: a table in Markdown."""
    from torch.nn import Module

    from relocal_pyg import models, nn

    lines = ["| | what it is | trained | takes |", "|---|---|---|---|"]
    for room in (nn, models):
        for name in sorted(room.__all__):
            found = getattr(room, name)
            if not (inspect.isclass(found) and issubclass(found, (Module, models.Relocalizer))):
                continue
            trained = issubclass(found, Module) and not inspect.isabstract(found)
            takes = [each for each in inspect.signature(found).parameters if each != "kwargs"]
            what = re.sub(r":\w+:(?=`)", "", (inspect.getdoc(found) or "").splitlines()[0])
            what = what.replace("``", "`")
            link = f"{{py:class}}`~{found.__module__}.{name}`"
            cells = [link, what, "yes" if trained else "no", ", ".join(f"`{t}`" for t in takes)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def setup(app) -> None:
    """Put the table where a page says so."""

    def fill(_, __, source: list[str]) -> None:
        if "<!-- cheat sheet -->" in source[0]:
            source[0] = source[0].replace("<!-- cheat sheet -->", cheat_sheet())

    app.connect("source-read", fill)
