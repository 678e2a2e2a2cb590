"""Writing all or nothing: kills, full disks, flipped bits, two writers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import relocal_pyg.io.write as storage
from relocal_pyg.errors import CheckpointError, OutputError
from relocal_pyg.io.record import manifest_text, sha256_file, verify_manifest, write_manifest
from relocal_pyg.io.write import replace_file, replace_folder, sweep, write_json


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fill(folder: Path, **files: str) -> None:
    with replace_folder(folder, "test") as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)


def write(path: Path, text: str) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(text)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[1])},
    )


def test_a_file_appears_when_the_body_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with replace_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.stat().st_dev == target.parent.stat().st_dev
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_body_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    write(target, "old")

    def attempt() -> None:
        with replace_file(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        attempt()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_body_that_writes_nothing_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), replace_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with replace_file(tmp_path / "a") as temporary:
        temporary.write_text("")
    fill(tmp_path / "folder", a="")
    (tmp_path / "plain_folder").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain_folder").stat().st_mode


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    write(tmp_path / "real.txt", "old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_what_is_not_a_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OutputError, match="regular file"), replace_file(target):
            pytest.fail("the body must not run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError), replace_file(tmp_path / "file" / "below"):
        pytest.fail("the body must not run")
    with pytest.raises(OutputError), replace_file(tmp_path / "a\0b"):
        pytest.fail("the body must not run")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "last"
    fill(target, a="1", b="2")
    inode = target.stat().st_ino
    fill(target, c="3")
    assert names(target) == ["c", "manifest.json"]
    assert target.stat().st_ino != inode
    assert names(tmp_path) == ["last"]


def test_a_failing_body_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "last"
    fill(target, a="1")

    def attempt() -> None:
        with replace_folder(target, "test") as temporary:
            (temporary / "a").write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attempt()
    assert (target / "a").read_text() == "1"
    assert names(tmp_path) == ["last"]


def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(OutputError, match="choose another"):
            fill(tmp_path / name, a="1")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "x"


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", a="1")
    assert verify_manifest(tmp_path / "out") == {"a": hashlib.sha256(b"1").hexdigest()}


def test_without_exchange_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_exchange", lambda first, second: False)
    fill(tmp_path / "last", a="1")
    fill(tmp_path / "last", b="2")
    assert names(tmp_path / "last") == ["b", "manifest.json"]
    assert names(tmp_path) == ["last"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk", "signal"],
)
def test_without_exchange_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, told: type[BaseException]
) -> None:
    monkeypatch.setattr(storage, "_exchange", lambda first, second: False)
    fill(tmp_path / "last", a="1")
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise fault
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(told):
        fill(tmp_path / "last", b="2")
    assert (tmp_path / "last" / "a").read_text() == "1"


@pytest.mark.parametrize("place", ["fcntl.flock", "shutil.rmtree"])
def test_a_signal_while_a_folder_is_made_or_removed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    module, name = place.split(".")
    usual = getattr(getattr(storage, module), name)

    def signalled(*given: object, **named: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(getattr(storage, module), name, signalled)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.txt", "new")
    assert getattr(getattr(storage, module), name) is usual
    assert not [name for name in names(tmp_path) if name.startswith(".relocal-")]


@pytest.mark.slow
def test_without_exchange_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "last", a="1")
    code = """
import os, sys, signal, relocal_pyg.io.write as storage
storage._exchange = lambda first, second: False
def die(new, target, *, aside):
    target.rename(aside)
    os.kill(os.getpid(), signal.SIGKILL)
storage._move_over = die
with storage.replace_folder(sys.argv[1], "test") as folder:
    (folder / "b").write_text("2")
"""
    assert python(code, str(tmp_path / "last")).wait() == -signal.SIGKILL
    assert not (tmp_path / "last").exists()
    sweep(tmp_path / "last")
    assert (tmp_path / "last" / "a").read_text() == "1"
    assert names(tmp_path) == ["last"]


def test_exchange_of_things_that_do_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage._exchange(tmp_path / "a", tmp_path / "b")


def test_two_writers_do_not_remove_each_others_temporaries(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a") as first:
        first.write_text("first")
        with replace_file(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
        assert first.exists()
    assert (tmp_path / "a").read_text() == "first"


WRITER = """
import sys
from relocal_pyg.io.write import replace_file, replace_folder
kind, path = sys.argv[1:]
for step in range(100000):
    text = str(step % 10) * 300000
    if kind == "file":
        with replace_file(path) as temporary:
            temporary.write_text(text)
    else:
        with replace_folder(path, "test") as temporary:
            for name in "ab":
                (temporary / name).write_text(text)
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_at_any_time_leaves_one_whole_result_not_older_than_acknowledged(
    tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "out"
    for rounds in range(5):
        writer = python(WRITER, kind, str(target))
        assert writer.stdout is not None
        for _ in range(rounds + 1):
            seen = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split()
        writer.wait()
        acknowledged = int(rest[-1]) if rest else seen
        if kind == "folder":
            verify_manifest(target)
            texts = {(target / name).read_text() for name in "ab"}
            assert len(texts) == 1
        else:
            texts = {target.read_text()}
        text = texts.pop()
        assert len(text) == 300000
        assert text in (str(acknowledged % 10) * 300000, str((acknowledged + 1) % 10) * 300000)
    # Whatever the killed writers left is gone once someone writes again.
    if kind == "file":
        with replace_file(target) as temporary:
            temporary.write_text("last")
    else:
        fill(target, a="last")
    assert names(tmp_path) == ["out"]


@pytest.mark.slow
@pytest.mark.faults
def test_a_full_disk_is_an_output_error_and_the_old_file_stays(tmp_path: Path) -> None:
    code = """
import resource, sys, numpy as np
from pathlib import Path
from relocal_pyg.data.features import write_features
from relocal_pyg.errors import OutputError
from relocal_pyg.io.write import write_json, replace_folder
write_json(sys.argv[1] + "/a.json", [1])
write_features(sys.argv[1] + "/a.h5", [("v", np.ones((2, 2)))])
with replace_folder(sys.argv[1] + "/model", "model") as folder:
    (folder / "a").write_text("1")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
big = np.random.default_rng(0).standard_normal((5000, 50))
def folder():
    with replace_folder(sys.argv[1] + "/model", "model") as folder:
        (folder / "a").write_bytes(bytes(200_000))
for attempt in (
    lambda: write_json(sys.argv[1] + "/a.json", list(range(100_000))),
    lambda: write_features(sys.argv[1] + "/a.h5", [("w", big)]),
    lambda: write_features(sys.argv[1] + "/a.h5", [(f"w{i}", big[:100]) for i in range(50)]),
    folder,
):
    try:
        attempt()
    except OutputError as error:
        print(error)
"""
    process = python(code, str(tmp_path))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output.count("what was there is intact") == 4, output
    assert names(tmp_path) == ["a.h5", "a.json", "model"]
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    verify_manifest(tmp_path / "model")
    import h5py

    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file) == ["v"]


def test_json_is_strict_and_reproducible(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1.5, None, "é\ud800"], "a": True})
    first = (tmp_path / "a.json").read_bytes()
    write_json(tmp_path / "a.json", {"b": [1.5, None, "é\ud800"], "a": True})
    assert (tmp_path / "a.json").read_bytes() == first
    assert json.loads(first) == {"b": [1.5, None, "é\ud800"], "a": True}
    loop: list[object] = []
    loop.append(loop)
    for value in (float("nan"), {"a": float("inf")}, object(), loop):
        with pytest.raises(OutputError, match="as JSON"):
            write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_bytes() == first


def test_sha256_is_that_of_the_standard_tool(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    tool = subprocess.run(["sha256sum", tmp_path / "a"], capture_output=True, text=True, check=True)
    assert sha256_file(tmp_path / "a") == tool.stdout.split()[0]


def test_a_manifest_covers_subfolders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("1")
    assert write_manifest(tmp_path, "test") == {"deep/a": hashlib.sha256(b"1").hexdigest()}
    assert verify_manifest(tmp_path) == write_manifest(tmp_path, "test")


@pytest.mark.slow
def test_every_single_bit_flip_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fill(folder, a="w")
    for file in folder.iterdir():
        data = file.read_bytes()
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            with pytest.raises(CheckpointError):
                verify_manifest(folder)
        file.write_bytes(data)
    verify_manifest(folder)


def test_manifest_errors_name_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(CheckpointError, match="manifest.json: does not exist"):
        verify_manifest(folder)
    fill(folder, a="1", b="2")
    (folder / "b").unlink()
    with pytest.raises(CheckpointError, match="/b: is listed"):
        verify_manifest(folder)
    (folder / "b").write_text("3")
    with pytest.raises(CheckpointError, match="/b: is damaged"):
        verify_manifest(folder)
    for name in ("../secret", "/etc/passwd"):
        (folder / "manifest.json").write_text(manifest_text("test", {name: "0" * 64}))
        with pytest.raises(CheckpointError, match="outside the folder"):
            verify_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [[], {"files": []}, {}, {"files": {}}, {"files": {"a": "0"}}, {"name": "a web application"}],
    ids=str,
)
def test_a_manifest_that_lists_nothing_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "manifest.json", content)
    with pytest.raises(CheckpointError, match="not a manifest"):
        verify_manifest(tmp_path)


def test_an_older_manifest_is_still_read_but_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    write_json(tmp_path / "manifest.json", {"files": {"a": hashlib.sha256(b"1").hexdigest()}})
    assert list(verify_manifest(tmp_path, "model")) == ["a"]
    with pytest.raises(OutputError, match="--force"):
        fill(tmp_path, a="2")


@pytest.mark.slow
def test_storage_does_not_import_torch() -> None:
    code = "import sys, relocal_pyg.io.write; print('torch' in sys.modules)"
    output, _ = python(code).communicate()
    assert output.strip() == "False"
