"""What a DeepSpeed configuration must not say, and what it must."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning_so.errors import ConfigError


class Refusal(NamedTuple):
    """An option that cannot stay as it is."""

    #: Where it is in the configuration, joined by dots.
    option: str
    #: Whether a value of it is refused; the value is None where the configuration does not have it.
    wrong: Callable[[Any], bool]
    #: What it would break.
    why: str
    #: What to do instead.
    remedy: str


def _enabled(value: Any) -> bool:
    return value.get("enabled", True) if isinstance(value, dict) else bool(value)


def _offloads(value: Any) -> bool:
    device = value.get("device") if isinstance(value, dict) else value
    return device not in (None, False, "none")


def _half(value: Any) -> bool:
    return _enabled(value) and "16" in str(value.get("dtype")) and "b" not in str(value.get("dtype"))


REFUSALS = (
    Refusal(
        "managed_gradient_accumulation",
        lambda value: value is not None and not value,
        "gradients would be reduced inside the engine's step, after everything that reads them",
        "Remove it, or set it to true.",
    ),
    Refusal(
        "zero_optimization.offload_optimizer",
        _offloads,
        "the optimizer's state and step move to the CPU or to a disk, where nothing of this package was tested",
        "Remove it (offload_optimizer=False); a higher ZeRO stage saves memory too.",
    ),
    Refusal(
        "zero_optimization.offload_param",
        _offloads,
        "weights move to the CPU or to a disk, where nothing of this package was tested",
        "Remove it (offload_parameters=False); the more ranks, the less each of them holds.",
    ),
    Refusal(
        "zero_optimization.zero_quantized_gradients",
        bool,
        "gradients would be rounded to a few bits before they are averaged",
        "Remove it.",
    ),
    Refusal(
        "zero_allow_untested_optimizer",
        lambda value: value is not None and not value,
        "DeepSpeed would refuse every optimizer but its own and Adam",
        "Remove it: it is set to true for you.",
    ),
    Refusal(
        "amp",
        _enabled,
        "the loss scale would live in Apex, where gradients cannot be unscaled from here",
        "Use precision='bf16-mixed' or '16-mixed'.",
    ),
    Refusal(
        "torch_autocast",
        _half,
        "the loss scale would live in a scaler inside the engine, where gradients cannot be unscaled from here",
        "Use dtype 'bfloat16', or precision='16-mixed'.",
    ),
)


def find(config: dict[str, Any], option: str) -> Any:
    """The value of an option.

    Args:
        config: The configuration.
        option: Where it is, joined by dots.

    Returns:
        The value, None where there is none.

    Example:
        >>> find({"zero_optimization": {"stage": 2}}, "zero_optimization.stage")
        2
    """
    value: Any = config
    for part in option.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration that second-order training can go with.

    Args:
        config: What the user has, which is not changed.

    Returns:
        A copy, completed by what untested optimizers (all of torch's but Adam) need.

    Raises:
        ConfigError: If an option would break the mathematics or is not supported.

    Example:
        >>> checked({"zero_optimization": {"stage": 2}})["zero_allow_untested_optimizer"]
        True
    """
    for refusal in REFUSALS:
        value = find(config, refusal.option)
        if refusal.wrong(value):
            raise ConfigError(
                f"the DeepSpeed configuration has {refusal.option}={value!r}: {refusal.why}. {refusal.remedy}"
            )
    return {"zero_allow_untested_optimizer": True, **copy.deepcopy(config)}
