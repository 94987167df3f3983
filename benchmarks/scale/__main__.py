"""How steps, bytes and memory go with the number of ranks: 1 to 1,024 of them, five models, three methods.

    python -m benchmarks.scale

Every figure is that of the planner (`lightning-so plan`), which runs the training's own schedule, owners and traffic on
tensors without numbers; only speeds are put in: of a device as floating-point operations a second, of a network as GB a
second and a hop's microseconds. The defaults are H100s, eight a machine, NVLink inside and InfiniBand between.

Nothing is measured here; `benchmarks.scale.measured` sets the same figures beside real ranks.
"""

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scale.model import GPUS, METHODS, STRATEGIES, point
from benchmarks.scale.models import MODELS
from benchmarks.shared.table import append, headed, show
from lightning_so.cli.planning.network import network_of
from lightning_so.cli.planning.speeds import Speeds

RANKS = [2**k for k in range(11)]


def main() -> None:
    """Plan, append a JSON line a point, print a table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, device = parser.add_argument, Speeds()
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    add("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    add("--ranks", nargs="+", type=int, default=RANKS)
    add("--training", type=float, default=device.training, help="FLOP/s of the training's own products")
    add("--products", type=float, default=device.products, help="FLOP/s of second order's products")
    add("--solves", type=float, default=device.solves, help="FLOP/s of the modelled cost of solves")
    add("--network", default="infiniband", help="between machines: a name, or GB a second @ microseconds of a hop")
    add("--inside", default="nvlink", help="inside a machine")
    add("--out", type=Path, default=Path("benchmarks/scale/results/scale.jsonl"), help="lines are appended")
    args = parser.parse_args()
    device = Speeds(args.training, args.products, args.solves)
    network = replace(
        network_of(args.network, cpu=False, nodes=2, gpus=GPUS), inside=network_of(args.inside, cpu=False, nodes=1)
    )
    for name in args.models:
        lines = list[dict[str, Any]]()
        for method in args.methods:
            for strategy, ranks in ((s, r) for s in args.strategies for r in args.ranks):
                if (strategy == "hsdp" and ranks <= GPUS) or (strategy == "fsdp" and ranks == 1):
                    continue  # Where it is another strategy.
                begun = time.process_time()
                lines.append(point(name, method, strategy, ranks, device, network))
                lines[-1]["plan_cpu_s"] = round(time.process_time() - begun, 3)
                lines[-1]["plan_peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        facts = {"training": device.training, "products": device.products, "solves": device.solves}
        append(args.out, ({**line, **facts, "network": args.network, "inside": args.inside} for line in lines))
        heads = [
            "method",
            "strategy",
            "ranks",
            "mean ms",
            "own ms",
            "x",
            "jitter",
            "exchange ms",
            "solves ms",
            "floor ms",
        ]
        table = headed([*heads, "curvature MB a step", "GB a rank"], name, left=2)
        for line in lines:
            table.add_row(
                line["method"],
                line["strategy"],
                str(line["ranks"]),
                *(f"{line[key]:.1f}" for key in ("mean_ms", "own_ms")),
                f"{line['mean_ms'] / line['own_ms']:.3f}",
                f"{line['jitter']:.2f}",
                *(f"{line[key]:.2f}" for key in ("exchange_ms", "solves_ms", "floor_ms")),
                f"{1e-6 * line['sent']['curvature']:.2f}",
                f"{1e-9 * sum(line['memory'].values()):.2f}",
            )
        show(table)


if __name__ == "__main__":
    main()
