"""The callback that notes what a run saw, and stops it where it is told to."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.callbacks.names import Callback
from lightning_so.callbacks.resume.fingerprint import random_state, rows, weights
from lightning_so.callbacks.second_order import SecondOrder
from lightning_so.core.engine import Engine


class Witness(Callback):
    """Notes batches, random state, learning rates and weights; every rank writes them to a file of its own at the end.

    Args:
        folder: Where the files go.
        mark: After how many steps names of the weights are noted.
        end: After how many steps the run ends.
        save: Where a checkpoint of the end goes; None for none.
    """

    def __init__(self, folder: Path, mark: int, end: int, save: Path | None = None) -> None:
        """Nothing seen yet."""
        self.folder, self.mark, self.end, self.save = folder, mark, end, save
        #: By steps done before it: a step's place in the epoch, its micro-batches, names of their rows, random state
        #: before the first of them, generators that it drew from, learning rates.
        self.steps: dict[int, dict[str, Any]] = {}
        self.marked: dict[str, str] = {}
        self.start: dict[str, str] = {}
        self._random: dict[str, str] = {}

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """The weights that the run starts from."""
        self.start = weights(whole_weights(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """What the step is about to see."""
        self._random = random_state()
        step = self.steps.setdefault(
            trainer.global_step,
            {
                "rows": [],
                "place": batch_idx,
                "batches": 0,
                "random": self._random,
                "drawn": [],
                "rates": [float(group["lr"]) for each in trainer.optimizers for group in each.param_groups],
            },
        )
        step["rows"] += rows(batch)
        step["batches"] += 1

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Which generators the step drew from; then save and stop, if it was the last."""
        now = random_state()
        # The optimizer may have counted on: the batch belongs to the step that was noted last.
        step = self.steps[next(reversed(self.steps))]
        step["drawn"] = sorted({*step["drawn"], *(name for name in now if now[name] != self._random.get(name))})
        if trainer.global_step >= self.mark and not self.marked:
            self.marked = weights(whole_weights(trainer))
        if trainer.global_step >= self.end:
            if self.save is not None:
                trainer.save_checkpoint(self.save)
            # Not by max_steps: learning rate schedules and others read it, and it must be the same in every run.
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Write what was seen; the weights from one rank."""
        final = whole_weights(trainer)
        engines = [engine for each in trainer.callbacks if isinstance(each, SecondOrder) for engine in each.engines]
        facts = {
            "steps": self.steps,
            "start": self.start,
            "marked": self.marked,
            "ended": trainer.global_step,
            "ranks": trainer.world_size,
            "strategy": type(trainer.strategy).__name__,
            "plans": [_plan(engine) for engine in engines],
            "counts": [engine.report.portable() for engine in engines],
            "kinds": [each.state for each in trainer.callbacks if isinstance(each, SecondOrder)],
        }
        if trainer.is_global_zero:
            facts["weights"] = {name: value.detach().cpu() for name, value in final.items()}
        torch.save(facts, self.folder / f"rank{trainer.global_rank}.pt")


def _plan(engine: Engine) -> list[str]:
    """The plan without costs and owners, which hang on the number of ranks; in which ways, but not how it was found."""
    plan = engine.plan
    return [
        f"{plan.method} on {plan.base}, {engine.parts.chosen.ways}",
        *(f"{row.name}: {row.verdict}" for row in plan.rows),
    ]


def whole_weights(trainer: Any) -> dict[str, Tensor]:
    """All parameters and buffers, gathered where ranks hold parts: every rank must ask."""
    state = trainer.strategy.lightning_module_state_dict()
    return {
        name: getattr(value, "full_tensor", lambda value=value: value)()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
