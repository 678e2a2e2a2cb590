"""Outputs never destroy: inputs by any name, files of others, work of another process."""

from __future__ import annotations

import contextvars
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.bombs import film
from relocal_pyg.apps.cli import main
from relocal_pyg.data import write_features
from relocal_pyg.errors import OutputError
from relocal_pyg.io import write
from relocal_pyg.io.record import verify_manifest
from relocal_pyg.io.write import (
    also_reads,
    check_output,
    claim_folder,
    own_folder,
    replace_file,
    replace_folder,
    write_json,
    writing,
)
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.search import build_index
from relocal_pyg.video.cut import cut_clip
from relocal_pyg.video.index import IndexedVideos


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, read through links."""
    return {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of every command in one folder, and links that lead to them."""
    folder = tmp_path_factory.mktemp("inputs")
    draw = np.random.default_rng(0)
    np.save(folder / "Query.npy", draw.standard_normal((6, 8)).astype("f4"))
    np.save(folder / "réference.npy", draw.standard_normal((40, 8)).astype("f4"))
    rows = {f"v{i}": torch.from_numpy(draw.standard_normal((20, 8)).astype("f4")) for i in range(4)}
    write_features(folder / "features.h5", rows.items())
    write_json(folder / "annotations.json", {"database": {}})
    build_index(folder / "index", ContrastMatcher(), ((k, v, 1.0) for k, v in rows.items()))
    (folder / "videos" / "deep").mkdir(parents=True)
    (folder / "videos" / "park.mp4").write_bytes(b"a film")
    (folder / "videos" / "deep" / "lake.mkv").write_bytes(b"another film")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "through").symlink_to(folder)
    (folder / "weights.pt").write_bytes(b"weights")
    return folder


#: Commands whose output may be any file, and which of the files above they read.
COMMANDS: list[tuple[list[str], str, list[str]]] = [
    *[
        (["find", "Query.npy", "réference.npy"], option, ["Query.npy", "réference.npy"])
        for option in ("--json", "--csv", "--srt", "--report", "--explain")
    ],
    (["find", "Query.npy", "features.h5::v1"], "--json", ["Query.npy", "features.h5"]),
    (
        ["find", "Query.npy", "réference.npy", "--weights", "weights.pt"],
        "--csv",
        ["weights.pt", "Query.npy"],
    ),
    (
        ["search", "index", "Query.npy"],
        "--json",
        ["Query.npy", "index/index.json", "index/shard-00000/features.npy", "index/manifest.json"],
    ),
    (
        ["extract", "videos", "--output", "new.h5"],
        "--report",
        ["videos/park.mp4", "videos/deep/lake.mkv"],
    ),
    (["extract", "videos"], "--output", ["videos/park.mp4", "videos/deep/lake.mkv"]),
    (["check", "features.h5", "annotations.json"], "--report", ["features.h5", "annotations.json"]),
    (
        ["propose", "--protocol", "custom", "--features", "features.h5"]
        + ["--annotations", "annotations.json"],
        "",
        ["features.h5", "annotations.json"],
    ),
    # Outputs that are folders.
    (["index"], "features.h5", ["features.h5"]),
    (
        ["train", "--protocol", "custom", "--features", "features.h5"]
        + ["--annotations", "annotations.json"],
        "",
        ["features.h5", "annotations.json"],
    ),
    (["demo"], "--out", ["videos", "index"]),
    (["train"], "", ["index", "videos"]),
]


def disguise(place: Path, name: str, how: str, serial: int) -> Path:
    """Another name for an input: what a person types, a link, a file system's other form."""
    given, file = Path(name), place / name
    alias = place / "elsewhere" / f"alias-{serial}"
    if how == "detour":
        return Path("./elsewhere/..") / given.parent / "." / given.name
    if how == "absolute":
        return file
    if how == "link":
        alias.symlink_to(file)
        return alias
    if how == "link of a link":
        first = alias.with_suffix(".first")
        first.symlink_to(os.path.relpath(file, first.parent))
        alias.symlink_to(first)
        return alias
    if how == "hard link" and file.is_file():
        os.link(file, alias)
        return alias
    if how == "linked folder":
        return place / "elsewhere" / "through" / given
    if how == "case" and file.is_file():
        return given.with_name(given.name.swapcase())
    if how == "Unicode" and file.is_file():
        return given.with_name(unicodedata.normalize("NFD", given.name))
    return given


HOW = ["as it is", "detour", "absolute", "link", "link of a link", "hard link"]
HOW += ["linked folder", "case", "Unicode"]


@pytest.mark.slow
@given(st.data())
@settings(
    max_examples=500 if os.environ.get("RELOCAL_FAULTS") == "full" else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_output_reaches_an_input(
    place: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.chdir(place)
    words, option, names = data.draw(st.sampled_from(COMMANDS))
    name, how = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(HOW))
    force = data.draw(st.booleans())
    before = snapshot(place)
    serial = sum(1 for _ in (place / "elsewhere").iterdir())
    target = str(disguise(place, name, how, serial))
    links = {str(each) for each in (place / "elsewhere").glob("alias-*")}
    if words == ["index"]:
        line = ["index", target, option]
    elif option.startswith("--"):
        line = [*words, option, target]
    else:
        line = [words[0], target, *words[1:]]
    if force and words[0] not in ("demo", "train", "index"):
        line.append("--force")
    assert main(line) == 2, line
    after = {key: value for key, value in snapshot(place).items() if key not in links}
    assert {key: value for key, value in after.items() if key in before} == {
        key: value for key, value in before.items() if key not in links
    }, line
    assert set(after) <= set(before), line


#: Commands whose inputs are named inside others: examples, a saved query, the videos of an index.
NAMED_WITHIN: list[tuple[list[str], list[str]]] = [
    (
        ["find", "clip.npy", "long.npy", "--query", "more.npy:0-3", "--not", "less.npy:1-0:00:05"],
        ["more.npy", "less.npy"],
    ),
    (["find", "clip.npy", "long.npy", "--query", "rows.h5::v:0-3"], ["rows.h5"]),
    (["find", "saved.json", "long.npy"], ["clip.npy", "more.npy", "less.npy", "saved.json"]),
    (
        ["search", "index", "clip.npy", "--feedback", "judged.json"],
        ["more.npy", "judged.json", "index/manifest.json"],
    ),
    (["search", "filmed", "clip.avi"], ["films/park.mp4", "clip.avi"]),
]


@pytest.mark.slow
@given(st.data())
@settings(
    max_examples=200 if os.environ.get("RELOCAL_FAULTS") == "full" else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_an_input_names_is_an_input(
    named: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.chdir(named)
    words, names = data.draw(st.sampled_from(NAMED_WITHIN))
    name, how = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(HOW))
    options = ["--json", "--csv", "--srt", "--export"]
    option = data.draw(st.sampled_from([*options, "--explain"] if words[0] == "find" else options))
    before = snapshot(named)
    target = str(disguise(named, name, how, sum(1 for _ in (named / "elsewhere").iterdir())))
    more = ["--format", "csv"] if option == "--export" else []
    assert main([*words, option, target, *more, "--force"]) == 2
    after = snapshot(named)
    assert {key: after[key] for key in before} == before, (words, option, target)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that name other inputs."""
    folder = tmp_path_factory.mktemp("named")
    draw = np.random.default_rng(0)
    for name, steps in (("clip", 6), ("long", 40), ("more", 12), ("less", 12)):
        np.save(folder / f"{name}.npy", draw.standard_normal((steps, 8)).astype("f4"))
    rows = {"v": torch.from_numpy(draw.standard_normal((20, 8)).astype("f4"))}
    write_features(folder / "rows.h5", rows.items())
    stretch = {"start": 0, "end": 3, "good": True}
    answers: dict[str, object] = {"schema": "relocal_pyg.moments/1", "query": "clip.npy"}
    answers |= {"query_span": None, "reference": "long.npy"}
    examples = [{"video": "more.npy", **stretch}, {"video": "less.npy", **stretch, "good": False}]
    write_json(folder / "saved.json", {**answers, "examples": examples, "moments": []})
    write_json(folder / "judged.json", [{"video": "more.npy", **stretch}])
    (folder / "films").mkdir()
    (folder / "films" / "park.mp4").write_bytes(b"a film")
    film(str(folder / "clip.avi"), [0, 0.1, 0.2])
    for name in ("index", "filmed"):
        build_index(folder / name, ContrastMatcher(), ((k, v, 1.0) for k, v in rows.items()))
    films = {"v": folder / "films" / "park.mp4"}
    IndexedVideos(folder / "filmed", 1.0, "a network", films).save()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "through").symlink_to(folder)
    return folder


def test_a_folder_that_is_read_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "park.mp4").write_bytes(b"a film")
    with own_folder(tmp_path / "run", "run") as run:
        write_json(run / "run.json", 1)
    before = snapshot(tmp_path)
    for name in ("films", "run"):
        with (
            writing(inputs=[tmp_path / name], force=True),
            pytest.raises(OutputError, match="is an input"),
        ):
            own_folder(tmp_path / name, "evaluation").__enter__()
    assert snapshot(tmp_path) == before


def test_a_name_that_no_file_system_takes_is_said_at_once(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        writing([tmp_path / ("a" * 300)]).__enter__()


@pytest.mark.slow
@given(
    content=st.binary(max_size=200),
    option=st.sampled_from(["--json", "--csv", "--srt", "--explain"]),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_others_wrote_is_replaced_by_force_alone(
    place: Path, tmp_path: Path, content: bytes, option: str
) -> None:
    target = tmp_path / "notes"
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    line = ["find", str(place / "Query.npy"), str(place / "réference.npy"), option, str(target)]
    line += ["--model", "contrast"]
    assert main(line) == 2
    assert target.read_bytes() == content
    assert main([*line, "--force"]) == 0
    written = target.read_bytes()
    assert written != content
    assert main(line) == 0  # what this package wrote, it replaces
    target.write_bytes(target.read_bytes() + b" edited by hand")
    assert main(line) == 2
    assert target.read_bytes() == written + b" edited by hand"


def test_force_takes_no_folder_of_another_kind_of_ours(tmp_path: Path) -> None:
    """A checkpoint whose manifest became that of a cache could not be read any more."""
    with replace_folder(tmp_path / "model", "model") as folder:
        (folder / "weights").write_text("1")
    for take in (own_folder, replace_folder):
        refused = pytest.raises(OutputError, match="of kind model")
        with writing(force=True), refused, take(tmp_path / "model", "cache"):
            pass
    assert list(verify_manifest(tmp_path / "model", "model")) == ["weights"]


def test_a_mark_belongs_to_the_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    check_output(tmp_path / "a.json")
    os.rename(tmp_path / "a.json", tmp_path / "b.json")
    check_output(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes((tmp_path / "b.json").read_bytes())
    with pytest.raises(OutputError, match="not written by relocal"):
        check_output(tmp_path / "c.json")


def test_another_kind_of_output_is_not_replaced(tmp_path: Path) -> None:
    write_features(tmp_path / "gym.h5", [("v", np.ones((2, 2), "f4"))])
    before = (tmp_path / "gym.h5").read_bytes()
    with pytest.raises(OutputError, match="holds features"):
        write_json(tmp_path / "gym.h5", 1)
    assert (tmp_path / "gym.h5").read_bytes() == before
    with writing(force=True):
        write_json(tmp_path / "gym.h5", 1)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--json", "--csv", "--srt", "--explain"])
def test_a_clip_that_was_cut_here_is_no_text(place: Path, tmp_path: Path, option: str) -> None:
    """Clips of an earlier search are films by now, and inputs where their folder is read."""
    film(str(tmp_path / "film.avi"), [0, 0.1, 0.2, 0.3])
    clip = tmp_path / "films" / "film-1.avi"
    for _ in range(2):  # again by the same command: it replaces its own
        cut_clip(tmp_path / "film.avi", 0, 0.2, clip)
    before = clip.read_bytes()
    line = ["find", str(place / "Query.npy"), str(place / "réference.npy"), option, str(clip)]
    assert main(line) == 2
    line = ["extract", str(tmp_path / "films"), "--output", f"{tmp_path}/x.h5", "--rate", "1000"]
    assert main([*line, "--report", str(clip)]) == 2
    assert clip.read_bytes() == before


@pytest.mark.parametrize("words", [["find", "Query.npy", "Query.npy", "--cut"], ["example"]])
def test_a_folder_is_filled_by_one_process_at_a_time(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    """Clips of two searches would replace each other."""
    monkeypatch.chdir(place)
    with writing([tmp_path / "clips" / "*"]):
        assert contextvars.Context().run(main, [*words, str(tmp_path / "clips")]) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / 'clips'}/*: is being written by process {os.getpid()}" in said
        assert [each.name[:9] for each in (tmp_path / "clips").iterdir()] == [".relocal-"]
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_of_one_name_are_refused(place: Path, tmp_path: Path) -> None:
    line = ["find", str(place / "Query.npy"), str(place / "réference.npy")]
    assert main([*line, "--json", f"{tmp_path}/a", "--csv", f"{tmp_path}/./A"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_known_by_the_kind_in_its_manifest(tmp_path: Path) -> None:
    """A web application has a manifest.json too."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "manifest.json").write_text(json.dumps({"name": "shop", "files": ["index.html"]}))
    (site / "index.html").write_text("<p>")
    before = snapshot(site)
    for attempt in (
        lambda: replace_folder(site, "model").__enter__(),
        lambda: own_folder(site, "run").__enter__(),
        lambda: claim_folder(site, "cache"),
    ):
        with pytest.raises(OutputError, match="did not write"):
            attempt()
    assert snapshot(site) == before
    with own_folder(tmp_path / "run", "run") as run:
        write_json(run / "run.json", 1)
    for kind in ("model", "index"):
        with pytest.raises(OutputError, match="is a folder of kind run"):
            replace_folder(tmp_path / "run", kind).__enter__()


def test_files_added_to_a_model_by_hand_are_not_deleted(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "model", "model") as folder:
        (folder / "a").write_text("1")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        replace_folder(tmp_path / "model", "model").__enter__()
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_an_input_is_never_replaced(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "model", "model") as folder:
        (folder / "a").write_text("1")
    with (
        writing(inputs=[tmp_path / "model" / "a"], force=True),
        pytest.raises(OutputError, match="holds an input"),
    ):
        replace_folder(tmp_path / "model", "model").__enter__()


def test_a_folder_of_which_nothing_came_is_gone(tmp_path: Path) -> None:
    def fail() -> None:
        with own_folder(tmp_path / "a" / "b", "run"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def _compete(hold: Callable[[], object], gate: object, end: object, results: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    try:
        with hold():  # type: ignore[attr-defined]
            end.wait()  # type: ignore[attr-defined]
            results.put("won")  # type: ignore[attr-defined]
    except OutputError as error:
        end.wait()  # type: ignore[attr-defined]
        results.put(str(error))  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_two_writers_one_wins_and_one_is_refused(
    tmp_path: Path, count: Callable[[int, int], int], kind: str
) -> None:
    fork = multiprocessing.get_context("fork")
    for number in range(count(12, 50)):
        target = tmp_path / f"out-{number}"

        def hold(target: Path = target) -> object:
            return writing([target]) if kind == "file" else own_folder(target, "run")

        gate, end, results = fork.Barrier(2), fork.Barrier(2), fork.Queue()
        writers = [fork.Process(target=_compete, args=(hold, gate, end, results)) for _ in "ab"]
        for writer in writers:
            writer.start()
        said = sorted((results.get(timeout=60), results.get(timeout=60)), key=len)
        for writer in writers:
            writer.join()
        assert said[0] == "won"
        assert "is being written by process" in said[1]
        assert socket.gethostname() in said[1]
        assert "\n" not in said[1]
    assert not [each for each in tmp_path.rglob("*") if "lock" in each.name]


@pytest.mark.parametrize("way", ["put there", "taken away"])
def test_a_manifest_that_comes_or_goes_meanwhile_is_nothing_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Whatever another process does between two looks at a folder."""
    target, kind_of = tmp_path / "out", write._kind_of
    manifest = target / "manifest.json"
    if way == "taken away":
        claim_folder(target, "run")

    def meanwhile(folder: Path) -> str | None:
        monkeypatch.undo()
        found = kind_of(folder)
        if way == "put there":
            claim_folder(target, "run")
            return found
        manifest.unlink()
        return None

    monkeypatch.setattr(write, "_kind_of", meanwhile)
    with own_folder(target, "run") as held:
        assert held == target


@pytest.mark.slow
def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from relocal_pyg.io.write import own_folder
with own_folder(sys.argv[1], "run") as folder:
    (folder / "a").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".relocal-lock").exists()
    with own_folder(tmp_path / "run", "run") as folder:
        assert (folder / "a").read_text() == "1"
    assert not (tmp_path / "run" / ".relocal-lock").exists()


def test_work_may_enter_its_own_folder_again(tmp_path: Path) -> None:
    with own_folder(tmp_path / "run", "run"), own_folder(tmp_path / "run", "run") as run:
        write_json(run / "a.json", 1)
    assert sorted(os.listdir(tmp_path / "run")) == ["a.json", "manifest.json"]


@pytest.mark.slow
def test_other_ranks_hold_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_folder(tmp_path / "run", "run"):
        monkeypatch.setenv("RANK", "1")
        code = "import sys; from relocal_pyg.io.write import own_folder\n"
        code += "with own_folder(sys.argv[1], 'run'): print('in')"
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "run"], capture_output=True, check=True
        )
        assert done.stdout.strip() == b"in"


def test_what_is_read_may_lie_beside_what_is_written(tmp_path: Path) -> None:
    """A rerun replaces its own output in a folder of inputs, and only that."""
    (tmp_path / "film.mp4").write_bytes(b"x")
    for _ in range(2):
        with writing([tmp_path / "out.json"], inputs=[tmp_path]):
            write_json(tmp_path / "out.json", 1)
    with (
        pytest.raises(OutputError, match="input"),
        writing(inputs=[tmp_path], force=True),
        replace_file(tmp_path / "film.mp4"),
    ):
        pytest.fail("the body must not run")


def test_names_that_no_file_can_have_are_no_inputs(tmp_path):
    """A record of an index may hold any text."""
    with writing([tmp_path / "out.json"]):
        also_reads(["\ud800", "a\0b", 300 * "x", tmp_path / "absent"])
        check_output(tmp_path / "out.json", "moments")
