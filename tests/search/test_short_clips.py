"""Libraries of clips that are nothing but the action."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from relocal_pyg.models import ContrastMatcher, MultiGraphMatcher
from relocal_pyg.models.examples import Example
from relocal_pyg.models.similarity import alike_as_wholes
from relocal_pyg.search import SearchIndex, build_index


def clips(seed: int, count: int = 24, classes: int = 6, width: int = 64) -> list[Tensor]:
    """Clip ``i`` shows action ``i % classes`` from its first step to its last, in its own style."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    common, actions, made = normal(width), normal(classes, width), []
    for number in range(count):
        steps = int(torch.randint(20, 60, (1,), generator=draw))
        drift = 0.15 * normal(steps, width).cumsum(dim=0)
        strength = 1 + 0.3 * torch.sin(0.7 * torch.arange(steps))[:, None]
        style = common + 0.7 * normal(width)
        made.append(
            style + drift + 0.8 * normal(steps, width) + strength * actions[number % classes]
        )
    return made


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.7, 0.4])
@pytest.mark.parametrize("first_stage", ["scan", None])
def test_a_clip_finds_itself_first_and_its_own_class_next(
    tmp_path: Path, share: float, first_stage: str | None
):
    library, model = clips(0), ContrastMatcher()
    build_index(tmp_path, model, ((str(n), rows, 0.2) for n, rows in enumerate(library)))
    opened = SearchIndex(tmp_path, model)
    same_class = 0
    for number, rows in enumerate(library[:11]):
        kept = max(3, round(share * len(rows)))
        start = (len(rows) - kept) // 2
        hits = opened.search(rows[start : start + kept], 100, first_stage=first_stage)
        order = list(dict.fromkeys(int(hit.video_id) for hit in hits))
        assert order[0] == number
        same_class += order[1] % 6 == number % 6
    assert same_class >= 10


def test_likeness_of_wholes_is_three_cosines():
    draw = torch.Generator().manual_seed(0)
    query, video = (torch.randn(steps, 5, generator=draw) for steps in (7, 600))
    background = torch.randn(5, generator=draw)

    def cosine(one: Tensor, other: Tensor) -> float:
        return float(one @ other / (one.norm() * other.norm()))

    looks = cosine(query.mean(0) - background, video.mean(0) - background)
    own, their = query - query.mean(0), video - video.mean(0)
    pairs = [[cosine(step, other) for other in their] for step in own]
    nearest = [sum(map(max, rows)) / len(rows) for rows in (pairs, list(zip(*pairs, strict=True)))]
    found = alike_as_wholes(query, video, background)
    assert found == pytest.approx(looks + sum(nearest), abs=1e-4)
    assert alike_as_wholes(query, query, background) == pytest.approx(3)
    assert found < 3


def test_clips_that_move_alike_are_alike_whatever_they_look_like(tmp_path: Path):
    """Two movements, three looks: means tell the looks apart alone, and are as alike in pairs."""
    draw = torch.Generator().manual_seed(0)
    looks = [3 * torch.randn(32, generator=draw) for _ in range(3)]
    moves = [torch.randn(32, generator=draw) for _ in range(2)]
    library = {}
    for look, place in enumerate(looks):
        for move, direction in enumerate(moves):
            swing = torch.sin(torch.arange(24 + 3 * look) * 0.8)[:, None] * direction
            noise = 0.3 * torch.randn(len(swing), 32, generator=draw)
            library[f"{move} {look}"] = place + swing + noise
    model = ContrastMatcher()
    build_index(tmp_path, model, ((name, rows, 1.0) for name, rows in library.items()))
    opened = SearchIndex(tmp_path, model)
    for name, rows in library.items():
        hits = opened.search(rows, 500)
        order = list(dict.fromkeys(hit.video_id for hit in hits))
        assert order[0] == name
        mean = {other: rows.mean(0) - each.mean(0) for other, each in library.items()}
        nearest = sorted(library, key=lambda other: float(mean[other].norm()))[1]
        assert nearest[0] != name[0]  # by the look alone it would be the other movement
        # The same look comes first or the same movement, but never what shares neither.
        assert {each[0] == name[0] or each[2] == name[2] for each in order[:2]} == {True}
        assert sum(each[0] == name[0] for each in order[:4]) == 3
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        # A yes to one that moves alike, a no to one that looks alike.
        wrong = f"{1 - int(name[0])} {name[2]}"
        yes, no = library[f"{name[0]} {(int(name[2]) + 1) % 3}"], library[wrong]
        told = [Example(yes, yes, alone=False), Example(no, no, good=False, alone=False)]
        order = list(dict.fromkeys(h.video_id for h in opened.search(rows, 500, examples=told)))
        assert [each[0] for each in order[:2]] == [name[0]] * 2
        assert sum(each[0] == name[0] for each in order[:4]) == 3
        assert order[-1] == wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shorter", "much longer", "mixed"])
def test_the_file_itself_is_first_whatever_else_is_in_the_folder(tmp_path: Path, kind: str):
    """Longer videos are compared by their windows, and one of them may look better than a copy."""
    library = dict(enumerate(clips(4, count=18)))
    if kind != "shorter":
        for number in (0, 1, 2, 3, 4, 5) if kind == "mixed" else range(6, 18):
            library[number] = torch.cat([library[number], *clips(number, count=5)])
    model = ContrastMatcher()
    build_index(tmp_path, model, ((str(n), rows, 1.0) for n, rows in library.items()))
    opened = SearchIndex(tmp_path, model)
    for number, rows in library.items():
        if len(rows) < 100:
            assert opened.search(rows, 1)[0].video_id == str(number)


@pytest.mark.slow
def test_the_best_window_of_a_clip_that_is_all_action_is_the_clip(tmp_path: Path):
    library, model = clips(1), ContrastMatcher()
    build_index(tmp_path, model, ((str(n), rows, 1.0) for n, rows in enumerate(library)))
    opened = SearchIndex(tmp_path, model)
    for number, rows in enumerate(library[:6]):
        best = opened.search(rows, 1)[0]
        assert (best.video_id, best.start, best.end) == (str(number), 0.0, float(len(rows)))


@pytest.mark.parametrize("other", [False, True])
def test_a_query_that_covers_its_whole_reference_is_answered_by_all_of_it(other: bool):
    """The file itself, or another clip of the same action, with nothing else to compare with."""
    library = clips(2)
    for number in range(6):
        query, reference = library[number + 6 * other], library[number]
        best = ContrastMatcher().localize(query, reference, top_k=1)[0]
        if not other or len(query) >= len(reference):
            assert (best.start, best.end) == (0.0, float(len(reference)))


@pytest.mark.slow
def test_the_pretrained_matcher_finds_the_clip_itself(tmp_path: Path):
    library, model = clips(3, count=12), MultiGraphMatcher.pretrained()
    build_index(tmp_path, model, ((str(n), rows, 0.2) for n, rows in enumerate(library)))
    opened = SearchIndex(tmp_path, model)
    first = [opened.search(rows, 1)[0].video_id for rows in library[:4]]
    assert first == [str(number) for number in range(4)]


@pytest.mark.slow
def test_clips_of_real_people_find_themselves(
    shared_data: Path, weizmann_features: Path, tmp_path: Path, figure, count
):
    """Weizmann: the clip itself first, and clips of its class more often than by chance."""
    pytest.importorskip("av")
    from relocal_pyg.video.backbones import EfficientNetLite0
    from relocal_pyg.video.extract import extract_video
    from relocal_pyg.video.rows import FeatureCache

    performers = [f"p{number}" for number in range(count(5, 9))]
    files = sorted((shared_data / "weizmann" / "clips").rglob("*.*"))
    files = [file for file in files if file.stem in performers]
    if len(files) < 12:
        pytest.skip("no clips of Weizmann")
    backbone, cache = EfficientNetLite0(), FeatureCache(weizmann_features)
    rows = {
        f"{file.parent.name} {file.stem}": extract_video(file, backbone, 6.25, cache=cache).features
        for file in files
    }
    model = ContrastMatcher()
    build_index(tmp_path / "index", model, ((name, r, 0.16) for name, r in rows.items()))
    opened = SearchIndex(tmp_path / "index", model)
    first = same = 0
    for name, clip in rows.items():
        hits = opened.search(clip, 200)
        order = list(dict.fromkeys(hit.video_id for hit in hits))
        first += order[0] == name
        others = [other for other in order if other != name]
        same += others[0].split()[0] == name.split()[0]
    figure("short clips", f"{first} of {len(rows)} find themselves, {same} their class next")
    assert first == len(rows)
    # By the cosine of means less the library's 5 in 6 of all 36 clips have their class next.
    assert same > 0.8 * len(rows)
