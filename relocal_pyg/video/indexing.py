"""What an index of video files has to remember beside the index itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from relocal_pyg.data.quarantine import Quarantine
from relocal_pyg.errors import SearchIndexError, UsageError
from relocal_pyg.reading import read_json
from relocal_pyg.storage import write_json
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.extract import DEFAULT_RATE_HZ
from relocal_pyg.video.folder import Extraction, extract_folder, find_videos


@dataclass(frozen=True)
class IndexedVideos:
    """How the videos of an index were turned into features; queries have to be treated alike.

    Attributes:
        index: Folder of the index; the features lie beside it.
        rate_hz: Frames per second.
        backbone: Name of the backbone.
        files: Where each video was, by its id; absolute, links resolved.
    """

    index: Path
    rate_hz: float
    backbone: str
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def features(self) -> Path:
        """The HDF5 file of the features."""
        return self.index.with_name(f"{self.index.name}.features.h5")

    @classmethod
    def record_of(cls, index: Path) -> Path:
        """The file that keeps this record."""
        return index.with_name(f"{index.name}.videos.json")

    @classmethod
    def load(cls, index: str | Path) -> IndexedVideos:
        """Read the record of an index.

        Raises:
            SearchIndexError: The index was not made from video files, or the record is damaged.
        """
        file = cls.record_of(Path(index))
        if not file.is_file():
            raise SearchIndexError(
                "was made from features, not from video files: the query has to be features too",
                file=index,
            )
        record = read_json(file, SearchIndexError)
        try:
            rate, backbone = float(record["rate_hz"]), str(record["backbone"])
            files = {name: Path(place) for name, place in record["files"].items()}
        except (AttributeError, TypeError, KeyError, ValueError):
            raise SearchIndexError(
                "is damaged: remove it and run relocal index again", file=file
            ) from None
        return cls(Path(index), rate, backbone, files)

    def save(self) -> None:
        """Write the record.

        Raises:
            OutputError: It cannot be written.
        """
        files = {name: str(place) for name, place in sorted(self.files.items())}
        record = {"rate_hz": self.rate_hz, "backbone": self.backbone, "files": files}
        write_json(self.record_of(self.index), record)

    def check(self, backbone: Backbone) -> None:
        """Refuse another backbone than that of the index.

        Raises:
            SearchIndexError: The backbone is another one.
        """
        if backbone.name != self.backbone:
            raise SearchIndexError(
                f"was made with {self.backbone}, the query with {backbone.name}", file=self.index
            )


def index_features(
    videos: str | Path,
    index: str | Path,
    backbone: Backbone,
    rate_hz: float | None = None,
    *,
    workers: int = 1,
    quarantine: Quarantine | None = None,
    key: str = "c3d_features",
) -> tuple[IndexedVideos, Extraction]:
    """Extract the videos of a folder for an index, resumable.

    Args:
        videos: The folder.
        index: Folder of the index; ``<index>.features.h5`` and ``<index>.videos.json`` are written
            beside it.
        backbone: See :class:`relocal_pyg.video.backbones.Backbone`.
        rate_hz: Frames per second; where None that of an index that is there already, else
            3.125 (25 for a clip network).
        workers: Videos at a time.
        quarantine: Collects videos that cannot be used.
        key: Name of the feature array.

    Raises:
        SearchIndexError: The index that is there was made with another backbone.
        UsageError: It was made at another rate.
        VideoError: No video could be used.
    """
    index = Path(index)
    if IndexedVideos.record_of(index).is_file():
        made = IndexedVideos.load(index)
        made.check(backbone)
        if rate_hz not in (None, made.rate_hz):
            raise UsageError(f"the index has {made.rate_hz:g} frames a second", file=index)
    else:
        usual = 25.0 if backbone.clip_frames > 1 else DEFAULT_RATE_HZ
        made = IndexedVideos(index, usual if rate_hz is None else rate_hz, backbone.name)
    done = extract_folder(
        videos,
        made.features,
        backbone,
        made.rate_hz,
        workers=workers,
        quarantine=quarantine,
        key=key,
    )
    files = {
        name: Path(os.path.realpath(file))
        for name, file in find_videos(videos).items()
        if name in done.digests
    }
    made = replace(made, files={**made.files, **files})
    made.save()
    return made, done
