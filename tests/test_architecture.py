"""Rules of the house that no single module can show."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import relocal_pyg

PACKAGE = Path(relocal_pyg.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Rooms from the top of the house down: a room imports from itself and from those before it.
ROOMS = ["errors", "moments", "graph", "io", "formats", "nn", "data", "datasets", "proposals"]
ROOMS += ["models", "evaluation", "training", "search", "video", "apps"]

#: What stands above the rooms: the face, and what starts the command.
FACE = {"relocal_pyg", "relocal_pyg.__main__"}

LONGEST_FILE = 600
MOST_FILES = 115
MOST_LINES = 34_807


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {dotted(path): path for path in MODULES}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports: late ones and those for typing too."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = members & set(NAMES)
            found |= modules | ({node.module} if members - modules else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "relocal_pyg"} - {dotted(path)}


def room(name: str) -> int:
    return ROOMS.index(name.split(".")[1])


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path: Path):
    name = dotted(path)
    if name not in FACE:
        for other in imports(path) - FACE:
            assert room(other) <= room(name), f"{name} imports {other}, which is further down"


@pytest.mark.slow
def test_the_import_graph_has_no_cycle():
    graph = {name: imports(path) - FACE for name, path in NAMES.items() if name not in FACE}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_pages_need_nothing_of_evaluation_but_its_pictures():
    """What counts, torchmetrics, takes as long to load as all else that a server needs."""
    seen, left = set(), {"relocal_pyg.apps.serve.app", "relocal_pyg.video.page"}
    while left:
        seen.add(name := left.pop())
        left |= imports(NAMES[name]) - seen - FACE
    rooms = {name for name in seen if name.startswith("relocal_pyg.evaluation.")}
    assert rooms == {"relocal_pyg.evaluation.plots"}


def test_the_house_is_small():
    lines = {name: len(path.read_text().splitlines()) for name, path in NAMES.items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
    assert len(lines) <= MOST_FILES
    assert sum(lines.values()) <= MOST_LINES


@pytest.mark.slow
def test_only_the_guarded_writers_write():
    """Every file is written under a temporary name that ``io.write`` gave, or is a cache's own."""
    writes = {"write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "tofile"}
    temporary = re.compile(r"temporary|scratch|folder|place|work|stream|buffer|packed|manifest")
    for name, path in NAMES.items():
        for node in nodes(path):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in writes:
                assert temporary.search(ast.unparse(node)), f"{name}: {ast.unparse(node)}"


FORBIDDEN_CALLS = {"eval", "exec", "compile"}
WATCHED = {"shell", "allow_pickle", "weights_only"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_a_user_supplies_can_run(path: Path):
    names = {
        name.split(".")[0]
        for node in nodes(path)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not FORBIDDEN_MODULES & names
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        called = ast.unparse(node.func)
        keywords = {
            word.arg: ast.unparse(word.value) for word in node.keywords if word.arg in WATCHED
        }
        assert "torch_load" not in called
        assert keywords.get("shell") != "True"
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("weights_only", "True") == "True"
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"
        if called == "np.load":
            assert keywords.get("allow_pickle") == "False"


def loaded(code: str, *arguments: str) -> set[str]:
    """Modules that a fresh interpreter holds after some code; it may print before."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint()\nprint(*sys.modules)", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_light_import():
    heavy = {"torch", "matplotlib", "sklearn", "av", "ray", "faiss", "numpy", "h5py"}
    assert not heavy & loaded("import relocal_pyg")


def test_the_face_gives_the_names_that_most_need():
    for name in (
        *("find_moments", "load_model", "PairGraph", "PairData", "SumConv", "MultiGraphConv"),
        *("MultiGraphRelocalizer", "MultiGraphMatcher", "ContrastMatcher", "MomentMAP"),
    ):
        assert name in relocal_pyg.__all__
        assert getattr(relocal_pyg, name).__name__ == name


@pytest.mark.slow
def test_find_loads_nothing_of_training_and_models_and_data_no_extra(tmp_path: Path):
    draw = np.random.default_rng(0)
    for name, steps in (("q", 6), ("r", 40)):
        np.save(tmp_path / f"{name}.npy", draw.standard_normal((steps, 8)).astype("f4"))
    held = loaded(
        """
from relocal_pyg.apps.cli import main
assert main(['find', *sys.argv[2:]]) == 0
open(sys.argv[1], "w").write(" ".join(sys.modules))
import relocal_pyg.training.loop, relocal_pyg.evaluation.run
import relocal_pyg.models.multi_graph, relocal_pyg.datasets.custom
""",
        *(str(tmp_path / name) for name in ("found", "q.npy", "r.npy")),
    )
    found = set((tmp_path / "found").read_text().split())
    heavy = {"lightning_fabric", "lightning", "torchmetrics", "matplotlib", "tensorboard", "av"}
    assert "relocal_pyg.apps.cli.find" in found
    assert not heavy & found
    assert not {name for name in found if name.startswith("relocal_pyg.training")}
    # torchmetrics, which evaluation needs, loads matplotlib by itself.
    heavy = {"sklearn", "av", "ray", "faiss", "tensorboard", "torch_scatter"}
    assert "relocal_pyg.training.loop" in held
    assert not heavy & held


@pytest.mark.slow
def test_a_missing_file_is_said_before_anything_is_loaded(tmp_path: Path):
    held = loaded(
        "from relocal_pyg.apps.cli import main\nassert main(['find', *sys.argv[1:]]) == 2",
        str(tmp_path / "no.mp4"),
        str(tmp_path / "nor.mp4"),
    )
    assert not {"torch", "h5py", "pandas", "av"} & held


@pytest.mark.slow
def test_other_commands_load_only_what_they_name(tmp_path: Path):
    held = loaded("from relocal_pyg.apps.cli import main\nassert main(['check', 'a', 'b']) == 2")
    commands = {name for name in held if name.startswith("relocal_pyg.apps.cli.")}
    assert commands == {"relocal_pyg.apps.cli.extract", "relocal_pyg.apps.cli.options"}
