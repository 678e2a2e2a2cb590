"""Messages are one printable line that names file and record, and survive a worker process."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocal_pyg import errors
from relocal_pyg.errors import RelocalError, ascii_line
from relocal_pyg.graph import PairGraph

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, RelocalError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_pickles_with_its_parts(kind: type[RelocalError]) -> None:
    error = kind("bad thing", file=Path("a/b.h5"), record="v_1")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(twin) is kind
        assert (twin.reason, twin.file, twin.record) == ("bad thing", str(Path("a/b.h5")), "v_1")
        assert str(twin) == str(error)


def test_there_is_one_base_class_and_several_kinds() -> None:
    assert len(KINDS) > 5
    assert issubclass(RelocalError, Exception)


def test_a_wrong_argument_is_a_value_error_as_everywhere_in_python() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PairGraph(num_steps=0)


@pytest.mark.parametrize(
    ("file", "record", "text"),
    [
        (None, None, "why"),
        ("f", None, "f: why"),
        (None, "r", "r: why"),
        ("f", "r", "f: r: why"),
        ("f", "", "f: why"),
    ],
)
def test_parts_that_are_known_are_named(file: str, record: str, text: str) -> None:
    assert str(RelocalError("why", file=file, record=record)) == text


def test_reason_of_several_lines_becomes_one() -> None:
    assert str(RelocalError("first\n   second\tthird ")) == "first second third"


@pytest.mark.slow
@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=30))
def test_any_record_prints_on_one_line(record: str) -> None:
    message = str(RelocalError("why", file="a.h5", record=record))
    assert len(message.splitlines()) == 1
    message.encode("utf-8")  # a lone surrogate would raise


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
        ("Zürich 東京", "Zürich 東京"),
    ],
)
def test_unprintable_characters_are_escaped(text: str, line: str) -> None:
    assert ascii_line(text) == line
