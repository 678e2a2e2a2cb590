"""Numbers at the door: every one is checked where it enters, in one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run
from hypothesis import given
from hypothesis import strategies as st

from relocal_pyg.apps.cli import COMMANDS, command, main
from relocal_pyg.data import FeatureStore, write_features
from relocal_pyg.errors import RelocalError, UsageError, check_number
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.video import VideoQuery, find_moments
from relocal_pyg.video.cut import cut_clip

WRONG = ["nan", "inf", "-inf", "-3", "1e300", "1e999", "abc", "", "0x10", "9" * 400, "1_0", "٣"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    draw = np.random.default_rng(0)
    np.save(folder / "q.npy", draw.standard_normal((6, 8)).astype("f4"))
    np.save(folder / "r.npy", draw.standard_normal((40, 8)).astype("f4"))
    rows = torch.from_numpy(np.load(folder / "r.npy"))
    build_index(folder / "index", ContrastMatcher(), [("v", rows, 1.0)])
    write_features(folder / "f.h5", [("v", rows)])
    (folder / "a.json").write_text("{}")
    (folder / "films").mkdir()
    (folder / "films" / "a.mp4").write_bytes(b"no film")
    return folder


#: What each command needs before its options are looked at.
NEEDS = {
    "find": ["q.npy", "r.npy"],
    "search": ["index", "q.npy"],
    "index": ["new", "f.h5"],
    "extract": ["films", "-o", "new.h5"],
    "check": ["f.h5", "a.json"],
    "train": ["new"],
    "ablate": ["new"],
    "propose": ["new.txt"],
    "convert": ["a.json", "-o", "new.csv"],
    "pretrain": ["new"],
    "serve": ["films"],
    "watch": ["films"],
    "batch": ["table.csv"],
}


def numeric_options() -> list[tuple[str, str]]:
    """Every option of every command that takes a number, also inside groups of options."""

    def numbers(hints: dict[str, object]) -> list[str]:
        found = []
        for name, hint in hints.items():
            plain = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
            kinds = {plain, *typing.get_args(plain)}
            if kinds & {int, float} and bool not in kinds:
                found.append(name)
            elif isinstance(plain, type) and hasattr(plain, "__dataclass_fields__"):
                found += numbers(typing.get_type_hints(plain, include_extras=True))
        return found

    return [
        (name, option)
        for name in COMMANDS
        for option in numbers(dict(command(name).__annotations__))
        if option != "return"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option"), numeric_options())
def test_no_command_takes_a_number_that_is_none(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    option: str,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("relocal_pyg.apps.cli.writing", lambda *given, **named: pytest.fail(name))
    flag = "--" + option.replace("_", "-")
    for word in WRONG:
        assert main([name, *NEEDS.get(name, []), flag, word]) == 2, (name, flag, word)
        said = capsys.readouterr().err.rstrip("\n")
        assert said.startswith(f"relocal: {flag} "), said
        assert len(said.splitlines()) == 1
        assert len(said) < 300
    assert sorted(each.name for each in place.iterdir()) == [
        "a.json", "f.h5", "films", "index", "q.npy", "r.npy",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["?", "", "nosuch", "WEBVTT", "\x1b", "webvtt"])
@pytest.mark.parametrize("more", [[], ["--csv", "x.csv"], ["--export", "x.csv"]])
def test_a_format_that_is_none_or_not_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, word: str, more: list[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["find", "q.npy", "r.npy", "--format", word, *more]) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, 5e-324, 1e-10, "x", None, 1j])
def test_what_nothing_can_be_divided_by_is_refused(place: Path, value: object) -> None:
    """Numbers so small that their reciprocal is none, among others; of any type."""
    query, film = np.load(place / "q.npy"), np.load(place / "r.npy")
    with pytest.raises((UsageError, TypeError)):
        ContrastMatcher().localize(query, film, seconds_per_step=value)  # type: ignore[arg-type]
    with pytest.raises(RelocalError):  # small times are times, and q.npy is no film
        cut_clip(place / "q.npy", value, 3, place / "x.mp4")  # type: ignore[arg-type]
    if isinstance(value, float) and value == value:
        line = ["find", str(place / "q.npy"), str(place / "r.npy"), "--seconds-per-step"]
        assert main([*line, str(value)]) == 2


@pytest.mark.parametrize("value", [np.float32(2), 2.5, True, "2", None, 0, 10**400])
def test_a_count_is_a_whole_number(value: object) -> None:
    with pytest.raises(UsageError):
        check_number(value, "count", least=1, whole=True)  # type: ignore[type-var]
    assert check_number(np.int64(2), "count", least=1, whole=True) == 2


def test_options_are_many() -> None:
    """The list above is not empty by mistake."""
    assert {("find", "top_k"), ("find", "query_start"), ("train", "seconds_per_step")} <= set(
        numeric_options()
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["2", "0:02", "0:00:02", "0:00:02.000"])
def test_printed_times_are_taken(place: Path, tmp_path: Path, start: str) -> None:
    out = tmp_path / "a.json"
    line = ["find", str(place / "r.npy"), str(place / "r.npy"), "--query-start", start]
    assert main([*line, "--query-end", "0:09.5", "--json", str(out)]) == 0
    plain = tmp_path / "b.json"
    line = ["find", str(place / "r.npy"), str(place / "r.npy"), "--query-start", "2"]
    assert main([*line, "--query-end", "9.5", "--json", str(plain)]) == 0
    assert json.loads(out.read_text())["moments"] == json.loads(plain.read_text())["moments"]


@given(
    st.one_of(
        st.sampled_from([math.nan, math.inf, -math.inf, 0, -1, 1e300, 10**400, True, "3", None]),
        st.floats(max_value=0),
        st.integers(max_value=0),
    )
)
def test_a_number_above_zero_is_one(value: object) -> None:
    with pytest.raises(UsageError, match="x is .* wanted"):
        check_number(value, "x", above=0)  # type: ignore[arg-type]


@given(st.floats(min_value=1e-9, max_value=1e12, allow_nan=False))
def test_numbers_in_range_come_back(value: float) -> None:
    assert check_number(value, "x", above=0) == value


BAD = [math.nan, math.inf, -1, 0, 1e300, 10**400, True]


@pytest.mark.parametrize("value", BAD, ids=str)
def test_python_callers_are_told_too(place: Path, value: float) -> None:
    query, video = np.load(place / "q.npy"), np.load(place / "r.npy")
    matcher = ContrastMatcher()
    index = SearchIndex(place / "index", matcher)
    attempts = [
        lambda: matcher.localize(query, video, top_k=value),  # type: ignore[arg-type]
        lambda: matcher.localize(query, video, seconds_per_step=value),
        lambda: index.search(query, value),  # type: ignore[arg-type]
        lambda: index.search(query, candidates=value),  # type: ignore[arg-type]
        lambda: FeatureStore(place / "f.h5", subsample=value),  # type: ignore[arg-type]
        lambda: find_moments("q.mp4", "r.mp4", top_k=value),  # type: ignore[arg-type]
        lambda: find_moments("q.mp4", "r.mp4", rate_hz=value),
        lambda: VideoQuery(Path("q.mp4"), 5, value if value != 1e300 else math.nan),
    ]
    for attempt in attempts:
        with pytest.raises(RelocalError):
            attempt()


@pytest.mark.slow
def test_the_standard_output_holds_the_json_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["find", str(place / "q.npy"), str(place / "r.npy"), "--json", "-"]
    monkeypatch.chdir(place)
    done = run("-m", "relocal_pyg", *line)
    assert done.returncode == 0
    content = json.loads(done.stdout)
    assert content["schema"] == "relocal_pyg.moments/1"
    assert "matcher:" in done.stderr
    assert not (place / "-").exists()
    assert main([*line[:3], "--csv", "-"]) == 2


@pytest.mark.slow
def test_find_and_search_write_one_schema(place: Path, tmp_path: Path) -> None:
    found, searched = tmp_path / "find.json", tmp_path / "search.json"
    query = str(place / "q.npy")
    assert main(["find", query, str(place / "r.npy"), "--json", str(found)]) == 0
    assert main(["search", str(place / "index"), query, "--json", str(searched)]) == 0
    one, many = json.loads(found.read_text()), json.loads(searched.read_text())
    assert list(one) == list(many)
    assert set(one["moments"][0]) == set(many["moments"][0])
    assert [each["rank"] for each in many["moments"]] == list(range(1, len(many["moments"]) + 1))
    assert many["moments"][0]["video"] == "v"


@pytest.mark.slow
def test_the_version_is_said() -> None:
    import relocal_pyg

    words = [sys.executable, "-m", "relocal_pyg", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"relocal {relocal_pyg.__version__}\n"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 10**400, True, "x", [1], {}, "1e300"], ids=str
)
def test_times_of_requests_are_checked(value: object) -> None:
    requests = pytest.importorskip("relocal_pyg.apps.serve.requests")
    with pytest.raises(UsageError, match="a time is .* wanted"):
        requests.seconds(value)


def test_times_of_requests() -> None:
    requests = pytest.importorskip("relocal_pyg.apps.serve.requests")
    assert [requests.seconds(each) for each in (None, 4, "0:04", 4.5)] == [None, 4, 4, 4.5]
