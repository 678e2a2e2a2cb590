"""``relocal serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from relocal_pyg.apps.cli.find import choose_matcher
from relocal_pyg.apps.cli.options import BackboneOptions, Count, DeviceName, Model, load_network
from relocal_pyg.errors import UsageError


def serve(
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = None,
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    index: Path | None = None,
    port: Count = 8765,
    host: str = "127.0.0.1",
    model: Model = None,
    device: DeviceName = "auto",
    max_upload_mb: Count = 2048,
) -> None:
    """Open a page on this machine to choose videos, mark a query and play what is found.

    Args:
        folder: Offer the videos of this folder, beside those uploaded.
        network: Which network turns frames into features; that of the run's own videos where left
            out.
        index: Search all videos of this index at once; "relocal index" makes it from a folder.
        port: Port to listen on.
        host: Address to listen on; anything but 127.0.0.1 lets others in, and there is no password.
        model: A trained run or checkpoint, "pretrained" or "contrast", the one that the index was
            made with; "pretrained" in one video and "contrast" in an index where left out.
        device: Where networks run; "auto" is cuda where there is one.
        max_upload_mb: Size of one upload in megabytes.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UsageError("the page needs its packages: pip install 'relocal_pyg[serve]'") from None
    if not 1 <= port <= 65535 or max_upload_mb < 1:
        raise UsageError("a port of 1 to 65535 and at least 1 megabyte wanted")
    if host not in ("127.0.0.1", "localhost"):
        print(f"warning: {host} can be reached by others, and there is no password")
    from relocal_pyg.apps.serve import run

    matcher, why = choose_matcher(model, device, "pretrained")
    if index is not None and network == BackboneOptions():
        from relocal_pyg.video.index import IndexedVideos

        network = BackboneOptions.of(IndexedVideos.load(index).network)
    backbone, rate = load_network(network, None, model, matcher, device)
    also = "" if index is None or model is not None else "; in the index: contrast"

    def started() -> None:
        print(f"matcher: {why}{also}")
        print(f"open http://{host}:{port} (Ctrl-C ends it)", flush=True)

    run(
        folder,
        index=index,
        host=host,
        port=port,
        model=None if model is None else matcher,
        backbone=backbone,
        rate_hz=rate,
        max_bytes=max_upload_mb * 2**20,
        started=started,
    )
