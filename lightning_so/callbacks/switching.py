"""What a running fit can be told: another method, or none; and what is tried beside it."""

from dataclasses import replace
from typing import Any

from torch import nn

from lightning_so.callbacks import strategies
from lightning_so.callbacks.clocked import Clocked
from lightning_so.callbacks.record.recorder import Recorder
from lightning_so.callbacks.shadow.asked import Shadow
from lightning_so.callbacks.shadow.race import Race, refuse
from lightning_so.callbacks.shadow.twin import Twin
from lightning_so.contract.method import Method
from lightning_so.core.engine import Engine
from lightning_so.core.options import Options, Part
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.switch import switch
from lightning_so.errors import ConfigError


class Switching(Clocked):
    """The part of `SecondOrder` that changes which method works, in mid-training.

    Attributes:
        engines: One an optimizer, while a fit runs.
        options: How they were asked to work.
        shadow: How the method is tried beside the training; None where it works from the start.
        foretold: What the last race has foretold, as a recording has it under "shadow"; None before its end.
    """

    engines: list[Engine]
    options: Options
    shadow: Shadow | None
    foretold: dict[str, Any] | None = None
    _race: Race | None = None
    _step = 0

    def promote(self) -> None:
        """Have the method work that was asked for: it watches until it is warm, then takes over, without a jump.

        Call it between two steps, on all ranks.

        Raises:
            ConfigError: If no fit runs, or a step is underway.
        """
        self._switch("promote", self.options)

    def switch(self, method: Method | Mixture | None) -> None:
        """Have another method work, or none: the base goes on alone, with plain moments, until the new one is warm.

        Call it between two steps, on all ranks, as in `on_train_batch_end`. A run that resumes from a checkpoint of
        later is started with the new method.

        Args:
            method: `SOAP()`, `KFAC()`, `Muon()`, ..., or a `Mixture` of rules; None for the base alone.

        Raises:
            ConfigError: If no fit runs, a step is underway, or optimizer, method and model do not fit together.
        """
        self._switch("switch", None if method is None else replace(self.options, mixture=Mixture.of(method)))

    def _switch(self, name: str, options: Options | None) -> None:
        if not self.engines:
            raise ConfigError(f"SecondOrder.{name}() is called without a running fit: call it from a callback of one.")
        for engine in self.engines:
            switch(engine, options)
        self._drop()

    @property
    def acting(self) -> list[Engine]:
        """The engines that do not rest."""
        return [engine for engine in self.engines if engine.part is not Part.RESTS]

    # ---------------------------------------------------------------- shadow

    def _check(self, trainer: Any, pl_module: nn.Module) -> None:
        """Refuse what the method cannot be tried beside."""
        if self.shadow is not None:
            refuse(trainer, pl_module)

    def _begin(self, trainer: Any, pl_module: nn.Module) -> None:
        """Hook the layers in; or try the method on a copy, where that was asked for and it does not work already."""
        self._step, self.foretold = trainer.global_step, None
        if self.shadow is not None:
            (engine,) = self.engines
            if not engine.report.step:  # Else the checkpoint is of after the promotion.
                engine.part = Part.RESTS
                self._race = Race(Twin(trainer, pl_module, engine.optimizer, self.options), self.shadow.every)
        for engine in self.engines:
            engine.arm()

    def _look(self, trainer: Any, outputs: Any, batch: Any, index: int) -> None:
        """Go on with the race after a micro-batch, and promote when that is due."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if self._race is not None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._race.after_batch(batch, index, loss, stepped=stepped)
            if stepped and trainer.log_every_n_steps and self._step % trainer.log_every_n_steps == 0:
                trainer.lightning_module.log_dict(self._race.scalars())
            if stepped and self.shadow is not None and self.shadow.promote_at == self._step:
                self.promote()

    def _note(self, optimizer: Any) -> None:
        """Note the hyper-parameters of a step that comes."""
        if self._race is not None:
            self._race.before_step(strategies.client(optimizer))

    def _drop(self, trainer: Any = None) -> None:
        """End the race, if there is one; say what it foretells, and have it recorded at the end of the training."""
        if self._race is not None:
            self.foretold = self._race.recording()
            self.engines[0].tell(self._race.text())
            self._race.end()
            self._race = None
        for callback in () if trainer is None else trainer.callbacks:
            if isinstance(callback, Recorder) and callback.recording is not None:
                callback.recording.shadow = self.foretold
