"""The training that an engine works in: model, optimizer, where numbers are, and how ranks talk. It never changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_so.actions import moments
from lightning_so.actions.moments import Base
from lightning_so.comm import Access, Local
from lightning_so.contract.block import Block, parts


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
        """The optimizer's states of a block's parameters; of a part, its own numbers of the moments, as views."""
        states = [self.access.state(self.optimizer, p) for p in block.params]
        if block.part is None:
            return states
        return [
            {k: self.own(block, [v])[0] if k in self.keys and torch.is_tensor(v) else v for k, v in state.items()}
            for state in states
        ]

    def own(self, block: Block, pieces: Sequence[Tensor]) -> list[Tensor]:
        """What this rank has of a block.

        Args:
            block: The block.
            pieces: This rank's pieces of its parameters, or of what is like them; one of each.

        Returns:
            The pieces themselves, or a view of what is the block's part.
        """
        return list(pieces) if block.part is None else self.parts(pieces[0], [block])

    def parts(self, piece: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
        """What this rank has of blocks that are parts of one parameter.

        Args:
            piece: This rank's piece of the parameter, its gradient or its moment.
            blocks: Blocks of that parameter, all of which are parts.

        Returns:
            Views, in the shapes of the blocks; where ranks hold pieces, flat ones, which may be empty.
        """
        if not self.access.sharded:
            return parts(piece, blocks)
        first, last = self.access.span(blocks[0].param)
        flat, found = piece.view(-1), list[Tensor]()
        for block in blocks:
            begin, end = (min(max(edge, first), last) - first for edge in block.span)
            found.append(flat[begin:end])
        return found

    def moments(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """The moments in the optimizer's state of a parameter."""
        return {key: state[key] for key in self.keys if torch.is_tensor(state.get(key))}

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
