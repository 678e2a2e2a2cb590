"""The two LSTMs that encode query and proposal (section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairEncoder(nn.Module):
    """Encode a query and a proposal with an LSTM each and join them in time (section 4.2).

    ``H = [LSTM_q(query); LSTM_p(proposal)]``. Both LSTMs have one layer and run forward in time,
    with weights of their own. Dropout (section 5.2.2 names no rate) acts on their outputs, since
    that of ``nn.LSTM`` does nothing with one layer.

    Args:
        in_channels: Size of the input features.
        hidden_channels: Size ``d`` of the hidden states.
        dropout: Probability of zeroing an output.

    Shapes:
        - **input:** query ``[B, T, in_channels]``, proposal ``[B, T, in_channels]``; masks of
          real steps, bool ``[B, T]``, each true up to the clip's length and false after it
          *(optional)*
        - **output:** ``[B, 2T, hidden_channels]``, the query first

    Example:
        >>> encoder = PairEncoder(16, 8)
        >>> encoder(torch.randn(4, 5, 16), torch.randn(4, 5, 16)).shape
        torch.Size([4, 10, 8])
    """

    def __init__(
        self, in_channels: int = 500, hidden_channels: int = 500, dropout: float = 0.4
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.query_lstm = nn.LSTM(in_channels, hidden_channels, batch_first=True)
        self.proposal_lstm = nn.LSTM(in_channels, hidden_channels, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Reset all learnable parameters."""
        self.query_lstm.reset_parameters()
        self.proposal_lstm.reset_parameters()

    def encode_query(self, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states of queries, ``[B, T, in_channels] -> [B, T, hidden_channels]``.

        Args:
            query: Features of queries.
            mask: Real steps ``[B, T]``; outputs at other steps are 0. Steps before the padding
                cannot see it, so that this equals running on a packed sequence.
        """
        return self._encode(self.query_lstm, query, mask)

    def encode_proposal(self, proposal: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states of proposals; arguments as in :meth:`encode_query`."""
        return self._encode(self.proposal_lstm, proposal, mask)

    def forward(
        self,
        query: Tensor,
        proposal: Tensor,
        query_mask: Tensor | None = None,
        proposal_mask: Tensor | None = None,
    ) -> Tensor:
        """Encode both and concatenate along time; shapes as above."""
        hidden_query = self.encode_query(query, query_mask)
        hidden_proposal = self.encode_proposal(proposal, proposal_mask)
        return torch.cat([hidden_query, hidden_proposal], dim=1)

    def _encode(self, lstm: nn.LSTM, x: Tensor, mask: Tensor | None) -> Tensor:
        out = self.dropout(lstm(x)[0])
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)
