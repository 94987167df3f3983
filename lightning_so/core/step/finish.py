"""After the base's step: turn its updates, write the parameters back."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.actions.bend import bent
from lightning_so.contract.method import Action
from lightning_so.core.matrices.matrices import Item, _write
from lightning_so.core.stacks.cohort import Batch
from lightning_so.core.stacks.stack import turning

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def finish(engine: "Engine", call: int = 0) -> None:
    """Turn the updates that the base left in the hidden parameters, and write the parameters back.

    Args:
        engine: The engine.
        call: Which call of the base's step has ended.
    """
    ended = [batch for batch in engine.acting[::-1] if batch.blocks[0].call == call]
    lengths = _lengths(engine, [batch for batch in ended if batch.action is Action.BEND])
    engine.layout.through([_last(engine, batch, lengths.get(id(batch))) for batch in ended])


def _last(engine: "Engine", batch: Batch, lengths: Tensor | None) -> Item:
    """What makes the new weights of a batch."""
    stack, layout, weights = batch.stack, engine.layout, engine.layout.weights(batch)
    update = partial(layout.fill, batch, weights, 0)

    def write(buffer: Tensor) -> None:
        if lengths is not None:
            # An update without a direction stays as it is.
            buffer = torch.where(buffer.isnan(), update(), buffer)
        factors = [hide.shrink(g := engine.group(b.group), decoupled=engine.base.decoupled(g)) for b in batch.blocks]
        spread = partial(layout.each, batch)
        _write(
            engine, batch, weights, hide.combine(layout.saved(batch), buffer, factors, layout.room(batch, 1), spread)
        )
        engine.acting.remove(batch)
        batch.applied += 1

    if lengths is None:
        return Item(batch, update, partial(turning(stack).turn, stack.stats, rows=batch.rows, leave=True), write)

    def turned(X: Tensor) -> Tensor:
        return bent(stack.method.direction(stack.stats, X, batch.rows), lengths)

    return Item(batch, partial(_lookahead, engine, batch), turned, write)


def _lengths(engine: "Engine", batches: list[Batch]) -> dict[int, Tensor]:
    """Lengths of the updates in the hidden parameters, (k,) of every batch."""
    if not batches:
        return {}
    squares = [engine.layout.squares(batch, engine.layout.weights(batch)) for batch in batches]
    total = engine.layout.total(torch.cat([part.to(squares[0]) for part in squares])).sqrt()
    parts = total.split([len(batch.blocks) for batch in batches])
    return {id(batch): part.to(own) for batch, part, own in zip(batches, parts, squares, strict=True)}


def _lookahead(engine: "Engine", batch: Batch) -> Tensor:
    """The look-ahead first moment of a batch, in the second work space."""
    key, layout = engine.base.first[0], engine.layout
    moment = layout.fill(batch, engine.layout.moments(batch, key), 1)
    gradient = layout.fill(batch, engine.layout.gradients(batch), 2)
    weights = [engine.base.lookahead(engine.group(block.group)) for block in batch.blocks]
    a, b = weights[0]
    if len(batch.groups) == 1:
        return moment.mul_(a).add_(gradient, alpha=b)
    spread_a, spread_b = (layout.each(batch, torch.tensor(w).to(moment)) for w in zip(*weights, strict=True))
    return moment.mul_(spread_a).add_(gradient.mul_(spread_b))
