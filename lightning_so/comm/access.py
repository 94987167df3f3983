"""Where the numbers of parameters, gradients and the optimizer's moments are on this rank.

Whole here; subclasses say it of sharded parameters. A shard is a range of a tensor's numbers in row-major order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Access:
    """Whole parameters, equal on every rank: one process and DDP.

    Attributes:
        sharded: Whether ranks hold pieces of parameters.
    """

    sharded = False

    def shape(self, param: Tensor) -> torch.Size:
        """Shape of the whole parameter."""
        return param.shape

    def span(self, param: Tensor) -> tuple[int, int]:
        """First number of the whole parameter that this rank holds, and the one after the last."""
        return 0, self.shape(param).numel()

    def weight(self, param: Tensor) -> Tensor:
        """This rank's piece of what the optimizer steps on, changed in place; of any shape, in row-major order."""
        return param.detach()

    def grad(self, param: Tensor) -> Tensor | None:
        """This rank's piece of the reduced gradient, changed in place; None where there is no gradient."""
        return param.grad

    def state(self, optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter, tensors as this rank's pieces, changed in place; empty at first."""
        return optimizer.state.get(param, {})
