"""What happens to a batch of blocks around the base's step: precondition, or hide (and rotate), then finish."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.actions.precondition import Clip
from lightning_so.contract.method import Action
from lightning_so.core.matrices.matrices import Item, _write
from lightning_so.core.stacks.cohort import Batch
from lightning_so.core.stacks.stack import observer, turning
from lightning_so.core.step import rowwise

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def begin(engine: "Engine", batches: list[Batch]) -> None:
    """Everything before the base's step.

    Args:
        engine: The engine; its `acting` gets every batch whose parameters are hidden.
        batches: Those whose action is not BASE.
    """
    clips = _clips(engine)
    engine.layout.through([item for batch in batches for item in _items(engine, batch, clips[id(batch.stack.method)])])
    _apply(engine, clips.values())
    for batch in batches:
        if batch.action is not Action.PRECONDITION:
            weights = engine.layout.weights(batch)
            hide.save(weights, batch.saved)
            # Listed before it is hidden: an interrupt between the two lines must not lose a weight.
            engine.acting.append(batch)
            hide.hide(weights)


def _items(engine: "Engine", batch: Batch, clip: Clip) -> Iterable[Item]:
    """What changes the gradients of a batch, if something does."""
    stack, gradients = batch.stack, engine.layout.gradients(batch)
    seen = observer(stack) is not None and not engine.clipped
    source, sink = partial(engine.layout.fill, batch, gradients, 0), partial(_write, engine, batch, gradients)
    if batch.action is Action.PRECONDITION:
        rates = [engine.group(block.group)["lr"] for block in batch.blocks]
        clip.hold(gradients)
        if (products := rowwise.precondition(engine, batch)) is not None:
            clip.add(products, rates)
            return

        def precondition(X: Tensor) -> Tensor:
            update = stack.method.direction(stack.stats, X, batch.rows)
            clip.add(_products(update, X), rates)
            return update

        yield Item(batch, source, precondition, sink, seen)
        return
    coupled = _couple_decay(engine, batch, gradients)
    if batch.action is Action.ROTATE:
        turn = partial(turning(stack).turn, stack.stats, rows=batch.rows, leave=False)
        yield Item(batch, source, turn, sink, seen and not coupled)


def _clips(engine: "Engine") -> dict[int, Clip]:
    """One clip a method."""
    return {id(method): Clip(method.trust) for method in engine.methods}


def _apply(engine: "Engine", clips: Iterable[Clip]) -> None:
    """Scale the gradients of all clips, of which owners have seen their own blocks."""
    bounded = [clip for clip in clips if clip.bounds]
    if bounded:
        device = bounded[0].device
        totals = engine.layout.total(torch.stack([clip.total(device) for clip in bounded]))
        for clip, total in zip(bounded, totals.unbind(0), strict=True):
            clip.apply(total)


def waiting(engine: "Engine", batch: Batch) -> bool:
    """Whether a batch is on the base only until its gradients can be preconditioned."""
    block = batch.blocks[0]
    if batch.action is not Action.BASE:
        return False
    return block.method.action(engine.base, engine.group(block.group), block, True) is Action.PRECONDITION


def bound(engine: "Engine", batches: list[Batch]) -> None:
    """Bound the step of waiting batches: `lr |g| <= sqrt(kappa)`."""
    clips = _clips(engine)
    for batch in batches:
        clip, gradients = clips[id(batch.stack.method)], engine.layout.gradients(batch)
        clip.hold(gradients)
        rates = [engine.group(block.group)["lr"] for block in batch.blocks]
        clip.add(engine.layout.squares(batch, gradients), rates)
    _apply(engine, clips.values())


def _products(X_BMN: Tensor, Y_BMN: Tensor) -> Tensor:
    """Inner products of the matrices of two batches, shape (B,)."""
    return torch.linalg.vecdot(X_BMN.flatten(1), Y_BMN.flatten(1))


def _couple_decay(engine: "Engine", batch: Batch, gradients: list[Tensor]) -> bool:
    """Add coupled decay to the gradients of groups that have some; whether any has."""
    weights, coupled = engine.layout.weights(batch), False
    for number, positions in batch.of_group.items():
        group = engine.group(number)
        if not engine.base.decoupled(group) and group["weight_decay"] != 0:
            hide.couple_decay([gradients[i] for i in positions], [weights[i] for i in positions], group)
            coupled = True
    return coupled
