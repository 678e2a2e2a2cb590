"""Records: one canonical JSON, SHA-256, the manifest of a folder, and a journal that grows."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relocal_pyg.errors import CheckpointError, OutputError
from relocal_pyg.io.read import read_json

MANIFEST = "manifest.json"

#: Raised when the layout of a manifest changes; a newer one is refused.
FORMAT = 1

#: Longer files are refused that say so many times more than they store: reading holes takes long.
_SMALL, _MAX_RATIO = 16 << 20, 4

_SHA256 = re.compile(r"[0-9a-f]{64}")


def canonical_json(value: Any) -> str:
    r"""The one text that stands for a value wherever it is hashed: sorted keys, no spaces, ASCII.

    Raises:
        TypeError: The value is not plain.
        ValueError: It holds NaN or an infinity, which JSON has not.

    Example:
        >>> canonical_json({"b": [1, 0.5], "a": "é"})
        '{"a":"\\u00e9","b":[1,0.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 of :func:`canonical_json`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_files(folder: Path) -> list[str]:
    """Relative names of all files of a folder but its manifest and what writers keep there."""
    files = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
    names = [entry.relative_to(folder).as_posix() for entry in files]
    return sorted(name for name in names if name != MANIFEST and not name.startswith(".relocal-"))


def manifest_text(kind: str, files: dict[str, str] | None = None) -> str:
    """The text of a manifest.

    Args:
        kind: What the folder is, such as "model", "run" or "index".
        files: SHA-256 by relative name, of a folder that is written once and whole; None for one
            that grows while its owner works.
    """
    content = {"format": FORMAT, "kind": kind} | ({} if files is None else {"files": files})
    return json.dumps({**content, "sha256": sha256_json(content)}, indent=1) + "\n"


def write_manifest(folder: str | Path, kind: str) -> dict[str, str]:
    """Write ``manifest.json``, a folder's kind and the SHA-256 of every file in it; the latter."""
    folder = Path(folder)
    files = {name: sha256_file(folder / name) for name in folder_files(folder)}
    (folder / MANIFEST).write_text(manifest_text(kind, files), encoding="ascii")
    return files


def read_manifest(folder: str | Path) -> tuple[str | None, dict[str, str] | None]:
    """Read the manifest of a folder.

    Returns:
        The kind, None where an older version did not say, and SHA-256 by relative name, None for
        a folder that grows.

    Raises:
        CheckpointError: Missing, damaged, newer, or not written by this package.
    """
    file = Path(folder) / MANIFEST
    content = read_json(file, CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError("is not a manifest", file=file)
    kind, files, layout = content.get("kind"), content.get("files"), content.get("format", 0)
    if isinstance(layout, int) and layout > FORMAT:
        raise CheckpointError(
            f"format {layout} is newer than this version reads ({FORMAT}): upgrade relocal_pyg",
            file=file,
        )
    if "files" in content:
        digests = list(files.values()) if isinstance(files, dict) else []
        if not digests or not all(_SHA256.fullmatch(str(digest)) for digest in digests):
            raise CheckpointError(
                "is not a manifest: it lists no files with their SHA-256", file=file
            )
    # An older manifest has no checksum of its own; being exactly what was written stands in for it.
    old = json.dumps({"files": files}, indent=1) + "\n"
    wanted = old if set(content) == {"files"} else manifest_text(str(kind), files)
    if wanted != file.read_text("utf-8", "replace"):
        raise CheckpointError("is not a manifest, or was changed after it was written", file=file)
    return kind, files


def verify_manifest(
    folder: str | Path, kind: str | None = None, *, needed: Iterable[str] = ()
) -> dict[str, str]:
    """Check every file that a folder's manifest lists; a single flipped bit is found.

    Files that the manifest does not list are ignored: read only what is in the returned mapping.

    Args:
        folder: A folder of :func:`relocal_pyg.io.write.replace_folder`.
        kind: What it has to be; an older manifest says no kind and is let through.
        needed: Files that it has to list.

    Returns:
        SHA-256 by relative name.

    Raises:
        CheckpointError: The manifest is missing, damaged, empty or of another kind, or a file is
            missing or was changed.
    """
    found, files = read_manifest(folder)
    if kind is not None and found not in (None, kind):
        raise CheckpointError(f"is of kind {found}, {kind} wanted", file=folder)
    if files is None:
        raise CheckpointError(
            "lists no files: it is a folder that grows", file=Path(folder) / MANIFEST
        )
    for name in needed:
        if name not in files:
            raise CheckpointError(f"is not listed in {MANIFEST}", file=Path(folder) / name)
    for name, digest in files.items():
        entry = Path(folder) / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError("lies outside the folder", file=folder, record=name)
        if not entry.is_file():
            raise CheckpointError(f"is listed in {MANIFEST} but missing", file=entry)
        try:
            status = entry.stat()
            if status.st_size > max(_SMALL, _MAX_RATIO * 512 * status.st_blocks):
                raise CheckpointError("is longer than what it stores", file=entry)
            actual = sha256_file(entry)
        except OSError as problem:
            raise CheckpointError(f"cannot be read ({problem.strerror})", file=entry) from None
        if actual != digest:
            raise CheckpointError(f"is damaged: its SHA-256 is not that of {MANIFEST}", file=entry)
    return files


def read_config(folder: Path, newest: int, weights: str) -> dict[str, Any]:
    """Read ``config.json`` of a folder of ``weights``, after its manifest.

    Returns:
        At least ``"model"``, a word, ``"format"``, a number up to ``newest``, and ``"config"``, an
        object.

    Raises:
        CheckpointError: Missing, damaged, not listed in the manifest, or newer.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError("no checkpoint here: config.json is missing", file=folder)
    verify_manifest(folder, needed=(file.name, weights))
    found = read_json(file, CheckpointError)
    kinds = {"model": str, "format": int, "config": dict}
    if not isinstance(found, dict) or any(type(found.get(k)) is not v for k, v in kinds.items()):
        raise CheckpointError("is not the configuration of a model", file=file)
    if found["format"] > newest:
        raise CheckpointError(
            f"format {found['format']} is newer than this version reads ({newest}): upgrade "
            "relocal_pyg",
            file=file,
        )
    return found


def _fits(record: Any, shape: Mapping[str, type]) -> bool:
    """Whether a record is an object that has these fields."""
    values = [record.get(name) for name in shape] if isinstance(record, dict) else [None]
    lists = (each for value in values if isinstance(value, list) for each in value)
    return all(map(isinstance, values, shape.values())) and all(isinstance(v, dict) for v in lists)


class Journal:
    r"""Records in a file of one JSON object a line; what :meth:`append` has returned from stays.

    A record is one line, flushed to the disk. What a killed or full machine left of an unfinished
    last line is cut off when the file is opened again. Hold the folder around it by
    :func:`relocal_pyg.io.write.own_folder`, so that nobody else appends.

    Args:
        path: The file; made where it does not exist.
        about: Plain values that say which work this is, kept in the first line.
        shapes: The fields that a record may have at least, and their types; lists are of objects.

    Attributes:
        records: Every record so far, without the first line; one that was emptied stays.

    Raises:
        OutputError: The file is damaged, belongs to another work, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = Path(folder) / "a.jsonl"
        ...     Journal(place, {"query": "a"}, {"answer": int}).append({"answer": 1})
        ...     with place.open("a") as file:
        ...         _ = file.write('{"answer": 2')
        ...     Journal(place, {"query": "a"}, {"answer": int}).records
        [{'answer': 1}]
    """

    def __init__(
        self, path: str | Path, about: dict[str, Any], *shapes: Mapping[str, type]
    ) -> None:
        self.path = Path(path)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._handle = os.open(path, flags, 0o666)
            content = self.path.read_bytes()
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", file=path) from None
        self._size = content.rfind(b"\n") + 1
        lines, first = content[: self._size].splitlines(), json.dumps(about).encode()
        if lines[0] != first if lines else not first.startswith(content):
            reason = "was begun with another query or other options: give those, or begin elsewhere"
            raise OutputError(reason, file=path)
        self.records: list[dict[str, Any]] = []
        for number, line in enumerate(lines[1:], start=2):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if record != {} and not any(_fits(record, shape) for shape in shapes):
                reason = "is damaged: put {} in the place of this line, or begin elsewhere"
                raise OutputError(reason, file=path, record=f"line {number}")
            self.records.append(record)
        os.ftruncate(self._handle, self._size)
        if not lines:
            self.append(about)
            self.records.clear()

    def append(self, record: dict[str, Any]) -> None:
        """Add a record, all of it or nothing.

        Raises:
            OutputError: It cannot be written; the file is as it was.
        """
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            done = 0
            while done < len(line):
                done += os.write(self._handle, line[done:])
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, self._size)
            reason = f"cannot be written ({error.strerror}); what was there is intact"
            raise OutputError(reason, file=self.path) from None
        self._size += len(line)
        self.records.append(record)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)
