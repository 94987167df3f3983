"""The blocks of one stack that share an action at a step, with the lists that batched calls need."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.contract.method import Action
from lightning_so.core.stacks.stack import Stack
from lightning_so.errors import ConfigError


@dataclass(eq=False)
class Cohort:
    """The blocks of one stack that share an action, kept until one changes its action or loses its gradient.

    So no step rebuilds the lists.

    Attributes:
        stack: The stack.
        action: What happens to its blocks.
        rows: Indices into the stack, or None for all of them.
        blocks: The blocks.
        params: Their parameters, each weight before its bias; one that several blocks are parts of comes again.
        runs: The same, each once, and the blocks in a row that are parts of it; none of a whole one.
        saved: Where each parameter is saved.
        groups: Param group index -> positions in `blocks`.
        of_group: Param group index -> positions in `params`.
        lent: Its biases without a gradient, and the one that each is lent for a step; see `step.lending`.
        observed: Steps at which the gradients were seen.
        applied: Steps at which the action was finished.
    """

    stack: Stack
    action: Action
    rows: list[int] | None
    blocks: list[Block]
    params: list[Tensor]
    runs: list[tuple[Tensor, list[Block]]]
    saved: list[Tensor]
    groups: dict[int, list[int]]
    of_group: dict[int, list[int]]
    lent: dict[Tensor, Tensor]
    observed: int = 0
    applied: int = 0


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
        parts, groups = stack.parts, dict[int, list[int]]()
        for position, block in enumerate(blocks):
            groups.setdefault(block.group, []).append(position)
        of_group = {g: [parts * at + part for at in found for part in range(parts)] for g, found in groups.items()}
        cohorts.append(
            Cohort(
                stack,
                action,
                None if len(rows) == len(stack.blocks) else rows,
                blocks,
                [param for block in blocks for param in block.params],
                _runs(blocks),
                [saved for row in rows for saved in stack.saved[row]],
                groups,
                of_group,
                {b.bias: torch.zeros_like(b.bias) for b in blocks if b.bias is not None and b.bias in absent},
            )
        )
    return cohorts


def _runs(blocks: list[Block]) -> list[tuple[Tensor, list[Block]]]:
    """See `Cohort.runs`."""
    runs: list[tuple[Tensor, list[Block]]] = []
    for block in blocks:
        if block.part is None:
            runs += [(param, []) for param in block.params]
        elif runs and runs[-1][0] is block.param:
            runs[-1][1].append(block)
        else:
            runs.append((block.param, [block]))
    return runs


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
