"""The flight recorder: what a training did in its last steps and as a whole, in one bounded file a rank."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.callbacks import strategies
from lightning_so.callbacks.clocked import Clocked
from lightning_so.callbacks.record.facts import facts
from lightning_so.callbacks.record.of_engine import OfEngine
from lightning_so.callbacks.record.run import Run
from lightning_so.callbacks.record.turns import Turns, Weight
from lightning_so.comm import Access
from lightning_so.comm.wrappers import clean
from lightning_so.errors import ConfigError, check_count
from lightning_so.monitor.health import Health
from lightning_so.recording.file import NAME
from lightning_so.recording.recording import Number, Recording

#: The folder of a recording, in that of the run.
FOLDER = "recording"


class Recorder(Clocked):
    """Record a training, and change nothing: weights are those of a run without it, bit for bit.

    Kept are the last steps whole and every k-th of the whole run: loss, gradient norm, learning rate, seconds; of each
    weight W the norms of W, of its gradient and of a step of it, in turns; of the outputs of layers dead and saturated
    units and effective rank; with `SecondOrder` the staleness of bases, solves with their seconds and owners, fallbacks
    and skipped steps, and the plan.

    Each rank writes one file, `<run>/recording/rank-0000.json.gz`, where <run> is the first logger's folder, or
    `default_root_dir`: at the end, at a loss that is not finite, at a spike of the loss, at an exception (SIGTERM is
    one), and every five minutes. What is there already is kept: the next recording is in `recording-2`. Files hold JSON
    alone; `lightning-so report <run>` makes a page of them.

    `SecondOrder` brings one of its own where the Trainer has a logger and no recorder. Nothing is recorded with
    `fast_dev_run`. Under
    DeepSpeed, whose gradients are not there before its step, and of fused steps that unscale gradients by themselves
    (without `SecondOrder`), norms of gradients are left out.

    Attributes:
        folder: Where the files of this fit are; None without a fit.

    Args:
        last: How many of the last steps are kept whole.
        root: The folder of the run; that of the first logger, or `default_root_dir`, by default.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> Recorder(last=200).last
        200
    """

    def __init__(self, last: int = 1000, root: str | None = None) -> None:
        """Check the arguments."""
        check_count("Recorder", "last", last, 1, 100_000)
        self.last, self.root = last, root
        self.folder: Path | None = None
        self._run: Run | None = None

    @property
    def recording(self) -> Recording | None:
        """What is kept of the fit that runs, or ran last; None before."""
        return None if self._run is None else self._run.recording

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit."""
        return {**self.__dict__, "folder": None, "_run": None}

    # ---------------------------------------------------------------- start and end

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin: a collective, as all ranks write into one folder."""
        self.folder, self._run = None, None
        if trainer.fast_dev_run:
            return
        root = Path(trainer.log_dir or trainer.default_root_dir if self.root is None else self.root)
        run, name = trainer.strategy.broadcast((secrets.token_hex(8), free(root)))
        self.folder = folder = root / name
        optimizers = [strategies.client(optimizer) for optimizer in trainer.optimizers]
        engines = [OfEngine(engine) for engine in strategies.engines(trainer)]
        owner = next((callback for callback in trainer.callbacks if getattr(callback, "engines", ())), None)
        accesses = accesses_of(trainer, optimizers)
        told = facts(trainer, optimizers, [each.engine for each in engines], owner)
        told["sharded"] = any(access.sharded for access in accesses.values())
        recording = Recording(run, trainer.global_rank, trainer.world_size, trainer.global_step, told, self.last)
        recording.spectra = next((each.spectra for each in trainer.callbacks if hasattr(each, "spectra")), [])
        turns = Turns(weights(pl_module, accesses)) if accesses else None
        path = folder / NAME.format(trainer.global_rank)
        self._run = Run(recording, path, accesses, turns, Health(pl_module), engines)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Write the file."""
        self._end("end")

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Write the file: Lightning makes an exception of SIGTERM, between two steps."""
        kind = type(exception).__name__
        why = "sigterm" if kind == "SIGTERMException" else "exception"
        self._end(why, f"{kind}: {exception}"[:500])

    def _end(self, why: str, message: str = "") -> None:
        if self._run is not None and self.folder is not None:
            self._run.end(why, message)
            self.folder = None

    # ---------------------------------------------------------------- one step

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Look at the outputs of layers, if it is time."""
        if self._run is not None:
            self._run.begin()

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Look at gradients, and at the weights that are to change."""
        client = strategies.client(optimizer)
        if self._run is not None and unscaled(trainer, client):
            self._run.before(client)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the step, if one was made."""
        run = self._run
        if run is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            run.loss(loss)
        if trainer.global_step > run.step:
            run.row(trainer.global_step, rate(trainer))

    def clocks(self) -> list[Run]:
        """The fit's own."""
        return [] if self._run is None else [self._run]


def join(trainer: Any, stage: str, recorder: bool | Recorder) -> None:
    """Have a Trainer record, unless it does already; without a logger there is no folder of the run to do it in.

    Args:
        trainer: The Trainer, before it sets anything up.
        stage: What it sets up for; only "fit" is recorded.
        recorder: Whether; or the recorder.
    """
    there = any(isinstance(callback, Recorder) for callback in trainer.callbacks)
    wanted = bool(trainer.loggers) if recorder is True else recorder is not False
    if stage == "fit" and wanted and not there:
        trainer.callbacks.append(Recorder() if recorder is True else recorder)


def free(root: Path) -> str:
    """The name of a folder for a recording that no other has."""
    name, number = FOLDER, 1
    while (root / name).exists():
        number += 1
        name = f"{FOLDER}-{number}"
    return name


def accesses_of(trainer: Any, optimizers: list[Optimizer]) -> dict[Optimizer, Access]:
    """Where the numbers of each optimizer's parameters are; empty where that is not known."""
    found = {engine.optimizer: engine.host.access for engine in strategies.engines(trainer)}
    if strategies.is_deepspeed(trainer.strategy):
        return {}
    for optimizer in optimizers:
        if optimizer not in found:
            try:
                found[optimizer] = strategies.access(trainer, optimizer, "exact")
            except ConfigError as error:
                rank_zero_warn(f"Recorder: norms of weights and gradients are left out, as {error}")
                return {}
    return found


def weights(pl_module: nn.Module, accesses: Mapping[Optimizer, Access]) -> list[Weight]:
    """The matrices that are trained, in the order of the model; of a model without any, all parameters."""
    owners = dict[Tensor, tuple[Optimizer, Access]]()
    for optimizer, access in accesses.items():
        params = (param for group in access.groups(optimizer) for param in group["params"])
        owners |= dict.fromkeys(params, (optimizer, access))
    named = [(clean(name), param) for name, param in pl_module.named_parameters() if param in owners]
    found = [Weight.of(name, param, *owners[param]) for name, param in named]
    return [each for each in found if len(each.access.shape(each.param)) > 1] or found


def unscaled(trainer: Any, optimizer: Optimizer) -> bool:
    """Whether gradients have no scale before an optimizer's step; `SecondOrder` takes it out of those of fused ones."""
    return not strategies.unscales_itself(trainer, optimizer) or bool(strategies.engines(trainer))


def rate(trainer: Any) -> dict[str, Number]:
    """The first optimizer's learning rate, where the host knows it."""
    value = trainer.optimizers[0].param_groups[0].get("lr")
    return {} if isinstance(value, Tensor) else {"lr": value}
