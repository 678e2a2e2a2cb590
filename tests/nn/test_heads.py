"""ScoreHead and OffsetHead: layers of section 5.2.2, ranges, shapes, starts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from relocal_pyg.nn import OffsetHead, ScoreHead


@pytest.mark.parametrize(("head", "outputs"), [(ScoreHead, 1), (OffsetHead, 2)])
def test_layers(head: type[ScoreHead | OffsetHead], outputs: int) -> None:
    kinds = [type(layer) for layer in head(500).mlp]
    trunk = [nn.Linear, nn.BatchNorm1d, nn.Tanh]
    assert kinds == [*trunk, *trunk, nn.Linear]
    sizes = [layer.weight.shape for layer in head(500).mlp if isinstance(layer, nn.Linear)]
    assert sizes == [(256, 500), (64, 256), (outputs, 64)]
    narrow = [layer.weight.shape for layer in head(8, (4,)).mlp if isinstance(layer, nn.Linear)]
    assert narrow == [(4, 8), (outputs, 4)]


@pytest.mark.parametrize("head", [ScoreHead, OffsetHead])
def test_against_the_layers_written_out(head: type[ScoreHead | OffsetHead]) -> None:
    module = head(6, (5, 4)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    hidden = x
    for start in (0, 3):
        linear = module.mlp[start]
        hidden = hidden @ linear.weight.T + linear.bias
        spread = (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        hidden = torch.tanh((hidden - hidden.mean(0)) / spread)
    raw = hidden @ module.mlp[-1].weight.T + module.mlp[-1].bias
    if head is ScoreHead:
        torch.testing.assert_close(module(x), torch.tanh(raw)[:, 0])
        torch.testing.assert_close(copy.deepcopy(module).logits(x), raw[:, 0])
    else:
        torch.testing.assert_close(module(x), raw)


def test_scores_are_bounded_and_offsets_are_not() -> None:
    x = 100 * torch.randn(50, 6)
    score, offset = ScoreHead(6).eval(), OffsetHead(6).eval()
    for head in (score, offset):
        head.mlp[-1].weight.data.mul_(100)
    assert score(x).abs().max() <= 1
    assert score.logits(x).abs().max() > 1
    assert offset(x).abs().max() > 1


def test_leading_dimensions() -> None:
    x = torch.randn(4, 7, 6)
    for head, tail in ((ScoreHead(6), ()), (OffsetHead(6), (2,))):
        flat = copy.deepcopy(head)(x.flatten(0, 1))
        out = head(x)
        assert out.shape == (4, 7, *tail)
        torch.testing.assert_close(out.flatten(0, 1), flat)
        # One proposal alone must not break batch normalisation outside training.
        head.eval()
        torch.testing.assert_close(head(x[0, 0]), head(x)[0, 0])
        assert head(x[:, :0]).shape == (4, 0, *tail)


@pytest.mark.parametrize("head", [ScoreHead, OffsetHead])
def test_reset(head: type[ScoreHead | OffsetHead]) -> None:
    module = head(6)
    module(torch.randn(9, 6))
    assert not torch.equal(module.mlp[1].running_mean, torch.zeros(256))
    before = module.mlp[0].weight.clone()
    module.reset_parameters()
    assert torch.equal(module.mlp[1].running_mean, torch.zeros(256))
    assert not torch.equal(module.mlp[0].weight, before)


@pytest.mark.parametrize("head", [ScoreHead, OffsetHead])
def test_gradcheck(head: type[ScoreHead | OffsetHead]) -> None:
    module = head(3, (4, 3)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
