"""Reading what a browser sent, within bounds."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
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
#: Listening there, a machine is reached by every address that it has.
EVERYWHERE = frozenset(["0.0.0.0", "::"])  # noqa: S104 - looked for, not listened on


class Guard:
    """Headers on every answer; requests that other pages make are refused.

    Args:
        hosts: Names in the ``Host`` header that are answered. A page elsewhere that points a name
            of its own at this machine (DNS rebinding) is not. Where they say :data:`EVERYWHERE`,
            any address is: a page elsewhere has a name.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400 or 403."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http" and not self._is_ours(Request(scope).headers.get("host", "")):
            await refuse(400, "this name is not answered")(scope, receive, send_with_headers)
            return
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

    def _is_ours(self, header: str) -> bool:
        try:
            name = urlsplit(f"//{header}").hostname or ""
            if set(header) & set("@/\\"):
                return False
            return name in self.hosts or bool(
                self.hosts & EVERYWHERE and ipaddress.ip_address(name)
            )
        except ValueError:
            return False


def refuse(code: int, reason: str) -> JSONResponse:
    """An answer that says why not."""
    return JSONResponse({"error": reason}, code)


_MAX_JSON = 10_000
#: Seconds that a body may pause, and bytes a second that it has to keep up with on the whole.
PAUSE, SLOWEST = 20.0, 50_000


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces, as long as it keeps coming; ``TimeoutError`` where it does not."""
    clock, pieces = asyncio.get_running_loop().time, request.stream()
    began, done = clock(), 0
    while True:
        left = began + PAUSE + done / SLOWEST - clock()
        piece = await asyncio.wait_for(anext(pieces, None), min(PAUSE, max(left, 0.0)))
        if piece is None:
            return
        done += len(piece)
        yield piece


async def receive(request: Request, place: Path, size: int) -> None:
    """Write the body, which must be as long as it said."""
    done = 0
    with place.open("xb") as file:
        async for chunk in body_of(request):
            done += len(chunk)
            if done > size:
                raise VideoError("is longer than it said")
            await run_in_threadpool(file.write, chunk)
    if done < size:
        raise VideoError("ends before it should")


async def read_search(request: Request) -> dict[str, Any]:
    """Read a JSON object of at most 10,000 bytes."""
    kind = request.headers.get("content-type", "").split(";")[0]
    if kind.strip().lower() != "application/json":
        raise UsageError("Content-Type application/json wanted")
    body = b""
    try:
        async for chunk in body_of(request):
            body += chunk
            if len(body) > _MAX_JSON:
                raise UsageError("the request is too long")
    except ClientDisconnect:
        raise UsageError("broken off") from None
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None
    if not isinstance(wanted, dict):
        raise UsageError("the request is no JSON object")
    return wanted


def seconds(value: object) -> float | None:
    """A time of a request; None where it is left out."""
    return None if value is None else parse_time(value, "a time")
