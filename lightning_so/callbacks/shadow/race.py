"""The race of a training and its twin: who has which loss at which of its steps, and what that foretells."""

import time
from array import array
from collections import deque
from typing import Any

import torch
from torch import Tensor

from lightning_so.callbacks.shadow.prediction import Prediction, predict
from lightning_so.callbacks.shadow.twin import Rates, Twin, rates
from lightning_so.callbacks.strategies import is_deepspeed
from lightning_so.errors import ConfigError

#: Losses are read from the device when so many wait.
WAITING = 256
#: At most so many losses of each are in a recording.
SAMPLES = 200
#: What is logged is foretold anew when there are so many times as many steps.
LATER = 1.1


class Curve:
    """The loss at each step, read from the device now and then."""

    def __init__(self) -> None:
        """No step yet."""
        self._read, self._waiting = array("d"), list[Tensor]()

    def add(self, loss: Tensor) -> None:
        """Note the loss of a step, a scalar."""
        self._waiting.append(loss.reshape(()))
        if len(self._waiting) >= WAITING:
            self.values()

    def __len__(self) -> int:
        """How many steps."""
        return len(self._read) + len(self._waiting)

    def values(self) -> list[float]:
        """The losses: the host waits for those that were not read."""
        if self._waiting:
            self._read.extend(torch.stack(self._waiting).double().tolist())
            self._waiting.clear()
        return list(self._read)


class Race:
    """Has a twin take every so many steps of a training: its own step s with the hyper-parameters of the training's.

    The training is only looked at: its losses, and its hyper-parameters before each step.
    """

    def __init__(self, twin: Twin, every: int) -> None:
        """Begin where both are the same.

        Args:
            twin: The twin, which has taken no step.
            every: It takes every so many steps.
        """
        self._twin, self._every = twin, every
        self.training, self.copy = Curve(), Curve()
        self._rates, self._now = deque[Rates](), list[dict[str, Any]]()
        self._logged = 0
        self._foretold: Prediction | None = None
        self._seconds, self._ours = 0.0, 0.0
        self._losses: tuple[list[Tensor], list[Tensor]] = ([], [])

    def before_step(self, optimizer: Any) -> None:
        """Note what is new in the hyper-parameters of the training's step: the twin takes them in their order."""
        before, self._now = self._now, rates(optimizer)
        self._rates.append([changed(*pair) for pair in zip(before or [{} for _ in self._now], self._now, strict=True)])

    def after_batch(self, batch: Any, index: int, loss: Tensor | None, *, stepped: bool) -> None:
        """Note a micro-batch's loss; have the twin take it too, where that is due.

        Args:
            batch: The micro-batch.
            index: Its number.
            loss: The training's, over the number of micro-batches; None where there was none.
            stepped: Whether the training's optimizer has stepped after it.
        """
        if loss is None:
            return
        training, copy = self._losses
        training.append(loss.detach())
        if len(self.training) % self._every == 0:
            begun = time.perf_counter()
            copy.append(self._twin.gradient(batch, index, last=stepped))
            if stepped and self._rates:
                self._twin.step(self._rates.popleft())
                self.copy.add(torch.stack(copy).sum())
            self._seconds += time.perf_counter() - begun
        if stepped:
            self.training.add(torch.stack(training).sum())
            self._losses = ([], [])

    def end(self) -> None:
        """Let the twin go."""
        self._twin.end()

    # ---------------------------------------------------------------- what it foretells

    def prediction(self) -> Prediction | None:
        """See `prediction.predict`."""
        return predict(self.training.values(), self.copy.values())

    @property
    def dearer(self) -> float:
        """Host seconds of the method in a step of the twin, over those of all else in it."""
        ours = sum(self._twin.engine.stopwatch.seconds.values())
        return ours / (self._seconds - ours) if self._seconds > ours else 0.0

    def scalars(self) -> dict[str, float]:
        """What is logged."""
        found = {"so/shadow_time_share": self.dearer, "so/shadow_mem_gb": self._twin.bytes() / 1e9}
        if (
            len(self.training) > LATER * self._logged
        ):  # It is of all steps so far: as they grow, it is asked less often.
            self._logged, self._foretold = len(self.training), self.prediction()
        if self._foretold is not None:
            found["so/shadow_steps_share"] = self._foretold.share
        return found

    def text(self) -> str:
        """One line: what the method would have needed."""
        method, prediction = self._twin.engine.plan.method.split("(")[0], self.prediction()
        taken = f"{len(self.copy)} steps of {len(self.training)} on a copy"
        if prediction is None:
            return f"Shadow: {taken} are too few to say what {method} would have needed."
        how = "seen" if prediction.seen else "extrapolated"
        return (
            f"Shadow: {method} would have needed {prediction.share:.0%} of the steps to the loss of the last ones, at "
            f"{self.dearer:.0%} more time a step ({how}, from {taken})."
        )

    def recording(self) -> dict[str, Any]:
        """What a recording keeps, in JSON's types; see its format."""
        prediction, copy, training = self.prediction(), self.copy.values(), self.training.values()
        apart = max(1, -(-len(copy) // SAMPLES))
        samples = [
            {"step": step + 1, "base": training[step], "method": copy[step]} for step in range(0, len(copy), apart)
        ]
        return {
            "method": self._twin.engine.plan.method,
            "steps_share": None if prediction is None else prediction.share,
            "seconds_share": self.dearer,
            "samples": samples,
            "memory": self._twin.bytes(),
            "text": self.text(),
        }


def changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a group that are not what they were; tensors always, which only the device knows."""
    kept = object()
    return {name: value for name, value in now.items() if isinstance(value, Tensor) or before.get(name, kept) != value}


def refuse(trainer: Any, module: Any) -> None:
    """Refuse trainings that cannot be copied.

    Args:
        trainer: The Trainer.
        module: The LightningModule.

    Raises:
        ConfigError: If ranks hold pieces or average in a way of their own, under manual optimization, or with a scaled
            loss.
    """
    family = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    got = None
    if is_deepspeed(trainer.strategy) or {"FSDPStrategy", "ModelParallelStrategy"} & set(family):
        got = f"{family[0]}, where no rank has the whole of a weight", "Use 'ddp' or one process"
    elif getattr(trainer.strategy, "_ddp_comm_hook", None) is not None:
        got = "a ddp_comm_hook, by which gradients are not the mean of the ranks'", "Leave the hook out"
    elif not module.automatic_optimization:
        got = "manual optimization, where training_step steps the optimizers itself", "Use automatic optimization"
    elif str(trainer.precision).startswith("16"):
        got = f"precision {trainer.precision}, whose losses are scaled", "Use 'bf16-mixed' or '32-true'"
    if got is not None:
        raise ConfigError(
            f"SecondOrder(shadow=True) trains a copy beside a training of one process, or of DDP, with automatic "
            f"optimization; this one has {got[0]}. {got[1]}, or leave shadow out."
        )
