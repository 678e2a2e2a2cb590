"""Files of other programs as rows of annotations; recipes of small files with the right rows."""

from __future__ import annotations

import csv
import json
import re
from fractions import Fraction
from pathlib import Path

import pympi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocal_pyg.apps.cli.exports import read_saved
from relocal_pyg.data.annotations import Quarantine, read_annotations, write_csv
from relocal_pyg.errors import AnnotationError, RelocalError, UsageError
from relocal_pyg.formats import Clip, Source, export_clips
from relocal_pyg.formats.rows import ImportOptions, read_xml
from relocal_pyg.video.folder import video_id


def rows(path, quarantine=None, **options):
    """(video, start, end, label, subject, duration) of a file, as the table holds them."""
    quarantine = Quarantine() if quarantine is None else quarantine
    videos = read_annotations(path, quarantine=quarantine, options=ImportOptions(**options))
    return [
        (v.video_id, s.start, s.end, s.label, s.subject or v.subject or "", v.duration)
        for v in videos.values()
        for s in v.segments
    ]


def reasons(quarantine):
    return [(entry.record, entry.reason) for entry in quarantine.records]


def put(folder, name, content):
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


# ELAN


MEDIA = '<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/{0}" RELATIVE_MEDIA_URL="./{0}" {1}/>'


def eaf(media, tiers, slots):
    order = "".join(
        f'<TIME_SLOT TIME_SLOT_ID="{name}"' + (f' TIME_VALUE="{time}"/>' if time != "" else "/>")
        for name, time in slots.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ANNOTATION_DOCUMENT FORMAT="3.0">'
        f'<HEADER TIME_UNITS="milliseconds">{"".join(media)}</HEADER>'
        f"<TIME_ORDER>{order}</TIME_ORDER>{''.join(tiers)}</ANNOTATION_DOCUMENT>"
    )


def aligned(name, one, two, value):
    return (
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{name}" TIME_SLOT_REF1="{one}" '
        f'TIME_SLOT_REF2="{two}"><ANNOTATION_VALUE>{value}</ANNOTATION_VALUE>'
        "</ALIGNABLE_ANNOTATION></ANNOTATION>"
    )


def test_elan(tmp_path):
    film = MEDIA.format("my%20film.mp4", 'MIME_TYPE="video/mp4" TIME_ORIGIN="1500"')
    sound = MEDIA.format("my%20film.wav", 'MIME_TYPE="audio/x-wav"')
    parent = (
        '<TIER TIER_ID="act" PARTICIPANT="anna">'
        + aligned("a1", "ts1", "ts2", "jump &amp; run")
        + aligned("a2", "ts2", "ts9", "lost")
        + "</TIER>"
    )
    child = (
        '<TIER TIER_ID="hand" PARENT_REF="act"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3" '
        'ANNOTATION_REF="a1"><ANNOTATION_VALUE>left</ANNOTATION_VALUE></REF_ANNOTATION>'
        "</ANNOTATION></TIER>"
    )
    words = (
        '<TIER TIER_ID="parts">'
        + aligned("a4", "ts1", "ts3", "one")
        + aligned("a5", "ts3", "ts4", "two")
        + aligned("a6", "ts4", "ts2", "three")
        + "</TIER>"
    )
    slots = {"ts1": 4000, "ts3": "", "ts4": "", "ts2": 7000, "ts9": ""}
    file = put(tmp_path, "a.eaf", eaf([film, sound], [parent, child, words], slots))
    quarantine = Quarantine()
    assert rows(file, quarantine) == [
        ("my film", 5.5, 6.5, "one", "", None),
        ("my film", 5.5, 8.5, "jump & run", "anna", None),
        ("my film", 5.5, 8.5, "left", "", None),
        ("my film", 6.5, 7.5, "two", "", None),
        ("my film", 7.5, 8.5, "three", "", None),
    ]
    assert reasons(quarantine) == [("tier 'act' annotation a2", "its time slots have no value")]


def test_ids_that_two_elan_annotations_share(tmp_path):
    """Of documents that were put together, the first had the time of the second."""
    both = aligned("a1", "t1", "t2", "run") + aligned("a1", "t3", "t4", "x")
    slots = {"t1": 0, "t2": 1000, "t3": 5000, "t4": 6000}
    file = put(tmp_path, "a.eaf", eaf([], [f'<TIER TIER_ID="act">{both}</TIER>'], slots))
    assert [row[1:4] for row in rows(file)] == [(0.0, 1.0, "run"), (5.0, 6.0, "x")]


def test_elan_with_several_media(tmp_path):
    media = [
        MEDIA.format("left.mp4", 'MIME_TYPE="video/mp4"'),
        MEDIA.format("right.mp4", 'MIME_TYPE="video/mp4" TIME_ORIGIN="250"'),
    ]
    tier = f'<TIER TIER_ID="t">{aligned("a1", "ts1", "ts2", "x")}</TIER>'
    file = put(tmp_path, "a.eaf", eaf(media, [tier], {"ts1": 1000, "ts2": 2000}))
    with pytest.raises(AnnotationError, match=r"several media.*--media\): 'left', 'right'"):
        rows(file)
    assert rows(file, media="right.mp4") == [("right", 1.25, 2.25, "x", "", None)]
    with pytest.raises(AnnotationError, match="'up' is none of"):
        rows(file, media="up")
    sound = MEDIA.format("right.wav", 'MIME_TYPE="audio/x-wav" TIME_ORIGIN="900"')
    file = put(tmp_path, "c.eaf", eaf([sound, *media], [tier], {"ts1": 1000, "ts2": 2000}))
    assert rows(file, media="right.mp4") == [("right", 1.25, 2.25, "x", "", None)]
    above = '<MEDIA_DESCRIPTOR MEDIA_URL="" RELATIVE_MEDIA_URL="../../a/my%20film.mp4"/>'
    file = put(tmp_path, "d.eaf", eaf([above], [tier], {"ts1": 1000, "ts2": 2000}))
    assert rows(file) == [("my film", 1, 2, "x", "", None)]
    alone = put(tmp_path, "b.eaf", eaf([], [tier], {"ts1": 1000, "ts2": 2000}))
    assert rows(alone) == [("b", 1, 2, "x", "", None)]


def test_elan_written_by_pympi(tmp_path):
    document = pympi.Elan.Eaf(author="x")
    document.add_linked_file("film.mp4", relpath="./film.mp4", mimetype="video/mp4", time_origin=40)
    document.add_tier("acts", part="bo")
    document.add_annotation("acts", 1200, 3400, "wink < nod é")
    document.to_file(str(tmp_path / "a.eaf"))
    assert rows(tmp_path / "a.eaf") == [("film", 1.24, 3.44, "wink < nod é", "bo", None)]


# BORIS


AGGREGATED = [
    "Observation id\tObservation type\tSource\tTime offset (s)\tMedia duration (s)\tSubject\t"
    "Behavior\tModifier #1\tModifier #2\tBehavior type\tStart (s)\tStop (s)\tMedia file name",
    "one\tMedia file\tplayer #1:a/v1.mp4;a/v2.mp4|player #2:side.mp4\t0.0\t179.960;359.960|9.000\t"
    "subject1\ts\tm1\tm2\tSTATE\t266.165\t276.690\ta/v2.mp4",
    "one\tMedia file\tplayer #1:a/v1.mp4;a/v2.mp4|player #2:side.mp4\t0.0\t179.960;359.960|9.000\t"
    "No focal subject\tp\t\tNone\tPOINT\t32.825\t32.825\ta/v1.mp4",
    "two\tMedia file\tplayer #1:v3.mp4\t100.0\t50.000\tNo focal subject\ts\t\t\tSTATE\t110.5\t"
    "112.25\tv3.mp4",
    "three\tLive observation\tNA\t0.0\tNA\tsubject1\ts\t\t\tSTATE\t1\t2\tNA",
]


def test_boris_aggregated(tmp_path):
    file = put(tmp_path, "a.tsv", "\n".join(AGGREGATED) + "\n")
    quarantine = Quarantine()
    assert rows(file, quarantine) == [
        ("v2", 86.205, 96.73, "s", "subject1", 359.96),
        ("v3", 10.5, 12.25, "s", "", 50.0),
    ]
    assert [record for record, _ in reasons(quarantine)] == ["line 3", "line 5"]
    assert "--point-width" in reasons(quarantine)[0][1]
    assert rows(file, point_width=0.5, modifiers=True) == [
        ("v2", 86.205, 96.73, "s|m1|m2", "subject1", 359.96),
        ("v1", 32.575, 33.075, "p", "", 179.96),
        ("v3", 10.5, 12.25, "s", "", 50.0),
    ]
    comma = "\n".join(line.replace("\t", ",") for line in AGGREGATED)
    assert rows(put(tmp_path, "a.csv", comma)) == rows(file)
    with (tmp_path / "b.csv").open("w", newline="") as german:
        decimal = (re.sub(r"(\d)\.(\d)", r"\1,\2", line).split("\t") for line in AGGREGATED)
        csv.writer(german, delimiter=";").writerows(decimal)
    assert rows(tmp_path / "b.csv") == rows(file)


def test_boris_aggregated_before_version_8(tmp_path):
    head = "Observation id\tMedia file\tTotal length\tSubject\tBehavior\tModifiers\tBehavior type"
    head += "\tStart (s)\tStop (s)\n"
    one = head + "o\tv1.mp4\t179.960\tNo focal subject\ts\t\tSTATE\t1.8\t8.125\n"
    assert rows(put(tmp_path, "a.tsv", one)) == [("v1", 1.8, 8.125, "s", "", 179.96)]
    two = one + "o\tv2.mp4\t539.920\tsubject1\ts\t\tSTATE\t266.165\t276.690\n"
    with pytest.raises(AnnotationError, match=r"line 2: times run on .* read the \.boris project"):
        rows(put(tmp_path, "b.tsv", two))


TABULAR = [
    ["Observation id", "Source", "Media duration (s)", "Time offset (s)", "Subject", "Behavior"]
    + ["Modifier #1", "Behavior type", "Time", "Media file name"],
    ["o", "player #1:v1.mp4", "60", "0", "anna", "run", "fast", "START", "1.5", "v1.mp4"],
    ["o", "player #1:v1.mp4", "60", "0", "bo", "run", "fast", "START", "2", "v1.mp4"],
    ["o", "player #1:v1.mp4", "60", "0", "", "wink", "", "POINT", "2.5", "v1.mp4"],
    ["o", "player #1:v1.mp4", "60", "0", "anna", "run", "fast", "STOP", "4", "v1.mp4"],
    ["o", "player #1:v1.mp4", "60", "0", "bo", "run", "slow", "STOP", "5", "v1.mp4"],
]


def test_boris_tabular(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(TABULAR)
    quarantine = Quarantine()
    found = rows(tmp_path / "a.csv", quarantine, point_width=1)
    assert found == [("v1", 1.5, 4.0, "run", "anna", 60.0), ("v1", 2.0, 3.0, "wink", "", 60.0)]
    assert reasons(quarantine) == [
        ("line 6", "is stopped and was not started"),
        ("line 3", "is started and never stopped"),
    ]


def test_boris_7_tabular(tmp_path):
    lines = ["Observation id\tobservation #1", "", "Media file(s)", "", "Player #1\tvideo_360s.mp4"]
    lines += ["", "Time offset (s)\t10.0", "independent variables", "variable\tvalue", "a\t12", ""]
    lines += ["Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tComment\tStatus"]
    for time, status in (("13.300", "START"), ("17.750", "STOP")):
        lines += [f"{time}\tvideo_360s.mp4\t359.960\t25.0\tsubject1\ts\t\t{status}"]
    unlisted = "\n".join(line for line in lines if not line.startswith("Player"))
    padded = "\n".join(line + "\t" * (7 - line.count("\t")) for line in lines)
    for text in ("\n".join(lines), padded, unlisted):
        file = put(tmp_path, "a.tsv", text)
        assert rows(file) == [("video_360s", 3.3, 7.75, "s", "subject1", 359.96)]


def project(**observation):
    media = {"length": {"v1.mp4": 179.96, "v2.mp4": 359.96}}
    given = {
        "type": "MEDIA",
        "file": {"1": ["v1.mp4", "v2.mp4"], "2": []},
        "time offset": 0.0,
        "media_info": media,
        "events": [],
    }
    return {
        "behaviors_conf": {
            "0": {"code": "p", "type": "Point event"},
            "1": {"code": "s", "type": "State event"},
            "2": {"code": "r", "type": "State event with coding map"},
        },
        "observations": {"o": {**given, **observation}},
    }


def test_boris_project(tmp_path):
    events = [
        [1.8, "", "s", "", ""],
        [8.125, "", "s", "", ""],
        [32.825, "", "p", "", ""],
        [266.165, "subject1", "s", "", ""],
        [276.69, "subject1", "s", "", "", 12],
        [280.0, "", "r", "m1|None", ""],
        [281.0, "", "r", "m2", ""],
        [282.0, "", "r", "m1|None", ""],
        [283.0, "", "unknown", "", ""],
        ["soon"],
    ]
    file = put(tmp_path, "a.boris", project(events=events))
    quarantine = Quarantine()
    assert rows(file, quarantine, modifiers=True, point_width=0.2) == [
        ("v1", 1.8, 8.125, "s", "", 179.96),
        ("v1", 32.725, 32.925, "p", "", 179.96),
        ("v2", 86.205, 96.73, "s", "subject1", 359.96),
        ("v2", 100.04, 102.04, "r|m1", "", 359.96),
    ]
    assert reasons(quarantine) == [
        ("observation 'o' event 8", "'unknown' is none of the project's behaviours"),
        ("observation 'o' event 9", "time, subject, code and modifier wanted"),
        ("observation 'o' event 6", "is started and never stopped"),
    ]


def test_boris_project_offsets_live_and_unknown_lengths(tmp_path):
    events = [[3601.0, "", "s", "", ""], [3602.5, "", "s", "", ""]]
    offset = put(tmp_path, "a.boris", project(events=events, **{"time offset": 3600.0}))
    assert rows(offset) == [("v1", 1.0, 2.5, "s", "", 179.96)]
    live = project(events=events, **{"time offset": 3600.0})
    live["observations"]["l"] = {"type": "LIVE", "file": [], "events": [[1, "", "s", "", ""]]}
    quarantine = Quarantine()
    assert len(rows(put(tmp_path, "b.boris", live), quarantine)) == 1
    again = project(events=events, **{"time offset": 3600.0})
    again["observations"]["p"] = again["observations"]["o"] | {
        "file": {"1": ["v1.mp4"]},
        "media_info": {},
        "time offset": 3599,
    }
    assert rows(put(tmp_path, "d.boris", again)) == [
        ("v1", 1.0, 2.5, "s", "", 179.96),
        ("v1", 2.0, 3.5, "s", "", 179.96),
    ]
    assert reasons(quarantine) == [("observation 'l'", "is not of a media file")]
    unknown = project(events=events, media_info={"length": {}})
    with pytest.raises(AnnotationError, match="how long those before this one are"):
        rows(put(tmp_path, "c.boris", unknown))


def test_a_code_that_is_no_text(tmp_path):
    content = project(
        events=[[1.0, "", "a", "", ""], [2.0, "", "s", "", ""], [3.0, "", "s", "", ""]]
    )
    content["behaviors_conf"]["9"] = {"code": ["a"], "type": "State event"}
    quarantine = Quarantine()
    assert len(rows(put(tmp_path, "a.boris", content), quarantine)) == 1
    reason = "'a' is none of the project's behaviours"
    assert reasons(quarantine) == [("observation 'o' event 0", reason)]


@pytest.mark.parametrize(("length", "kept"), [("10.004", 2), ("12", 0)])
def test_observations_that_differ_on_a_duration(tmp_path, length, kept):
    head = "Observation id,Media duration (s),Subject,Behavior,Behavior type,Start (s),Stop (s)"
    text = f"{head},Media file name\none,10.0,,run,STATE,1,2,a.mp4\nb,9,,run,STATE,1,2,b.mp4\n"
    text += f"two,{length},,run,STATE,3,4,a.mp4\n"
    found = rows(put(tmp_path, "a.csv", text))
    assert [row[5] for row in found if row[0] == "a"] == [10.004] * kept


# VIA 3


ATTRIBUTES = {
    "1": {"aname": "act", "anchor_id": "FILE1_Z2_XY0", "options": {"0": "run", "1": "jump"}},
    "2": {"aname": "how", "anchor_id": "FILE1_Z2_XY0", "options": {}},
}


def test_via(tmp_path):
    content = {
        "project": {"vid_list": ["1", "2"]},
        "attribute": ATTRIBUTES,
        "file": {"1": {"fname": "a b.mp4"}, "2": {"fname": "http://x/y/c%20d.webm"}},
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
        "metadata": {
            "1_a": {"vid": "1", "z": [1.25, 2.5], "xy": [], "av": {"1": "1", "2": "high"}},
            "2_b": {"vid": "2", "z": [3], "xy": [], "av": {"1": "0"}},
            "1_c": {"vid": "1", "z": [3.5], "xy": [2, 0, 0, 5, 5], "av": {"1": "0"}},
            "9_d": {"vid": "9", "z": [1, 2], "xy": [], "av": {"1": "0"}},
            "1_e": {"vid": "1", "z": [], "xy": [], "av": {"1": "0,1"}},
            "1_f": {"vid": "1", "z": [4, 5], "xy": [], "av": {"1": "0,1"}},
        },
    }
    file = put(tmp_path, "a.json", content)
    quarantine = Quarantine()
    assert rows(file, quarantine, modifiers=True, point_width=1) == [
        ("a b", 1.25, 2.5, "jump|high", "", None),
        ("a b", 4, 5, "run,jump", "", None),
        ("c d", 2.5, 3.5, "run", "", None),
    ]
    assert reasons(quarantine) == [
        ("metadata 1_c", "is a place in the picture, not a stretch of time"),
        ("metadata 9_d", "belongs to no file"),
        ("metadata 1_e", "has no start and end"),
    ]
    content["view"]["1"] = {"fid_list": ["1", "2"]}
    with pytest.raises(AnnotationError, match="--media"):
        rows(put(tmp_path, "b.json", content))
    assert rows(put(tmp_path, "b.json", content), media="a b.mp4")[0][0] == "a b"


def test_via_tables(tmp_path):
    text = (
        "# Exported using VGG Image Annotator\n"
        f"# ATTRIBUTE = {json.dumps(ATTRIBUTES)}\n"
        "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,"
        "metadata\n"
        '"1_a","[""a b.mp4""]",0,"[1.25,2.5]","[]","{""1"":""1""}"\n'
        '"1_b","[""a b.mp4""]",0,"[3]","[]","{""1"":""0""}"\n'
    )
    quarantine = Quarantine()
    assert rows(put(tmp_path, "a.csv", text), quarantine) == [("a b", 1.25, 2.5, "jump", "", None)]
    assert [record for record, _ in reasons(quarantine)] == ["line 5"]
    old = (
        "metadata_id,file_list,temporal_segment_start,temporal_segment_end,metadata\n"
        '1,"[""c.mp4""]",1.5,2,"{""TEMPORAL-SEGMENTS"":""run""}"\n'
    )
    assert rows(put(tmp_path, "b.csv", old)) == [("c", 1.5, 2.0, "run", "", None)]


@pytest.mark.parametrize(
    ("query", "reference", "ids"),
    [
        ("clips/salto.mp4", "films/monday.mp4", ("salto", "monday")),
        ("lib.h5::v_1", "lib.h5::d::x.mp4", ("v_1", "d::x.mp4")),
    ],
)
def test_a_saved_query(tmp_path, query, reference, ids):
    content = {"schema": "relocal_pyg.moments/1", "query": query, "query_span": [0, 2]}
    content |= {"reference": reference, "examples": []}
    moments = [{"start": 4, "end": 5, "good": True}, {"start": 6, "end": 7, "good": False}]
    moments.append({"video": reference, "start": 8, "end": 9, "good": True})
    file = put(tmp_path, "jump.json", {**content, "moments": moments})
    clip, film = ids
    assert rows(file) == [
        (clip, 0, 2, "jump", "", None),
        (film, 4, 5, "jump", "", None),
        (film, 8, 9, "jump", "", None),
    ]


@pytest.mark.parametrize("query", ['"a salto"', "a/salto.png", "salto.JPG"])
def test_words_and_pictures_of_a_saved_query_are_no_video(tmp_path, query):
    content = {"schema": "relocal_pyg.moments/1", "query": query, "query_span": [0, 6]}
    content |= {"reference": "film.mp4", "examples": []}
    moments = [{"start": 4, "end": 5, "good": True}]
    file = put(tmp_path, "jump.json", {**content, "moments": moments})
    quarantine = Quarantine()
    assert rows(file, quarantine) == [("film", 4, 5, "jump", "", None)]
    assert reasons(quarantine) == [("query", "is words or a picture, not a stretch of a video")]
    with pytest.raises(UsageError, match="made from words or a picture: give them again"):
        read_saved(file)


def test_a_comma_may_be_a_decimal_or_of_a_thousand(tmp_path):
    """Between commas nobody can tell one second and a bit from a thousand and some."""
    text = 'video,start,end,label\na,"0,250","1,234",x\na,"0,250","2,5",y\n'
    quarantine = Quarantine()
    found = rows(put(tmp_path, "a.csv", text), quarantine)
    assert [row[1:4] for row in found] == [(0.25, 2.5, "y")]
    assert ["'1,234'" in reason for _, reason in reasons(quarantine)] == [True]


# Label Studio and CVAT


def task(video, results, **more):
    return {
        "id": 7,
        "data": {"video": video, **more},
        "annotations": [{"id": 1, "result": results}],
    }


def stretch(first, last, *labels):
    value = {"ranges": [{"start": first, "end": last}], "timelinelabels": list(labels)}
    return {"id": "r", "type": "timelinelabels", "value": value}


def test_label_studio(tmp_path):
    upload = "/data/upload/10/0a1b2c3d-my%20film.mp4"
    results = [stretch(26, 50, "run", "fast"), {"id": "c", "type": "choices", "value": {}}]
    tasks = [task(upload, results), task("/data/local-files/?d=x/b.mp4", [stretch(1, 25, "jump")])]
    tasks[1]["annotations"].append({"id": 2, "result": [stretch(1, 10, "other")]})
    file = put(tmp_path, "a.json", tasks)
    with pytest.raises(AnnotationError, match="task 7 result r: counts frames.*--fps"):
        rows(file)
    quarantine = Quarantine()
    assert rows(file, quarantine, fps=25) == [
        ("my film", 1.0, 2.0, "fast", "", None),
        ("my film", 1.0, 2.0, "run", "", None),
        ("b", 0.0, 1.0, "jump", "", None),
    ]
    assert reasons(quarantine) == [
        ("task 7 result c", "is 'choices', not a stretch of time"),
        ("task 7 annotation 2", "is of a further annotator"),
    ]
    stated = put(tmp_path, "b.json", [task("c.mp4", [stretch(11, 20, "x")], fps=10)])
    assert rows(stated, fps=25) == [("c", 1.0, 2.0, "x", "", None)]
    for place in ("20240101-a%20b.mp4", "/data/local-files/?d=films/20240101-a%2520b.mp4"):
        dated = put(tmp_path, "e.json", [task(place, [stretch(1, 10, "x")], fps=10)])
        assert rows(dated)[0][0] == "20240101-a%20b"
    sound = {"type": "labels", "value": {"start": 1.5, "end": 2.5, "labels": ["bark"]}}
    assert rows(put(tmp_path, "c.json", [task("d.mp4", [sound])])) == [
        ("d", 1.5, 2.5, "bark", "", None)
    ]
    with pytest.raises(AnnotationError, match="not JSON-MIN"):
        rows(put(tmp_path, "d.json", [{"video": "a.mp4", "label": []}]))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://h.org/films/day.mp4?dl=0", "day"),
        ("http://h.org/day%231.mp4#t=3", "day#1"),
        ("what?.mp4", "what?"),
        ("<video src='/data/upload/z.mp4' width=\"9\"/>", "z"),
        ('<div><video controls src="https://h.org/a/z.mp4?x=1"></video></div>', "z"),
    ],
)
def test_addresses_of_the_web(tmp_path, address, name):
    file = put(tmp_path, "a.json", [task(address, [stretch(1, 10, "x")], fps=10)])
    assert rows(file) == [(name, 0.0, 1.0, "x", "", None)]


@pytest.mark.parametrize(
    "data",
    [
        {"id": "7", "title": "A day", "url": "/data/local-files/?d=x/day.mp4"},
        {"person": "anna", "film": "https://host/day.mp4?token=a.b"},
        {"text": "seen twice", "html": '<video src="/data/upload/3/0a1b2c3d-day.mp4"></video>'},
        {"sound": "s3://box/day.wav", "note": "x"},
        {"id": "day", "number": 3},
    ],
)
def test_the_media_of_a_task_with_more_beside_it(tmp_path, data):
    """The first text was taken for the video, be it a number or a name."""
    asked = {"data": {**data, "fps": 10}, "annotations": [{"result": [stretch(1, 10, "x")]}]}
    assert rows(put(tmp_path, "a.json", [asked])) == [("day", 0.0, 1.0, "x", "", None)]


def test_predictions_count_only_where_nobody_answered(tmp_path):
    cancelled = {"id": 1, "was_cancelled": True, "result": []}
    tasks = [
        {"id": number, "data": {"video": f"{name}.mp4", "fps": 10}, "annotations": given}
        for number, (name, given) in enumerate([("a", []), ("b", [cancelled])])
    ]
    for each in tasks:
        each["predictions"] = [{"result": [stretch(11, 20, "x")]}]
    quarantine = Quarantine()
    with pytest.warns(UserWarning, match="predictions were read of tasks without annotations: 1"):
        found = rows(put(tmp_path, "a.json", tasks), quarantine)
    assert found == [("a", 1.0, 2.0, "x", "", None)]
    assert reasons(quarantine) == [("task 1", "was skipped by its annotator")]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("/data/local-files/?d=cam1/day.mp4", "/data/local-files/?d=cam2/day.mp4"),
        ("/data/upload/1/0a1b2c3d-day.mp4", "/data/upload/1/4e5f6a7b-day.mp4"),
        ("s3://films/cam1/day.mp4", "s3://films/cam2/day.mp4"),
    ],
)
def test_two_addresses_of_one_id_are_said(tmp_path, one, two):
    tasks = [task(each, [stretch(1, 10, "x")], fps=10) for each in (one, two, two, one)]
    with pytest.warns(UserWarning, match="are both taken for the video day") as said:
        rows(put(tmp_path, "a.json", tasks))
    assert len(said) == 1
    assert one in str(said[0].message)
    assert two in str(said[0].message)
    rows(put(tmp_path, "b.json", tasks[1:3]))  # one address twice is one video


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(23.98, 24000 / 1001), (29.97, 30000 / 1001), (59.94, 60000 / 1001), (24, 24), (1e-9, 1e-9)],
)
def test_a_rounded_rate_is_taken_for_the_exact_one(tmp_path, fps, exact):
    results = [stretch(90_001, 90_100, "x")]
    wanted = [("a", pytest.approx(90_000 / exact), pytest.approx(90_100 / exact), "x", "", None)]
    file = put(tmp_path, "a.json", [task("a.mp4", results)])
    assert rows(file, fps=fps) == wanted
    assert rows(put(tmp_path, "b.json", [task("a.mp4", results, fps=fps)])) == wanted
    shown = f'<track id="0" label="x">{box(90_000, 0)}{box(90_100, 1)}</track>'
    meta = "<meta><task><name>a.mp4</name></task></meta>"
    cvat = put(tmp_path, "a.xml", f"<annotations>{meta}{shown}</annotations>")
    assert rows(cvat, fps=fps) == wanted


def box(frame, outside):
    return f'<box frame="{frame}" outside="{outside}" xtl="0" ytl="0" xbr="1" ybr="1"/>'


def test_cvat(tmp_path):
    text = (
        "<annotations><version>1.1</version><meta><task><name>my film.mp4</name></task></meta>"
        f'<track id="0" label="run">{box(10, 0)}{box(11, 0)}{box(12, 1)}{box(20, 0)}{box(29, 0)}'
        f'</track><track id="1" label="jump">{box(0, 0)}{box(25, 1)}</track></annotations>'
    )
    file = put(tmp_path, "a.xml", text)
    assert rows(file, fps=10) == [
        ("my film", 0.0, 2.5, "jump", "", None),
        ("my film", 1.0, 1.2, "run", "", None),
        ("my film", 2.0, 3.0, "run", "", None),
    ]
    with pytest.raises(AnnotationError, match="--fps"):
        rows(file)
    # Shapes that come in another order are the same shapes.
    turned = f"{box(29, 0)}{box(12, 1)}{box(20, 0)}{box(10, 0)}{box(11, 0)}"
    text = text.replace(f"{box(10, 0)}{box(11, 0)}{box(12, 1)}{box(20, 0)}{box(29, 0)}", turned)
    file = put(tmp_path, "b.xml", text.replace(f"{box(0, 0)}{box(25, 1)}", box(25, 1) + box(0, 0)))
    assert [row[1:3] for row in rows(file, fps=10)] == [(0.0, 2.5), (1.0, 1.2), (2.0, 3.0)]
    # A job does not say what its film is called.
    job = text.replace("<task><name>my film.mp4</name></task>", "<job><id>4</id></job>")
    assert {row[0] for row in rows(put(tmp_path, "day.xml", job), fps=10)} == {"day"}


def test_a_skeleton_of_cvat_is_out_of_the_picture_where_its_points_are(tmp_path):
    shapes = "".join(
        f'<skeleton frame="{frame}"><attribute name="a">1</attribute>'
        f'<points label="1" outside="{first}"/><points label="2" outside="{second}"/></skeleton>'
        for frame, first, second in ((3, 0, 0), (10, 1, 1), (50, 0, 1), (60, 1, 1))
    )
    text = f'<annotations><track id="0" label="run">{shapes}</track></annotations>'
    found = rows(put(tmp_path, "a.xml", text), fps=10)
    assert [row[1:3] for row in found] == [(0.3, 1.0), (5.0, 6.0)]


# Tables


SHEETS = {
    "plain.csv": "video,start,end,label\nmonday,12.5,15.1,salto\ntuesday,3.2,6,salto\n",
    "clock.csv": "video,start,end,label\nmonday,0:12.5,00:00:15.1,salto\ntuesday,3.2,6,salto\n",
    "semicolon.csv": "video;start;end;label\nmonday;12.5;15.1;salto\ntuesday;3.2;6;salto\n",
    "comma.csv": "video;start;end;label\r\nmonday;12,5;15,1;salto\r\ntuesday;3,2;6;salto\r\n",
    "quoted.csv": 'video,start,end,label\nmonday,"12,5","15,1",salto\ntuesday,"3,2",6,salto\n',
    "said.csv": "sep=,\nvideo,start,end,label\nmonday,12.5,15.1,salto\ntuesday,3.2,6,salto\n",
    "tabs.tsv": "\ufeffvideo\tstart\tend\tlabel\nmonday\t12,5\t15,1\tsalto\n"
    "tuesday\t3.2\t6\tsalto\n",
    "blanks.csv": "video, start, end, label\n monday , 12.5, 15.1, salto\ntuesday, 3.2, 6,salto \n",
}


@pytest.mark.parametrize("name", SHEETS)
def test_spreadsheets(tmp_path, name):
    assert rows(put(tmp_path, name, SHEETS[name])) == [
        ("monday", 12.5, 15.1, "salto", "", None),
        ("tuesday", 3.2, 6.0, "salto", "", None),
    ]


def test_unicode_text_of_a_spreadsheet(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("video\tstart\tend\tlabel\nmontag\t1,5\t2\tübung\n", encoding="utf-16")
    assert rows(file) == [("montag", 1.5, 2.0, "übung", "", None)]
    file.write_bytes("video;start;end;label\na;1;2;übung\n".encode("cp1252"))
    with pytest.raises(AnnotationError, match="line 2: is not UTF-8 text: save it as that"):
        rows(file)


def test_blank_rows_and_a_duration_that_stands_once(tmp_path):
    text = ";;;;\r\na;1;2;run;;;\r\n;;;;\r\na;3;4;run;60,5\r\n;;;;\r\n"
    file = put(tmp_path, "a.csv", "video;start;end;label;duration\r\n" + text)
    quarantine = Quarantine()
    assert rows(file, quarantine) == [("a", 1, 2, "run", "", 60.5), ("a", 3, 4, "run", "", 60.5)]
    assert not quarantine.records


def test_a_label_in_two_unicode_forms_is_one(tmp_path):
    text = "video,start,end,label\na,1,2,re\u0301ception\nb,1,2,r\xe9ception\n"
    assert {row[3] for row in rows(put(tmp_path, "a.csv", text))} == {"r\xe9ception"}


def test_several_subjects_in_a_video(tmp_path):
    text = "video,start,end,label,subject\na,1,2,run,anna\na,1,2,run,bo\nb,1,2,run,anna\n"
    file = put(tmp_path, "a.csv", text)
    videos = read_annotations(file)
    assert [video.subject for video in videos.values()] == [None, "anna"]
    write_csv(tmp_path / "b.csv", videos.values())
    assert rows(tmp_path / "b.csv") == rows(file)
    assert len(rows(file)) == 3


def test_a_video_of_several_files(tmp_path):
    one = read_annotations(put(tmp_path, "a.csv", "video,start,end,label\nv,1,2,run\n"))
    text = "video,start,end,label,duration\nv,1,2,run,9\nv,3,4,run,9\n"
    two = read_annotations(put(tmp_path, "b.csv", text))
    write_csv(tmp_path / "c.csv", [*one.values(), *two.values()])
    assert rows(tmp_path / "c.csv") == [("v", 1, 2, "run", "", 9), ("v", 3, 4, "run", "", 9)]


@pytest.mark.parametrize(("other", "warned"), [(86.2, 0), (90, 1)])
def test_files_that_differ_on_a_duration_make_one_table(tmp_path, recwarn, other, warned):
    one = put(tmp_path, "a.csv", "video,start,end,label,duration\nx,1,2,run,86.205\n")
    spans = {"duration": other, "annotations": [{"segment": [3, 4], "label": "run"}]}
    two = put(tmp_path, "b.json", {"database": {"x": spans}})
    write_csv(
        tmp_path / "c.csv", [v for file in (one, two) for v in read_annotations(file).values()]
    )
    longest = max(86.205, other)
    assert rows(tmp_path / "c.csv") == [
        ("x", 1, 2, "run", "", longest),
        ("x", 3, 4, "run", "", longest),
    ]
    assert [str(w.message)[:31] for w in recwarn] == ["x: said to be 86.205 s and 90 s"] * warned


@pytest.mark.parametrize("label", ["a\rb", "a\nb", "a\r\nb", "a\u2028b"])
def test_a_label_of_several_lines_is_written_and_read_again(tmp_path, label):
    spans = {"annotations": [{"segment": [3, 4], "label": label}], "duration": 9}
    file = put(tmp_path, "a.json", {"database": {"x": spans}})
    write_csv(tmp_path / "b.csv", read_annotations(file).values())
    assert rows(tmp_path / "b.csv") == rows(file) == [("x", 3.0, 4.0, label, "", 9.0)]


def test_given_tables(shared_data):
    folder = shared_data.parent / "cases" / "data"
    if not folder.is_dir():
        pytest.skip("no such cases")
    right = rows(folder / "semicolon.csv")
    for name in ("semicolon_decimal", "sepline", "hms"):
        assert rows(folder / f"{name}.csv") == right
    assert {row[0] for row in rows(folder / "spaces.csv")} == {"monday", "tuesday"}
    assert {row[3] for row in rows(folder / "spaces.csv")} == {"salto"}
    assert len({row[3] for row in rows(folder / "nfd.csv")}) == 1


# Whatever comes


@pytest.mark.parametrize(
    "name",
    [
        *("a  b.mp4", "at 3.04.05\u202fPM.mov", "a\u00a0b.mp4", "\u200eRTL\u200f.mp4", " x .mp4"),
        *("f\u200bx.mp4", "x.264", "film.mpeg-4", "x.DVR-MS", "day.part1.mp4", "e\u0301.m2ts"),
        *("Dr.Who.mp4", "50%25.mp4", "q?.mp4", "x" * 300 + ".mp4", "a\n\x01b.mp4"),
    ],
)
@pytest.mark.parametrize(
    ("suffix", "form"),
    [(".eaf", "elan"), (".json", "via"), (".json", "label-studio"), (".csv", "annotations")],
)
@pytest.mark.filterwarnings("ignore:.*predictions were read")
def test_a_file_has_one_id_in_a_folder_out_and_in(tmp_path, name, suffix, form):
    source = Source(f"/films/{name}", 9.0, Fraction(25), 225)
    assert source.name == re.sub("[\n\x01]", "_", name)
    assert source.video_id == video_id(f"/films/{name}")
    export_clips(tmp_path / f"a{suffix}", [Clip(source, 1.0, 2.0, "m", "run")], form)
    (row,) = rows(tmp_path / f"a{suffix}")
    assert row[0] == video_id(f"/films/{name}")


def test_what_was_exported_of_features_is_read(tmp_path):
    """Features may not say how long their video is."""
    clip = Clip(Source("v_1", id="v_1"), 1.0, 2.5, "m", "run")
    for name, form in [("a.json", "activitynet"), ("a.csv", "annotations"), ("b.json", "via")]:
        export_clips(tmp_path / name, [clip], form)
        assert rows(tmp_path / name) == [("v_1", 1.0, 2.5, "run", "", None)]
    # What writes JSON says null for what it does not know.
    actions = [{"segment": [1.0, 2.5], "label": "run"}]
    stated = {"database": {"v_1": {"duration": None, "annotations": actions}}}
    assert rows(put(tmp_path, "c.json", stated)) == [("v_1", 1.0, 2.5, "run", "", None)]


def test_xml_that_could_do_harm_is_refused(tmp_path):
    laughs = (
        '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotations>&b;</annotations>'
    )
    with pytest.raises(AnnotationError, match="a.xml: line 1: has a document type"):
        rows(put(tmp_path, "a.xml", laughs))
    outside = (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotations>&a;</annotations>'
    )
    with pytest.raises(AnnotationError, match="document type"):
        rows(put(tmp_path, "b.xml", outside))
    with pytest.raises(AnnotationError, match="nested too deep"):
        rows(put(tmp_path, "c.xml", "<a>" * 100_000))
    with pytest.raises(AnnotationError, match="line 2: is not XML"):
        rows(put(tmp_path, "d.eaf", "<a>\n<b></a>"))
    for text in ("", "<annotations/>", "<other/>", '<?xml version="1.0" encoding="nope"?><a/>'):
        with pytest.raises(AnnotationError, match=r"e\.xml"):
            rows(put(tmp_path, "e.xml", text))
    with pytest.raises(AnnotationError, match="does not exist"):
        read_xml(tmp_path / "none.xml")


def test_what_else_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="save the sheet as CSV"):
        rows(put(tmp_path, "a.xlsx", "PK"))
    with pytest.raises(AnnotationError, match="of no kind that is read: .csv"):
        rows(put(tmp_path, "a.srt", "1\n00:00:01,000 --> 00:00:02,000\nrun\n"))
    with pytest.raises(UsageError, match="fps is 0"):
        ImportOptions(fps=0)
    with pytest.raises(AnnotationError, match="more than 1000 columns"):
        rows(put(tmp_path, "a.csv", "," * 5000))


def documents():
    yield "a.tsv", "\n".join(AGGREGATED)
    yield "b.boris", json.dumps(project(events=[[1.8, "", "s", "", ""], [8.125, "", "s", "", ""]]))
    yield "c.json", json.dumps([task("c.mp4", [stretch(11, 20, "x")], fps=10)])
    tier = f'<TIER TIER_ID="t">{aligned("a1", "ts1", "ts2", "x")}</TIER>'
    yield "d.eaf", eaf([MEDIA.format("a.mp4", "")], [tier], {"ts1": 1000, "ts2": 2000})
    via = {"metadata": {"1": {"vid": "1", "z": [1, 2], "xy": [], "av": {"1": "x"}}}}
    via |= {"file": {"1": {"fname": "a.mp4"}}, "view": {"1": {"fid_list": ["1"]}}, "attribute": {}}
    yield "e.json", json.dumps(via)
    yield "f.csv", "\n".join(",".join(row) for row in TABULAR)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are both taken for")
@pytest.mark.parametrize(("name", "text"), list(documents()))
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_ends_in_one_line(tmp_path_factory, name, text, data):
    """Cut, doubled, swapped: rows or one of our errors, never another one."""
    at = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(1, 30))
    piece = data.draw(
        st.sampled_from(["", "null", "[]", "{}", "-1", "1e999", '"', "<", "\t", "\n", "\0", "NaN"])
    )
    file = tmp_path_factory.mktemp("damage") / name
    file.write_text(text[:at] + piece + text[at + length :], encoding="utf-8")
    try:
        found = rows(file, fps=25, point_width=1)
    except RelocalError as error:
        found, problem = [], str(error)
    else:
        problem = name
    assert name in problem
    assert "\n" not in problem
    assert all(start < end for _, start, end, *_ in found)


# Out and in again


@st.composite
def annotations(draw):
    source = Source("/films/hölidäy & <co>.mp4", 120.0, Fraction(25), 3000, None, (64, 36))
    text = st.text(st.sampled_from(list("ab <&>\"'é日;=|")), min_size=1, max_size=9)
    clips = []
    for number in range(draw(st.integers(1, 6))):
        first = draw(st.integers(0, 2950))
        stop = first + draw(st.integers(1, 3000 - first))
        label = draw(text.filter(str.strip)).strip()
        clips.append(Clip(source, first / 25, stop / 25, "m", label, number))
    return list({(clip.start, clip.end, clip.label): clip for clip in clips}.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*predictions were read")
@given(annotations())
@settings(max_examples=15, deadline=None)
def test_round_trips_lose_nothing(tmp_path_factory, clips):
    """On a grid of frames (and milliseconds) every format gives the same rows back."""
    folder: Path = tmp_path_factory.mktemp("round")
    wanted = sorted({(clip.start, clip.end, " ".join(clip.label.split())) for clip in clips})
    for name, form in [
        ("a.eaf", "elan"),
        ("a.json", "via"),
        ("b.json", "label-studio"),
        ("a.xml", "cvat"),
        ("c.json", "activitynet"),
        ("a.csv", "annotations"),
    ]:
        export_clips(folder / name, clips, form)
        found = rows(folder / name, fps=25 if form == "cvat" else None)
        assert {row[0] for row in found} == {"hölidäy & <co>"}
        assert sorted(row[3] for row in found) == sorted(row[2] for row in wanted)
        assert [row[1:4] for row in found] == [
            (pytest.approx(start), pytest.approx(end), label) for start, end, label in wanted
        ]
        kept = Quarantine()
        videos = read_annotations(folder / name, quarantine=kept, options=ImportOptions(fps=25))
        assert not kept.records
        write_csv(folder / "again.csv", videos.values())
        assert [row[:5] for row in rows(folder / "again.csv")] == [
            (row[0], pytest.approx(row[1], abs=1e-6), pytest.approx(row[2], abs=1e-6), *row[3:5])
            for row in found
        ]
