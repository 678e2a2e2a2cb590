"""Videos and answers as plain values; no path of the server is among them."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch.nn import functional

from relocal_pyg.apps.cli.exports import EXAMPLE, answers_content
from relocal_pyg.apps.serve.jobs import Job
from relocal_pyg.apps.serve.library import Collection, Entry
from relocal_pyg.formats import Source, render, to_clips
from relocal_pyg.formats.clips import presence_line
from relocal_pyg.models.occurrences import same_place
from relocal_pyg.moments import Moment
from relocal_pyg.video.cut import describe_source
from relocal_pyg.video.find import Found
from relocal_pyg.video.index import FoundVideos
from relocal_pyg.video.page import spread, thumbnails, write_found_page

_MAX_POINTS = 800


def describe(entry: Entry) -> dict[str, Any]:
    """A video of the library."""
    return {
        "id": entry.key,
        "name": entry.name,
        "duration": entry.duration,
        "uploaded": entry.uploaded,
    }


def answer(job: Job, collection: Collection | None) -> dict[str, Any]:
    """Where a search stands, and what it found."""
    state: dict[str, Any] = {
        "id": job.key,
        "about": job.about,
        "state": job.state,
        "doing": job.doing,
        "share": job.share,
        "error": job.error,
    }
    if job.found is None:
        return state
    found = (
        _one_video(job.found) if isinstance(job.found, Found) else _videos(job.found, collection)
    )
    found["moments"] = _as_left(job, found["moments"])
    # The paths before the colon are the server's.
    problems = [problem.split(": ", 1)[-1] for problem in job.found.problems]
    count = None if job.found.count is None else asdict(job.found.count)
    settings = job.found.settings
    return {**state, **found, "settings": settings, "problems": problems, "count": count}


def _as_left(job: Job, moments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Moments as people left them: first those with a yes, last those with a no."""
    edits, shown = list(job.edits.values()), []
    for each in moments:
        place = each.get("id"), each["start"], each["end"]
        known = [edit for edit in edits if edit.get("id") == place[0]]
        known = [edit for edit in known if same_place(place[1:], (edit["start"], edit["end"]))]
        number = job.places.setdefault(place, len(job.places))
        shown += known or [{**each, "number": number, "judged": None}]
    # What was drawn out over two of them, or is not found any more, is there once.
    shown = list({each["number"]: each for each in [*shown, *edits]}.values())
    return sorted(shown, key=lambda each: {True: 0, None: 1, False: 2}[each["judged"]])


def _one_video(found: Found) -> dict[str, Any]:
    count = min(len(found.similarity), _MAX_POINTS)
    curve = functional.adaptive_max_pool1d(found.similarity[None], count)[0]
    presence = found.moments[0].presence if found.moments else None
    return {
        "moments": [
            {
                "start": m.start,
                "end": m.end,
                "score": round(m.score, 4),
                "probability": m.probability,
            }
            for m in found.moments
        ],
        "presence": "" if presence is None else presence_line(presence),
        "curve": [round(value, 3) for value in curve.tolist()],
        "reference_seconds": found.reference_seconds,
        "matcher": found.matcher,
    }


def _videos(found: FoundVideos, collection: Collection | None) -> dict[str, Any]:
    """Hits with the video that each lies in; ``video`` is None where its file is gone."""
    assert collection is not None
    moments = []
    for hit in found.hits:
        entry = collection.entries.get(hit.video_id)
        length = None if entry is None else entry.duration
        # The last step of a video reaches a little past its end.
        end = hit.end if length is None or length <= hit.start else min(hit.end, length)
        moments.append(
            {
                "start": round(hit.start, 3),
                "end": round(end, 3),
                "score": round(hit.score, 4),
                "probability": hit.probability,
                "id": hit.video_id,
                "video": None if entry is None else entry.key,
                "name": hit.video_id if entry is None else entry.name,
                "duration": length,
            }
        )
    return {"moments": moments, "presence": "", "matcher": collection.model.title}


def export(job: Job, collection: Collection | None, name: str, least: float) -> str:
    """The moments that were not said no to, as people left them, as the text of a format.

    Args:
        job: A search that is done.
        collection: The index, where there is one.
        name: A key of :data:`relocal_pyg.formats.FORMATS`, or "query": to search again with.
        least: Leave out moments less probable than this, unless somebody said yes to them.

    Raises:
        UsageError: The format cannot hold them.
        VideoError: A video is gone.
    """
    if name == "query":
        return saved_query(job, collection)
    sources: dict[str, Source] = {}
    kept = []
    for shown in answer(job, collection)["moments"]:
        judged, sure = shown["judged"], shown["probability"]
        if judged is False or (judged is None and sure is not None and sure < least):
            continue
        if isinstance(job.found, Found):
            path, name_of = job.found.reference, job.names[1]
        else:
            entry = None if collection is None else collection.entries.get(shown["id"])
            path, name_of = (Path(shown["name"]) if entry is None else entry.path), shown["name"]
        if name_of not in sources:
            known = describe_source(path) if path.is_file() else Source(name_of)
            # Uploads have random names; the server's folders are nobody's business.
            sources[name_of] = replace(known, path=name_of)
        moment = Moment(shown["start"], shown["end"], shown["score"], probability=sure)
        kept.append((sources[name_of], moment))
    return render(name, to_clips(kept, Path(job.names[0]).stem))


def learned(job: Job, collection: Collection | None) -> list[dict[str, Any]]:
    """What was said in a search, with what it was given: examples as stretches of known videos."""
    entries = {} if collection is None else collection.entries
    known: dict[str | None, tuple[str, str]] = {None: (job.about["reference"], job.names[1])}
    known |= {name: (entry.key, entry.name) for name, entry in entries.items()}
    return list(job.about["examples"]) + [
        dict(zip(("name", *EXAMPLE), (known[video][1], known[video][0], *said), strict=True))
        for video, *said in job.marks
        if video in known  # its file is still there
    ]


def saved_query(job: Job, collection: Collection | None) -> str:
    """The JSON of answers, as ``relocal find`` writes and reads it; videos by their names."""
    about, found = job.about, job.found
    assert found is not None
    moments = [
        {
            "rank": rank,
            "video": each.get("name", Path(job.names[1]).stem),
            **{key: each[key] for key in ("start", "end", "score", "probability")},
        }
        for rank, each in enumerate(answer(job, collection)["moments"], start=1)
        if each["judged"] is not False
    ]
    content = answers_content(
        moments,
        query=job.names[0],
        reference=job.names[1],
        matcher=found.matcher if isinstance(found, Found) else "",
        query_span=(about["start"], about["end"]),
        settings=found.settings,
        examples=[
            {**{key: each[key] for key in EXAMPLE}, "video": each["name"]}
            for each in learned(job, collection)
        ],
    )
    return json.dumps(content, indent=1, allow_nan=False)


def strip(path: Path, start: float, end: float, count: int) -> bytes:
    """Pictures of a stretch side by side, as one JPEG; black where the video shows nothing.

    One by itself is larger.

    Raises:
        VideoError: The file cannot be decoded.
    """
    from PIL import Image

    height = 72 if count > 1 else 240
    pictures = thumbnails(path, spread(start, end, count), height)
    shown = [None if each is None else Image.open(io.BytesIO(each)) for each in pictures]
    width = max((each.width for each in shown if each is not None), default=height)
    whole = Image.new("RGB", (width * count, height))
    for number, each in enumerate(shown):
        if each is not None:
            whole.paste(each, (number * width, 0))
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def report(
    found: Found | FoundVideos, names: tuple[str, str], collection: Collection | None
) -> str:
    """The report of a search as HTML."""
    entries = {} if collection is None else collection.entries
    with tempfile.TemporaryDirectory(prefix="relocal-report-") as folder:
        target = Path(folder) / "report.html"
        files = {name: entry.path for name, entry in entries.items()}
        write_found_page(target, found, names=names, files=files)
        return target.read_text(encoding="utf-8")
