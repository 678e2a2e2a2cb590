"""Proposals of items: cut from the right context, never empty, made once."""

from __future__ import annotations

import pytest
import torch

from relocal_pyg import proposals as room
from relocal_pyg.data.items import Protocol
from relocal_pyg.moments import tiou
from relocal_pyg.proposals.actionness import ActionnessClassifier, fit_actionness
from relocal_pyg.proposals.tag import SSN_CODE, fallback_windows, group, tag_proposals


@pytest.fixture
def classifier(planted: Protocol) -> ActionnessClassifier:
    return fit_actionness(planted, steps=120)


def never(width: int = 12) -> ActionnessClassifier:
    """A classifier that sees background everywhere."""
    model = ActionnessClassifier(width)
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.copy_(torch.tensor([20.0, -20.0]))
    return model.eval()


@pytest.mark.slow
def test_proposals_cover_unseen_actions_in_steps_of_the_context(
    planted: Protocol, classifier: ActionnessClassifier
) -> None:
    best = []
    for item in planted.splits["test"]:
        found, _ = tag_proposals(classifier, planted.reference(item))
        assert found.min() >= 0
        assert found.max() <= item.num_steps
        assert (found[:, 0] < found[:, 1]).all()
        best.append(tiou(found, torch.tensor(item.truths[0])).max().item())
    # Truths lie 5 steps further in the whole video: a wrong origin would cost half the overlap.
    assert min(best) > 0.9


def test_a_video_without_action_warns_and_gets_windows(planted: Protocol) -> None:
    item = planted.splits["test"][0]
    with pytest.warns(UserWarning, match="^there: .*no threshold.*sliding windows"):
        found, scores = tag_proposals(never(), planted.reference(item), name="there")
    assert torch.equal(found, fallback_windows(item.num_steps))
    assert scores.tolist() == [0.0] * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 300])
def test_fallback_comes_near_every_moment_that_is_not_tiny(num_steps: int) -> None:
    windows = fallback_windows(num_steps)
    assert windows.min() == 0
    assert windows.max() == num_steps
    shortest = max(1, num_steps // 32)
    for start in range(num_steps):
        for end in range(start + shortest, num_steps + 1, max(1, num_steps // 40)):
            assert tiou(windows, torch.tensor([start, end])).max() > 0.5


@pytest.mark.slow
def test_released_codes_overshoot_is_cut_off_without_twins(
    planted: Protocol, classifier: ActionnessClassifier
) -> None:
    features = planted.features.read("train0", 5, 55).clone()
    features[-4:, 3] += 6  # action up to the very end
    raw, _ = group(classifier.actionness(features), SSN_CODE)
    assert raw.max() == len(features) + 1
    found, scores = tag_proposals(classifier, features, SSN_CODE)
    assert found.max() == len(features)
    assert len(torch.unique(found, dim=0)) == len(found) == len(scores)
    assert (scores[:-1] >= scores[1:]).all()
    assert {tuple(pair) for pair in raw.clamp(max=len(features)).tolist()} == {
        tuple(pair) for pair in found.tolist()
    }


def test_every_public_name_of_the_room_exists() -> None:
    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = room.nothing
