"""The curvature of layers, for use outside: uncertainties, pruning, merging."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.contract.layerwise import Factors, Layerwise
from lightning_so.core.engine import Engine
from lightning_so.core.stacks.stack import Stack
from lightning_so.errors import ConfigError
from lightning_so.linalg.precision import FullPrecision
from lightning_so.linalg.sides import Side


@dataclass(frozen=True)
class LayerCurvature:
    """The Fisher matrix of one layer, F = G x A in the row-major vec of its matrix, as its last steps saw it.

    It is that of one loss term (a sample; a position, of a sequence whose positions each have a loss): a sum over N
    terms has about N F, in the loss' own unit (nats for `cross_entropy`). A layer of several groups has Q such
    matrices. All tensors are copies.

    Attributes:
        name: Full name of the weight.
        bias: Full name of the bias that is the last column, or None.
        layer: Type of the layer.
        fisher: Whose output gradients: "empirical", "sampled" or "exact".
        inputs: A, mean of a a' over positions, a with a one for the bias, shape (Q, I, I); (Q, I) for a diagonal.
        outputs: G, mean of g g' over loss terms, shape (Q, O, O), or a diagonal.
        transposed: Whether the weight's first dimension is that of the inputs: the matrix is (I, O) then.
        bases: Q_A and Q_G, shapes (Q, I, I) and (Q, O, O), of EKFAC under a base without second moments,
            once all its tiles are solved; else None.
        moments: diag(Q' F Q) there, shape (Q, rows of the matrix, columns), fresher and nearer than G x A.
    """

    name: str
    bias: str | None
    layer: str
    fisher: str
    inputs: Tensor
    outputs: Tensor
    transposed: bool
    bases: tuple[Tensor, Tensor] | None = None
    moments: Tensor | None = None


@FullPrecision()
def curvature(engine: Engine) -> dict[str, LayerCurvature]:
    """The curvature of every layer that K-FAC or EKFAC has observed, by the name of its weight.

    A collective on several ranks: call it on all.

    Args:
        engine: What `attach` gave, or one of `SecondOrder.engines`; also when training has ended.

    Returns:
        Copies. Layers that were never observed (frozen, not called) are not in it.

    Raises:
        ConfigError: If no method of the engine observes layers.

    Example:
        >>> import torch
        >>> from lightning_so import KFAC, attach, curvature
        >>> model = torch.nn.Linear(3, 2)
        >>> engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC())
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> engine.optimizer.step()
        >>> curvature(engine)["weight"].inputs.shape
        torch.Size([1, 4, 4])
    """
    if not engine.recorders:
        methods = ", ".join(type(method).__name__ for method in engine.parts.methods)
        raise ConfigError(f"curvature: {methods} observes no layers; train with KFAC() or EKFAC().")
    engine.share_factors()
    names = {param: row.name for row, param in zip(engine.plan.rows, engine.host.params, strict=True)}
    labels = {id(recorder.method): recorder.labels.found or recorder.labels.asked for recorder in engine.recorders}
    found = {}
    for stack in engine.stacks:
        for row, block in enumerate(stack.blocks):
            if isinstance(stack.method, Layerwise) and float(stack.stats.weight[row]) > 0:
                found[block.name] = _of(stack, row, block, names, labels[id(stack.method)])
    return found


def _of(stack: Stack, row: int, block: Block, names: dict[Tensor, str], fisher: str) -> LayerCurvature:
    method, stats = stack.method, stack.stats
    assert isinstance(method, Layerwise)
    assert isinstance(stats, Factors)
    assert block.tap is not None
    inputs, outputs = (_whole(side, row) / stats.weight[row] for side in stats.sides)
    bases, moments = method.second_moments(stats, row) or (None, None)
    bias = None if block.bias is None else names[block.bias]
    kind = type(block.tap.module).__name__
    return LayerCurvature(block.name, bias, kind, fisher, inputs, outputs, stats.transposed, bases, moments)


def _whole(side: Side, row: int) -> Tensor:
    """A factor with its tiles on the diagonal, (Q, L, L); the diagonal itself, (Q, L), of a side without tiles."""
    if not side.shape.cuts:
        return side.factors[0][row]
    found = side.of(row)
    return torch.stack([torch.block_diag(*(F[group] for F in found)) for group in range(side.shape.groups)])
