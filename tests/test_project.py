"""Files that only run elsewhere: checked by their schemas."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import relocal_pyg

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
FILES = {
    "vendor.github-workflows": sorted(GITHUB.glob("workflows/*.yml")),
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": [
        path for path in sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml")) if path.stem != "config"
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("schema", FILES)
def test_files_fit_their_schema(schema: str):
    assert FILES[schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*command, *map(str, FILES[schema])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_workflows_install_as_the_readme_says():
    installs = re.compile(r"pip install (-q )?-c constraints\.txt -e '\.\[test\]'")
    assert installs.search((GITHUB / "workflows/tests.yml").read_text(encoding="utf-8"))
    assert installs.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert installs.search((ROOT / ".ci/run").read_text(encoding="utf-8"))


def test_every_room_is_on_the_site_and_every_page_in_its_contents():
    """The reference goes down from the rooms by itself: each has to be named once."""
    listed = re.findall(
        r"^   (relocal_pyg\.\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE
    )
    rooms = [module.name for module in pkgutil.iter_modules(relocal_pyg.__path__, "relocal_pyg.")]
    assert sorted(listed) == sorted(set(rooms) - {"relocal_pyg.__main__"})
    contents = (ROOT / "docs/index.md").read_text().split("```{toctree}", 1)[1].split()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= set(contents)


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name
)
def test_links_between_pages_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


ROOMS = "errors moments graph io formats nn data datasets proposals models evaluation training "
ROOMS += "search video"


@pytest.mark.parametrize("room", ROOMS.split())
def test_every_public_name_is_on_the_site(room: str):
    """The site shows what a module below a room defines and describes; no name may hide from it."""
    module = importlib.import_module(f"relocal_pyg.{room}")
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            home = found.__module__
            assert home.startswith(f"relocal_pyg.{room}") or room == "datasets", name
            assert not any(part.startswith("_") for part in home.split(".")), name
            assert vars(sys.modules[home])[name] is found
            assert found.__doc__, name
