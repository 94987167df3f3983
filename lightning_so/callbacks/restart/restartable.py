"""The callback that saves when a cluster takes the machine away."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_so.callbacks.names import Callback
from lightning_so.callbacks.restart import checkpoints, lock, manifest, start
from lightning_so.callbacks.restart.flags import Flags
from lightning_so.callbacks.restart.lock import Lock
from lightning_so.callbacks.restart.place import local
from lightning_so.callbacks.restart.requeue import ASKED, requeue
from lightning_so.callbacks.restart.shared import exchanged, told
from lightning_so.comm import Local, ambient
from lightning_so.errors import ConfigError, StateError, check_count

#: What rank 0 says in the place of a signal's number once another training has taken its folder.
LOST = 1 << 16


class Stopped(SystemExit):
    """Ends the process once its state is saved; the exit status is 128 + the signal's number, as a shell has it."""


class Restartable(Callback):
    """Save at the next step boundary when a signal comes, requeue the SLURM job, and end; go on from there.

    A signal sets a flag. At every step the ranks agree, in an exchange that nobody waits for, on whether one of them
    has one, and all save at the same boundary: into a file of another name, flushed to the disk, then renamed. Then
    rank 0 puts the job back into the queue (SIGUSR1, or SIGTERM while the job is being preempted; not after
    `scancel`), and every process ends with status 128 + the signal's number. Lightning's own handlers, which save and
    broadcast in the middle of whatever the ranks are doing, are put aside for the time of the fit.

    A resumed training equals one that was not stopped if the loader knows its place (`state_dict` and
    `load_state_dict`, as `ResumableLoader`); with another one the epoch begins anew, which is said at the start.

    Beside every checkpoint lies a manifest with the checksum of its bytes, which is compared before it is used. The
    folder is this training's for the time of the fit: another one that wants it is refused.

    Args:
        folder: Where checkpoints are, on a disk that all nodes share; for this training alone.
        every: Steps between two checkpoints without a signal, for crashes; 0 for none.
        keep: Checkpoints to keep.
        signals: Names of the signals.
        requeue: Whether to put the SLURM job back into the queue.

    Raises:
        ConfigError: If an argument is wrong.

    Example:
        >>> restartable = Restartable("runs/never", every=500)
        >>> restartable.newest() is None  # trainer.fit(model, data, ckpt_path=restartable.newest())
        True
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 0,
        keep: int = 2,
        signals: Sequence[str] = ("SIGUSR1", "SIGTERM"),
        requeue: bool = True,
    ) -> None:
        """Check the arguments; signals are touched when a fit starts."""
        check_count("Restartable", "every", every, 0, 1_000_000_000)
        check_count("Restartable", "keep", keep, 1, 1_000_000)
        self.folder = local("Restartable", folder)
        self.every, self.keep, self.requeue = every, keep, requeue
        self.signals = tuple(signals) if not isinstance(signals, str) else signals
        Flags(self.signals)
        self._clear()

    def _clear(self) -> None:
        self._flags: Flags | None = None
        self._comm: Local | None = None
        self._lock: Lock | None = None
        self._answer: Callable[[], int] | None = None
        self._step = 0
        self._chosen: Path | None = None
        self._damaged: list[Path] = []

    def newest(self) -> Path | None:
        """The checkpoint to go on from, for `fit(ckpt_path=...)`: the newest that is as it was written.

        A file is read whole for it, on every rank, as it is when it is loaded. Of a folder of pieces sizes are
        compared, and checksums once the fit begins, by all ranks together.

        Returns:
            Its path; None at the first start. Damaged ones are named on the way, and lose their name when the fit
            begins.

        Raises:
            StateError: If there are checkpoints, and none is whole.
        """
        damaged: dict[Path, str] = {}
        self._chosen = None
        for path in reversed(checkpoints.listed(self.folder)):
            try:
                checkpoints.check(path, contents=not path.is_dir())
            except StateError as error:
                damaged[path] = str(error)
                continue
            for other, said in damaged.items():
                rank_zero_only(print)(
                    f"Restartable: {said.partition(checkpoints.MOVE)[0]} Going on from {path.name}; the damaged one is "
                    f"{other.name}{checkpoints.DAMAGED} once the fit begins.",
                    flush=True,
                )
            self._chosen, self._damaged = path, list(damaged)
            return path
        if damaged:
            raise StateError(f"no checkpoint in {self.folder} is whole. {' '.join(damaged.values())}")
        return None

    # ---------------------------------------------------------------- start and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Hold signals back until the training has started; refuse a folder that is another's, or not all ranks'."""
        if stage != "fit":
            return
        if any(cls.__name__ == "_MultiProcessingLauncher" for cls in type(trainer.strategy.launcher).__mro__):
            raise ConfigError(
                "Restartable: processes that Lightning forks or spawns get no signal, and end without an exit status. "
                "Use strategy='ddp', torchrun or srun."
            )
        self._flags = Flags(self.signals)
        self._flags.hold()
        self._comm = ambient(sharded=False)
        self._lock = start.hold(self.folder, self._comm)
        start.see_folder(self.folder, self._comm)
        start.see_pieces(self._chosen, self._comm)
        if trainer.is_global_zero:
            for path in filter(Path.exists, self._damaged):
                checkpoints.aside(path)
            checkpoints.tidy(self.folder, self.keep)
            (self.folder / ASKED).unlink(missing_ok=True)
        self._damaged = []
        # Nobody looks into the folder before it is tidy.
        self._comm.anywhere([False])

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Take Lightning's handlers away, which are there by now."""
        if self._flags is not None:
            self._flags.take()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Answer signals from now on; see that all ranks go on from the same step."""
        assert self._flags is not None
        self._flags.catch()
        self._step = trainer.global_step
        assert self._comm is not None
        steps = exchanged(self._comm, self._step)
        if len(set(steps)) > 1:
            raise StateError(
                f"the ranks go on from different steps, {steps}: they have read different checkpoints. Look at "
                f"fit(ckpt_path=...) on every rank, and at {self.folder} on every node."
            )
        later = [path for path in checkpoints.listed(self.folder) if checkpoints.step_of(path) > self._step]
        if later:
            raise ConfigError(
                f"Restartable(folder={str(self.folder)!r}): the training starts at step {self._step}, and the folder "
                f"has {later[-1].name} of an earlier one. Go on from there, fit(ckpt_path=restartable.newest()), or "
                f"give another folder."
            )
        loader = trainer.train_dataloader
        if not hasattr(loader, "state_dict") and not isinstance(loader, (dict, list, tuple)):
            rank_zero_only(print)(
                f"Restartable: {type(loader).__name__} has no state_dict, so a restart within an epoch begins the "
                f"epoch's data anew; lightning_so.ResumableLoader goes on."
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At a step boundary: read what the ranks have agreed on, and ask again."""
        if trainer.global_step == self._step or self._flags is None:
            return
        before, self._step = self._step, trainer.global_step
        if (number := self._agreed()) > 0:
            self._stop(trainer, number)
        if self.every and before // self.every != self._step // self.every:
            self._save(trainer)
        self._answer = self._asked()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """A signal of the last steps: the run is saved, and what comes after it is done by the next one."""
        if (number := max(self._agreed(), self._asked()())) > 0:
            self._stop(trainer, number)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Lightning asks no teardown of callbacks then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the signals back."""
        flags, comm, held = self._flags, self._comm, self._lock
        # What a rank has asked and nobody will answer, after an error, lives until its group has ended.
        underway = self._answer
        self._clear()
        if held is not None:
            held.release()
        if comm is not None:
            comm.close()
        del underway
        if flags is not None:
            flags.release()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit."""
        kept = ("folder", "every", "keep", "requeue", "signals")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is not part of the fit."""
        self.__dict__.update(state)
        self._clear()

    # ---------------------------------------------------------------- inside

    def _asked(self) -> Callable[[], int]:
        """Start to ask whether a rank has got a signal, or the first one has lost its folder."""
        assert self._flags is not None
        assert self._comm is not None
        lost = self._lock is not None and self._lock.lost
        return self._comm.start_largest(LOST if lost else self._flags.received)

    def _agreed(self) -> int:
        """The signal that the ranks have agreed on at the last step; 0 for none."""
        answer, self._answer = self._answer, None
        return 0 if answer is None else answer()

    def _save(self, trainer: Any) -> Path:
        """Write a checkpoint, whole or not at all; every rank takes part."""
        assert self._comm is not None
        if self._comm.anywhere([self._lock is not None and not self._lock.ours()])[0]:
            self._refuse_lost()
        partial = self.folder / checkpoints.PARTIAL.format(self._step)
        path = self.folder / checkpoints.NAME.format(self._step)
        trainer.save_checkpoint(partial)
        if partial.is_dir():
            # Of pieces, which lie in the memory of the nodes that have written them.
            checkpoints.flush(partial)
        trainer.strategy.barrier()
        share = manifest.entries(partial, self._comm.rank, self._comm.ranks) if partial.is_dir() else {}
        shares = told(self._comm, share)
        if trainer.is_global_zero:
            checkpoints.publish(partial, path, {name: entry for share in shares for name, entry in share.items()})
            checkpoints.tidy(self.folder, self.keep)
        trainer.strategy.barrier()
        return path

    def _refuse_lost(self) -> None:
        raise StateError(
            f"{self.folder} is not this training's any more: its lock {lock.NAME} is gone, or another training has "
            "taken it, which did not see this one live (asleep, or cut off from the disk). Nothing is written over: "
            "end one of the two, and give this one another folder if both are wanted."
        )

    def _stop(self, trainer: Any, number: int) -> None:
        """Save, requeue, end."""
        if number >= LOST:
            self._refuse_lost()
        assert self._flags is not None
        begin = time.perf_counter()
        path = self._save(trainer)
        if trainer.is_global_zero:
            what = requeue(number, self.folder) if self.requeue else "not to be requeued"
            print(
                f"Restartable: signal {number} at step {self._step}: {path} written in "
                f"{time.perf_counter() - begin:.1f} s; {what}.",
                flush=True,
            )
        # Nobody ends before: SLURM ends a job's other processes with the first that fails.
        trainer.strategy.barrier()
        self._flags.received = 0
        # Lightning starts these itself, and kills rank 0 if one of them fails.
        started = type(trainer.strategy.launcher).__name__ == "_SubprocessScriptLauncher" and trainer.local_rank > 0
        raise Stopped(os.EX_OK if started and not _external(trainer) else 128 + number)


def _external(trainer: Any) -> bool:
    """Whether srun or torchrun starts the processes."""
    return trainer.strategy.cluster_environment.creates_processes_externally
