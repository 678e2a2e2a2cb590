"""Reading what a browser sent, within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from relocal_pyg.errors import UsageError, VideoError

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
        UsageError: It is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("times: seconds wanted")
    return float(value)
