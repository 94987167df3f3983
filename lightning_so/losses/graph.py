"""Reading the graph of a loss, from its root to the outputs of watched layers: which loss functions is it made of?"""

from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.losses.registry import Head, lookup

#: Nodes through which a loss function is still a weighted sum of its terms.
LINEAR = {
    *("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "ToCopy", "View", "ReshapeAlias", "UnsafeView", "Alias"),
    *("Squeeze", "Unsqueeze", "Expand", "Clone", "Select", "Slice", "Index", "Stack", "Cat", "MaskedFill", "Where"),
    *("MaskedSelect", "Permute", "Transpose", "T", "Unbind", "Split", "Gather", "IndexSelect"),
}


def kind(node: Node) -> str:
    """A node's name without what autograd adds: "SumBackward1" -> "Sum"."""
    return node.name().split("Backward")[0]


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
