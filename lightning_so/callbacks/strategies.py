"""Which of Lightning's strategies `SecondOrder` runs under, and where they keep the numbers of parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.comm import Access, access_of
from lightning_so.core.engine import Engine
from lightning_so.errors import ConfigError
from lightning_so.strategies.deepspeed_config import find

#: Strategies of several processes, by the names of their classes under either import name of Lightning.
SUPPORTED = ("DDPStrategy", "ModelParallelStrategy", "FSDPStrategy")
#: Our DeepSpeed strategies, one for each import name.
DEEPSPEED = "SecondOrderDeepSpeedStrategy"


def check(trainer: Any) -> None:
    """Refuse a strategy that is not supported, before anything is set up.

    Args:
        trainer: The Trainer.

    Raises:
        ConfigError: If the strategy is another.
    """
    family = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    if is_deepspeed(trainer.strategy):
        if not getattr(trainer.strategy, "for_second_order", False):
            raise ConfigError(
                f"SecondOrder runs under DeepSpeed with {DEEPSPEED}, which divides the loss once; the Trainer has "
                f"{family[0]}. Use strategy='deepspeed_so_stage_2' (1, 2 or 3), or {DEEPSPEED}(config=...)."
            )
        half = find(trainer.strategy.config or {}, "fp16.enabled")
        if str(trainer.precision).startswith("16") or half:
            raise ConfigError(
                f"SecondOrder under DeepSpeed runs with precision 32-true, bf16-mixed and bf16-true; the Trainer has "
                f"{trainer.precision}{' and fp16.enabled in the configuration' if half else ''}, where gradients carry "
                f"a loss scale until DeepSpeed's own step. Use precision='bf16-mixed'."
            )
        return
    if trainer.world_size > 1 and not set(SUPPORTED) & set(family):
        raise ConfigError(
            f"SecondOrder runs in one process and under {', '.join(SUPPORTED)} in this version; the Trainer has "
            f"{trainer.world_size} process(es) with {family[0]}. Use strategy='ddp', or ModelParallelStrategy where "
            f"the model is too large for it."
        )


def refuse_several(trainer: Any, kind: type) -> None:
    """Refuse a callback that the Trainer has more than once.

    Args:
        trainer: The Trainer.
        kind: The callback's class.

    Raises:
        ConfigError: If it has.
    """
    count = sum(isinstance(callback, kind) for callback in trainer.callbacks)
    if count > 1:
        raise ConfigError(f"{kind.__name__} is in the Trainer's callbacks {count} times; keep one.")


def is_deepspeed(strategy: Any) -> bool:
    """Whether a strategy is one of DeepSpeed's."""
    return any(cls.__name__ == "DeepSpeedStrategy" for cls in type(strategy).__mro__)


def client(optimizer: Any) -> Optimizer:
    """The torch optimizer inside Lightning's wrapper, and inside DeepSpeed's."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def optimizers(trainer: Any, owner: str) -> list[Optimizer]:
    """The optimizers of a Trainer, without wrappers.

    Args:
        trainer: The Trainer, once they are set up.
        owner: Who needs one.

    Returns:
        The optimizers.

    Raises:
        ConfigError: If `configure_optimizers` gave none, for which Lightning puts a stand-in.
    """
    found = [client(optimizer) for optimizer in trainer.optimizers]
    if not found or any(type(optimizer).__name__ == "_MockOptimizer" for optimizer in found):
        raise ConfigError(
            f"{owner}: configure_optimizers of {type(trainer.lightning_module).__name__} gave no optimizer (None), so "
            f"that there are no steps. Return one, such as torch.optim.AdamW(self.parameters()), or leave {owner} out."
        )
    return found


#: Lightning's callbacks that try steps out before the training.
FINDERS = ("LearningRateFinder", "BatchSizeFinder")


def finders(trainer: Any) -> list[str]:
    """Names of the Trainer's callbacks that search before the training, and take all callbacks away meanwhile."""
    # Subclasses that search at another time find our hooks on the optimizer.
    kinds = [type(callback) for callback in trainer.callbacks]
    return [kind.__name__ for kind in kinds if kind.on_fit_start.__qualname__.split(".")[0] in FINDERS]


def warn_of_finders(trainer: Any, stage: str) -> None:
    """Tell of callbacks that search before a fit, which run without us."""
    for name in finders(trainer) if stage == "fit" else ():
        rank_zero_warn(
            f"{name} searches without SecondOrder, since Lightning takes all callbacks away meanwhile: a learning "
            f"rate is that of the optimizer alone, and a batch size leaves no room for curvature."
        )


def access(trainer: Any, optimizer: Optimizer, sharding: str) -> Access:
    """Where the numbers of an optimizer's parameters are, once the strategy has set them up; see `access_of`."""
    params = (p for group in optimizer.param_groups for p in group["params"])
    return access_of(params, trainer.strategy.model, deepspeed_engine(trainer), sharding=sharding)


def engines(trainer: Any) -> list[Engine]:
    """Those of methods on layers, of all callbacks of a Trainer."""
    return [engine for callback in trainer.callbacks for engine in getattr(callback, "engines", ())]


def deepspeed_engine(trainer: Any) -> Any:
    """DeepSpeed's engine, once the strategy has set it up; None elsewhere."""
    return trainer.strategy.deepspeed_engine if is_deepspeed(trainer.strategy) else None


def half(trainer: Any, weights: Iterable[Tensor]) -> bool:
    """Whether gradients have half precision, by the Trainer, the weights or DeepSpeed's configuration.

    Args:
        trainer: The Trainer.
        weights: Those of the forward pass.

    Returns:
        Whether.
    """
    deepspeed = deepspeed_engine(trainer)
    autocast = deepspeed is not None and deepspeed.torch_autocast_enabled()
    return autocast or "16" in str(trainer.precision) or any(weight.itemsize == 2 for weight in weights)


def scaler(trainer: Any) -> Any:
    """The Trainer's GradScaler; None without."""
    return getattr(trainer.precision_plugin, "scaler", None)


def unscales_itself(trainer: Any, optimizer: Optimizer) -> bool:
    """Whether gradients have a loss scale before an optimizer's step, which a fused one takes out by itself."""
    return scaler(trainer) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)


def training_step(trainer: Any, *arguments: Any) -> Any:
    """The training step again, as the Trainer runs it; of DeepSpeed's engine only what changes the numbers.

    The engine's own forward would count the pass, and scale what comes back and reduce it. The module is called with
    its hooks, by which stage 3 gathers weights.

    Args:
        trainer: The Trainer.
        arguments: Of the module's `training_step`.

    Returns:
        What it gives.
    """
    strategy, deepspeed = trainer.strategy, deepspeed_engine(trainer)
    if deepspeed is None:
        return strategy.training_step(*arguments)
    module, on = strategy.lightning_module, deepspeed.torch_autocast_enabled()
    autocast = torch.autocast(strategy.root_device.type, deepspeed.torch_autocast_dtype() if on else None, enabled=on)
    with strategy.precision_plugin.train_step_context(), autocast:
        return strategy._forward_redirection(module, module, "training_step", *arguments)


def averaged(trainer: Any, module: Any) -> Any:
    """Another module of a training with DDP, with gradients that are averaged over ranks; None in one process."""
    return trainer.strategy._setup_model(module) if trainer.world_size > 1 else None


def passed(trainer: Any, averaged: Any, module: Any, arguments: tuple[Any, ...]) -> Any:
    """The training step of another module.

    Args:
        trainer: The Trainer.
        averaged: See `averaged`.
        module: The module.
        arguments: Of its `training_step`.

    Returns:
        What it gives.
    """
    if averaged is None:
        return module.training_step(*arguments)
    return trainer.strategy._forward_redirection(averaged, module, "training_step", *arguments)


def steps_now(trainer: Any) -> bool:
    """Whether the optimizer is about to step: DeepSpeed has Lightning ask at every micro-batch."""
    return not is_deepspeed(trainer.strategy) or trainer.strategy.deepspeed_engine.is_gradient_accumulation_boundary()


def left_out(trainer: Any, engine: Engine) -> bool:
    """Whether a step that has not come was left out by the Trainer's GradScaler, as gradients were not finite.

    Args:
        trainer: The Trainer.
        engine: The engine, of which nothing was asked.

    Returns:
        Whether; without gradients there was no step to make.
    """
    access = engine.host.access
    return scaler(trainer) is not None and any(access.grad(param) is not None for param in engine.host.params)


def overlap(trainer: Any, engines: list[Engine]) -> list[Any]:
    """Have statistics leave during the backward pass, where the strategy tells when.

    Args:
        trainer: The Trainer.
        engines: Its engines.

    Returns:
        Handles that end it.
    """
    if not hasattr(trainer.strategy, "listen"):
        return []
    return [trainer.strategy.listen(engine.gradients_ready) for engine in engines]
