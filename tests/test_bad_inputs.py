"""The 41 bad inputs that the package promises to survive, from Python and from the command line.

Refused (E): a typed error that names file and record; as a command exit code 2 and one line on
stderr. Set aside (Q): the record is reported, the run goes on, ``--strict`` makes it refused.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from forked import run_code
from safetensors.torch import load_file, save_file

from relocal_pyg.apps.cli import main
from relocal_pyg.data import FeatureStore, checks, write_features
from relocal_pyg.data.checks import Quarantine, check_dataset
from relocal_pyg.data.features import Record, scan
from relocal_pyg.data.proposals import TagProposals, read_proposal_list
from relocal_pyg.datasets.activitynet import read_permutation
from relocal_pyg.datasets.custom import custom
from relocal_pyg.errors import CheckpointError, RelocalError
from relocal_pyg.io.record import write_manifest
from relocal_pyg.models import ContrastMatcher, MultiGraphRelocalizer, load_model

KEY = "features"
DIM, STEPS, DURATION = 4, 20, 20.0
IDS = [f"video{number}" for number in range(12)]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((STEPS, DIM)).astype(np.float32) for name in IDS}


def entry(*segments: object, duration: object = DURATION, label: str = "run") -> dict[str, Any]:
    rows = [{"segment": segment, "label": label} for segment in segments]
    return {"duration": duration, "subset": "training", "annotations": rows}


@dataclass
class Place:
    """A sound data set of twelve videos and two classes, for a test to spoil."""

    folder: Path

    def __post_init__(self) -> None:
        self.h5, self.json = self.folder / "features.h5", self.folder / "annotations.json"
        self.outside = self.folder / "secret.txt"
        self.outside.write_bytes(b"s" * STEPS * DIM * 4)
        self.database = {
            name: entry([2, 8], [10, 15], label="run" if number % 2 else "jump")
            for number, name in enumerate(IDS)
        }
        write_features(self.h5, arrays().items())
        self.annotate()

    def annotate(self, **entries: Any) -> None:
        database = {**self.database, **entries}
        self.json.write_text(json.dumps({"database": database}))

    def edit(self, change: Callable[[h5py.File], object]) -> None:
        with h5py.File(self.h5, "a") as file:
            change(file)

    def replace(self, name: str = IDS[0], **options: Any) -> None:
        """Store something else as the features of a video."""

        def change(file: h5py.File) -> None:
            del file[name]
            file.create_group(name).create_dataset(KEY, **options)

        self.edit(change)

    def check(self, **options: Any) -> Quarantine:
        return check_dataset(self.h5, self.json, **options)

    def protocol(self) -> Any:
        return custom(self.h5, self.json)

    def commands(self) -> list[list[str]]:
        """Every command that reads a data set of one's own."""
        files = ["--features", str(self.h5), "--annotations", str(self.json)]
        return [
            ["check", str(self.h5), str(self.json)],
            ["train", str(self.folder / "run"), "--protocol", "custom", *files],
        ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must be refused; give its one line."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("relocal: ")
    for word in words:
        assert str(word) in lines[0]
    return lines[0]


def spoil_truncated(place: Place) -> None:
    data = place.h5.read_bytes()
    place.h5.write_bytes(data[: len(data) // 2])


def spoil_directory(place: Place) -> None:
    place.h5.unlink()
    place.h5.mkdir()


def external_link(file: h5py.File) -> None:
    del file[IDS[0]]
    file[IDS[0]] = h5py.ExternalLink(str(Path(file.filename).with_name("other.h5")), f"/{IDS[1]}")


def external_storage(place: Place) -> None:
    external = [(str(place.outside), 0, h5py.h5f.UNLIMITED)]
    place.replace(shape=(STEPS, DIM), dtype="f4", external=external)


def virtual(place: Place) -> None:
    other = place.folder / "other.h5"
    write_features(other, [(IDS[0], np.ones((STEPS, DIM)))])

    def change(file: h5py.File) -> None:
        del file[IDS[0]]
        layout = h5py.VirtualLayout((STEPS, DIM), "f4")
        layout[:] = h5py.VirtualSource(str(other), f"{IDS[0]}/{KEY}", (STEPS, DIM))
        file.create_group(IDS[0]).create_virtual_dataset(KEY, layout)

    place.edit(change)


def loop(file: h5py.File) -> None:
    del file[IDS[0]][KEY]
    file[IDS[0]][KEY] = h5py.SoftLink(f"/{IDS[0]}/{KEY}")


def twins(place: Place) -> None:
    names = ("r\u00e9pas", "re\u0301pas")
    place.annotate(**{name: entry([1, 2]) for name in names})


def twin_groups(place: Place) -> None:
    for name in ("r\u00e9pas", "re\u0301pas"):
        place.edit(lambda file, name=name: file.create_dataset(f"{name}/{KEY}", data=[[1.0] * DIM]))


def text(place: Place, content: str | bytes) -> None:
    place.json.write_bytes(content.encode() if isinstance(content, str) else content)


TWICE = '{"database": {\n"a": {"duration": 9},\n"a": {"duration": 9}}}'
#: Row, name, what is spoilt, the file named, what the line says, the commands that see it.
FILES: list[tuple[int, str, Callable[[Place], object], str, tuple[str, ...]]] = [
    (1, "missing", lambda p: p.h5.unlink(), "h5", ("does not exist",)),
    (2, "empty", lambda p: p.h5.write_bytes(b""), "h5", ("is empty",)),
    (3, "text", lambda p: p.h5.write_text("x" * 5000), "h5", ("HDF5",)),
    (4, "directory", spoil_directory, "h5", ("is not a file",)),
    (5, "truncated", spoil_truncated, "h5", ("HDF5",)),
    (8, "external link", lambda p: p.edit(external_link), "h5", (IDS[0], "ExternalLink")),
    (9, "external storage", external_storage, "h5", (IDS[0], "other files")),
    (10, "virtual data set", virtual, "h5", (IDS[0], "other files")),
    (11, "soft-link loop", lambda p: p.edit(loop), "h5", (IDS[0], "SoftLink")),
    (12, "shape bomb", lambda p: p.replace(shape=(10**9, DIM), dtype="f8", chunks=(64, DIM)), "h5",
     (IDS[0], "declares")),
    (13, "compression bomb",
     lambda p: p.replace(data=np.zeros((2_000_000, DIM), "f4"), compression="gzip"), "h5",
     (IDS[0], "declares")),
    (17, "look-alike ids", twins, "json", ("look the same",)),
    (17, "look-alike groups", twin_groups, "h5", ("look the same",)),
    (32, "duplicate key", lambda p: text(p, TWICE), "json", ("line 3", "occurs twice")),
    (33, "syntax", lambda p: text(p, '{"database":\n{,}}'), "json", ("line 2",)),
    (33, "encoding", lambda p: text(p, b'{"database":\n{"\xff": 1}}'), "json", ("line 2", "UTF-8")),
    (33, "depth", lambda p: text(p, "\n" + "[" * 200_000), "json", ("line 2",)),
    (33, "5,000 digits", lambda p: text(p, '{"database":\n' + "1" * 5000 + "}"), "json",
     ("line 2", "digits")),
    (36, "nothing usable", lambda p: text(p, json.dumps({"database": {"a": entry([5, 1])}})),
     "json", ("no record can be used",)),
    (36, "nothing in common", lambda p: text(p, json.dumps({"database": {"a": entry([1, 5])}})),
     "h5", ("usable features",)),
]  # fmt: skip


def scan_here(path: Path, key: str, *, time_limit: float, **options: Any) -> list[Record]:
    """What the child process does, without starting one: tests/data compares the two."""
    return [record for record in scan(path, key, **options) if record is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "file", "words"),
    [pytest.param(*case[2:], id=f"{case[0]}-{case[1]}") for case in FILES],
)
def test_a_file_that_is_refused(
    place: Place, capsys, monkeypatch, spoil, file: str, words: tuple[str, ...]
):
    spoil(place)
    named = getattr(place, file)
    for read in (place.check, place.protocol):
        with pytest.raises(RelocalError) as caught:
            read()
        monkeypatch.setattr(checks, "probe_features", scan_here)  # seen once in a child process
        assert caught.value.file == str(named)
        for word in words:
            assert word in str(caught.value)
    for command in place.commands():
        refused(command, capsys, named, *words)
    assert not (place.folder / "run" / "last").exists()
    assert place.outside.read_bytes() == b"s" * STEPS * DIM * 4


def flip_a_value(place: Place) -> None:
    data = bytearray(place.h5.read_bytes())
    at = data.find(arrays()[IDS[0]][7].tobytes())
    assert at > 0
    data[at] ^= 1
    place.h5.write_bytes(data)


def rename(place: Place, name: str) -> None:
    """Put a record of this name into the annotations."""
    place.annotate(**{name: entry([1, 2])})


def surrogate_group(file: h5py.File) -> None:
    group = h5py.h5g.create(file.id, b"\xff\xfe")  # names are bytes below h5py's surface
    h5py.h5d.create(group, KEY.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((9, DIM)))


def not_finite(value: float) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        values = arrays()[IDS[0]]
        values[[7, 9], 1] = value
        place.replace(data=values)

    return spoil


def segment(*values: object) -> Callable[[Place], None]:
    return lambda place: place.annotate(bad=entry([1, 2], list(values)))


def add_features(place: Place, name: str) -> None:
    place.edit(lambda file: file.create_dataset(f"{name}/{KEY}", data=np.ones((STEPS, DIM))))


RECORDS: list[tuple[int, str, Callable[[Place], object], str, str, str]] = [
    (6, "bit flip", flip_a_value, "h5", IDS[0], "cannot be read"),
    (14, "no features", lambda p: rename(p, "absent"), "json", "absent", "has no features"),
    *((15, f"id {name!a}"[:20], lambda p, name=name: rename(p, name), "json", name or "''", "id")
      for name in ("a/b", "../x", "a\\b", "a\0b", ".", "..", "", "x" * 256)),
    (15, "group a\\b", lambda p: add_features(p, "a\\b"), "h5", "a\\b", "id"),
    (16, "surrogate id", lambda p: rename(p, "\ud800"), "json", "\ud800", "lone surrogate"),
    (16, "group of odd bytes", lambda p: p.edit(surrogate_group), "h5", "\udcff\udcfe",
     "lone surrogate"),
    (19, "NaN", not_finite(np.nan), "h5", IDS[0], "step 7 is not finite"),
    (20, "Inf", not_finite(-np.inf), "h5", IDS[0], "step 7 is not finite"),
    (21, "width", lambda p: p.replace(data=np.ones((9, DIM + 1))), "h5", IDS[0], "5 channels"),
    (22, "one dimension", lambda p: p.replace(data=np.ones(9)), "h5", IDS[0], "shape (9,)"),
    (22, "three dimensions", lambda p: p.replace(data=np.ones((9, 2, 2))), "h5", IDS[0], "shape"),
    (23, "int", lambda p: p.replace(data=np.ones((9, DIM), int)), "h5", IDS[0], "int64"),
    (23, "text", lambda p: p.replace(data=[["a"] * DIM], dtype=h5py.string_dtype()), "h5", IDS[0],
     "floating-point"),
    (23, "complex", lambda p: p.replace(data=np.ones((9, DIM), complex)), "h5", IDS[0], "complex"),
    (24, "no steps", lambda p: p.replace(data=np.ones((0, DIM))), "h5", IDS[0], "no steps"),
    (26, "start after end", segment(5, 3), "json", "bad segment 1", "not before"),
    (27, "start at end", segment(3, 3), "json", "bad segment 1", "not before"),
    (28, "negative", segment(-1, 3), "json", "bad segment 1", "leaves the video"),
    (29, "after the end", segment(3, 21), "json", "bad segment 1", "leaves the video"),
    (30, "NaN time", segment(float("nan"), 3), "json", "bad segment 1", "two numbers"),
    (30, "text time", segment("1", 3), "json", "bad segment 1", "two numbers"),
    (30, "bool time", segment(False, True), "json", "bad segment 1", "two numbers"),
    (31, "duplicate", segment(1, 2), "json", "bad segment 1", "duplicate"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "file", "record", "words"),
    [pytest.param(*case[2:], id=f"{case[0]}-{case[1]}") for case in RECORDS],
)
def test_a_record_that_is_set_aside(place: Place, capsys, monkeypatch, spoil, file, record, words):
    monkeypatch.setattr(checks, "probe_features", scan_here)
    add_features(place, "bad")
    spoil(place)
    named = str(getattr(place, file))
    quarantine = place.check()
    found = [each for each in quarantine.records if each.record == record]
    assert [(each.file, words in each.reason) for each in found] == [(named, True)]
    with pytest.warns(UserWarning, match="set aside"):  # and the run goes on
        protocol = place.protocol()
    assert protocol.about["set_aside"] == len(quarantine)
    check = place.commands()[0]
    report = place.folder / "report.json"
    assert main([*check, "--report", str(report)]) == 0
    listed = json.loads(report.read_text())
    assert {"file": named, "record": record, "reason": found[0].reason} in listed
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\0" not in captured.out
    with pytest.raises(RelocalError) as caught:
        place.check(strict=True)
    assert caught.value.file == named
    for command in place.commands():
        refused([*command, "--strict"], capsys, named)


@pytest.mark.slow
def test_training_goes_on_without_the_bad_records(place: Place, capsys, monkeypatch):
    """Every kind of bad record at once; the command trains on what is left."""
    import dataclasses

    from relocal_pyg.training import presets

    network = dataclasses.replace(
        presets.RECOMMENDED.network, hidden_channels=4, num_steps=4, head_channels=4
    )
    training = dataclasses.replace(
        presets.RECOMMENDED.training, batch_size=2, max_validation_pairs=2
    )
    small = dataclasses.replace(presets.RECOMMENDED, network=network, training=training)
    monkeypatch.setitem(presets.PRESETS, "recommended", small)
    not_finite(np.nan)(place)
    place.replace(IDS[1], data=np.ones(9))
    place.annotate(absent=entry([1, 2]), **{"a/b": entry([1, 2]), IDS[2]: entry([5, 3], [2, 8])})
    assert main([*place.commands()[1], "--steps", "1"]) == 0
    captured = capsys.readouterr()
    assert "5 records set aside" in captured.out
    weights = load_file(place.folder / "run" / "last" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "reason"), [("exec sleep 60", "hangs"), ("kill -SEGV $$", "crashes")]
)
def test_7_a_file_that_hangs_or_crashes_its_reader(
    place: Place, capsys, monkeypatch, script, reason
):
    shell = place.folder / "python"
    shell.write_text(f"#!/bin/sh\n{script}\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    assert check_dataset.__kwdefaults__["time_limit"] == 10
    monkeypatch.setitem(check_dataset.__kwdefaults__, "time_limit", 0.5)
    monkeypatch.setattr(checks, "_PATIENCE", 1)
    with pytest.raises(RelocalError, match=reason):
        place.check()
    refused(place.commands()[0], capsys, place.h5, reason)


def test_12_13_bombs_take_no_memory(place: Place, figure):
    place.replace(IDS[0], shape=(10**9, DIM), dtype="f8", chunks=(64, DIM))
    place.replace(IDS[1], data=np.zeros((2_000_000, DIM), "f4"), compression="gzip")
    store = FeatureStore(place.h5)
    tracemalloc.start()
    try:
        for name in IDS[:2]:
            with pytest.raises(RelocalError, match=name):
                store.read(name, 0, 5)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    figure("bombs", f"HDF5 shape and compression bombs: {peak:.2f} MB allocated")
    assert peak < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["répas", "日本語 видео", "🎬", "a b", "~root", "$(id)", "-rf"])
def test_18_valid_unicode_ids_work(place: Place, capsys, monkeypatch, name: str):
    add_features(place, name)
    rename(place, name)
    assert len(place.check()) == 0
    monkeypatch.setattr(checks, "probe_features", scan_here)  # seen once in a child process
    assert main(place.commands()[0]) == 0
    assert capsys.readouterr().err == ""
    assert any(
        item.video_id == name for items in place.protocol().splits.values() for item in items
    )


@pytest.mark.slow
def test_25_a_huge_number_of_steps_works(tmp_path: Path, capsys):
    # Densely, 5,000 steps would be 25 million edges; nothing here grows with their square.
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((5000, DIM)).astype(np.float32)
    reference[2000:2020] += 30
    query = rng.standard_normal((20, DIM)).astype(np.float32) + 30
    torch.manual_seed(0)
    model = MultiGraphRelocalizer(DIM, hidden_channels=4, num_steps=4)
    found = model.eval().localize(query, reference, proposals=[[0, 5000], [2000, 2020]])
    assert len(found) == 2
    np.save(tmp_path / "q.npy", query)
    np.save(tmp_path / "r.npy", reference)
    assert main(["find", str(tmp_path / "q.npy"), str(tmp_path / "r.npy"), "--top-k", "1"]) == 0
    start = float(capsys.readouterr().out.splitlines()[-1].split()[1])
    assert abs(start - 2000) <= 5


@pytest.mark.slow
def test_28_29_clip_opts_in(place: Place):
    place.annotate(**{IDS[0]: entry([-1, 3], [15, 99])})
    assert len(place.check()) == 2
    assert len(place.check(clip=True)) == 0


def test_31_a_duplicate_counts_once(place: Place):
    place.annotate(**{IDS[0]: entry([2, 8], [2, 8], label="jump")})
    with pytest.warns(UserWarning, match="duplicate"):
        protocol = place.protocol()
    truths = [i.truths for s in protocol.splits.values() for i in s if i.video_id == IDS[0]]
    assert [list(each) for each in truths] == [[(2, 8)]]


@pytest.mark.slow
def test_34_a_byte_order_mark_works(place: Place, capsys):
    place.json.write_bytes(b"\xef\xbb\xbf" + place.json.read_bytes())
    assert len(place.check()) == 0
    assert main(place.commands()[0]) == 0


def test_35_no_proposals_is_an_empty_answer_and_a_warning(place: Place, tmp_path: Path):
    clip = np.ones((3, DIM))
    for nothing in ([], np.empty((0, 2)), torch.empty(0, 2)):
        with pytest.warns(UserWarning, match="no proposals"):
            assert ContrastMatcher().localize(clip, clip, proposals=nothing) == []
    lists = tmp_path / "list.txt"
    lists.write_text(f"# 1\n{IDS[0]}\n1\n1\n0\n0\n")
    source = TagProposals(read_proposal_list(lists), lambda _: STEPS)
    item = place.protocol().splits["train"][0]
    with pytest.warns(UserWarning, match="no proposals"):
        assert len(source(item, 3)) > 0  # windows instead, so that a run goes on


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = MultiGraphRelocalizer(DIM, hidden_channels=4, num_steps=4)
    model.save(tmp_path / "model")
    return tmp_path / "model"


def find_with(checkpoint: Path) -> list[str]:
    file = checkpoint.parent / "clip.npy"
    np.save(file, np.random.default_rng(0).standard_normal((12, DIM)))
    return ["find", str(file), str(file), "--model", str(checkpoint)]


def payload_files(folder: Path, marker: Path) -> dict[str, Path]:
    """A payload in every format that can hold a pickle."""
    payload = Payload(marker)
    files = {name: folder / name for name in ("a.pkl", "a.pt", "old.pt", "a.npy", "a.npz")}
    files["a.pkl"].write_bytes(pickle.dumps(payload))
    torch.save({"conv1.weight": payload}, files["a.pt"])
    torch.save({"conv1.weight": payload}, files["old.pt"], _use_new_zipfile_serialization=False)
    np.save(files["a.npy"], np.array([payload], dtype=object), allow_pickle=True)
    np.savez(files["a.npz"], x=np.array([payload], dtype=object))
    return files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "old.pt", "a.npy", "a.npz"])
@pytest.mark.parametrize("where", ["weights", "model", "state", "features", "permutation"])
def test_37_no_payload_is_run(
    tmp_path: Path, checkpoint: Path, capsys, monkeypatch, name: str, where: str
):
    marker = tmp_path / "ran"
    file = payload_files(tmp_path, marker)[name]
    # An environment variable that turns torch's default protection off does not turn ours off.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    if where == "weights":
        from relocal_pyg.video.c3d import C3D

        with pytest.raises(CheckpointError) as caught:
            C3D(num_features=8).load_weights(file)
        assert caught.value.file == str(file)
        out = str(tmp_path / "o.h5")
        command = ["extract", str(tmp_path), "-o", out, "--backbone", "c3d", "--weights", str(file)]
        refused(command, capsys, file)
    elif where == "model":
        (checkpoint / "model.safetensors").write_bytes(file.read_bytes())
        write_manifest(checkpoint, "model")
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load_model(checkpoint)
        refused(find_with(checkpoint), capsys, "model.safetensors")
    elif where == "state":
        from relocal_pyg.training.loop import Progress, load_state, save_state

        model = load_model(checkpoint)
        optimizer = torch.optim.Adam(model.parameters())
        save_state(tmp_path / "last", model, optimizer, Progress(), {})
        (tmp_path / "last" / "state.pt").write_bytes(file.read_bytes())
        write_manifest(tmp_path / "last", "checkpoint")
        with pytest.raises(CheckpointError, match="last"):
            load_state(tmp_path / "last", model, optimizer, {})
    elif where == "features":
        array = file.rename(tmp_path / "x.npy")
        refused(["find", str(array), str(array)], capsys, array)
    else:
        with pytest.raises(RelocalError, match=str(file)):
            read_permutation(file)
    assert not marker.exists()


def bomb(path: Path, member: str, head: bytes, size: int = 2**28) -> None:
    """A zip of 256 MiB of zeros in some 260 KB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(member, "w", force_zip64=True) as stream,
    ):
        stream.write(head)
        for _ in range(size >> 20):
            stream.write(bytes(2**20))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "npz"])
def test_38_a_zip_bomb_is_refused_before_it_inflates(tmp_path: Path, figure, kind: str):
    """In a process with little memory to spare, which inflating the file would exceed."""
    if kind == "torch":
        file = tmp_path / "bomb.pt"
        torch.save({"conv1.weight": torch.zeros(2**26)}, tmp_path / "honest.pt")
        with (
            zipfile.ZipFile(tmp_path / "honest.pt") as honest,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for each in honest.infolist():
                packed.writestr(each.filename, honest.read(each))
        (tmp_path / "honest.pt").unlink()
        out = str(tmp_path / "o.h5")
        arguments = ["extract", str(tmp_path), "-o", out, "--backbone", "c3d", "--weights"]
        arguments.append(str(file))
    else:
        file = tmp_path / "bomb.npy"
        shape = {"descr": "<f4", "fortran_order": False, "shape": (2**22, 16)}
        head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{shape!r:117}\n".encode()
        bomb(file, "x.npy", head)
        arguments = ["find", str(file), str(file)]
    assert file.stat().st_size < 2**20
    code = """
import resource, sys
import relocal_pyg.models, relocal_pyg.video.c3d, relocal_pyg.data.features
from relocal_pyg.apps.cli import main
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
from relocal_pyg.video.c3d import C3D
from relocal_pyg.models import ContrastMatcher
if "extract" in sys.argv:
    C3D()
before = peak()
code = main(sys.argv[1:])
print(peak() - before)
sys.exit(code)
"""
    done = run_code(code, *arguments)
    assert done.returncode == 2, done.stderr
    assert str(file) in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    peak = float(done.stdout.split()[-1])
    figure("bombs", f"{kind} archive of 256 MiB in under 1 MiB: {peak:.0f} MB over baseline")
    assert peak < 300


def rewrite(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors")
    write_manifest(checkpoint, "model")


def reshape(weights: dict[str, torch.Tensor]) -> None:
    name = sorted(weights)[0]
    weights[name] = weights[name].reshape(-1)[:1].clone()


def configure(checkpoint: Path, **changes: object) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    write_manifest(checkpoint, "model")


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing tensor": (lambda c: rewrite(c, lambda w: w.pop(sorted(w)[0])), "is missing"),
    "extra tensor": (lambda c: rewrite(c, lambda w: w.update(zz=torch.ones(1))), "zz"),
    "wrong shape": (lambda c: rewrite(c, reshape), "has shape"),
    "NaN": (lambda c: rewrite(c, lambda w: w[sorted(w)[0]].fill_(float("nan"))), "not finite"),
    "newer version": (lambda c: configure(c, format=99), "newer"),
    "unknown model": (lambda c: configure(c, model="os"), "does not exist"),
    "unknown setting": (lambda c: configure(c, config={"x": 1}), "settings"),
    "settings missing": (lambda c: configure(c, config=None), "config"),
    "manifest missing": (lambda c: (c / "manifest.json").unlink(), "manifest.json"),
    "file missing": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors"),
    "config missing": (lambda c: (c / "config.json").unlink(), "config.json"),
    "changed": (lambda c: (c / "config.json").write_text("{}"), "SHA-256"),
    "no JSON": (
        lambda c: ((c / "config.json").write_text("["), write_manifest(c, "model")),
        "config.json",
    ),
    "a list": (
        lambda c: ((c / "config.json").write_text("[]"), write_manifest(c, "model")),
        "config.json",
    ),
    "huge": (lambda c: configure(c, config={"in_channels": 10**12}), "config.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_39_a_checkpoint_that_does_not_fit(checkpoint: Path, capsys, name: str):
    spoil, words = CHECKPOINTS[name]
    first = sorted(load_file(checkpoint / "model.safetensors"))[0]
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(checkpoint)
    assert str(checkpoint) in str(caught.value.file)
    if name in ("missing tensor", "wrong shape", "NaN"):
        assert caught.value.record == first
    refused(find_with(checkpoint), capsys, checkpoint, words)


@pytest.mark.slow
def test_40_an_index_of_another_model(place: Place, checkpoint: Path, capsys):
    from relocal_pyg.errors import SearchIndexError
    from relocal_pyg.search import SearchIndex, build_index

    folder = place.folder / "index"
    build_index(folder, ContrastMatcher(), [("v", np.ones((9, DIM)), 1.0)])
    with pytest.raises(SearchIndexError, match="another model"):
        SearchIndex(folder, load_model(checkpoint))
    arguments = find_with(checkpoint)
    refused(["search", str(folder), *arguments[2:]], capsys, folder, "another model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full disk", "read-only"])
def test_41_where_nothing_can_be_written(place: Place, kind: str):
    """The command in a process of its own, on a small full disk or without permission."""
    report = place.folder / "out" / "report.json"
    report.parent.mkdir()
    report.write_text("old")
    place.annotate(**{f"absent{number}": entry([1, 2]) for number in range(300)})
    code = f"""
import os, resource, sys
kind, target = {kind!r}, {str(report)!r}
if kind == "full disk":  # a file may not grow past a kilobyte, which fails as a full disk does
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
elif os.getuid() == 0:
    import subprocess, ctypes
    for flags, data in ((4096, None), (4096 | 32 | 1, None)):  # bind; bind, remount, read-only
        parent = os.path.dirname(target).encode()
        if ctypes.CDLL(None, use_errno=True).mount(parent, parent, None, flags, data):
            sys.exit("no mount")
else:
    os.chmod(os.path.dirname(target), 0o500)
from relocal_pyg.apps.cli import main
from relocal_pyg.data.checks import check_dataset
from relocal_pyg.errors import OutputError
if kind == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
code = main(sys.argv[1:] + ["--report", target])
try:
    check_dataset(*sys.argv[2:]).save(target)
except OutputError as error:
    print("typed:", error.file == target)
sys.exit(code)
"""
    command = [sys.executable, "-c", code, *place.commands()[0]]
    if kind == "read-only" and os.getuid() == 0:
        command = ["unshare", "--mount", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "no mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("root ignores permissions, and may not mount here")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(report) in done.stderr
    assert "typed: True" in done.stdout
    assert report.read_text() == "old"
    assert os.listdir(report.parent) == ["report.json"]


def test_every_row_is_here():
    rows = {case[0] for case in (*FILES, *RECORDS)}
    elsewhere = {7, 18, 25, 34, 35, 37, 38, 39, 40, 41}
    names = " ".join(name for name in globals() if name.startswith("test_"))
    assert all(f"test_{row}_" in names for row in elsewhere)
    assert rows | elsewhere == set(range(1, 42))
