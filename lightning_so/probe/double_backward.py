"""Products with the Hessian by double backward, of the mean loss over ranks; or why there are none."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_so.comm import unsynced
from lightning_so.linalg.products import DoubleBackward
from lightning_so.probe.parameters import ParameterVector

#: A gradient that is computed twice may differ by this share: some kernels add in another order each time.
AGAIN = 1e-3


@dataclass(frozen=True)
class Exact:
    """`v -> H v`, equal on every rank: the mean of the products of the ranks, each by its own loss.

    Attributes:
        mine: Of this rank.
        vector: The parameters.
        compared: Whether it was seen to give the training's gradient, on every rank: asked for, and of finite numbers.
    """

    mine: DoubleBackward
    vector: ParameterVector
    compared: bool = False

    def __call__(self, v: Tensor) -> Tensor:
        """H v, shape (n,)."""
        return self._mean(self.mine(v))

    def block(self, numbers: Sequence[int]) -> "Exact":
        """See `BlockProduct.block`."""
        return Exact(self.mine.block(numbers), self.vector, self.compared)

    @property
    def gradient(self) -> Tensor:
        """g, shape (n,)."""
        return self._mean(self.mine.gradient.to(self.vector.space.dtype))

    def _mean(self, part: Tensor) -> Tensor:
        comm = self.vector.comm
        comm.sum(part)
        return part / comm.ranks


def exact(vector: ParameterVector, model: nn.Module, loss: Callable[[], Tensor], *, probe: bool = True) -> Exact | str:
    """Differentiate a loss so that it can be differentiated again.

    Args:
        vector: The parameters.
        model: The model as it is wrapped.
        loss: Computes this rank's loss, with its graph.
        probe: Whether to try a product, and to compare with a gradient: some graphs can be made and break there, others
            leave parameters out without a word.

    Returns:
        The products, or why there are none: the same kind on every rank.
    """
    if vector.access.sharded:
        return "of sharded parameters a second derivative reaches no piece"
    mine, reason, compared = None, "", False
    with unsynced(model):
        expected = vector.gradient(loss) if probe else None
        value = loss()
        try:
            mine = DoubleBackward(lambda: value, vector.params)
            if probe:
                mine(vector.space.normal(0))
                if mine.ends():
                    mine, reason = None, "a function in it is marked as differentiable once"
        except RuntimeError as error:
            mine, reason = None, (str(error).splitlines() or [type(error).__name__])[0][:160]
    if mine is not None and expected is not None:
        reason, compared = _unlike(vector, mine, expected)
        mine = None if reason else mine
    # A graph that one rank cannot make, or has no memory for, is made by none.
    none, unsure = vector.comm.anywhere([mine is None, not compared])
    if none:
        return reason or "another rank has none"
    assert mine is not None
    return Exact(mine, vector, not unsure)


def _unlike(vector: ParameterVector, mine: DoubleBackward, expected: Tensor) -> tuple[str, bool]:
    """What is wrong with a graph that does not give a training's gradient, "" for nothing; whether that is sure."""
    space = vector.space
    parts = zip(space.pieces, space.split(expected), mine.reached, strict=True)
    if hidden := [piece.name for piece, part, reached in parts if not reached and bool(part.any())]:
        return f"the graph hides {hidden[:3]}, as a reentrant checkpoint does", True
    apart, length = space.norm(mine.gradient.to(expected) - expected), space.norm(expected)
    if apart > AGAIN * length:
        return (
            f"the gradient of its graph and that of backward() are {apart / max(length, 1e-30):.1e} apart: a reentrant "
            "checkpoint hides one of two uses of a weight, or the same loss twice is not the same"
        ), True
    return "", math.isfinite(apart)


def way_out(reason: str) -> str:
    """What to do where exact products were asked for, and there are none."""
    attention = "scaled_dot_product" in reason
    kernel = " Or have attention run under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)." * attention
    return f'there is no double backward here ({reason}). Use product="difference", or "auto".{kernel}'
