"""Reading what a browser sent, within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relocal_pyg.errors import UsageError, VideoError
from relocal_pyg.io.read import parse_time

HEADERS = {
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


class Guard:
    """Headers on every answer; requests that other pages make are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            request = Request(scope)
            origin = request.headers.get("origin")
            site = request.headers.get("sec-fetch-site", "same-origin")
            own = f"{request.url.scheme}://{request.headers.get('host', '')}"
            if origin not in (None, own) or site not in ("same-origin", "none"):
                refusal = refuse(403, "requests of other pages are refused")
                await refusal(scope, receive, send_with_headers)
                return
        await self.app(scope, receive, send_with_headers)


def refuse(code: int, reason: str) -> JSONResponse:
    """An answer that says why not."""
    return JSONResponse({"error": reason}, code)


_MAX_JSON = 10_000


async def receive(request: Request, place: Path, size: int) -> None:
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


async def read_search(request: Request) -> dict[str, Any]:
    """Read a JSON object of at most 10,000 bytes.

    Raises:
        UsageError: The body is something else, or a plain form of another page could have sent it.
    """
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


def seconds(value: object) -> float | None:
    """A time of a request; None where it is left out.

    Raises:
        UsageError: It is no finite number and no ``h:mm:ss``.
    """
    return None if value is None else parse_time(value, "a time")
