"""One fit as the recorder sees it: rows of steps, looks at layers, and the file that they go to.

What the device alone knows of a step (loss, norms) is sent to the host every `FLUSH` steps and read at the next time.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.callbacks.record.alarms import Alarms
from lightning_so.callbacks.record.facts import memory
from lightning_so.callbacks.record.of_engine import OfEngine
from lightning_so.callbacks.record.reading import Reading
from lightning_so.callbacks.record.turns import Turns
from lightning_so.comm import Access
from lightning_so.monitor.health import Health
from lightning_so.recording import file
from lightning_so.recording.recording import OF_LAYER, OF_UNITS, Event, Looks, Number, Recording

#: Steps after which what the device alone knows leaves for the host; steps between two norms of the whole gradient, and
#: between two looks at the outputs of layers.
FLUSH, NORM, LOOK = 16, 32, 100
#: Seconds after which a running training writes what it has.
PERIOD = 300.0
#: Seconds that a stage takes at least to be kept as a span.
LEAST = 1e-4


@dataclass(eq=False)
class Row:
    """A step: what the host knows, and what is still on the device."""

    known: dict[str, Number]
    device: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Sent:
    """What is on its way to the host.

    Attributes:
        rows: Rows, oldest first.
        places: Row and column of each number that is on its way.
        numbers: The numbers; None where there are none.
        looks: Looks at layers, with the step of each.
    """

    rows: list[Row]
    places: list[tuple[Row, str]]
    numbers: Reading | None
    looks: list[tuple[Looks, int, Reading]]


class Run:
    """What belongs to one fit.

    Attributes:
        recording: What is kept.
        engines: What the engines tell.
        step: The Trainer's steps at the last row.
    """

    def __init__(
        self,
        recording: Recording,
        path: Path,
        accesses: Mapping[Optimizer, Access],
        turns: Turns | None,
        health: Health,
        engines: Sequence[OfEngine],
    ) -> None:
        """Begin.

        Args:
            recording: What is kept.
            path: This rank's file.
            accesses: Where the gradients of each optimizer are, of those of which that is known.
            turns: Looks at weights; None where they cannot be looked at.
            health: Looks at the outputs of layers.
            engines: What engines tell, one each.
        """
        self.recording, self.engines, self.step = recording, engines, recording.began[1]
        self._path, self._accesses, self._turns, self._health = path, accesses, turns, health
        self._alarms, self._came = Alarms(), 0
        self._squares, self._losses = list[Tensor](), list[Tensor]()
        self._fresh, self._looks, self._sent = list[Row](), list[tuple[Looks, int, Reading]](), Sent([], [], None, [])
        self._open, self._seen = ExitStack(), False
        self._began = self._before = self._written = time.perf_counter()
        self._aside, self._left, self._failed = 0.0, 0.0, False
        for each in engines:
            each.engine.stopwatch.spans = []
        if turns is not None:
            shapes = [list(weight.access.shape(weight.param)) for weight in turns.weights]
            recording.layers = Looks([weight.name for weight in turns.weights], OF_LAYER, {"shapes": shapes})
        if health.names:
            more = {"width": health.widths, "readers": health.readers}
            recording.units = Looks(health.names, OF_UNITS, more)

    # ---------------------------------------------------------------- during a step

    def begin(self) -> None:
        """Before the passes of a micro-batch: look at outputs of layers until the step is made, if it is time."""
        units = self.recording.units
        # Not at the first step, at which functions may be compiled.
        if units is not None and self._came % LOOK == 1 and not self._seen:
            self._seen = True
            if units.kept.claim():
                self._open.callback(self._look, units)
                self._open.enter_context(self._health.look())

    def _look(self, units: Looks) -> None:
        self._looks.append((units, self.step, Reading(self._health.numbers())))

    def loss(self, loss: Tensor) -> None:
        """Take in the loss of a micro-batch, as it is added to those of the same step."""
        self._losses.append(loss.detach())

    @torch.no_grad()
    def before(self, optimizer: Optimizer) -> None:
        """Look at gradients and weights, before an optimizer's step.

        Args:
            optimizer: The optimizer; its gradients have no scale.
        """
        access = self._accesses.get(optimizer)
        if access is None:
            return
        if self._turns is not None:
            self._turns.before(optimizer)
        if self._came % NORM:
            return
        params = (param for group in access.groups(optimizer) for param in group["params"])
        gradients = [grad.detach() for grad in map(access.grad, params) if grad is not None and not grad.is_sparse]
        if gradients:
            norms = torch._foreach_norm(gradients)
            self._squares.append(torch.stack([norm.float() for norm in norms]).square().sum())

    @torch.no_grad()
    def row(self, step: int, of_trainer: dict[str, Number]) -> None:
        """Keep a step that was made.

        Args:
            step: The Trainer's steps.
            of_trainer: Columns that the Trainer knows.
        """
        now, self.step = time.perf_counter(), step
        wall, self._before, self._aside = now - self._before - self._aside, now, 0.0
        row = Row({"step": step, "seconds": now - self._began, "step_seconds": wall, **of_trainer})
        for each in self.engines:
            row.known |= each.row(wall)
            self._spans(each, step)
            for event in each.events(step):
                self.recording.events.add(event)
        self.recording.spans.append(("step", step, now - self._began - wall, wall, 0))
        row.device |= {
            name: total(parts) for name, parts in (("loss", self._losses), ("gradient", self._squares)) if parts
        }
        turned = [share for each in self.engines for share in each.turned()]
        if turned:
            row.device["drift"] = torch.stack([share.to(turned[0].device) for share in turned]).amax()
        self._losses, self._squares = [], []
        self._fresh.append(row)
        self._open.close()
        self._turn(step)
        self._came, self._seen = self._came + 1, False
        if self._came % FLUSH == 0:
            self.flush()
            if now - self._written > PERIOD:
                self.write("checkpoint")

    def _turn(self, step: int) -> None:
        """Look at the weights whose turn it was."""
        turns, layers = self._turns, self.recording.layers
        if turns is None or layers is None:
            return
        if (found := turns.after()) is not None:
            self._looks.append((layers, step, Reading(found.T)))
        if turns.begins:
            turns.on = layers.kept.claim()

    def _spans(self, each: OfEngine, step: int) -> None:
        """Keep who has solved what, and what took time."""
        here, watch = self.recording.rank, each.engine.stopwatch
        spans, watch.spans = watch.spans or [], []
        solved = each.solved()
        solving = sum(end - begin for name, begin, end in spans if name == "solve")
        for owner, blocks in solved.items():
            self.recording.solved.append((step, owner, solving if owner == here else None, blocks))
        for name, begin, end in spans:
            if end - begin >= LEAST:
                count = len(solved.get(here, ())) if name == "solve" else 0
                self.recording.spans.append((name, step, begin - self._began, end - begin, count))

    # ---------------------------------------------------------------- between steps

    def leave(self) -> None:
        """What comes now is no part of a step, as validation."""
        self._left = time.perf_counter()

    def come_back(self) -> None:
        """The step goes on."""
        self._aside += time.perf_counter() - self._left

    def flush(self) -> None:
        """Send off what is new, and keep what was sent off last time."""
        came, rows, looks = self._sent, self._fresh, self._looks
        self._fresh, self._looks = [], []
        places = [(row, column) for row in rows for column in row.device]
        numbers = Reading(torch.stack([row.device[column] for row, column in places])) if places else None
        self._sent = Sent(rows, places, numbers, looks)
        self._keep(came)

    def _keep(self, came: Sent) -> None:
        for (row, column), number in zip(came.places, came.numbers.numbers.tolist() if came.numbers else ()):
            row.known[column] = number
            row.device.clear()
        for where, step, numbers in came.looks:
            where.kept.put((step, numbers.numbers.tolist()))
        for row in came.rows:
            self.recording.add(row.known)
            found = self._alarms.see(int(row.known["step"] or 0), row.known.get("loss"))
            if found is not None:
                self.recording.events.add(Event(int(row.known["step"] or 0), found[0], "", found[1]))
                self.write(found[0], found[1])

    def end(self, why: str, message: str = "") -> None:
        """Wait for all that is on its way, and write the file.

        Args:
            why: It ends.
            message: What else is to be said.
        """
        self._open.close()
        self.flush()
        self.flush()
        self.write(why, message)
        for each in self.engines:
            each.engine.stopwatch.spans = each.engine.parts.turned = None

    def write(self, why: str, message: str = "") -> None:
        """Write what is kept; where that fails it is said once, and the training goes on.

        Args:
            why: It is written.
            message: What else is to be said.
        """
        params = [p for optimizer in self._accesses for group in optimizer.param_groups for p in group["params"]]
        curvature = sum(each.memory() for each in self.engines)
        self.recording.memory = memory(params, list(self._accesses), curvature)
        self.recording.facts["plan"] = "\n\n".join(each.plan() for each in self.engines) or None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file.write(self._path, self.recording.file(why, self.step, message))
        except OSError as error:
            if not self._failed:
                rank_zero_warn(f"Recorder: {self._path} cannot be written ({error}); the training goes on without.")
            self._failed = True
        self._written = time.perf_counter()


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors with one number each, as a number in single precision."""
    first, *rest = (part.reshape(()).float() for part in parts)
    return sum(rest, first)
