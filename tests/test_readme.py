"""The README's commands and snippets are what CI and users run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relocal_pyg.apps.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python_snippets_run(code: str):
    exec(compile(code, "README.md", "exec"), {})


def test_shell_snippets_name_real_commands():
    named = re.findall(r"^relocal (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE)
    named += re.findall(r"`relocal (\w+)", README)
    assert named
    assert set(named) <= set(COMMANDS)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_test_command_of_the_readme():
    install, run = next(b for b in blocks("bash") if "[test]" in b).strip().split(" && ")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert install.removeprefix("pip install ") in script
    assert run in script
