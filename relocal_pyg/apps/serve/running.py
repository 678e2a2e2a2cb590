"""Serving until interrupted."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from relocal_pyg.apps.serve.app import make_app
from relocal_pyg.apps.serve.jobs import SearchQueue
from relocal_pyg.apps.serve.library import Collection, Library
from relocal_pyg.apps.serve.requests import EVERYWHERE
from relocal_pyg.errors import UsageError
from relocal_pyg.models import Calibrated, ContrastMatcher
from relocal_pyg.models.base import Relocalizer
from relocal_pyg.video.backbones import Backbone, EfficientNetLite0
from relocal_pyg.video.find import check_width
from relocal_pyg.video.rows import FeatureCache

#: Connections at once; more are answered 503. A browser opens six.
MAX_CONNECTIONS = 64
#: Seconds after which a connection without a request is closed, and one that takes nothing of an
#: answer: a player that is paused takes nothing, and asks again.
IDLE, STALLED = 10.0, 300.0


class Connection(H11Protocol):
    """A connection that does not last for ever; uvicorn itself waits for the first request."""

    idle, stalled = IDLE, STALLED
    _seen: tuple[object, ...] = ()
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch it from its beginning."""
        super().connection_made(transport)
        self._look()

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
        check_width(indexed, network)
        collection = None
        if index is not None:
            collection = Collection(index, indexed, library)
            collection.made.check(network)
        try:
            listening = socket.create_server((host, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {host} cannot be opened ({error.strerror}): try another --port"
            ) from None
        names = [socket.gethostname()] if host in EVERYWHERE else []
        with listening:
            app = make_app(
                library,
                SearchQueue(),
                FeatureCache(Path(scratch) / "features"),
                model,
                network,
                rate_hz=rate_hz,
                collection=collection,
                hosts=("127.0.0.1", "localhost", "::1", host, *names),
            )
            if started is not None:
                started()
            with suppress(KeyboardInterrupt):  # the usual end
                server_of(app).run(sockets=[listening])
