"""Reading the graph of a loss, from its root to the outputs of watched layers.

Two questions: is the loss a mean or a sum over samples, and which known loss functions is it made of?
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.losses.registry import Head, lookup

#: Nodes through which a loss function is still a weighted sum of its terms.
LINEAR = {
    *("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "ToCopy", "View", "ReshapeAlias", "UnsafeView", "Alias"),
    *("Squeeze", "Unsqueeze", "Expand", "Clone", "Select", "Slice", "Index", "Stack", "Cat", "MaskedFill", "Where"),
    *("MaskedSelect", "Permute", "Transpose", "T", "Unbind", "Split", "Gather", "IndexSelect"),
}


@dataclass(frozen=True)
class Joined:
    """How a loss joins its samples.

    Attributes:
        mean: Whether as a mean; None if its graph does not tell.
        where: The node that says so, or the first one of a loss that does not tell.
    """

    mean: bool | None
    where: str


def kind(node: Node) -> str:
    """A node's name without what autograd adds: "SumBackward1" -> "Sum"."""
    return node.name().split("Backward")[0]


def joined(loss: Tensor, stops: set[Node], samples: int, scale: float = 1.0) -> Joined:
    """Whether a loss is a mean or a sum over samples: what the deepest reduction over them does.

    They are the first dimension of what is reduced, or somewhere in it where all of it is.

    A sum that is divided by a number nearer to that of the samples than to one is a mean, as in `loss.sum() / len(x)`.

    Args:
        loss: The loss.
        stops: Nodes of the watched layers' outputs.
        samples: How many samples the model has seen.
        scale: What multiplies the loss and is none of its own.

    Returns:
        The answer.
    """
    if loss.grad_fn is None:
        return Joined(None, "a constant")
    found: dict[bool | None, str] = {}
    for mean, where in set(_verdicts(loss.grad_fn, stops, samples, scale)):
        found.setdefault(mean, where)
    known = [mean for mean in found if mean is not None]
    if len(known) == 1:
        return Joined(known[0], found[known[0]])
    return Joined(None, "both a mean and a sum" if known else found.get(None, loss.grad_fn.name()))


def _verdicts(root: Node, stops: set[Node], samples: int, scale: float) -> Iterator[tuple[bool | None, str]]:
    """What was seen on the way to every stop."""
    pending: list[tuple[Node, float, bool | None, str]] = [(root, 1.0 / scale, None, "")]
    seen = set()
    while pending:
        state = pending.pop()
        if state in seen:
            continue
        seen.add(state)
        node, factor, mean, where = state
        if node in stops:
            yield mean, where
            continue
        verdict = _reduces(node, samples)
        if verdict is not None:
            mean, where = verdict or factor * samples**0.5 < 1, node.name()
        elif not where and kind(node) not in ("Mul", "Div"):
            where = node.name()
        factor *= _factor(node)
        pending += [(child, factor, mean, where) for child, _ in node.next_functions if child is not None]


def _reduces(node: Node, samples: int) -> bool | None:
    """Whether a node takes the mean (True) or the sum (False) over samples; None if neither."""
    reduction = getattr(node, "_saved_reduction", 0)
    if reduction:
        return reduction == 1
    name = kind(node)
    if name not in ("Sum", "Mean"):
        return None
    sizes, dims = node._saved_self_sym_sizes, getattr(node, "_saved_dim", None)  # type: ignore[attr-defined]
    if not sizes:
        return None
    if not dims or len(dims) == len(sizes):  # over everything, wherever samples are
        return name == "Mean" if math.prod(sizes) % samples == 0 else None
    over_first = any(dim % 2**64 in (0, (-len(sizes)) % 2**64) for dim in dims)
    return name == "Mean" if over_first and sizes[0] % samples == 0 else None


def _factor(node: Node) -> float:
    """The number by which a node multiplies; 1 if by none, or by a tensor of several."""
    name = kind(node)
    if name not in ("Mul", "Div"):
        return 1.0
    other = node._saved_other  # type: ignore[attr-defined]
    if other is None or node.next_functions[0][0] is None:
        other = node._saved_self  # type: ignore[attr-defined]
    if isinstance(other, Tensor):
        if other.numel() != 1:
            return 1.0
        other = other.item()
    return abs(1.0 / other if name == "Div" else other) if other else 1.0


def heads(loss: Tensor, stops: set[Node]) -> tuple[list[Head], str | None]:
    """The loss functions of which a loss is a weighted sum.

    Args:
        loss: The loss.
        stops: Nodes of the watched layers' outputs.

    Returns:
        The heads, and the name of a node on the way to a stop that is none of them, or None.
    """
    found: list[Head] = []
    pending = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = set()
    while pending:
        node = pending.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        head = lookup(node)
        if head is not None:
            found += [head] if reaches(node, stops) else []  # The square of a weight is no loss of a prediction.
        elif node in stops or (kind(node) not in LINEAR and reaches(node, stops)):
            return found, node.name()
        else:
            pending += [child for child, _ in node.next_functions]
    return found, None


def reaches(node: Node | None, stops: set[Node]) -> bool:
    """Whether a stop lies behind a node."""
    pending, seen = [] if node is None else [node], set()
    while pending:
        at = pending.pop()
        if at in stops:
            return True
        if at not in seen:
            seen.add(at)
            pending += [child for child, _ in at.next_functions if child is not None]
    return False
