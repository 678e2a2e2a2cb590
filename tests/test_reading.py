"""Strict reading of strangers' text."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import relocal_pyg.io.read as reading
from relocal_pyg.errors import AnnotationError, ProposalError
from relocal_pyg.io.read import id_problem, read_json, read_text


def read(folder: Path, content: str | bytes, **options: bool) -> object:
    file = folder / "a.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_json(file, AnnotationError, **options)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('{\n"a": 1,\n"a": 2}', 3, "'a' occurs twice"),
        ('{"x": {"a": 1},\n"y": [{"a": 1, "b": {"a": 1},\n"\\u0061": 2}]}', 3, "'a' occurs twice"),
        ("[\n1,\nNaN]", 3, "NaN is not a finite number"),
        ("[\n-Infinity]", 2, "-Infinity is not a finite number"),
        ('["NaN", true, false, null, "Infinity",\n\n1e999]', 3, "1e999 is not a finite number"),
        ('["a",\n50e721b]', 2, "50e721b is not a finite number"),
        ("\n" + "[" * 200_000, 2, "nested too deep"),
        ("\n\n" + '{"a":' * 200_000, 3, "nested too deep"),
        ("[1,\n" + "9" * 5000 + "]", 2, "has 5000 digits"),
        ('{"a": 1,\n', 2, "is not JSON"),
        ("[1\n2]", 2, "is not JSON"),
        (b'["a",\n"\xff"]', 2, "not UTF-8"),
        ('["a",\n"\x01"]', 2, "is not JSON"),
    ],
)
def test_defects_are_named_with_their_line(
    tmp_path: Path, content: str | bytes, line: int, reason: str
) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, content)
    assert caught.value.record == f"line {line}"
    assert reason in caught.value.reason
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_nan_passes_only_on_request(tmp_path: Path) -> None:
    value = read(tmp_path, "[NaN, 1e999, -Infinity]", allow_nan=True)
    assert isinstance(value, list)
    assert math.isnan(value[0])
    assert value[1:] == [math.inf, -math.inf]
    with pytest.raises(AnnotationError, match="occurs twice"):
        read(tmp_path, '{"a": NaN, "a": 1}', allow_nan=True)


@pytest.mark.slow
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_good_json_reads_as_the_standard_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    text = json.dumps(value)
    assert read(tmp_path_factory.getbasetemp(), text) == json.loads(text)
    assert reading._locate(text, False) is None


def test_what_is_not_a_readable_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProposalError, match="does not exist"):
        read_text(tmp_path / "none", ProposalError)
    with pytest.raises(ProposalError, match="not a regular file"):
        read_text(tmp_path, ProposalError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProposalError, match="not a regular file"):
        read_text(tmp_path / "pipe", ProposalError)
    with pytest.raises(ProposalError, match="cannot be read"):
        read_text(tmp_path / "a\0b", ProposalError)
    with pytest.raises(AnnotationError, match="is empty"):
        read(tmp_path, " \n")
    monkeypatch.setattr(reading, "MAX_BYTES", 3)
    with pytest.raises(AnnotationError, match="is over 3 bytes"):
        read(tmp_path, "[1, 2]")


@pytest.mark.parametrize(
    "video_id", ["", ".", "..", "a/b", "a\\b", "a\0b", "../a", "x" * 256, "é" * 128, "a\ud800"]
)
def test_bad_ids(video_id: str) -> None:
    assert id_problem(video_id)


@pytest.mark.parametrize(
    "video_id", ["a", "-a_B9", "...", "répas 01", "視頻", "x" * 255, "é" * 127]
)
def test_good_ids(video_id: str) -> None:
    assert id_problem(video_id) is None
