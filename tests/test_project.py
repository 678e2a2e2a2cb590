"""Files that only run elsewhere: checked by their schemas."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
FILES = {
    "vendor.github-workflows": sorted(GITHUB.glob("workflows/*.yml")),
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": [
        path for path in sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml")) if path.stem != "config"
    ],
}


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
