"""Writing so that a kill, a full disk or a flipped bit never leaves a half-written or wrong result.

A file or folder is written under a private temporary folder beside its target, flushed to the disk
and then renamed over the target. A reader sees the old content or the new, never a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relocal_pyg.errors import CheckpointError, OutputError
from relocal_pyg.io.read import read_json

MANIFEST = "manifest.json"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Write a file all or nothing, as a context manager that gives a temporary path.

    The body writes ``temporary``, which lies on the same file system. When the body ends, the file
    is flushed and takes the place of ``path``; when the body fails, ``path`` is as it was. What
    killed writers of ``path`` left behind is removed first.

    Args:
        path: The file to write; missing folders are made, a symbolic link is followed.

    Yields:
        Where the body has to write.

    Raises:
        OutputError: An ``OSError`` on the way (read-only, disk full), or ``path`` is not a file.
    """
    target = _resolve(path)
    if target.exists() and not target.is_file():
        raise OutputError("is not a regular file: choose another name", file=path)
    with _scratch(target, path) as scratch:
        temporary = scratch / target.name
        yield temporary
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)


@contextlib.contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Write a folder all or nothing, with a :func:`write_manifest` of its files.

    As :func:`replace_file`. An existing folder is exchanged in one system call where the file
    system can do that; elsewhere it is moved aside first, and :func:`sweep` or the next writer puts
    it back should the process be killed between the two renames.

    Args:
        path: The folder to write.

    Yields:
        An empty folder for the body to fill.

    Raises:
        OutputError: An ``OSError`` on the way, or ``path`` holds something other than a folder
            written by this function (which replacing would delete).
    """
    target = _resolve(path)
    if target.exists():
        if not target.is_dir():
            raise OutputError("is not a folder: choose another name", file=path)
        if any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise OutputError(f"holds files but no {MANIFEST}: choose another folder", file=path)
    with _scratch(target, path) as scratch:
        temporary = scratch / "new"
        temporary.mkdir()
        yield temporary
        write_manifest(temporary)
        for entry in (*temporary.rglob("*"), temporary):
            _flush(entry)
        if not target.exists():
            temporary.rename(target)
        elif not _exchange(temporary, target):
            _move_over(temporary, target, aside=scratch / "old")
        _flush(target.parent)


def write_json(path: str | Path, value: Any) -> None:
    r"""Write a value as JSON, all or nothing; the same value gives the same bytes.

    Args:
        path: The file to write.
        value: Plain values only; NaN and infinities are refused, since JSON has none.

    Raises:
        OutputError: The value is not plain, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "a.json", {"step": 1})
        ...     (Path(folder) / "a.json").read_text()
        '{\n "step": 1\n}\n'
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot be written as JSON: {error}", file=path) from None
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: str | Path) -> dict[str, str]:
    """Write ``manifest.json``: the SHA-256 of every file of a folder and its subfolders.

    Returns:
        SHA-256 by relative name.
    """
    folder = Path(folder)
    names = [entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file()]
    names = [name for name in names if name != MANIFEST and not name.startswith(".relocal-")]
    files = {name: sha256_file(folder / name) for name in sorted(names)}
    write_json(folder / MANIFEST, {"files": files})
    return files


def verify_manifest(folder: str | Path) -> dict[str, str]:
    """Check every file that a folder's manifest lists; a single flipped bit is found.

    Files that the manifest does not list are ignored: read only what is in the returned mapping.

    Returns:
        SHA-256 by relative name.

    Raises:
        CheckpointError: The manifest is missing or damaged, or a file is missing or was changed.
    """
    file = Path(folder) / MANIFEST
    content = read_json(file, CheckpointError)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError("is not a manifest", file=file)
    # The manifest has no checksum of its own; being exactly what write_json gives stands in for it.
    if json.dumps({"files": files}, indent=1) + "\n" != file.read_text("utf-8", "replace"):
        raise CheckpointError("was changed after it was written", file=file)
    for name, digest in files.items():
        entry = Path(folder) / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError("lies outside the folder", file=file, record=name)
        if not entry.is_file():
            raise CheckpointError(f"is listed in {MANIFEST} but missing", file=entry)
        try:
            actual = sha256_file(entry)
        except OSError as error:
            raise CheckpointError(f"cannot be read ({error.strerror})", file=entry) from None
        if actual != digest:
            raise CheckpointError(f"is damaged: its SHA-256 is not that of {MANIFEST}", file=entry)
    return files


def sweep(path: str | Path) -> None:
    """Remove what killed writers of ``path`` left beside it; put back a folder moved aside.

    Temporaries of writers that are still alive are left alone. Both ``replace_`` functions do this
    themselves.
    """
    target = _resolve(path)
    prefix = _prefix(target)
    for entry in target.parent.iterdir() if target.parent.is_dir() else ():
        if not entry.name.startswith(prefix):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # A writer holds this lock as long as it lives, whatever kills it.
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (entry / "old").exists() and not target.exists():
                    (entry / "old").rename(target)
                shutil.rmtree(entry, ignore_errors=True)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _scratch(target: Path, shown: str | Path) -> Iterator[Path]:
    """A private locked folder beside ``target``, removed at the end, come what may."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        scratch, handle = _claim(target)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(handle)
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}); what was there is intact"
        raise OutputError(reason, file=shown) from error


def _claim(target: Path) -> tuple[Path, int]:
    while True:
        scratch = target.parent / f"{_prefix(target)}{secrets.token_hex(8)}"
        scratch.mkdir(mode=0o700)
        try:
            handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # swept by another writer before it was locked
            continue
        with contextlib.suppress(OSError):  # no locks on this file system: it is not swept either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, handle
        os.close(handle)


def _prefix(target: Path) -> str:
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".relocal-{digest[:16]}-"


def _resolve(path: str | Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise OutputError(f"is not a usable name ({error})", file=path) from None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_over(new: Path, target: Path, *, aside: Path) -> None:
    target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one system call; False where the kernel or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))
