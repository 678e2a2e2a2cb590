"""What is written is read again by programs that are not ours, or by the format's rule."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import opentimelineio as otio
import pympi
import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from relocal_pyg.data.annotations import read_activitynet, read_csv
from relocal_pyg.errors import UsageError
from relocal_pyg.formats import FORMATS, Clip, Source, export_clips, format_of, render, to_clips
from relocal_pyg.formats.clips import clip_frames, frame_number, one_line, start_frame, timecode
from relocal_pyg.formats.rows import timeline_rate
from relocal_pyg.moments import Moment

NTSC_24, NTSC_30, NTSC_60 = (Fraction(base * 1000, 1001) for base in (24, 30, 60))
#: Rate and start timecode of a source: none, at 0, at one hour, with and without dropped numbers.
TIMINGS = [
    (NTSC_24, None),
    (NTSC_24, "01:00:00:00"),
    (Fraction(25), None),
    (Fraction(25), "01:00:00:00"),
    (NTSC_30, None),
    (NTSC_30, "00:00:00:00"),
    (NTSC_30, "01:00:00:00"),
    (NTSC_30, "01:00:00;00"),
    (NTSC_60, None),
    (NTSC_60, "01:00:00:00"),
    (NTSC_60, "01:00:00;00"),
]
FRAMES = 40_000
WORDS = st.text(
    st.sampled_from(list("abcXYZ09 &<>\"'|=;#\\-,\té日😀\n")), min_size=1, max_size=20
).filter(lambda text: text.strip())


@st.composite
def clips(draw: st.DrawFn, timings: list[tuple[Fraction, str | None]] = TIMINGS) -> list[Clip]:
    """One to six clips of one video in order of time, both ends of it and overlaps among them."""
    rate, timecode = draw(st.sampled_from(timings))
    duration = float(FRAMES / rate)
    source = Source(
        path="/films/two words/hölidäy & <co> 100%.mp4",
        duration=duration,
        frame_rate=rate,
        frame_count=FRAMES,
        timecode=timecode,
        size=(640, 360),
        audio=draw(st.booleans()),
    )
    spans = draw(
        st.lists(
            st.tuples(
                st.one_of(st.just(0), st.integers(0, int(1e6 * duration) - 200_000)),
                st.one_of(st.integers(100_000, 30_000_000), st.just(int(1e7 * duration))),
            ),
            min_size=1,
            max_size=6,
        )
    )
    times = ((at / 1e6, min((at + length) / 1e6, duration)) for at, length in spans)
    rows = sorted({(round(start, 3), round(end, 3)): (start, end) for start, end in times}.values())
    return [
        Clip(source, start, end, draw(WORDS), draw(WORDS), number, score=0.5)
        for number, (start, end) in enumerate(rows, start=1)
    ]


MILLISECOND = 0.001
property_test = settings(max_examples=40, deadline=None)


def close(found, clips, tolerance):
    """Found (start, end) pairs are those of the clips, in order, within a tolerance."""
    assert len(found) == len(clips)
    for (start, end), clip in zip(found, clips, strict=True):
        assert start == pytest.approx(clip.start, abs=tolerance)
        assert end == pytest.approx(clip.end, abs=tolerance)


def half_a_frame(clips):
    return float(1 / clips[0].source.frame_rate) / 2 * (1 + 1e-6)


# Seconds to frames and timecode


@pytest.mark.parametrize("rate", [NTSC_30, NTSC_60])
@given(frame=st.integers(0, 24 * 107892 - 1))
@settings(max_examples=150, deadline=None)
def test_drop_frame_is_that_of_opentimelineio(rate, frame):
    time = otio.opentime.RationalTime(frame, float(rate))
    for drop in (True, False):
        text = timecode(frame, rate, drop)
        assert text == otio.opentime.to_timecode(time, float(rate), drop)
        assert frame_number(text, rate) == (frame, drop)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [NTSC_30, NTSC_60])
def test_every_frame_of_the_first_twenty_minutes_has_its_own_drop_frame_number(rate):
    frames = range(20 * 60 * round(rate))
    texts = [timecode(frame, rate, drop=True) for frame in frames]
    assert len(set(texts)) == len(texts)
    assert [frame_number(text, rate)[0] for text in texts] == list(frames)
    skipped = round(rate) // 15
    missing = [f"00:01:00;{number:02d}" for number in range(skipped)]
    assert not set(missing) & set(texts)
    assert "00:10:00;00" in texts


def test_an_hour_of_ntsc():
    assert timecode(107892, NTSC_30, drop=False) == "00:59:56:12"
    assert timecode(107892, NTSC_30, drop=True) == "01:00:00;00"
    assert timecode(24 * 107892 + 5, NTSC_30, drop=True) == "00:00:00;05"  # past midnight
    assert timecode(24 * 60 * 60 * 25 + 5, Fraction(25), drop=False) == "00:00:00:05"


@pytest.mark.parametrize(
    "text", ["1 h", "00:00:00:30", "00:61:00:00", "", "01:00:00", "24:00:00:00", "00:01:00;01"]
)
def test_what_is_no_timecode(text):
    with pytest.raises(UsageError):
        frame_number(text, NTSC_30)
    with pytest.raises(UsageError, match="drop-frame"):
        timecode(0, Fraction(25), drop=True)


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (29.97, NTSC_30),
        (23.98, NTSC_24),
        (59.94, NTSC_60),
        (30.0, 30),
        (29.83, 29.83),
        (12.5, 12.5),
    ],
)
def test_rounded_rates_are_the_rates_they_round(given, exact):
    assert timeline_rate(given) == Fraction(exact).limit_denominator(1_000_000)


def test_a_moment_has_a_frame_and_stays_inside():
    source = Source("a.mp4", 10.0, Fraction(25), 250)
    for span, frames in [
        ((4.0, 4.001), (100, 101)),
        ((9.99, 10.4), (249, 250)),
        ((0.0, 10.0), (0, 250)),
        ((10.2, 10.4), (249, 250)),
    ]:
        assert clip_frames(Clip(source, *span, "m", "l"), Fraction(25)) == frames


# The table of the formats: [4.88, 7.36) of holiday.mp4 at 29.97


@pytest.fixture
def holiday():
    source = Source("holiday.mp4", 60.06, NTSC_30, 1800, None, (640, 360))
    return to_clips([(source, Moment(4.88, 7.36, 0.43))], "salto")


def test_one_moment_in_every_text_format(holiday):
    assert render("webvtt", holiday).startswith("WEBVTT\n\n1\n00:00:04.880 --> 00:00:07.360\n")
    assert render("srt", holiday) == "1\n00:00:04,880 --> 00:00:07,360\nmoment 1, score 0.430\n"
    assert "[CHAPTER]\nTIMEBASE=1/1000\nSTART=4880\nEND=7360\ntitle=moment 1\n" in render(
        "ffmpeg-chapters", holiday
    )
    marker = "001  001      V     C        01:00:04:26 01:00:04:27 01:00:04:26 01:00:04:27\n"
    marker += " |C:ResolveColorBlue |M:moment 1 |D:75\n\n"
    head = "TITLE: holiday.mp4\nFCM: NON-DROP FRAME\n"
    assert render("resolve-markers", holiday).startswith(head)
    assert marker in render("resolve-markers", holiday)
    assert " 00:00:04:26 " in render("resolve-markers", holiday, "00:00:00:00")
    cut = "001  AX       V     C        00:00:04;26 00:00:07;11 00:00:00;00 00:00:02;15\n"
    cut += "* FROM CLIP NAME: holiday.mp4\n"
    assert cut in render("cut-list", holiday)
    assert render("audacity", holiday) == "4.880000\t7.360000\tmoment 1, score 0.430\n"
    assert render("losslesscut-csv", holiday) == "Start,End,Name\n4.880,7.360,moment 1\n"
    assert render("csv", holiday) == "rank,start,end,score\n1,4.88,7.36,0.43\n"
    rows = "video,start,end,label,subject,duration\nholiday,4.88,7.36,salto,,60.06\n"
    assert render("annotations", holiday) == rows
    events = "4.880\t\tsalto\t\tmoment 1, score 0.430\tNA\n7.360\t\tsalto\t\t\tNA"
    assert render("boris", holiday) == events


def test_one_moment_in_every_format_of_frames(holiday):
    item = ET.fromstring(render("fcp7-xml", holiday)).find(".//clipitem")
    assert [item.find(name).text for name in ("start", "end", "in", "out")] == [
        "0",
        "75",
        "146",
        "221",
    ]
    assert len(item.findall("rate")) == 1
    assert item.find("rate/ntsc").text == "TRUE"
    clip = ET.fromstring(render("fcpxml", holiday)).find(".//spine/asset-clip")
    assert clip.get("start") == f"{146 * 1001}/30000s"
    assert clip.get("duration") == f"{75 * 1001}/30000s"
    task = json.loads(render("label-studio", holiday))[0]
    value = task["predictions"][0]["result"][0]["value"]
    assert value == {"ranges": [{"start": 147, "end": 221}], "timelinelabels": ["salto"]}
    boxes = ET.fromstring(render("cvat", holiday)).findall("track/box")
    assert [(box.get("frame"), box.get("outside")) for box in boxes] == [("146", "0"), ("221", "1")]
    via = json.loads(render("via", holiday))
    assert list(via["metadata"].values()) == [
        {"vid": "1", "flg": 0, "z": [4.88, 7.36], "xy": [], "av": {"1": "salto"}}
    ]
    llc = json.loads(render("losslesscut", holiday))
    assert llc["cutSegments"] == [
        {"start": 4.88, "end": 7.36, "name": "moment 1", "tags": {"score": "0.430"}}
    ]


# Players


@pytest.mark.slow
@given(clips())
@property_test
def test_webvtt(clips):
    cues = webvtt.from_string(render("webvtt", clips)).captions
    close([(seconds(cue.start), seconds(cue.end)) for cue in cues], clips, MILLISECOND)
    for cue, clip in zip(cues, clips, strict=True):
        plain = cue.raw_text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert plain == clip.caption


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


@pytest.mark.slow
@given(clips())
@property_test
def test_srt(clips):
    cues = list(srt.parse(render("srt", clips)))
    close([(c.start.total_seconds(), c.end.total_seconds()) for c in cues], clips, MILLISECOND)
    assert [cue.content for cue in cues] == [clip.caption for clip in clips]


@pytest.mark.slow
@given(clips())
@property_test
def test_subtitles_in_ffmpeg(tmp_path_factory, clips):
    av = pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("subtitles")
    for name in ("a.vtt", "a.srt"):
        export_clips(folder / name, clips)
        with av.open(str(folder / name)) as container:
            packets = [packet for packet in container.demux() if packet.pts is not None]
            spans = [
                (float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base))
                for p in packets
            ]
        close(spans, clips, MILLISECOND)


@pytest.mark.slow
@given(clips())
@property_test
def test_chapters_in_ffmpeg(tmp_path_factory, clips):
    av = pytest.importorskip("av")
    file = tmp_path_factory.mktemp("chapters") / "a.ffmeta"
    export_clips(file, clips)
    with av.open(str(file), format="ffmetadata") as container:
        chapters = [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"])
            for c in container.chapters()
        ]
    assert chapters[0][0] == 0
    assert chapters[-1][1] == pytest.approx(clips[0].source.duration, abs=MILLISECOND)
    for (_, end, _), (start, _, _) in zip(chapters, chapters[1:], strict=False):
        assert start == end  # what MP4 asks for
    starts = [round(clip.start * 1000) for clip in clips] + [None]
    times = [*dict.fromkeys(starts[:-1]), None]
    wanted = []
    for start, following in zip(times, times[1:], strict=False):
        group = [clip for clip, at in zip(clips, starts, strict=False) if at == start]
        end = max(clip.end for clip in group)
        end = end if following is None else min(end, following / 1000)
        wanted.append((start / 1000, end, ", ".join(clip.name for clip in group)))
    found = {round(start * 1000): (end, facts["title"]) for start, end, facts in chapters}
    for start, end, name in wanted:
        assert found[round(start * 1000)][0] == pytest.approx(end, abs=2 * MILLISECOND)
        assert found[round(start * 1000)][1].strip() == one_line(name)


@given(clips())
@property_test
def test_youtube(clips):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = render("youtube", clips).splitlines()
    times = []
    for line in lines:
        parts = [int(part) for part in line.split(" ")[0].split(":")]
        times.append(sum(part * 60**place for place, part in enumerate(reversed(parts))))
    assert times[0] == 0
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert all(gap >= 10 for gap in gaps)
    assert len(times) == 1 or times[-1] <= clips[0].source.duration - 10
    for clip in clips:  # none is lost: it stands at its time or joined one before
        at = max(time for time in times if time <= clip.start)
        assert one_line(clip.name) in lines[times.index(at)]


def test_youtube_says_what_it_will_not_show(holiday):
    source = holiday[0].source
    moments = [Moment(20, 22, 0.5), Moment(25, 29, 0.4), Moment(40, 44, 0.3)]
    apart = to_clips([(source, moments[0]), (source, moments[2])], "salto")
    assert render("youtube", apart) == "0:00 Start\n0:20 moment 1\n0:40 moment 2\n"
    close_by = to_clips([(source, moment) for moment in moments], "salto")
    with pytest.warns(UserWarning, match="1 moments joined"):
        text = render("youtube", close_by)
    assert text == "0:00 Start\n0:20 moment 1, moment 2\n0:40 moment 3\n"
    with pytest.warns(UserWarning, match="from 3 on"):
        assert render("youtube", holiday) == "0:00 moment 1\n"


def test_moments_that_start_as_one_share_a_chapter(holiday):
    spans = [(1.0, 9.0), (1.0, 4.0), (30.0, 31.0)]
    found = to_clips([(holiday[0].source, Moment(*span, 0.5)) for span in spans], "x")
    chapters = re.findall(r"START=(\d+)\nEND=(\d+)\ntitle=(m.*)", render("ffmpeg-chapters", found))
    assert chapters == [("1000", "9000", "moment 1, moment 2"), ("30000", "31000", "moment 3")]
    with pytest.warns(UserWarning, match="2 moments joined") as said:
        assert render("youtube", found) == "0:00 moment 1, moment 2\n0:30 moment 3\n"
    assert len(said) == 2  # and that there are too few


@given(clips())
@property_test
def test_losslesscut(clips):
    project = json.loads(render("losslesscut", clips))
    close([(s["start"], s["end"]) for s in project["cutSegments"]], clips, MILLISECOND)
    assert all(isinstance(v, str) for s in project["cutSegments"] for v in s["tags"].values())
    rows = list(csv.reader(io.StringIO(render("losslesscut-csv", clips))))[1:]
    assert all(re.fullmatch(r"\d+\.\d{3}", cell) for row in rows for cell in row[:2])
    close([(float(start), float(end)) for start, end, _ in rows], clips, MILLISECOND)
    assert [row[2] for row in rows] == [one_line(clip.name) for clip in clips]


def test_losslesscut_gets_no_cut_without_length():
    """It refuses a file in which one ends where it starts."""
    clip = Clip(Source("a.mp4"), 1.0, 1.0 + 1e-7, "m", "x")
    (cut,) = json.loads(render("losslesscut", [clip]))["cutSegments"]
    assert (cut["start"], cut["end"]) == (1.0, 1.000001)
    assert render("losslesscut-csv", [clip]).splitlines()[1] == "1.000,1.001,m"


# Editing programs


@given(clips())
@property_test
def test_otio(clips):
    timeline = otio.adapters.read_from_string(render("otio", clips), "otio_json")
    spans = []
    for item, clip in zip(timeline.find_clips(), clips, strict=True):
        begin = item.available_range().start_time
        assert begin.value == start_frame(clip.source, clip.source.frame_rate)[0]
        assert item.available_range().duration.value == FRAMES
        first = item.source_range.start_time - begin
        assert item.media_reference.target_url.endswith(
            "/h%C3%B6lid%C3%A4y%20%26%20%3Cco%3E%20100%25.mp4"
        )
        assert item.markers[0].marked_range == item.source_range
        assert item.metadata["relocal"]["score"] == clip.score
        assert item.name == one_line(clip.name)
        spans.append((first.to_seconds(), (first + item.source_range.duration).to_seconds()))
    close(spans, clips, half_a_frame(clips))


@given(clips())
@property_test
def test_cut_list(clips):
    rate = clips[0].source.frame_rate
    timeline = otio.adapters.read_from_string(
        render("cut-list", clips), "cmx_3600", rate=float(rate)
    )
    begin = start_frame(clips[0].source, rate)[0]
    spans = []
    for item, clip in zip(timeline.find_clips(), clips, strict=True):
        first = item.source_range.start_time.value - begin
        stop = first + item.source_range.duration.value
        spans.append((float(first / rate), float(stop / rate)))
        assert item.name == clip.source.name
    close(spans, clips, half_a_frame(clips))
    assert timeline.duration().value == sum(stop - first for first, stop in map(frames, clips))


def frames(clip):
    return clip_frames(clip, clip.source.frame_rate)


@given(clips(), st.sampled_from(["01:00:00:00", "00:00:00:00"]))
@property_test
def test_resolve_markers(clips, begin):
    rate = clips[0].source.frame_rate
    text = render("resolve-markers", clips, begin)
    assert text.splitlines()[1] == "FCM: NON-DROP FRAME"
    blocks = [block.splitlines() for block in text.split("\n\n")[1:] if block.strip()]
    origin = otio.opentime.from_timecode(begin, float(rate)).value
    spans = []
    for clip, (event, marker) in zip(clips, blocks, strict=True):
        assert re.fullmatch(r"\d{3,}  001      V     C       ( \d\d:\d\d:\d\d:\d\d){4}", event)
        at = otio.opentime.from_timecode(event.split()[4], float(rate)).value - origin
        match = re.fullmatch(r" \|C:ResolveColorBlue \|M:([^|]*) \|D:(\d+)", marker)
        assert match[1] == one_line(clip.name.replace("|", "/"))
        spans.append((float(at / rate), float((at + int(match[2])) / rate)))
    close(spans, clips, half_a_frame(clips))


@pytest.mark.slow
@given(clips())
@property_test
def test_final_cut_pro_7(clips):
    text = render("fcp7-xml", clips)
    timeline = otio.adapters.read_from_string(text, "fcp_xml")
    spans = []
    for item, clip in zip(timeline.find_clips(), clips, strict=True):
        rate, begin = clip.source.frame_rate, item.available_range().start_time
        assert begin.value == start_frame(clip.source, rate)[0]
        first = item.source_range.start_time - begin
        stop = first + item.source_range.duration
        spans.append((float(first.value / rate), float(stop.value / rate)))
        assert item.markers[0].name == clip.caption
        assert item.media_reference.target_url.startswith("file://localhost/")
    close(spans, clips, half_a_frame(clips))
    root = ET.fromstring(text)
    assert len(root.findall(".//clipitem/file/pathurl")) == 1  # in full once
    marks = [(int(m.find("in").text), int(m.find("out").text)) for m in root.iter("marker")]
    assert marks == [frames(clip) for clip in clips]


@pytest.mark.slow
@given(clips())
@property_test
def test_fcpxml(clips):
    """Every time is a whole number of frames, and the sums fit."""
    source = clips[0].source
    rate = source.frame_rate
    root = ET.fromstring(render("fcpxml", clips))

    def frame(element, name):
        text = element.get(name)
        assert re.fullmatch(r"\d+(/\d+)?s", text)
        value = Fraction(text[:-1]) * rate
        assert value.denominator == 1
        return int(value)

    layout = root.find("resources/format")
    assert Fraction(layout.get("frameDuration")[:-1]) == 1 / rate
    asset = root.find("resources/asset")
    begin = start_frame(source, rate)[0]
    assert (frame(asset, "start"), frame(asset, "duration")) == (begin, FRAMES)
    spans, end = [], 0
    for item, clip in zip(root.findall(".//spine/asset-clip"), clips, strict=True):
        assert item.get("ref") == asset.get("id")
        first, length = frame(item, "start") - begin, frame(item, "duration")
        assert 0 <= first < first + length <= FRAMES
        assert frame(item, "offset") == end
        end += length
        marker = item.find("marker")
        assert frame(marker, "start") == frame(item, "start")
        assert marker.get("value") == clip.caption
        spans.append((float(first / rate), float((first + length) / rate)))
    assert frame(root.find(".//sequence"), "duration") == end
    close(spans, clips, half_a_frame(clips))


# Annotation tools


@pytest.mark.slow
@given(clips())
@property_test
def test_elan(tmp_path_factory, clips):
    file = tmp_path_factory.mktemp("elan") / "a.eaf"
    export_clips(file, clips)
    document = pympi.Elan.Eaf(str(file))
    found = []
    for tier in document.get_tier_names():
        rows = sorted(document.get_annotation_data_for_tier(tier))
        assert all(a[1] <= b[0] for a, b in zip(rows, rows[1:], strict=False))
        found += rows
    found.sort()
    expected = sorted((clip.start, clip.end, one_line(clip.label)) for clip in clips)
    assert sorted(row[2] for row in found) == sorted(row[2] for row in expected)
    for row in expected:
        near = [
            f
            for f in found
            if abs(f[0] / 1000 - row[0]) <= 0.001 and abs(f[1] / 1000 - row[1]) <= 0.001
        ]
        assert row[2] in [f[2] for f in near]
    assert document.media_descriptors[0]["MEDIA_URL"].startswith("file:///films/two%20words/")


@pytest.mark.slow
@given(clips())
@property_test
def test_textgrid(tmp_path_factory, clips):
    file = tmp_path_factory.mktemp("praat") / "a.TextGrid"
    export_clips(file, clips)
    readings = [by_praatio(file), by_textgrid(file), by_pympi(file)]
    expected = sorted((clip.start, clip.end) for clip in clips)
    for found in readings:
        found.sort()
        assert sorted(row[2] for row in found) == sorted(one_line(clip.label) for clip in clips)
        for (start, end), row in zip(expected, found, strict=True):
            assert start == pytest.approx(row[0], abs=MILLISECOND)
            assert end == pytest.approx(row[1], abs=MILLISECOND)


def by_praatio(file):
    reader = importlib.import_module("praatio.textgrid")
    grid = reader.openTextgrid(str(file), includeEmptyIntervals=False)
    return [tuple(row) for name in grid.tierNames for row in grid.getTier(name).entries]


def by_textgrid(file):
    grid = importlib.import_module("textgrid").TextGrid.fromFile(str(file))
    return [(i.minTime, i.maxTime, i.mark) for tier in grid.tiers for i in tier if i.mark]


def by_pympi(file):
    grid = pympi.Praat.TextGrid(str(file))
    return [row for tier in grid.get_tiers() for row in tier.get_intervals() if row[2]]


@pytest.mark.slow
@given(clips())
@property_test
def test_audacity(clips):
    rows = [line.split("\t") for line in render("audacity", clips).splitlines()]
    close([(float(start), float(end)) for start, end, _ in rows], clips, MILLISECOND)
    assert [row[2] for row in rows] == [clip.caption for clip in clips]


@given(clips())
@property_test
def test_boris_pairs_starts_and_stops(clips):
    """BORIS pairs the rows of a behaviour with one subject and one modifier in turn."""
    waiting, found = {}, []
    rows = [line.split("\t") for line in render("boris", clips).split("\n")]  # as BORIS pastes
    assert {len(row) for row in rows} == {6}
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
    for time, subject, code, modifier, comment, frame in rows:
        assert frame == "NA"
        key = subject, code, modifier
        if key in waiting:
            start, text = waiting.pop(key)
            found.append((start, float(time), code, text))
        else:
            waiting[key] = float(time), comment
    assert not waiting
    expected = {clip.caption: clip for clip in clips}
    assert len(found) == len(clips)
    for start, end, code, text in found:
        near = [
            clip
            for clip in clips
            if abs(clip.start - start) <= MILLISECOND and abs(clip.end - end) <= MILLISECOND
        ]
        assert code in [one_line(clip.label) for clip in near]
        assert text in expected


@pytest.mark.slow
@given(clips())
@property_test
def test_activitynet_and_annotations_are_read_as_annotations(tmp_path_factory, clips):
    folder = tmp_path_factory.mktemp("annotations")
    export_clips(folder / "a.json", clips)
    export_clips(folder / "a.csv", clips, "annotations")
    exact = {(clip.start, clip.end, one_line(clip.label)) for clip in clips}
    for video in (
        *read_activitynet(folder / "a.json").values(),
        *read_csv(folder / "a.csv").values(),
    ):
        assert video.video_id == "hölidäy & <co> 100%"
        found = [(s.start, s.end, s.label) for s in video.segments]
        assert len(found) == len(exact)
        for row, wanted in zip(found, sorted(exact), strict=True):
            assert row[:2] == pytest.approx(wanted[:2], abs=1e-6)
            assert row[2] == wanted[2]
    results = json.loads((folder / "a.json").read_text())["results"]
    assert [row["score"] for rows in results.values() for row in rows] == [0.5] * len(clips)


# Names, several videos, refusals


def test_a_suffix_names_the_format():
    names = {"a.vtt": "webvtt", "a.OTIO": "otio", "b.TextGrid": "textgrid", "a.json": "activitynet"}
    for file, name in names.items():
        assert format_of(file) == name
    assert format_of("a.json", "via") == "via"
    assert format_of("chapters", "youtube") == "youtube"
    for arguments in (("a.mp4",), ("a",), ("a.json", "word")):
        with pytest.raises(UsageError):
            format_of(*arguments)


def test_no_cue_is_empty():
    clip = Clip(Source("a.mp4", 2.0), 2.0, 2.0, "m", "l")
    (cue,) = webvtt.from_string(render("webvtt", [clip])).captions
    assert seconds(cue.start) < seconds(cue.end)
    (line,) = srt.parse(render("srt", [clip]))
    assert line.start < line.end
    ends = [float(time) for time in re.findall(r"xmax = (\S+)", render("textgrid", [clip]))]
    assert max(ends) == ends[0] > 2.0


def test_films_of_several_sizes_in_final_cut_pro():
    sizes = {"a.mp4": (640, 360), "b.mp4": (1920, 1080), "c.mp4": (640, 360), "d.mp4": None}
    films = [Source(name, 9.0, Fraction(25), 225, None, size) for name, size in sizes.items()]
    text = render("fcpxml", to_clips([(film, Moment(1, 2, 0.5)) for film in films], "x"))
    resources = ET.fromstring(text).find("resources")
    ids = [each.get("id") for each in resources]
    assert len(set(ids)) == len(ids)
    layouts = {each.get("id"): each for each in resources.findall("format")}
    assert len(layouts) == 3
    for asset in resources.findall("asset"):
        layout, size = layouts[asset.get("format")], sizes[asset.get("name")]
        found = (layout.get("width"), layout.get("height"))
        assert found == ((None, None) if size is None else tuple(map(str, size)))


def test_only_two_rates_drop_frames():
    source = Source("a.mp4", 10.0, Fraction(120000, 1001), 1198)
    root = ET.fromstring(render("fcpxml", to_clips([(source, Moment(1, 2, 0.5))], "x")))
    assert {each.get("tcFormat") for each in root.iter() if each.get("tcFormat")} == {"NDF"}


def test_several_videos(tmp_path):
    one, two = (Source(f"{name}.mp4", 60.0, Fraction(25), 1500, id=name) for name in ("one", "two"))
    found = to_clips(
        [(one, Moment(3.0, 4.0, 0.9)), (two, Moment(5, 6, 0.8)), (one, Moment(1, 2, 0.7))], "salto"
    )
    assert [(clip.source.path, clip.rank) for clip in found] == [
        ("one.mp4", 3),
        ("one.mp4", 1),
        ("two.mp4", 2),
    ]
    written = export_clips(tmp_path / "a.srt", found)
    assert [file.name for file in written] == ["a-one.srt", "a-two.srt"]
    assert len(list(srt.parse(written[0].read_text()))) == 2
    assert export_clips(tmp_path / "a.otio", found) == [tmp_path / "a.otio"]
    for name in ("otio", "fcp7-xml"):
        adapter = {"otio": "otio_json", "fcp7-xml": "fcp_xml"}[name]
        timeline = otio.adapters.read_from_string(render(name, found), adapter)
        urls = [Path(c.media_reference.target_url).name for c in timeline.find_clips()]
        assert urls == ["one.mp4", "one.mp4", "two.mp4"]
    table = render("csv", found).splitlines()
    assert table[:2] == ["rank,video,start,end,score", "1,one,3.0,4.0,0.9"]
    with pytest.raises(UsageError, match="one video"):
        render("srt", found)


@pytest.mark.parametrize(
    ("name", "cell"),
    [('=A1+"x"', '"\'=A1+""x"""'), ("@x", "'@x"), ("-1+cmd|x", "'-1+cmd|x"), ("-dQw4w", "-dQw4w")],
)
def test_a_name_is_no_formula_of_a_spreadsheet(name, cell):
    clips = [Clip(Source("a.mp4", id=name), 1.0, 2.0, "m", "run")]
    assert render("csv", clips).splitlines()[1].startswith(f"1,{cell},1.0")


@pytest.mark.parametrize("name", ["csv", "annotations", "activitynet", "via", "label-studio"])
def test_two_videos_of_one_name_are_not_made_one(name):
    films = [Source(f"/cam{number}/day.mp4", 60.0, Fraction(25), 1500) for number in (1, 2)]
    clips = [Clip(film, 1.0, 2.0, "m", "run") for film in films]
    with pytest.raises(UsageError, match="two videos have one name"):
        render(name, clips)
    told = [
        replace(clip, source=replace(clip.source, id=f"cam{n}")) for n, clip in enumerate(clips)
    ]
    if name in ("via", "label-studio"):  # they know the files alone
        with pytest.raises(UsageError, match="two videos have one name"):
            render(name, told)
    else:
        assert "cam0" in render(name, told)
    assert render("otio", clips).count("/cam2/day.mp4") == 1  # whole paths stand there


def test_names_that_no_file_format_can_hold(tmp_path):
    source = Source("/films/\udcff\n\x01|.mp4", 60.0, Fraction(25), 1500, None, (64, 36))
    clips = [Clip(source, 1.0, 1.0, "\udcff\x00a", "\u2028\ud800b\tc", 1, 0.5, 0.25, "\ud800")]
    for number, name in enumerate(FORMATS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (file,) = export_clips(tmp_path / str(number), clips, name)
        text = file.read_text(encoding="utf-8")
        assert not set("\x00\x01\u2028") & set(text)
        if text.startswith("<?xml"):
            ET.fromstring(text)
        if text.startswith(("{", "[")) and name != "ffmpeg-chapters":
            json.loads(text)


def test_padding_stays_inside():
    source = Source("a.mp4", 10.0)
    found = to_clips([(source, Moment(1, 9.5, 0.5)), (source, Moment(4, 5, 0.4))], "x", padding=2)
    assert [(clip.start, clip.end) for clip in found] == [(0, 10), (2, 7)]
    with pytest.raises(UsageError, match="padding"):
        to_clips([], "x", padding=-1)


@pytest.mark.parametrize("name", ["cut-list", "fcp7-xml", "resolve-markers"])
@pytest.mark.parametrize("rate", [Fraction(25, 2), Fraction(15), Fraction(240)])
def test_rates_that_editors_do_not_have_are_refused(name, rate):
    moments = to_clips([(Source("a.mp4", 10.0, rate), Moment(1, 2, 0.5))], "x")
    with pytest.raises(UsageError, match="no rate"):
        render(name, moments)


def test_what_a_format_needs_is_asked_for():
    unknown = to_clips([(Source("features.npy"), Moment(1, 2, 0.5))], "x")
    for name in ("otio", "cut-list", "fcp7-xml", "fcpxml", "label-studio", "cvat"):
        with pytest.raises(UsageError, match="frame rate is not known"):
            render(name, unknown)
    with pytest.raises(UsageError, match="no moments"):
        render("otio", [])
    uneven = Source("a.mp4", 10.0, Fraction(25), variable_rate=True)
    with pytest.warns(UserWarning, match="-fps_mode cfr"):
        render("otio", to_clips([(uneven, Moment(1, 2, 0.5))], "x"))
    mixed = [(Source("a.mp4", 9.0, Fraction(25)), Moment(1, 2, 0.5))]
    mixed += [(Source("b.mp4", 9.0, Fraction(30)), Moment(1, 2, 0.5))]
    with pytest.raises(UsageError, match="one rate"):
        render("otio", to_clips(mixed, "x"))


def test_a_start_timecode_that_cannot_be_is_left_aside():
    source = Source("a.mp4", 10.0, Fraction(25), 250, timecode="01:00:00;00")
    with pytest.warns(UserWarning, match="counted from 0"):
        text = render("cut-list", to_clips([(source, Moment(1, 2, 0.5))], "x"))
    assert " 00:00:01:00 00:00:02:00 " in text


@pytest.mark.parametrize("code", ["23:00:00:00", "23:00:00;00"])
def test_a_timecode_that_passes_midnight_is_counted_from_0(code):
    source = Source("a.mp4", 9000.0, NTSC_30, 269_730, timecode=code)
    clips = [Clip(source, start, start + 2, "m", "r") for start in (3500.0, 7300.0)]
    early = render("cut-list", clips[:1])
    assert early.splitlines()[3].split()[4].startswith("23:58:")
    with pytest.warns(UserWarning, match="passes midnight, counted from 0: export .otio") as said:
        text = render("cut-list", clips)
    assert len(said) == 1
    timeline = otio.adapters.read_from_string(text, "cmx_3600", rate=float(NTSC_30))
    starts = [clip.source_range.start_time.value for clip in timeline.find_clips()]
    assert starts == [clip_frames(clip, NTSC_30)[0] for clip in clips]
    with pytest.warns(UserWarning, match="passes midnight"):
        text = render("resolve-markers", clips, timeline_start=code)
    assert [line.split()[4][:2] for line in text.splitlines() if " V " in line] == ["00", "02"]
