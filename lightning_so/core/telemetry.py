"""The few scalars that are logged, under stable names."""

import time

from lightning_so.core.engine import Engine
from lightning_so.core.step import slopes
from lightning_so.core.trust.memory import state_bytes
from lightning_so.core.trust.proof import staleness, work


def summary(engine: Engine) -> str:
    """What was done, in one line, and the blocks of which nothing was seen."""
    parts, step = engine.parts, engine.report.step
    oldest, _ = staleness(parts.units, step)
    parameter = {block.name: block.parameter for block in engine.plan.blocks}
    unseen = [done.name for done in work(parts.units, parts.roster, step) if not done.observed]
    idle = dict.fromkeys(parameter[name] for name in unseen)  # of its parts all or none have a gradient
    kinds = {"mean" if recorder.facts.mean else "sum" for recorder in engine.recorders}
    loss = f"; the loss is a {kinds.pop()} over samples" if kinds else ""
    return (
        f"{engine.plan.method} on {engine.plan.base}: {engine.report}, the oldest basis {oldest} "
        f"steps old" + loss + (f"; never a gradient: {', '.join(idle)}" if idle else "")
    )


class Telemetry:
    """Reads an engine now and then; times are means over the steps since the last reading.

    They are host times: on an accelerator what waits on the device is not in them.
    """

    def __init__(self, engine: Engine) -> None:
        """Begin the first interval."""
        self.engine = engine
        self._mark = self._now()

    def _now(self) -> tuple[float, float, float, float, int]:
        seconds = self.engine.stopwatch.seconds
        total, solving = sum(seconds.values()), seconds.get("solve", 0.0)
        return time.perf_counter(), total, solving, self.engine.host.world.seconds, self.engine.report.tried

    def scalars(self) -> dict[str, float]:
        """The values by name, and the start of the next interval."""
        last, self._mark = self._mark, self._now()
        wall, ours, solving, talking, steps = (b - a for a, b in zip(last, self._mark, strict=True))
        report, parts = self.engine.report, self.engine.parts
        oldest, p95 = staleness(parts.units, report.step)
        per_step = 1e3 / max(steps, 1)
        return {
            "so/overhead_frac": ours / wall if wall > 0 else 0.0,
            "so/solve_ms": solving * per_step,
            "so/comm_ms": talking * per_step,
            "so/state_mem_gb": state_bytes(parts.units, parts.matrices) / 1e9,
            "so/staleness_max": float(oldest),
            "so/staleness_p95": float(p95),
            "so/rotated_blocks": float(report.rotated),
            "so/bent_blocks": float(report.bent),
            "so/bent_length": slopes.longest(parts.roster),
            "so/preconditioned_blocks": float(report.preconditioned),
            "so/silent_layers": float(sum(len(recorder.silent) for recorder in self.engine.recorders)),
            "so/solves": float(report.solves),
            "so/solve_fallbacks": float(report.retries + report.failures),
            "so/cooled_blocks": float(report.cooled),
            "so/skipped_steps": float(report.skipped),
            "so/withheld_gradients": float(report.withheld),
            "so/coverage_params": report.coverage,
            **({} if parts.overhead is None else parts.overhead.scalars()),
            **({} if parts.balance is None else parts.balance.scalars()),
        }
