from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from relocal_pyg.data.proposals import ROUNDS, SEEDS, finer_windows
from relocal_pyg.errors import FeatureError, ProposalError, SearchIndexError, UsageError
from relocal_pyg.models import (
    MATR,
    Calibrated,
    ContrastMatcher,
    FrameLevel,
    MultiGraphMatcher,
    MultiGraphRelocalizer,
)
from relocal_pyg.models.base import Ranking
from relocal_pyg.models.examples import Example
from relocal_pyg.models.similarity import inside_and_around, step_similarity
from relocal_pyg.moments import clip_moments, nms
from relocal_pyg.search import SearchIndex, add_videos, build_index
from relocal_pyg.search.index import Hit
from relocal_pyg.search.storage import fingerprint, index_proposals
from relocal_pyg.video.index import find_in_index, find_rows


def videos(count: int, first: int = 0):
    for number in range(first, first + count):
        draw = torch.Generator().manual_seed(number)
        steps = int(torch.randint(12, 40, (1,), generator=draw))
        yield f"v{number}", torch.randn(steps, 8, generator=draw) + 0.3, 0.5


def network(**changes: object) -> MultiGraphRelocalizer:
    torch.manual_seed(3)
    settings = {"hidden_channels": 16, "num_steps": 9, "head_channels": (8, 6), **changes}
    model = MultiGraphRelocalizer(8, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def ours(way: str) -> MultiGraphMatcher:
    torch.manual_seed(3)
    model = MultiGraphMatcher(hidden_channels=8, num_steps=9, head_channels=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    model.set_refinement(way)
    return model.eval()


def matr() -> MATR:
    torch.manual_seed(3)
    return MATR(8, 16, heads=2, feed_forward=8, num_layers=1).eval()


MODELS = {
    "no model": ContrastMatcher,
    "paper": network,
    "masked": lambda: network(mask_padding=True, normalization="mean"),
    "ours": lambda: ours("none"),
    "MATR": matr,
}


def library(count: int) -> torch.Tensor:
    return torch.cat([features for _, features, _ in videos(count)]).mean(dim=0)


def by_hand(model, query, count: int, top_k: int):
    """Rank every video alone, suppress inside it, merge."""
    hits, usual = [], library(count)
    for name, features, seconds in videos(count):
        windows = index_proposals(len(features))
        ranking = model.rank(query, features, windows, background=usual)
        moments = clip_moments(ranking.moments, len(features))
        for i in nms(moments, ranking.scores, 0.5).tolist():
            start, end = (moments[i] * seconds).tolist()
            hits.append((float(ranking.scores[i]), name, start, end))
    return sorted(hits, reverse=True)[:top_k]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_exhaustive_search_is_each_video_ranked_alone(tmp_path, monkeypatch, name):
    monkeypatch.setattr("relocal_pyg.search.storage.SHARD_BYTES", 8_000)
    model, query = MODELS[name](), torch.randn(6, 8)
    assert build_index(tmp_path, model, videos(12), state_dtype=torch.float32) == 12
    opened = SearchIndex(tmp_path, model)
    assert len(opened) == 12
    assert len(opened.shards) > 1
    hits = opened.search(query, 7, first_stage=None)
    wanted = by_hand(model, query, 12, 7)
    assert [hit.video_id for hit in hits] == [row[1] for row in wanted]
    for hit, (score, _, start, end) in zip(hits, wanted, strict=True):
        assert hit.score == pytest.approx(score, abs=1e-5)
        assert (hit.start, hit.end) == pytest.approx((start, end), abs=1e-3)


@pytest.mark.slow
def test_first_stage_of_the_contrast_matcher_loses_nothing(tmp_path):
    model = ContrastMatcher()
    build_index(tmp_path, model, videos(30))
    opened = SearchIndex(tmp_path, model)
    queries = [torch.randn(5, 8) for _ in range(5)]
    assert opened.recall(queries, 5, candidates=80) >= 0.99
    pytest.importorskip("faiss")
    assert opened.recall(queries, 5, first_stage="faiss", candidates=400) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_of_the_videos_that_answer_every_proposal_is_looked_at(tmp_path, name):
    """However few the first stage proposes."""
    model = MODELS[name]()
    build_index(tmp_path, model, videos(9), state_dtype=torch.float32)
    opened = SearchIndex(tmp_path, model)
    for seed in range(4):
        query = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        hit = opened.search(query, 1, candidates=3)[0]
        best = {row[1]: row for row in reversed(by_hand(model, query, 9, 10_000))}
        score, _, start, end = best[hit.video_id]
        assert hit.score == pytest.approx(score, abs=1e-5)
        assert (hit.start, hit.end) == pytest.approx((start, end), abs=1e-3)


@pytest.mark.parametrize("bare", [True, False])
def test_the_first_stage_of_the_contrast_matcher_is_its_score(tmp_path, bare):
    model, query = ContrastMatcher(), torch.randn(6, 8)
    around = None if bare else torch.randn(20, 8)
    build_index(tmp_path, model, videos(9))
    opened = SearchIndex(tmp_path, model)
    (shard,) = opened.shards
    quick = opened.first_stage._scores(shard, query, around)
    for number, (_, features, _) in enumerate(videos(9)):
        rows = np.arange(*shard.first_proposal[number : number + 2])
        windows = shard.take("proposals", rows)
        ranking = model.rank(
            query, features, windows, query_video=around, background=opened.background
        )
        exact = dict(zip(map(tuple, ranking.moments.tolist()), ranking.scores, strict=True))
        for window, score in zip(windows.tolist(), quick[rows], strict=True):
            assert score.item() == pytest.approx(exact[tuple(window)].item(), abs=1e-5)
    torch.testing.assert_close(opened.background, library(9))


@pytest.mark.slow
def test_the_first_stage_follows_what_a_network_likes(tmp_path, monkeypatch):
    """A network whose score is a quadratic of what is inside and around: nothing is lost."""
    model, query = MODELS["ours"](), torch.randn(6, 8)
    build_index(tmp_path, model, videos(30))
    opened = SearchIndex(tmp_path, model)

    def rank_videos(query, references, proposals, *, query_video=None, background=None):
        rankings = []
        for reference, some in zip(references, proposals, strict=True):
            similarity = step_similarity(query, reference, query_video, background=background)
            inside, around = inside_and_around(similarity, some)
            length = (some[:, 1] - some[:, 0]).log()
            score = torch.tanh(around**2 - 0.4 * inside * around + 0.1 * length * inside)
            rankings.append(Ranking.sort(some, score.float(), some))
        return rankings

    monkeypatch.setattr(model, "rank_videos", rank_videos)
    assert opened.recall([query, torch.randn(4, 8)], 10, candidates=60) >= 0.95


def test_a_system_that_makes_its_own_moments_is_searched_too(tmp_path):
    model, query = FrameLevel(), torch.randn(6, 8)
    build_index(tmp_path, model, videos(6))
    hits = SearchIndex(tmp_path, model).search(query, 3, candidates=20)
    wanted = by_hand(model, query, 6, 3)
    assert hits[0].score == pytest.approx(wanted[0][0], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no model", "paper"])
def test_adding_equals_building_at_once(tmp_path, name):
    model, query = MODELS[name](), torch.randn(6, 8)
    build_index(tmp_path / "once", model, videos(9))
    build_index(tmp_path / "added", model, videos(4))
    assert add_videos(tmp_path / "added", model, videos(5, first=4)) == 5
    answers = [SearchIndex(tmp_path / kind, model).search(query) for kind in ("once", "added")]
    for one, two in zip(*answers, strict=True):
        assert (one.video_id, one.start, one.end) == (two.video_id, two.start, two.end)
        assert one.score == pytest.approx(two.score, abs=1e-6)


def test_bfloat16_states_move_scores_little(tmp_path):
    model, query = network(), torch.randn(6, 8)
    build_index(tmp_path, model, videos(6))
    hits = SearchIndex(tmp_path, model).search(query, 3, first_stage=None)
    wanted = by_hand(model, query, 6, 3)
    assert hits[0].score == pytest.approx(wanted[0][0], abs=2e-2)


def test_another_model_is_refused(tmp_path):
    model = network()
    build_index(tmp_path, model, videos(3))
    with pytest.raises(SearchIndexError, match="another model"):
        SearchIndex(tmp_path, ContrastMatcher())
    with torch.no_grad():
        model.network.score_head.mlp[-1].bias.add_(1e-3)
    with pytest.raises(SearchIndexError, match="another model"):
        SearchIndex(tmp_path, model)
    with pytest.raises(SearchIndexError, match="another model"):
        add_videos(tmp_path, model, videos(1, first=5))
    assert fingerprint(ContrastMatcher()) != fingerprint(ContrastMatcher(contrast=1.0))


@pytest.mark.parametrize("name", ["features.npy", "states.npy", "shard.json"])
def test_a_flipped_bit_is_found(tmp_path, name):
    build_index(tmp_path, network(), videos(3))
    file = tmp_path / "shard-00000" / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)
    with pytest.raises(SearchIndexError, match=name):
        SearchIndex(tmp_path, network())


def test_bad_input_is_named(tmp_path):
    model = ContrastMatcher()
    with pytest.raises(SearchIndexError, match="no index here"):
        SearchIndex(tmp_path, model)
    build_index(tmp_path, model, videos(2))
    with pytest.raises(UsageError, match="holds an index"):
        build_index(tmp_path, model, videos(1))
    with pytest.raises(UsageError, match="v1: is in the index already"):
        add_videos(tmp_path, model, videos(1, first=1))
    with pytest.raises(UsageError):
        add_videos(tmp_path, model, [("../x", np.ones((4, 8)), 1.0)])
    with pytest.raises(FeatureError, match="channels"):
        add_videos(tmp_path, model, [("w", np.ones((4, 5)), 1.0)])
    for name, seconds in ((7, 1.0), (b"w", 1.0), ("w", "1"), ("w", None), ("w", 0), ("w", True)):
        with pytest.raises(UsageError, match="is no text|seconds per step of w is"):
            add_videos(tmp_path, model, [(name, np.ones((4, 8)), seconds)])
    with pytest.raises(FeatureError, match="channels"):
        SearchIndex(tmp_path, model).search(np.ones((3, 5)))
    with pytest.raises(FeatureError, match="query_video has 5 channels"):
        SearchIndex(tmp_path, model).search(np.ones((3, 8)), query_video=np.ones((9, 5)))
    sound = json.loads((tmp_path / "index.json").read_text())
    for change, reason in (
        ({"format": 99}, "newer"),
        ({"format": 1}, "older"),
        ({"format": "x"}, "is not a search index"),
        ({"channels": 9}, "damaged"),
        ({"sha256": None}, "damaged"),
    ):
        (tmp_path / "index.json").write_text(json.dumps({**sound, **change}))
        with pytest.raises(SearchIndexError, match=reason):
            SearchIndex(tmp_path, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no model", "paper"])
def test_an_index_can_be_searched_while_videos_are_added(tmp_path, monkeypatch, name):
    """Every reader sees whole shards: those that were there when it opened, then and later."""
    monkeypatch.setattr("relocal_pyg.search.storage.SHARD_BYTES", 3_000)
    model, query = MODELS[name](), torch.randn(6, 8)
    folder, readers = tmp_path / "index", []
    build_index(folder, model, videos(3), state_dtype=torch.float32)

    def arriving():
        for video in videos(9, first=3):
            readers.append(SearchIndex(folder, model))
            yield video

    add_videos(folder, model, arriving())
    readers.append(SearchIndex(folder, model))
    sizes = [len(reader) for reader in readers]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    assert (sizes[0], sizes[-1]) == (3, 12)
    for reader in readers:
        assert [i for shard in reader.shards for i in shard.ids] == [
            name for name, *_ in videos(len(reader))
        ]
        hits = reader.search(query, 5, first_stage=None)
        wanted = by_hand(model, query, len(reader), 5)
        assert [hit.video_id for hit in hits] == [row[1] for row in wanted]
        assert [hit.score for hit in hits] == pytest.approx([row[0] for row in wanted], abs=1e-5)


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (UsageError, {"state_dtype": torch.float64}),
        (UsageError, {"videos": [("a", np.ones((9, 8)), 1e9)]}),
        (ProposalError, {"proposals": lambda steps: [[steps, steps + 4]]}),
    ],
)
def test_what_could_not_be_opened_is_not_written(tmp_path, error, change):
    model, place = ContrastMatcher(), tmp_path / "index"
    with pytest.raises(error):
        build_index(place, model, **{"videos": videos(2), **change})
    if place.exists():
        assert len(SearchIndex(place, model)) == 0


@pytest.mark.slow
def test_arguments_that_mean_nothing_are_refused(tmp_path):
    build_index(tmp_path, ContrastMatcher(), videos(4))
    index = SearchIndex(tmp_path, Calibrated(ContrastMatcher()))
    query = next(videos(1))[1][3:9].numpy()
    for wrong in ({"first_stage": "none"}, {"nms_threshold": float("nan")}, {"nms_threshold": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            index.search(query, **wrong)
    for span in ((500, 600), (4, 2), (-1, 3)):
        with pytest.raises(UsageError, match="v0: the stretch"):
            index.example("v0", *span, True)
    with pytest.raises(SearchIndexError, match="elsewhere: is not in the index"):
        index.with_probabilities([Hit("elsewhere", 0, 1, 0.5)], torch.from_numpy(query))
    with pytest.raises(UsageError, match="least is 50"):
        index.occurrences(query, least=50)
    hits, count = index.occurrences(query)
    assert (hits, count) == index.occurrences(torch.from_numpy(query))
    # Both sides with the same options: with no cut of candidates nothing is lost.
    assert index.recall([query], 50, nms_threshold=0.9, candidates=10**6) == 1


@pytest.mark.parametrize("lengths", [(20, 5), (float("nan"), 5), (-1, 5), "ab", 3, (1, 2, 3)])
def test_lengths_that_make_no_sense_are_refused(tmp_path, lengths):
    build_index(tmp_path, ContrastMatcher(), videos(2))
    with pytest.raises(UsageError, match="lengths are"):
        SearchIndex(tmp_path, ContrastMatcher()).search(torch.randn(4, 8), lengths=lengths)


@pytest.mark.slow
def test_examples_and_queries_may_be_any_arrays(tmp_path):
    """As of a model by itself; another width and rows that are none are refused in one line."""
    build_index(tmp_path, ContrastMatcher(), videos(4))
    index = SearchIndex(tmp_path, Calibrated(ContrastMatcher()))
    (_, query, _), (_, other, _) = videos(2)
    wanted = index.search(query[3:9], 3, examples=[Example(other[4:9], other)])
    told = index.with_probabilities(wanted, query[3:9])
    for name in ("start", "end", "score", "probability", "presence"):
        assert getattr(told[0].moment, name) == getattr(told[0], name) is not None
    count = index.occurrences(query[3:9], examples=[Example(other[4:9], other)])[1]
    for kind in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.double):
        examples = [Example(kind(other[4:9]), kind(other))]
        assert index.search(kind(query[3:9]), 3, examples=examples) == wanted
        assert index.with_probabilities(wanted, kind(query[3:9])) == told
        assert index.occurrences(kind(query[3:9]), examples=examples)[1] == count
    for rows, video in ((other[4], None), (other[4:9, :3], None), (other[4:9], other[:, :3])):
        with pytest.raises(FeatureError, match="example 1"):
            index.search(query[3:9], examples=[Example(rows, video)])


@pytest.mark.parametrize("first_stage", ["scan", None])
def test_as_many_places_are_found_as_are_asked_for(tmp_path, first_stage):
    """However many windows of one place are better than the next place."""
    draw = torch.Generator().manual_seed(0)
    video, action = torch.randn(400, 8, generator=draw), 3 * torch.randn(8, generator=draw)
    for start, share in ((60, 1), (200, 0.3), (320, 0.3)):
        video[start : start + 30] += share * action
    build_index(tmp_path, ContrastMatcher(), [("a", video, 1.0)])
    index = SearchIndex(tmp_path, ContrastMatcher())
    options = {"top_k": 3, "candidates": 3, "every": False, "least": 0.0}
    hits, _ = find_rows(video[60:90], index, video, [], [], first_stage=first_stage, **options)
    assert sorted(hit.start for hit in hits) == pytest.approx([60, 200, 320], abs=10)


@pytest.mark.slow
def test_a_network_looks_closer_at_a_few_places_only(tmp_path, monkeypatch):
    """Not at every candidate of the first stage."""
    model = ours("windows")
    build_index(tmp_path, model, videos(12))
    index, (_, query, _) = SearchIndex(tmp_path, model), next(videos(1))
    seeds: list[int] = []

    def counting(moments, *others):
        seeds.append(len(moments))
        return finer_windows(moments, *others)

    monkeypatch.setattr("relocal_pyg.search.index.finer_windows", counting)
    options = {"first_stage": "scan", "candidates": 1000, "every": False, "least": 0.0}
    hits, _ = find_rows(query[3:9], index, query, [], [], top_k=2, **options)
    assert len(hits) == 2
    assert 0 < sum(seeds) <= len(ROUNDS) * SEEDS * 2


def test_times_are_those_of_steps_to_the_microsecond(tmp_path):
    """Also where a number of 32 bits does not hold them."""
    lasts, steps = 0.32, 123456.789
    rows = {name: features for name, features, _ in videos(2)}
    build_index(tmp_path, ContrastMatcher(), zip(rows, rows.values(), (lasts, steps), strict=True))
    index = SearchIndex(tmp_path, ContrastMatcher())
    hits = index.search(rows["v0"][3:8], 50) + index.occurrences(rows["v0"][3:8], least=0)[0]
    assert {hit.video_id for hit in hits} == {"v0", "v1"}
    for hit in hits:
        step = lasts if hit.video_id == "v0" else steps
        for time in (hit.start, hit.end):
            assert time == round(round(time / step) * step, 6)


@pytest.mark.slow
def test_probabilities_of_one_query_are_none_of_several_examples(tmp_path, constant):
    """Labels taught scores of one query: with examples chance judges, as where there are none."""
    build_index(tmp_path, ContrastMatcher(), videos(6))
    query, example = next(videos(1))[1], next(videos(1, 1))[1]
    taught, bare = (
        SearchIndex(tmp_path, Calibrated(ContrastMatcher(), confidence))
        for confidence in (constant(0.9, 0.9), None)
    )
    options = {"top_k": 3, "first_stage": None, "candidates": 99, "least": 0.0}
    for every in (False, True):
        for examples in ([], [Example(example[4:9], example)]):
            hits = [
                find_rows(query[3:8], index, query, examples, [], every=every, **options)[0]
                for index in (taught, bare)
            ]
            assert (hits[0] == hits[1]) == bool(examples)


def test_what_stands_still_is_found_without_probabilities(tmp_path):
    """Words or a picture, also where all moments are wanted and some were said yes to."""
    build_index(tmp_path, ContrastMatcher(), videos(4))
    index, query = SearchIndex(tmp_path, Calibrated(ContrastMatcher())), next(videos(1))[1][3:8]
    options = {"top_k": 3, "first_stage": None, "candidates": 99, "least": 0.0, "sure": False}
    for every in (False, True):
        judged = [("v1", (1.0, 3.0, True))]
        hits, _ = find_rows(query, index, None, [], judged, every=every, **options)
        assert (hits[0].video_id, hits[0].start, hits[0].end) == ("v1", 1.0, 3.0)
        assert {(hit.probability, hit.presence) for hit in hits} == {(None, None)}


@pytest.mark.parametrize(
    "wrong", [{"top_k": -1}, {"top_k": 2.5}, {"nms_threshold": float("nan")}, {"least": 1.5}]
)
def test_numbers_that_mean_nothing_are_refused_before_a_film_is_read(tmp_path, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        find_in_index(tmp_path / "clip.mp4", None, None, None, **wrong)


def test_an_empty_index_answers_nothing(tmp_path):
    build_index(tmp_path, ContrastMatcher(), [])
    index = SearchIndex(tmp_path, ContrastMatcher())
    assert index.search(np.ones((3, 5))) == []
    hits, count = index.occurrences(np.ones((3, 5)))
    assert (hits, count.number) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("first_stage", ["scan", None])
def test_finer_windows_around_the_best_moments_of_all_videos(tmp_path, monkeypatch, first_stage):
    monkeypatch.setattr("relocal_pyg.search.storage.SHARD_BYTES", 8_000)
    model = ours("none")
    query = torch.randn(6, 8)
    model.set_refinement("none")
    build_index(tmp_path / "coarse", model, videos(12))
    coarse = SearchIndex(tmp_path / "coarse", model).search(query, 5, first_stage=first_stage)
    model.set_refinement("windows")
    build_index(tmp_path / "fine", model, videos(12))
    fine = SearchIndex(tmp_path / "fine", model).search(query, 5, first_stage=first_stage)
    known = {name: (features, seconds) for name, features, seconds in videos(12)}
    new = 0
    for hit in fine:
        features, seconds = known[hit.video_id]
        place = torch.tensor([[hit.start, hit.end]]) / seconds
        score = model.scorer(query, features, None, library(12))(place).tanh()
        assert hit.score == pytest.approx(score.item(), abs=1e-5)
        windows = index_proposals(len(features))
        new += not (windows - place).abs().sum(dim=1).lt(1e-3).any()
    assert new
    assert sum(hit.score for hit in fine) > sum(hit.score for hit in coarse)
    assert [hit.score for hit in fine] == sorted((hit.score for hit in fine), reverse=True)
