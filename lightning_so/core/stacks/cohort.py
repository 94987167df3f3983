"""The blocks of one stack that share an action at a step, with the lists that batched calls need."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.contract.block import Block
from lightning_so.contract.method import Action
from lightning_so.core.host import Host
from lightning_so.core.stacks.runs import Run, runs
from lightning_so.core.stacks.stack import Stack
from lightning_so.errors import ConfigError, TrustError


@dataclass(eq=False)
class Cohort:
    """The blocks of one stack that share an action, kept until one changes its action or loses its gradient.

    So no step rebuilds the lists.

    Attributes:
        stack: The stack.
        action: What happens to its blocks.
        rows: Indices into the stack, or None for all of them.
        blocks: The blocks.
        runs: Where they lie in parameters.
        params: The parameter of each tensor that they are number by number: each weight before its bias; all parts of a
            parameter in one, or each in its own.
        saved: Where each of these is saved.
        groups: Param group index -> positions in `blocks`.
        of_group: Param group index -> positions in `params`.
        cut: Whether any of its parameters has parts that are each a tensor of their own.
        lent: Its biases without a gradient, and the one that each is lent for a step; see `step.lending`.
        observed: Steps at which the gradients were seen.
        applied: Steps at which the action was finished.
    """

    stack: Stack
    action: Action
    rows: list[int] | None
    blocks: list[Block]
    runs: list[Run]
    params: list[Tensor]
    saved: list[Tensor]
    groups: dict[int, list[int]]
    of_group: dict[int, list[int]]
    cut: bool
    lent: dict[Tensor, Tensor]
    observed: int = 0
    applied: int = 0

    @property
    def joined(self) -> bool:
        """Whether one of `params` is several blocks."""
        return len(self.params) < len(self.blocks)

    def of_blocks(self, host: Host, fact: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """A fact of each block's param group, looked up once a group.

        Args:
            host: The training.
            fact: Gives it of a param group.

        Returns:
            One a block.
        """
        facts = {number: fact(host.group(number)) for number in self.groups}
        return [facts[block.group] for block in self.blocks]


def split(stack: Stack, live: list[int], actions: list[Action], absent: Collection[Tensor]) -> list[Cohort]:
    """Split the live rows of a stack by action.

    Args:
        stack: The stack.
        live: Rows whose weight has a gradient.
        actions: Action of each live row.
        absent: Parameters without a gradient.

    Returns:
        One cohort an action that occurs.
    """
    cohorts = []
    for action in Action:
        rows = [row for row, chosen in zip(live, actions, strict=True) if chosen is action]
        if not rows:
            continue
        blocks = [stack.blocks[row] for row in rows]
        found = runs(stack, rows)
        tensors = [(run.param, saved, run.blocks[0].group) for run in found for saved in run.saved]
        cohorts.append(
            Cohort(
                stack,
                action,
                None if len(rows) == len(stack.blocks) else rows,
                blocks,
                found,
                [param for param, *_ in tensors],
                [saved for _, saved, _ in tensors],
                _by_group(block.group for block in blocks),
                _by_group(group for *_, group in tensors),
                not all(run.whole for run in found),
                {b.bias: torch.zeros_like(b.bias) for b in blocks if b.bias is not None and b.bias in absent},
            )
        )
    return cohorts


def _by_group(groups: Iterable[int]) -> dict[int, list[int]]:
    """Positions by param group, of the group at each position."""
    found: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        found.setdefault(group, []).append(position)
    return found


def refuse_sparse(blocks: list[Block]) -> None:
    """Refuse sparse gradients.

    Args:
        blocks: Blocks that have a gradient.

    Raises:
        ConfigError: If one of them is sparse.
    """
    name = next(
        (block.parameter for block in blocks if block.param.grad is not None and block.param.grad.is_sparse), None
    )
    if name:
        raise ConfigError(
            f"{name} has a sparse gradient, which no matrix method can use: route it to the base, "
            f"route={{'base': [{name!r}]}}."
        )


def _parameter(model: nn.Module, name: str) -> Tensor | None:
    """What a model has under a name; None if that is no parameter, as where wrappers were stripped from it."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Parameter) else None


def refuse_replaced(blocks: list[Block], host: Host) -> None:
    """Refuse blocks in whose place the model trains another parameter, which no optimizer step reaches.

    Args:
        blocks: Blocks that have lost their gradient.
        host: The training; where ranks hold pieces, its parameters are not looked at.

    Raises:
        TrustError: If there is one.
    """
    if host.access.sharded or host.access.local:
        return
    for block in blocks:
        now = _parameter(host.model, block.parameter)
        if now is None or now is block.param or not now.requires_grad:
            continue
        tied = {id(param) for param in host.model.parameters()}
        if id(block.param) not in tied and not any(now is param for param in host.params):
            raise TrustError(
                f"{block.parameter} was replaced in mid-training: {type(host.optimizer).__name__} has the old tensor, "
                f"which gets no gradient any more, and nothing trains the new one. Put the new one into its groups "
                f"(optimizer.param_groups[{block.group}]['params']), or change the old one in place."
            )
