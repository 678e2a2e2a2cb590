"""Records that cannot be used are set aside and reported, and the rest of the data goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from relocal_pyg.errors import AnnotationError, RelocalError, ascii_line
from relocal_pyg.storage import write_json


@dataclass(frozen=True)
class Rejected:
    """A record that was set aside.

    Attributes:
        file: The file it is in.
        record: Its name inside the file.
        reason: Why it cannot be used.
    """

    file: str
    record: str
    reason: str


class Quarantine:
    """Collects records that cannot be used.

    Args:
        strict: Make the first such record an error instead.

    Example:
        >>> quarantine = Quarantine()
        >>> quarantine.add("a.json", "v_1", "start 3 is not before end 2")
        >>> quarantine.summary()
        '1 record set aside: a.json: v_1: start 3 is not before end 2'
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.records: list[Rejected] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(
        self,
        file: str | Path,
        record: str,
        reason: str,
        error: type[RelocalError] = AnnotationError,
    ) -> None:
        """Set a record aside.

        Raises:
            RelocalError: Of kind ``error``, where ``strict``.
        """
        if self.strict:
            raise error(reason, file=file, record=record)
        self.records.append(Rejected(str(file), record, reason))

    def summary(self) -> str:
        """How many records were set aside, and the first one, in one line."""
        if not self.records:
            return "no record set aside"
        count, first = len(self.records), self.records[0]
        files = Counter(entry.file for entry in self.records)
        where = f" in {len(files)} files" if len(files) > 1 else ""
        text = f"{count} record{'s' * (count > 1)} set aside{where}"
        word = "the first: " if count > 1 else ""
        return ascii_line(f"{text}: {word}{first.file}: {first.record}: {first.reason}")

    def save(self, path: str | Path) -> None:
        """Write the report as JSON: a list of file, record and reason.

        Raises:
            OutputError: The file cannot be written.
        """
        write_json(path, [asdict(entry) for entry in self.records])
