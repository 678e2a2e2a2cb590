"""Files that come in, and tables of searches: each answered once, whatever kills the command."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from forked import start

from relocal_pyg.apps.cli import main
from relocal_pyg.errors import OutputError
from relocal_pyg.models import load_model
from relocal_pyg.video import folder as folders


def save(path: Path, seed: int, steps: int = 30) -> None:
    """An array under its final name only when it is whole."""
    hidden = path.with_name(f".{path.stem}.npy")
    np.save(hidden, np.random.default_rng(seed).standard_normal((steps, 8)).astype("f4"))
    hidden.rename(path)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def words(place: Path, *more: str) -> list[str]:
    out, query = str(place / "out"), str(place / "query.npy")
    line = ["watch", str(place / "in"), "--query", query, "--out", out, "--settle", "0"]
    return [*line, "--min-probability", "0", *more]


def watch(place: Path, *more: str) -> int:
    return main(words(place, *more))


@pytest.mark.slow
@pytest.mark.faults
def test_killed_while_files_come_each_is_answered_once(tmp_path, count):
    many, files = count(4, 20), count(4, 10)
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    noting = f"sh -c 'cat >> {tmp_path / 'ran'}; echo >> {tmp_path / 'ran'}'"
    command = ["-m", "relocal_pyg", *words(tmp_path, "--run", noting)]
    draw, journal, kills = np.random.default_rng(0), tmp_path / "out" / "answers.jsonl", 0
    for number in range(files * many):
        save(tmp_path / "in" / f"segment {number}.npy", number)
        if number % files == files - 1:
            size = journal.stat().st_size if journal.exists() else 0
            process = start(command, tmp_path, 1, 2)
            while process.is_alive() and not (journal.exists() and journal.stat().st_size > size):
                process.join(0.01)
            process.join(draw.uniform(0, 0.05))  # somewhere in its work
            kills += process.is_alive()
            process.kill()
            process.join()
    assert kills == many
    assert watch(tmp_path, "--once", "--run", f"sh -c 'cat >> {tmp_path / 'ran'}'") == 0
    answered = Counter(each["file"] for each in lines(journal)[1:] if "file" in each)
    assert answered == {f"segment {number}.npy": 1 for number in range(files * many)}
    told = (tmp_path / "ran").read_text()
    assert all(f'"segment {number}.npy"' in told for number in range(files * many))


@pytest.mark.slow
def test_another_query_is_refused_and_a_file_written_over_is_searched_again(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    save(tmp_path / "in" / "a.npy", 1)
    (tmp_path / "in" / "b.npy").write_bytes(b"no array")
    (tmp_path / "in" / "c.txt").write_bytes(b"other things")
    assert watch(tmp_path, "--once") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["file"]: "error" in each for each in printed} == {"a.npy": False, "b.npy": True}
    assert watch(tmp_path, "--once") == 0
    assert capsys.readouterr().out == ""
    save(tmp_path / "in" / "b.npy", 2)
    with (tmp_path / "out" / "answers.jsonl").open("a") as journal:
        journal.write('{"file": "b.npy", "si')  # what a kill leaves
    assert watch(tmp_path, "--once") == 0
    (again,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert again["file"] == "b.npy"
    assert len(again["moments"]) > 0
    assert watch(tmp_path, "--once", "--query-end", "3") == 2
    assert "another query" in capsys.readouterr().err
    assert watch(tmp_path, "--once", "--top-k", "2") == 2
    save(tmp_path / "query.npy", 3, 6)  # under the same name
    assert watch(tmp_path, "--once") == 2
    assert "another query" in capsys.readouterr().err


@pytest.mark.slow
def test_another_model_under_one_name_is_another_query(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    model = load_model("pretrained")
    model.save(tmp_path / "model")
    asked = ("--once", "--model", str(tmp_path / "model"))
    assert watch(tmp_path, *asked) == watch(tmp_path, *asked) == 0
    for weight in model.parameters():
        weight.data.neg_()
    shutil.rmtree(tmp_path / "model")
    model.save(tmp_path / "model")
    assert watch(tmp_path, *asked) == 2
    assert "another query" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"), [("", "an empty"), ("no-such", "no-such"), ('a "b', "--run")]
)
def test_a_command_that_is_none_is_said_first(tmp_path, capsys, command, told):
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    assert watch(tmp_path, "--once", "--run", command) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        '{"file": "a"}',
        '{"file": [], "size": 1, "changed": 1}',
        '{"ran": {}}',
        '{"row": "a"}',
        '{"row": [], "moments": []}',
        '{"row": "a", "moments": ["b"]}',
        '["file", "size", "changed"]',
        "null",
        "",
    ],
)
def test_a_line_that_is_no_record_is_named_and_can_be_emptied(tmp_path, capsys, line):
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    save(tmp_path / "in" / "a.npy", 1)
    (tmp_path / "table.csv").write_text("query,reference\nquery.npy,in/a.npy")
    batch = ["batch", str(tmp_path / "table.csv"), "--out", str(tmp_path / "batch")]
    for command, place in [
        (lambda: watch(tmp_path, "--once"), tmp_path / "out" / "answers.jsonl"),
        (lambda: main(batch), tmp_path / "batch" / "journal.jsonl"),
    ]:
        assert command() == 0
        good = place.read_text()
        head, answer = good.splitlines()
        place.write_text(f"{head}\n{line}\n{answer}\n")
        capsys.readouterr()
        assert command() == 2
        error = capsys.readouterr().err
        assert f"{place}: line 2: is damaged" in error
        assert error.count("\n") == 1
        assert place.read_text() == f"{head}\n{line}\n{answer}\n"
        place.write_text(f"{head}\n{{}}\n{answer}\n")
        assert command() == 0
        assert place.read_text() == f"{head}\n{{}}\n{answer}\n"  # answered before
        place.write_text("notes of somebody")
        assert command() == 2
        assert place.read_text() == "notes of somebody"


@pytest.mark.slow
def test_what_is_wrong_with_the_query_is_not_put_down_to_the_files(tmp_path, capsys, monkeypatch):
    """A file that was answered with an error is never looked at again."""
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.npy", 1)
    save(tmp_path / "query.npy", 0, 6)
    np.save(tmp_path / "nan.npy", np.full((4, 8), np.nan))
    np.save(tmp_path / "wide.npy", np.ones((4, 9)))
    nothing, nan = str(tmp_path / "nothing.npy"), str(tmp_path / "nan.npy")
    (tmp_path / "b.mp4").write_bytes(b"no film")
    for query in (
        ["--query", nothing],
        ["--query", str(tmp_path / "nothing.mp4")],
        ["--query", str(tmp_path / "b.mp4")],
        ["--query", nan],
        ["--query-image", str(tmp_path / "b.mp4")],
        ["--query", str(tmp_path / "query.npy"), "--query-start", "50"],
        ["--query", str(tmp_path / "query.npy"), "--not", nothing],
        ["--query", str(tmp_path / "query.npy"), "--query", str(tmp_path / "wide.npy")],
        [],
    ):
        place = ["watch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--once"]
        assert main([*place, "--settle", "0", *query]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["watch", str(tmp_path / "query.npy"), "--query", nan, "--once"]) == 2
    assert "is no folder" in capsys.readouterr().err

    def full(*_, **__):
        raise OutputError("feature rows cannot be kept", file="/tmp")

    with monkeypatch.context() as patch:  # a full disk is no fault of the file
        patch.setattr("relocal_pyg.apps.cli.watch.find_in_features", full)
        assert watch(tmp_path, "--once") == 2
    capsys.readouterr()
    assert watch(tmp_path, "--once") == 0
    assert "moments" in json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_command_that_fails_is_said(tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    save(tmp_path / "in" / "a.npy", 1)
    assert watch(tmp_path, "--once", "--run", "sh -c 'exit 3'") == 0
    told = capsys.readouterr()
    assert told.err == "relocal: warning: --run ended with 3 for a.npy\n"
    monkeypatch.setattr("relocal_pyg.apps.cli.watch.RUN_SECONDS", 0.1)
    save(tmp_path / "in" / "b.npy", 1)
    assert watch(tmp_path, "--once", "--run", "sleep 60") == 0
    ended = "--run took more than 0.1 s and was ended for b.npy"
    assert capsys.readouterr().err == f"relocal: warning: {ended}\n"
    assert len(told.out.splitlines()) == 1


def test_a_file_is_given_when_it_has_stopped_growing(tmp_path, monkeypatch):
    growing, now = tmp_path / "a.mp4", [0.0]
    growing.write_bytes(b"0")

    def tick(seconds: float) -> None:
        now[0] += 1
        if now[0] <= 7:
            growing.write_bytes(b"0" * int(1 + now[0]))
            os.utime(growing, (0, 0))  # its size alone tells

    monkeypatch.setattr(folders.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(folders.time, "sleep", tick)
    done: list = []
    for given in folders.settled_files(
        tmp_path, lambda *each: each not in done, settle=3, once=True
    ):
        done.append(given)
    ((_, (size, _)),) = done
    assert size == 8
    assert now[0] >= 10


@pytest.mark.slow
def test_a_table_of_searches(tmp_path, capsys):
    save(tmp_path / "query.npy", 0, 6)
    save(tmp_path / "a.npy", 1)
    table, out = tmp_path / "table.csv", tmp_path / "out"
    rows = [
        "query;query_start;reference",
        "query.npy;;a.npy",
        "query.npy;2,0;a.npy",
        "a.npy;;no.npy",
    ]
    table.write_text("\n".join(rows))
    command = ["batch", str(table), "--out", str(out), "--top-k", "2"]
    assert main(command) == 1
    answers = list(csv.DictReader((out / "answers.csv").open()))
    assert [row["rank"] for row in answers] == ["1", "2", "1", "2", ""]
    assert (
        "no.npy: no such file" in answers[-1]["error"] or "does not exist" in answers[-1]["error"]
    )
    single = tmp_path / "one.json"
    asked = ["find", str(tmp_path / "query.npy"), str(tmp_path / "a.npy"), "--query-start", "2"]
    assert main([*asked, "--json", str(single)]) == 0
    best = json.loads(single.read_text())["moments"][0]
    assert [float(answers[2][name]) for name in ("start", "end")] == [best["start"], best["end"]]
    table.write_text("\n".join(rows[:3]))
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of 2 rows were answered before" in capsys.readouterr().out
    save(tmp_path / "a.npy", 2)  # another version, another question
    assert main(command) == 0
    assert "0 of 2 rows" in capsys.readouterr().out
    table.write_text("query,query_strat,reference\nquery.npy,2,a.npy")  # misspelt
    capsys.readouterr()
    assert main(command) == 0
    assert "columns that are not read: query_strat" in capsys.readouterr().out
    table.write_text("query\nquery.npy")
    assert main(command) == 2


@pytest.mark.slow
def test_a_batch_answers_again_what_asks_of_other_files(tmp_path, capsys):
    """What a saved query names, and the weights of a model, are files of a row too."""
    for seed, name in enumerate(("query", "other", "a")):
        save(tmp_path / f"{name}.npy", seed)
    saved = tmp_path / "asked.json"
    first = ["find", str(tmp_path / "query.npy"), str(tmp_path / "a.npy"), "--query-end", "6"]
    assert main([*first, "--query", str(tmp_path / "other.npy:2-6"), "--json", str(saved)]) == 0
    load_model("pretrained").save(tmp_path / "model")
    (tmp_path / "table.csv").write_text("query,reference\nasked.json,a.npy\n")
    command = ["batch", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")]
    command += ["--model", str(tmp_path / "model")]
    (weights,) = (tmp_path / "model").rglob("*.safetensors")
    other = next(each for each in (tmp_path / "model").glob("*.json") if each.stem != "manifest")
    for change, before in [
        (None, 0),
        (None, 1),
        (tmp_path / "query.npy", 0),
        (tmp_path / "other.npy", 0),
        (weights, 0),
        (other, 0),
        (None, 1),
    ]:
        if change is not None:
            os.utime(change, (1, 1))
        capsys.readouterr()
        assert main(command) == 0
        assert f"{before} of 1 rows were answered before" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_file_that_may_not_be_read_is_searched_once_it_may(tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    save(tmp_path / "query.npy", 0, 6)
    for seed, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}.npy", seed)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).stem != "b")
    assert watch(tmp_path, "--once") == 0
    error = capsys.readouterr().err
    assert error.startswith("relocal: warning: ")
    assert error.endswith("b.npy: may not be read\n")
    journal = tmp_path / "out" / "answers.jsonl"
    assert [each["file"] for each in lines(journal)[1:]] == ["a.npy"]
    monkeypatch.undo()
    assert watch(tmp_path, "--once") == 0
    assert [each["file"] for each in lines(journal)[1:]] == ["a.npy", "b.npy"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("query,reference,query\nq.npy,r.npy,s.npy\n", "more than one column query"),
        ("query,reference\nq.npy,r,x.npy\n", "line 2: is not a table: 3 cells, 2 in the first"),
        ("query,reference\nq\0.npy,r.npy\n", "q\\x00.npy: is no name of a file"),
        ("\nquery,reference\n", "its first line is empty"),
    ],
)
def test_a_table_that_could_be_read_in_two_ways_is_refused(tmp_path, capsys, text, reason):
    (tmp_path / "table.csv").write_text(text)
    assert main(["batch", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err


def test_a_folder_whose_name_is_no_text_has_its_table(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "table.csv").write_text("query,reference\nq.npy,none.npy\n")
    assert main(["batch", str(folder / "table.csv"), "--out", str(tmp_path / "out")]) == 1
    with open(tmp_path / "out" / "answers.csv", encoding="utf-8") as stream:
        assert [row["query"] for row in csv.DictReader(stream)] == [
            str(folder / "q.npy").replace("\udce9", "\\udce9")
        ]
