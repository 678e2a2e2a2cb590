"""Checking a data set without trusting it: child process, hangs, crashes, mismatches."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from relocal_pyg.data import check_dataset, checks, write_features
from relocal_pyg.data.checks import main, probe_features
from relocal_pyg.data.features import Record, scan
from relocal_pyg.errors import AnnotationError, FeatureError, UsageError


def annotate(folder: Path, *ids: str) -> Path:
    rows = [{"segment": [1, 2], "label": "run"}]
    database = {name: {"duration": 10, "annotations": rows} for name in ids}
    database["no actions"] = {"duration": 10, "annotations": []}
    (folder / "a.json").write_text(json.dumps({"database": database}))
    return folder / "a.json"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, width in (("a", 3), ("b", 3), ("c", 3), ("narrow", 2)):
            file[f"{name}/c3d_features"] = np.ones((9000, width), np.float32)
        file["c/c3d_features"][8000] = np.nan
        file["flat/c3d_features"] = np.ones(3)
        file["zero/c3d_features"] = np.ones((0, 3))
    return tmp_path / "a.h5"


@pytest.mark.slow
def test_the_child_sees_what_the_parent_would(features: Path) -> None:
    records = [record for record in scan(features, "c3d_features") if record is not None]
    assert probe_features(features) == records
    assert Record("a", 9000, 3) in records
    assert {record.name for record in records if record.problem} == {"c", "flat", "zero"}
    quick = probe_features(features, values=False)
    assert {record.name for record in quick if record.problem} == {"flat", "zero"}


def test_actions_that_end_after_the_features_are_cut_only_where_that_is_wanted(tmp_path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "abc":
            file[f"{name}/features"] = np.ones((60, 3), np.float32)
        file["c/features"][7] = 1e20
    table = tmp_path / "a.csv"
    table.write_text("video,start,end,label\na,21,44,run\nb,21,30.5,run\nc,1,9,run\n")
    reasons = {}
    for clip in (False, True):
        found = check_dataset(tmp_path / "a.h5", table, seconds_per_step=0.5, clip=clip)
        reasons[clip] = {entry.record: entry.reason for entry in found.records}
    assert reasons[True] == {"c": "step 7 is too large"}
    late = "has features for 30 s, but an action from 21 to 44 s"
    assert reasons[False] == {**reasons[True], "a": late}


@pytest.mark.slow
def test_everything_unusable_is_reported(features: Path, tmp_path: Path) -> None:
    ids = ("a", "c", "narrow", "absent", "v_b")
    quarantine = check_dataset(features, annotate(tmp_path, *ids))
    found = {entry.record: entry.reason for entry in quarantine.records}
    assert found["c"] == "step 8000 is not finite"
    assert found["narrow"] == "has 2 channels, most videos 3"
    assert "shape (3,)" in found["flat"]
    assert "no steps" in found["zero"]
    assert found["absent"].startswith("has no features in")
    assert set(found) == {"c", "narrow", "flat", "zero", "absent"}
    assert {entry.file for entry in quarantine.records} == {str(features), str(tmp_path / "a.json")}
    with pytest.raises(FeatureError, match="c: step 8000"):
        check_dataset(features, annotate(tmp_path, "a"), strict=True)
    assert len(check_dataset(features, annotate(tmp_path, "a"), values=False)) == 3


@pytest.mark.slow
def test_two_ids_of_one_video_are_refused(features: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="v_a: has the features of 'a' too"):
        check_dataset(features, annotate(tmp_path, "a", "b", "v_a"))


@pytest.mark.slow
def test_nothing_in_common_is_an_error(features: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="no video of .* has usable features"):
        check_dataset(features, annotate(tmp_path, "x", "c", "narrow"))
    with pytest.raises(AnnotationError, match="holds no action"):
        check_dataset(features, annotate(tmp_path))


@pytest.mark.slow
def test_an_unsafe_record_refuses_the_whole_file(features: Path, tmp_path: Path) -> None:
    with h5py.File(features, "a") as file:
        file["link"] = h5py.SoftLink("/a")
    with pytest.raises(FeatureError, match="link: is a SoftLink") as caught:
        check_dataset(features, annotate(tmp_path, "a"))
    assert caught.value.file == str(features)


@pytest.mark.slow
def test_files_that_are_no_features(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    for name in ("missing", "text", ""):
        with pytest.raises(FeatureError, match=str(tmp_path / name)):
            probe_features(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec sleep 60", "hangs the HDF5 reader"),
        ("echo '{}'; exec sleep 60", "hangs the HDF5 reader"),
        ("while :; do :; done", "hangs the HDF5 reader"),
        ("kill -SEGV $$", "crashes the HDF5 reader"),
        ("exit 0", "crashes the HDF5 reader"),
    ],
)
def test_a_reader_that_hangs_or_crashes_is_an_error(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    shell = tmp_path / "python"
    shell.write_text(f"#!/bin/sh\n{script}\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    monkeypatch.setattr(checks, "_PATIENCE", 1 if "sleep" in script else 100)
    with pytest.raises(FeatureError, match=reason):
        probe_features(features, time_limit=0.5)
    for wrong in (0, float("nan")):
        with pytest.raises(UsageError, match="time_limit"):
            probe_features(features, time_limit=wrong)


@pytest.mark.slow
def test_a_reader_that_gets_no_processor_does_not_hang(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = tmp_path / "python"
    shell.write_text("#!/bin/sh\nsleep 0.6\necho '{\"done\": true}'\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    monkeypatch.setattr(checks, "_PATIENCE", 1000)
    assert probe_features(features, time_limit=0.1) == []


def test_the_child_prints_lines_of_json(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["probe", str(features), "c3d_features", "1000000000", "0"])
    main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"name": "a", "num_steps": 9000, "dim": 3, "problem": None}
    assert lines[-1] == {"done": True}
    monkeypatch.setattr(sys, "argv", ["probe", str(tmp_path), "c3d_features", "1000000000", "0"])
    main()
    assert json.loads(capsys.readouterr().out)["error"] == "is not a file"


@pytest.mark.slow
@pytest.mark.faults
def test_damaged_files_never_take_the_parent_down(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_features(path, [("a", np.ones((5, 3))), ("b", np.ones((5, 3)))])
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(5):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 20):
            broken[at] = rng.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(FeatureError):
            assert {record.name for record in probe_features(path)} <= {"a", "b"}
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.slow
def test_real_data_is_sound(shared_data: Path) -> None:
    folder = shared_data / "50salads"
    assert len(check_dataset(folder / "features.h5", folder / "annotations.json")) == 0
