"""``relocal watch``, ``batch`` and ``serve``: many searches, with everything loaded once."""

from __future__ import annotations

import functools
import json
import math
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from relocal_pyg.apps.cli.exports import place_name, plain_answers
from relocal_pyg.apps.cli.find import QueryOptions, Wanted, find_in_features, likely, read_features
from relocal_pyg.apps.cli.options import (
    BackboneOptions,
    Count,
    DeviceName,
    Model,
    Output,
    Rate,
    Steps,
    StepSeconds,
    choose_matcher,
    is_features,
    load_network,
    number,
    paths_of,
    say,
    split_place,
)
from relocal_pyg.apps.cli.search import look_at
from relocal_pyg.errors import (
    AnnotationError,
    OutputError,
    RelocalError,
    RunError,
    UsageError,
    ascii_line,
)
from relocal_pyg.formats.clips import table_text
from relocal_pyg.formats.rows import table_records
from relocal_pyg.io.read import parse_stretch, parse_time, read_text, version_of
from relocal_pyg.io.record import Journal, sha256_file
from relocal_pyg.io.write import replace_text

if TYPE_CHECKING:
    from relocal_pyg.models import Calibrated
    from relocal_pyg.moments import Moment
    from relocal_pyg.video.rows import FeatureCache

#: Seconds after which a command of --run is ended: it holds up all other files.
RUN_SECONDS = 3600.0
#: Columns of the table of a batch.
COLUMNS = ("query", "query_start", "query_end", "reference")
ANSWER = ("rank", "start", "end", "score", "probability", "presence")
#: Query, where it starts and ends, and reference, as a table says them.
Row = tuple[str, str, str, str]


def _searcher(
    model: Path | None,
    network: BackboneOptions,
    rate: float | None,
    top_k: int,
    cache: FeatureCache,
    device: DeviceName,
) -> tuple[
    Callable[[QueryOptions, str | None, str], list[Moment]],
    Callable[[QueryOptions, str | None], None],
]:
    """What answers a query in a reference as "relocal find" does, loading everything once.

    And what refuses a query that no reference could be searched for.
    """
    known = functools.cache(choose_matcher)

    def choose(wanted: Path | None, device: DeviceName, usual: str = "") -> tuple[Calibrated, str]:
        return known(wanted, device, usual if wanted is None else "")  # each model once

    given = None if model is None else choose(model, device)[0]
    loaded = functools.cache(lambda: load_network(network, rate, model, given, device))

    def answer(asked: QueryOptions, query: str | None, reference: str) -> list[Moment]:
        if query is not None and is_features(query):
            how = Wanted(top_k, every=False, least=0.0, explain=False)
            return find_in_features(query, reference, asked, how, device, choose).moments
        from relocal_pyg.video.find import find_moments

        backbone, rate_hz = loaded()
        also, unlike = asked.stretches()
        return find_moments(
            asked.video(query),
            reference,
            model=given,
            backbone=backbone,
            rate_hz=rate_hz,
            top_k=top_k,
            also=also,
            unlike=unlike,
            cache=cache,
        ).moments

    def check(asked: QueryOptions, query: str | None) -> None:
        from relocal_pyg.video.decode import probe
        from relocal_pyg.video.query import Asked, StillQuery

        if query is not None and is_features(query):
            if rate is not None:
                raise UsageError("--rate is of video files, these are features")
            asked.refuse_films(network)
            channels = read_features(query, asked.key).shape[1]
            asked.rows(query, channels)
            asked.examples(channels)
            return
        wanted = look_at(asked, query)
        if isinstance(wanted, StillQuery):
            Asked.still(wanted, loaded()[0], 1.0)
        else:
            wanted.check_start(probe(wanted.path).duration or math.inf)

    return answer, check


def watch(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    asked: QueryOptions = QueryOptions(),  # noqa: B008 - frozen
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    out: Annotated[Path, Output(folder="watch")] = Path("relocal_watch"),
    top_k: Count = 5,
    min_probability: Annotated[float, number("P", least=0, most=1)] = 0.3,
    rate: Rate = None,
    settle: Annotated[float, number("SECONDS", least=0, most=86400)] = 5.0,
    run: Annotated[str | None, tyro.conf.arg(metavar="COMMAND")] = None,
    once: bool = False,
    device: DeviceName = "auto",
) -> None:
    """Search every file that comes into FOLDER, such as segments of a recorder, for a clip.

    The first --query is the clip, a video file; or features, "x.npy", and FOLDER is watched for
    ".npy".
    Each file is searched once, when it has stopped growing; one that is written over is searched
    again. For each, OUT/answers.jsonl gets a line of JSON and the line is printed. Ended or killed
    at any moment, the command goes on where it was when it is given again.

    Args:
        folder: The folder, with its subfolders.
        asked: What is looked for, and with which model.
        network: Videos: which network turns frames into features.
        out: Folder for the answers, which is also how a later call knows what is done.
        top_k: How many moments of a file at most.
        min_probability: Leave out moments that are less probable to be right; few pass .5 where
            nobody calibrated on labels.
        rate: Videos: frames per second looked at; follows the clip's length where left out.
        settle: Seconds without a change after which a file counts as finished.
        run: Run this for every file in which something was found, with the line on its standard
            input; no shell. After a kill it may run once more for a line, never not at all; it is
            ended after an hour.
        once: End when the files that are there have been searched.
        device: Where the networks run; "auto" takes a graphics processor where there is one.
    """
    from relocal_pyg.video.folder import VIDEO_SUFFIXES, settled_files
    from relocal_pyg.video.rows import FeatureCache

    if asked.feedback is not None:
        raise UsageError("--feedback is of one search: name stretches with --query and --not")
    if not folder.is_dir():
        raise UsageError("is no folder", file=folder)
    command = None if run is None else _words(run)
    query = None
    if asked.also and asked.query_text is None and asked.query_image is None:
        query, start, end = parse_stretch(asked.also[0])
        asked = replace(asked, also=asked.also[1:])
        if (start, end) != (None, None):
            asked = replace(asked, query_start=start, query_end=end)
        query, asked = asked.opened(query)
    shown = [*paths_of([query, asked.query_image, *(place for place, *_ in asked.said())])]
    shown += _weights(asked.model, network)
    about = {
        "query": query and os.path.realpath(query),
        "content": sorted({sha256_file(each) for each in shown if each.is_file()}),
        **{name: str(v) if isinstance(v, Path) else v for name, v in asdict(asked).items()},
        "network": network.plain(),
        **{"top_k": top_k, "rate": rate, "min_probability": min_probability},
    }
    answered = {"file": str, "size": int, "changed": int}
    with tempfile.TemporaryDirectory(prefix="relocal-watch-") as features:
        cache = FeatureCache(features, most=1 << 30)
        answer, check = _searcher(asked.model, network, rate, top_k, cache, device)
        check(asked, query)  # before a file is said to have been searched for it
        with (
            closing(Journal(out / "answers.jsonl", about, answered, {"ran": int})) as journal,
            suppress(KeyboardInterrupt),  # the usual end
        ):
            done = {tuple(map(each.get, answered)) for each in journal.records}
            told_of = {each.get("ran") for each in journal.records}
            for number_of, told in enumerate(list(journal.records)):
                if command and told.get("moments") and number_of not in told_of:
                    _run(command, told, journal, number_of)

            locked: set[Path] = set()

            def wanted(file: Path, version: tuple[int, int]) -> bool:
                if (file.relative_to(folder).as_posix(), *version) in done:
                    return False
                if may_read := os.access(file, os.R_OK):
                    locked.discard(file)
                elif file not in locked:  # searched as soon as it may be read
                    locked.add(file)
                    warnings.warn(f"{file}: may not be read", stacklevel=2)
                return may_read

            suffixes = (".npy",) if query and is_features(query) else VIDEO_SUFFIXES
            for file, version in settled_files(
                folder, wanted, settle=settle, once=once, suffixes=suffixes
            ):
                name = file.relative_to(folder).as_posix()
                record: dict[str, Any] = {"file": name, "size": version[0], "changed": version[1]}
                try:
                    found = answer(asked, query, str(file))
                except OutputError:  # of this machine, not of the file
                    raise
                except RelocalError as error:
                    record["error"] = error.reason
                else:
                    record["moments"] = plain_answers(
                        (name, each) for each in found if likely(each, min_probability)
                    )
                if version_of(file) != version:  # grown or gone meanwhile
                    continue
                journal.append(record)
                done.add((name, *version))
                print(json.dumps(record), flush=True)
                if command and record.get("moments"):
                    _run(command, record, journal, len(journal.records) - 1)


def _words(command: str) -> list[str]:
    """A command in words, refused before hours of searching where it is none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--run: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"--run: no such program: {' '.join(words[:1]) or 'an empty command'}")
    return words


def _run(command: list[str], record: dict[str, Any], journal: Journal, number_of: int) -> None:
    code: int | None = None
    line = json.dumps(record).encode()
    try:
        code = subprocess.run(command, input=line, timeout=RUN_SECONDS).returncode
        said = f"ended with {code}"
    except subprocess.TimeoutExpired:
        said = f"took more than {RUN_SECONDS:g} s and was ended"
    except (OSError, ValueError) as error:
        raise UsageError(f"--run: {error}") from None
    journal.append({"ran": number_of, "exit": code})
    if code != 0:
        warnings.warn(f"--run {said} for {record['file']}", stacklevel=2)


def batch(
    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")],
    network: BackboneOptions = BackboneOptions(),  # noqa: B008 - frozen
    *,
    out: Annotated[Path, Output(folder="batch")] = Path("relocal_batch"),
    model: Model = None,
    top_k: Count = 5,
    rate: Rate = None,
    seconds_per_step: StepSeconds = 1.0,
    key: str | None = None,
    workers: Steps = None,
    device: DeviceName = "auto",
) -> None:
    """Answer every row of TABLE, and write all answers into one table, OUT/answers.csv.

    TABLE is a CSV with the columns query and reference, and where a query is a stretch of its video
    query_start and query_end. Paths begin at the table's folder. Rows that were answered before,
    and whose files have not changed, are not searched again.

    Args:
        table: The CSV.
        network: Videos: which network turns frames into features.
        out: Folder for the table, for what is done, and for features, so that no video is decoded
            twice.
        model: A trained run or checkpoint, "pretrained" or "contrast"; as "relocal find" does where
            left out.
        top_k: How many moments of a row at most.
        rate: Videos: frames per second looked at; follows each clip's length where left out.
        seconds_per_step: Features: duration of one step.
        key: Features: name of the array inside a video's group.
        workers: Searches at a time; as many as there are processors where left out.
        device: Where the networks run; "auto" takes a graphics processor where there is one.
    """
    import torch
    from tqdm import tqdm

    from relocal_pyg.video.rows import FeatureCache

    rows = _read_rows(table)
    workers = min(workers or os.cpu_count() or 1, len(rows))
    about: dict[str, Any] = {"model": model and str(model), "network": network.plain()}
    about |= {"top_k": top_k, "rate": rate, "seconds_per_step": seconds_per_step, "key": key}
    errors: dict[Row, str] = {}
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    with (
        closing(Journal(out / "journal.jsonl", about, {"row": str, "moments": list})) as journal,
        ThreadPoolExecutor(workers) as pool,
    ):
        cache = FeatureCache(out / "features")
        search, _ = _searcher(model, network, rate, top_k, cache, device)
        parts = _weights(model, network)
        names = {row: _name(row, parts) for row in rows}
        given = QueryOptions(model, seconds_per_step=seconds_per_step, key=key)
        done = {each["row"]: each["moments"] for each in journal.records if each}

        def answer(row: Row) -> tuple[Row, list[dict[str, Any]] | RelocalError]:
            query, start, end, reference = row
            try:
                asked = replace(given, query_start=_time(start), query_end=_time(end))
                clip, asked = asked.opened(query)
                found = search(asked, clip, reference)
            except RelocalError as error:
                return row, error
            return row, plain_answers((place_name(reference), each) for each in found)

        waiting = [pool.submit(answer, row) for row in rows if names[row] not in done]
        print(f"{len(rows) - len(waiting)} of {len(rows)} rows were answered before")
        try:
            for future in tqdm(as_completed(waiting), total=len(waiting), unit="row", disable=None):
                row, found = future.result()
                if isinstance(found, RelocalError):
                    errors[row] = ascii_line(str(found))
                else:
                    done[names[row]] = found
                    journal.append({"row": names[row], "moments": found})
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    written: list[tuple[Any, ...]] = [(*COLUMNS, *ANSWER, "error")]
    for row in rows:
        for each in done.get(names[row], []) or [{}]:
            written.append((*row, *(each.get(column) for column in ANSWER), errors.get(row)))
    replace_text(out / "answers.csv", table_text(written))
    say(f"answers: {out / 'answers.csv'}")
    if errors:
        raise RunError(f"{len(errors)} of {len(rows)} rows have no answer: see the column error")


def _time(text: str) -> float | None:
    return parse_time(text.replace(",", "."), "a time of the query") if text else None


def _read_rows(table: Path) -> list[Row]:
    """The rows of a table, each once."""
    rows: dict[Row, None] = {}
    unknown: dict[str, None] = {}
    text = read_text(table, AnnotationError)
    for record, row in table_records(text, table, COLUMNS[::3], COLUMNS[1:3]):
        unknown |= dict.fromkeys(name for name in row if name and name not in COLUMNS)
        if not (row["query"] and row["reference"]):
            raise AnnotationError("has no query or no reference", file=table, record=record)
        query, reference = (str(table.parent / row[name]) for name in ("query", "reference"))
        rows[query, row["query_start"], row["query_end"], reference] = None
    if unknown:
        say(f"columns that are not read: {', '.join(unknown)}")
    if not rows:
        raise AnnotationError("holds no rows", file=table)
    return list(rows)


def _weights(model: Path | None, network: BackboneOptions) -> list[Path]:
    """The files that a model and a network are read from: others may be written over them."""
    read = () if model is None else (*model.glob("*"), *model.glob("best/*"))
    parts = [each for each in read if each.suffix in (".json", ".safetensors")]
    return sorted([*parts, *paths_of(network)])


def _name(row: Row, parts: list[Path]) -> str:
    """What a row asks of which versions of its files: another version is another question."""
    places = dict.fromkeys(row[::3])
    with suppress(RelocalError):  # the answer says what is wrong
        clip, asked = QueryOptions().opened(row[0])
        places |= dict.fromkeys([clip or "", *(place for place, *_ in asked.said())])
    files = [Path(split_place(each)[0]) for each in places]
    return json.dumps([row, [version_of(file) for file in (*files, *parts)]])


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
    if host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: {host} can be reached by others, and there is no password")
    from relocal_pyg.apps.serve import run

    matcher, why = choose_matcher(model, device, "pretrained")
    if index is not None and network == BackboneOptions():
        from relocal_pyg.video.index import IndexedVideos

        network = BackboneOptions.of(IndexedVideos.load(index).network)
    backbone, rate = load_network(network, None, model, matcher, device)
    also = "" if index is None or model is not None else "; in the index: contrast"

    def started() -> None:
        say(f"matcher: {why}{also}")
        address = f"[{host}]" if ":" in host else host
        say(f"open http://{address}:{port} (Ctrl-C ends it)")

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
