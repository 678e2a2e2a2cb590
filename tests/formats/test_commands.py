"""``--export`` of find and search, ``relocal convert``, what a video says of its frames."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import opentimelineio as otio
import pytest
import srt

from relocal_pyg.apps.cli import main
from relocal_pyg.apps.cli.find import QueryOptions
from relocal_pyg.formats import FORMATS, render, to_clips
from relocal_pyg.moments import Moment

av = pytest.importorskip("av")

from relocal_pyg.video.cut import describe_source  # noqa: E402


def film(path, rate, frames=60, metadata=None, gaps=(), sound=False):
    """A video of grey pictures; ``gaps`` are numbers of pictures that are left out."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.metadata.update(metadata or {})
        tone = output.add_stream("aac", rate=48000) if sound else None
        for number in range(frames):
            if number in gaps:
                continue
            picture = np.full((32, 64, 3), number % 200, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if tone is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.rate = 48000
            silence.pts = 0
            output.mux(tone.encode(silence))
            output.mux(tone.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(60000, 1001)])
def test_the_rate_and_the_frames_of_a_file(tmp_path, suffix, rate):
    source = describe_source(film(tmp_path / f"a{suffix}", rate))
    assert source.frame_rate == rate
    assert source.frame_count == 60
    assert source.size == (64, 32)
    assert not source.variable_rate
    assert not source.audio
    assert source.timecode is None
    assert source.duration == pytest.approx(float(60 / rate), abs=0.05)


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])  # Matroska writes its tags in capitals
@pytest.mark.parametrize("code", ["01:00:00:00", "01:00:00;00"])
def test_the_start_timecode_of_a_file(tmp_path, code, suffix):
    file = film(tmp_path / f"a{suffix}", Fraction(30000, 1001), metadata={"timecode": code})
    source = describe_source(file)
    assert source.timecode == code
    clips = to_clips([(source, Moment(0.5, 1.0, 0.5))], "x")
    event = render("cut-list", clips).splitlines()[3].split()
    frames = [otio.opentime.from_timecode(text, 30000 / 1001).value for text in event[4:6]]
    begin = otio.opentime.from_timecode(code, 30000 / 1001).value
    assert [frame - begin for frame in frames] == [15, 30]
    assert ("DROP FRAME" in render("cut-list", clips)) is True
    assert (";" in event[4]) == (";" in code)


def test_uneven_frames_are_noticed(tmp_path):
    source = describe_source(film(tmp_path / "a.mp4", Fraction(25), gaps=range(20, 30)))
    assert source.variable_rate
    assert source.frame_rate is not None
    with pytest.warns(UserWarning, match="not evenly spaced"):
        render("otio", to_clips([(source, Moment(0.5, 1.0, 0.5))], "x"))


def test_sound_is_noticed(tmp_path):
    assert describe_source(film(tmp_path / "a.mp4", Fraction(25), sound=True)).audio


def test_a_late_picture_is_frame_0(shared_data):
    file = shared_data.parent / "cases" / "video" / "late_video.mp4"
    if not file.is_file():
        pytest.skip("no such cases")
    source = describe_source(file)
    assert source.first_picture == pytest.approx(5, abs=0.1)
    clips = to_clips([(source, Moment(source.first_picture, source.first_picture + 1, 0.5))], "x")
    frames = json.loads(render("label-studio", clips))[0]["predictions"][0]["result"][0]["value"]
    assert frames["ranges"] == [{"start": 1, "end": round(source.frame_rate)}]


@pytest.fixture
def planted(tmp_path):
    """A query and a reference that holds it at 60 to 80 s, as features of 2 s a step."""
    rng = np.random.default_rng(0)
    reference, pattern = rng.normal(size=(60, 16)), rng.normal(size=16)
    reference[30:40] += 5 * pattern
    np.save(tmp_path / "salto.npy", rng.normal(size=(10, 16)) + 5 * pattern)
    np.save(tmp_path / "monday.npy", reference)
    names = [str(tmp_path / f"{name}.npy") for name in ("salto", "monday")]
    return ["find", *names, "--seconds-per-step", "2", "--top-k", "1"]


@pytest.mark.slow
def test_find_exports_by_suffix(planted, tmp_path, capsys):
    names = ("a.vtt", "a.eaf", "a.llc", "a.TextGrid", "a.json", "a.csv", "a.tsv")
    files = [tmp_path / name for name in names]
    assert main([*planted, "--export", *map(str, files), "--format", "annotations"]) == 0
    assert "ActivityNet JSON" in capsys.readouterr().out
    assert all(file.stat().st_size for file in files)
    with (tmp_path / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {
            "video": "monday",
            "start": "60",
            "end": "80",
            "label": "salto",
            "subject": "",
            "duration": "120",
        }
    ]
    assert main([*planted, "--export", str(tmp_path / "p.vtt"), "--padding", "5"]) == 0
    assert "00:00:55.000 --> 00:01:25.000" in (tmp_path / "p.vtt").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--export", "a.mp4"], ".mp4 is no format"),
        (["--export", "a.json", "--format", "word"], "no format 'word'"),
        (["--export", "a.vtt", "--format", "elan"], "--format elan needs a file"),
        (["--export", "a.otio"], "the frame rate is not known"),
        (["--export", "a.vtt", "--padding", "-1"], "--padding"),
        (["--export", "a.vtt", "a.vtt"], "two outputs have this name"),
        (["--contact-sheet", "a.gif"], "ends in .jpg or .png"),
    ],
)
def test_what_find_cannot_export_is_one_line(planted, arguments, reason, tmp_path, capsys):
    arguments = [str(tmp_path / word) if "." in word else word for word in arguments]
    assert main([*planted, *arguments]) == 2
    printed, error = capsys.readouterr()
    assert reason in error
    assert len(error.splitlines()) == 1
    assert not printed  # it was said before anything was searched
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".npy", ".npy"]


def test_a_timecode_that_is_none_is_said_before_the_search(tmp_path, capsys):
    film(tmp_path / "a.mp4", Fraction(25))
    arguments = ["find", *[str(tmp_path / "a.mp4")] * 2, "--export", str(tmp_path / "a.edl")]
    assert main([*arguments, "--format", "resolve-markers", "--timeline-start", "1 h"]) == 2
    assert capsys.readouterr() == ("", "relocal: '1 h' is not a timecode: hh:mm:ss:ff wanted\n")


@pytest.mark.slow
def test_an_export_without_moments_is_that_of_the_option(planted, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("a.srt", "b.srt", "b.vtt", "b.eaf")]
    found = [*planted, "--min-probability", "1", "--srt", files[0], "--export", *files[1:]]
    assert main(found) == 0
    assert "b.eaf is not written" in capsys.readouterr().out
    assert (tmp_path / "a.srt").read_text() == (tmp_path / "b.srt").read_text() == ""
    assert (tmp_path / "b.vtt").read_text() == "WEBVTT\n\n"
    assert not (tmp_path / "b.eaf").exists()


@pytest.mark.slow
def test_the_label_is_the_name_of_what_was_looked_for(planted, tmp_path):
    saved = tmp_path / "my jump.json"
    assert main([*planted, "--json", str(saved)]) == 0
    again = ["find", str(saved), planted[2], "--top-k", "1"]
    assert main([*again, "--export", str(tmp_path / "a.json")]) == 0
    database = json.loads((tmp_path / "a.json").read_text())["database"]
    assert [each["label"] for each in database["monday"]["annotations"]] == ["my jump"]
    assert QueryOptions(query_text="no. 3: up/down").name(None) == "no. 3: up/down"
    assert QueryOptions(query_image=Path("a/b.c.png")).name(None) == "b.c"


def test_an_export_never_replaces_what_was_read(planted, tmp_path, capsys):
    other = tmp_path / "mine.vtt"
    other.write_text("precious")
    assert main([*planted, "--export", str(other)]) == 2
    assert "not written by relocal" in capsys.readouterr().err
    assert other.read_text() == "precious"


def test_search_exports(tmp_path, capsys):
    from relocal_pyg.apps.cli.search import index
    from relocal_pyg.data.features import write_features

    draw = np.random.default_rng(0)
    action = draw.normal(size=8).astype("float32")
    videos = {f"v{i}": 0.3 * draw.normal(size=(40, 8)).astype("float32") for i in range(4)}
    videos["v1"][16:24] += action
    videos["v3"][5:13] += action
    write_features(tmp_path / "a.h5", list(videos.items()))
    np.save(tmp_path / "q.npy", action + 0.3 * draw.normal(size=(8, 8)).astype("float32"))
    index(tmp_path / "index", tmp_path / "a.h5", seconds_per_step=0.3)
    arguments = ["search", str(tmp_path / "index"), str(tmp_path / "q.npy"), "--top-k", "6"]
    arguments += ["--srt", str(tmp_path / "a.srt"), "--csv", str(tmp_path / "a.csv")]
    assert main([*arguments, "--export", str(tmp_path / "a.json")]) == 0
    with (tmp_path / "a.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    # Times are not rounded to single precision, which 0.3 is not made for.
    assert all(float(row["start"]) == round(float(row["start"]), 6) for row in rows)
    names = {row["video"] for row in rows}
    assert {"v1", "v3"} <= names
    for name in names:
        cues = list(srt.parse((tmp_path / f"a-{name}.srt").read_text()))
        starts = sorted(float(row["start"]) for row in rows if row["video"] == name)
        assert [cue.start.total_seconds() for cue in cues] == pytest.approx(starts, abs=0.001)
    assert set(json.loads((tmp_path / "a.json").read_text())["results"]) == names
    assert main([*arguments[:3], "--cut", str(tmp_path / "clips")]) == 2
    assert "--cut needs video files" in capsys.readouterr().err


def test_a_hit_ends_with_its_film_and_an_export_of_it_is_read_back(tmp_path):
    """The last step of a film goes on after its end, by less than a step."""
    from relocal_pyg.apps.cli.search import index, source_of
    from relocal_pyg.data.annotations import read_annotations
    from relocal_pyg.data.features import write_features
    from relocal_pyg.models import ContrastMatcher
    from relocal_pyg.search.index import Hit, SearchIndex
    from relocal_pyg.video.index import IndexedVideos, in_film

    path = str(film(tmp_path / "a.mp4", Fraction(25)))  # 2.4 s
    draw = np.random.default_rng(0).normal(size=(20, 4)).astype("f4")
    videos = {"a": draw[:8], "long": draw, "gone": draw[:8]}
    write_features(tmp_path / "a.h5", videos.items())
    index(tmp_path / "index", tmp_path / "a.h5", seconds_per_step=0.32)
    opened = SearchIndex(tmp_path / "index", ContrastMatcher())
    files = {"a": path, "long": path, "gone": str(tmp_path / "gone.mp4")}
    places = {name: Path(file) for name, file in files.items()}
    made = IndexedVideos(tmp_path / "index", 3.125, "any", files=places)

    def ends(name, end):
        source = source_of(name, files, opened)
        hit = in_film(Hit(name, 1.28, end, 0.5), opened, made)
        (tmp_path / "a.json").write_text(
            render("activitynet", to_clips([(source, hit.moment)], "jump"))
        )
        (video,) = read_annotations(tmp_path / "a.json").values()
        assert video.segments[0].end == pytest.approx(hit.end)
        return hit.end

    assert ends("a", 2.56) == pytest.approx(2.4)
    assert ends("a", 2.24) == 2.24
    assert ends("long", 6.4) == 6.4  # what a header says of its film may be wrong
    assert ends("gone", 2.56) == 2.56


def test_convert(tmp_path, capsys):
    tasks = {"id": 1, "data": {"video": "/data/upload/1/0a1b2c3d-a.mp4"}}
    value = {"ranges": [{"start": 26, "end": 50}], "timelinelabels": ["run"]}
    tasks["annotations"] = [{"result": [{"type": "timelinelabels", "value": value}]}]
    (tmp_path / "a.json").write_text(json.dumps([tasks]))
    table = "Subject,Behavior,Behavior type,Start (s),Stop (s),Media file name\n"
    table += "anna,jump,STATE,1,2.5,b.mp4\nanna,wink,POINT,3,3,b.mp4\n"
    (tmp_path / "b.csv").write_text(table)
    arguments = ["convert", str(tmp_path / "a.json"), str(tmp_path / "b.csv")]
    arguments += ["-o", str(tmp_path / "rows.csv")]
    assert main(arguments) == 2
    assert "a.json: task 1 result 0: counts frames" in capsys.readouterr().err
    assert main([*arguments, "--fps", "25"]) == 0
    printed = capsys.readouterr().out
    assert "rows.csv: 2 actions, 2 labels, 2 videos" in printed
    assert "1 record set aside" in printed
    assert (tmp_path / "rows.csv").read_text() == (
        "video,start,end,label,subject,duration\na,1,2,run,,\nb,1,2.5,jump,anna,\n"
    )
    aside = json.loads((tmp_path / "rows.csv.set-aside.json").read_text())
    assert [entry["record"] for entry in aside] == ["line 3"]
    assert main([*arguments, "--fps", "25", "--point-width", "1"]) == 0
    assert "b,2.5,3.5,wink,anna," in (tmp_path / "rows.csv").read_text()
    assert not json.loads((tmp_path / "rows.csv.set-aside.json").read_text())
    assert main([*arguments, "--strict", "--fps", "25"]) == 2
    # A session in which nothing happened; alone it is a mistake.
    (tmp_path / "c.csv").write_text("video,start,end,label\n")
    capsys.readouterr()
    both = ["convert", str(tmp_path / "c.csv"), *arguments[1:], "--fps", "25"]
    twice = ["convert", *arguments[1:3], *arguments[1:], "--fps", "25"]
    assert main(twice) == 0
    assert "rows.csv: 2 actions, 2 labels, 2 videos" in capsys.readouterr().out
    assert main(both) == 0
    assert "2 records set aside in 2 files" in capsys.readouterr().out
    for alone in ([*both, "--strict"], [*both[:2], "-o", str(tmp_path / "x.csv")]):
        assert main(alone) == 2
        assert "c.csv" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.eaf"), "-o", str(tmp_path / "x.csv")]) == 2
    assert "does not exist" in capsys.readouterr().err.splitlines()[-1]


def test_the_page_on_formats_names_every_format():
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8").lower()
    for name, form in FORMATS.items():
        assert f"`{name}`" in page
        assert form.suffixes[0] in page
