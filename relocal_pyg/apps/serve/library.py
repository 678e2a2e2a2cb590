"""The videos of a search index: searched together, played one by one."""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import category

from relocal_pyg.errors import OutputError, RelocalError, SearchIndexError, UsageError, VideoError
from relocal_pyg.io.read import version_of
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.search.index import SearchIndex
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.cut import cut_clip
from relocal_pyg.video.decode import probe
from relocal_pyg.video.folder import find_videos
from relocal_pyg.video.index import IndexedVideos

#: Seconds of a video that are shown where a browser cannot play its format.
MAX_PREVIEW = 4 * 3600.0
#: Characters of a file's name that are shown, the last: exports name the file by them.
_NAME_LENGTH = 255


@dataclass(frozen=True)
class Entry:
    """A video that may be searched and played.

    Attributes:
        key: Random name, the only one by which a browser can ask for it.
        name: File name for people; never a path.
        path: Where it is.
        duration: Seconds that its header states, or None.
        begins: Seconds at which its time stamps begin; here all clocks begin at 0.
        version: Tells the file from another one that is written over it.
    """

    key: str
    name: str
    path: Path
    duration: float | None
    begins: float
    version: tuple[int, int] | None


class Library:
    """Videos by random key.

    Args:
        uploads: An existing folder in which uploads are kept under random names.
        folder: Videos of this folder and its subfolders are offered; links that lead out of it and
            files that are no videos are not.
        max_bytes: Size of one upload.
        max_total: Size of all uploads together.
    """

    def __init__(
        self,
        uploads: Path,
        folder: Path | None = None,
        *,
        max_bytes: int = 2 * 2**30,
        max_total: int = 10 * 2**30,
    ) -> None:
        self.uploads, self.max_bytes, self.max_total = uploads, max_bytes, max_total
        self._entries: dict[str, Entry] = {}
        self._by_path: dict[Path, Entry] = {}
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._reserved = 0
        if folder is not None:
            self._add_folder(folder)

    def entries(self) -> list[Entry]:
        """Every video, in the order in which they came."""
        with self._lock:
            known = list(self._entries.values())
        return [self._now(entry) for entry in known]

    def get(self, key: object) -> Entry | None:
        """The video of a key, or None."""
        with self._lock:
            entry = self._entries.get(key) if isinstance(key, str) else None
        return entry and self._now(entry)

    def _now(self, entry: Entry) -> Entry:
        """A video as it is: another one may have been written over it."""
        version = version_of(entry.path)
        if version in (None, entry.version):
            return entry
        with suppress(VideoError):  # half written: as it was, until it can be read
            info = probe(entry.path)
            entry = replace(entry, duration=info.duration, begins=info.zero, version=version)
            with self._lock:
                self._entries[entry.key] = self._by_path[entry.path] = entry
        return entry

    def reserve(self, size: int) -> bool:
        """Set room aside for bytes about to be written; False where there is none."""
        with self._lock:
            if self._reserved + size > self.max_total:
                return False
            self._reserved += size
            return True

    def release(self, size: int) -> None:
        """Give back room of an upload that was not kept."""
        with self._lock:
            self._reserved -= size

    def add(self, path: Path, name: str) -> Entry:
        """Add a file after a look inside; one that is there already stays as it is."""
        with self._lock:
            known = self._by_path.get(path)
        if known is not None:
            return self._now(known)
        version, info = version_of(path), probe(path)
        # Blanks of other widths are in names of screen recordings, joiners in those of emoji.
        fine = (c.isprintable() or c in "\u200c\u200d" or category(c) == "Zs" for c in name)
        told = "".join(c if ok else "_" for c, ok in zip(name, fine, strict=True))
        shown = told[-_NAME_LENGTH:] or "video"
        entry = Entry(secrets.token_urlsafe(16), shown, path, info.duration, info.zero, version)
        with self._lock:
            self._entries[entry.key] = self._by_path[path] = entry
        return entry

    def preview(self, entry: Entry, unwanted: threading.Event) -> Path:
        """A copy of a video that every browser plays; what is half made is given up if unwanted."""
        version = "-".join(map(str, entry.version or ()))
        target, taken = self.uploads / f"{entry.key}-{version}.mp4", 0

        def check(written: Path) -> None:
            nonlocal taken
            more = written.stat().st_size - taken if written.exists() else 0
            if unwanted.is_set() or not self.reserve(more):  # what is unwanted tells nobody
                raise OutputError("there is no room for a preview: start relocal serve anew")
            taken += more

        with self._making:
            if not target.is_file():
                for old in self.uploads.glob(f"{entry.key}-*.mp4"):  # of another film
                    self.release(old.stat().st_size)
                    old.unlink()
                try:
                    cut_clip(entry.path, 0.0, MAX_PREVIEW, target, reencode=True, check=check)
                    check(target)
                except RelocalError:
                    self.release(taken)
                    target.unlink(missing_ok=True)
                    raise
        return target

    def _add_folder(self, folder: Path) -> None:
        root = Path(os.path.realpath(folder))
        if not root.is_dir():
            raise UsageError("is no folder", file=folder)
        for file in find_videos(root).values():
            real = Path(os.path.realpath(file))
            if not real.is_relative_to(root):
                continue
            with suppress(VideoError):
                self.add(real, file.relative_to(root).as_posix())
        if not self._entries:
            raise UsageError("holds no videos that can be read", file=folder)


class Collection:
    """An index that ``relocal index`` made from video files; those added later are not seen.

    The library is given the videos that are still where they were when they were indexed: they can
    be played, and are the ``entries``, by their id in the index.
    """

    def __init__(
        self, folder: Path, model: Relocalizer, library: Library, backbone: Backbone
    ) -> None:
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
        names = Counter(file.name for file in self.made.files.values())
        for video_id in (each for shard in self.index.shards for each in shard.ids):
            file = self.made.files.get(video_id)
            if file is None or self.made.is_changed(video_id, backbone):
                continue
            name = file.name if names[file.name] == 1 else f"{video_id}{file.suffix}"
            with suppress(VideoError):  # moved or changed since: found, but not played
                self.entries[video_id] = library.add(file, name)
