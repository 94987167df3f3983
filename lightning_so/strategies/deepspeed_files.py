"""Checkpoint files of a DeepSpeed training that any strategy reads, and files of any strategy that it reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric.utilities.cloud_io import get_filesystem
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.comm import Sharded, access_of
from lightning_so.comm.access.zero import ZeroAccess
from lightning_so.errors import StateError
from lightning_so.strategies import deepspeed_whole as whole
from lightning_so.strategies.deepspeed_whole import Gathering


class WholeFiles(DeepSpeedStrategy if TYPE_CHECKING else object):
    """Reads files with whole tensors, and writes them where it is told to; folders stay DeepSpeed's.

    To stand before the DeepSpeedStrategy of either import name of Lightning.
    """

    def __init__(self, *args: Any, full_checkpoint: bool = False, **kwargs: Any) -> None:
        """Nothing is read or written yet."""
        super().__init__(*args, **kwargs)
        self.full_checkpoint = full_checkpoint
        self._groups: list[list[Tensor]] = []
        self._comm: Sharded | None = None
        self._reads_file = False

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Optimizer | None, *args: Any, **kw: Any) -> Any:
        if optimizer is None:  # It is in the configuration, and gets what is trained.
            self._groups = [[param for param in model.parameters() if param.requires_grad]]
        else:  # DeepSpeed takes parameters that are not trained out of the groups, in which files have them.
            self._groups = [list(group["params"]) for group in optimizer.param_groups if group["params"]]
        found = super()._setup_model_and_optimizer(model, optimizer, *args, **kw)
        if self.full_checkpoint:
            access_of((), engine=found[0])  # What cannot be written is refused now, not at the first save.
        return found

    # ---------------------------------------------------------------- written

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on rank 0, in full checkpoints."""
        if not self.full_checkpoint:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        access = self._zero()
        gathering = None if access is None else self._gathering(access)
        found = whole.weights(self.lightning_module, gathering, frozen=not self.exclude_frozen_parameters)
        return found if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole state on rank 0, in full checkpoints."""
        access = self._zero() if self.full_checkpoint else None
        if access is None:
            return super().optimizer_state(optimizer)
        assert self.lightning_module is not None
        found = whole.optimizer_state(self.lightning_module, self._gathering(access))
        return found if self.is_global_zero else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write one file on rank 0, or DeepSpeed's folder.

        Args:
            checkpoint: What the Trainer has collected.
            filepath: Where to.
            storage_options: For the CheckpointIO, of files alone.
        """
        if not self.full_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        if not self.is_global_zero:
            return
        assert self.lightning_module is not None
        if self._zero() is not None:
            number = whole.numbers(self.lightning_module)
            for state in checkpoint.get("optimizer_states", ()):
                for group, params in zip(state["param_groups"], self._groups, strict=True):
                    group["params"] = [number[param] for param in params]
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    # ---------------------------------------------------------------- read

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a file on every rank, or have DeepSpeed read its folder.

        Args:
            checkpoint_path: Which.
            args: Lightning's, such as `weights_only`.
            kwargs: The same by name.

        Returns:
            What the Trainer goes on with.

        Raises:
            StateError: If it is a folder of another strategy's pieces, or no checkpoint of Lightning's.
        """
        path = self.broadcast(checkpoint_path)
        self._reads_file = not get_filesystem(path).isdir(str(path))
        if self._reads_file:
            checkpoint = self.checkpoint_io.load_checkpoint(path, *args, **kwargs)
            if "state_dict" not in checkpoint:
                raise StateError(
                    f"{path} is a file without a 'state_dict', so no checkpoint of Lightning's. Of what DeepSpeed has "
                    "written, give the folder."
                )
            return checkpoint
        if (Path(path) / "meta.pt").is_file():
            raise StateError(
                f"{path} is a folder of FSDP's pieces, which FSDP alone reads. Resume it there and save one file: "
                "ModelParallelStrategy(save_distributed_checkpoint=False), or FSDP1 with state_dict_type='full'."
            )
        return super().load_checkpoint(path, *args, **kwargs)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Load a file's weights; those of a folder are there already."""
        if not self._reads_file:
            super().load_model_state_dict(checkpoint, strict)
            return
        assert self.lightning_module is not None
        whole.read_weights(self.lightning_module, checkpoint["state_dict"], self._zero(), strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning hands over the optimizer's state: that of a file, unless weights alone are asked for."""
        if not self._reads_file or (self.load_full_weights and self.zero_stage_3):
            return super().lightning_restore_optimizer
        return True

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load the state of a file's optimizer; that of a folder is there already."""
        if not self._reads_file:
            super().load_optimizer_state_dict(checkpoint)
            return
        states = checkpoint["optimizer_states"]
        if len(states) != 1:
            raise StateError(f"the checkpoint has {len(states)} optimizers, and DeepSpeed trains with one.")
        if (access := self._zero()) is None:
            self.optimizers[0].load_state_dict(states[0])
        else:
            whole.read_optimizer(access, self._groups, states[0])
        self.deepspeed_engine.global_steps = checkpoint["global_step"]

    # ---------------------------------------------------------------- inside

    def teardown(self) -> None:
        """Give the process group back."""
        if self._comm is not None:
            self._comm.close()
            self._comm = None
        super().teardown()

    def _zero(self) -> ZeroAccess | None:
        """Where the pieces are; None in stage 0, and where nothing is trained."""
        engine: Any = self.deepspeed_engine
        found = access_of((), engine=engine) if getattr(engine, "basic_optimizer", None) else None
        return found if isinstance(found, ZeroAccess) else None

    def _gathering(self, access: ZeroAccess) -> Gathering:
        self._comm = self._comm or Sharded()
        return Gathering.of(access, self._comm)
