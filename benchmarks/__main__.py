"""``python -m benchmarks [part ...] [--json FILE] [--threads N] [--clock cpu] [--quick]``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch

from benchmarks import aggregation, index, network, rest
from benchmarks.measuring import CLOCKS, Table, machine, use_clock

PARTS = {
    "matmul": network.rates,
    "aggregation": aggregation.run,
    "growth": aggregation.growth,
    "layer": network.layer,
    "step": network.training_step,
    "search": network.search,
    "index": index.run,
    "loader": rest.loader,
    "proposals": rest.proposals,
    "dp": rest.dynamic_programming,
    "import": rest.imports,
}


def main(arguments: list[str] | None = None) -> list[Table]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--json", default="benchmarks.json", help="where the figures go")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1, on a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, only to see it run")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}")
    if options.threads is not None:
        if options.threads < 1:
            parser.error("--threads takes a number of at least 1")
        torch.set_num_threads(options.threads)
    use_clock(options.clock)
    about = machine() | {"clock": options.clock}
    print("  ".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    tables = []
    for name in options.parts or PARTS:
        tables.append(PARTS[name](options.quick))
        print(f"\n{tables[-1].text()}", flush=True)
    with open(options.json, "w") as stream:
        json.dump({"machine": about, "tables": [asdict(t) for t in tables]}, stream, indent=1)
    return tables


if __name__ == "__main__":
    main()
