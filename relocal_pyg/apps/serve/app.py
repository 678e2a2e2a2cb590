"""The web application: routes and limits, and serving it until interrupted."""

from __future__ import annotations

import asyncio
import mimetypes
import re
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from relocal_pyg.apps.serve.library import Collection, Entry, Library
from relocal_pyg.apps.serve.requests import EVERYWHERE, Guard, read_search, receive, refuse, seconds
from relocal_pyg.apps.serve.searches import (
    Job,
    Mark,
    SearchQueue,
    Work,
    answer,
    by_name,
    describe,
    learned,
    strip,
)
from relocal_pyg.apps.serve.searches import export as make_export
from relocal_pyg.apps.serve.searches import report as make_report
from relocal_pyg.errors import OutputError, RelocalError, UsageError, VideoError, check_number
from relocal_pyg.formats import FORMATS
from relocal_pyg.io.read import parse_number, parse_time
from relocal_pyg.models import Calibrated, ContrastMatcher
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.video.backbones import Backbone, EfficientNetLite0
from relocal_pyg.video.example import CLIP, write_example
from relocal_pyg.video.extract import Progress
from relocal_pyg.video.find import Found, find_moments
from relocal_pyg.video.index import FoundVideos, find_in_index
from relocal_pyg.video.query import VideoQuery
from relocal_pyg.video.rows import FeatureCache

#: Connections at once; more are answered 503. A browser opens six.
MAX_CONNECTIONS = 64
#: Seconds after which a connection without a request is closed, and one that takes nothing of an
#: answer: a player that is paused takes nothing, and asks again.
IDLE, STALLED = 10.0, 300.0
_MAX_UPLOADS = 2
#: Rows of pictures drawn at once; others wait.
_MAX_DRAWING = 2


def make_app(
    library: Library,
    searches: SearchQueue,
    cache: FeatureCache,
    matcher: Relocalizer | None,
    backbone: Backbone,
    *,
    rate_hz: float | None = None,
    collection: Collection | None = None,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
) -> Starlette:
    """Build the application.

    Args:
        library: The videos.
        searches: Closed when the application shuts down.
        cache: Features of videos met before.
        matcher: The model that ranks the moments of one video; the pretrained one where None.
        backbone: The network that turns frames into features.
        rate_hz: Frames per second of searches in one video; follows the query where None.
        collection: Videos that can be searched together.
        hosts: Names in the ``Host`` header that are answered, see :class:`Guard`.
    """
    uploading = 0
    drawing = asyncio.Semaphore(_MAX_DRAWING)
    drawn, previewing = asyncio.Semaphore(1), asyncio.Semaphore(1)  # who waits holds no thread
    indexed = 0 if collection is None else len(collection.index)

    def video_of(request: Request) -> Entry:
        entry = library.get(request.path_params["key"])
        if entry is None:
            raise HTTPException(404, "no such video")
        return entry

    def search_of(request: Request, *, answered: bool = False) -> Job:
        job = searches.get(request.path_params["key"])
        if job is None or (answered and job.found is None):
            raise HTTPException(404, "no such answer" if answered else "no such search")
        return job

    def least_of(request: Request) -> float:
        return parse_number(request.query_params.get("least", "0"))

    async def videos(request: Request) -> Response:
        return JSONResponse([describe(entry) for entry in library.entries()])

    async def index(request: Request) -> Response:
        playable = 0 if collection is None else len(collection.entries)
        return JSONResponse({"videos": indexed, "playable": playable})

    async def formats(request: Request) -> Response:
        offered = {name: (form.title, form.several) for name, form in FORMATS.items()}
        return JSONResponse({**offered, "query": ("Query with what was said (relocal find)", True)})

    async def upload(request: Request) -> Response:
        nonlocal uploading
        # This type cannot come from a plain form of another page.
        if request.headers.get("content-type") != "application/octet-stream":
            return refuse(415, "Content-Type application/octet-stream wanted")
        stated = request.headers.get("content-length", "")
        size = int(stated) if re.fullmatch(r"[0-9]{1,15}", stated) else None
        if size is None:
            return refuse(411, "the size of the file has to be stated")
        if size > library.max_bytes:
            return refuse(413, f"the file is larger than {library.max_bytes / 2**20:.0f} MB")
        if uploading >= _MAX_UPLOADS:
            return refuse(503, "other files are being uploaded: try again in a moment")
        if not library.reserve(size):
            return refuse(507, "there is no room for more uploads: start relocal serve anew")
        uploading += 1
        place, kept = library.uploads / f"{secrets.token_hex(16)}.upload", False
        try:
            await receive(request, place, size)
            name = Path(unquote(request.headers.get("x-file-name", ""))).name
            entry = await run_in_threadpool(library.add, place, name)
            kept = True
            return JSONResponse(describe(entry), 201)
        except VideoError as error:
            return refuse(415, error.reason)
        except ClientDisconnect:
            return refuse(400, "broken off")
        except TimeoutError:
            return refuse(408, "it came too slowly")
        except OSError:
            return refuse(507, "the file could not be stored")
        finally:
            uploading -= 1
            if not kept:
                place.unlink(missing_ok=True)
                library.release(size)

    async def example(request: Request) -> Response:
        await read_search(request)  # no plain form of another page can send one
        async with drawn:
            films = await run_in_threadpool(write_example, library.uploads / "example")
        entries = [library.add(film, film.name) for film in films]
        start, end = CLIP
        return JSONResponse({"videos": list(map(describe, entries)), "start": start, "end": end})

    async def play(request: Request) -> Response:
        entry = video_of(request)
        if not entry.path.is_file():
            raise HTTPException(404, "no such video")
        if abs(entry.begins) > 0.1:  # some browsers show it by that clock, some do not
            return refuse(415, f"its clock begins at {entry.begins:.2f} s: ask for its preview")
        kind = mimetypes.guess_type(entry.name)[0] or ""
        kind = kind if kind.startswith("video/") else "video/mp4"
        return Film(entry.path, media_type=kind)

    async def preview(request: Request) -> Response:
        entry, unwanted = video_of(request), threading.Event()
        try:
            async with previewing:
                making = asyncio.ensure_future(run_in_threadpool(library.preview, entry, unwanted))
                while not (await asyncio.wait([making], timeout=0.1))[0]:
                    if await request.is_disconnected():
                        unwanted.set()
                path = await making
        except RelocalError as error:
            return refuse(507 if isinstance(error, OutputError) else 415, error.reason)
        finally:
            unwanted.set()
        return Film(path, media_type="video/mp4")

    async def pictures(request: Request) -> Response:
        entry, asked = video_of(request), request.query_params
        start, end = (
            check_number(parse_time(asked.get(name, ""), name), name, least=0, most=1e6)
            for name in ("start", "end")
        )
        count = check_number(parse_number(asked.get("count", "8")), "count", least=1, most=24)
        # Kept by a browser until another film is written over this one.
        kept = {"Cache-Control": "private, no-cache", "ETag": f'"{entry.version}"'}
        if request.headers.get("if-none-match") == kept["ETag"]:
            return Response(status_code=304, headers=kept)
        async with drawing:
            jpeg = await run_in_threadpool(strip, entry.path, start, end, int(count))
        return Response(jpeg, media_type="image/jpeg", headers=kept)

    async def history(request: Request) -> Response:
        jobs = [{"id": job.key, "state": job.state, "about": job.about} for job in searches.jobs()]
        return JSONResponse(jobs)

    async def edit(request: Request) -> Response:
        wanted = await read_search(request)  # first: what is known may change meanwhile
        job = searches.get(request.path_params["key"])
        told = {"moments": []} if job is None or job.found is None else answer(job, collection)
        asked = request.path_params["number"]
        known = next((each for each in told["moments"] if str(each["number"]) == asked), None)
        if job is None or known is None:
            return refuse(404, "no such moment")
        number = known["number"]
        start, end = (seconds(wanted.get(name, known[name])) for name in ("start", "end"))
        judged = wanted.get("judged", known["judged"])
        length = known.get("duration") or told.get("reference_seconds", 1e6)
        last = max(length, known["end"])  # the last step of a video may reach past its end
        if start is None or end is None or not 0 <= start < end <= last:
            raise UsageError(f"a moment lies between 0 s and {last:g} s and ends after its start")
        if judged is not None and not isinstance(judged, bool):
            raise UsageError("judged: true, false or null wanted")
        before, left = job.marks, {**known, "start": start, "end": end, "judged": judged}
        if judged is None and job.places.get((known.get("id"), start, end)) == number:
            job.edits.pop(number, None)  # as it was found
        else:
            job.edits[number] = left
        if job.marks != before:
            searches.again(job)
        return JSONResponse({**left, "state": job.state})

    async def export(request: Request) -> Response:
        job, name = search_of(request, answered=True), request.query_params.get("format", "")
        if name not in FORMATS and name != "query":
            return refuse(404, f"no such format: {', '.join(FORMATS)}")
        async with drawing:
            text = await run_in_threadpool(make_export, job, collection, name, least_of(request))
        file = "query.json" if name == "query" else f"moments{FORMATS[name].suffixes[0]}"
        headers = {"Content-Disposition": f'attachment; filename="{file}"'}
        return Response(text, media_type="application/octet-stream", headers=headers)

    async def search(request: Request) -> Response:
        wanted = await read_search(request)
        everywhere, every = wanted.get("index") is True, wanted.get("every") is True
        query, reference = (library.get(wanted.get(name)) for name in ("query", "reference"))
        if query is None or (reference is None and not everywhere):
            return refuse(404, "no such video: choose a query and a reference")
        if everywhere and collection is None:
            return refuse(404, "no index here: relocal serve --index opens one")
        like = searches.get(str(wanted.get("like")))
        if like is None and "like" in wanted:
            return refuse(404, "no such search to learn from")
        examples = [] if like is None else learned(like, collection)
        start, end = (seconds(wanted.get(name)) for name in ("query_start", "query_end"))
        clip = VideoQuery(query.path, start, end)
        top_k = wanted.get("top_k", 10 if everywhere else 5)
        if type(top_k) is not int or not 1 <= top_k <= 50:
            raise UsageError("top_k: 1 to 50 wanted")
        place = f"{indexed} videos" if reference is None or everywhere else reference.name
        work = searching(query, clip, None if everywhere else reference, top_k, every, examples)
        about: dict[str, Any] = {"query": query.key, "query_name": query.name, "place": place}
        about |= {"reference": None if everywhere else wanted.get("reference"), "every": every}
        about |= {"start": clip.start, "end": clip.end, "examples": examples}
        job = searches.submit(work, (query.name, place), about)
        if job is None:
            return refuse(429, "too many searches are waiting: try again when one is done")
        return JSONResponse({"id": job.key, "state": job.state}, 202)

    def searching(
        query: Entry,
        clip: VideoQuery,
        reference: Entry | None,
        top_k: int,
        every: bool,
        examples: Sequence[dict[str, Any]],
    ) -> Work:
        """The search of one video, or of the index where there is no ``reference``."""

        def stretches(good: bool) -> list[VideoQuery]:
            known = [(library.get(e["video"]), e) for e in examples if e["good"] is good]
            return [VideoQuery(v.path, e["start"], e["end"]) for v, e in known if v]

        said = sorted(examples, key=lambda e: not e["good"])  # the order in which they are read
        films = [query, *filter(None, (library.get(e["video"]) for e in said)), reference or query]

        def work(progress: Callable[[str], Progress], marks: Sequence[Mark]) -> Found | FoundVideos:
            left = iter(films)

            def title(file: str) -> Progress:
                return progress(next((f.name for f in left if f.path.name == file), query.name))

            shared: dict[str, Any] = {
                "top_k": top_k + sum(good for *_, good in marks),
                "also": stretches(True),
                "unlike": stretches(False),
                "every": every,
                "least": 0.0,
                "cache": cache,
                "progress": title,
                "backbone": backbone,
            }
            found: Found | FoundVideos
            try:
                if reference is not None:
                    shared |= {"judged": [mark[1:] for mark in marks], "rate_hz": rate_hz}
                    found = find_moments(clip, reference.path, model=matcher, **shared)
                else:
                    assert collection is not None
                    shared["judged"] = [(str(name), tuple(said)) for name, *said in marks]
                    found = find_in_index(clip, collection.index, collection.made, **shared)
                    # Answers are remembered; rows of long videos need not be.
                    found = replace(found, query=found.query[:0].clone(), query_video=None)
            except RelocalError as error:  # its path is nobody's business in a browser
                known = [film.name for film in films if str(film.path) == str(error.file)]
                raise RelocalError(": ".join([*known[:1], error.reason])) from None
            return replace(found, problems=by_name(found.problems, films))

        return work

    async def state(request: Request) -> Response:
        return JSONResponse(answer(search_of(request), collection))

    async def cancel(request: Request) -> Response:
        job = search_of(request)
        searches.cancel(job)
        return JSONResponse({"state": job.state})

    async def report(request: Request) -> Response:
        job = search_of(request, answered=True)
        async with drawing:
            html = await run_in_threadpool(make_report, job, collection, least_of(request))
        # The page forbids itself everything but its own pictures and style.
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def favicon(request: Request) -> Response:
        return Response(status_code=204)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(searches.close)

    return Starlette(
        routes=[
            Route("/favicon.ico", favicon),
            Route("/api/videos", videos),
            Route("/api/videos", upload, methods=["POST"]),
            Route("/api/example", example, methods=["POST"]),
            Route("/api/videos/{key}", play),
            Route("/api/videos/{key}/preview", preview),
            Route("/api/videos/{key}/pictures", pictures),
            Route("/api/index", index),
            Route("/api/formats", formats),
            Route("/api/searches", history),
            Route("/api/searches", search, methods=["POST"]),
            Route("/api/searches/{key}", state),
            Route("/api/searches/{key}", cancel, methods=["DELETE"]),
            Route("/api/searches/{key}/moments/{number}", edit, methods=["PATCH"]),
            Route("/api/searches/{key}/export", export),
            Route("/api/searches/{key}/report", report),
            Mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True)),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers=dict.fromkeys((HTTPException, RelocalError, TimeoutError), _refusal),
        lifespan=lifespan,
    )


class Film(FileResponse):
    """A file that may grow or shrink while it is sent: as many bytes as were stated, or fewer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; what ends too early is left unfinished, and the connection closed."""
        left = 0

        async def bounded(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                left = int(dict(message["headers"])[b"content-length"])
            elif message["type"] == "http.response.body" and scope["method"] != "HEAD":
                body = message.get("body", b"")[:left]
                if not body:  # all was sent, or there is no more of it
                    raise EOFError
                left -= len(body)
                message = {**message, "body": body, "more_body": left > 0}
            await send(message)

        with suppress(EOFError, PermissionError):
            await super().__call__(scope, receive, bounded)


async def _refusal(request: Request, error: Exception) -> Response:
    """What a route raised, as an answer."""
    if isinstance(error, HTTPException):
        return refuse(error.status_code, error.detail)
    if isinstance(error, RelocalError):
        return refuse(400, error.reason)
    return refuse(408, "it came too slowly")


class Connection(H11Protocol):
    """A connection that does not last for ever; uvicorn itself waits for the first request."""

    idle, stalled = IDLE, STALLED
    _seen: tuple[object, ...] = ()
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch it from its beginning."""
        super().connection_made(transport)
        self._look()

    def shutdown(self) -> None:
        """Let an answer be finished when the server ends, but not for long."""
        super().shutdown()
        self.loop.call_later(0.5, self.transport.abort)

    def _look(self) -> None:
        """Close it where nothing has changed for too long."""
        if self not in self.connections:
            return
        waits = self.cycle is None or self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        seen = (self.cycle, waits, unsent)
        if seen != self._seen:
            self._seen, self._since = seen, self.loop.time()
        unmoved = self.loop.time() - self._since
        if unmoved >= (self.stalled if unsent else self.idle) and (waits or unsent):
            self.transport.abort()
        else:
            self.loop.call_later(self.idle / 4, self._look)


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server with bounds on what its clients may hold."""
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,  # for those that play or upload when it ends
    )
    return uvicorn.Server(config)


def run(
    folder: Path | None = None,
    *,
    index: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    model: Relocalizer | None = None,
    backbone: Backbone | None = None,
    rate_hz: float | None = None,
    max_bytes: int = 2 * 2**30,
    started: Callable[[], None] | None = None,
) -> None:
    """Serve the page until interrupted; uploads and features are removed at the end.

    Args:
        folder: Videos to offer beside uploads.
        index: An index of videos to search together and to offer.
        host: Address to listen on.
        port: Port to listen on.
        model: The pretrained matcher in one video, the contrast matcher in an index, where None.
        backbone: EfficientNet-Lite0 where None.
        rate_hz: Frames per second of searches in one video; follows the query where None.
        max_bytes: Size of one upload.
        started: Called once the port is open.

    Raises:
        UsageError: The port is taken, or the folder or the index holds no videos.
        SearchIndexError: The index cannot be used, or was made with another model or network.
        FeatureError: The model takes other features than the network gives.
    """
    # A search that is still at work when the end comes may write a moment longer.
    with tempfile.TemporaryDirectory(
        prefix="relocal-serve-", ignore_cleanup_errors=True
    ) as scratch:
        uploads = Path(scratch) / "uploads"
        uploads.mkdir(mode=0o700)
        library = Library(uploads, folder, max_bytes=max_bytes)
        network = EfficientNetLite0() if backbone is None else backbone
        indexed = Calibrated(ContrastMatcher()) if model is None else model
        indexed.check_width(network.dim, network.name)
        collection = None
        if index is not None:
            collection = Collection(index, indexed, library, network)
            collection.made.check(network)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family)
        except (OSError, TypeError, ValueError) as error:  # or no name of a machine at all
            why = getattr(error, "strerror", None) or error
            reason = f"port {port} of {host} cannot be opened ({why}): try another --port"
            raise UsageError(reason) from None
        names = [socket.gethostname()] if host in EVERYWHERE else []
        with listening:
            hosts = ("127.0.0.1", "localhost", "::1", host, *names)
            # What is kept is for speed alone: it leaves room for uploads, previews and the system.
            most = shutil.disk_usage(scratch).free // 4
            kept = FeatureCache(Path(scratch) / "features", most, needed=False)
            given = library, SearchQueue(), kept, model, network
            app = make_app(*given, rate_hz=rate_hz, collection=collection, hosts=hosts)
            if started is not None:
                started()
            with suppress(KeyboardInterrupt):  # the usual end
                server_of(app).run(sockets=[listening])
