"""The site names every public name, also where a package defines some or hides a module."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: Packages that define names themselves, and one with modules called as their functions.
ROOMS = ("relocal_pyg.datasets", "relocal_pyg.formats")


@pytest.mark.slow
def test_every_public_name_of_a_package_and_its_modules_has_a_place(tmp_path):
    pytest.importorskip("furo")
    from sphinx.application import Sphinx

    names = "\n".join(f"   {room}" for room in ROOMS)
    (tmp_path / "index.rst").write_text(
        f"Names\n=====\n\n.. autosummary::\n   :toctree: _api\n   :recursive:\n\n{names}\n"
    )
    settings = {"templates_path": [str(DOCS / "_templates")]}
    places = str(tmp_path), str(DOCS), str(tmp_path / "site"), str(tmp_path / "trees")
    app = Sphinx(*places, "dummy", settings, status=None, warningiserror=True)
    app.build()
    found = app.env.get_domain("py").objects
    missing = []
    for room in ROOMS:
        folder = Path(inspect.getfile(importlib.import_module(room))).parent
        for file in sorted(folder.glob("*.py")):
            module = room if file.stem == "__init__" else f"{room}.{file.stem}"
            for name, value in vars(importlib.import_module(module)).items():
                own = getattr(value, "__module__", None) == module and callable(value)
                if own and not name.startswith("_") and inspect.getdoc(value):
                    missing += [f"{module}.{name}"] if f"{module}.{name}" not in found else []
    assert missing == []
