"""The few scalars that are logged, under stable names."""

import time
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_so.core import proof

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


class Telemetry:
    """Reads an engine now and then; times are means over the steps since the last reading.

    They are host times: on an accelerator what waits on the device is not in them.
    """

    def __init__(self, engine: "Engine") -> None:
        """Begin the first interval."""
        self.engine = engine
        self._mark = self._now()

    def _now(self) -> tuple[float, float, float, float, int]:
        seconds = self.engine.stopwatch.seconds
        steps = self.engine.report.step + self.engine.report.skipped
        total, solving = sum(seconds.values()), seconds.get("solve", 0.0)
        return time.perf_counter(), total, solving, self.engine.peers.seconds, steps

    def scalars(self) -> dict[str, float]:
        """The values by name, and the start of the next interval."""
        last, self._mark = self._mark, self._now()
        wall, ours, solving, talking, steps = (b - a for a, b in zip(last, self._mark, strict=True))
        report, (oldest, p95) = self.engine.report, proof.staleness(self.engine)
        per_step = 1e3 / max(steps, 1)
        return {
            "so/overhead_frac": ours / wall if wall > 0 else 0.0,
            "so/solve_ms": solving * per_step,
            "so/comm_ms": talking * per_step,
            "so/state_mem_gb": state_bytes(self.engine) / 1e9,
            "so/staleness_max": float(oldest),
            "so/staleness_p95": float(p95),
            "so/rotated_blocks": float(report.rotated),
            "so/bent_blocks": float(report.bent),
            "so/preconditioned_blocks": float(report.preconditioned),
            "so/silent_layers": float(sum(len(recorder.silent) for recorder in self.engine.recorders)),
            "so/solves": float(report.solves),
            "so/solve_fallbacks": float(report.retries + report.failures),
            "so/cooled_blocks": float(report.cooled),
            "so/skipped_steps": float(report.skipped),
            "so/withheld_gradients": float(report.withheld),
            "so/coverage_params": report.coverage,
        }


def state_bytes(engine: "Engine") -> int:
    """Extra memory held: factors, windows, bases, saved parameters and work space."""
    tensors = [tensor for stack in engine.stacks for tensor in (stack.hidden, *held(stack.stats))]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_meta) + engine.layout.scratch.nbytes()


def held(stats: Any) -> Iterator[Tensor]:
    """All tensors in what a method keeps of a stack, at this moment."""
    if isinstance(stats, Tensor):
        yield stats
    elif isinstance(stats, list | tuple | dict):
        for part in stats.values() if isinstance(stats, dict) else stats:
            yield from held(part)
    elif is_dataclass(stats):
        yield from held(vars(stats))


def costs(engine: "Engine") -> dict[str, tuple[int, list[int]]]:
    """By block name, the extra bytes held for it (work space apart) and, where there are several, its units' owners.

    Args:
        engine: The engine.

    Returns:
        Both; where parameters are sharded, bytes on all ranks together.
    """
    found = {}
    for index, stack in enumerate(engine.stacks):
        rows, cols = stack.shape
        hidden = len(stack.blocks) * rows * cols * stack.hidden.itemsize
        size = hidden + sum(tensor.nbytes for tensor in held(stack.stats))
        for row, block in enumerate(stack.blocks):
            owners = sorted({engine.schedule.owner[unit] for unit in engine.units_of[index][row]})
            found[block.name] = size // len(stack.blocks), owners if engine.comm.ranks > 1 else []
    return found
