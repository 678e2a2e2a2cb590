"""The names of the two rooms, and what importing them costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import relocal_pyg
import relocal_pyg.data


def test_every_export_exists() -> None:
    for name in relocal_pyg.data.__all__:
        assert getattr(relocal_pyg.data, name).__name__ == name
        assert name in dir(relocal_pyg.data)
    with pytest.raises(AttributeError, match="attribute Nothing"):
        _ = relocal_pyg.data.Nothing


def run(code: str) -> str:
    root = str(Path(relocal_pyg.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"), [("relocal_pyg.data", "h5py"), ("relocal_pyg.data.checks", "torch")]
)
def test_imports_are_light(module: str, absent: str) -> None:
    assert run(f"import sys, {module}; print({absent!r} in sys.modules)") == "False"


@pytest.mark.slow
def test_protocol_functions_are_functions_whatever_was_imported_first() -> None:
    code = (
        "import sys, relocal_pyg.datasets.custom, relocal_pyg.datasets.thumos14\n"
        "import relocal_pyg.datasets.synthetic\n"
        "from relocal_pyg.datasets import anet12, anet_vrl, custom, synthetic, thumos14\n"
        "print(all(map(callable, (anet12, anet_vrl, custom, synthetic, thumos14))))\n"
        "print('pandas' in sys.modules, 'matplotlib' in sys.modules)"
    )
    assert run(code).split() == ["True", "False", "False"]
