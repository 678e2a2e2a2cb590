"""The whole idea in one page: does a proposal mean the same as a query?

Query and proposal become one graph of 2T nodes; K fixed graphs join every step with its neighbours
in its own video and in the other one (section 4.3 of the paper); two multi-graph layers sum over
them (4.5); the average over the nodes becomes a score (4.6), which triplets train (4.7).
"""

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import global_mean_pool

from relocal_pyg import MultiGraphConv, PairData
from relocal_pyg.nn import triplet_loss

STEPS, CHANNELS, KS = 8, 4, (1, 2, 3)


class Score(nn.Module):
    """Node features and K edge sets of a batch of pairs to a score in [-1, 1] each."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * CHANNELS, width)  # a map for either video (LSTMs in the paper)
        self.layers = nn.ModuleList(MultiGraphConv(width, width, len(KS)) for _ in range(2))
        self.out = nn.Linear(width, 1)

    def forward(self, data: Data) -> Tensor:
        query = torch.arange(2 * STEPS).lt(STEPS).repeat(data.num_graphs)[:, None]
        x = self.enter(torch.cat([data.x * query, data.x * ~query], dim=1))
        for layer in self.layers:
            x = layer(x, [data[f"edge_index_k{k}"] for k in KS])
        return torch.tanh(self.out(global_mean_pool(x, data.batch))).squeeze(1)


def triplets(count: int) -> list[tuple[PairData, PairData]]:
    """A made-up action seen twice, as a pair; and beside another action, as a second pair."""
    clips = torch.randn(count, 2, STEPS, CHANNELS)[:, [0, 0, 1]]
    clips += 0.3 * torch.randn(clips.shape)
    build = PairData.from_features
    return [(build(q, same, STEPS, KS), build(q, other, STEPS, KS)) for q, same, other in clips]


@torch.no_grad()
def right(model: Score, pairs: list[tuple[PairData, PairData]]) -> float:
    """Share of actions, none of them seen in training, whose second sight scores higher."""
    near, far = next(iter(DataLoader(pairs, batch_size=len(pairs))))
    return float((model(near) > model(far)).float().mean())


def main(count: int = 2000) -> None:
    torch.manual_seed(0)
    model, unseen = Score(), triplets(500)
    print(f"before training {right(model, unseen):.1%} of 500 unseen actions are right")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for near, far in DataLoader(triplets(count), batch_size=32):
        loss = triplet_loss(model(near), model(far), margin=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after {count} triplets {right(model, unseen):.1%}")


if __name__ == "__main__":
    main()
