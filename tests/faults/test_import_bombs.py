"""Annotations that are bombs: refused by count and size in one line, or read in linear time.

``RELOCAL_FAULTS=full`` has more of each, ``benchmarks.reliability bombs`` the full size, with its
memory and time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from relocal_pyg.data.annotations import Quarantine, read_annotations, read_thumos14
from relocal_pyg.data.proposals import read_proposal_list
from relocal_pyg.errors import AnnotationError, ProposalError
from relocal_pyg.formats import importing, rows
from relocal_pyg.formats.rows import ImportOptions
from relocal_pyg.io import read

pytestmark = pytest.mark.slow
MANY = 20_000 if os.environ.get("RELOCAL_FAULTS") == "full" else 4000
EAF = "<ANNOTATION_DOCUMENT><HEADER/>{}</ANNOTATION_DOCUMENT>"
BORIS = (
    "Observation id\tObservation type\tSource\tBehavior\tBehavior type\tStart (s)\tStop (s)\t"
    "Media file name\n"
)


def count(file: Path, text: str, **options: float) -> int:
    """Actions of a file of this text."""
    file.write_text(text)
    given = ImportOptions(**options)
    videos = read_annotations(file, quarantine=Quarantine(), options=given)
    return sum(len(video.segments) for video in videos.values())


def slot(name: object, time: object = None) -> str:
    value = "" if time is None else f' TIME_VALUE="{time}"'
    return f'<TIME_SLOT TIME_SLOT_ID="{name}"{value}/>'


def aligned(name: object, one: object, two: object) -> str:
    return (
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{name}" TIME_SLOT_REF1="{one}" '
        f'TIME_SLOT_REF2="{two}"><ANNOTATION_VALUE>x</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION>'
        "</ANNOTATION>"
    )


def child(name: object, parent: object) -> str:
    return (
        f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="{parent}">'
        f"<ANNOTATION_VALUE>{name}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
    )


def order(*slots: str) -> str:
    return f"<TIME_ORDER>{''.join(slots)}</TIME_ORDER>"


def test_children_of_children_of_elan(tmp_path: Path) -> None:
    tier = [aligned(0, 1, 2), *(child(n, n - 1) for n in reversed(range(1, MANY)))]
    text = EAF.format(order(slot(1, 0), slot(2, 9)) + f"<TIER>{''.join(tier)}</TIER>")
    assert count(tmp_path / "a.eaf", text) == MANY
    loop = order(slot(1, 0), slot(2, 9)) + f"<TIER>{aligned('a', 1, 2)}{child(3, 4)}{child(4, 3)}"
    assert count(tmp_path / "b.eaf", EAF.format(loop + "</TIER>")) == 1


def test_slots_of_elan_between_others(tmp_path: Path) -> None:
    slots = [slot(0, 0), *map(slot, range(1, MANY)), slot(MANY, MANY)]
    tier = "".join(aligned(n, n, n + 1) for n in range(MANY))
    assert count(tmp_path / "a.eaf", EAF.format(order(*slots) + f"<TIER>{tier}</TIER>")) == MANY


def test_tiers_of_elan_do_not_copy_its_slots(tmp_path: Path) -> None:
    slots = [slot(n, n) for n in range(MANY)]
    tiers = f"<TIER>{aligned('a', 1, 2)}</TIER>" * MANY
    assert count(tmp_path / "a.eaf", EAF.format(order(*slots) + tiers)) == 1


def test_tasks_of_cvat(tmp_path: Path) -> None:
    tasks = "".join(f"<task><id>{n}</id><source>v.mp4</source></task>" for n in range(MANY))
    tracks = '<track label="x"><box frame="1"/></track>' * MANY
    text = f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta>{tracks}"
    assert count(tmp_path / "a.xml", text + "</annotations>", fps=25.0) == 1


def test_files_of_a_view_of_via(tmp_path: Path) -> None:
    entry = {"vid": "1", "z": [1, 2], "xy": [], "av": {"1": "x"}}
    project = {
        "metadata": {str(n): entry for n in range(MANY)},
        "view": {"1": {"fid_list": ["1"] * MANY}},
        "file": {"1": {"fname": "v.mp4"}},
        "attribute": {"1": {}},
    }
    assert count(tmp_path / "a.json", json.dumps(project)) == 1


@pytest.mark.slow
def test_files_of_an_observation_of_boris(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in range(MANY)]
    observation = {
        "type": "MEDIA",
        "file": {"1": names},
        "media_info": {"length": dict.fromkeys(names, 1.0)},
        "events": [[n + 0.5, "", "a", ""] for n in range(MANY)],
    }
    kinds = {"0": {"code": "a", "type": "Point event"}}
    project = {"behaviors_conf": kinds, "observations": {"o": observation}}
    assert count(tmp_path / "a.boris", json.dumps(project), point_width=0.5) == MANY
    lines = (f"o\tMedia file\t\tx\tSTATE\t1\t2\t{name}\n" for name in names)
    with pytest.raises(AnnotationError, match="how long those before this one are"):
        count(tmp_path / "a.tsv", BORIS + "".join(lines))


def test_blanks_in_the_source_of_boris(tmp_path: Path) -> None:
    source = "player #1:a.mp4;b" + " " * 100_000 + ".mp4 | player #2:c.mp4"
    line = f"o\tMedia file\t{source}\tx\tSTATE\t1\t2\ta.mp4\n"
    assert count(tmp_path / "a.tsv", BORIS + line) == 1


def test_labels_times_ranges_of_label_studio(tmp_path: Path) -> None:
    value = {"timelinelabels": ["x"] * 2000, "ranges": [{"start": 1, "end": 9}] * 2000}
    result = {"type": "timelinelabels", "value": value}
    task = {"data": {"video": "v.mp4", "fps": 25}, "annotations": [{"result": [result]}]}
    with pytest.raises(AnnotationError, match="holds over 250,000 actions: split it"):
        count(tmp_path / "a.json", json.dumps([task]))


def test_records_that_are_set_aside_are_counted(tmp_path: Path) -> None:
    entry = {"duration": 9, "annotations": [0] * (rows.MAX_ROWS + 1)}
    with pytest.raises(AnnotationError, match="holds over 250,000 actions"):
        count(tmp_path / "a.json", json.dumps({"database": {"v": entry}}))


@pytest.mark.parametrize(
    "element",
    ["<a/>" * 12_000, '<a frame="1"/>' * 5000, "a" * 1_100_000],
    ids=lambda text: text[:9],
)
def test_xml_that_takes_very_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element: str
) -> None:
    monkeypatch.setattr(rows, "MAX_XML_MEMORY", 1 << 20)
    with pytest.raises(AnnotationError, match="more elements than fit 1 MiB"):
        count(tmp_path / "a.eaf", EAF.format(element))


def test_an_xml_tag_without_end(tmp_path: Path) -> None:
    text = EAF.format("<a " + " ".join(f'b{n}="1"' for n in range(300_000)) + "/>")
    with pytest.raises(AnnotationError, match="a tag of over 1048576 bytes"):
        count(tmp_path / "a.eaf", text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n" * 400_000, "250,000 lines"),
        (("v,1,2,a" + "," * 900 + "\n") * 12_000, "10,000,000 cells"),
        ("v,1,2," + "a" * 2_000_000, "letters|field limit"),
        ('v,1,2,"' + "a\n" * 200_000, "field limit"),
        ('v,1,2,a,"' + '\n",a,"' * 200_000, "letters"),
    ],
    ids=["lines", "cells", "a field", "a quote", "a row of many lines"],
)
def test_tables_of_very_many_rows_or_cells(tmp_path: Path, text: str, reason: str) -> None:
    head = "video,start,end,label" + ",x" * 900 + "\n"
    with pytest.raises(AnnotationError, match=reason):
        count(tmp_path / "a.csv", head + text)


def test_json_in_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_MAX_CELL_MEMORY", 1000)
    monkeypatch.setattr(importing, "_SHORT", 1000)
    text = f"# ATTRIBUTES = {json.dumps({'1': [0] * 500})}\n# CSV_HEADER = file_list,metadata,"
    line = 'temporal_coordinates,spatial_coordinates\n"[""v.mp4""]","{""1"":""x""}","[1,2]","[]"\n'
    assert count(tmp_path / "a.csv", text + line) == 1


def test_lists_of_very_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LINES", 5)
    monkeypatch.setattr("relocal_pyg.data.proposals.MAX_LINES", 5)
    (tmp_path / "a_test.txt").write_text("v 1 2\n" * 6)
    (tmp_path / "list.txt").write_text("# 1\nv\n1\n1\n0\n0\n")
    with pytest.raises(AnnotationError, match="over 5 lines: split it"):
        read_thumos14(tmp_path, tmp_path / "a_test.txt")
    with pytest.raises(ProposalError, match="over 5 lines: split it"):
        read_proposal_list(tmp_path / "list.txt")


def test_what_a_file_says_is_not_repeated_at_length(tmp_path: Path) -> None:
    """The names of its media, and of a record, are an answer of a megabyte otherwise."""
    media = "".join(f'<MEDIA_DESCRIPTOR MEDIA_URL="{n}"/>' for n in range(MANY))
    with pytest.raises(AnnotationError, match=r"'7', '8', \.\.\.") as caught:
        count(
            tmp_path / "a.eaf",
            f"<ANNOTATION_DOCUMENT><HEADER>{media}</HEADER></ANNOTATION_DOCUMENT>",
        )
    assert len(str(caught.value)) < 2500
    quarantine = Quarantine()
    (tmp_path / "a.csv").write_text(f"video,start,end,label\n{'v' * 50_000},1,2,a\nw,1,2,a\n")
    read_annotations(tmp_path / "a.csv", quarantine=quarantine)
    assert len(quarantine.summary()) < 2500
