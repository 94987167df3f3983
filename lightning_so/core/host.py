"""The training that an engine works in: model, optimizer, where numbers are, and how ranks talk. It never changes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.actions import moments
from lightning_so.actions.moments import Base
from lightning_so.comm import Access, Local
from lightning_so.contract.block import Block


@dataclass(frozen=True, eq=False)
class Host:
    """A model, its optimizer and its ranks.

    Attributes:
        model: The model whose parameter names are used.
        optimizer: The base optimizer.
        base: Its entry in the registry.
        access: Where the parameters' numbers are.
        world: All ranks: what must happen on all of them or on none.
        team: The ranks that share the work; this one alone where ranks work apart.
    """

    model: nn.Module
    optimizer: Optimizer
    base: Base
    access: Access
    world: Local
    team: Local

    @classmethod
    def of(
        cls, model: nn.Module, optimizer: Optimizer, *, access: Access | None = None, world: Local | None = None
    ) -> "Host":
        """Look a training's base optimizer up, and take its ranks apart where they work on rows of their own.

        Args:
            model: The model.
            optimizer: The base optimizer.
            access: Where the parameters' numbers are; whole on every rank by default.
            world: How ranks talk; one process by default.

        Returns:
            The host.

        Raises:
            ConfigError: If the optimizer is not in the registry.
        """
        access, world = access or Access(), world or Local()
        return cls(model, optimizer, moments.lookup(optimizer), access, world, Local() if access.local else world)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's param groups."""
        return self.access.groups(self.optimizer)

    def group(self, number: int) -> dict[str, Any]:
        """The hyper-parameters of a param group."""
        return self.access.group(self.optimizer, number)

    @property
    def params(self) -> list[Tensor]:
        """The parameters of the optimizer, in its own order."""
        return [p for group in self.groups for p in group["params"]]

    @property
    def sizes(self) -> list[int]:
        """How many parameters each group has."""
        return [len(group["params"]) for group in self.groups]

    @property
    def calls(self) -> int:
        """How many calls make one step of the optimizer."""
        return len(self.access.calls() or [()])

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the moments that the optimizer may keep."""
        return (*self.base.first, *self.base.second)

    def states(self, block: Block) -> list[dict[str, Any]]:
        """The optimizer's states of a block's parameters."""
        return [self.access.state(self.optimizer, p) for p in block.params]

    def least_variance(self, block: Block) -> float:
        """See `moments.Base.least_variance`."""
        return self.base.least_variance(self.group(block.group))

    def couples_decay(self, block: Block) -> bool:
        """Whether decay joins the gradient of a block."""
        group = self.group(block.group)
        return not self.base.decoupled(group) and group["weight_decay"] != 0

    def anywhere(self, flag: bool) -> bool:
        """Whether something holds on any rank: a collective where ranks work apart, else the same on all."""
        return self.world.anywhere([flag])[0] if self.access.local else flag
