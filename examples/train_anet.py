"""Train the paper's network on ActivityNet, from features and annotations to a results table.

With the published files in one folder (annotations, feature lengths, class permutation, HDF5):

    python examples/train_anet.py --root DATA --protocol anet-vrl --preset paper

Without features, on simulated ones laid over the real items, or with nothing at all:

    python examples/train_anet.py --root DATA --protocol simulated-anet-vrl
    python examples/train_anet.py --synthetic
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets.activitynet import anet12, anet_vrl
from relocal_pyg.datasets.simulation import simulated_anet_vrl
from relocal_pyg.datasets.synthetic import synthetic
from relocal_pyg.evaluation.tables import to_text
from relocal_pyg.training import PRESETS, recipe


def open_protocol(args: argparse.Namespace) -> Protocol:
    if args.synthetic:
        return synthetic()
    if args.protocol == "simulated-anet-vrl":
        return simulated_anet_vrl(args.root)
    # The published file holds a step every 8 frames; the paper's steps are 16 frames apart.
    features = FeatureStore(args.features or args.root / "features.h5", subsample=args.subsample)
    if args.protocol == "anet-vrl":
        return anet_vrl(args.root, features)
    return anet12(args.root / "activity_net.v1-2.json", features, seed=args.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder with the published files")
    parser.add_argument("--features", type=Path, help="HDF5 features; ROOT/features.h5")
    parser.add_argument("--subsample", type=int, default=2, help="keep every n-th feature step")
    parser.add_argument(
        "--protocol",
        choices=["anet-vrl", "anet12-80-10-10", "simulated-anet-vrl"],
        default="anet-vrl",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    parser.add_argument("--synthetic", action="store_true", help="embedded data, no files needed")
    parser.add_argument("--steps", type=int, help="optimiser steps at most")
    parser.add_argument("--out", type=Path, default=Path("runs/anet"), help="run folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.synthetic and args.root is None:
        parser.error("--root is needed, or --synthetic")

    protocol, preset = open_protocol(args), PRESETS[args.preset]
    preset = dataclasses.replace(preset, training=preset.training.with_steps(args.steps))
    result = recipe.train(protocol, preset, args.out, seed=args.seed)
    print(f"validation: {result.choice}")

    pairs = recipe.draw_pairs(protocol, protocol.test_splits()[0])
    print(to_text(recipe.compare_trained(protocol, pairs, [recipe.Trained.load(args.out)])))


if __name__ == "__main__":
    main()
