"""What happens to a batch of blocks around the base's step: precondition, or hide (and rotate), then finish."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.actions.bend import bend
from lightning_so.actions.precondition import Clip
from lightning_so.core import rows
from lightning_so.core.batch import Batch
from lightning_so.core.block import scatter
from lightning_so.core.method import Action, turning

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def begin(engine: "Engine", batches: list[Batch]) -> None:
    """Everything before the base's step.

    Args:
        engine: The engine; its `acting` gets every batch whose parameters are hidden.
        batches: Those whose action is not BASE.
    """
    clips = _clips(engine)
    for batch in batches:
        if batch.action is Action.PRECONDITION:
            _precondition(engine, batch, clips[id(batch.stack.method)])
        else:
            _hide(engine, batch)
    for clip in clips.values():
        clip.apply()


def _clips(engine: "Engine") -> dict[int, Clip]:
    """One clip a method."""
    return {id(method): Clip(method.trust) for method in engine.methods}


def waiting(engine: "Engine", batch: Batch) -> bool:
    """Whether a batch is on the base only until its gradients can be preconditioned."""
    block, groups = batch.blocks[0], engine.optimizer.param_groups
    if batch.action is not Action.BASE:
        return False
    return block.method.action(engine.base, groups[block.group], block, True) is Action.PRECONDITION


def bound(engine: "Engine", batches: list[Batch]) -> None:
    """Bound the step of waiting batches: `lr |g| <= sqrt(kappa)`."""
    clips, groups = _clips(engine), engine.optimizer.param_groups
    for batch in batches:
        grads = batch.gradients()
        source = engine.scratch.gather(batch.stack, grads, 0)
        lrs = [groups[b.group]["lr"] for b in batch.blocks]
        clips[id(batch.stack.method)].add(_products(source, source), lrs, grads)
    for clip in clips.values():
        clip.apply()


def _precondition(engine: "Engine", batch: Batch, clip: Clip) -> None:
    """`g <- P g`; the base adds its own decay to it."""
    grads = batch.gradients()
    products = rows.precondition(engine, batch)
    if products is None:
        source = engine.scratch.gather(batch.stack, grads, 0)
        update = batch.stack.method.direction(batch.stack.stats, source, batch.rows)
        products = _products(update, source)
        scatter(update, grads)
    clip.add(products, [engine.optimizer.param_groups[block.group]["lr"] for block in batch.blocks], grads)


def _products(X_BMN: Tensor, Y_BMN: Tensor) -> Tensor:
    """Inner products of the matrices of two batches, shape (B,)."""
    return torch.linalg.vecdot(X_BMN.flatten(1), Y_BMN.flatten(1))


def _hide(engine: "Engine", batch: Batch) -> None:
    """Add coupled decay, rotate the gradients, hide the parameters."""
    grads, groups = batch.gradients(), engine.optimizer.param_groups
    for group, positions in batch.of_group.items():
        if not engine.base.decoupled(groups[group]) and groups[group]["weight_decay"] != 0:
            hide.couple_decay([grads[i] for i in positions], [batch.params[i] for i in positions], groups[group])
    if batch.action is Action.ROTATE:
        source = engine.scratch.gather(batch.stack, grads, 0)
        scatter(turning(batch.stack).turn(batch.stack.stats, source, batch.rows, leave=False), grads)
    hide.save(batch.params, batch.saved)
    # Listed before it is hidden: an interrupt between the two lines must not lose a weight.
    engine.acting.append(batch)
    hide.hide(batch.params)


def finish(engine: "Engine", batch: Batch) -> None:
    """Turn the updates that the base left in the hidden parameters, and write the parameters back."""
    stack, groups = batch.stack, engine.optimizer.param_groups
    update = engine.scratch.gather(stack, batch.params, 0)
    if batch.action is Action.ROTATE:
        update = turning(stack).turn(stack.stats, update, batch.rows, leave=True)
    else:
        update = bend(update, stack.method.direction(stack.stats, _lookahead(engine, batch), batch.rows))
    p0 = stack.hidden if batch.rows is None else stack.hidden[batch.rows]
    room = engine.scratch.like(stack, len(batch.blocks), 1)
    factors = [hide.shrink(groups[b.group], decoupled=engine.base.decoupled(groups[b.group])) for b in batch.blocks]
    scatter(hide.combine(p0, update, factors, room), batch.params)


def _lookahead(engine: "Engine", batch: Batch) -> Tensor:
    """The look-ahead first moment of a batch, in the second work space."""
    key = engine.base.first[0]
    moment = engine.scratch.gather(batch.stack, [engine.optimizer.state[p][key] for p in batch.params], 1)
    gradient = engine.scratch.gather(batch.stack, batch.gradients(), 2)
    for group, positions in batch.groups.items():
        a, b = engine.base.lookahead(engine.optimizer.param_groups[group])
        if len(batch.groups) == 1:
            moment.mul_(a).add_(gradient, alpha=b)
        else:
            moment[positions] = a * moment[positions] + b * gradient[positions]
    return moment
