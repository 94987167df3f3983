"""Lightning's DeepSpeed strategy with the right scale of the loss, on CPU too. Importing this imports deepspeed."""

import argparse
import importlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_fabric.utilities.seed import reset_seed
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from lightning_so.comm import group_of
from lightning_so.errors import ConfigError, MissingError, installed_by
from lightning_so.strategies.deepspeed_config import checked
from lightning_so.strategies.deepspeed_files import WholeFiles
from lightning_so.strategies.names import twins

try:
    deepspeed: Any = importlib.import_module("deepspeed")
except ImportError as error:
    raise MissingError(
        f"lightning_so.strategies.deepspeed needs deepspeed, which cannot be imported ({error}). "
        f"Install it: {installed_by('deepspeed')}, with DS_BUILD_OPS=0 where there is no compiler."
    ) from error

__all__ = ["CLASSES", "SecondOrderDeepSpeedStrategy"]


class _Corrected(WholeFiles):
    """The corrections, to stand before the DeepSpeedStrategy of either import name of Lightning."""

    #: Under other DeepSpeed strategies `SecondOrder` does not run.
    for_second_order = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Check the configuration before any process is started."""
        super().__init__(*args, **kwargs)
        if self.config is not None:
            self.config = checked(self.config)

    def setup_environment(self) -> None:
        """Allow CPUs besides GPUs.

        Raises:
            ConfigError: If DeepSpeed has chosen another kind of device than a Trainer on CPU has.
        """
        if self.root_device.type != "cpu":
            super().setup_environment()
            return
        chosen = deepspeed.accelerator.get_accelerator().device_name()
        if chosen != "cpu":
            raise ConfigError(
                f"the Trainer is on CPU, but DeepSpeed has chosen {chosen!r} when it was imported. "
                "Set DS_ACCELERATOR=cpu in the environment before Python starts, or use accelerator='gpu'."
            )
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Set up the processes; on CPU nothing is compiled, and devices have no index that could be checked."""
        if self.root_device.type != "cpu":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        # No compatible op: else the kernel for shared memory is compiled here, and a run that is killed meanwhile
        # leaves a lock on which every later run waits.
        with _swapped(deepspeed.ops, "__compatible_ops__", defaultdict(bool)):
            self._init_deepspeed_distributed()

    def _init_deepspeed_distributed(self) -> None:
        """Have the groups that DeepSpeed makes, too, wait for a rank as long as `timeout` says."""
        super()._init_deepspeed_distributed()
        deepspeed.comm.comm.cdb.new_group = group_of

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Back-propagate a loss that Lightning has divided by the number of micro-batches, and do not divide again.

        Args:
            closure_loss: The loss over the number of micro-batches (in manual optimization: the loss).
            optimizer: The optimizer.
            args: For the engine's `backward`.
            kwargs: For the engine's `backward`; `scale_wrt_gas=True` brings the second division back.

        Returns:
            The loss.
        """
        kwargs.setdefault("scale_wrt_gas", False)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def _setup_model_and_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with self._placed():
            engine, optimizer = super()._setup_model_and_optimizer(*args, **kwargs)
        _check_scale(engine)
        return engine, optimizer

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        with self._placed():
            super()._initialize_deepspeed_inference(model)

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Tell engines which device is theirs where it has no index: None cannot be compared, -1 drops the world."""
        if self.root_device.index is not None:
            yield
            return
        original = deepspeed.initialize

        def initialize(args: Any = None, **kwargs: Any) -> Any:
            return original(args=argparse.Namespace(device_rank=self.local_rank), **kwargs)

        with _swapped(deepspeed, "initialize", initialize):
            yield


class SecondOrderDeepSpeedStrategy(_Corrected, DeepSpeedStrategy):
    """DeepSpeed (ZeRO stages 0 to 3) with the gradient that the Trainer was asked for.

    Over N micro-batches of losses l_i (`accumulate_grad_batches=N`), Lightning hands `l_i / N` to the engine, which
    divides by N again, so that the stock strategy steps with

        g = 1/N² Σ_i ∇l_i    in place of    g = 1/N Σ_i ∇l_i.

    Adam hides the factor; SGD, clipping, damping and trust regions do not. This strategy steps with the second.

    It runs on CPU too (gloo, nothing compiled), and completes a configuration by what optimizers of torch need. Short
    groups of micro-batches at the end of an epoch go on into the next, as DeepSpeed has it.

    Checkpoints are folders, which DeepSpeed reads at the same stage and world size; or, with `full_checkpoint`, one
    file, which every strategy reads. `ckpt_path` may be a folder of the first kind or any file with whole tensors.

    `Trainer(strategy="deepspeed_so_stage_1")`, `_2` and `_3` make it after `import lightning_so`. In a Trainer of
    `lightning.pytorch` the names do too; with arguments, its class is `CLASSES["lightning.pytorch"]`.

    Args:
        args: As for Lightning's `DeepSpeedStrategy`.
        kwargs: As for Lightning's `DeepSpeedStrategy`: `stage`, `config`, ...; and `full_checkpoint`, whether a
            checkpoint is one file, written by rank 0, which has to hold the weights and the optimizer's state.

    Raises:
        ConfigError: If the configuration has `managed_gradient_accumulation: false`, `offload_optimizer`,
            `offload_param`, `zero_quantized_gradients`, `zero_allow_untested_optimizer: false`, or fp16 whose loss
            scale cannot be read.

    Example:
        >>> SecondOrderDeepSpeedStrategy(stage=1).config["zero_optimization"]["stage"]
        1
    """


#: The strategy for each import name of Lightning that is installed.
CLASSES = twins(SecondOrderDeepSpeedStrategy)
# By its own name, too: a class that a module does not hold cannot be pickled.
LightningSecondOrderDeepSpeedStrategy = CLASSES.get("lightning.pytorch")


def _check_scale(engine: Any) -> None:
    """Under fp16 gradients carry the loss scale until the engine's step: it must be known.

    Args:
        engine: DeepSpeed's engine.

    Raises:
        ConfigError: If it runs in fp16 and its optimizer does not tell the scale.
    """
    if engine.fp16_enabled() and not hasattr(engine.optimizer, "loss_scale"):
        raise ConfigError(
            f"DeepSpeed runs in fp16 with {type(engine.optimizer).__name__}, which does not tell its loss scale: "
            "gradients cannot be unscaled. Use precision='bf16-mixed', or a ZeRO stage from 1 to 3."
        )


@contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a module another attribute for a while.

    Args:
        owner: The module.
        name: The attribute, which may be one that the module makes when it is asked for.
        value: What it is meanwhile.
    """
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
