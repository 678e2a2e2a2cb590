"""Writing so that nothing is lost: not by a kill or a full disk, and not what others wrote.

A file or folder is written under a private temporary folder beside its target, flushed to the disk
and then renamed over the target. A reader sees the old content or the new, never a mixture.

Every writer of the package goes through here, and so through one guard: an output never replaces an
input; what this package did not write, or what was changed since, is not replaced unless forced;
and two writers of one target do not meet. A file is known again by an extended attribute that holds
its kind, size and time of change. Where a file system keeps none, every file is someone else's.
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
import socket
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from relocal_pyg.errors import CheckpointError, OutputError
from relocal_pyg.io.record import (
    MANIFEST,
    folder_files,
    manifest_text,
    read_manifest,
    write_manifest,
)

_MARK = "user.relocal_pyg"
_LOCK, _LOCKS = ".relocal-lock", set[int]()  # name, and descriptors that are held

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class _Work:
    """What the work under way reads, may replace and holds."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str | Path, ...] = ()
    force: bool = False
    held: frozenset[str] = frozenset()


_NO_WORK = _Work()
_WORK: ContextVar[_Work] = ContextVar("work", default=_NO_WORK)


@contextlib.contextmanager
def writing(
    outputs: Iterable[str | Path] = (), *, inputs: Iterable[str | Path] = (), force: bool = False
) -> Iterator[None]:
    """Say once what a piece of work reads and writes; every writer called inside obeys.

    The outputs are checked and locked before the work begins, so that an hour of it is not lost to
    a name. Blocks nest: inputs add up, and ``force`` holds for what is inside.

    Args:
        outputs: Files that will be written.
        inputs: Files and folders that are read. No writer replaces them, nor a file below such a
            folder, unless it lies in a folder held by :func:`own_folder` or is an earlier output
            beside strangers' files.
        force: Replace files and folders that this package did not write (inputs never).

    Raises:
        OutputError: An output is an input, is named twice, may not be replaced, or is being written
            by another process.
    """
    work, outputs = _WORK.get(), tuple(outputs)
    token = _WORK.set(replace(work, outputs=work.outputs + outputs, force=work.force or force))
    try:
        with contextlib.ExitStack() as locks:
            also_reads(inputs)
            seen: dict[str, str | Path] = {}
            for path in outputs:
                target = check_output(path)
                if seen.setdefault(_folded(target), path) is not path:
                    raise OutputError("two outputs have this name: give each its own", file=path)
                with _reporting(path):
                    locks.enter_context(_held(target, target.with_name(f"{_prefix(target)}lock")))
                check_output(path)
            yield
    finally:
        _WORK.reset(token)


def also_reads(inputs: Iterable[str | Path]) -> None:
    """Add inputs to the work under way, such as files that an input names; nothing outside of one.

    Raises:
        OutputError: An output that :func:`writing` announced is one of them.
    """
    work = _WORK.get()
    added = tuple(os.path.realpath(each) for each in inputs if os.path.lexists(each))
    if added and work is not _NO_WORK:
        _WORK.set(replace(work, inputs=work.inputs + added))
        for path in work.outputs:
            check_output(path)


def forced() -> bool:
    """Whether the work under way may replace what this package did not write."""
    return _WORK.get().force


def check_output(path: str | Path, kind: str | None = None) -> Path:
    """Refuse a file that must not be written; nothing is touched.

    Args:
        path: The file that is to be written.
        kind: What would be written, as in :func:`replace_file`; not looked at where None.

    Returns:
        Where it lies, links resolved.

    Raises:
        OutputError: It is no regular file, is an input of the work under way (by a link, another
            case or another path), or holds what may not be replaced.
    """
    target, work = _resolve(path), _WORK.get()
    there = os.path.lexists(target)
    if there and not target.is_file():
        raise OutputError("is not a regular file: choose another name", file=path)
    mark = _mark(target) if there else None
    ours = mark is not None and kind in (None, mark)
    mine = any(target.is_relative_to(folder) for folder in work.held)
    twin = target if there else _twin(target)
    for given in work.inputs:
        below = not mine and not (ours and _kind_of(Path(given)) is None)
        if _reaches(target, given) or (twin and _reaches(twin, given, below=below)):
            what = f"is an input of this work ({given}), which is never replaced"
            raise OutputError(f"{what}: choose another name", file=path)
    if there and not work.force and not ours:
        what = "was not written by relocal, or was changed since"
        if mark is not None:
            what = f"holds {mark or 'another kind of output'}"
        advice = "choose another name, or replace it with --force"
        raise OutputError(f"{what}: {advice}", file=path)
    return target


@contextlib.contextmanager
def replace_file(path: str | Path, kind: str = "") -> Iterator[Path]:
    """Write a file all or nothing, as a context manager that gives a temporary path.

    The body writes ``temporary``, which lies on the same file system. When the body ends, the file
    is flushed and takes the place of ``path``; when the body fails, ``path`` is as it was. What
    killed writers of ``path`` left behind is removed first.

    Args:
        path: The file to write; missing folders are made, a symbolic link is followed.
        kind: What it will hold, in words ("features of c3d at 25 Hz"). A file of another kind is
            not replaced unless forced.

    Yields:
        Where the body has to write.

    Raises:
        OutputError: An ``OSError`` on the way (read-only, disk full), or one of
            :func:`check_output`.
    """
    target = check_output(path, kind)
    with _reporting(path), _scratch(target) as scratch:
        temporary = scratch / target.name
        yield temporary
        _flush(temporary)
        _set_mark(temporary, kind)
        check_output(path, kind)
        temporary.replace(target)
        _flush(target.parent)


@contextlib.contextmanager
def replace_folder(path: str | Path, kind: str) -> Iterator[Path]:
    """Write a folder all or nothing, with a manifest of its kind and files.

    As :func:`replace_file`. An existing folder is exchanged in one system call where the file
    system can do that; elsewhere it is moved aside first, and :func:`sweep` or the next writer puts
    it back should the process be killed between the two renames.

    Args:
        path: The folder to write.
        kind: What it will be, such as "model": only a folder of this kind is replaced.

    Yields:
        An empty folder for the body to fill.

    Raises:
        OutputError: An ``OSError`` on the way, or ``path`` is an input, no folder, of another kind,
            or holds files that its manifest does not list (which replacing would delete).
    """
    target = _check_folder(path, kind)
    with _reporting(path), _scratch(target) as scratch:
        temporary = scratch / "new"
        temporary.mkdir()
        yield temporary
        write_manifest(temporary, kind)
        for entry in (*temporary.rglob("*"), temporary):
            _flush(entry)
        _check_folder(path, kind)
        if not target.exists():
            temporary.rename(target)
        elif not _exchange(temporary, target):
            _move_over(temporary, target, aside=scratch / "old")
        _flush(target.parent)


@contextlib.contextmanager
def own_folder(path: str | Path, kind: str) -> Iterator[Path]:
    """Hold a folder that grows (a run, an index, a cache): no other process writes it meanwhile.

    The folder is made, and marked by a manifest of its kind, where it does not exist or is empty.
    The lock is the kernel's (``flock``) and goes with the process, whatever ends it; the file that
    carries it says who holds it. Processes of a distributed run other than the first hold nothing.

    Args:
        path: The folder.
        kind: What it is.

    Yields:
        The folder, links resolved.

    Raises:
        OutputError: It cannot be made, another process holds it, or it holds files and is not
            marked as a folder of this kind (``force`` takes over a stranger's, deletes nothing).
    """
    target = _resolve(path)
    if str(target) in _WORK.get().held or _is_follower():
        yield target
        return
    _refuse_foreign(path, target, kind)
    with contextlib.ExitStack() as held:
        with _reporting(path):
            held.enter_context(_made(target))
            held.enter_context(_held(target, target / _LOCK))
            fresh = not _content(target)
            claim_folder(path, kind)
        try:
            yield target
        finally:
            if fresh and _content(target) == [MANIFEST]:  # nothing came of it
                (target / MANIFEST).unlink()


def claim_folder(path: str | Path, kind: str) -> Path:
    """Mark a folder as one of a kind that several processes may add to, such as a cache.

    It is made where it is not there; given with links resolved, refused as by :func:`own_folder`.
    """
    target = _resolve(path)
    _refuse_foreign(path, target, kind)
    with _reporting(path):
        target.mkdir(parents=True, exist_ok=True)
    if _kind_of(target) != kind:
        with writing(force=True), replace_file(target / MANIFEST) as temporary:
            temporary.write_text(manifest_text(kind), encoding="ascii")
    return target


def write_json(path: str | Path, value: Any) -> None:
    r"""Write a value as JSON, all or nothing; the same value gives the same bytes.

    Args:
        path: The file to write.
        value: Plain values only; NaN and infinities are refused, since JSON has none.

    Raises:
        OutputError: The value is not plain, or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot be written as JSON: {error}", file=path) from None
    replace_text(path, text + "\n")


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file as :func:`replace_file` does; letters that UTF-8 has not are escaped."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


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


def _twin(target: Path) -> Path | None:
    """A file beside ``target`` that some file systems take for it: another case or Unicode form."""
    name = _folded(target.name)
    with contextlib.suppress(OSError):
        for other in os.listdir(target.parent):
            if _folded(other) == name:
                return target.with_name(other)
    return None


def _reaches(target: Path, given: str, *, below: bool = False) -> bool:
    """Whether writing ``target`` would change an input, or (``below``) a file inside one."""
    if _folded(target) == _folded(given):
        return True
    try:
        wanted = target.stat()
    except OSError:
        return False
    if not os.path.isdir(given):
        with contextlib.suppress(OSError):
            return os.path.samestat(wanted, os.stat(given))
        return False
    return below and any(
        os.path.samestat(wanted, status) for status in _statuses_below(given, {given})
    )


def _statuses_below(folder: str, seen: set[str]) -> Iterator[os.stat_result]:
    """Every file below a folder, through links too, each folder once."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat()
                if not stat.S_ISDIR(status.st_mode):
                    yield status
                elif (real := os.path.realpath(entry.path)) not in seen:
                    seen.add(real)
                    yield from _statuses_below(real, seen)


def _folded(path: str | Path) -> str:
    """A path as a file system sees it that tells neither case nor Unicode forms apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def _mark(file: Path) -> str | None:
    """The kind of a file as it was written here; None where it was not, or was changed since."""
    try:
        size, changed, kind = os.getxattr(file, _MARK).decode().split(" ", 2)
        status = file.stat()
    except (OSError, ValueError, AttributeError):
        return None
    return kind if (size, changed) == (str(status.st_size), str(status.st_mtime_ns)) else None


def _set_mark(file: Path, kind: str) -> None:
    status = file.stat()
    text = f"{status.st_size} {status.st_mtime_ns} {kind}"
    with contextlib.suppress(OSError, AttributeError):  # no attributes on this file system
        os.setxattr(file, _MARK, text.encode("utf-8", "surrogatepass")[:2000])


def _check_folder(path: str | Path, kind: str) -> Path:
    target = _resolve(path)
    _refuse_foreign(path, target, kind)
    for given in _WORK.get().inputs:
        if _folded(given).startswith(_folded(target) + os.sep):
            raise OutputError(f"holds an input of this work ({given}): choose another", file=path)
    if not target.is_dir() or _WORK.get().force:
        return target
    listed = read_manifest(target)[1] if (target / MANIFEST).is_file() else None
    extra = sorted(set(folder_files(target)) - set(listed or ()))
    if extra:
        what = f"holds {extra[0]!r}, which was not written with the rest"
        advice = "move it away, choose another folder, or replace all with --force"
        raise OutputError(f"{what}: {advice}", file=path)
    return target


def _refuse_foreign(path: str | Path, target: Path, kind: str) -> None:
    # Another process may just put its manifest there, or take it away.
    before, found = _content(target), _kind_of(target)
    foreign = found != kind and bool(before) and bool(_content(target))
    for given in _WORK.get().inputs:
        if _folded(target) == _folded(given) and (foreign or not os.path.isdir(given)):
            raise OutputError(f"is an input of this work ({given}): choose another", file=path)
    if os.path.lexists(target) and not target.is_dir():
        raise OutputError("is not a folder: choose another name", file=path)
    if foreign and (found or not _WORK.get().force):
        what = f"is a folder of kind {found}" if found else "holds files that relocal did not write"
        advice = "choose another folder" + ("" if found else ", or take it with --force")
        raise OutputError(f"{what}, and no manifest of kind {kind}: {advice}", file=path)


def _kind_of(folder: Path) -> str | None:
    """What the manifest of a folder says it is; None where there is none of this package."""
    try:
        return read_manifest(folder)[0]
    except CheckpointError:
        return None


def _content(folder: Path) -> list[str]:
    """Names in a folder but those that writers keep there."""
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir(folder) if not name.startswith(".relocal-"))
    return []


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; removed again where nothing was put into them."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for each in missing:
                each.rmdir()


@contextlib.contextmanager
def _held(target: Path, place: Path) -> Iterator[None]:
    """Hold the lock file ``place`` of a target; the same work may enter again."""
    work = _WORK.get()
    if str(target) in work.held or _is_follower():
        yield
        return
    with _made(place.parent):
        handle = _lock(place, target)
        token = _WORK.set(replace(work, held=work.held | {str(target)}))
        try:
            yield
        finally:
            _WORK.reset(token)
            if handle in _LOCKS:
                with contextlib.suppress(OSError):
                    place.unlink()
                _LOCKS.remove(handle)
                os.close(handle)


def _lock(place: Path, target: Path) -> int:
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            what = f"is being written by {holder}: wait for it, or stop it"
            advice = f"({place.name} is free again as soon as that process ends)"
            raise OutputError(f"{what} {advice}", file=target) from None
        except OSError:  # no locks on this file system
            pass
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(place)):
                break
        os.close(handle)  # its last holder removed it meanwhile
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    _LOCKS.add(handle)
    return handle


def _let_go() -> None:  # a forked worker that outlives its parent holds nothing of it
    while _LOCKS:
        os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_let_go)


def _holder(handle: int) -> str:
    """Who holds a lock; between taking it and saying so a moment passes."""
    for _ in range(100):
        if text := os.pread(handle, 200, 0):
            return text.decode("utf-8", "replace")
        time.sleep(0.01)
    return "another process"


def _is_follower() -> bool:
    """Whether this is a process of a distributed run other than the first: it does not write."""
    return any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK"))


@contextlib.contextmanager
def _reporting(shown: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}); what was there is intact"
        raise OutputError(reason, file=shown) from error


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A private locked folder beside ``target``, removed at the end, come what may."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    scratch, handle = target.parent / f"{_prefix(target)}{secrets.token_hex(8)}", None
    try:
        while handle is None:
            handle = _claim(scratch)
        yield scratch
    finally:
        try:
            shutil.rmtree(scratch, ignore_errors=True)
        finally:  # should a signal have fallen into it
            shutil.rmtree(scratch, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def _claim(scratch: Path) -> int | None:
    """Make a folder and lock it; None where another writer swept it in between."""
    scratch.mkdir(mode=0o700)
    try:
        handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # no locks on this file system: it is not swept either
        fcntl.flock(handle, fcntl.LOCK_EX)
    if scratch.exists():
        return handle
    os.close(handle)
    return None


def _prefix(target: Path) -> str:
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".relocal-{digest[:16]}-"


def _resolve(path: str | Path) -> Path:
    try:
        target = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            target.lstat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"is not a usable name ({reason})", file=path) from None
    return target


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_over(new: Path, target: Path, *, aside: Path) -> None:
    try:
        target.rename(aside)
        new.rename(target)
    finally:  # a failure or a signal between the two
        if not os.path.lexists(target):
            aside.rename(target)


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
