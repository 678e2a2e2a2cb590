"""MultiGraphConv in an ordinary PyG model: which role does a node play in a house?

PyG's ExplainerDataset hangs small "houses" on a random Barabasi-Albert graph. A node is ground,
or the roof, middle or base of a house. Every node has the same feature, 1, so a model must look
around: here through three edge sets over the same nodes, those exactly one, two and three hops
away. Training takes seconds on a CPU and ends above 95 % accuracy on held-out nodes. With
--no-graphs (the paper's "Ours (CNN)") all nodes look the same, and it ends near 40 %.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import ExplainerDataset
from torch_geometric.datasets.graph_generator import BAGraph
from torch_geometric.seed import seed_everything
from torch_geometric.transforms import BaseTransform, RandomNodeSplit
from torch_geometric.utils import degree, to_dense_adj

from relocal_pyg.nn import MultiGraphConv


class ExactHops(BaseTransform):
    """Add one edge set per distance: ``edge_index_hop1``, ``edge_index_hop2``, ...

    The names contain "index", so that PyG batches them correctly.
    """

    def __init__(self, hops: int) -> None:
        self.hops = hops

    def forward(self, data: Data) -> Data:
        near = to_dense_adj(data.edge_index, max_num_nodes=data.num_nodes)[0] > 0
        reached = torch.eye(data.num_nodes, dtype=torch.bool)
        frontier = reached
        for hop in range(1, self.hops + 1):
            frontier = (frontier.float() @ near.float() > 0) & ~reached
            reached = reached | frontier
            source, target = frontier.nonzero().t().contiguous()
            count = degree(target, data.num_nodes)
            data[f"edge_index_hop{hop}"] = torch.stack([source, target])
            # Plain sums would push the hubs of the random graph into the flat ends of tanh.
            data[f"edge_weight_hop{hop}"] = (count[source] * count[target]).rsqrt()
        return data


class RoleClassifier(torch.nn.Module):
    def __init__(self, in_channels: int, channels: int, classes: int, hops: int, graphs: bool):
        super().__init__()
        self.first = MultiGraphConv(in_channels, channels, hops, graph_conv=graphs)
        self.second = MultiGraphConv(channels, channels, hops, graph_conv=graphs)
        self.out = torch.nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor, edges: list[Tensor], weights: list[Tensor]) -> Tensor:
        first = self.first(x, edges, weights)
        second = self.second(first, edges, weights)
        return self.out(torch.cat([first, second], dim=-1))


def load(hops: int) -> Data:
    dataset = ExplainerDataset(
        graph_generator=BAGraph(num_nodes=300, num_edges=5),
        motif_generator="house",
        num_motifs=80,
        transform=ExactHops(hops),
    )
    data = RandomNodeSplit(num_val=0.0, num_test=0.3)(dataset[0])
    data.x = torch.ones(data.num_nodes, 1)
    return data


def train(epochs: int = 80, hops: int = 3, graphs: bool = True, seed: int = 0) -> float:
    """Train and return the accuracy on the test nodes."""
    seed_everything(seed)
    data = load(hops)
    edges = [data[f"edge_index_hop{hop}"] for hop in range(1, hops + 1)]
    weights = [data[f"edge_weight_hop{hop}"] for hop in range(1, hops + 1)]
    model = RoleClassifier(data.num_features, 32, int(data.y.max()) + 1, hops, graphs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    for epoch in range(1, epochs + 1):
        model.train()
        out = model(data.x, edges, weights)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch % 20 == 0:
            print(f"epoch {epoch:3d}  loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        found = model(data.x, edges, weights).argmax(dim=-1)
    return float((found == data.y)[data.test_mask].float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--hops", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-graphs", action="store_true", help="let every node see itself alone")
    args = parser.parse_args()
    accuracy = train(args.epochs, args.hops, not args.no_graphs, args.seed)
    print(f"test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
