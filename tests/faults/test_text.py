"""Text that people and spreadsheets write: blanks, Unicode forms, separators, times, names."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocal_pyg.apps.cli import main
from relocal_pyg.data import (
    FeatureStore,
    Quarantine,
    check_dataset,
    read_annotations,
    read_csv,
    write_features,
)
from relocal_pyg.errors import AnnotationError, RelocalError, ascii_line
from relocal_pyg.formats.clips import clock
from relocal_pyg.io.read import parse_time
from relocal_pyg.io.write import write_json

#: Letters with marks, which have two forms, among plain ones.
words = st.text(st.sampled_from("aéñç öÅ가x1"), min_size=1, max_size=8).map(str.strip).filter(bool)
forms = st.sampled_from(["NFC", "NFD"])
#: What shows nothing, and is not a part of a cell in a table of tabs.
blanks = st.text(st.sampled_from(" \u00a0\u200b\u200e\ufeff"), max_size=2)


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.slow
@given(
    rows=st.lists(
        st.tuples(words, st.integers(0, 50), st.integers(1, 50), words), min_size=1, max_size=6
    ),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_a_table_says_the_same_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, int, int, str]],
    data: st.DataObject,
) -> None:
    """One form for each id (two forms of one id are refused), any form and blanks elsewhere."""
    separator, decimal = data.draw(
        st.sampled_from([(",", "."), (";", "."), (";", ","), ("\t", ".")])
    )
    form = data.draw(forms)
    head = separator.join(["video", "start", "end", "label"])
    lines = [data.draw(st.sampled_from([head, head.upper(), head.title()]))]
    if data.draw(st.booleans()):
        lines.insert(0, f"sep={separator}")
    wanted: dict[str, set[tuple[float, float, str]]] = {}
    for video, start, length, label in rows:
        times = start + 0.5, start + length + 0.25
        cells = []
        for time in times:
            how = data.draw(st.sampled_from(["seconds", "clock"]))
            text = clock(time) if how == "clock" else f"{time:g}"
            cells.append(text.replace(".", decimal))
        name = unicodedata.normalize(data.draw(forms), label)
        cells = [unicodedata.normalize(form, video), *cells, name]
        lines.append(separator.join(data.draw(blanks) + cell + data.draw(blanks) for cell in cells))
        wanted.setdefault(composed(video), set()).add((*times, composed(label)))
    file = tmp_path_factory.mktemp("table") / "a.csv"
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    file.write_text(end.join([*lines, ""]), encoding=encoding, newline="")
    videos = read_csv(file, quarantine=Quarantine())
    assert {
        name: {(each.start, each.end, each.label) for each in video.segments}
        for name, video in videos.items()
    } == wanted


@pytest.mark.slow
@given(words, forms, forms)
@settings(deadline=None, max_examples=10)
def test_ids_match_across_unicode_forms(
    tmp_path_factory: pytest.TempPathFactory, name: str, filed: str, asked: str
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    rows = np.ones((20, 3), "f4")
    write_features(folder / "a.h5", [(unicodedata.normalize(filed, name), rows)])
    store = FeatureStore(folder / "a.h5")
    assert unicodedata.normalize(asked, name) in store
    assert len(store.read(unicodedata.normalize(asked, name))) == 20
    write_json(
        folder / "a.json",
        {
            "database": {
                unicodedata.normalize(asked, name): {
                    "duration": 10.0,
                    "annotations": [{"segment": [1, 2], "label": "x"}],
                }
            }
        },
    )
    assert len(check_dataset(folder / "a.h5", folder / "a.json")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [" a", "a\u00a0", "\ufeffa", "a\u200b"])
def test_ids_match_but_for_what_shows_nothing(tmp_path: Path, name: str) -> None:
    write_features(tmp_path / "a.h5", [(name, np.ones((20, 3), "f4"))])
    (tmp_path / "a.csv").write_text("video,start,end,label\na,1,2,x\n")
    assert len(check_dataset(tmp_path / "a.h5", tmp_path / "a.csv")) == 0
    assert len(FeatureStore(tmp_path / "a.h5").read("a")) == 20


@pytest.mark.parametrize("text", ["\ud800", "a\0", "\u200b", " "])
@pytest.mark.parametrize("suffix", ["json", "boris"])
def test_labels_that_no_file_can_hold_are_set_aside(tmp_path: Path, text: str, suffix: str) -> None:
    """JSON can say what no table can; who performs may be called that too."""
    segments = [{"segment": [1, 2], "label": label} for label in ("b", text)]
    content: dict[str, object] = {"database": {"v": {"duration": 9.0, "annotations": segments}}}
    if suffix == "boris":
        events = [
            [time, text, label, "", ""] for label in ("b", text or "b") for time in (1.0, 2.0)
        ]
        media = {"media_info": {"length": {"v.mp4": 9.0}}, "file": {"1": ["v.mp4"]}}
        content = {
            "behaviors_conf": {
                str(n): {"code": label, "type": "State event"} for n, label in enumerate("b" + text)
            },
            "observations": {"o": {"type": "MEDIA", "time offset": 0, "events": events, **media}},
            "project_format_version": "7.0",
        }
    (tmp_path / f"a.{suffix}").write_text(json.dumps(content))
    assert main(["convert", str(tmp_path / f"a.{suffix}"), "--out", str(tmp_path / "a.csv")]) == 0
    (video,) = read_csv(tmp_path / "a.csv", quarantine=Quarantine()).values()
    assert {each.label for each in video.segments} == {"b"}


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,start,end,label,Start\nv,1,2,x,1.5\n")
    with pytest.raises(AnnotationError, match="more than one column start"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("time", ["1,000", "nan", "0x1", "1_0", "1e400", "1h", "\u0663"])
def test_what_is_no_time_is_shown_as_it_was_written(tmp_path: Path, time: str) -> None:
    (tmp_path / "a.csv").write_text(f'video,start,end,label\nv,"{time}",9,x\n', encoding="utf-8")
    with pytest.raises(AnnotationError, match=f"times are '{time}'"):
        read_csv(tmp_path / "a.csv", quarantine=Quarantine())


@given(st.floats(0, 359_999, allow_nan=False))
def test_times_as_we_print_them_are_read(seconds: float) -> None:
    assert parse_time(clock(seconds)) == pytest.approx(seconds, abs=5.01e-4)
    assert parse_time(str(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:04", 4), ("0:00:13.120", 13.12), ("90:00", 5400), ("1:02:03", 3723), ("00:00:13,5", 13.5)],
)
def test_times_by_the_clock(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "1:75", "1:60:00", "nan", "inf", "1e300", "1:2:3:4", "٣"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RelocalError, match="seconds or h:mm:ss wanted"):
        parse_time(text)


@given(st.text(max_size=60))
def test_a_name_is_printed_on_one_line_without_control(text: str) -> None:
    line = ascii_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1
    assert not any(unicodedata.bidirectional(char) in ("RLO", "LRO", "RLE", "LRE") for char in line)


def annotated(folder: Path, features: dict[str, int], videos: dict[str, object]) -> list[str]:
    """What ``check`` reports of features of so many steps and of videos."""
    write_features(folder / "a.h5", ((k, np.ones((n, 3), "f4")) for k, n in features.items()))
    write_json(folder / "a.json", {"database": videos})
    return [entry.reason for entry in check_dataset(folder / "a.h5", folder / "a.json").records]


def video(duration: float | None, *segments: tuple[float, float]) -> dict[str, object]:
    return {
        "duration": duration,
        "annotations": [{"segment": list(each), "label": "x"} for each in segments],
    }


@pytest.mark.slow
@pytest.mark.parametrize("steps", [120, 200, 270, 360, 900])
def test_a_video_whose_features_were_cut_off_is_found(tmp_path: Path, steps: int) -> None:
    counts = {f"v{i}": 312 for i in range(7)} | {"v7": steps}
    said = annotated(tmp_path, counts, {name: video(100.0, (80, 90)) for name in counts})
    assert len(said) == 1
    assert f"has {steps} steps for 100 s" in said[0]


@pytest.mark.slow
def test_videos_of_one_rate_or_of_one_number_of_steps_are_not_reported(tmp_path: Path) -> None:
    lengths = dict(zip((f"v{i}" for i in range(8)), range(20, 180, 20), strict=True))
    rate = {name: round(3.125 * length) - 2 for name, length in lengths.items()}
    videos = {name: video(length, (1, 2)) for name, length in lengths.items()}
    assert annotated(tmp_path, rate, videos) == []
    assert annotated(tmp_path, dict.fromkeys(lengths, 100), videos) == []


@pytest.mark.slow
def test_times_in_frames_are_recognised(tmp_path: Path) -> None:
    names = [f"v{i}" for i in range(5)]
    with pytest.raises(AnnotationError, match="are these frames"):
        annotated(
            tmp_path, dict.fromkeys(names, 60), {name: video(20.0, (250, 500)) for name in names}
        )
    table = "video,start,end,label\n" + "".join(f"{name},2500,5000,x\n" for name in names)
    (tmp_path / "a.csv").write_text(table)
    said = [each.reason for each in check_dataset(tmp_path / "a.h5", tmp_path / "a.csv").records]
    assert any("look like frames" in each for each in said)


@pytest.mark.slow
def test_advice_names_options_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from relocal_pyg.apps.cli import main

    said = annotated(tmp_path, {"v0": 60, "v1": 60}, {
        "v0": video(20.0, (1, 5), (15, 25)), "v1": video(20.0, (1, 2)),
    })  # fmt: skip
    advice = [word.strip("():") for word in said[0].split() if word.startswith("--")]
    assert advice == ["--clip"]
    assert main(["check", str(tmp_path / "a.h5"), str(tmp_path / "a.json"), *advice]) == 0
    assert "no record set aside" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["spaces", "nfd", "semicolon", "semicolon_decimal", "sepline", "hms"]
)
def test_tables_that_went_wrong(cases: Path, name: str) -> None:
    videos = read_annotations(cases / f"{name}.csv")
    assert len(videos) == 2
    assert len({segment.label for each in videos.values() for segment in each.segments}) == 1
    if name != "nfd":
        assert (videos["monday"].segments[0].start, videos["monday"].segments[0].end) == (
            12.5,
            15.1,
        )


@pytest.mark.slow
def test_feature_files_that_went_wrong(cases: Path) -> None:
    assert len(check_dataset(cases / "nfc.h5", cases / "nfd_ids.csv")) == 0
    (entry,) = check_dataset(cases / "trunc.h5", cases / "trunc.json").records
    assert entry.record == "v0"
    assert "120 steps" in entry.reason
