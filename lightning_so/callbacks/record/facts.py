"""What does not change in a run: who trains what, by which settings, on which versions."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.core.engine import Engine

PACKAGES = ("pytorch-lightning", "lightning", "lightning-so", "deepspeed")
#: Longest text of a setting.
LONGEST = 500


def facts(trainer: Any, optimizers: Sequence[Optimizer], engines: Sequence[Engine], callback: Any) -> dict[str, Any]:
    """What is told of a run.

    Args:
        trainer: The Trainer.
        optimizers: Its optimizers.
        engines: Its engines.
        callback: The SecondOrder that they are of; None without.

    Returns:
        Strings, numbers and booleans, and dicts of them.
    """
    params = [param for group in _groups(optimizers) for param in group["params"]]
    methods = dict.fromkeys(str(engine.plan.method) for engine in engines)
    return {
        "optimizer": ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers)),
        "method": ", ".join(methods) or None,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
        "device": str(trainer.strategy.root_device),
        "accumulate": trainer.accumulate_grad_batches,
        "parameters": sum(param.numel() for param in params),
        "settings": {**_optimizers(optimizers), **({} if callback is None else _second_order(callback, engines))},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, torch, and what is installed of `PACKAGES`."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found


def memory(params: Iterable[Tensor], optimizers: Sequence[Optimizer], curvature: int) -> dict[str, int]:
    """Bytes on this rank, by part.

    Args:
        params: Parameters, as they are on this rank.
        optimizers: Their optimizers.
        curvature: What the engines hold.

    Returns:
        The bytes.
    """
    params = list(params)
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    found = {
        "parameters": sum(_bytes(param) for param in params),
        "gradients": sum(_bytes(param.grad) for param in params if param.grad is not None),
        "optimizer": sum(_bytes(value) for value in states if torch.is_tensor(value)),
    }
    return found | ({"curvature": curvature} if curvature else {})


def _bytes(tensor: Tensor) -> int:
    """What this rank holds of a tensor."""
    local = getattr(tensor, "_local_tensor", tensor)
    return local.numel() * local.element_size()


def _groups(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _optimizers(optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """The settings of each one's first group."""
    found = {}
    for number, optimizer in enumerate(optimizers):
        name = type(optimizer).__name__
        group = {key: _plain(value) for key, value in optimizer.param_groups[0].items() if key != "params"}
        found[name if name not in found else f"{name} {number}"] = group
    return found


def _second_order(callback: Any, engines: Sequence[Engine]) -> dict[str, Any]:
    """The callback's options, and the settings of its methods."""
    found = {"SecondOrder": _dataclass(callback.options)}
    for method in (method for engine in engines for method in engine.parts.methods):
        found[type(method).__name__] = _dataclass(method) if is_dataclass(method) else {"is": _plain(method)}
    return found


def _dataclass(value: Any) -> dict[str, Any]:
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if not each.name.startswith("_")}


def _plain(value: Any) -> Any:
    """A setting as JSON has it; text where that is another."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)[:LONGEST]
