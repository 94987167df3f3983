"""What modes of `Memory` hold and what they cost, on square layers: bytes a byte of the parameters, and CPU time.

    python -m benchmarks.steps.memory

Between steps: the optimizer's moments and all that curvature has, counted, beside what the plan promises. Inside one:
how far the process grows over the same training without an optimizer's step, at its most (its resident pages, by
Linux, where malloc gives back what is freed), each mode in a process of its own, less what a small training grows by,
which is code; the most is in the first steps, when many units are solved at once. Beside it stands what the planner
foretells (`lightning-so plan`). Time is process CPU time of `optimizer.step`, one thread, of modes that take
turns step by step, over that of the method in full.
"""

import argparse
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks.shared.table import append, headed, machine, show
from benchmarks.steps.sharded_memory import Equal
from lightning_so import EKFAC, KFAC, SOAP, Memory, Muon, SecondOrder, Shampoo, attach
from lightning_so.cli.planning.memory import of_rank
from lightning_so.cli.planning.rehearsal import assembled
from lightning_so.cli.planning.weightless import gradients
from lightning_so.cli.planning.world import World
from lightning_so.core.trust.memory import state_bytes

#: Width of a training that is small beside code.
SMALL = 16
BOTH = {"half": True, "sides": "short"}
#: Methods, and of each the modes, None for curvature in full.
METHODS: dict[str, tuple[Any, Sequence[dict[str, Any] | None]]] = {
    "soap": (SOAP(start=4, period=8, cap=1024), (None, {}, {"half": True}, {"sides": "short"}, BOTH)),
    "kfac": (KFAC(period=8, cap=1024), (None, {})),
    "ekfac": (EKFAC(start=4, period=8, cap=1024), (None, {}, {"half": True})),
    "shampoo": (Shampoo(period=8, cap=1024), (None, {})),
    "muon": (Muon(), (None, {})),
}


class Training:
    """AdamW and a method on equal layers, on batches of a seed."""

    def __init__(self, blocks: int, width: int, name: str | None, mode: dict[str, Any] | None) -> None:
        """Make it.

        Args:
            blocks: Layers.
            width: Of each.
            name: Of the method; None for no optimizer.
            mode: Of its memory.
        """
        torch.manual_seed(0)
        self.model, self.batches, self.width = Equal(blocks, width), torch.Generator().manual_seed(0), width
        self.optimizer, self.engine = None, None
        if name is not None:
            memory = None if mode is None else Memory(**mode)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
            self.engine = attach(self.model, self.optimizer, METHODS[name][0], memory=memory)

    def step(self) -> float:
        """One step; CPU seconds of the optimizer's."""
        x = torch.randn(64, self.width, generator=self.batches)
        self.model.zero_grad()
        loss = (self.model(x) - x.roll(1, 1)).square().sum(1).mean()
        if self.engine is not None:
            self.engine.before_backward(loss)
        loss.backward()
        begin = process_time()
        if self.optimizer is not None:
            self.optimizer.step()
        return process_time() - begin

    @property
    def between(self) -> int:
        """Bytes of the optimizer and of curvature."""
        assert self.optimizer is not None
        assert self.engine is not None
        for stack in self.engine.stacks:
            if stack.slopes is not None:
                stack.slopes.drop()  # Not at a step that is measured along.
        self.engine.restore()
        states = self.optimizer.state.values()
        moments = sum(v.nbytes for state in states for v in state.values() if torch.is_tensor(v) and v.ndim)
        return moments + state_bytes(self.engine.parts.units, self.engine.parts.matrices)


def bytes_of(module: nn.Module) -> int:
    """Those of its parameters."""
    return sum(param.nbytes for param in module.parameters())


def most(blocks: int, width: int, steps: int, name: str | None, mode: dict[str, Any] | None) -> tuple[int, int, str]:
    """In a process of its own: the most resident bytes of a training, what is held between steps, and its plan."""
    torch.set_num_threads(1)
    training = Training(blocks, width, name, mode)
    for _ in range(steps):
        training.step()
    pages = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert pages is not None
    plan = "" if training.engine is None else str(training.engine.plan)
    return 1024 * int(pages[1]), training.between if name else 0, plan


def foretold(model: nn.Module, method: Any, memory: Memory | None) -> int:
    """Bytes that the planner counts of AdamW and a method on a model without numbers, but its weights and gradients."""
    gradients(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options = SecondOrder(method, memory=memory).options
    parts = assembled(World().host(model, optimizer, 0), options, torch.device("cpu"))
    found = of_rank(World(), model, [parts], foreach=False, lag=0)
    return sum(found.values()) - found["weights"] - found["gradients"]


def seconds(blocks: int, width: int, steps: int, name: str) -> list[float]:
    """Of each mode, the median CPU time of a step, of steps that take turns; the first ones apart."""
    torch.set_num_threads(1)
    modes = METHODS[name][1]
    trainings = [Training(blocks, width, name, mode) for mode in modes]
    taken = [[training.step() for training in trainings] for _ in range(steps)]
    return [median(of_mode[steps // 2 :]) for of_mode in zip(*taken, strict=True)]


def said(mode: dict[str, Any] | None) -> str:
    """A mode as one writes it."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in (mode or {}).items())
    return "in full" if mode is None else f"Memory({arguments})"


def apart(call: Any, *arguments: Any) -> Any:
    """A call in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def lines(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One a method and mode."""
    size = args.blocks, args.width, args.steps
    weights = bytes_of(Equal(args.blocks, args.width))
    small = 1, SMALL, args.steps
    nothing, bare = (apart(most, *of, None, None)[0] for of in (size, small))
    found = []
    for name in args.methods:
        code = apart(most, *small, name, None)[0] - bare
        times = apart(seconds, *size, name)
        for mode, taken in zip(METHODS[name][1], times, strict=True):
            inside, between, plan = apart(most, *size, name, mode)
            model, memory = Equal(args.blocks, args.width).to("meta"), None if mode is None else Memory(**mode)
            promised = re.search(r"(\d+\.\d+) bytes a byte of the parameters", plan)
            found.append(
                {
                    "method": name,
                    "mode": said(mode),
                    "blocks": args.blocks,
                    "width": args.width,
                    "between": round(between / weights, 3),
                    "planned": float(promised[1]) if promised else None,
                    "inside": round((inside - nothing - code) / weights, 2),
                    "foretold": round(foretold(model, METHODS[name][0], memory) / weights, 2),
                    "time": round(taken / times[0], 3),
                    **machine("cpu"),
                }
            )
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure, print a table, append the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", choices=list(METHODS), nargs="+", default=list(METHODS))
    add("--blocks", type=int, default=16)
    add("--width", type=int, default=512)
    add("--steps", type=int, default=24)
    add("--out", type=Path, default=Path("benchmarks/steps/results/memory_held.jsonl"), help="lines are appended")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = lines(args)
    append(args.out, found)
    heads = ["method", "mode", "between", "planned", "inside", "foretold", "time"]
    title = f"Bytes a byte of the parameters, {args.blocks} matrices of {args.width} x {args.width}"
    table = headed(heads, title, left=2)
    for line in found:
        table.add_row(*(str(line[head]) for head in heads))
    show(table)


if __name__ == "__main__":
    main()
