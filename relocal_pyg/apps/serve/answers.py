"""Videos and answers as plain values; no path of the server is among them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch.nn import functional

from relocal_pyg.apps.serve.jobs import Job
from relocal_pyg.apps.serve.library import Collection, Entry
from relocal_pyg.formats.clips import presence_line
from relocal_pyg.video.find import Found
from relocal_pyg.video.index import FoundVideos
from relocal_pyg.video.page import write_found_page

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
    # The paths before the colon are the server's.
    problems = [problem.split(": ", 1)[-1] for problem in job.found.problems]
    return {**state, **found, "settings": job.found.settings, "problems": problems}


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
                "video": None if entry is None else entry.key,
                "name": hit.video_id if entry is None else entry.name,
                "duration": length,
            }
        )
    return {"moments": moments, "presence": "", "matcher": collection.model.title}


def report(found: Found, names: tuple[str, str]) -> str:
    """The report of a search as HTML."""
    with tempfile.TemporaryDirectory(prefix="relocal-report-") as folder:
        target = Path(folder) / "report.html"
        write_found_page(target, found, names=names)
        return target.read_text(encoding="utf-8")
