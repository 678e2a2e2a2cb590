"""The drawn films, and what the printed command finds in them."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest

pytest.importorskip("av")

from relocal_pyg.apps.cli import main  # noqa: E402
from relocal_pyg.moments import tiou  # noqa: E402
from relocal_pyg.video import example, probe  # noqa: E402


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the films, and what the command said when it drew them."""
    folder = tmp_path_factory.mktemp("drawn")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["example", "my films"]) == 0
    return folder / "my films", said.getvalue()


def test_films_are_written_over_its_own_and_not_over_what_others_wrote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {name: film._replace(actions=(("walk", 0.2),)) for name, film in example.FILMS.items()}
    monkeypatch.setattr(example, "FILMS", short)
    for _ in range(2):
        assert main(["example", "my films"]) == 0
    (tmp_path / "my films" / "park.mp4").write_bytes(b"mine")
    assert main(["example", "my films"]) == 2


@pytest.mark.slow
def test_the_printed_command_finds_the_jumping_jacks(drawn, tmp_path, monkeypatch):
    films, said = drawn
    monkeypatch.chdir(tmp_path)
    shutil.copytree(films, tmp_path / "my films")
    assert probe(tmp_path / "my films" / "street.mp4").duration == pytest.approx(30, abs=0.1)
    command = shlex.split(said.splitlines()[-1])
    assert command[0] == "relocal"
    assert main([*command[1:], "--json", "answer.json"]) == 0
    best = json.loads((tmp_path / "answer.json").read_text())["moments"][0]
    assert float(tiou([best["start"], best["end"]], [13.0, 18.0])) > 0.6
    assert (tmp_path / "report.html").stat().st_size > 10_000


def _ask(*words: str) -> dict:
    assert main([*words, "--json", "found.json", "--force"]) == 0
    with open("found.json") as file:
        return json.load(file)


def _judge(*moments: tuple) -> None:
    said = [dict(zip(("video", "start", "end", "good"), each, strict=True)) for each in moments]
    with open("said.json", "w") as file:
        json.dump({"moments": said}, file)


@pytest.mark.slow
def test_what_was_judged_is_inside_its_film_and_counted_once(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn[0], tmp_path / "films")
    clip = ("films/park.mp4", "--query-start", "4", "--query-end", "8")
    told = ("--feedback", "said.json")
    assert main(["index", "library", "films"]) == 0
    find = ("find", *clip[:1], "films/street.mp4", *clip[1:], "--cache", "cache")
    search = ("search", "library", *clip)
    for command in (find, search):
        _judge(("street", 500, 510, True))
        capsys.readouterr()
        assert main([*command, *told]) == 2
        assert "starts at 500 s, the video ends at" in capsys.readouterr().err
        for every in ((), ("--all",)):
            _judge(("street", 13, 900, True), ("street", 13.2, 18, True), ("street", 2, 6, False))
            found = _ask(*command, *told, *every)
            first = found["moments"][0]
            assert (first["video"], first["start"]) == ("street", 13)
            assert first["end"] == pytest.approx(30, abs=0.5)
            inside = [each for each in found["moments"][1:] if each["video"] == "street"]
            # A fifth of the shorter one at most is shared with a yes, half of it with a no.
            assert all(m["end"] < 14 for m in inside)
            shared = [min(m["end"], 6) - max(m["start"], 2) for m in inside]
            lengths = [m["end"] - m["start"] for m in inside]
            assert all(part <= 0.5 * of for part, of in zip(shared, lengths, strict=True))
            if every:
                assert found["count"]["number"] == len(found["moments"])
    # In another film of that name, and by the index, they are of the film that they were made of.
    found = _ask(*find)
    found["moments"][0]["good"] = True
    (tmp_path / "said.json").write_text(json.dumps(found))
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "films/park.mp4", tmp_path / "other/street.mp4")
    other = _ask(*find[:2], "other/street.mp4", *find[3:], *told)
    assert [each["video"] for each in other["examples"]] == ["films/street.mp4"]
    assert other["moments"][0].get("probability") != 1
    best = _ask(*search, *told, "--report", "page.html")["moments"][0]
    assert (best["video"], best["probability"]) == ("street", 1)
    assert best["start"] == pytest.approx(found["moments"][0]["start"], abs=1e-3)
    found["moments"][0]["video"] = "other/street.mp4"
    (tmp_path / "said.json").write_text(json.dumps(found))
    capsys.readouterr()
    assert main([*search, *told]) == 2
    assert "said.json: other/street.mp4 is not in the index" in capsys.readouterr().err
    found = _ask(*find, "--not", "films/street.mp4:13-18")
    assert not any(12 < each["start"] < 17 for each in found["moments"])
    # What is left out of the table is not on the page, nor explained. The first answer has about
    # .5, a little more or less on other processors, and the next less than a third.
    written = ("--report", "page.html", "--explain", "why.json", "--min-probability", ".4")
    found = _ask(*find, *written)
    with open("page.html") as page, open("why.json") as why:
        assert page.read().count('<li id="moment-') == len(found["moments"])
        assert json.load(why)["moment"]["start"] == found["moments"][0]["start"]
