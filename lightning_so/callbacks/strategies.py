"""Which of Lightning's strategies `SecondOrder` runs under, and where they keep the numbers of parameters."""

from typing import Any

from torch.optim import Optimizer

from lightning_so.comm import Access, access_of
from lightning_so.core.errors import ConfigError

#: Strategies of several processes, by the names of their classes under either import name of Lightning.
SUPPORTED = ("DDPStrategy", "ModelParallelStrategy", "FSDPStrategy")


def check(trainer: Any) -> None:
    """Refuse a strategy that is not supported, before anything is set up.

    Args:
        trainer: The Trainer.

    Raises:
        ConfigError: If the strategy is another.
    """
    family = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    deepspeed = "DeepSpeedStrategy" in family  # Which derives from DDPStrategy.
    if deepspeed or (trainer.world_size > 1 and not set(SUPPORTED) & set(family)):
        raise ConfigError(
            f"SecondOrder runs in one process and under {', '.join(SUPPORTED)} in this version; the Trainer has "
            f"{trainer.world_size} process(es) with {family[0]}. Use strategy='ddp', or ModelParallelStrategy where "
            f"the model is too large for it."
        )


def access(trainer: Any, optimizer: Optimizer) -> Access:
    """Where the numbers of an optimizer's parameters are, once the strategy has set them up."""
    return access_of((p for group in optimizer.param_groups for p in group["params"]), trainer.strategy.model)
