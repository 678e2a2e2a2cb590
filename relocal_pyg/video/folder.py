"""From annotated video files to what a protocol of one's own is made of."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from relocal_pyg.data.annotations import Quarantine, read_annotations
from relocal_pyg.data.features import (
    H5_ERRORS,
    KEYS,
    MAX_BYTES,
    check_key,
    checked_dataset,
    open_features,
    video_names,
    write_features,
)
from relocal_pyg.errors import (
    AnnotationError,
    FeatureError,
    OutputError,
    UsageError,
    VideoError,
    check_number,
)
from relocal_pyg.formats.rows import safe_name
from relocal_pyg.io.read import id_problem, version_of
from relocal_pyg.io.write import check_output, forced, replace_file, writing
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.decode import unreported, warn_of
from relocal_pyg.video.extract import Progress, extract_video, sampling_rate
from relocal_pyg.video.rows import FeatureCache

#: Files of a folder that are taken for videos; a file named by itself may have any suffix.
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2t"),
    *(".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".tts", ".vob", ".webm"),
    *(".wmv", ".y4m"),
)
#: Data set beside the features: start and end of each step in seconds, float64 ``[n, 2]``.
TIMES_KEY = "times"
#: Size and time of change of a file.
Version = tuple[int, int]
_Outcome = tuple[str, bool, tuple[str, ...]]  # digest, whether it was reused, problems


@dataclass(frozen=True)
class Extraction:
    """What :func:`extract_folder` did.

    Attributes:
        digests: Digest of the features of each video written, by video id.
        computed: Videos extracted now.
        reused: Videos whose features were already there.
        problems: Damage of videos that were used as far as they go, by video id.
        passed_over: How many files of the folder were not taken for videos, by suffix.
        seconds: How long it took.
    """

    digests: dict[str, str]
    computed: int
    reused: int
    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)


class _Interrupted(Exception):
    """The run ends before this video does."""


def extract_folder(
    videos: str | Path | Iterable[str | Path] | Mapping[str, Path],
    output: str | Path,
    backbone: Backbone,
    rate_hz: float | None = None,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    quarantine: Quarantine | None = None,
    key: str | None = None,
    progress: bool = True,
    drop: bool = False,
) -> Extraction:
    """Extract features of many videos into one HDF5 file that ``FeatureStore`` reads.

    Each finished video is kept in the cache under the SHA-256 of its content and the settings, so
    nothing is extracted twice: not after an interruption, not for a copy under another name, not
    when videos are added. The feature file is put together at the end, one video in memory at a
    time. Besides ``<id>/<key>`` it holds ``<id>/times``, read by :func:`read_times`.

    Args:
        videos: A folder (searched with its subfolders, linked ones too, for
            :data:`VIDEO_SUFFIXES`), a file or files, or files by the id they are to have.
        output: The HDF5 file to write.
        backbone: Called from ``workers`` threads.
        rate_hz: See :func:`relocal_pyg.video.extract.extract_video`.
        workers: Videos at a time, as many as there are processors where None; torch's threads are
            shared out among them.
        cache: Folder of finished videos; ``<output>.cache`` where None.
        quarantine: Collects videos that cannot be used, while the others are extracted. A damaged
            video of which something decodes is used, with a
            :class:`relocal_pyg.video.decode.VideoWarning`.
        key: Name of the feature data set.
        progress: Show a bar with the time left on a terminal.
        drop: Let the output lose videos that it holds and that are not among these.

    Returns:
        The :class:`Extraction`. The ids of the videos are those of :func:`find_videos`.

    Raises:
        UsageError: No videos, or an argument out of range.
        VideoError: No video at all could be used, or (``Quarantine(strict=True)``) one could not.
        FeatureError: The backbone did not give what it says.
        OutputError: The output or the cache cannot be written; the output is a video, holds
            something else, other videos, or features made in another way.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    check_number(workers, "workers", least=1, whole=True)
    if key == TIMES_KEY:
        raise UsageError(f"the features cannot be called {key!r}: the times are")
    check_key(key or None)
    files = find_videos(videos)
    kind = f"features of {backbone.name} at {f'{rate_hz:g} Hz' if rate_hz else 'its own rate'}"
    quarantine = Quarantine() if quarantine is None else quarantine
    store = FeatureCache(Path(f"{output}.cache") if cache is None else cache)
    read = partial(
        extract_video, cache=store, report=unreported, threads=workers // len(files) or 1
    )

    def extract(name: str, tick: Progress) -> _Outcome | VideoError:
        try:
            video = read(files[name], backbone, rate_hz, progress=tick)
        except VideoError as error:
            return error
        return video.digest, video.reused, video.problems  # not its open file

    done: dict[str, _Outcome] = {}

    def settle(name: str, outcome: _Outcome | VideoError) -> None:
        if isinstance(outcome, VideoError):
            quarantine.add(files[name], name, outcome.reason, error=VideoError)
            return
        done[name] = outcome
        for problem in outcome[2]:
            warn_of(files[name])(problem)

    with writing([output], inputs=files.values()):
        there = check_output(output, kind).exists() and not drop
        if there:
            _refuse_to_drop(output, files)
        began = time.monotonic()
        _in_threads(files, extract, settle, workers, progress)
        took = time.monotonic() - began
        if not done:
            raise VideoError(f"no video could be used: {quarantine.summary()}", file=output)
        if there:
            _refuse_to_drop(output, done)  # what was read before and cannot be now
        digests = {name: done[name][0] for name in sorted(done)}
        _assemble(output, store, digests, key or KEYS[0], kind)
    reused = sum(again for _, again, _ in done.values())
    problems = {name: met for name, (_, _, met) in done.items() if met}
    folder = isinstance(videos, str | Path) and Path(videos).is_dir()
    skipped = passed_over(Path(videos)) if folder else {}  # type: ignore[arg-type]
    return Extraction(digests, len(done) - reused, reused, problems, skipped, took)


def find_videos(
    videos: str | Path | Iterable[str | Path] | Mapping[str, Path],
    known: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """The files that :func:`extract_folder` would extract, by video id, sorted.

    The id is :func:`video_id` of the file. Where files share it, each is called by its folder too
    (``day1-park``), or by its suffix (``park.avi``), so that none is left out and the same files
    have the same ids every time.

    Args:
        videos: See :func:`extract_folder`.
        known: Ids that files were given before, which they keep; paths absolute, links resolved.

    Raises:
        UsageError: There are none, or an id that was given cannot be a name.
    """
    if isinstance(videos, Mapping):
        for name in videos:
            if problem := id_problem(name):
                raise UsageError(problem, record=name)
        return dict(sorted(videos.items()))
    root = Path()
    if isinstance(videos, str | Path):
        root = Path(videos)
        found = [root]
        if root.is_dir():
            found = [each for each in _files(root) if each.suffix.lower() in VIDEO_SUFFIXES]
        if not found:
            raise UsageError("holds no video files", file=root)
    else:
        found = list(dict.fromkeys(Path(video) for video in videos))
    if not found:
        raise UsageError("no videos were given")
    before: dict[str, list[str]] = defaultdict(list)  # of one file by its links too
    for name, path in sorted((known or {}).items()):
        before[str(path)].append(name)
    files: dict[str, Path] = {}
    fresh: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(found):
        own, names = video_id(file), before.get(os.path.realpath(file))
        if names:
            files[names.pop(names.index(own) if own in names else 0)] = file
        else:
            fresh[own].append(file)
    for name, group in fresh.items():
        taken = {*files, *(known or {}), *(fresh.keys() - {name})}
        for names in _distinct(name, group, root):
            if len(set(names)) == len(names) and not taken & set(names):
                files.update(zip(names, group, strict=True))
                break
    return dict(sorted(files.items()))


def _distinct(name: str, group: list[Path], root: Path) -> Iterator[list[str]]:
    """Ids for files of one name: the name itself for one, else with suffix, folder or both."""
    if len(group) == 1:
        yield [name]
    places = [
        "-".join(file.parent.relative_to(root).parts)
        if file.parent.is_relative_to(root)
        else file.parent.name
        for file in group
    ]
    folders = [video_id(f"{place}-{name}.x" if place else f"{name}.x") for place in places]
    suffixes = [file.suffix.lower() for file in group]
    yield [video_id(f"{name}{suffix}.x") for suffix in suffixes]
    yield folders
    yield [video_id(f"{long}{suffix}.x") for long, suffix in zip(folders, suffixes, strict=True)]
    for size in (8, 64):  # what tells them apart was cut off or replaced
        yield [
            f"{video_id(name)[:60]}-{hashlib.sha256(os.fsencode(file)).hexdigest()[:size]}"
            for file in group
        ]


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder but hidden ones; linked folders are entered, each once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Linked folders last, so that what lies below the folder itself goes by its own path.
        visible = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(
            visible, key=lambda name: (os.path.islink(os.path.join(place, name)), name)
        )
        for name in sorted(names):
            file = Path(place, name)
            if not name.startswith(".") and file.is_file():
                yield file


def settled_files(
    folder: str | Path,
    wanted: Callable[[Path, Version], bool],
    *,
    settle: float = 5.0,
    once: bool = False,
    suffixes: Iterable[str] = VIDEO_SUFFIXES,
) -> Iterator[tuple[Path, Version]]:
    """Files of a folder as they come, each when it has stopped growing, the oldest first.

    A file that has changed since it was given, such as a segment written over, is given again where
    ``wanted`` says so.

    Args:
        folder: Looked through with its subfolders; hidden files, which are what many programs write
            before they rename, are left alone.
        wanted: Whether a version of a file is still to be given.
        settle: Seconds for which its size and time of change stay as they are before it is given.
        once: Stop when everything wanted has been given, instead of waiting for more.
        suffixes: Of the files looked for, in lower case.

    Yields:
        The file and its version.
    """
    seen: dict[Path, tuple[Version, float]] = {}
    while True:
        now, ready = time.monotonic(), []
        there: dict[Path, tuple[Version, float]] = {}
        for file in _files(Path(folder)):
            version = version_of(file) if file.suffix.lower() in suffixes else None
            if version is None or not wanted(file, version):
                continue
            since = seen[file][1] if seen.get(file, (None,))[0] == version else now
            there[file] = version, since
            if now - since >= settle:
                ready.append((file, version))
        seen = there
        yield from sorted(ready, key=lambda each: (each[1][1], each[0]))
        if once and not seen:
            return
        if not ready:
            time.sleep(min(max(settle / 4, 0.05), 1.0))


def passed_over(folder: Path) -> dict[str, int]:
    """How many files of a folder are not taken for videos, by suffix, the most frequent first."""
    counts = Counter(file.suffix.lower() or "no suffix" for file in _files(folder))
    return {name: n for name, n in counts.most_common() if name not in VIDEO_SUFFIXES}


def video_id(path: str | Path) -> str:
    r"""The id of a video file: its name without the suffix, made safe as a name in HDF5.

    Unicode is composed (NFC); characters that cannot be printed, slashes and what is over 255 bytes
    are replaced or cut.

    Example:
        >>> video_id("clips/my holiday.mp4"), video_id("a\\b.mkv")
        ('my holiday', 'a_b')
    """
    safe = safe_name(Path(path).stem)
    return "_" if safe in ("", ".", "..") else safe


def read_times(path: str | Path, video: str) -> Tensor:
    """Seconds ``[n, 2]`` at which steps of a video begin and end, from :func:`extract_folder`.

    Raises:
        FeatureError: The file is damaged, or holds no such video or no times.
    """
    with open_features(path) as file:
        if video not in video_names(file, path):
            raise FeatureError("is not among the videos of this file", file=path, record=video)
        data = checked_dataset(file, path, video, TIMES_KEY, MAX_BYTES)
        try:
            return torch.from_numpy(np.asarray(data[:], dtype=np.float64))
        except H5_ERRORS as error:
            raise FeatureError(f"cannot be read ({error})", file=path, record=video) from None


def _in_threads(
    files: dict[str, Path],
    extract: Callable[[str, Progress], _Outcome | VideoError],
    settle: Callable[[str, _Outcome | VideoError], None],
    workers: int,
    progress: bool,
) -> None:
    """Extract every file; ``settle`` is called in this thread as each one ends."""
    stop, lock = threading.Event(), threading.Lock()
    sizes = {name: file.stat().st_size if file.is_file() else 0 for name, file in files.items()}
    bar = tqdm(
        total=sum(sizes.values()), unit="B", unit_scale=True, disable=None if progress else True
    )

    def one(name: str) -> _Outcome | VideoError:
        shown = 0

        def tick(seconds: float, duration: float | None) -> None:
            nonlocal shown
            if stop.is_set():
                raise _Interrupted
            now = round(sizes[name] * min(seconds / duration, 1.0)) if duration else shown
            with lock:
                bar.update(now - shown)
            shown = now

        outcome = extract(name, tick)
        with lock:
            bar.update(sizes[name] - shown)
        return outcome

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    pool = ThreadPoolExecutor(workers)
    futures = {pool.submit(one, name): name for name in files}
    try:
        for future in as_completed(futures):
            settle(futures[future], future.result())
    finally:
        # After an error or an interruption: those waiting never start, those running stop at their
        # next batch, which nobody waits for without a limit.
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait(futures, timeout=1.0)
        torch.set_num_threads(threads)
        bar.close()


def _refuse_to_drop(output: str | Path, kept: Collection[str]) -> None:
    try:
        with open_features(output) as file:
            lost = sorted(set(video_names(file, output)) - set(kept))
    except FeatureError:  # forced over something else
        return
    if lost and not forced():
        raise OutputError(
            f"holds {len(lost)} videos that are not among these, or can no longer be read, "
            f"{lost[0]!r} first: choose another name, or drop them with --force",
            file=output,
        )


def _assemble(
    output: str | Path, store: FeatureCache, digests: dict[str, str], key: str, kind: str
) -> None:
    times: dict[str, NDArray[np.float64]] = {}

    def items() -> Iterable[tuple[str, Tensor]]:
        for name, digest in digests.items():
            video = store.get(digest)
            if video is None:
                raise FeatureError("vanished from the cache: run again", file=store.folder)
            starts = np.arange(len(video.features), dtype=np.float64)
            times[name] = np.stack([starts, starts + 1], axis=1) * video.seconds_per_step
            yield name, video.features

    with replace_file(output, kind) as temporary:
        write_features(temporary, items(), key=key)
        with h5py.File(temporary, "r+", libver="latest") as file:
            for name, seconds in times.items():
                file.create_dataset(f"{name}/{TIMES_KEY}", data=seconds, fletcher32=True)


def features_from_videos(
    videos: str | Path,
    annotations: str | Path,
    output: str | Path,
    backbone: Backbone,
    rate_hz: float | None = None,
    *,
    workers: int | None = None,
    background: str | None = "background",
    quarantine: Quarantine | None = None,
    key: str | None = None,
) -> tuple[Extraction, float]:
    """Extract the features of the annotated videos of a folder, resumable.

    Args:
        videos: A folder of video files.
        annotations: A file that :func:`relocal_pyg.data.read_annotations` reads; ids are names of
            files without their suffix.
        output: The HDF5 file to write; finished videos wait in ``<output>.cache``.
        backbone: See :class:`relocal_pyg.video.backbones.Backbone`.
        rate_hz: Frames per second; where None, what
            :func:`relocal_pyg.video.extract.sampling_rate` gives for half the median action, so
            that short actions keep steps too (a clip network: 25, so that every step is as long).
        workers: Videos at a time, as many as there are processors where None.
        background: Label that is no action.
        quarantine: Collects videos that cannot be used.
        key: Name of the feature array.

    Returns:
        What was extracted, and the duration of a step in seconds.

    Raises:
        AnnotationError: The annotations cannot be used, or name no file of the folder.
        VideoError: No video could be used.
        UsageError: No videos, or two with one id.
    """
    # What is wrong with annotations is reported where the protocol reads them.
    annotated = read_annotations(annotations, quarantine=Quarantine())
    files = find_videos(videos)
    wanted = {name: file for name, file in files.items() if name in annotated}
    if not wanted:
        raise AnnotationError(
            f"names no video of {videos}: an id is a file's name without its suffix, such as "
            f"{next(iter(files))!r}",
            file=annotations,
        )
    if rate_hz is None:
        lengths = [
            segment.end - segment.start
            for video in annotated.values()
            for segment in video.segments
            if segment.label != background
        ]
        clips = backbone.clip_frames > 1
        rate_hz = 25.0 if clips or not lengths else sampling_rate(median(lengths) / 2)
    done = extract_folder(
        wanted, output, backbone, rate_hz, workers=workers, quarantine=quarantine, key=key
    )
    return done, backbone.clip_stride / rate_hz
