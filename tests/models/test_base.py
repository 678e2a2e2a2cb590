"""The one interface: what goes in, from wherever, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from relocal_pyg.errors import (
    CheckpointError,
    FeatureError,
    ProposalError,
    RelocalError,
    UsageError,
)
from relocal_pyg.models import (
    AFTSRM,
    SST,
    Calibrated,
    CentreHalf,
    Chance,
    ContrastMatcher,
    CosineMatcher,
    CrossGated,
    DiagonalMatcher,
    FinerWindows,
    FrameLevel,
    MultiGraphMatcher,
    MultiGraphRelocalizer,
    RandomMoment,
    Relocalizer,
    VideoLevel,
    WholeReference,
    load_model,
)
from relocal_pyg.models.baselines.matr import MATR
from relocal_pyg.search import build_index

F = 8
TRAINED: dict[str, Callable[[], torch.nn.Module]] = {
    "paper": lambda: MultiGraphRelocalizer(F, hidden_channels=6, num_steps=5),
    "paper, masked": lambda: MultiGraphRelocalizer(
        F, hidden_channels=6, num_steps=5, mask_padding=True, normalization="mean"
    ),
    "ours": lambda: MultiGraphMatcher(hidden_channels=6, num_steps=5, head_channels=4),
    "video level": lambda: VideoLevel(F, 6),
    "SST": lambda: SST(F, 6),
    "SST reranked": lambda: SST(F, 6, rerank=True),
    "cross-gated": lambda: CrossGated(F, 6),
    "AFT+SRM": lambda: AFTSRM(F, 6, num_steps=6, widths=(4, 4, 4)),
    "MATR": lambda: MATR(F),
}
FREE = (
    ContrastMatcher,
    CosineMatcher,
    DiagonalMatcher,
    FrameLevel,
    Chance,
    RandomMoment,
    WholeReference,
    CentreHalf,
    lambda: FinerWindows(ContrastMatcher()),
)
WINDOWS = torch.tensor([[0.0, 4.0], [3.0, 9.0], [10.0, 30.0]])


class InAFile:
    """Rows that come a block at a time."""

    def __init__(self, rows: Tensor) -> None:
        self.kept = rows

    def __len__(self) -> int:
        return len(self.kept)

    def split(self, size: int, /) -> Iterator[Tensor]:
        yield from self.kept.split(min(size, 7))


@pytest.mark.parametrize("make", [*FREE, *TRAINED.values()])
def test_rows_in_a_file_are_as_good_as_a_tensor(make: Callable[[], Relocalizer]):
    torch.manual_seed(1)
    model = make()
    if isinstance(model, torch.nn.Module):
        model.eval()
    query, reference, video = torch.randn(4, F), torch.randn(30, F), torch.randn(12, F)
    whole = model.localize(query, reference, query_video=video)
    blocks = model.localize(query, InAFile(reference), query_video=InAFile(video))
    assert [(m.start, m.end) for m in blocks] == [(m.start, m.end) for m in whole]
    assert [m.score for m in blocks] == pytest.approx([m.score for m in whole], abs=1e-5)


@pytest.mark.parametrize("make", TRAINED.values())
def test_a_network_in_training_answers_as_a_trained_one_and_stays_as_it_is(make):
    torch.manual_seed(1)
    model = make().train()
    frozen = next(child for child in model.modules() if child is not model)
    frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    query, reference = torch.randn(4, F), torch.randn(30, F)
    found = [model.localize(query, reference) for _ in range(2)]
    assert found[0] == found[1]
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert found[0] == model.eval().localize(query, reference)


@pytest.mark.parametrize("make", TRAINED.values())
def test_weights_that_are_not_finite_are_neither_kept_nor_asked(make, tmp_path: Path):
    model = make().eval()
    model.save(tmp_path / "good")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite, so nothing is written"):
        model.save(tmp_path / "good")
    assert load_model(tmp_path / "good").title == model.title
    rows = torch.randn(30, F)
    if isinstance(model, SST) and model.config()["rerank"]:  # by cosines of what was proposed
        assert all(math.isfinite(moment.score) for moment in model.localize(rows[:4], rows))
    else:
        with pytest.raises(RelocalError, match="scores are not finite"):
            model.localize(rows[:4], rows)
    if model.encode(rows, WINDOWS) is not None:
        with pytest.raises(FeatureError, match="v: its states in torch.bfloat16 are not finite"):
            build_index(tmp_path / "index", model, [("v", rows, 1.0)])


@pytest.mark.parametrize("make", [*FREE, *TRAINED.values()])
def test_config_rebuilds_the_model(make: Callable[[], Relocalizer]):
    model = make()
    if not isinstance(model, FinerWindows):
        assert type(model)(**model.config()).config() == model.config()


def test_finer_windows_take_what_their_model_takes():
    model = FinerWindows(MultiGraphRelocalizer(F, hidden_channels=6, num_steps=5).eval())
    assert model.title == "Multi-graph fusion, finer windows"
    with pytest.raises(FeatureError, match=f"has 3 channels and the model takes {F}"):
        model.localize(torch.randn(4, 3), torch.randn(30, 3))


def test_unfit_inputs_are_one_line():
    model = MultiGraphRelocalizer(F, hidden_channels=6, num_steps=5).eval()
    query, reference = torch.randn(4, F), torch.randn(30, F)
    for arguments, error in (
        ((torch.randn(4, 3), reference), FeatureError),
        ((query, torch.randn(30, 3)), FeatureError),
        ((query, reference[:0]), FeatureError),
        ((query[0], reference), FeatureError),
        ((query * float("nan"), reference), FeatureError),
        ((query, InAFile(torch.randn(9, 3))), FeatureError),
        ((query, InAFile(reference[:0])), FeatureError),
        (("film.mp4", reference), FeatureError),
        ((query, "film.h5"), FeatureError),
        ((query, b"film"), FeatureError),
        ((query, reference.to_sparse()), FeatureError),
        ((query, np.ma.masked_greater(reference.numpy(), 1)), FeatureError),
    ):
        with pytest.raises(error) as caught:
            model.localize(*arguments)
        assert "\n" not in str(caught.value)
    for options, error in (
        ({"proposals": [[3.0, 1.0]]}, ProposalError),
        ({"proposals": [[0.0, float("inf")]]}, ProposalError),
        ({"proposals": [1.0, 2.0]}, ProposalError),
        ({"proposals": [[30.0, 40.0], [-9.0, 0.0]]}, ProposalError),
        ({"query_video": torch.randn(5, 3)}, FeatureError),
        ({"query_video": "film"}, FeatureError),
        ({"background": torch.randn(3)}, FeatureError),
        ({"background": torch.full((F,), float("nan"))}, FeatureError),
        ({"background": 5}, FeatureError),
        ({"top_k": 0}, UsageError),
        ({"top_k": -3}, ValueError),
        ({"seconds_per_step": 0.0}, UsageError),
        ({"seconds_per_step": float("nan")}, UsageError),
        ({"seconds_per_step": float("inf")}, UsageError),
    ):
        with pytest.raises(error):
            model.localize(query, reference, **options)
    with pytest.warns(UserWarning, match="no proposals"):
        assert model.localize(query, reference, proposals=torch.zeros(0, 2)) == []


def test_any_array_of_numbers_is_an_input():
    random = np.random.default_rng(0)
    query, reference = random.standard_normal((4, F)), random.standard_normal((30, F))
    model, mean = ContrastMatcher(), reference.mean(0)
    wanted = model.localize(torch.tensor(query), torch.tensor(reference), background=mean)
    for form in (
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(">f4"),
        lambda x: x.astype(object),
        pd.DataFrame,
        lambda x: list(torch.tensor(x)),
    ):
        found = model.localize(form(query), form(reference), background=list(mean))
        assert [(m.start, m.end) for m in found] == [(m.start, m.end) for m in wanted]
        assert [m.score for m in found] == pytest.approx([m.score for m in wanted], abs=1e-5)


def test_what_lies_past_an_end_is_no_answer():
    found = ContrastMatcher().localize(
        torch.randn(4, F), torch.randn(30, F), proposals=[[40.0, 50.0], [2.0, 8.0], [-9.0, -1.0]]
    )
    assert [(moment.start, moment.end) for moment in found] == [(2, 8)]


def test_times_are_exact():
    """4.16, not 4.15999985: steps are turned to seconds in double precision."""
    moments = WholeReference().localize(
        torch.randn(2, 3), torch.randn(26, 3), seconds_per_step=0.16
    )
    assert moments[0].end == 26 * 0.16


def test_width_is_declared():
    assert MultiGraphRelocalizer(F, hidden_channels=6).in_channels == F
    assert MultiGraphMatcher(hidden_channels=6).in_channels is None
    assert ContrastMatcher().in_channels is None
    with pytest.raises(FeatureError, match="takes 8"):
        VideoLevel(F, 6).check_width(9, "query")


@pytest.mark.parametrize("name", TRAINED)
def test_ranking_leaves_a_model_in_training_as_it_was(name: str):
    model = TRAINED[name]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.rank(torch.randn(4, F), torch.randn(30, F), WINDOWS)
    assert model.training
    if name in ("paper", "paper, masked", "ours"):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_doubles_and_inference_mode_change_no_answer(name: str):
    torch.manual_seed(0)
    model, asked = TRAINED[name]().eval(), (torch.randn(4, F), torch.randn(30, F))
    assert isinstance(model, Relocalizer)
    plain, shown = model.rank(*asked, WINDOWS), model.explain(*asked, (3.0, 9.0))
    with torch.inference_mode():
        inside, again = model.rank(*asked, WINDOWS), model.explain(*asked, (3.0, 9.0))
    assert torch.equal(inside.scores, plain.scores)
    if shown is not None:
        torch.testing.assert_close(again, shown)
    videos = model.rank_videos(asked[0], [asked[1]], [WINDOWS])[0].scores
    exact = model.double()
    found = [
        (plain.scores, exact.rank(*asked, WINDOWS).scores),
        (videos, exact.rank_videos(asked[0], [asked[1]], [WINDOWS])[0].scores),
    ]
    if (kept := exact.encode(asked[1], WINDOWS)) is not None:
        found.append((videos, exact.score_encoded(asked[0], *kept, WINDOWS)[1].sort()[0].flip(0)))
    for single, double in found:
        # Of the many near ties of own moments another may be suppressed.
        torch.testing.assert_close(double[:3].float(), single[:3], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_wrapper_answers_as_its_model_does(constant):
    model = MultiGraphMatcher(hidden_channels=6, num_steps=5, head_channels=4).eval()
    told = Calibrated(model, constant())
    query, reference = torch.randn(4, F), torch.randn(30, F)
    plain, judged = (each.rank(query, reference, WINDOWS) for each in (model, told))
    assert torch.equal(plain.scores, judged.scores)
    assert (told.title, told.device, told.config()) == (model.title, model.device, model.config())
    assert set(told.rankings(query, reference, WINDOWS)) == set(model.refinements)
    best = judged.best(30, 2)
    assert [moment.probability for moment in best] == [0.5] * len(best)
    assert told.scored_span(best[0]) == model.scored_span(best[0])
    assert torch.equal(
        told.explain(query, reference, (3.0, 9.0)), model.explain(query, reference, (3.0, 9.0))
    )


@pytest.mark.parametrize("settings", [{"num_anchors": 0}, {"stride": 0}, {"stride": -1}])
def test_sst_refuses_what_it_cannot_scan_by(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        SST(F, 6, **settings)


@pytest.mark.parametrize("number", [0, -1])
def test_cross_gated_refuses_a_length_that_is_none(number: int) -> None:
    with pytest.raises(UsageError, match="max_steps"):
        CrossGated(F, 6, max_steps=number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", TRAINED.values())
def test_short_floats_answer_as_full_ones_do(make: Callable[[], Relocalizer], kind: torch.dtype):
    full = make().eval()
    short = make()
    short.load_state_dict(full.state_dict())
    short = short.to(kind).eval()
    query, reference, video = torch.randn(4, F), torch.randn(30, F), torch.randn(12, F)
    ours, theirs = (
        model.rank(query, reference, WINDOWS, query_video=video, seconds_per_step=0.5)
        for model in (short, full)
    )
    assert float(ours.scores.max()) == pytest.approx(float(theirs.scores.max()), abs=0.1)
    for answer in short.rank_videos(query, [reference], [WINDOWS], query_video=video):
        assert answer.scores.isfinite().all()
    table = short.explain(query, reference, (3.0, 9.0), video)
    assert table is None or table.isfinite().all()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MultiGraphRelocalizer(F, ks=3), "ks"),
        (lambda: MultiGraphRelocalizer(F, ks=()), "ks"),
        (lambda: MultiGraphRelocalizer(F, head_channels=3), "head_channels"),
        (lambda: MultiGraphRelocalizer(F, dropout=2.0), "dropout"),
        (lambda: MultiGraphRelocalizer(0), "in_channels"),
        (lambda: MultiGraphMatcher(context=float("nan")), "context"),
        (lambda: MultiGraphMatcher(contrast=float("inf")), "contrast"),
        (lambda: MultiGraphMatcher(paces=1.0), "paces"),
        (lambda: MultiGraphMatcher(far_proposals=-1), "far_proposals"),
        (lambda: ContrastMatcher(float("nan")), "contrast"),
        (lambda: DiagonalMatcher(0), "num_points"),
        (lambda: RandomMoment(num_moments=0), "num_moments"),
        (lambda: FrameLevel(min_steps=0), "min_steps"),
        (lambda: VideoLevel(F, 2.5), "hidden_channels"),
        (lambda: SST(F, nms_threshold=-1.0), "nms_threshold"),
        (lambda: CrossGated(F, num_factors=0), "num_factors"),
        (lambda: AFTSRM(F, widths=4), "widths"),
        (lambda: MATR(F, before=-1.0), "before"),
    ],
)
def test_settings_out_of_range_are_one_line(make: Callable[[], Relocalizer], name: str):
    with pytest.raises(UsageError, match=f"^{name} (is|are) ") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_settings_may_be_numbers_of_numpy(tmp_path: Path):
    for number, (kind, given, settings) in enumerate(
        (
            (MultiGraphRelocalizer, (np.int64(F),), {"margin": np.float32(0.5), "num_steps": 5}),
            (MultiGraphMatcher, (), {"hidden_channels": np.int64(6), "ks": np.arange(1, 3)}),
        )
    ):
        model = kind(*given, **settings)
        model.save(tmp_path / str(number))
        assert load_model(tmp_path / str(number)).config() == model.config()


def test_a_model_without_weights_has_no_checkpoint(tmp_path: Path):
    for model in (ContrastMatcher(), Calibrated(ContrastMatcher()), FinerWindows(CosineMatcher())):
        with pytest.raises(UsageError, match="no weights to keep"):
            Calibrated(model).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
