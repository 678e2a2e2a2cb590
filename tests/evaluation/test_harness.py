from __future__ import annotations

import csv
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.pairs import PairList, make_pairs
from relocal_pyg.errors import OutputError, RelocalError, UsageError
from relocal_pyg.evaluation import Evaluation, answer_pairs, best_tiou, environment, evaluate
from relocal_pyg.evaluation.metrics import above
from relocal_pyg.evaluation.run import overlaps_by_way
from relocal_pyg.models.base import Ranking, Relocalizer, TrainableRelocalizer
from relocal_pyg.models.matchers import CentreHalf, WholeReference
from relocal_pyg.moments import tiou


class Noisy(TrainableRelocalizer):
    """A module whose answer depends on whether dropout is on."""

    title = "Noisy"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[bool, bool]] = []

    def config(self) -> dict[str, Any]:
        return {}

    def training_set(self, protocol: Protocol, *, num_samples: int, seed: int) -> Any:
        raise NotImplementedError

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
        seconds_per_step: float | None = None,
    ) -> Ranking:
        scores = proposals[:, 0] * self.weight
        self.seen.append((self.training, scores.requires_grad))
        return Ranking.sort(proposals, scores)


def rank_of(moments: list[list[float]], scores: list[float], before: Any = None) -> Ranking:
    return Ranking(
        torch.tensor(moments),
        torch.tensor(scores),
        None if before is None else torch.tensor(before),
    )


def test_records_hold_what_was_answered(
    small_protocol: Protocol, small_pairs: PairList, scripted: Any
) -> None:
    # The first pair looks for v0 in v1, whose truths are steps 10-20 and 30-34 of its reference.
    model = scripted(
        [
            rank_of(
                [[11.0, 19.0], [12.0, 19.0], [28.0, 36.0], [-5.0, 4.0]],
                [0.4, 0.9, 0.3, 0.1],
                [[10.0, 20.0], [10.0, 25.0], [28.0, 38.0], [0.0, 4.0]],
            )
        ]
    )
    evaluation = evaluate(model, small_protocol, small_pairs, progress=False)
    record = evaluation.records[0]
    assert (record.query_id, record.reference_id, record.label) == ("v0#0", "v1#0", "run")
    assert record.truths == ((10, 20), (30, 34))
    # 12-19 is the best; 11-19 overlaps it by 7/8 and is suppressed; -5 is cut to 0.
    assert record.moments == ((12, 19), (28, 36), (0, 4))
    assert record.scores == pytest.approx((0.9, 0.3, 0.1))
    assert record.tious == pytest.approx((7 / 10, 4 / 8, 0))
    assert record.tiou == record.tious[0]
    assert record.before == (10, 25)
    assert record.tiou_before == pytest.approx(10 / 15)
    assert record.moments_seconds == [(6, 9.5), (14, 18), (0, 2)]
    assert record.truths_seconds == [(5, 10), (15, 17)]
    assert record.before_seconds == (5, 12.5)
    assert record.truth_seconds == 5
    assert (record.oracle, record.num_proposals) == (1, 7)
    # Truth 10-20 is the third window; 30-34 fits the windows 25-35 and 30-40 by 4/10.
    assert record.recall == ((0, 0), (1, 0), (1, 0.4), (1, 0.4), (1, 0.4))
    assert record.seconds > 0
    assert evaluation.best_of_5[0].item() == pytest.approx(0.7)


def test_models_see_what_the_protocol_gives(
    small_protocol: Protocol, small_pairs: PairList, scripted: Any
) -> None:
    model = scripted([rank_of([[0.0, 5.0]], [1.0])])
    evaluate(model, small_protocol, small_pairs, progress=False)
    call = model.calls[0]
    assert call["query"][:, 0].tolist() == list(range(10, 20))
    assert call["reference"][:, 0].tolist() == list(range(10, 50))
    assert call["around"][:, 0].tolist() == list(range(10, 50))
    assert call["proposals"].dtype == torch.float32
    assert call["proposals"].shape == (7, 2)
    hidden = scripted([rank_of([[0.0, 5.0]], [1.0])])
    evaluation = evaluate(
        hidden, small_protocol, small_pairs, surroundings=False, top_k=1, progress=False
    )
    assert all(call["around"] is None for call in hidden.calls)
    assert evaluation.settings["surroundings"] is False
    assert evaluation.best_of_5 is None
    assert evaluation.tious_before is None


def test_a_module_answers_without_gradients_or_dropout_and_is_put_back(
    small_protocol: Protocol, small_pairs: PairList
) -> None:
    model = Noisy()
    evaluate(model, small_protocol, small_pairs, progress=False)
    assert model.training
    assert set(model.seen) == {(False, False)}


def test_macro_map_equals_a_group_by(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    first = evaluate(longest, small_protocol, small_pairs, progress=False)
    generator = torch.Generator().manual_seed(5)
    tious = torch.rand(90, generator=generator, dtype=torch.float64).tolist()
    labels = [f"class {i * i % 7}" for i in range(90)]
    record = first.records[0]
    rows = [
        replace(record, label=label, tious=(tiou,))
        for label, tiou in zip(labels, tious, strict=True)
    ]
    found = replace(first, records=tuple(rows)).summary(samples=2)["macro_mAP@1"]
    frame = pd.DataFrame({"label": labels, "tiou": tious})
    for threshold, value in found.items():
        wanted = (frame.tiou > float(threshold)).groupby(frame.label).mean().mean()
        assert value == pytest.approx(wanted, abs=1e-12)


def test_the_loop_gives_what_was_asked_and_by_every_way(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    answers = list(answer_pairs(longest, small_protocol, small_pairs.pairs, every_way=True))
    overlaps = overlaps_by_way(longest, small_protocol, small_pairs.pairs)
    assert list(overlaps) == ["none", "refined"]
    evaluation = evaluate(longest, small_protocol, small_pairs, progress=False)
    assert torch.equal(overlaps["refined"], evaluation.tious)
    assert torch.equal(overlaps["none"], evaluation.tious_before)
    for answer, pair in zip(answers, small_pairs.pairs, strict=True):
        assert answer.pair == pair
        assert torch.equal(answer.query, small_protocol.query(pair.query))
        assert torch.equal(answer.reference, small_protocol.reference(pair.reference))
        assert torch.equal(answer.query_video, small_protocol.reference(pair.query))
        assert list(answer.rankings) == ["none", "refined"]


def test_a_loop_left_half_way_puts_the_model_back(
    small_protocol: Protocol, small_pairs: PairList
) -> None:
    model = Noisy()
    answers = answer_pairs(model, small_protocol, small_pairs.pairs)
    next(answers)
    assert torch.is_grad_enabled()
    answers.close()
    assert model.training


def test_a_pair_without_proposals_is_a_miss(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    def some(reference: Item, query_steps: int) -> Tensor:
        rows = [] if reference.video_id == "v1" else [[0.0, 20.0]]
        return torch.tensor(rows).reshape(-1, 2)

    protocol = replace(small_protocol, propose=some)
    with pytest.warns(UserWarning, match="1 of 4 pairs have no proposals"):
        evaluation = evaluate(longest, protocol, small_pairs, progress=False)
    missed = evaluation.records[0]
    assert (missed.moments, missed.tiou, missed.oracle, missed.before) == ((), 0, 0, None)
    assert evaluation.summary()["pairs_without_proposals"] == 1
    assert len(evaluation.tious_before) == 4


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (rank_of([[0.0, 1.0]], [1.0, 2.0]), "wanted"),
        (Ranking(torch.zeros(0, 2), torch.zeros(0)), "wanted"),
        (rank_of([[0.0, torch.nan]], [1.0]), "not finite"),
        (rank_of([[0.0, 1.0]], [torch.inf]), "not finite"),
        (rank_of([[0.0, 1.0]], [1.0], [[0.0, 1.0], [1.0, 2.0]]), "one a moment"),
    ],
)
def test_an_answer_that_is_no_ranking_names_the_pair(
    small_protocol: Protocol, small_pairs: PairList, scripted: Any, ranking: Ranking, message: str
) -> None:
    with pytest.raises(RelocalError, match=message) as caught:
        evaluate(scripted([ranking]), small_protocol, small_pairs, progress=False)
    assert "query v0#0, reference v1#0" in str(caught.value)


def test_answers_past_an_end_are_none_here_as_they_are_none_to_users(
    small_protocol: Protocol, small_pairs: PairList, scripted: Any
) -> None:
    """An empty moment stood first where users were given the next; with nothing else it raised."""
    past = [[44.0, 60.0], [10.0, 20.0], [-9.0, -1.0]]
    model = scripted([rank_of(past, [0.9, 0.5, 0.4], past), rank_of(past[:1], [0.9], past[:1])])
    evaluation = evaluate(model, small_protocol, small_pairs, progress=False)
    first, second, *_ = evaluation.records
    assert (first.moments, first.scores, first.tious) == (((10, 20),), (0.5,), (1,))
    assert (first.before, first.tiou_before) == ((10, 20), 1)
    assert (second.moments, second.tiou, second.before) == ((), 0, None)

    class Past(Relocalizer):
        title = "Past"

        def rank(self, *arguments: Any, **options: Any) -> Ranking:
            return rank_of(past, [0.9, 0.5, 0.4], past)

    wanted = evaluate(Past(), small_protocol, small_pairs, progress=False).tious
    assert torch.equal(overlaps_by_way(Past(), small_protocol, small_pairs.pairs)["none"], wanted)


def test_an_answer_that_was_not_refined_counts_as_it_is_before_refinement(
    small_protocol: Protocol, small_pairs: PairList, scripted: Any
) -> None:
    model = scripted(
        [
            rank_of([[10.0, 20.0]], [1.0]),
            rank_of([[0.0, 10.0]], [1.0], [[0.0, 20.0]]),
            rank_of([[0.0, 20.0]], [1.0]),
        ]
    )
    evaluation = evaluate(model, small_protocol, small_pairs, progress=False)
    assert evaluation.tious.tolist() == [1, 1, 0.5, 1 / 3]
    assert evaluation.tious_before.tolist() == [1, 0.5, 0.5, 1 / 3]


def test_an_empty_list_is_refused(small_protocol: Protocol, longest: Any) -> None:
    with pytest.raises(RelocalError, match="there is no pair"):
        evaluate(longest, small_protocol, PairList((), "small", "test", 6, "video"))


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"top_k": -1}, {"top_k": 1.5}, {"nms_threshold": float("nan")}]
)
def test_numbers_that_mean_nothing_are_refused(
    small_protocol: Protocol, longest: Any, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        evaluate(longest, small_protocol, PairList((), "small", "test", 6, "video"), **wrong)


def test_summary_follows_from_the_records(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    evaluation = evaluate(longest, small_protocol, small_pairs, seed=3, progress=False)
    summary = evaluation.summary(samples=50)
    tious = [record.tiou for record in evaluation.records]
    # Longest cuts the first window 0-10 to 2.5-7.5; truths are 10-20/30-34, 0-10, 0-40, 5-35.
    assert tious == pytest.approx([0, 5 / 10, 5 / 40, 2.5 / 32.5])
    assert summary["scores"]["mIoU"]["value"] == pytest.approx(sum(tious) / 4)
    assert summary["scores"]["mAP@1@0.5"]["value"] == 0
    assert summary["scores"]["before/mAP@1@0.5"]["value"] == 0.25
    assert summary["macro_mAP@1"]["0.5"] == 0
    assert summary["oracle"]["mAP@1@0.9"]["value"] == 0.5
    assert (summary["pairs"], summary["source_videos"], summary["seed"]) == (4, 4, 3)
    assert summary["proposals_per_reference"] == 7
    assert summary["pairs_sha256"] == small_pairs.sha256
    windows = torch.stack([torch.arange(0, 31, 5), torch.arange(10, 41, 5)], dim=1)
    truths = [torch.tensor(record.truths) for record in evaluation.records]
    thresholds = [0.5 + 0.05 * i for i in range(10)]
    for budget in (1, 5, 10, 50, 100):
        best = [max(tiou(w, t).item() for w in windows[:budget]) for ts in truths for t in ts]
        hits = [value >= threshold - 1e-7 for value in best for threshold in thresholds]
        assert summary["AR@AN"][str(budget)] == pytest.approx(sum(hits) / len(hits))
    assert summary["AR@AN"]["100"] == pytest.approx(2 / 5)
    # In ActivityNet's task an overlap of .5 is met by the first of its ten thresholds.
    half = tuple(replace(each, recall=((0.5,),) * 5) for each in evaluation.records)
    assert replace(evaluation, records=half).average_recall[5] == pytest.approx(1 / 10)
    assert summary["by_label"]["run"]["mIoU"] == pytest.approx(0.25)
    assert {name: part["pairs"] for name, part in summary["by_length"].items()} == {
        "< 10 s": 2,
        "10-30 s": 2,
        ">= 30 s": 0,
    }
    assert summary["by_length"][">= 30 s"]["mIoU"] is None
    json.dumps(summary, allow_nan=False)


def test_save_and_load(
    small_protocol: Protocol, small_pairs: PairList, longest: Any, tmp_path: Path
) -> None:
    evaluation = evaluate(longest, small_protocol, small_pairs, progress=False)
    evaluation.save(tmp_path / "run")
    assert Evaluation.load(tmp_path / "run") == evaluation
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(evaluation.summary()))
    with (tmp_path / "run" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["tiou"]) for row in rows] == [record.tiou for record in evaluation.records]
    assert rows[0]["truths_seconds"] == "5-10 15-17"
    assert (rows[0]["start_seconds"], rows[0]["end_seconds"]) == ("1.25", "3.75")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1}', '{"format": 2, "records": [{}]}', '{"format": 2}', "NaN"],
)
def test_a_damaged_evaluation_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RelocalError, match="evaluation.json"):
        Evaluation.load(tmp_path)
    with pytest.raises(RelocalError, match="does not exist"):
        Evaluation.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"title": 3}, "title"),
        ({"settings": []}, "settings"),
        ({"seed": True}, "seed"),
        ({"records": []}, "no pair"),
        ({"truths": [["a", "b"]]}, "evaluation.json"),
        ({"truths": []}, "rows of 0 numbers"),
        ({"moments": [[1, 2, 3]]}, "rows of 2 numbers"),
        ({"moments": []}, "rows of 0 numbers"),
        ({"tious": [3.0, 0, 0]}, "tIoU"),
        ({"scores": []}, "lists differ"),
        ({"recall": [[0.5, 0.5]]}, "lists differ"),
        ({"video_id": None}, "video_id"),
        ({"seconds_per_step": "1"}, "seconds_per_step"),
        ({"oracle": -1}, "tIoU"),
        ({"presence": [0.5]}, "presence"),
    ],
)
def test_an_evaluation_of_another_shape_is_one_line(
    small_protocol: Protocol,
    small_pairs: PairList,
    longest: Any,
    tmp_path: Path,
    wrong: dict[str, Any],
    told: str,
) -> None:
    """A record that fits no pair gave a traceback, or wrong figures, wherever it was used first."""
    evaluate(longest, small_protocol, small_pairs, top_k=3, progress=False).save(tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    place = content if set(wrong) <= set(content) else content["records"][0]
    place.update(wrong)
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(RelocalError, match=told) as caught:
        Evaluation.load(tmp_path)
    assert "evaluation.json" in str(caught.value)


def test_lists_that_do_not_belong_are_refused(
    small_protocol: Protocol, small_pairs: PairList, longest: Any
) -> None:
    """The figures were kept as those of the protocol at hand."""
    other = replace(small_pairs, protocol="other")
    for lists in ((other, None), (small_pairs, other)):
        with pytest.raises(UsageError, match="of protocol other, not of small"):
            evaluate(longest, small_protocol, lists[0], nulls=lists[1], progress=False)
    empty = tuple(replace(p, reference=replace(p.reference, moments=())) for p in small_pairs.pairs)
    nulls = replace(small_pairs, pairs=empty)
    with pytest.raises(UsageError, match="give them as nulls"):
        evaluate(longest, small_protocol, nulls, progress=False)
    found = evaluate(longest, small_protocol, small_pairs, nulls=nulls, progress=False)
    assert found.nulls[0].instances_met == 0


def test_what_cannot_be_written_is_an_output_error(
    small_protocol: Protocol, small_pairs: PairList, longest: Any, tmp_path: Path
) -> None:
    evaluation = evaluate(longest, small_protocol, small_pairs, progress=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        evaluation.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_environment_names_versions_and_nobody() -> None:
    facts = environment()
    # A wheel of PyPI leaves the build, such as +cu130, out of its name.
    assert torch.__version__.startswith(facts["packages"]["torch"])
    text = json.dumps(facts)
    for name in (socket.gethostname(), str(Path.home())):
        assert len(name) < 4 or name not in text


class Empty:
    """Features of the right length and no content, for models that look at lengths alone."""

    dim = 1

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        return torch.zeros((end or start + 1) - start, 1)


@pytest.fixture(scope="module")
def published_items(shared_data: Path) -> tuple[Item, ...]:
    """The 978 test items of the published re-localization split of ActivityNet v1.3."""
    records = json.loads((shared_data / "video_reloc" / "test.json").read_text())
    return tuple(
        Item(
            item_id=f"{record['id']}#{number}",
            video_id=record["id"],
            label=str(record["label"]),
            context=tuple(record["location"]),
            moment=tuple(record["location"][0] + step for step in record["groundtruth"]),
            moments=(tuple(record["location"][0] + step for step in record["groundtruth"]),),
        )
        for number, record in enumerate(records)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "wanted", "mean"),
    [
        (WholeReference(), {0.5: 18.8, 0.6: 13.4, 0.7: 8.9, 0.8: 5.7, 0.9: 4.1}, 31.3),
        (CentreHalf(), {0.5: 32.2, 0.6: 21.0, 0.7: 12.2, 0.8: 6.4, 0.9: 1.6}, 36.7),
    ],
)
def test_trivial_predictors_on_the_published_split(
    published_items: tuple[Item, ...], model: Any, wanted: dict[float, float], mean: float
) -> None:
    """One draw of references lies within three standard errors of the exact expectation."""
    protocol = Protocol(
        "anet-vrl",
        {"test": published_items},
        Empty(),
        lambda reference, steps: torch.tensor([[0.0, reference.num_steps]]),
    )
    pairs = make_pairs(published_items, split="test", protocol="anet-vrl", exclude="none")
    assert len(pairs) == 978
    evaluation = evaluate(model, protocol, pairs, progress=False)
    for threshold, percent in wanted.items():
        share = percent / 100
        error = (share * (1 - share) / 978) ** 0.5
        assert abs((evaluation.tious > threshold).double().mean() - share) < 3 * error
    assert evaluation.tious.mean().item() == pytest.approx(mean / 100, abs=0.025)


def test_exact_expectations_over_every_reference_of_the_published_split(
    published_items: tuple[Item, ...],
) -> None:
    """Figures worked out independently of this package, to the decimal they are given with."""
    starts = torch.tensor([item.moment[0] - item.context[0] for item in published_items])
    lengths = torch.tensor([item.query_steps for item in published_items])
    steps = torch.tensor([item.num_steps for item in published_items])
    truths = torch.stack([starts, starts + lengths], dim=1)
    labels = torch.tensor([int(item.label) for item in published_items])
    # candidates[i, j]: query i may meet reference j, itself included.
    candidates = (labels[:, None] == labels) & (steps[None] >= lengths[:, None])
    weights = (candidates / candidates.sum(dim=1, keepdim=True)).mean(dim=0).double()
    whole = torch.stack([torch.zeros_like(steps), steps], dim=1)
    half = torch.stack([steps / 4, 3 * steps / 4], dim=1)
    for answers, wanted, mean in (
        (whole, (18.8, 13.4, 8.9, 5.7, 4.1), 31.3),
        (half, (32.2, 21.0, 12.2, 6.4, 1.6), 36.7),
    ):
        overlaps = best_tiou(answers, truths)
        shares = weights @ above(overlaps, (0.5, 0.6, 0.7, 0.8, 0.9)).double()
        assert (100 * shares).tolist() == pytest.approx(wanted, abs=0.06)
        assert 100 * (weights @ overlaps).item() == pytest.approx(mean, abs=0.06)
