"""``index.json`` of a search index: what it was made with and which shards count."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from relocal_pyg.errors import SearchIndexError
from relocal_pyg.reading import read_json
from relocal_pyg.search.shard_files import FORMAT, ListedShard
from relocal_pyg.storage import write_json

_NAME = "index.json"


@dataclass
class ShardList:
    """The shards of an index, in the order in which they were added.

    The file carries the SHA-256 of everything else in it and of the manifest of every shard, so
    that one flipped bit anywhere in an index is found.

    Attributes:
        fingerprint: Of the model that the index serves.
        model: Title of that model, for people.
        state_dtype: How the states of proposals are kept: a name of ``torch``.
        channels: Feature channels; 0 until there is a video.
        shards: The shards.
    """

    fingerprint: str
    model: str
    state_dtype: str
    channels: int = 0
    shards: list[ListedShard] = field(default_factory=list)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds an index."""
        return (folder / _NAME).exists()

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> ShardList:
        """Read the list of an index and check that it is whole and belongs to a model.

        Raises:
            SearchIndexError: Missing, damaged, of another format, or made with another model.
        """
        file = folder / _NAME
        if not file.is_file():
            raise SearchIndexError(f"no index here: {_NAME} is missing", file=folder)
        record = read_json(file, SearchIndexError)
        if not isinstance(record, dict) or not isinstance(record.get("format"), int):
            raise SearchIndexError("is not a search index", file=file)
        layout, told = record.pop("format"), record.pop("sha256", None)
        if layout > FORMAT:
            raise SearchIndexError(
                f"format {layout} is newer than this version reads ({FORMAT}): upgrade relocal_pyg",
                file=file,
            )
        if layout < FORMAT:
            raise SearchIndexError(
                f"format {layout} is older than this version reads ({FORMAT}): build it anew",
                file=file,
            )
        if told != _digest(record):
            raise SearchIndexError("is damaged: its SHA-256 is not the one it names", file=file)
        try:
            shards = [ListedShard(**shard) for shard in record.pop("shards")]
            made = cls(**record, shards=shards)
        except (TypeError, KeyError):
            raise SearchIndexError("is not a search index", file=file) from None
        if made.state_dtype not in ("bfloat16", "float16", "float32"):
            raise SearchIndexError("names an unknown type of numbers", file=file)
        if made.fingerprint != fingerprint:
            raise SearchIndexError(
                "was made with another model: search with that one, or build the index anew",
                file=file,
            )
        names = [shard.name for shard in made.shards]
        if names != [f"shard-{number:05d}" for number in range(len(names))]:
            raise SearchIndexError("names a shard that does not exist", file=file)
        return made

    def save(self, folder: Path) -> None:
        """Write the list, all or nothing.

        Raises:
            OutputError: The folder cannot be written.
        """
        record = asdict(self)
        write_json(folder / _NAME, {"format": FORMAT, "sha256": _digest(record), **record})


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
