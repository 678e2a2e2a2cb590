"""What ``find`` and ``search`` write of their answers for other programs."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from relocal_pyg.apps.cli.options import (
    OUT_FILE,
    RESULTS,
    Output,
    Seconds,
    is_features,
    say,
    split_place,
)
from relocal_pyg.errors import RelocalError, UsageError, check_number
from relocal_pyg.formats import FORMATS, MAY_BE_EMPTY, export_clips, format_of, render, to_clips
from relocal_pyg.formats.clips import DOUBT, Clip, Source, clock
from relocal_pyg.formats.importing import is_still
from relocal_pyg.io.write import also_reads

if TYPE_CHECKING:
    from torch import Tensor

    from relocal_pyg.models.occurrences import Count
    from relocal_pyg.moments import Moment
    from relocal_pyg.search.index import Hit
    from relocal_pyg.video.query import Judged

#: What the JSON of answers is, and in which version; raised when a field changes its meaning.
SCHEMA = "relocal_pyg.moments/1"
#: What is known of an example.
EXAMPLE = ("video", "start", "end", "good")


@dataclass(frozen=True)
class ExportOptions:
    """What is written of the moments, and how.

    Attributes:
        json_file: Write the moments here as JSON; "-" for the standard output.
        csv_file: Write the moments here as CSV.
        srt_file: Write the moments here as subtitles; of an index a file for each video.
        export: Write the moments into these files for other programs, in the format of their
            suffix: players (.vtt .srt .txt .ffmeta), editors (.otio .edl .xml .fcpxml .llc),
            annotation tools (.eaf .tsv .json .textgrid), tables (.csv). Of an index, formats of one
            video get a file for each.
        report: Videos: write a page with pictures here (HTML, one file).
        contact_sheet: Videos: write pictures of the moments here, all in one (.jpg or .png).
        cut: Videos: write each moment as a clip into this folder.
        reencode: With --cut: exact to the frame, instead of copied from the key frame before.
        format: Which format, where a suffix of --export leaves a choice (.csv, .edl, .json, .txt,
            .xml); "--format ?" lists them.
        padding: Seconds to add at both ends of each moment, with --export and --cut.
        timeline_start: Timecode at which the timeline begins that Resolve's markers are for.
    """

    json_file: Annotated[
        Path | None, Output(is_file=True, may_stream=True), tyro.conf.arg(name="json")
    ] = None
    csv_file: Annotated[Path | None, OUT_FILE, tyro.conf.arg(name="csv")] = None
    srt_file: Annotated[Path | None, OUT_FILE, tyro.conf.arg(name="srt")] = None
    export: Annotated[tuple[Path, ...], OUT_FILE, tyro.conf.arg(metavar="FILE...")] = ()
    report: Annotated[Path | None, OUT_FILE] = None
    contact_sheet: Annotated[Path | None, OUT_FILE] = None
    cut: Annotated[Path | None, Output(filled=True)] = None
    reencode: bool = False
    format: str | None = None
    padding: Seconds = 0.0
    timeline_start: str = "01:00:00:00"

    def formats(self) -> dict[Path, str]:
        """The format of each file."""
        names = {file: format_of(file, self.format) for file in self.export}
        if self.format is not None and self.format not in names.values():
            format_of("x", self.format)  # is there such a format?
            endings = " or ".join(FORMATS[self.format].suffixes)
            raise UsageError(f"--format {self.format} needs a file for --export, {endings}")
        if self.timeline_start != "01:00:00:00" and "resolve-markers" not in names.values():
            raise UsageError("--timeline-start is of --format resolve-markers")
        if self.reencode and self.cut is None:
            raise UsageError("--reencode needs --cut")
        if self.padding and not names and self.cut is None:
            raise UsageError("--padding is of --export and --cut: give one, such as --export x.srt")
        if self.contact_sheet is not None:
            from relocal_pyg.video.page import sheet_kind

            sheet_kind(self.contact_sheet)
        return names

    def try_on(self, source: Source) -> None:
        """Refuse what cannot be written of a video before it is searched."""
        with warnings.catch_warnings(action="ignore"):  # said when it is written
            for name in self.formats().values():
                render(name, [Clip(source, 0.0, 1.0, "moment", "")], self.timeline_start)

    def refuse_films(self) -> None:
        """Refuse what is made of pictures, where there are features alone."""
        for name in ("report", "contact_sheet", "cut"):
            if getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} needs video files, these are features")


def place_name(place: str) -> str:
    """What a video file, an array or a video of a feature file is called.

    Example:
        >>> place_name("clips/a.mp4"), place_name("features.h5::v_1")
        ('a', 'v_1')
    """
    file, video_id = split_place(place)
    return video_id or Path(file).stem


def write_answers(path: Path, answers: Sequence[tuple[str, Moment | Hit]], **facts: Any) -> None:
    """Write answers as JSON, the same for one reference and for an index (docs/formats.md).

    They are pairs of a video's id and a moment in seconds, best first; the path may be "-", the
    standard output.
    """
    from relocal_pyg.io.write import write_json

    content = answers_content(plain_answers(answers), **facts)
    if str(path) == "-":
        print(json.dumps(content, indent=1, allow_nan=False), file=RESULTS.get() or sys.stdout)
    else:
        write_json(path, content)


def answers_content(
    moments: Sequence[Mapping[str, Any]],
    *,
    query: str,
    reference: str,
    matcher: str,
    query_span: Sequence[float | None] | None = None,
    presence: float | None = None,
    settings: Mapping[str, Any] | None = None,
    count: Count | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The JSON of answers.

    ``query_span`` is in seconds of the query's clock, and ``matcher`` says which model answered,
    and why; all but moments and examples is as it was given.
    """
    return {
        "schema": SCHEMA,
        "unit": "seconds",
        "query": query,
        "query_span": None if query_span is None else list(query_span),
        "examples": list(examples),
        "reference": reference,
        "matcher": matcher,
        "settings": dict(settings or {}),
        "presence": presence,
        "probably_there": None if presence is None else presence >= DOUBT,
        "count": count and asdict(count),
        "moments": list(moments),
    }


def write_explanation(
    path: Path,
    moments: list[Moment],
    contributions: Tensor | None,
    seconds_per_step: float,
    facts: dict[str, Any],
) -> None:
    """Write what made the score of the best moment, a row a query step."""
    from relocal_pyg.io.write import write_json

    if contributions is None or not moments:
        raise UsageError(
            "--explain: no answer, or none told step by step (leave out --no-exhaustive)"
        )
    best = {"start": moments[0].start, "end": moments[0].end, "score": moments[0].score}
    content = {"unit": "seconds", "moment": best, "seconds_per_step": seconds_per_step}
    content |= {"count": facts["count"] and asdict(facts["count"])}
    write_json(path, {**facts, **content, "contributions": contributions.tolist()})


def plain_answers(answers: Iterable[tuple[str, Moment | Hit]]) -> list[dict[str, Any]]:
    """Answers as plain values: rank, video, and what is known of the moment."""
    names = ("start", "end", "score", "probability", "presence")
    return [
        {
            "rank": rank,
            "video": video,
            **{name: value for name in names if (value := getattr(moment, name)) is not None},
        }
        for rank, (video, moment) in enumerate(answers, start=1)
    ]


def read_feedback(path: Path | None) -> list[tuple[str | None, str | None, Judged]]:
    """Judgements of answers: the JSON of answers, some of whose moments say ``"good": true``.

    Of the moments that say so: video (None where it is not named), its file where that is known and
    there, and the stretch with whether it is right.
    """
    from relocal_pyg.io.read import read_json

    if path is None:
        return []
    content = read_json(path, UsageError)
    moments = content.get("moments") if isinstance(content, dict) else content
    if not isinstance(moments, list):
        raise UsageError('holds no "moments": write it with --json', file=path)
    stated = content.get("reference") if isinstance(content, dict) else None
    stated = stated if isinstance(stated, str) else None
    files = files_of(Path(_resolved(stated, path))) if stated else {}
    found: list[tuple[str | None, str | None, Judged]] = []
    opposite: set[tuple[str | None, Judged]] = set()
    for number, each in enumerate(moments, start=1):
        if isinstance(each, dict) and each.get("good") is None:
            continue
        stretch = _judged(each, path, f"moment {number}")
        if not isinstance(video := each.get("video"), str | None):
            raise UsageError('"video" is no text', file=path, record=f"moment {number}")
        if (video, stretch) in opposite:
            raise UsageError("says yes and no to one stretch", file=path, record=f"moment {number}")
        opposite.add((video, (*stretch[:2], not stretch[2])))
        place = _resolved(_film(video, stated, files), path)
        found.append((video, place if os.path.isfile(place) else None, stretch))
    if not found:
        raise UsageError('no moment says "good": true or false', file=path)
    also_reads(Path(place) for _, place, _ in found if place)
    return found


def _judged(each: Any, path: Path, record: str) -> tuple[float, float, bool]:
    """Start and end in seconds of a stretch, and whether it is right."""
    from relocal_pyg.io.read import parse_time

    good = each.get("good") if isinstance(each, dict) else None
    if not isinstance(good, bool):
        raise UsageError('"good" true or false wanted', file=path, record=record)
    try:
        start, end = (parse_time(each.get(name), name) for name in ("start", "end"))
    except UsageError as error:
        raise UsageError(error.reason, file=path, record=record) from None
    if not 0 <= start < end:
        raise UsageError("start before end wanted", file=path, record=record)
    return start, end, good


def read_saved(path: Path) -> tuple[str, dict[str, Any], list[tuple[str, bool]]]:
    """What was looked for, and what was said of it, as the JSON of answers keeps it.

    The clip's file, options of the query, and stretches ``FILE:FROM-TO`` with whether they show it.
    Paths begin where they did, or at the folder of the JSON.
    """
    from relocal_pyg.io.read import parse_time, read_json

    content = read_json(path, UsageError)
    try:
        if not content["schema"].startswith("relocal_pyg.moments/"):
            raise ValueError
        query, place = str(content["query"]), str(content["reference"])
        span = content["query_span"] or (None, None)
        start, end = (None if each is None else parse_time(each, "query_span") for each in span)
        options: dict[str, Any] = {"query_start": start, "query_end": end}
        told = {"seconds_per_step": 1.0, "key": None, **(content.get("settings") or {})}
        if is_features(query):
            check_number(told["seconds_per_step"], "seconds_per_step", above=0)
            options |= {name: told[name] for name in ("seconds_per_step", "key")}
        said = [(str(each["video"]), each) for each in content["examples"]]
        index = Path(_resolved(place, path))
        files = files_of(index)
        for number, moment in enumerate(content["moments"], start=1):
            if moment.get("good") is not None:
                name = str(moment.get("video") or place)
                if index.is_dir() and name not in files:
                    reason = "is of an index of features: leave out what is said of it, and give "
                    reason += "--query FEATURES.h5::ID:FROM-TO"
                    raise UsageError(reason, file=path, record=f"moment {number}")
                said.append((_film(name, place, files), moment))
        examples = []
        for name, each in said:
            found = _resolved(name, path)
            whole = each["start"] is None and each["end"] is None
            stretch = _judged({**each, "start": 0, "end": 1} if whole else each, path, name)
            found += "" if whole else ":{:.3f}-{:.3f}".format(*stretch[:2])
            examples.append((found, stretch[2]))
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        reason = "is no saved query: write one with --json of find or search"
        raise UsageError(reason, file=path) from None
    if is_still(query):
        raise UsageError("was made from words or a picture: give them again", file=path)
    return _resolved(query, path), options, examples


def _film(video: str | None, stated: str | None, files: Mapping[str, str]) -> str:
    """The film of a moment: one of an index, the reference that is stated, or a path itself."""
    here = stated is not None and video in (None, place_name(stated))
    return files.get(video or "", (stated if here else video) or "")


def _resolved(place: str, saved: Path) -> str:
    """A path as it was written, or beside the file that names it."""
    beside = str(saved.parent / place)
    there = os.path.exists(split_place(beside)[0])
    return beside if there and not os.path.exists(split_place(place)[0]) else place


def files_of(index: Path) -> dict[str, str]:
    """The video files of an index, where it is one."""
    from relocal_pyg.video.index import IndexedVideos

    if not IndexedVideos.record_of(index).is_file():
        return {}
    return {name: str(file) for name, file in IndexedVideos.load(index).files.items()}


def write_all(tasks: Iterable[Callable[[], object]]) -> None:
    """Do every task: one file that cannot be written takes no other one of a long search along.

    Raises:
        RelocalError: The first that failed, once the others are done; later ones are warned of.
        OSError: Likewise.
    """
    failures: list[Exception] = []
    for task in tasks:
        try:
            task()
        except (RelocalError, OSError) as error:
            failures.append(error)
    for other in failures[1:]:
        warnings.warn(str(other), stacklevel=2)
    if failures:
        raise failures[0]


def exporting(
    options: ExportOptions,
    answers: Callable[[], Sequence[tuple[Source, Moment]]],
    label: str,
    write_json: Callable[[Path], None],
    write_page: Callable[[Path], None],
    stream: int | None = None,
) -> Iterator[Callable[[], None]]:
    """What is left to do to write moments, best first, into every file that was asked for."""
    found = cache(answers)

    def export(file: Path, name: str, padding: float = 0.0) -> None:
        clips = to_clips(found(), label, padding)
        if not clips and name not in MAY_BE_EMPTY:
            say(f"nothing was found: {file} is not written")
            return
        for written in export_clips(file, clips, name, options.timeline_start):
            say(f"{FORMATS[name].title}: {written}")

    def show(sheet: Path) -> None:
        from relocal_pyg.video.page import write_contact_sheet

        if not found():
            say(f"nothing was found: {sheet} is not written")
            return
        write_contact_sheet(sheet, found(), stream)
        say(f"contact sheet: {sheet}")

    padding = options.padding or 0.0
    if options.json_file is not None:
        yield partial(write_json, options.json_file)
    for option, name in ((options.csv_file, "csv"), (options.srt_file, "srt")):
        if option is not None:
            yield partial(export, option, name)
    for file, name in options.formats().items():
        yield partial(export, file, name, padding)
    if (folder := options.cut) is not None:
        cut = partial(_cut_moments, folder, options.reencode, stream=stream)
        yield lambda: cut(to_clips(found(), label, padding))
    if options.contact_sheet is not None:
        yield partial(show, options.contact_sheet)
    if options.report is not None:
        yield partial(write_page, options.report)


def _cut_moments(folder: Path, reencode: bool, clips: Sequence[Clip], stream: int | None) -> None:
    """Write each moment as ``<video>-<rank>.mp4`` (or in the video's own container)."""
    from relocal_pyg.video.cut import cut_clip

    for clip in sorted(clips, key=lambda clip: clip.rank):
        source = Path(clip.source.path)
        suffix = ".mp4" if reencode or not source.suffix else source.suffix
        target = folder / f"{source.stem}-{clip.rank}{suffix}"
        start, end = cut_clip(source, clip.start, clip.end, target, reencode, stream)
        say(f"clip {clip.rank}: {target} ({clock(start)} to {clock(end)})")
    if clips and not reencode:
        print("clips begin at the key frame before their moment; --reencode cuts exactly")
