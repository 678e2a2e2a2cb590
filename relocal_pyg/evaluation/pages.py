"""Pages from templates: everything that is not a template's own text is escaped."""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from relocal_pyg.errors import ascii_line
from relocal_pyg.evaluation.plots import svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def templates(package: str = "relocal_pyg.evaluation") -> Environment:
    """Templates of a package, which may extend ``base.html`` and import ``parts.html``.

    Texts are escaped and what is not printable is written out. The filter ``svg`` makes the source
    of an ``img`` from a figure; ``url(kind)`` does so from bytes.

    Args:
        package: Its folder ``templates`` is looked in first, then the one of this package.
    """
    packages = dict.fromkeys([package, "relocal_pyg.evaluation"])
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    made.filters |= {"svg": _svg, "url": data_url}
    return made


def render(template: str, package: str = "relocal_pyg.evaluation", **context: Any) -> Markup:
    """The text of a template, safe to be put into another page."""
    return Markup(templates(package).get_template(template).render(**context))


def data_url(content: bytes, kind: str) -> str:
    """Content as an address that holds it, such as ``data:image/jpeg;base64,...``.

    Example:
        >>> data_url(b"a", "text/plain")
        'data:text/plain;base64,YQ=='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _svg(figure: Figure) -> str:
    """As an image of its own a picture can run nothing, whatever its labels say."""
    return data_url(svg_text(figure).encode(), "image/svg+xml")


def _printable(value: object) -> object:
    return value if isinstance(value, Markup) else ascii_line(str(value))
