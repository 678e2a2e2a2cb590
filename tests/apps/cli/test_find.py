"""Questions to features: what is asked, judged, left out and written agrees, or is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.apps.cli import main
from relocal_pyg.apps.cli.exports import read_feedback
from relocal_pyg.apps.cli.options import split_place
from relocal_pyg.data.features import write_features
from relocal_pyg.errors import FeatureError, OutputError, UsageError
from relocal_pyg.models import ContrastMatcher
from relocal_pyg.models.examples import Example, trace
from relocal_pyg.models.occurrences import GUESS, occurrences
from relocal_pyg.moments import tiou

CHANNELS = 32


def video(steps: int, places: list[int], seed: int) -> np.ndarray:
    """Noise around one look, and an action of ten steps at some places."""
    rng = np.random.default_rng
    rows = rng(seed).normal(size=(steps, CHANNELS)) + rng(99).normal(size=CHANNELS)
    action = rng(7).normal(size=(10, CHANNELS)) / 2 + rng(8).normal(size=CHANNELS)
    for place in places:
        rows[place : place + 10] += 3 * action
    return rows.astype("f4")


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("clip.npy", video(10, [0], 2))
    np.save("other.npy", video(60, [20], 4))
    np.save("reference.npy", video(200, [40, 120], 1))
    np.save("narrow.npy", np.random.default_rng(0).normal(size=(10, 16)).astype("f4"))
    return tmp_path


@pytest.fixture
def index(place: Path) -> Path:
    videos = [("a", video(200, [40, 120], 1)), ("b.mp4", video(60, [20], 4))]
    write_features("lib.h5", [*videos, ("c", video(100, [], 5)), ("d::x", video(50, [10], 15))])
    assert main(["index", "library", "lib.h5"]) == 0
    return place / "library"


def ask(*words: str) -> dict:
    """What a command writes as JSON."""
    assert main([*words, "--json", "found.json", "--force"]) == 0
    return json.loads(Path("found.json").read_text())


def spans(found: dict) -> list[tuple[float, float]]:
    return [(each["start"], each["end"]) for each in found["moments"]]


CONTRAST = ("--model", "contrast")
FIND = ("find", "clip.npy", "reference.npy", *CONTRAST)
SELF = ("find", *["reference.npy"] * 2, "--query-start", "40", "--query-end", "50", *CONTRAST)


@pytest.mark.slow
@pytest.mark.parametrize("every", [(), ("--all",)])
def test_what_an_index_of_features_is_told_counts(index, every):
    search = ("search", "library", "clip.npy", "--top-k", "6", *every)
    found = ask(*search)
    for each in found["moments"]:
        each["good"] = {"a": False, "b.mp4": True}.get(each["video"])
    Path("said.json").write_text(json.dumps(found))
    told = ask(*search, "--feedback", "said.json")
    judged = {(each["video"], each["start"]): each["good"] for each in found["moments"]}
    assert told["moments"][0]["video"] == "b.mp4"
    assert not any(judged.get((m["video"], m["start"])) is False for m in told["moments"])
    if every:
        assert told["count"]["number"] == len(told["moments"])


@pytest.mark.slow
def test_an_index_of_features_is_no_saved_query(index, capsys):
    found = ask("search", "library", "clip.npy")
    found["moments"][0]["good"] = True
    Path("said.json").write_text(json.dumps(found))
    assert main(["find", "said.json", "reference.npy"]) == 2
    assert "moment 1: is of an index of features" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("every", [(), ("--all",)])
@pytest.mark.parametrize("model", ["contrast", "pretrained"])
def test_an_explanation_is_of_the_moment_that_is_written(place, model, every):
    step = ("--seconds-per-step", ".3", "--model", model, *every)
    found = ask(*FIND[:3], *step, "--explain", "why.json")
    why = json.loads(Path("why.json").read_text())
    assert why["moment"]["start"] == found["moments"][0]["start"]
    assert why["count"] == found["count"]
    if model == "contrast" and not every:
        assert np.sum(why["contributions"]) == pytest.approx(found["moments"][0]["score"], abs=1e-4)


def test_nothing_that_is_written_is_nothing_to_explain(place, capsys):
    assert main([*FIND, "--explain", "why.json", "--min-probability", "1"]) == 2
    assert "--explain: no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("find", "narrow.npy", "reference.npy"),
        ("find", "narrow.npy", "reference.npy", "--all"),
        (*FIND, "--query", "narrow.npy"),
        (*FIND, "--not", "narrow.npy", "--all"),
        ("search", "library", "narrow.npy"),
        ("search", "library", "narrow.npy", "--all"),
        ("search", "library", "clip.npy", "--query", "narrow.npy:2-5"),
    ],
)
def test_another_width_names_the_file(index, capsys, words):
    capsys.readouterr()
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("relocal: narrow.npy: has 16 channels and not 32")


def test_another_width_is_refused_in_python():
    wide, narrow = torch.rand(20, 8), torch.rand(4, 6)
    with pytest.raises(FeatureError, match="channels"):
        occurrences(ContrastMatcher(), narrow, wide)
    with pytest.raises(FeatureError, match="channels"):
        trace([Example(wide[:4]), Example(narrow)], wide)


def test_the_order_of_examples_does_not_matter():
    """Bare clips and clips in their videos ask for different centres of the reference."""
    draw = torch.Generator().manual_seed(0)
    reference, long, background = (torch.rand(n, 8, generator=draw) for n in (30, 40, 1))
    examples = [Example(torch.rand(6, 8, generator=draw)), Example(long[5:11], long)]
    first, second = (
        trace(each, reference, None, background[0]).similarity
        for each in (examples, examples[::-1])
    )
    assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.slow
def test_what_is_neither_true_nor_false_is_refused(place, capsys):
    found = ask(*FIND, "--query", "other.npy:20-30")
    for where in ("moments", "examples"):
        for good in ("false", 1, 0, []):
            told = [{**found[where][0], "good": good}]
            Path("said.json").write_text(json.dumps({**found, where: told}))
            assert main(["find", "said.json", "reference.npy"]) == 2
            assert '"good" true or false wanted' in capsys.readouterr().err


def test_yes_and_no_to_one_stretch_are_refused(tmp_path):
    said = [{"start": 1, "end": 2, "good": good} for good in (True, False)]
    (tmp_path / "said.json").write_text(json.dumps({"moments": said}))
    with pytest.raises(UsageError, match="moment 2.*says yes and no to one stretch"):
        read_feedback(tmp_path / "said.json")


def test_judgements_are_of_the_film_that_they_were_made_of(tmp_path):
    """Another film of the same name has nothing to do with them."""
    for name in ("films/street.mp4", "more/park.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    stretch = (1.0, 2.0, True)
    named = {None: "films/street.mp4", "street": "films/street.mp4", "more/park.mp4": None}
    for video, place in named.items():
        said = [{"video": video, "start": 1, "end": 2, "good": True}]
        found = {"reference": "films/street.mp4", "moments": said}
        (tmp_path / "said.json").write_text(json.dumps(found))
        place = str(tmp_path / (place or str(video)))
        assert read_feedback(tmp_path / "said.json") == [(video, place, stretch)]
    (tmp_path / "films/street.mp4").rename(tmp_path / "street.mp4")
    found["moments"][0]["video"] = "street"
    (tmp_path / "said.json").write_text(json.dumps(found))
    assert read_feedback(tmp_path / "said.json") == [("street", None, stretch)]


@pytest.mark.slow
@pytest.mark.parametrize("every", [(), ("--all",)])
def test_the_clip_and_what_is_not_meant_are_no_answers(place, capsys, every):
    assert (120, 130) in spans(ask(*SELF, *every))
    assert "the query's own stretch is left out" in capsys.readouterr().out
    assert (40, 50) not in spans(ask(*SELF, *every))
    assert (40, 50) in spans(ask(*SELF, *every, "--include-query"))
    found = ask(*SELF, *every, "--not", str(place / "reference.npy:120-130"))
    assert not any(start < 128 and end > 122 for start, end in spans(found))


@pytest.mark.parametrize(
    "words",
    [
        ("--query-text", "a jump"),
        ("--backbone", "c3d"),
        ("--rate", "3"),
        ("--no-exhaustive",),
        ("--stream", "1"),
        ("--cache", "cache"),
    ],
)
def test_options_of_films_are_refused_for_features(index, capsys, words):
    commands = [list(FIND)]
    if words[0] in ("--query-text", "--backbone"):
        commands.append(["search", "library", "clip.npy"])
    for command in commands:
        assert main([*command, *words]) == 2
        assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("find", "a.mp4", "a.mp4", "--key", "x"), "--seconds-per-step and --key are of features"),
        (("search", "library", "a.mp4", "--seconds-per-step", "2"), "are of features"),
        (("watch", ".", "--query", "a.mp4", "--key", "x", "--out", "w"), "are of features"),
        (("watch", ".", "--query", "clip.npy", "--rate", "5", "--out", "w"), "is of video files"),
        (("index", "more", ".", "--seconds-per-step", "2"), "videos have --rate"),
        (("index", "library", "lib.h5", "--rate", "2"), "need video files"),
        ((*FIND, "--reencode"), "needs --cut"),
        ((*FIND, "--srt", "a.srt", "--padding", "2"), "--padding is of --export and --cut"),
        ((*FIND, "--export", "a.srt", "--timeline-start", "2"), "is of --format resolve-markers"),
        ((*FIND, "--key", "x"), "--key is of feature files"),
        (("search", "library", "clip.npy", "--all", "--candidates", "9"), "--candidates changes"),
        (("search", "library", "clip.npy", "--all", "--first-stage", "faiss"), "--first-stage ch"),
        ((*FIND, "--export", "a.srt", "--export", "b.srt"), "--export is given twice"),
        (("train", "run", "--set", "a=1", "--set", "b=1"), "--set is given twice"),
        ((*FIND, "--export"), "--export needs a value"),
        (("evaluate", "run", "--few-shot"), "--few-shot needs a value"),
        (("convert", "-o", "a.csv"), "FILE is missing"),
        (("train", "run", "--backbone", "c3d"), "need --videos"),
        (("train", "run", "--start", "."), "holds no weights to start from"),
        (("evaluate", ".", "--seeds", "1"), "are of --models all"),
        (("evaluate", ".", "--instances", "multi"), "needs --few-shot"),
        (("ablate", "out", "--grid", "weights", "--graphs", "2"), "are of --grid layers-graphs"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(index, capsys, words, reason):
    Path("a.mp4").touch()
    assert main([*words]) == 2
    assert reason in capsys.readouterr().err


def test_a_timecode_that_is_none_is_said_before_an_index_is_searched(index, capsys):
    words = ("search", "library", "a.mp4", "--export", "a.edl", "--format", "resolve-markers")
    Path("a.mp4").touch()
    assert main([*words, "--timeline-start", "25:99"]) == 2
    assert capsys.readouterr().err.startswith("relocal: '25:99' is not a timecode")


def test_a_yes_and_a_no_to_one_stretch_are_refused(place, capsys):
    saved = ask(*FIND, "--query", "reference.npy:40-50")
    saved["moments"] = [{"video": "reference.npy", "start": 40, "end": 50, "good": False}]
    Path("saved.json").write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["find", "saved.json", "reference.npy", *CONTRAST]) == 2
    assert "reference.npy:40.000-50.000: is an example and what is not" in capsys.readouterr().err


def test_a_closed_standard_output_is_not_written_to(place, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)  # what Python makes of ">&-"
    assert main([*FIND, "--json", "-"]) == 2
    assert "the standard output is closed" in capsys.readouterr().err


def test_json_that_names_no_file_is_refused_in_a_line(place, capsys):
    judged = {"video": "a\0b", "start": 0, "end": 1, "good": True}
    Path("judged.json").write_text(json.dumps([judged]))
    for name in ("a.mp4", "b.mp4"):
        Path(name).touch()
    assert main(["find", "a.mp4", "b.mp4", "--feedback", "judged.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    saved = ask(*FIND) | {"query": "a\0.npy"}
    Path("saved.json").write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["watch", ".", "--query", "saved.json", "--out", "w", "--once"]) == 2
    assert "is no name of a file" in capsys.readouterr().err


def test_exports_of_an_index_end_with_the_video(index):
    words = ("search", "library", "clip.npy", "--padding", "500", "--export", "found.csv")
    assert main([*words, "--top-k", "3"]) == 0
    with open("found.csv") as stream:
        ends = {row["video"]: float(row["end"]) for row in csv.DictReader(stream)}
    assert ends == {"a": 200, "b.mp4": 60}


def test_a_saved_query_keeps_the_clock_of_features(place, monkeypatch):
    stretch = ("--query-start", "10", "--query-end", "15")
    first = ask("find", "other.npy", *FIND[2:], *stretch, "--seconds-per-step", ".5")
    Path("saved.json").write_text(json.dumps(first))
    assert spans(ask("find", "saved.json", "reference.npy", *CONTRAST)) == spans(first)
    write_features("lib.h5", [("one.mp4", video(60, [20], 4))])
    Path("saved.json").write_text(json.dumps({**first, "query": "lib.h5::one.mp4"}))
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")  # paths begin at the folder of the JSON
    assert main(["find", "../saved.json", "../reference.npy", *CONTRAST]) == 0


def test_a_stretch_is_inside_its_array(place, capsys):
    assert ask(*FIND, "--query-end", "5000")["query_span"] == [0, 10]
    assert main([*FIND, "--query", "other.npy:300-400"]) == 2
    assert "other.npy: the stretch 300-400 s is not inside its 60 s" in capsys.readouterr().err
    assert main([*FIND, "--query", "other.npy:1.2.3-4"]) == 2
    assert "other.npy:1.2.3-4" in capsys.readouterr().err


def test_answers_are_of_different_places(place):
    found = torch.tensor(spans(ask(*FIND)))
    overlaps = tiou(found[:, None], found[None]).fill_diagonal_(0)
    assert overlaps.max() <= 0.2


def test_a_count_by_a_bare_clip_says_that_it_is_a_guess(place, capsys):
    assert ask(*FIND, "--all")["count"]["rule"] == GUESS
    assert GUESS in capsys.readouterr().out
    assert GUESS not in ask(*SELF, "--all")["count"]["rule"]


def test_places_of_odd_names(place, monkeypatch):
    np.save("x::y.npy", video(10, [0], 2))
    write_features("lib.h5", [("d::x", video(50, [10], 15))])
    assert split_place("lib.h5::d::x") == ("lib.h5", "d::x")
    assert split_place("x::y.npy") == ("x::y.npy", "")
    found = ask("find", "x::y.npy", "lib.h5::d::x", *CONTRAST)
    assert {each["video"] for each in found["moments"]} == {"d::x"}
    words = "word " * 60  # no path
    assert main(["find", "absent.mp4", "--query-text", words]) == 2


def test_numbers_whose_squares_overflow_are_refused(place, capsys):
    rows = video(10, [0], 2)
    rows[3] *= 1e30
    np.save("large.npy", rows)
    assert main(["find", "large.npy", "reference.npy", "--json", "-"]) == 2
    assert "step 3 is too large" in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_what_cannot_be_written_takes_nothing_else_along(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full for one file of three, and nothing is left to explain."""
    from relocal_pyg.apps.cli import exports

    write = exports.export_clips

    def full(file: Path, *rest: object) -> list[Path]:
        if file.suffix == ".vtt":
            raise OutputError("No space left on device", file=file)
        return write(file, *rest)

    monkeypatch.setattr(exports, "export_clips", full)
    found = ["find", "clip.npy", "reference.npy", "--model", "contrast", "--json", "a.json"]
    assert main([*found, "--export", "a.vtt", "a.srt", "--csv", "a.csv"]) == 2
    assert capsys.readouterr().err == "relocal: a.vtt: No space left on device\n"
    for name in ("a.json", "a.srt", "a.csv"):
        assert Path(name).stat().st_size > 0
    asked = [*found, "--min-probability", "1", "--force", "--explain", "why.json"]
    assert main([*asked, "--export", "a.vtt", "b.srt"]) == 2
    warned, error = capsys.readouterr().err.splitlines()
    assert warned == "relocal: warning: a.vtt: No space left on device"
    assert error.startswith("relocal: --explain: no answer")
    assert Path("b.srt").is_file()
