"""Foreign and forged files: one line within a bounded time and memory, and never a hang."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import run_code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from benchmarks.bombs import film
from relocal_pyg.apps.cli import main
from relocal_pyg.data import read_annotations, write_features
from relocal_pyg.errors import CheckpointError, FeatureError, RelocalError, SearchIndexError
from relocal_pyg.io.read import read_array, read_json, read_text
from relocal_pyg.io.record import (
    MANIFEST,
    manifest_text,
    sha256_file,
    verify_manifest,
    write_manifest,
)
from relocal_pyg.io.tensors import read_tensors
from relocal_pyg.io.write import replace_folder
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.search.storage import ShardList, fingerprint
from relocal_pyg.video.index import IndexedVideos


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", ">f2", ">i4", "<u2", "i1"])
def test_arrays_of_any_byte_order_are_read_as_they_are_meant(tmp_path: Path, dtype: str) -> None:
    values = np.arange(12).reshape(4, 3)
    np.save(tmp_path / "a.npy", values.astype(dtype))
    for mapped in (False, True):
        rows = read_array(tmp_path / "a.npy", FeatureError, mapped=mapped)
        assert rows.dtype.isnative
        np.testing.assert_array_equal(rows, values)


def test_big_endian_features_are_searched_as_their_twin(cases: Path) -> None:
    from relocal_pyg.apps.cli.find import read_features

    twins = [read_features(str(cases / name), None) for name in ("be.npy", "F.npy")]
    assert twins[0].equal(twins[1])


def declare(file: Path, shape: object, dtype: object, stored: int = 100) -> Path:
    """An array file with any header and little behind it."""
    with file.open("wb") as stream:
        header = repr({"descr": dtype, "fortran_order": False, "shape": shape})
        text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
        stream.write(npy.magic(1, 0) + len(text).to_bytes(2, "little") + text)
        stream.write(bytes(stored))
    return file


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((10**30, 4), "<f4"),
        ((10**18, 10**18), "<f4"),
        ((-4, -4), "<f4"),
        ((2**63, 2), "<f4"),
        ((4, 4), [("a", "<f4"), ("b", "<i8")]),
        ((4, 4), "|O"),
        ((4, 4), "|S10"),
        ((4, 4), "<U3"),
        ((4, 4), "<M8[s]"),
        ((4, 4), "<c8"),
        ((4, 4), "|V8"),
        ((4, 4), "nonsense"),
        (("4", 4), "<f4"),
        ((1000, 1000), "<f4"),
    ],
    ids=str,
)
def test_arrays_that_no_one_honest_wrote(tmp_path: Path, shape: object, dtype: object) -> None:
    file = declare(tmp_path / "a.npy", shape, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FeatureError) as caught:
            read_array(file, FeatureError)
    assert "\n" not in str(caught.value)
    assert main(["find", str(file), str(file)]) == 2


def test_an_array_of_python_2_is_read_in_silence(tmp_path: Path) -> None:
    rows = np.arange(12, dtype="<f4").reshape(3, 4)
    np.save(tmp_path / "a.npy", rows)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(3, 4), }  ", b"(3L, 4L), }"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_array(tmp_path / "a.npy", FeatureError), rows)


def test_no_kind_of_number_in_an_index_adds_a_line(tmp_path: Path) -> None:
    """Processors announce when some kinds of NaN are cast; the refusal alone is to be said."""
    model, index = ContrastMatcher(), tmp_path / "index"
    build_index(index, model, [("v", np.eye(40, 8, dtype="f4"), 1.0)])
    shard, listed = index / "shard-00000", ShardList.load(index, fingerprint(model))
    proposals = np.load(shard / "proposals.npy")
    proposals.view("u4")[0] = 0x7FA00000  # signalling
    np.save(shard / "proposals.npy", proposals)
    write_manifest(shard, "shard")
    listed.shards[0] = replace(listed.shards[0], manifest=sha256_file(shard / MANIFEST))
    listed.save(index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SearchIndexError, match="row 0 is no window of its video"):
            SearchIndex(index, model)


def test_an_array_that_is_declared_and_not_stored(tmp_path: Path) -> None:
    """A sparse file is as long as it says and holds nothing."""
    file = declare(tmp_path / "a.npy", (1 << 20, 1 << 10), "<f4")
    os.truncate(file, (4 << 30) + 128)
    with pytest.raises(FeatureError, match="declares 4294967296 bytes and stores"):
        read_array(file, FeatureError)


def test_an_array_whose_header_never_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(npy.magic(2, 0) + b"\xff\xff\xff\xff{")
    os.truncate(file, 5 << 30)
    with pytest.raises(FeatureError, match="a header of over 65536 bytes"):
        read_array(file, FeatureError)


def test_weights_that_are_declared_and_not_stored(tmp_path: Path) -> None:
    """Sixty-four gigabytes of holes, which reading them would take."""
    file = tmp_path / "model.safetensors"
    shape, end = [1 << 34], 1 << 36
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + end)
    with pytest.raises(CheckpointError, match="bytes long and stores"):
        read_tensors(file)
    file.write_bytes((2_000_000).to_bytes(8, "little") + b"{" + b" " * 2_000_000)
    with pytest.raises(CheckpointError, match="a header of over 1048576 bytes"):
        read_tensors(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="regular file"):
        read_tensors(tmp_path / "pipe")


@pytest.mark.slow
@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_an_array_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("bytes") / "a.npy"
    for prefix in (b"", npy.magic(1, 0), npy.magic(3, 0)):
        file.write_bytes(prefix + content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(FeatureError):
                read_array(file, FeatureError)


COMMANDS = [
    ["find", "PLACE", "PLACE"],
    ["find", "PLACE::video", "PLACE::video"],
    ["search", "PLACE", "PLACE"],
    ["index", "new", "PLACE"],
    ["extract", "PLACE", "-o", "new.h5"],
    ["check", "PLACE", "PLACE"],
    ["evaluate", "PLACE"],
    ["train", "new", "--protocol", "custom", "--features", "PLACE", "--annotations", "PLACE"],
    ["find", "a.npy", "a.npy", "--model", "PLACE"],
    ["find", "a.npy", "a.npy", "--backbone", "c3d", "--weights", "PLACE"],
    ["find", "a.npy", "a.npy", "--pca", "PLACE"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", ["fifo", "device", "loop", "socket"])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.ones((5, 4), "f4"))
    place = tmp_path / "place.mp4"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "loop":
        place.symlink_to(place)
    else:
        import socket

        monkeypatch.chdir(tmp_path)
        socket.socket(socket.AF_UNIX).bind("place.mp4")
    line = [word.replace("PLACE", "place.mp4") for word in command]
    assert main(line) == 2


def test_readers_refuse_pipes_themselves(tmp_path: Path) -> None:
    """A Python user does not pass the command line."""
    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, read_json, read_array):
        with pytest.raises(RelocalError, match="regular file"):
            read(tmp_path / "pipe", FeatureError)


BOMB = """
import resource, sys
from pathlib import Path
from relocal_pyg.data import read_annotations
from relocal_pyg.errors import RelocalError
def used():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
before = used()
try:
    read_annotations(sys.argv[1])
    print("read", used() - before)
except RelocalError as error:
    print("refused", used() - before)
"""

#: What is repeated, and how often: as much as is let through, or far more.
BOMBS = {
    "lists": ("[],", 1_300_000),
    "objects": ("{},", 500_000),
    "numbers": ("1.5,", 4_500_000),
    "texts": ('"ab",', 1_700_000),
    "keys": ('{"a":1},', 400_000),
    "many lists": ("[],", 20_000_000),
    "many objects": ("{},", 20_000_000),
    "deep": ("[", 30_000_000),
    "wide": ("\N{GRINNING FACE}", 12_000_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_json_takes_bounded_memory(tmp_path: Path, name: str, figure: object) -> None:
    unit, count = BOMBS[name]
    with (tmp_path / "a.json").open("w", encoding="utf-8") as stream:
        stream.write('{"database": [' + ('"' if name == "wide" else ""))
        for _ in range(count // 100_000):
            stream.write(unit * 100_000)
        stream.write('"]}' if name == "wide" else "0]}")
    done = run_code(BOMB, tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    word, megabytes = done.stdout.split()
    assert int(megabytes) < 300, done.stdout
    assert word == "refused"


def test_a_table_of_very_many_columns_is_refused_early(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("video,start,end,label" + ",x" * 100_000 + "\n" + "v,1,2,a" + ",0" * 100_000)
    with pytest.raises(RelocalError, match="columns"):
        read_annotations(file)


NAMES = st.text(min_size=1, max_size=30).filter(
    lambda name: "\0" not in name and "/" not in name and not name.startswith("-")
)


@pytest.mark.slow
@given(name=NAMES)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_names_are_printed_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    evil = f"{name}\x1b]0;title\x07\u202egnp.exe\n2nd"
    try:
        os.fsencode(evil)
    except UnicodeEncodeError:
        return
    assert main(["find", str(tmp_path / evil)[-200:], evil]) == 2
    said = capsys.readouterr()
    text = (said.out + said.err).removesuffix("\n")
    assert text.isprintable()


#: Commands that say the name of what they wrote, which holds ODD.
ODD = "a\x1b]0;title\x07\u202egnp.exe"
SAYING = [
    *(
        ["find", "q.npy", "r.npy", "--export", f"{ODD}.{suffix}"]
        for suffix in ("vtt", "csv", "eaf")
    ),
    ["find", "q.npy", f"{ODD}.npy", "--json", "x"],
    ["find", "q.avi", f"{ODD}.avi", "--cut", f"{ODD} cut", "--report", f"{ODD}.html"]
    + ["--contact-sheet", f"{ODD}.jpg"],
    ["find", "q.avi", f"{ODD}.avi", "-v", "--cut", "cut", "--reencode"],
    ["extract", f"{ODD}.avi", "--output", f"{ODD}.h5"],
    ["convert", f"{ODD}.txt", "--out", f"{ODD}.table"],
    ["index", f"{ODD} index", "features.h5"],
    ["search", f"{ODD} index", "q.npy", "--export", f"{ODD} 2.vtt"],
    ["batch", f"{ODD} rows.csv", "--out", f"{ODD} batch"],
    ["example", f"{ODD} films"],
    *(["serve", "--host", host] for host in (ODD, f"\u0661{ODD}", "a" * 300)),
]


@pytest.mark.slow
def test_names_of_what_is_written_are_printed_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, steps in (("q.npy", 6), ("r.npy", 40), (f"{ODD}.npy", 40)):
        np.save(name, np.random.default_rng(0).standard_normal((steps, 8)).astype("f4"))
    for name, pictures in (("q.avi", 20), (f"{ODD}.avi", 60)):
        film(name, [number / 10 for number in range(pictures)])
    write_features("features.h5", [("v", np.ones((20, 8), "f4"))])
    Path(f"{ODD}.txt").write_text(f"video,start,end,label\nv,1,2,{ODD}\nv,2,1,{ODD}\n")
    Path(f"{ODD} rows.csv").write_text("query,reference\nq.npy,r.npy\n")
    for line in SAYING:
        assert main(line) == (2 if line[0] == "serve" else 0), line
        said = capsys.readouterr()
        for text in (said.out + said.err).replace("\r", "\n").split("\n"):
            assert text.isprintable(), line


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["files", "kind", "format", "a"]), inner, max_size=4)
        ),
    )
)
@settings(deadline=None, max_examples=100)
def test_no_manifest_but_ours_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    (folder / "a").write_text("1")
    for indent in (None, 1):
        (folder / MANIFEST).write_text(json.dumps(content, indent=indent) + "\n")
        with pytest.raises(CheckpointError):
            verify_manifest(folder)


def test_holes_are_not_hashed(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "model", "model") as folder:
        (folder / "a").write_text("1")
    os.truncate(tmp_path / "model" / "a", 1 << 40)
    with pytest.raises(CheckpointError, match="longer than what it stores"):
        verify_manifest(tmp_path / "model")


@pytest.mark.parametrize(
    "odd",
    [
        *({"rate_hz": rate} for rate in (0, -1, 1e308, True, "2", None)),
        *({"files": files} for files in ([], {"a": 1}, {"a": None})),
        {"network": {"backbone": ["c3d"], "weights": None, "pca": None}},
    ],
    ids=str,
)
def test_the_record_of_an_index_is_looked_at(tmp_path: Path, odd: dict[str, object]) -> None:
    made = IndexedVideos(tmp_path / "i", 2.0, "blocks", {"a": tmp_path / "a.mp4"})
    made.save()
    assert IndexedVideos.load(tmp_path / "i") == made
    file = made.record_of(tmp_path / "i")
    file.write_text(json.dumps({**json.loads(file.read_text()), **odd}))
    with pytest.raises(SearchIndexError, match="is damaged"):
        IndexedVideos.load(tmp_path / "i")


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_mutated_manifest_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutated") / "model"
    with replace_folder(folder, "model") as temporary:
        (temporary / "a").write_text("1")
    text = bytearray((folder / MANIFEST).read_bytes())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(CheckpointError):
        verify_manifest(folder, "model")


def test_a_manifest_of_a_folder_that_grows_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(manifest_text("model"))
    with pytest.raises(CheckpointError, match="lists no files"):
        verify_manifest(tmp_path, "model")
