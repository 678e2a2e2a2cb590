"""The videos of a search index: searched together, played one by one."""

from __future__ import annotations

from pathlib import Path

from relocal_pyg.errors import SearchIndexError, UsageError, VideoError
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.search.index import SearchIndex
from relocal_pyg.serve.library import Entry, Library
from relocal_pyg.video.indexing import IndexedVideos


class Collection:
    """An index that ``relocal index`` made from video files.

    Args:
        folder: The index. Videos added to it later are not seen.
        model: The model that it was made with.
        library: Is given the videos that are still where they were when they were indexed.

    Attributes:
        index: The index, opened.
        made: How its videos were turned into features.
        model: The model.
        entries: The videos that can be played, by their id in the index.

    Raises:
        SearchIndexError: No index there, damaged, made with another model, or not from video files.
        UsageError: It holds no video.
    """

    def __init__(self, folder: Path, model: Relocalizer, library: Library) -> None:
        self.index = SearchIndex(folder, model)
        self.made = IndexedVideos.load(folder)
        self.model = model
        if not len(self.index):
            raise UsageError("holds no video yet: relocal index adds some", file=folder)
        if not self.made.files:
            raise SearchIndexError(
                "does not say where its videos are: run relocal index again", file=folder
            )
        self.entries: dict[str, Entry] = {}
        for shard in self.index.shards:
            for video_id in shard.ids:
                file = self.made.files.get(video_id)
                if file is None:
                    continue
                try:
                    self.entries[video_id] = library.add(file, file.name, uploaded=False)
                except VideoError:  # moved or changed since: found, but not played
                    continue

    def __len__(self) -> int:
        return len(self.index)
