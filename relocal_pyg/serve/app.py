"""The web application: routes, limits and headers. Starlette does the serving."""

from __future__ import annotations

import json
import mimetypes
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch.nn import functional

from relocal_pyg.errors import RelocalError, UsageError, VideoError
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.serve.jobs import Job, SearchQueue
from relocal_pyg.serve.library import Entry, Library
from relocal_pyg.video.backbones import Backbone, EfficientNetLite0
from relocal_pyg.video.cache import FeatureCache
from relocal_pyg.video.extract import Progress
from relocal_pyg.video.page import write_found_page
from relocal_pyg.video.search import Found, VideoQuery, find_moments

_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MAX_JSON = 10_000
_MAX_POINTS = 800
_MAX_UPLOADS = 2


class _Guard:
    """Headers on every answer; requests that other pages make are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            request = Request(scope)
            origin = request.headers.get("origin")
            site = request.headers.get("sec-fetch-site", "same-origin")
            own = f"{request.url.scheme}://{request.headers.get('host', '')}"
            if origin not in (None, own) or site not in ("same-origin", "none"):
                refusal = _refuse(403, "requests of other pages are refused")
                await refusal(scope, receive, send_with_headers)
                return
        await self.app(scope, receive, send_with_headers)


def make_app(
    library: Library,
    searches: SearchQueue,
    cache: FeatureCache,
    *,
    model: Relocalizer | None = None,
    backbone: Callable[[], Backbone] = EfficientNetLite0,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
) -> Starlette:
    """Build the application.

    Args:
        library: The videos.
        searches: Closed when the application shuts down.
        cache: Features of videos met before.
        model: The training-free contrast matcher where None.
        backbone: Makes the network, at the first search.
        hosts: Names in the ``Host`` header that are answered. A page elsewhere that points a name
            of its own at this machine (DNS rebinding) is not.
    """
    loaded: list[Backbone] = []
    uploading = 0

    async def videos(request: Request) -> Response:
        return JSONResponse([_describe(entry) for entry in library.entries()])

    async def upload(request: Request) -> Response:
        nonlocal uploading
        # This type cannot come from a plain form of another page.
        if request.headers.get("content-type") != "application/octet-stream":
            return _refuse(415, "Content-Type application/octet-stream wanted")
        stated = request.headers.get("content-length", "")
        size = int(stated) if re.fullmatch(r"[0-9]{1,15}", stated) else None
        if size is None:
            return _refuse(411, "the size of the file has to be stated")
        if size > library.max_bytes:
            return _refuse(413, f"the file is larger than {library.max_bytes / 2**20:.0f} MB")
        if uploading >= _MAX_UPLOADS:
            return _refuse(503, "other files are being uploaded: try again in a moment")
        if not library.reserve(size):
            return _refuse(507, "there is no room for more uploads: start relocal serve anew")
        uploading += 1
        place, kept = library.place(), False
        try:
            await _receive(request, place, size)
            name = Path(unquote(request.headers.get("x-file-name", ""))).name
            entry = await run_in_threadpool(library.add, place, name, uploaded=True)
            kept = True
            return JSONResponse(_describe(entry), 201)
        except VideoError as error:
            return _refuse(415, error.reason)
        except ClientDisconnect:
            return _refuse(400, "broken off")
        except OSError:
            return _refuse(507, "the file could not be stored")
        finally:
            uploading -= 1
            if not kept:
                place.unlink(missing_ok=True)
                library.release(size)

    async def play(request: Request) -> Response:
        entry = library.get(request.path_params["key"])
        if entry is None:
            return _refuse(404, "no such video")
        kind = mimetypes.guess_type(entry.name)[0] or ""
        kind = kind if kind.startswith("video/") else "video/mp4"
        return FileResponse(entry.path, media_type=kind)

    async def search(request: Request) -> Response:
        try:
            wanted = await _read_search(request)
            query, reference = (library.get(wanted.get(name)) for name in ("query", "reference"))
            if query is None or reference is None:
                return _refuse(404, "no such video: choose a query and a reference")
            start, end = (_seconds(wanted.get(name)) for name in ("query_start", "query_end"))
            clip = VideoQuery(query.path, start, end)
            top_k = wanted.get("top_k", 5)
            if type(top_k) is not int or not 1 <= top_k <= 50:
                raise UsageError("top_k: 1 to 50 wanted")
        except RelocalError as error:
            return _refuse(400, error.reason)

        def work(progress: Callable[[str], Progress]) -> Found:
            if not loaded:
                loaded.append(backbone())
            return find_moments(
                clip,
                reference.path,
                model=model,
                backbone=loaded[0],
                top_k=top_k,
                cache=cache,
                progress=lambda file: progress(
                    query.name if file == query.path.name else reference.name
                ),
            )

        job = searches.submit(work, (query.name, reference.name))
        if job is None:
            return _refuse(429, "too many searches are waiting: try again when one is done")
        return JSONResponse({"id": job.key, "state": job.state}, 202)

    async def state(request: Request) -> Response:
        job = searches.get(request.path_params["key"])
        return _refuse(404, "no such search") if job is None else JSONResponse(_answer(job))

    async def cancel(request: Request) -> Response:
        job = searches.get(request.path_params["key"])
        if job is None:
            return _refuse(404, "no such search")
        searches.cancel(job)
        return JSONResponse({"state": job.state})

    async def report(request: Request) -> Response:
        job = searches.get(request.path_params["key"])
        if job is None or job.found is None:
            return _refuse(404, "no such answer")
        html = await run_in_threadpool(_report, job.found, job.names)
        # The page forbids itself everything but its own pictures and style.
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def favicon(request: Request) -> Response:
        return Response(status_code=204)

    def static(name: str, kind: str) -> Route:
        async def serve(request: Request) -> Response:
            return FileResponse(_STATIC / name, media_type=kind)

        return Route("/" if name == "index.html" else f"/{name}", serve)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(searches.close)

    return Starlette(
        routes=[
            static("index.html", "text/html"),
            static("page.css", "text/css"),
            static("page.js", "text/javascript"),
            Route("/favicon.ico", favicon),
            Route("/api/videos", videos),
            Route("/api/videos", upload, methods=["POST"]),
            Route("/api/videos/{key}", play),
            Route("/api/searches", search, methods=["POST"]),
            Route("/api/searches/{key}", state),
            Route("/api/searches/{key}", cancel, methods=["DELETE"]),
            Route("/api/searches/{key}/report", report),
        ],
        middleware=[
            Middleware(_Guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


def run(
    folder: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    model: Relocalizer | None = None,
    max_bytes: int = 2 * 2**30,
) -> None:
    """Serve the page until interrupted; uploads and features are removed at the end.

    Args:
        folder: Videos to offer beside uploads.
        host: Address to listen on.
        port: Port to listen on.
        model: The training-free contrast matcher where None.
        max_bytes: Size of one upload.
    """
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="relocal-serve-") as scratch:
        uploads = Path(scratch) / "uploads"
        uploads.mkdir(mode=0o700)
        library = Library(uploads, folder, max_bytes=max_bytes)
        hosts = tuple({"127.0.0.1", "localhost", host})
        cache = FeatureCache(Path(scratch) / "features")
        app = make_app(library, SearchQueue(), cache, model=model, hosts=hosts)
        uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


async def _receive(request: Request, place: Path, size: int) -> None:
    """Write the body, which must be as long as it said."""
    done = 0
    with place.open("xb") as file:
        async for chunk in request.stream():
            done += len(chunk)
            if done > size:
                raise VideoError("is longer than it said")
            await run_in_threadpool(file.write, chunk)
    if done < size:
        raise VideoError("ends before it should")


async def _read_search(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type") != "application/json":
        raise UsageError("Content-Type application/json wanted")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_JSON:
            raise UsageError("the request is too long")
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None
    if not isinstance(wanted, dict):
        raise UsageError("the request is no JSON object")
    return wanted


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("times: seconds wanted")
    return float(value)


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.key,
        "name": entry.name,
        "duration": entry.duration,
        "uploaded": entry.uploaded,
    }


def _answer(job: Job) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": job.key,
        "state": job.state,
        "doing": job.doing,
        "share": job.share,
        "error": job.error,
    }
    if job.found is not None:
        found = job.found
        count = min(len(found.similarity), _MAX_POINTS)
        curve = functional.adaptive_max_pool1d(found.similarity[None], count)[0]
        answer |= {
            "moments": [
                {"start": m.start, "end": m.end, "score": round(m.score, 4)} for m in found.moments
            ],
            "curve": [round(value, 3) for value in curve.tolist()],
            "reference_seconds": found.reference_seconds,
            "matcher": found.matcher,
            "settings": found.settings,
            # The paths before the colon are the server's.
            "problems": [problem.split(": ", 1)[-1] for problem in found.problems],
        }
    return answer


def _report(found: Found, names: tuple[str, str]) -> str:
    with tempfile.TemporaryDirectory(prefix="relocal-report-") as folder:
        target = Path(folder) / "report.html"
        write_found_page(target, found, names=names)
        return target.read_text(encoding="utf-8")


def _refuse(code: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, code)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refuse(error.status_code, error.detail)
