"""Annotation readers: what is kept, what is set aside, what stops."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from relocal_pyg.data import read_activitynet, read_annotations, read_csv, read_thumos14
from relocal_pyg.data.annotations import Quarantine, Rejected, Segment, Video
from relocal_pyg.errors import AnnotationError, FeatureError

GOOD = {"segment": [1, 2.5], "label": "run"}


def write(folder: Path, database: object) -> Path:
    file = folder / "a.json"
    file.write_text(json.dumps({"version": "x", "database": database}))
    return file


def entry(*annotations: object, duration: object = 10, **more: object) -> dict[str, object]:
    return {"duration": duration, "subset": "training", "annotations": list(annotations), **more}


def test_the_official_layout(tmp_path: Path) -> None:
    database = {
        "b": entry({"segment": [4, 6], "label": "jump"}, GOOD, subject="anna"),
        "v_a": {"duration": 3.5, "subset": "testing"},
        "視頻": entry(GOOD, subject=7),
    }
    videos = read_activitynet(write(tmp_path, database))
    assert list(videos) == ["b", "v_a", "視頻"]
    assert videos["b"] == Video(
        "b", 10.0, (Segment(1.0, 2.5, "run"), Segment(4.0, 6.0, "jump")), "training", "anna"
    )
    assert videos["v_a"] == Video("v_a", 3.5, (), "testing")
    assert videos["視頻"].subject == "7"
    assert read_annotations(tmp_path / "a.json") == videos


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        ([3, 2], "start 3 is not before end 2"),
        ([3, 3], "start 3 is not before end 3"),
        ([-1, 2], "leaves the video of 10.0 s"),
        ([8, 10.5], "leaves the video of 10.0 s"),
        ([10, 11], "outside the video"),
        ([-2, 0], "outside the video"),
        ([float("nan"), 2], "times are nan, 2"),
        ([1, float("inf")], "times are 1, inf"),
        (["1", 2], "times are '1', 2"),
        ([True, 2], "times are True, 2"),
        ([1, None], "times are 1, None"),
        ([1, 10**400], "two numbers of seconds"),
        ([1, 2, 3], "two numbers of seconds"),
        ("1-2", "two numbers of seconds"),
        (None, "two numbers of seconds"),
    ],
)
def test_bad_times_are_set_aside(tmp_path: Path, segment: object, reason: str) -> None:
    file = write(tmp_path, {"a": entry({"segment": segment, "label": "run"}, GOOD)})
    quarantine = Quarantine()
    videos = read_activitynet(file, quarantine=quarantine)
    assert videos["a"].segments == (Segment(1.0, 2.5, "run"),)
    assert [(entry.file, entry.record) for entry in quarantine.records] == [
        (str(file), "a segment 0")
    ]
    assert reason in quarantine.records[0].reason
    with pytest.raises(AnnotationError, match="a segment 0"):
        read_activitynet(file, quarantine=Quarantine(strict=True))


@pytest.mark.parametrize("label", [None, "", "  ", 3, ["run"]])
def test_bad_labels_are_set_aside(tmp_path: Path, label: object) -> None:
    file = write(tmp_path, {"a": entry({"segment": [1, 2], "label": label}, GOOD)})
    quarantine = Quarantine()
    assert len(read_activitynet(file, quarantine=quarantine)["a"].segments) == 1
    assert "text wanted" in quarantine.records[0].reason


@pytest.mark.parametrize(
    "video",
    [
        None,
        [],
        {"annotations": 3, "duration": 4},
        entry(GOOD, duration=0),
        entry(GOOD, duration=-1),
        entry(GOOD, duration="10"),
        entry(GOOD, duration=True),
        entry(GOOD, duration=float("nan")),
    ],
)
def test_bad_videos_are_set_aside(tmp_path: Path, video: object) -> None:
    quarantine = Quarantine()
    videos = read_activitynet(
        write(tmp_path, {"a": video, "b": entry(GOOD)}), quarantine=quarantine
    )
    assert list(videos) == ["b"]
    assert [entry.record for entry in quarantine.records] == ["a"]


@pytest.mark.parametrize("video_id", ["", ".", "..", "a/b", "a\\b", "a\0b", "x" * 256, "a\ud800"])
def test_bad_ids_are_set_aside(tmp_path: Path, video_id: str) -> None:
    quarantine = Quarantine()
    file = write(tmp_path, {video_id: entry(GOOD), "b": entry(GOOD)})
    assert list(read_activitynet(file, quarantine=quarantine)) == ["b"]
    assert "the id" in quarantine.records[0].reason
    quarantine.save(tmp_path / "report.json")
    assert len(json.loads((tmp_path / "report.json").read_text())) == 1
    assert quarantine.summary().isprintable()


def test_the_actions_of_a_video_that_is_left_out_are_counted(tmp_path: Path) -> None:
    database = {"v": entry(GOOD), "a/b": entry(GOOD, GOOD), "w": entry(GOOD, duration=-1)}
    quarantine = Quarantine()
    read_activitynet(write(tmp_path, database), quarantine=quarantine)
    text = "video,start,end,label,duration\na,1,2,x,9\nb,1,2,x,5\nb,3,4,x,7\nb,4,5,x,7\n"
    read_csv(table(tmp_path, text), quarantine=quarantine)
    assert [entry.reason.partition(" (")[2] for entry in quarantine.records] == [
        "actions left out with it: 2)",
        "actions left out with it: 1)",
        "actions left out with it: 3)",
    ]


def test_a_duplicate_counts_once_and_is_reported(tmp_path: Path) -> None:
    quarantine = Quarantine()
    videos = read_activitynet(write(tmp_path, {"a": entry(GOOD, GOOD)}), quarantine=quarantine)
    assert len(videos["a"].segments) == 1
    assert "duplicate" in quarantine.records[0].reason


def test_clipping_on_request(tmp_path: Path) -> None:
    times = [[-1, 2], [8, 10.5], [10, 11], [-2, 0], [3, 2]]
    rows = [{"segment": time, "label": "run"} for time in times]
    quarantine = Quarantine()
    videos = read_activitynet(
        write(tmp_path, {"a": entry(*rows)}), quarantine=quarantine, clip=True
    )
    assert videos["a"].segments == (Segment(0.0, 2.0, "run"), Segment(8.0, 10.0, "run"))
    assert [entry.record[-1] for entry in quarantine.records] == ["2", "3", "4"]


def test_as_published_keeps_what_others_set_aside(tmp_path: Path) -> None:
    rows = [{"segment": time, "label": "run"} for time in ([3, 3], [8, 10.5])]
    videos = read_activitynet(write(tmp_path, {"a": entry(*rows)}), as_published=True)
    assert videos["a"].segments == (Segment(3.0, 3.0, "run"), Segment(8.0, 10.5, "run"))


def test_without_a_quarantine_a_warning_counts(tmp_path: Path) -> None:
    file = write(tmp_path, {"a": entry({"segment": [3, 2], "label": "run"}, GOOD)})
    with pytest.warns(UserWarning, match="1 record set aside: .*a segment 0"):
        read_activitynet(file)


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        ({}, "holds no action"),
        ({"a": entry()}, "holds no action"),
        ({"a": entry({"segment": [2, 1], "label": "x"})}, "no record can be used.*a segment 0"),
        ([], "has no .database. object"),
        (None, "has no .database. object"),
    ],
)
def test_nothing_usable_is_an_error(tmp_path: Path, database: object, reason: str) -> None:
    with pytest.raises(AnnotationError, match=reason):
        read_activitynet(write(tmp_path, database))


def test_ids_that_look_the_same_are_an_error(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "répas") for form in ("NFC", "NFD")]
    with pytest.raises(AnnotationError, match="Unicode normalisation"):
        read_activitynet(write(tmp_path, {name: entry(GOOD) for name in names}))
    (tmp_path / "a.csv").write_text(
        "video,start,end,label\n" + "".join(f"{name},1,2,x\n" for name in names)
    )
    with pytest.raises(AnnotationError, match="Unicode normalisation"):
        read_csv(tmp_path / "a.csv")


def test_a_duplicate_video_is_an_error_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"database": {\n"a": {},\n"a": {}}}')
    with pytest.raises(AnnotationError, match="line 3: key 'a' occurs twice"):
        read_activitynet(file)


def table(folder: Path, text: str | bytes) -> Path:
    file = folder / "a.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_table(tmp_path: Path) -> None:
    text = (
        "\ufeffvideo, start,end,label,duration,subject,subset\n"
        '007,1,2,"run, fast",10,anna,train\n'
        "b,1,2.5,NA,4,,\n"
        "007,0,1,jump,10,anna,train\n"
    )
    videos = read_annotations(table(tmp_path, text))
    assert videos == {
        "007": Video(
            "007", 10.0, (Segment(0, 1, "jump"), Segment(1, 2, "run, fast")), "train", "anna"
        ),
        "b": Video("b", 4.0, (Segment(1, 2.5, "NA"),), "", None),
    }


def test_a_table_without_durations(tmp_path: Path) -> None:
    videos = read_csv(table(tmp_path, "video,start,end,label\na,1,2000,x\n"))
    assert videos["a"].duration is None
    assert videos["a"].segments[0].end == 2000


def test_what_begins_before_a_video_of_unknown_length(tmp_path: Path) -> None:
    quarantine = Quarantine()
    file = table(tmp_path, "video,start,end,label\na,-1,2,x\na,-2,-1,x\na,0,1,x\n")
    read_csv(file, quarantine=quarantine)
    assert [entry.reason for entry in quarantine.records] == [
        "[-1.0, 2.0) leaves the video: --clip (clip=True) cuts it",
        "[-2.0, -1.0) lies outside the video",
    ]


def test_rows_of_other_programs_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of more than half of what is allowed were refused."""
    monkeypatch.setattr("relocal_pyg.data.annotations.MAX_ROWS", 3)
    rows = [f"a.mp4,STATE,run,{2 * n},{2 * n + 1},Media" for n in range(3)]
    head = "Media file name,Behavior type,Behavior,Start (s),Stop (s),Observation type"
    file = table(tmp_path, "\n".join([head, *rows]))
    assert len(read_annotations(file)["a"].segments) == 3
    monkeypatch.setattr("relocal_pyg.data.annotations.MAX_ROWS", 2)
    with pytest.raises(AnnotationError, match="over 2 actions"):
        read_annotations(file)


def test_durations_of_a_table_that_nearly_agree(tmp_path: Path) -> None:
    """They were compared as texts, and the video with all of its actions was set aside."""
    (tmp_path / "a.csv").write_text(
        "video,start,end,label,duration\na,1,2,x,10\na,3,4,x,10.0\na,5,6,x,0:10.4\na,7,8,x,\n"
        "b,1,2,x,10\nb,1,2,y,12\nc,1,2,x,10\nc,1,2,y,ten\n"
    )
    quarantine = Quarantine()
    (video,) = read_annotations(tmp_path / "a.csv", quarantine=quarantine).values()
    assert (video.video_id, video.duration, len(video.segments)) == ("a", 10.4, 4)
    assert [entry.record for entry in quarantine.records] == ["b", "c"]
    assert all("has several values of duration" in each.reason for each in quarantine.records)


def test_bad_rows_of_a_table_are_set_aside_with_their_line(tmp_path: Path) -> None:
    text = (
        "video,start,end,label,duration\n"
        "a,1,2,x,10\n"
        "a,one,2,x,10\n"
        "a,nan,2,x,10\n"
        "a,3,2,x,10\n"
        "a,3,20,x,10\n"
        "a,3,4,,10\n"
        "b,1,2,x,10\n"
        "b,1,2,x,12\n"
        "c,1,2,x,soon\n"
        "d/e,1,2,x,10\n"
        "f,1\n"
    )
    quarantine = Quarantine()
    videos = read_csv(table(tmp_path, text), quarantine=quarantine)
    assert {name: len(video.segments) for name, video in videos.items()} == {"a": 1, "f": 0}
    assert [entry.record for entry in quarantine.records] == [
        *(f"line {line} (a)" for line in (3, 4, 5, 6, 7)),
        "b",
        "c",
        "d/e",
        "line 12 (f)",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a table"),
        ("video,start,end\na,1,2\n", "has no column label"),
        ("video,start,end,label\na,1,2,x,5\n", "line 2: is not a table: 5 cells, 4 in"),
        (b"video,start,end,label\na,1,2,\xff\n", "line 2: is not UTF-8"),
        ("video,start,end,label\n", "holds no action"),
        ("video,start,end,label\na,2,1,x\n", "no record can be used"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(AnnotationError, match=reason):
        read_csv(table(tmp_path, text))


def thumos(folder: Path) -> Path:
    (folder / "t").mkdir()
    (folder / "t" / "Diving_test.txt").write_text("v1  1.0 2.5\nv2 3 4\n\nv3 1 2\n")
    (folder / "t" / "CliffDiving_test.txt").write_text("v1 1.0 2.5\nv2 30 40\n")
    (folder / "t" / "Ambiguous_test.txt").write_text("v1 5 6\n")
    (folder / "d.txt").write_text("x/v1.mp4\n10.0\nv2.mp4\n20\n")
    return folder


def test_thumos14_text(tmp_path: Path) -> None:
    thumos(tmp_path)
    quarantine = Quarantine()
    videos = read_thumos14(tmp_path / "t", tmp_path / "d.txt", quarantine=quarantine)
    assert videos == {
        "v1": Video(
            "v1", 10.0, (Segment(1, 2.5, "CliffDiving"), Segment(1, 2.5, "Diving")), "test"
        ),
        "v2": Video("v2", 20.0, (Segment(3, 4, "Diving"),), "test"),
    }
    assert [entry.record for entry in quarantine.records] == [
        "CliffDiving_test.txt line 2 (v2)",
        "v3",
    ]
    (tmp_path / "avoid.txt").write_text("v1 Diving\n\n")
    avoided = read_thumos14(
        tmp_path / "t", tmp_path / "d.txt", [tmp_path / "avoid.txt"], quarantine=Quarantine()
    )
    assert list(avoided) == ["v2"]


def test_malformed_thumos14_text(tmp_path: Path) -> None:
    thumos(tmp_path)
    (tmp_path / "t" / "Diving_test.txt").write_text("v1 1 2\nv1 1\n")
    with pytest.raises(AnnotationError, match=r"Diving_test.txt: line 2: a video, a start"):
        read_thumos14(tmp_path / "t", tmp_path / "d.txt")
    (tmp_path / "d.txt").write_text("v1.mp4\n10.0\nv2.mp4\n")
    with pytest.raises(AnnotationError, match="d.txt: line 4: a file name"):
        read_thumos14(tmp_path / "t", tmp_path / "d.txt")
    with pytest.raises(AnnotationError, match="does not exist"):
        read_thumos14(tmp_path / "t", tmp_path / "none.txt")
    (tmp_path / "d.txt").write_text("v1.mp4\n10.0\n")
    with pytest.raises(AnnotationError, match="holds no annotations"):
        read_thumos14(tmp_path / "none", tmp_path / "d.txt")


def test_the_quarantine(tmp_path: Path) -> None:
    quarantine = Quarantine()
    assert quarantine.summary() == "no record set aside"
    quarantine.add("a.json", "x", "one")
    quarantine.add("b.h5", "y", "two\nlines")
    assert len(quarantine) == 2
    assert quarantine.records[0] == Rejected("a.json", "x", "one")
    assert quarantine.summary() == "2 records set aside in 2 files: the first: a.json: x: one"
    quarantine.save(tmp_path / "q.json")
    assert json.loads((tmp_path / "q.json").read_text())[1] == {
        "file": "b.h5",
        "record": "y",
        "reason": "two\nlines",
    }
    with pytest.raises(FeatureError, match="b.h5: y: bad"):
        Quarantine(strict=True).add("b.h5", "y", "bad", FeatureError)


@pytest.mark.slow
def test_real_annotations(shared_data: Path) -> None:
    file = shared_data / "activitynet" / "activity_net.v1-2.json"
    raw = json.loads(file.read_text())["database"]
    quarantine = Quarantine()
    videos = read_activitynet(file, quarantine=quarantine)
    assert Counter(video.subset for video in videos.values()) == {
        "training": 4819,
        "validation": 2383,
    }
    kept = sum(len(video.segments) for video in videos.values())
    rows = [(v["duration"], *a["segment"]) for v in raw.values() for a in v["annotations"]]
    assert len(rows) == 10_733
    assert kept + len(quarantine) == 10_733
    beyond = sum(end > duration and start < end for duration, start, end in rows)
    reasons = Counter(entry.reason.split(" ")[-1] for entry in quarantine.records)
    assert reasons["it"] == beyond == 185
    assert reasons["once"] == 34
    assert len(quarantine) == 229
    quarantine = Quarantine()
    videos = read_activitynet(file, quarantine=quarantine, clip=True)
    assert len(quarantine) == 229 - beyond
    assert len({s.label for video in videos.values() for s in video.segments}) == 100


@pytest.mark.slow
def test_real_thumos14(shared_data: Path) -> None:
    root = shared_data / "thumos14"
    counts = {}
    for subset in ("validation", "test"):
        folder = root / f"temporal_annotations_{subset}"
        quarantine = Quarantine()
        videos = read_thumos14(folder, root / f"{subset}_durations.txt", quarantine=quarantine)
        lines = sum(
            bool(line.strip())
            for file in folder.glob("*.txt")
            if not file.name.startswith("Ambiguous")
            for line in file.read_text().splitlines()
        )
        kept = sum(len(video.segments) for video in videos.values())
        assert kept + len(quarantine) == lines
        assert len({s.label for video in videos.values() for s in video.segments}) == 20
        same = read_thumos14(
            folder,
            root / f"th14_{subset[:3] if subset != 'test' else 'test'}_durations.txt",
            quarantine=Quarantine(),
        )
        assert same == videos
        counts[subset] = (len(videos), kept, len(quarantine))
    assert counts == {"validation": (200, 3003, 4), "test": (212, 3332, 26)}
