"""The nodes of autograd's graph."""

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node


def nodes(tensors: Iterable[Tensor]) -> set[Node]:
    """All nodes that a backward pass from some tensors can come to, those of the tensors among them.

    Args:
        tensors: With their graphs, or without.

    Returns:
        The nodes.
    """
    pending, seen = [tensor.grad_fn for tensor in tensors], set[Node]()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [child for child, _ in node.next_functions]
    return seen
