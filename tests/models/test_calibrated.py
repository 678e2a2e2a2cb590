"""Probabilities beside scores."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.models import Calibrated, ContrastMatcher, MultiGraphMatcher, load_model
from relocal_pyg.models.base import Ranking
from relocal_pyg.models.calibrated import (
    FACTS,
    FILE,
    Confidence,
    answer_facts,
    read_confidence,
    write_confidence,
)
from relocal_pyg.models.similarity import matching_statistics
from relocal_pyg.moments import Moment
from relocal_pyg.training.validation import (
    PENALTIES,
    calibrate,
    calibrate_run,
    fit_best,
    fit_logistic,
)


@pytest.fixture(scope="module")
def protocol(short_videos: dict[str, int]) -> Protocol:
    classes = {"train_classes": 3, "val_classes": 8, "test_classes": 3}
    return synthetic(SyntheticConfig(**classes, **short_videos))


@pytest.fixture(scope="module")
def calibrated(protocol: Protocol) -> Confidence:
    return calibrate(ContrastMatcher(), protocol, limit=60)


def small_network() -> MultiGraphMatcher:
    return MultiGraphMatcher(hidden_channels=8, num_steps=6, head_channels=8).eval()


def test_the_fit_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    facts = rng.normal(size=(80, 3)) * [1, 20, 0.1] + [5, 0, 1]
    outcomes = rng.uniform(size=80) < 1 / (1 + np.exp(-(facts[:, 0] - 5) + facts[:, 1] / 20))
    fitted = fit_logistic(torch.tensor(facts), torch.tensor(outcomes), penalty=2.0)
    rows = (facts - facts.mean(axis=0)) / facts.std(axis=0)
    oracle = LogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(rows, outcomes)
    assert fitted.weights == pytest.approx(oracle.coef_[0], abs=1e-4)
    assert fitted.bias == pytest.approx(oracle.intercept_[0], abs=1e-4)
    assert fitted(torch.tensor(facts)).numpy() == pytest.approx(
        oracle.predict_proba(rows)[:, 1], abs=1e-4
    )


@pytest.mark.slow
def test_the_penalty_predicts_best_what_was_left_out() -> None:
    folds, chosen = torch.arange(60) % 5, set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        facts = rng.normal(size=(60, 7))
        outcomes = rng.uniform(size=60) < 1 / (1 + np.exp(-facts[:, 0] * (seed % 4)))
        losses = [
            -cross_val_score(
                make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, tol=1e-10)),
                facts,
                outcomes,
                cv=PredefinedSplit(folds.numpy()),
                scoring="neg_log_loss",
            ).sum()
            for penalty in PENALTIES
        ]
        wanted = PENALTIES[int(np.argmin(losses))]
        chosen.add(wanted)
        table = torch.tensor(facts), torch.tensor(outcomes)
        assert fit_best(*table, groups=torch.arange(60)) == fit_logistic(*table, wanted)
    assert len(chosen) > 1


def test_an_unknown_fact_counts_as_the_mean_and_a_constant_one_as_nothing() -> None:
    facts = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [torch.nan, 7.0]]).double()
    fitted = fit_logistic(facts, torch.tensor([0, 0, 1, 1]), 4.0)
    assert fitted.mean == (1.0, 7.0)
    known, unknown = fitted(torch.tensor([[1.0, 7.0], [torch.nan, torch.nan]]).double()).tolist()
    assert known == unknown == pytest.approx(0.5)
    never = fit_logistic(torch.full((4, 1), torch.nan).double(), torch.tensor([0, 1, 1, 1]), 4.0)
    assert never(torch.zeros(1, 1).double()).item() == pytest.approx(0.75, abs=1e-4)


def test_matching_statistics_are_best_cosines_of_centred_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    query, reference, video = (torch.randn(n, 5, generator=generator) for n in (4, 1200, 30))
    moments = torch.tensor([[510.0, 520.0], [0.0, 1200.0], [7.2, 7.4]])
    for around in (video, None):
        rows = (query - (reference if around is None else around).mean(dim=0)).numpy()
        columns = (reference - reference.mean(dim=0)).numpy()
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        columns /= np.linalg.norm(columns, axis=1, keepdims=True)
        table = rows @ columns.T
        got = matching_statistics(query, reference, moments, around)
        for answer, (start, end) in zip(got, ((510, 520), (0, 1200), (7, 8)), strict=True):
            inside = np.zeros(1200, bool)
            inside[start:end] = True
            wanted = [table[:, inside].max(axis=1).mean(), table[:, inside].max(axis=0).mean()]
            if inside.all():
                assert torch.isnan(answer[2:]).all()
            else:
                wanted += [table[:, ~inside].max(axis=1).mean()]
                wanted += [table[:, ~inside].max(axis=0).mean()]
            assert answer[: len(wanted)].tolist() == pytest.approx(wanted, abs=1e-5)


def test_facts_of_scores() -> None:
    moments = torch.tensor([[2.0, 6.0], [4.0, 8.0], [8.0, 12.0]])
    ranking = Ranking(moments, torch.tensor([0.8, 0.6, 0.1]))
    features = torch.randn(12, 4)
    facts = answer_facts(
        ContrastMatcher(), ranking, moments[:2], ranking.scores[:2], features[:3], features
    )
    spread = np.std([0.8, 0.6, 0.1])
    assert facts.shape == (2, len(FACTS))
    assert facts[0, :3].tolist() == pytest.approx([0.8, (0.8 - 0.5) / spread, 0.7], abs=1e-6)
    # What ends where another begins does not overlap it.
    assert facts[1, 2].item() == pytest.approx(0.5)
    alone = Ranking(moments[:2], torch.tensor([0.5, 0.5]))
    facts = answer_facts(
        ContrastMatcher(), alone, moments[:1], alone.scores[:1], features[:3], features
    )
    assert facts[0, 1] == 0
    assert torch.isnan(facts[0, 2])


def test_squashed_scores_are_told_apart_again(protocol: Protocol) -> None:
    raw = torch.tensor([-3.0, 0.0, 4.0])
    assert small_network().raw_scores(raw.tanh()).tolist() == pytest.approx(raw.tolist(), abs=1e-3)
    assert torch.isfinite(small_network().raw_scores(torch.ones(1))).all()


def test_a_longer_reference_leaves_the_facts_of_the_inside(protocol: Protocol) -> None:
    """The same moment and the same rivals, in a reference with its steps twice over."""
    item = protocol.splits["val"][0]
    query, reference = protocol.query(item), protocol.reference(item)
    moments = torch.tensor([[2.0, 12.0], [20.0, 30.0]])
    ranking = Ranking(moments, torch.tensor([0.9, 0.2]))
    twice = torch.cat([reference, reference])
    # The moment's steps are outside as well in the doubled one: only the inside stays the same.
    short, long = (
        answer_facts(ContrastMatcher(), ranking, moments[:1], ranking.scores[:1], query, each)[0]
        for each in (reference, twice)
    )
    assert short[:5].tolist() == pytest.approx(long[:5].tolist(), abs=1e-5)


@pytest.mark.slow
def test_calibration_says_what_validation_showed(
    protocol: Protocol, calibrated: Confidence
) -> None:
    assert (calibrated.pairs, calibrated.nulls) == (60, 60)
    assert 10 <= calibrated.right <= 60
    again = calibrate(ContrastMatcher(), protocol, limit=60)
    assert again == calibrated
    matcher = Calibrated(ContrastMatcher(), calibrated)
    assert (matcher.title, matcher.in_channels, matcher.trainable) == (
        ContrastMatcher.title,
        None,
        False,
    )
    item = protocol.splits["val"][0]
    found = matcher.localize(protocol.query(item), protocol.reference(item), top_k=3)
    assert [m for m in found if m.probability is None or m.presence is None] == []
    assert len({moment.presence for moment in found}) == 1
    assert all(0 < moment.probability < 1 for moment in found)
    # The query's own video holds it without a doubt; noise does not.
    noise = torch.randn(len(protocol.reference(item)), protocol.features.dim)
    nothing = matcher.localize(protocol.query(item), noise)
    assert nothing[0].presence < found[0].presence
    plain = ContrastMatcher().localize(protocol.query(item), protocol.reference(item), top_k=3)
    assert [replace(m, probability=None, presence=None) for m in found] == plain


def test_too_few_outcomes_of_a_kind_are_refused(protocol: Protocol) -> None:
    with pytest.raises(UsageError, match="9 validation pairs, 10 wanted"):
        calibrate(ContrastMatcher(), protocol, limit=9)

    class Wrong(ContrastMatcher):
        def _rank(self, query, reference, proposals, around):  # type: ignore[no-untyped-def]
            return Ranking(torch.tensor([[0.0, 0.5]]), torch.ones(1))

    with pytest.raises(UsageError, match="0 best answers on validation are right"):
        calibrate(Wrong(), protocol, limit=20)


@pytest.mark.slow
def test_a_calibrated_model_keeps_it(protocol: Protocol, calibrated: Confidence, tmp_path: Path):
    model = small_network()
    model.save(tmp_path / "plain")
    assert isinstance(load_model(tmp_path / "plain"), MultiGraphMatcher)
    Calibrated(model, calibrated).save(tmp_path / "kept")
    again = load_model(tmp_path / "kept")
    assert isinstance(again, Calibrated)
    assert again.confidence == calibrated
    # What the wrapper does not have is the model's.
    assert again.settings == model.settings
    assert again.eval().to("cpu").save(tmp_path / "again") is None
    item = protocol.splits["val"][0]
    query, reference = protocol.query(item), protocol.reference(item)
    found = again.localize(query, reference)
    assert found[0].probability is not None
    plain = model.localize(query, reference)
    assert [replace(m, probability=None, presence=None) for m in found] == plain


@pytest.mark.slow
def test_a_model_that_is_moved_or_cast_is_calibrated_still(constant) -> None:
    model = Calibrated(small_network(), constant(moment=0.75))
    query, reference = torch.randn(4, 5), torch.randn(30, 5)
    for same in (model.cpu(), model.float(), model.train().eval(), model.requires_grad_(False)):
        assert same is model
        assert same.localize(query, reference)[0].probability == pytest.approx(0.75)
    copied = copy.copy(model)
    copied.model = ContrastMatcher()
    windows = torch.tensor([[0.0, 4.0]])
    assert list(copied.rankings(query, reference, windows)) == ["none", "refined"]
    assert list(model.rankings(query, reference, windows)) == ["none", "windows"]


def test_weights_that_were_trained_further_lose_their_probabilities(
    constant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MultiGraphMatcher, "fit", lambda self, protocol: "trained")
    model = Calibrated(small_network(), constant())
    assert model.fit(None) == "trained"
    model.save(tmp_path / "model")
    assert isinstance(load_model(tmp_path / "model"), MultiGraphMatcher)


@pytest.mark.slow
def test_a_run_keeps_the_model_s_and_the_matcher_s(protocol: Protocol, tmp_path: Path) -> None:
    model = small_network()
    model.save(tmp_path / "best")
    said = calibrate_run(model, protocol, tmp_path, limit=30)
    assert "calibrated on 30 validation pairs and 30 references" in said
    kept = read_confidence(tmp_path / FILE)
    assert set(kept) == {"model", "matcher"}
    for folder in (tmp_path, tmp_path / "best"):
        assert load_model(folder).confidence == kept["model"]
    # Weights that were trained further have no calibration, the matcher keeps its own.
    torch.nn.init.ones_(model.members[0].head[-1].weight)
    model.save(tmp_path / "best")
    assert isinstance(load_model(tmp_path), MultiGraphMatcher)
    assert set(read_confidence(tmp_path / FILE, "0" * 64)) == {"matcher"}


def test_a_run_says_that_nothing_was_kept(protocol: Protocol, tmp_path: Path) -> None:
    model = small_network()
    model.save(tmp_path / "best")
    assert "no calibration: 5 validation pairs" in calibrate_run(model, protocol, tmp_path, limit=5)
    assert isinstance(load_model(tmp_path), MultiGraphMatcher)
    assert read_confidence(tmp_path / FILE) == {}


@pytest.mark.parametrize("damage", ["value", "cut", "format", "list", "empty"])
def test_a_spoilt_file_is_one_typed_error(
    calibrated: Confidence, tmp_path: Path, damage: str
) -> None:
    write_confidence(tmp_path, "0" * 64, calibrated, None)
    file = tmp_path / FILE
    text = file.read_text()
    changed = {
        "value": text.replace('"bias": ', '"bias": 1', 1),
        "cut": text[:-40],
        "format": text.replace('"format": 1', '"format": 2'),
        "list": "[]",
        "empty": "",
    }
    file.write_text(changed[damage])
    with pytest.raises(CheckpointError, match=FILE):
        read_confidence(file)


def test_numbers_that_make_no_probability_are_refused(calibrated: Confidence) -> None:
    record = calibrated.to_json()
    assert Confidence.from_json(json.loads(json.dumps(record))) == calibrated
    for name, value in (("scale", [0.0] * 7), ("weights", [1.0]), ("mean", ["a"] * 7)):
        with pytest.raises(ValueError, match="is no confidence"):
            Confidence.from_json({**record, "moment": {**record["moment"], name: value}})
    with pytest.raises(ValueError, match="is no confidence"):
        Confidence.from_json({**record, "facts": ["score"]})
    with pytest.raises(ValueError, match="is no confidence"):
        Confidence.from_json(None)


def test_a_moment_is_plain_without_them() -> None:
    assert asdict(Moment(0, 1, 0.5))["probability"] is None
