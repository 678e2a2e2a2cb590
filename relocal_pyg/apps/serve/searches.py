"""Searches one after another in a thread, and what is shown of them: no path of the server is."""

from __future__ import annotations

import io
import json
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch.nn import functional

from relocal_pyg.apps.cli.exports import EXAMPLE, answers_content, plain_answers
from relocal_pyg.apps.serve.library import Collection, Entry
from relocal_pyg.errors import RelocalError, ascii_line
from relocal_pyg.formats import Source, render, to_clips
from relocal_pyg.formats.clips import presence_line
from relocal_pyg.models.occurrences import same_place
from relocal_pyg.moments import Moment
from relocal_pyg.search.index import Hit
from relocal_pyg.video.cut import describe_source
from relocal_pyg.video.extract import Progress
from relocal_pyg.video.find import Found
from relocal_pyg.video.index import FoundVideos
from relocal_pyg.video.page import spread, thumbnails, write_found_page

#: Id of a video of an index, a stretch in seconds, and whether it is what was looked for.
Mark = tuple[str | None, float, float, bool]
#: Does a search; is given what it calls with the title of each file, and what was judged.
Work = Callable[[Callable[[str], Progress], Sequence[Mark]], Found | FoundVideos]
#: Finished searches that are remembered.
KEPT = 50
#: Points of the curve that is drawn under a video.
_MAX_POINTS = 800


class _Cancelled(Exception):
    """The search is no longer wanted."""


@dataclass
class Job:
    """One search.

    Attributes:
        key: Random name.
        names: What query and reference are called.
        about: Which videos, and which stretch, as the page shows them.
        state: Where it stands.
        doing: File that is read at the moment.
        share: How much of that file is done, 0 to 1.
        found: The answer, when done; while it is searched again the one before.
        wanted: False once it is cancelled.
        stale: Whether something was judged while it ran.
        places: Numbers of the moments that were found so far, by video and stretch.
        edits: Moments that people judged or trimmed, by their number, as they left them.
    """

    key: str
    work: Work
    names: tuple[str, str]
    about: dict[str, Any]
    state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
    doing: str = ""
    share: float = 0.0
    found: Found | FoundVideos | None = None
    error: str = ""
    wanted: bool = field(default=True)
    stale: bool = False
    places: dict[tuple[str | None, float, float], int] = field(default_factory=dict)
    edits: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def marks(self) -> list[Mark]:
        """What was judged."""
        said = [each for each in list(self.edits.values()) if each["judged"] is not None]
        return [(each.get("id"), each["start"], each["end"], each["judged"]) for each in said]


class SearchQueue:
    """Runs searches one at a time; at most ``waiting`` wait."""

    def __init__(self, waiting: int = 4) -> None:
        self._most, self._waiting = waiting, dict[str, Job]()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="relocal-search", daemon=True)
        self._thread.start()

    def submit(
        self, work: Work, names: tuple[str, str], about: dict[str, Any] | None = None
    ) -> Job | None:
        """Put a search in the queue; None where it is full."""
        job = Job(secrets.token_urlsafe(16), work, names, about or {})
        with self._changed:
            if len(self._waiting) >= self._most:
                return None
            self._put(job)
            self._jobs[job.key] = job
            finished = [k for k, j in self._jobs.items() if j.state not in ("waiting", "running")]
            for key in finished[: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[key]
        return job

    def again(self, job: Job) -> None:
        """Search once more with what was judged."""
        with self._changed:
            job.stale, job.wanted = job.state == "running", True
            if job.state == "done":
                self._put(job)  # however many wait: each is there once

    def _put(self, job: Job) -> None:
        job.state = "waiting"
        self._waiting[job.key] = job
        self._changed.notify()

    def get(self, key: str) -> Job | None:
        """The search of a key, or None."""
        with self._changed:
            return self._jobs.get(key)

    def jobs(self) -> list[Job]:
        """Every search that is remembered, the oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Stop a search at its next batch of frames; what it had found before stays."""
        with self._changed:
            job.wanted = job.stale = False
            if self._waiting.pop(job.key, None) is not None:
                job.state = "cancelled" if job.found is None else "done"

    def close(self) -> None:
        """Cancel everything; the thread ends at its next batch of frames."""
        for job in self.jobs():
            self.cancel(job)
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.pop(next(iter(self._waiting)))
                job.state = "running"
            self._work(job)

    def _work(self, job: Job) -> None:
        def progress(title: str) -> Progress:
            def tick(done: float, total: float | None) -> None:
                if not job.wanted:
                    raise _Cancelled
                job.doing, job.share = title, min(done / total, 1.0) if total else 0.0

            job.doing, job.share = title, 0.0
            return tick

        while True:
            ended: Literal["failed", "cancelled"] = "failed"
            job.error = ""
            try:
                job.found = job.work(progress, job.marks)
            except _Cancelled:
                ended = "cancelled"
            except RelocalError as error:
                # Without the path, which is nobody's business in a browser.
                job.error = error.reason
            except Exception as error:
                job.error = f"failed unexpectedly ({type(error).__name__})"
            with self._changed:
                if not job.stale:
                    job.state = ended if job.found is None else "done"
                    return
                job.stale = False


def describe(entry: Entry) -> dict[str, Any]:
    """A video of the library."""
    return {"id": entry.key, "name": entry.name, "duration": entry.duration}


def by_name(problems: Sequence[str], films: Sequence[Entry]) -> tuple[str, ...]:
    """Lines on damage as they are shown: the paths that they begin with are the server's."""
    names = {f"{film.path}: ": film.name for film in films}
    lines = [(max(filter(line.startswith, names), key=len, default=""), line) for line in problems]
    return tuple(ascii_line(f"{names[head]}: {line[len(head) :]}") for head, line in lines if head)


def answer(job: Job, collection: Collection | None) -> dict[str, Any]:
    """Where a search stands, and what it found."""
    shown = ("about", "state", "doing", "share", "error")
    state = {"id": job.key, **{name: getattr(job, name) for name in shown}}
    if job.found is None:
        return state
    found = (
        _one_video(job.found) if isinstance(job.found, Found) else _videos(job.found, collection)
    )
    found["moments"] = _as_left(job, found["moments"])
    count = None if job.found.count is None else asdict(job.found.count)
    told = {"settings": job.found.settings, "problems": job.found.problems, "count": count}
    return {**state, **found, **told}


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
    shown = ("start", "end", "score", "probability")
    return {
        "moments": [{name: getattr(each, name) for name in shown} for each in found.moments],
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
        moments.append(
            {
                "start": round(hit.start, 3),
                "end": round(hit.end, 3),
                "score": hit.score,
                "probability": hit.probability,
                "id": hit.video_id,
                "video": None if entry is None else entry.key,
                "name": hit.video_id if entry is None else entry.name,
                "duration": None if entry is None else entry.duration,
            }
        )
    return {"moments": moments, "presence": "", "matcher": collection.model.title}


def _files(job: Job, collection: Collection | None) -> dict[str, Path]:
    """The files that were searched, by their ids; that of a search in one video is empty."""
    if isinstance(job.found, Found):
        return {"": job.found.reference}
    assert collection is not None
    return {name: entry.path for name, entry in collection.entries.items()}


def _left(
    job: Job, collection: Collection | None, least: float = 0.0
) -> list[tuple[dict[str, Any], Moment]]:
    """The moments that were not said no to, as they are shown and as people left them.

    Those less probable than ``least`` are left out, unless somebody said yes to them.
    """
    first = job.found.moments[:1] if isinstance(job.found, Found) else []
    presence = first[0].presence if first else None
    left = []
    for shown in answer(job, collection)["moments"]:
        judged, sure = shown["judged"], shown["probability"]
        if judged or (judged is None and (sure is None or sure >= least)):
            times = shown["start"], shown["end"], shown["score"]
            left.append((shown, Moment(*times, probability=sure, presence=presence)))
    return left


def export(job: Job, collection: Collection | None, name: str, least: float) -> str:
    """What is :func:`_left` as the text of a format.

    ``name`` is a key of :data:`relocal_pyg.formats.FORMATS`, or "query": to search again with.
    """
    if name == "query":
        return saved_query(job, collection)
    sources: dict[str, Source] = {}
    kept, files = [], _files(job, collection)
    for shown, moment in _left(job, collection, least):
        video, called = shown.get("id", ""), shown.get("name", job.names[1])
        if video not in sources:
            there = video in files and files[video].is_file()
            known = describe_source(files[video], video) if there else Source(called, id=video)
            # Uploads have random names; the server's folders are nobody's business.
            sources[video] = replace(known, path=called, here=False)
        kept.append((sources[video], moment))
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
    """The JSON of answers, as ``relocal find`` writes and reads it; no path of the server."""
    about, found = job.about, job.found
    assert found is not None
    stem, left = Path(job.names[1]).stem, _left(job, collection)
    content = answers_content(
        plain_answers((shown.get("id", stem), moment) for shown, moment in left),
        query=job.names[0],
        reference=job.names[1],
        matcher=found.matcher if isinstance(found, Found) else "",
        query_span=(about["start"], about["end"]),
        presence=left[0][1].presence if left else None,
        count=found.count,
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


def report(job: Job, collection: Collection | None, least: float) -> str:
    """The report of what is :func:`_left` as HTML."""
    assert job.found is not None
    found, left = job.found, _left(job, collection, least)
    if isinstance(found, Found):
        found = replace(found, moments=[moment for _, moment in left])
    else:
        hits = [Hit(shown["id"], m.start, m.end, m.score, m.probability) for shown, m in left]
        found = replace(found, hits=hits)
    with tempfile.TemporaryDirectory(prefix="relocal-report-") as folder:
        target = Path(folder) / "report.html"
        write_found_page(target, found, names=job.names, files=_files(job, collection))
        return target.read_text(encoding="utf-8")
