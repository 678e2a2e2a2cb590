"""PairEncoder against packed sequences and a recurrence written out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from relocal_pyg.nn import PairEncoder


def recurrence(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Hidden states of one clip ``[T, F]`` by the definition of an LSTM."""
    hidden = cell = torch.zeros(lstm.hidden_size, dtype=x.dtype)
    states = []
    for step in x:
        gates = lstm.weight_ih_l0 @ step + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden
        i, f, g, o = (gates + lstm.bias_hh_l0).chunk(4)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        states.append(hidden)
    return torch.stack(states)


def test_two_lstms_joined_in_time() -> None:
    encoder = PairEncoder(4, 3).double().eval()
    query, proposal = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    out = encoder(query, proposal)
    assert out.shape == (2, 10, 3)
    for b in range(2):
        expected = torch.cat(
            [
                recurrence(encoder.query_lstm, query[b]),
                recurrence(encoder.proposal_lstm, proposal[b]),
            ]
        )
        torch.testing.assert_close(out[b], expected)
    torch.testing.assert_close(out[:, :5], encoder.encode_query(query))
    torch.testing.assert_close(out[:, 5:], encoder.encode_proposal(proposal))
    # Weights of their own: the order of the arguments matters.
    assert not torch.allclose(encoder(proposal, query)[:, :5], out[:, 5:])
    shared = {p.data_ptr() for p in encoder.query_lstm.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in encoder.proposal_lstm.parameters())


def test_masks_equal_packed_sequences() -> None:
    encoder = PairEncoder(4, 3).eval()
    query, proposal = torch.randn(2, 3, 6, 4)
    lengths = torch.tensor([[6, 2, 1], [3, 6, 4]])
    masks = torch.arange(6) < lengths[..., None]
    out = encoder(query, proposal, *masks)
    sides = ((encoder.query_lstm, query), (encoder.proposal_lstm, proposal))
    for (lstm, x), length, part in zip(sides, lengths, out.split(6, 1), strict=True):
        packed = pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
        expected, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=6)
        torch.testing.assert_close(part, expected)
    half = encoder(query, proposal, None, masks[1])
    torch.testing.assert_close(half[:, :6], encoder.encode_query(query))
    torch.testing.assert_close(half[:, 6:], out[:, 6:])


def test_dropout_acts_on_outputs_in_training_only() -> None:
    encoder = PairEncoder(4, 50, dropout=0.4)
    query, proposal = torch.randn(2, 8, 6, 4)
    encoder.eval()
    clean = encoder(query, proposal)
    assert torch.equal(clean, encoder(query, proposal))
    encoder.train()
    noisy = encoder(query, proposal)
    dropped = noisy == 0
    assert 0.35 < dropped.float().mean().item() < 0.45
    torch.testing.assert_close(noisy[~dropped], clean[~dropped] / 0.6)


def test_gradients_and_reset() -> None:
    encoder = PairEncoder(2, 2).double().eval()
    query, proposal = torch.randn(2, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    assert torch.autograd.gradcheck(lambda q, p: encoder(q, p, mask, mask), (query, proposal))
    before = copy.deepcopy(encoder.state_dict())
    encoder.reset_parameters()
    assert all(not torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_what_pads_hold_reaches_no_gradient() -> None:
    encoder, x = PairEncoder(4, 3, dropout=0.0), torch.randn(2, 5, 4)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    answers = []
    for held in (0.0, torch.nan):
        out = encoder.encode_query(x.masked_fill(~mask[..., None], held), mask)
        answers.append([out, *torch.autograd.grad(out.sum(), encoder.query_lstm.parameters())])
    for clean, dirty in zip(*answers, strict=True):
        assert torch.equal(clean, dirty)
