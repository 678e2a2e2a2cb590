"""Rules of the house that no single module can show."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import relocal_pyg

PACKAGE = Path(relocal_pyg.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Rooms from the top of the house down: a room imports from itself and from those before it.
ROOMS = [
    "version",
    "errors",
    "moments",
    "graph",
    "io",
    "formats",
    "nn",
    "data",
    "datasets",
    "proposals",
    "models",
    "evaluation",
    "training",
    "search",
    "video",
    "apps",
]

#: One function imports downwards, late: ``TrainableRelocalizer.fit`` calls the training loop.
EXCEPTIONS = {("models/base.py", "relocal_pyg.training")}


def room(dotted: str) -> int:
    name = dotted.removeprefix("relocal_pyg").lstrip(".")
    found = [i for i, each in enumerate(ROOMS) if name == each or name.startswith(each + ".")]
    return max(found, key=lambda i: len(ROOMS[i])) if found else -1


def runtime_imports(tree: ast.Module) -> list[str]:
    """Modules imported outside ``if TYPE_CHECKING``."""
    names, stack = [], list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        stack += list(ast.iter_child_nodes(node))
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path: Path):
    place = path.relative_to(PACKAGE)
    dotted = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
    if dotted == "__init__":
        return
    own = room(dotted)
    assert own >= 0, f"{dotted} is in no room"
    for name in runtime_imports(ast.parse(path.read_text(encoding="utf-8"))):
        if name.startswith("relocal_pyg.") and (str(place), name) not in EXCEPTIONS:
            assert room(name) <= own, f"{dotted} imports {name}, which is further down"


FORBIDDEN_CALLS = {"eval", "exec", "compile"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_a_user_supplies_can_run(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in runtime_imports(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        called = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert "torch_load" not in called
        assert keywords.get("shell") != "True"
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("weights_only", "True") == "True"
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"
        if called == "np.load":
            assert keywords.get("allow_pickle") == "False"


def test_light_import():
    heavy = ("torch", "matplotlib", "sklearn", "av", "ray", "faiss")
    code = f"import sys, relocal_pyg; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_models_and_data_load_no_extra():
    # torchmetrics, which evaluation needs, loads matplotlib by itself.
    heavy = ("sklearn", "av", "ray", "faiss", "tensorboard", "torch_scatter")
    code = (
        "import sys, relocal_pyg.training.loop, relocal_pyg.evaluation.run, "
        "relocal_pyg.models.multi_graph, relocal_pyg.datasets.custom; "
        f"sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
