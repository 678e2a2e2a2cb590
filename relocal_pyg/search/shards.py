"""Scoring a corpus in shards: any engine that can call a function on a record."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from relocal_pyg.errors import FeatureError, RelocalError, RunError, UsageError, check_number
from relocal_pyg.io.read import version_of
from relocal_pyg.io.write import replace_file

#: Seconds after which a worker that has said nothing is given up.
PATIENCE = 3600.0
_NUMBERS = dict.fromkeys(("start", "end", "score"), "float64")
_COLUMNS = {"video_id": "string", "rank": "int32", **_NUMBERS}
#: Seconds that a worker is given to end.
_GRACE = 10.0


@dataclass(frozen=True)
class ShardTask:
    """Score some videos of a feature file against one query; plain values, cheap to send.

    Attributes:
        features: HDF5 file of the videos.
        key: Name of the feature array inside a video's group.
        video_ids: The videos of this shard.
        query: ``.npy`` file of the clip's features ``[m, F]``.
        model: Checkpoint folder, or None for the contrast matcher.
        out: The parquet file to write.
        seconds_per_step: Duration of one feature step.
        top_k: Moments kept of each video.
    """

    features: Path
    key: str
    video_ids: tuple[str, ...]
    query: Path
    model: Path | None
    out: Path
    seconds_per_step: float = 1.0
    top_k: int = 5


def score_shard(task: ShardTask) -> Path:
    """Score a shard and write its answers as parquet, all or nothing.

    Columns: ``video_id``, ``rank`` (from 1), ``start`` and ``end`` in seconds, ``score``. What is
    written for a video does not depend on which other videos the shard holds.

    Raises:
        RelocalError: The features, the query or the model cannot be used.
        UsageError: pyarrow is not installed.
    """
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.io.read import read_array
    from relocal_pyg.models import ContrastMatcher, load_model

    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError("parquet needs pyarrow: pip install relocal_pyg[search]") from None
    matcher = ContrastMatcher() if task.model is None else load_model(task.model)
    query = read_array(task.query, FeatureError)
    store = FeatureStore(task.features, key=task.key)
    rows = []
    for video_id in task.video_ids:
        moments = matcher.localize(
            query, store.read(video_id), top_k=task.top_k, seconds_per_step=task.seconds_per_step
        )
        for rank, m in enumerate(moments, start=1):
            row = (video_id, rank, m.start, m.end, m.score)
            rows.append(dict(zip(_COLUMNS, row, strict=True)))
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(_COLUMNS.items())))
    with replace_file(task.out) as temporary:
        pq.write_table(table, temporary)
    return task.out


def make_tasks(whole: ShardTask, folder: Path, num_shards: int) -> list[ShardTask]:
    """Cut a task into shards of consecutive videos, each with a file in ``folder``.

    The file's name says what is asked of which versions of which files: an answer to something else
    is never taken for that of a shard.
    """
    ids = whole.video_ids
    num_shards = max(1, min(num_shards, len(ids)))
    bounds = [len(ids) * number // num_shards for number in range(num_shards + 1)]
    given = [path for path in (whole.features, whole.query, whole.model) if path is not None]
    files = sorted(each for path in given for each in (path, *path.rglob("*")))
    versions = [(os.fspath(file), version_of(file)) for file in files]
    tasks = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        task = replace(whole, video_ids=ids[start:end], out=folder)
        asked = hashlib.sha256(repr((task, versions)).encode("utf-8", "replace")).hexdigest()
        tasks.append(replace(task, out=folder / f"part-{number:05d}-{asked[:16]}.parquet"))
    return tasks


def score_shards(
    whole: ShardTask, num_shards: int, *, workers: int = 1, patience: float = PATIENCE
) -> Path:
    """Score a corpus by local processes and merge the shards into ``whole.out``.

    A shard whose file is there already is not scored again, so that a killed run goes on; one of
    another query, model or version of the features is. ``patience`` is how many seconds a worker
    may take for a shard; one worker works in this process.

    Returns:
        ``whole.out``; the same bytes for every number of shards and workers.

    Raises:
        RelocalError: As :func:`score_shard`.
        UsageError: ``workers`` is less than 1.
        RunError: A worker was killed, or took longer than ``patience`` for a shard.
    """
    check_number(workers, "workers", least=1, whole=True)
    folder = whole.out.with_name(whole.out.name + ".parts")
    tasks = make_tasks(whole, folder, num_shards)
    left = [task for task in tasks if not task.out.exists()]
    if workers == 1:
        for task in left:
            score_shard(task)
    else:
        _share_out(left, workers, patience, folder)
    return merge_shards([task.out for task in tasks], whole.out)


def _share_out(tasks: Sequence[ShardTask], workers: int, patience: float, folder: Path) -> None:
    """Give tasks to worker processes one by one, and watch them: no wait is without end."""
    context, left = get_context("spawn"), list(reversed(tasks))
    working: dict[Any, BaseProcess] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # a worker that dies now ends its pipe, whenever that is
            working[ours] = process
        busy = [ours for ours in working if _give(ours, left)]
        while busy:
            ready = wait(busy, patience)
            if not ready:
                raise RunError(
                    f"no shard was finished in {patience:g} s: run it again, finished shards are "
                    "kept",
                    file=folder,
                )
            for heard in ready:
                _hear(heard, folder)
                if not _give(heard, left):
                    busy.remove(heard)
    finally:
        for worker in working.values():
            worker.terminate()
        for worker in working.values():
            worker.join(_GRACE)
            if worker.is_alive():
                worker.kill()


def _give(worker: Any, left: list[ShardTask]) -> bool:
    """Send a worker the next task, where there is one."""
    if not left:
        return False
    with contextlib.suppress(OSError):  # it died: its pipe tells when it is listened to
        worker.send(left.pop())
    return True


def _hear(worker: Any, folder: Path) -> None:
    """Take a worker's answer to a task."""
    try:
        failed = worker.recv()
    except (EOFError, OSError):
        raise RunError(
            "a worker was killed: run it again, finished shards are kept", file=folder
        ) from None
    if failed is not None:
        raise failed


def _work(parent: Any) -> None:
    """A worker process: score what comes, answer None or the error."""
    torch.set_num_threads(1)
    while True:
        try:
            task = parent.recv()
        except EOFError:
            return
        try:
            score_shard(task)
            parent.send(None)
        except RelocalError as error:
            parent.send(error)
        except Exception as error:  # whatever it is, the parent must hear of it
            parent.send(RunError(f"a worker failed: {error!r}"))


def score_shards_ray(whole: ShardTask, num_shards: int) -> Path:
    """:func:`score_shards` by Ray Data on a cluster, or on this machine; the same bytes.

    Every node must see the files under the same names. Shards that are there already are not scored
    again; Ray itself tries a shard again whose worker died.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed: pip install relocal_pyg[cluster]") from None
    folder = whole.out.with_name(whole.out.name + ".parts")
    tasks = make_tasks(whole, folder, num_shards)
    left = [{"shard": number} for number, task in enumerate(tasks) if not task.out.exists()]

    def score(row: dict[str, int]) -> dict[str, int]:
        score_shard(tasks[row["shard"]])
        return row

    if left:
        ray.data.from_items(left).map(score).materialize()
    return merge_shards([task.out for task in tasks], whole.out)


def merge_shards(parts: Sequence[Path], out: Path) -> Path:
    """Write shards, in order, as one parquet file with one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(part) for part in parts]).combine_chunks()
    with replace_file(out) as temporary:
        pq.write_table(table, temporary)
    return out
