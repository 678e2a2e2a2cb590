"""The tutorial's commands and snippets against the program itself."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from relocal_pyg.apps.cli import COMMANDS, main

TEXT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
SHELL = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("relocal ")
]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_there_is_something_to_check():
    assert len(SHELL) >= 10
    assert len(PYTHON) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({line.split()[1] for line in SHELL}))
def test_every_option_exists(command, capsys):
    assert command in COMMANDS
    assert main([command, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", capsys.readouterr().out))
    for line in SHELL:
        words = shlex.split(line, comments=True)
        if words[1] == command:
            assert {word for word in words if word.startswith("-")} <= known, line


@pytest.mark.parametrize("code", PYTHON)
def test_every_import_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = __import__(str(node.module), fromlist=["x"])
            for alias in node.names:
                assert hasattr(module, alias.name)
