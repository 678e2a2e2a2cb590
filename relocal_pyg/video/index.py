"""From a video file to ranked moments of all videos of an index."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

from torch import Tensor

from relocal_pyg.data.annotations import Quarantine
from relocal_pyg.errors import SearchIndexError, UsageError, VideoError, check_number
from relocal_pyg.io.read import read_json, version_of
from relocal_pyg.io.write import also_reads, write_json
from relocal_pyg.models.examples import Example
from relocal_pyg.models.occurrences import APART, ROOM, Count, is_known
from relocal_pyg.search.index import FirstStageName, Hit, SearchIndex
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.decode import probe
from relocal_pyg.video.extract import DEFAULT_RATE_HZ, Progress, extract_video, file_digest
from relocal_pyg.video.folder import Extraction, extract_folder, find_videos, passed_over
from relocal_pyg.video.query import (
    Asked,
    Judged,
    StillQuery,
    VideoQuery,
    pinned,
    read_examples,
    said_no,
    within,
)
from relocal_pyg.video.rows import FeatureCache, VideoFeatures

#: The only backbone of indexes that do not say what theirs is built from.
_BEFORE = "efficientnet-lite0-160"


@dataclass(frozen=True)
class IndexedVideos:
    """How the videos of an index were turned into features; queries have to be treated alike.

    Attributes:
        index: Folder of the index; the features lie beside it.
        rate_hz: Frames per second.
        backbone: Name of the backbone.
        files: Where each video was, by its id; absolute, links resolved.
        network: What the backbone is built from, as the command line has it; empty where unknown.
        digests: What tells the bytes of each file, by its id, where known.
        versions: Size and time of change of each file, likewise.
    """

    index: Path
    rate_hz: float
    backbone: str
    files: dict[str, Path] = field(default_factory=dict)
    network: dict[str, str | None] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, list[int]] = field(default_factory=dict)

    def is_changed(self, name: str, backbone: Backbone) -> bool:
        """Whether another film lies where one of the index was."""
        version = version_of(self.files.get(name, ""))
        if version is None or self.versions.get(name) in (None, [*version]):
            return False
        with suppress(VideoError):  # copied or touched, its bytes may be the same
            if file_digest(self.files[name], backbone, self.rate_hz) == self.digests.get(name):
                self.versions[name] = [*version]  # read once, not again at every question
                return False
        return True

    @property
    def features(self) -> Path:
        """The HDF5 file of the features."""
        record = self.record_of(self.index)
        return record.with_name(record.name.removesuffix(".videos.json") + ".features.h5")

    @classmethod
    def record_of(cls, index: Path) -> Path:
        """The file that keeps this record: beside the index, or beside what it is a link to."""
        given, real = os.path.abspath(index), os.path.realpath(index)
        beside, there = (Path(f"{place}.videos.json") for place in (given, real))
        return there if there.is_file() and not beside.is_file() else beside

    @classmethod
    def load(cls, index: str | Path) -> IndexedVideos:
        """Read the record of an index.

        Raises:
            SearchIndexError: The index was not made from video files, or the record is damaged.
        """
        file = cls.record_of(Path(index))
        if not file.is_file():
            raise SearchIndexError(
                "was made from features, not from video files: the query has to be features too; "
                f"or it was moved without {file.name}, which belongs beside it",
                file=index,
            )
        record = read_json(file, SearchIndexError)
        try:
            rate = check_number(record["rate_hz"], "rate_hz", above=0, most=1000)
            backbone = str(record["backbone"])
            files = {name: Path(place) for name, place in record["files"].items()}
            # Records of before keep the name alone.
            usual = {"backbone": "efficientnet-lite0", "weights": None, "pca": None}
            network = record.get("network", usual if backbone == _BEFORE else {})
            digests = dict(record.get("digests", {}))
            versions = {name: [*map(int, v)] for name, v in record.get("versions", {}).items()}
            plain = (*network.values(), *digests.values())
            known = all(isinstance(each, str | None) for each in plain)
            if not known or (network and not set(network) >= set(usual)):
                raise ValueError
        except (AttributeError, TypeError, KeyError, ValueError):
            raise SearchIndexError(
                "is damaged: remove it and run relocal index again", file=file
            ) from None
        also_reads(files.values())  # no output may be one of them
        return cls(Path(index), rate, backbone, files, network, digests, versions)

    def save(self) -> None:
        """Write the record.

        Raises:
            OutputError: It cannot be written.
        """
        names = ("rate_hz", "backbone", "network", "digests", "versions")
        record = {name: getattr(self, name) for name in names}
        record["files"] = {name: str(place) for name, place in sorted(self.files.items())}
        write_json(self.record_of(self.index), record)

    def check(self, backbone: Backbone) -> None:
        """Refuse another backbone than that of the index.

        Raises:
            SearchIndexError: The backbone is another one.
        """
        if backbone.name != self.backbone:
            why = f"was made with {self.backbone}, the query with {backbone.name}"
            raise SearchIndexError(why, file=self.index)


def index_features(
    videos: str | Path,
    index: str | Path,
    backbone: Backbone,
    rate_hz: float | None = None,
    *,
    workers: int | None = None,
    quarantine: Quarantine | None = None,
    key: str | None = None,
    network: dict[str, str | None] | None = None,
) -> tuple[IndexedVideos, Extraction]:
    """Extract the videos of a folder for an index, resumable.

    A file that was moved since it was indexed keeps its id, where its bytes are the same.

    Args:
        videos: The folder.
        index: Folder of the index; ``<index>.features.h5`` and ``<index>.videos.json`` are written
            beside it.
        backbone: The network.
        rate_hz: Frames per second; where None that of an index that is there already, else
            3.125 (25 for a clip network).
        workers: Videos at a time, as many as there are processors where None.
        quarantine: Collects videos that cannot be used.
        key: Name of the feature array.
        network: What the backbone is built from, kept for queries.

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
        rate = usual if rate_hz is None else rate_hz
        made = IndexedVideos(index, rate, backbone.name, network=network or {})
    moved = _moved(made, find_videos(videos).values(), backbone)
    found = find_videos(videos, {**made.files, **moved})
    before = {name: version_of(file) for name, file in found.items()}
    given = (found, made.features, backbone, made.rate_hz)
    done = extract_folder(*given, workers=workers, quarantine=quarantine, key=key, drop=True)
    if Path(videos).is_dir():
        done = replace(done, passed_over=passed_over(Path(videos)))
    files = {name: Path(os.path.realpath(found[name])) for name in found if name in done.digests}
    digests = {**made.digests, **done.digests}
    versions = {name: [*version] for name in files if (version := before[name]) is not None}
    made = replace(
        made, files={**made.files, **files}, digests=digests, versions={**made.versions, **versions}
    )
    made.save()
    return made, done


def _moved(made: IndexedVideos, found: Iterable[Path], backbone: Backbone) -> dict[str, Path]:
    """Where files are now that are no longer where they were, by their ids."""
    gone: dict[str | None, list[str]] = defaultdict(list)
    for name, file in made.files.items():
        if not file.is_file():
            gone[made.digests.get(name)].append(name)
    moved: dict[str, Path] = {}
    if not gone:
        return moved
    known, store = set(made.files.values()), FeatureCache(f"{made.features}.cache")
    for place in sorted({Path(os.path.realpath(file)) for file in found} - known):
        with suppress(VideoError):  # said when it is extracted
            digest = file_digest(place, backbone, made.rate_hz)
            # Of copies the one with the most names in common, from the last on.
            ends = {
                name: len(commonprefix([made.files[name].parts[::-1], place.parts[::-1]]))
                for name in gone[digest] or gone[None]
            }
            if not gone[digest]:  # records of before name no digests, but features were kept
                ends = {name: n for name, n in ends.items() if n and store.get(digest)}
            if ends:
                name = max(ends, key=ends.__getitem__)
                gone[made.digests.get(name)].remove(name)
                moved[name] = place
    return moved


#: Lengths of hits as multiples of the query's: those of ``find_moments``, and a grid's step more.
SCALES = (0.4, 2.5)
#: Steps of the shortest window of an index.
SHORTEST_WINDOW = 4


@dataclass(frozen=True)
class FoundVideos:
    """What :func:`find_in_index` gives.

    Attributes:
        hits: Best first, in seconds of their videos.
        asked: What was looked for.
        span: Start and end of the clip in seconds of the query's file.
        settings: What else decided the answer, plain values.
        problems: Damage met in the query's file, one line each.
        query: Features ``[m, F]`` of the clip.
        query_video: Features ``[v, F]`` of its whole file, where the clip is a part of it.
        count: How many there are, where all were asked for.
    """

    hits: list[Hit]
    asked: VideoQuery | StillQuery
    span: tuple[float, float]
    settings: dict[str, Any]
    query: Tensor
    query_video: Tensor | None = None
    problems: tuple[str, ...] = ()
    count: Count | None = None


def find_in_index(
    query: str | Path | VideoQuery | StillQuery,
    index: SearchIndex,
    made: IndexedVideos,
    backbone: Backbone,
    *,
    top_k: int = 10,
    first_stage: FirstStageName | None = "scan",
    candidates: int = 1000,
    nms_threshold: float = APART,
    cache: FeatureCache | None = None,
    progress: Callable[[str], Progress] | None = None,
    also: Sequence[str | Path | VideoQuery] = (),
    unlike: Sequence[str | Path | VideoQuery] = (),
    judged: Sequence[tuple[str, Judged]] = (),
    every: bool = False,
    least: float = 0.5,
) -> FoundVideos:
    """Find the moments of all videos of an index that mean the same as a clip.

    The query's file is turned into features as the videos of the index were. Where the clip is a
    stretch of it, what surrounds the clip says what is special about it.

    Args:
        query: The clip: a video file, or a :class:`VideoQuery` for a stretch of one; or words or a
            picture (:class:`StillQuery`), whose hits come without probabilities.
        index: The index, opened with its model.
        made: How its videos were turned into features.
        backbone: The network that did.
        top_k: How many moments at most; those much shorter or longer than the clip are left out.
        first_stage: See :meth:`relocal_pyg.search.SearchIndex.search`.
        candidates: See :meth:`relocal_pyg.search.SearchIndex.search`.
        nms_threshold: Of two moments of one video with a larger tIoU only the better is given.
        cache: Features of videos met before.
        progress: Called with the name of the file; what it gives is told the seconds done.
        also: Further examples of what is looked for.
        unlike: Counter-examples: what is not meant; a stretch of an indexed video is no answer.
        judged: As in :func:`relocal_pyg.video.find_moments`, after the id of the video.
        every: Give all moments of all videos and their count; ``top_k``, ``first_stage`` and
            ``candidates`` then say nothing.
        least: The probability from which on :attr:`every` gives a moment.

    Raises:
        SearchIndexError: The index was made with another backbone, or does not hold a video.
        VideoError: The file cannot be decoded.
        UsageError: An argument is out of range, or the query range lies outside its file.
    """
    check_number(top_k, "top_k", least=1, whole=True)
    for name, share in (("nms_threshold", nms_threshold), ("least", least)):
        check_number(share, name, least=0, most=1)
    asked_for = VideoQuery(Path(query)) if isinstance(query, str | Path) else query
    made.check(backbone)
    problems: list[str] = []

    def extract(path: Path) -> VideoFeatures:
        return extract_video(
            path,
            backbone,
            made.rate_hz,
            cache=cache,
            progress=None if progress is None else progress(path.name),
            report=lambda problem: problems.append(f"{path}: {problem}"),
        )

    if isinstance(asked_for, StillQuery):
        asked = Asked.still(asked_for, backbone, made.rate_hz)
    else:
        asked = Asked.clip(asked_for, probe(asked_for.path).start, extract(Path(asked_for.path)))
    rows, whole = asked.rows, asked.whole
    around = None if whole is None else whole.features
    ids = {place: name for name, place in made.files.items() if name in index.places}
    unlike, nos = said_no(unlike, lambda path: ids.get(Path(os.path.realpath(path))))
    judged = [*judged, *nos]
    examples = read_examples(also, unlike, extract)
    hits, count = find_rows(
        rows,
        index,
        around,
        examples,
        judged,
        top_k=top_k,
        first_stage=first_stage,
        candidates=candidates,
        nms_threshold=nms_threshold,
        every=every,
        least=least,
        sure=isinstance(asked_for, VideoQuery),
    )
    changed = [n for n in {hit.video_id: None for hit in hits} if made.is_changed(n, backbone)]
    why = "is another film than the one that was indexed: run relocal index again"
    problems += [f"{made.files[name]}: {why}" for name in changed]
    return FoundVideos(
        hits=[in_film(hit, index, made) for hit in hits],
        asked=asked_for,
        span=asked.span,
        settings={
            "backbone": backbone.name,
            "frames_per_second": made.rate_hz,
            "seconds_per_step": backbone.clip_stride / made.rate_hz,
            "query_steps": len(rows),
            "query_centred_by": "the library" if around is None else "its own video",
            "videos": len(index),
        },
        query=rows,
        query_video=around,
        problems=tuple(problems),
        count=count,
    )


def in_film(hit: Hit, index: SearchIndex, made: IndexedVideos) -> Hit:
    """A hit that ends with its film, which its last step may not."""
    start = index.duration(hit.video_id, less=1)
    if hit.end > start and hit.video_id in made.files:
        with suppress(VideoError):  # moved since
            end = probe(made.files[hit.video_id]).duration
            if end is not None and start < end < hit.end:
                return replace(hit, end=end)
    return hit


def find_rows(
    rows: Tensor,
    index: SearchIndex,
    around: Tensor | None,
    examples: Sequence[Example],
    judged: Sequence[tuple[str, Judged]],
    *,
    top_k: int,
    first_stage: FirstStageName | None,
    candidates: int,
    nms_threshold: float = APART,
    every: bool,
    least: float,
    sure: bool = True,
) -> tuple[list[Hit], Count | None]:
    """What :func:`find_in_index` finds, for features ``[m, F]`` and those of their whole video.

    Hits with a yes come first, those with a no are left out; ``sure`` wants probabilities.
    """
    judged = [(name, within(one, index.duration(name), name)) for name, one in judged]
    examples = [*examples, *(index.example(name, *stretch) for name, stretch in judged)]
    count = None
    if every:
        hits, count = index.occurrences(
            rows, query_video=around, examples=examples, least=least, without=judged
        )
    else:
        hits = index.search(
            rows,
            top_k + ROOM * len(judged),
            first_stage=first_stage,
            candidates=max(candidates, top_k),
            nms_threshold=nms_threshold,
            # About as long as the query: an index holds windows of every length, and short ones
            # inside an action would fill the list with pieces of one answer.
            lengths=(SCALES[0] * len(rows), SCALES[1] * max(len(rows), SHORTEST_WINDOW)),
            query_video=around,
            examples=examples,
        )
        hits = index.with_probabilities(hits, rows, around, examples) if sure else hits
    others = [
        hit
        for hit in hits
        if not any(hit.video_id == name and is_known((hit.start, hit.end), j) for name, j in judged)
    ]
    top = max((hit.score for hit in others), default=1.0)
    yes = [
        Hit(name, moment.start, moment.end, top, 1.0)
        for name in {name: None for name, _ in judged}
        for moment in pinned([one for other, one in judged if other == name], ())
    ]
    hits = [*yes, *others]
    if not sure:
        hits = [replace(hit, probability=None, presence=None) for hit in hits]
    return (hits[:top_k], None) if count is None else (hits, count.more(len(yes)))
