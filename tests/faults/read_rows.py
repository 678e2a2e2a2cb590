"""Read features in worker processes of every start method: ``FILE LENGTH``.

A program of its own, since ``spawn`` and ``forkserver`` import the main program again.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from relocal_pyg.data import FeatureStore


class Rows(Dataset):
    """Item ``i`` is rows ``[i % 30, i % 30 + 5)`` of video ``i % 20``, each row its own number."""

    def __init__(self, store: FeatureStore, length: int) -> None:
        self.store, self.length = store, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> torch.Tensor:
        start = number % 30
        return self.store.read(f"v{number % 20}", start, start + 5)


def wanted(number: int) -> np.ndarray:
    rows = np.arange(number % 30, number % 30 + 5, dtype=np.float32)
    return np.repeat((1000 * (number % 20) + rows)[:, None], 8, axis=1)


def main() -> None:
    file, length = sys.argv[1], int(sys.argv[2])
    store = FeatureStore(file)
    store.read("v0")  # the handle is open before any worker starts
    wrong = {}
    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(
            Rows(store, length), batch_size=None, num_workers=2, multiprocessing_context=method
        )
        rows = list(map(torch.clone, loader))
        assert len(rows) == length
        wrong[method] = sum(not np.array_equal(r, wanted(i)) for i, r in enumerate(rows))
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
