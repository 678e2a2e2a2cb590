"""Searches one after another in a thread of their own, with a bounded queue before it."""

from __future__ import annotations

import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from relocal_pyg.errors import RelocalError
from relocal_pyg.video.extract import Progress
from relocal_pyg.video.find import Found
from relocal_pyg.video.index import FoundVideos

#: Does a search; is given what it calls with the title of each file.
Work = Callable[[Callable[[str], Progress]], Found | FoundVideos]
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
        found: The answer, when done.
        error: What went wrong, when failed.
        wanted: False once it is cancelled.
        edits: What people said of moments, by their number: ``start``, ``end``, ``judged``.
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
    edits: dict[int, dict[str, Any]] = field(default_factory=dict)


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

    def get(self, key: str) -> Job | None:
        """The search of a key, or None."""
        with self._lock:
            return self._jobs.get(key)

    def jobs(self) -> list[Job]:
        """Every search that is remembered, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Stop a search at its next batch of frames."""
        job.wanted = False
        if job.state == "waiting":
            job.state = "cancelled"

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
            if job.wanted:
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

        try:
            job.found = job.work(progress)
            job.state = "done"
        except _Cancelled:
            job.state = "cancelled"
        except RelocalError as error:
            # Without the path, which is nobody's business in a browser.
            job.error, job.state = error.reason, "failed"
        except Exception as error:
            job.error, job.state = f"failed unexpectedly ({type(error).__name__})", "failed"
