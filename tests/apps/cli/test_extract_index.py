"""``relocal index`` and ``relocal search`` on video files."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

from relocal_pyg.apps.cli import main  # noqa: E402
from relocal_pyg.errors import SearchIndexError  # noqa: E402
from relocal_pyg.models import ContrastMatcher, CosineMatcher  # noqa: E402
from relocal_pyg.search import build_index  # noqa: E402
from relocal_pyg.video import FunctionBackbone  # noqa: E402
from relocal_pyg.video.index import IndexedVideos, index_features  # noqa: E402

BLOCKS = FunctionBackbone(
    lambda frames: frames.float().reshape(len(frames), 6, 8, 8, 8, 3).mean((2, 4)).flatten(1),
    "blocks",
    dim=144,
    size=(48, 64),
)


def texture(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = rng.integers(30, 225, size=(6, 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.normal(scale=6, size=(count, 48, 64, 3))
    return list(np.clip(picture + noise, 0, 255).astype(np.uint8))


def write(path: Path, pictures: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands use a network that knows textures."""
    # The package's attribute of that name is the command.
    module = import_module("relocal_pyg.apps.cli.search")
    monkeypatch.setattr(module, "load_network", lambda options, rate, *_: (BLOCKS, rate))


@pytest.mark.slow
def test_the_right_video_and_time_are_found(tmp_path: Path, blocks: None, capsys):
    films = tmp_path / "films"
    films.mkdir()
    for number, name in enumerate(("one", "two", "three")):
        middle = 99 if name == "two" else 10 + number
        parts = [*texture(20 + number, 40), *texture(middle, 20), *texture(30 + number, 30)]
        write(films / f"{name}.mp4", parts)
    query = write(tmp_path / "query.mp4", [*texture(50, 20), *texture(99, 20)])
    index = tmp_path / "index"
    assert main(["index", str(index), str(films), "--rate", "5"]) == 0
    assert "3 videos extracted" in capsys.readouterr().out
    found = tmp_path / "found.json"
    arguments = ["search", str(index), str(query), "--query-start", "2", "--top-k", "3"]
    page, sheet = tmp_path / "found.html", tmp_path / "found.png"
    pictures = ["--report", str(page), "--contact-sheet", str(sheet)]
    assert main([*arguments, "--json", str(found), *pictures]) == 0
    html, moments = page.read_text(), json.loads(found.read_text())["moments"]
    assert html.count('id="moment-') == len(moments)
    assert "<title>query.mp4 in index</title>" in html
    assert f"Best moment: {moments[0]['video']}, 0:00:04." in html
    assert html.count("<img") == 6 + 6 * len(moments)
    with Image.open(sheet) as drawn:
        # The line of each moment, and the texture below it.
        assert drawn.height == len(moments) * (26 + 120 + 6)
        below = np.asarray(drawn.convert("RGB"))[26 + 20 : 26 + 100, 20:140].astype(float)
    assert below.std() > 20
    best = json.loads(found.read_text())["moments"][0]
    assert best["video"] == "two"
    assert best["start"] == pytest.approx(4.0, abs=0.41)
    assert best["end"] == pytest.approx(6.0, abs=0.41)

    # With a yes and a no it is a query of its own, also from elsewhere and as training items.
    content = json.loads(found.read_text())
    content["moments"][0]["good"], content["moments"][1]["good"] = True, False
    saved = tmp_path / "salto.json"
    saved.write_text(json.dumps(content))
    again = ["search", str(index), str(saved), "--top-k", "3", "--json", str(tmp_path / "2.json")]
    assert main(again) == 0
    content = json.loads((tmp_path / "2.json").read_text())
    assert content["moments"][0]["video"] == "two"
    assert (content["query"], content["query_span"]) == (str(query), [2.0, 4.0])
    assert [each["good"] for each in content["examples"]] == [True, False]
    assert content["examples"][0]["video"] == str((films / "two.mp4").resolve())
    assert main(["convert", str(tmp_path / "2.json"), "-o", str(tmp_path / "rows.csv")]) == 0
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["video", "query", "two"]
    for damage in ('"x"', "{}", json.dumps({**content, "moments": [{"good": 1}]})):
        saved.write_text(damage)
        assert main(again) == 2
        assert "salto.json" in capsys.readouterr().err

    assert IndexedVideos.load(index).files == {
        name: (films / f"{name}.mp4").resolve() for name in ("one", "two", "three")
    }

    # Another folder: what was there stays known.
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "four.mp4", texture(60, 40))
    films = tmp_path / "more"
    assert main(["index", str(index), str(films)]) == 0
    printed = capsys.readouterr().out
    assert "1 videos extracted, 0 reused" in printed
    assert "1 videos added, 3 there before" in printed
    assert sorted(IndexedVideos.load(index).files) == ["four", "one", "three", "two"]
    assert main(["index", str(index), str(films), "--rate", "2"]) == 2
    assert "5 frames a second" in capsys.readouterr().err


@pytest.mark.slow
def test_films_that_were_moved_keep_their_ids(tmp_path: Path):
    """They would be in the index twice; another film of a name that is gone is another."""
    for name, seed in (("a", 1), ("cam", 2)):
        (tmp_path / "old").mkdir(exist_ok=True)
        write(tmp_path / "old" / f"{name}.mp4", texture(seed, 30))
    index_features(tmp_path / "old", tmp_path / "index", BLOCKS)
    (tmp_path / "old").rename(tmp_path / "new")
    write(tmp_path / "new" / "cam.mp4", texture(3, 30))
    (tmp_path / "new" / "a.mp4").rename(tmp_path / "new" / "renamed.mp4")
    made, done = index_features(tmp_path / "new", tmp_path / "index", BLOCKS)
    assert (done.computed, done.reused) == (1, 1)
    files = {name: file.name for name, file in made.files.items() if file.is_file()}
    assert files == {"a": "renamed.mp4", "cam.mp4": "cam.mp4"}
    assert IndexedVideos.load(tmp_path / "index") == made


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
def test_copies_that_were_moved_keep_their_ids(tmp_path: Path, recorded: bool):
    """Also in an index of before, which has no digests; another film of the name is another."""
    for name in ("a", "b"):
        (tmp_path / "old" / name).mkdir(parents=True)
        write(tmp_path / "old" / name / "cam.mp4", texture(1, 30))
    write(tmp_path / "old" / "c.mp4", texture(2, 30))
    made, _ = index_features(tmp_path / "old", tmp_path / "index", BLOCKS)
    if not recorded:
        replace(made, digests={}).save()
    (tmp_path / "old").rename(tmp_path / "new")
    write(tmp_path / "new" / "c.mp4", texture(3, 30))
    again, _ = index_features(tmp_path / "new", tmp_path / "index", BLOCKS)
    places = {name: file.relative_to(tmp_path.resolve()) for name, file in again.files.items()}
    before = {name: file.relative_to(tmp_path.resolve()) for name, file in made.files.items()}
    assert places.pop("c") == Path("old/c.mp4")
    assert places.pop("c.mp4") == Path("new/c.mp4")
    assert before.pop("c") == Path("old/c.mp4")
    assert places == {name: "new" / file.relative_to("old") for name, file in before.items()}


def test_another_backbone_or_no_record_is_refused(
    tmp_path: Path, blocks: None, capsys, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "a.mp4", texture(1, 30))
    made, _ = index_features(tmp_path / "a.mp4", tmp_path / "index", BLOCKS)
    assert made.rate_hz == 3.125
    assert IndexedVideos.load(tmp_path / "index") == made
    other = FunctionBackbone(BLOCKS.function, "other", dim=144, size=(48, 64))
    with pytest.raises(SearchIndexError, match="made with blocks, the query with other"):
        index_features(tmp_path / "a.mp4", tmp_path / "index", other)
    assert main(["search", str(tmp_path / "nothing"), str(tmp_path / "a.mp4")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SearchIndexError, match="not from video files"):
        IndexedVideos.load(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    assert main(["search", str(tmp_path / "nothing"), str(tmp_path / "b.mp4")]) == 2
    assert "b.mp4: does not exist" in capsys.readouterr().err
    # By any name.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "index")
    (tmp_path / "index").mkdir()
    monkeypatch.chdir(tmp_path / "index")
    for name in (".", "../index/", "../elsewhere/link"):
        assert IndexedVideos.load(name).features.samefile(made.features)
    # Another model is refused before a film is read.
    build_index(tmp_path / "index", CosineMatcher(), [])
    made.features.unlink()
    assert main(["index", str(tmp_path / "index"), str(tmp_path / "a.mp4")]) == 2
    assert "another model" in capsys.readouterr().err
    assert not made.features.exists()
    IndexedVideos.record_of(tmp_path / "index").write_text("{}")
    with pytest.raises(SearchIndexError, match="damaged"):
        IndexedVideos.load(tmp_path / "index")


def test_an_index_without_a_video_yet_is_filled(tmp_path: Path, blocks: None, capsys):
    (tmp_path / "films").mkdir()
    write(tmp_path / "films" / "a.mp4", texture(1, 30))
    index = tmp_path / "index"
    build_index(index, ContrastMatcher(), [])  # killed before the first shard
    # One file does where a folder is not wanted.
    assert main(["index", str(index), str(tmp_path / "films" / "a.mp4")]) == 0
    assert "1 videos added, 0 there before" in capsys.readouterr().out
