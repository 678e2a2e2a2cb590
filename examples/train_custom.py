"""Train and test on your own features: an HDF5 file and ActivityNet-style JSON.

The layout is that of 50 Salads as many people keep it: one group a video with an array
``[steps, channels]``, and segments in seconds with a ``subject`` for each video.

    python examples/train_custom.py --root DATA --unseen-classes 5 --out runs/salads
"""

from __future__ import annotations

import argparse
from pathlib import Path

from relocal_pyg.datasets.custom import custom
from relocal_pyg.evaluation.tables import to_text
from relocal_pyg.training import RECOMMENDED, recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="features.h5, annotations.json")
    parser.add_argument("--unseen-classes", type=int, default=5)
    parser.add_argument("--holdout", choices=["subject", "video"], default="subject")
    parser.add_argument("--out", type=Path, default=Path("runs/custom"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    protocol = custom(
        args.root / "features.h5",
        args.root / "annotations.json",
        unseen_classes=args.unseen_classes,
        holdout=args.holdout,
        seed=args.seed,
    )
    recipe.train(protocol, RECOMMENDED, args.out, seed=args.seed)
    trained = [recipe.Trained.load(args.out)]

    for split in protocol.test_splits():
        pairs = recipe.draw_pairs(protocol, split)
        print(to_text(recipe.compare_trained(protocol, pairs, trained)))


if __name__ == "__main__":
    main()
