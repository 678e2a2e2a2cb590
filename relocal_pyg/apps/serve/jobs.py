"""Searches one after another in a thread of their own, with a bounded queue before it."""

from __future__ import annotations

import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from relocal_pyg.errors import RelocalError
from relocal_pyg.video.extract import Progress
from relocal_pyg.video.find import Found
from relocal_pyg.video.index import FoundVideos

#: Id of a video of an index, a stretch in seconds, and whether it is what was looked for.
Mark = tuple[str | None, float, float, bool]
#: Does a search; is given what it calls with the title of each file, and what was judged.
Work = Callable[[Callable[[str], Progress], Sequence[Mark]], Found | FoundVideos]
#: Finished searches that are remembered.
KEPT = 50


class _Cancelled(Exception):
    """The search is no longer wanted."""


@dataclass
class Job:
    """One search.

    Attributes:
        key: Random name.
        work: Does it.
        names: What query and reference are called.
        about: Which videos, and which stretch, as the page shows them.
        state: Where it stands.
        doing: File that is read at the moment.
        share: How much of that file is done, 0 to 1.
        found: The answer, when done; while it is searched again the one before.
        error: What went wrong the last time.
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
    """Runs searches one at a time.

    Args:
        waiting: How many may wait.
    """

    def __init__(self, waiting: int = 4) -> None:
        self._queue: queue.Queue[Job | None] = queue.Queue(waiting)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="relocal-search", daemon=True)
        self._thread.start()

    def submit(
        self, work: Work, names: tuple[str, str], about: dict[str, Any] | None = None
    ) -> Job | None:
        """Put a search in the queue; None where it is full."""
        job = Job(secrets.token_urlsafe(16), work, names, about or {})
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            return None
        with self._lock:
            self._jobs[job.key] = job
            finished = [k for k, j in self._jobs.items() if j.state not in ("waiting", "running")]
            for key in finished[: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[key]
        return job

    def again(self, job: Job) -> None:
        """Search once more with what was judged; at the next judgement where the queue is full."""
        with self._lock:
            job.stale = job.state == "running"
            if job.state == "done":
                job.state, job.wanted = "waiting", True
                try:
                    self._queue.put_nowait(job)
                except queue.Full:
                    job.state = "done"

    def get(self, key: str) -> Job | None:
        """The search of a key, or None."""
        with self._lock:
            return self._jobs.get(key)

    def jobs(self) -> list[Job]:
        """Every search that is remembered, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Stop a search at its next batch of frames; what it had found before stays."""
        job.wanted = False
        if job.state == "waiting":
            job.state = "cancelled" if job.found is None else "done"

    def close(self) -> None:
        """Cancel everything; the thread ends at its next batch of frames."""
        for job in self.jobs():
            self.cancel(job)
        self._closed = True
        with suppress(queue.Full):  # those that wait are passed over
            self._queue.put_nowait(None)
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None and not self._closed:
            if job.state == "waiting":
                job.state, job.error = "running", ""
                self._work(job)

    def _work(self, job: Job) -> None:
        def progress(title: str) -> Progress:
            def tick(done: float, total: float | None) -> None:
                if not job.wanted:
                    raise _Cancelled
                job.doing, job.share = title, min(done / total, 1.0) if total else 0.0

            job.doing, job.share = title, 0.0
            return tick

        kept: Literal["failed", "cancelled"] = "failed"
        try:
            while True:
                job.found = job.work(progress, job.marks)
                with self._lock:
                    if not job.stale:
                        job.state = "done"
                        return
                    job.stale = False
        except _Cancelled:
            kept = "cancelled"
        except RelocalError as error:
            # Without the path, which is nobody's business in a browser.
            job.error = error.reason
        except Exception as error:
            job.error = f"failed unexpectedly ({type(error).__name__})"
        job.stale, job.state = False, kept if job.found is None else "done"
