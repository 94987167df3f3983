"""Where the numbers of parameters, gradients and the optimizer's moments are on this rank.

Whole here; subclasses say it of sharded parameters. A shard is a range of a tensor's numbers in row-major order, which
may be empty. Ranks hold them in their order: a rank's piece begins where the one before it ends, empty pieces too.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.errors import ConfigError

#: What a matrix is, where ranks hold pieces of it: the whole, or each piece for itself.
SHARDINGS = ("exact", "local")


class Access:
    """Whole parameters, equal on every rank: one process and DDP.

    Attributes:
        sharded: Whether ranks hold pieces of parameters, of which wholes are made.
        local: Whether each rank takes its piece for the whole, so that ranks have blocks of their own.
        remark: What the plan says of it.
    """

    sharded, local, remark = False, False, ""

    def shape(self, param: Tensor) -> torch.Size:
        """Shape of the whole parameter."""
        return param.shape

    def span(self, param: Tensor) -> tuple[int, int]:
        """First number of the whole parameter that this rank holds, and the one after the last."""
        return 0, self.shape(param).numel()

    def holds(self, param: Tensor) -> bool:
        """Whether this rank has a part of a parameter, and so of its gradient; all have of one without numbers."""
        first, last = self.span(param)
        return last > first or self.shape(param).numel() == 0

    def unfit(self, param: Tensor) -> str | None:
        """The reason why no method can work on a parameter where it is, or None."""
        return None

    def weight(self, param: Tensor) -> Tensor:
        """This rank's piece of what the optimizer steps on, changed in place; of any shape, in row-major order."""
        return param

    def grad(self, param: Tensor) -> Tensor | None:
        """This rank's piece of the reduced gradient, empty if the span is; None where there is none on any rank."""
        return param.grad

    def state(self, optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter, tensors as this rank's pieces, changed in place; empty at first."""
        return optimizer.state.get(param, {})

    def cleared(self, param: Tensor) -> bool:
        """Whether the gradient was set to none since the last backward pass, where that can be seen."""
        return param.grad is None

    def withhold(self, param: Tensor) -> Any:
        """Take the gradient from the optimizer's coming step, and give what `give_back` needs."""
        grad, param.grad = param.grad, None
        return grad

    def give_back(self, param: Tensor, withheld: Any) -> None:
        """Undo `withhold`."""
        param.grad = withheld

    def lend(self, param: Tensor, gradient: Tensor) -> None:
        """Give the optimizer's coming step a gradient of a parameter that has none; like the parameter itself."""
        param.grad = gradient

    def take_back(self, param: Tensor, gradient: Tensor) -> None:
        """Undo `lend`; nothing if it was not done."""
        if param.grad is gradient:
            param.grad = None

    def groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """The optimizer's param groups, with the model's parameters in them."""
        return optimizer.param_groups

    def group(self, optimizer: Optimizer, number: int) -> dict[str, Any]:
        """The hyper-parameters of one of them; its parameters need not be the model's."""
        return optimizer.param_groups[number]

    def calls(self) -> list[list[Tensor]] | None:
        """The parameters that each call of the optimizer's step finishes, in order; None where one finishes all."""
        return None


def private(owner: Any, name: str) -> Any:
    """An attribute that another package does not promise to keep.

    Args:
        owner: Whose.
        name: Which.

    Returns:
        The attribute.

    Raises:
        ConfigError: If it is not there.
    """
    missing = object()
    found = getattr(owner, name, missing)
    if found is missing:
        package = type(owner).__module__.split(".")[0]
        version = getattr(sys.modules.get(package), "__version__", "unknown")
        raise ConfigError(
            f"{package} {version}: {type(owner).__name__} has no {name}, from which pieces of parameters are found. "
            "Tested with torch 2.13 and deepspeed 0.19.8: install those, or tell us of the version."
        )
    return found
