"""A list of JSON records that grows, survives kills, and says what need not be done again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from relocal_pyg.errors import OutputError


class Journal:
    r"""Records in a file of one JSON object a line; what :meth:`append` has returned from stays.

    A record is one line, flushed to the disk. What a killed or full machine left of an unfinished
    last line is cut off when the file is opened again. Hold the folder around it by
    :func:`relocal_pyg.io.write.own_folder`, so that nobody else appends.

    Args:
        path: The file; made where it does not exist.
        about: Plain values that say which work this is, kept in the first line.

    Attributes:
        records: Every record so far, without the first line.

    Raises:
        OutputError: The file is damaged, belongs to another work, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = Path(folder) / "a.jsonl"
        ...     Journal(place, {"query": "a"}).append({"answer": 1})
        ...     with place.open("a") as file:
        ...         _ = file.write('{"answer": 2')
        ...     Journal(place, {"query": "a"}).records
        [{'answer': 1}]
    """

    def __init__(self, path: str | Path, about: dict[str, Any]) -> None:
        self.path = Path(path)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._handle = os.open(path, flags, 0o666)
            content = self.path.read_bytes()
            self._size = content.rfind(b"\n") + 1
            os.ftruncate(self._handle, self._size)
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", file=path) from None
        self.records: list[dict[str, Any]] = []
        for number, line in enumerate(content[: self._size].splitlines(), start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                reason = "is damaged: remove this line, or begin elsewhere"
                raise OutputError(reason, file=path, record=f"line {number}")
            self.records.append(record)
        about = json.loads(json.dumps(about))  # as it is read back: a tuple is a list
        if not self.records:
            self.append(about)
        if self.records.pop(0) != about:
            raise OutputError("was begun with another query or other options", file=path)

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
