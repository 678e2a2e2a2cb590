"""``relocal extract`` and ``relocal train --videos`` on video files written here."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from relocal_pyg.apps.cli import main  # noqa: E402
from relocal_pyg.data.features import FeatureStore  # noqa: E402
from relocal_pyg.errors import AnnotationError, OutputError, UsageError  # noqa: E402
from relocal_pyg.video import (  # noqa: E402
    C3D,
    PCA,
    FunctionBackbone,
    extract_video,
    features_from_videos,
    fit_pca,
    read_times,
)

MEANS = FunctionBackbone(lambda frames: frames.float().mean((1, 2)), "means", dim=3, size=(48, 64))


def write(path: Path, seconds: float, level: int) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(round(seconds * 10)):
            inside = seconds / 3 <= number / 10 < 2 * seconds / 3
            picture = np.full((48, 64, 3), 220 if inside else level, dtype=np.uint8)
            picture[: 1 + number % 40, :, 1] = 128
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos of 3 s and one file that is none."""
    videos = tmp_path / "videos"
    (videos / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "sub/c")):
        write(videos / f"{name}.mp4", 3.0, 20 + 30 * number)
    (videos / "bad.mp4").write_text("no video")
    return videos


@pytest.mark.slow
def test_a_folder_is_extracted_once_and_the_bad_file_left_out(folder, tmp_path, capsys):
    output, report = tmp_path / "features.h5", tmp_path / "bad.json"
    arguments = ["extract", str(folder), "-o", str(output), "--rate", "2", "--report", str(report)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "3 videos extracted, 0 reused" in printed.out
    assert "left out" in printed.out
    assert "bad.mp4" in printed.out
    assert "bad.mp4" in report.read_text()
    store = FeatureStore(output)
    assert sorted(store.ids) == ["a", "b", "c"]
    first = store.read("a")
    assert tuple(first.shape) == (6, 1280)
    assert torch.equal(read_times(output, "a")[:, 0], torch.arange(6).double() / 2)

    again = tmp_path / "again.h5"
    assert main([*arguments[:3], str(again), *arguments[4:], "--cache", f"{output}.cache"]) == 0
    assert "0 videos extracted, 3 reused" in capsys.readouterr().out
    with h5py.File(output) as one, h5py.File(again) as two:
        for name in ("a", "b", "c"):
            assert np.array_equal(one[name]["features"], two[name]["features"])


@pytest.mark.slow
def test_strict_stops_at_the_bad_file(folder, tmp_path, capsys):
    arguments = ["extract", str(folder), "-o", str(tmp_path / "f.h5"), "--rate", "1", "--strict"]
    assert main([*arguments, "--report", str(tmp_path / "bad.json")]) == 2
    (left_out,) = json.loads((tmp_path / "bad.json").read_text())
    assert left_out["file"].endswith("bad.mp4")
    error = capsys.readouterr().err
    assert "bad.mp4" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backbone", "c3d"], "needs --weights"),
        (["--weights", __file__], "brings its own weights"),
        (["--pca", "missing.safetensors"], "missing.safetensors"),
        (["--workers", "0"], "workers"),
    ],
)
def test_wrong_options_are_one_line(folder, tmp_path, capsys, arguments, words):
    assert main(["extract", str(folder), "-o", str(tmp_path / "f.h5"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_c3d_with_weights_and_pca(folder, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(C3D.__init__, "__defaults__", (8, *C3D.__init__.__defaults__[1:]))
    torch.save(C3D().state_dict(), tmp_path / "c3d.pt")
    output = tmp_path / "c3d.h5"
    arguments = ["extract", str(folder / "a.mp4"), "-o", str(output), "--backbone", "c3d"]
    assert main([*arguments, "--weights", str(tmp_path / "c3d.pt"), "--rate", "10"]) == 0
    raw = FeatureStore(output).read("a")
    assert tuple(raw.shape) == (2, 8)
    fit_pca([torch.randn(20, 8)], 3).save(tmp_path / "pca.safetensors")
    small = tmp_path / "small.h5"
    arguments[3] = str(small)
    arguments += ["--weights", str(tmp_path / "c3d.pt"), "--rate", "10"]
    assert main([*arguments, "--pca", str(tmp_path / "pca.safetensors")]) == 0
    expected = PCA.load(tmp_path / "pca.safetensors").transform(raw)
    assert torch.allclose(FeatureStore(small).read("a"), expected, atol=1e-5)


def test_a_pca_is_part_of_the_name_and_fits_its_width(folder):
    pca = fit_pca([torch.randn(20, 3)], 2)
    other = fit_pca([torch.randn(20, 3)], 2)
    names = {MEANS.name, pca.after(MEANS).name, other.after(MEANS).name}
    assert len(names) == 3
    rows = extract_video(folder / "a.mp4", pca.after(MEANS), 2.0).features
    assert torch.allclose(
        rows, pca.transform(extract_video(folder / "a.mp4", MEANS, 2.0).features), atol=1e-4
    )
    with pytest.raises(UsageError, match="4 channels, means gives 3"):
        fit_pca([torch.randn(20, 4)], 2).after(MEANS)


def test_only_annotated_videos_are_read_at_a_rate_that_follows_the_actions(folder, tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("video,start,end,label\na,1,2,x\nc,0.5,1.5,y\nc,2,3,background\n")
    done, step = features_from_videos(folder, table, tmp_path / "f.h5", MEANS)
    assert sorted(done.digests) == ["a", "c"]
    assert step == 1 / 12.5
    with pytest.raises(OutputError, match="holds features of"):
        features_from_videos(folder, table, tmp_path / "f.h5", MEANS, 4.0)
    _, step = features_from_videos(folder, table, tmp_path / "g.h5", MEANS, 4.0)
    assert step == 0.25
    table.write_text("video,start,end,label\na.mp4,1,2,x\n")
    with pytest.raises(AnnotationError, match="without its suffix, such as 'a'"):
        features_from_videos(folder, table, tmp_path / "f.h5", MEANS)


@pytest.mark.slow
def test_from_a_folder_to_a_trained_model(small_presets, tmp_path, capsys):
    """Extract, propose, train, evaluate; then find with the checkpoint."""
    videos = tmp_path / "videos"
    videos.mkdir()
    lines = ["video,start,end,label"]
    for number in range(8):
        write(videos / f"v{number}.mp4", 3.0, 20 + 10 * number)
        lines.append(f"v{number},1,2,flash")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    arguments = ["train", str(run), "--videos", str(videos), "--steps", "2", "--rate", "4"]
    assert main([*arguments, "--annotations", str(tmp_path / "a.csv")]) == 0
    printed = capsys.readouterr().out
    assert "8 videos extracted" in printed
    assert "Proposal oracle" in printed
    record = json.loads((run / "run.json").read_text())
    network = {"backbone": "efficientnet-lite0-max", "pool": None, "weights": None, "pca": None}
    assert record["features"] == {
        "backbone": "efficientnet-lite0-160-max",
        "rate_hz": 4.0,
        "network": network,
    }
    assert (run / "evaluation" / "test_seen" / "report.html").is_file()
    clip = [str(videos / "v0.mp4"), str(videos / "v1.mp4"), "--query-start", "1"]
    for model in (run, run / "best"):
        assert main(["find", *clip, "--query-end", "2", "--model", str(model)]) == 0
        printed = capsys.readouterr().out
        assert f"from {model}" in printed
        assert "4 frames a second" in printed
    assert main(["find", *clip, "--query-end", "2", "--model", str(run), "--rate", "5"]) == 0
    assert "5 frames a second" in capsys.readouterr().out


def test_videos_need_annotations_and_exclude_features(folder, tmp_path, capsys):
    arguments = ["train", str(tmp_path / "run"), "--videos", str(folder)]
    assert main(arguments) == 2
    assert "--annotations" in capsys.readouterr().err
    for name in ("a.csv", "f.h5"):
        (tmp_path / name).touch()
    arguments += ["--annotations", str(tmp_path / "a.csv"), "--features", str(tmp_path / "f.h5")]
    assert main(arguments) == 2
    assert "leave --features" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.npy", "a.mp4"])
def test_features_are_not_written_under_the_name_of_something_else(tmp_path, capsys, name):
    target = tmp_path / name
    assert main(["extract", str(tmp_path), "-o", str(target)]) == 2
    assert "name it .h5" in capsys.readouterr().err
    assert not target.exists()
