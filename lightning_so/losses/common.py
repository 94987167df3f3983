"""Cross-entropy of class labels, squared errors (torch's own and by hand) and the logistic loss."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.linalg.plain import plain
from lightning_so.losses.curvature import Elementwise, Softmax
from lightning_so.losses.registry import Head, register

#: Value of a node's saved reduction.
NONE, MEAN = 0, 1


def saved(node: Node, name: str) -> Any:
    """What a node has saved for its backward pass; of tensors of a user's class, what they hold."""
    found = getattr(node, f"_saved_{name}")
    return plain(found) if isinstance(found, Tensor) else found


def wide(node: Node, name: str) -> Tensor:
    """A saved tensor in at least float32, without its graph."""
    tensor: Tensor = saved(node, name).detach()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def cross_entropy(node: Node) -> Head | None:
    """`nll_loss(log_softmax(f), y)`: w is the class' weight, 0 where the label is ignored."""
    below: Node | None = node.next_functions[0][0]
    while below is not None and below.name() == "ViewBackward0":
        below = below.next_functions[0][0]
    if below is None or below.name() != "LogSoftmaxBackward0":
        return None
    log_p = wide(below, "result")
    dim = saved(below, "dim")
    dim = dim - 2**64 if dim >= 2**63 else dim  # negative ones are kept as unsigned numbers
    target, weight = saved(node, "target"), saved(node, "weight")
    ignored = target == saved(node, "ignore_index")
    w = (~ignored).to(log_p.dtype)
    if weight is not None:
        w = w * weight.to(log_p.dtype)[target.masked_fill(ignored, 0)]
    total = saved(node, "total_weight") if saved(node, "reduction") == MEAN else torch.ones_like(w.sum())
    return Head(node, below, Softmax(log_p.exp(), dim), log_p, lambda c: c.to(w.dtype) * w / total)


def mse(node: Node) -> Head:
    """`(f - y)^2`, whose second derivative is 2."""
    r = wide(node, "self") - wide(node, "target")
    count = r.numel() if saved(node, "reduction") == MEAN else 1
    return Head(node, node, Elementwise(torch.full_like(r, 2.0 / count)), r, squared=True)


def square(node: Node) -> Head | None:
    """`r ** 2` and `r.square()`."""
    if float(saved(node, "exponent")) != 2.0:
        return None
    r = wide(node, "self")
    return Head(node, node, Elementwise(torch.full_like(r, 2.0)), r, squared=True)


def product(node: Node) -> Head | None:
    """`r * r`."""
    if len(node.next_functions) < 2 or node.next_functions[0] != node.next_functions[1]:
        return None
    r = wide(node, "self")
    return Head(node, node, Elementwise(torch.full_like(r, 2.0)), r, squared=True)


def logistic(node: Node) -> Head:
    """`binary_cross_entropy_with_logits`: p (1 - p), times the weights."""
    f = wide(node, "self")
    y, weight, positive = (saved(node, name) for name in ("target", "weight", "pos_weight"))
    p = f.sigmoid()
    h = p * (1 - p)
    if positive is not None:
        h = h * (1 + (positive - 1) * y)
    if weight is not None:
        h = h * weight
    return Head(node, node, Elementwise(h / (h.numel() if saved(node, "reduction") == MEAN else 1)), f)


register("NllLossBackward0", "cross_entropy", cross_entropy)
register("NllLoss2DBackward0", "cross_entropy", cross_entropy)
register("MseLossBackward0", "mse_loss", mse)
register("PowBackward0", "square", square)
register("MulBackward0", "square", product)
register("BinaryCrossEntropyWithLogitsBackward0", "binary_cross_entropy_with_logits", logistic)
