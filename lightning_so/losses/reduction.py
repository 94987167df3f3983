"""Whether a loss is a mean or a sum over samples, read from its graph, however it is written.

On the way from the loss to the model's outputs, the deepest reduction over samples says it: a mean, or a sum. A sum is
a mean where its terms' weights add up to one, or are near to one over their number: both are told from the numbers that
multiply it, above and below, masks and samples' weights among them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.losses.graph import LINEAR, kind

#: Nodes that choose samples.
CHOOSING = {"Index", "IndexSelect", "MaskedSelect", "Slice"}
#: How near to one is one, and what is near to it.
EXACT, NEAR = 1e-3, 0.7
#: Of a sum over n terms divided by n^x: below the first x it is a sum, above the second a mean.
SUM, MEAN = 1 / 3, 2 / 3


@dataclass(frozen=True)
class Joined:
    """How a loss joins its samples.

    Attributes:
        mean: Whether as a mean; None if its graph does not tell.
        where: The node that says so, or the first one of a loss that does not tell.
    """

    mean: bool | None
    where: str


@dataclass(frozen=True)
class _Way:
    """What was met on the way from a loss to a node.

    Attributes:
        mean: What the deepest reduction over samples does; None before one.
        where: The node that says so.
        sizes: What it reduces; its first is that of samples.
        terms: How many numbers become one in it.
        chosen: Whether these can be samples only if some of them were chosen before.
        linear: Whether all nodes so far are.
        divided: Whether a number multiplies it, even if it is one.
        factor: What multiplies the reduction, and below it every term alike.
        below: The second part of that.
        weights: What multiplies terms, each its own; None if nothing does.
    """

    mean: bool | None = None
    where: str = ""
    sizes: tuple[int, ...] = ()
    terms: int = 1
    chosen: bool = False
    linear: bool = True
    divided: bool = False
    factor: float = 1.0
    below: float = 1.0
    weights: Tensor | None = None


def joined(loss: Tensor, stops: set[Node], samples: int, scale: float = 1.0) -> Joined:
    """Whether a loss is a mean or a sum over samples: what the deepest reduction over them does.

    They are the first dimension of what is reduced, or somewhere in it where all of it is.

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
    found, silent = list[_Told](), loss.grad_fn.name()
    for way in _ways(loss.grad_fn, stops, samples, scale):
        if way.mean is None or way.chosen:
            silent = way.where  # Another way may tell.
        else:
            found.append(_told(way, samples))
    if not found:
        return Joined(None, silent)
    # A sum beside which others are weighted is one of weighted terms.
    sums = [told for told in found if told.mean is False and told.sure]
    if sums and not any(told.mean and told.sure for told in found):
        return Joined(False, sums[0].where)
    unclear = next((told for told in found if told.mean is None), None)
    if unclear is not None:
        return Joined(None, unclear.where)
    return Joined(None, "both a mean and a sum") if len({told.mean for told in found}) > 1 else found[0]


@dataclass(frozen=True)
class _Told(Joined):
    """What one way tells.

    Attributes:
        sure: Whether it is more than what is near to a number.
    """

    sure: bool = True


def _told(way: _Way, samples: int) -> _Told:
    """What the way to a stop tells."""
    if way.mean:
        return _Told(True, way.where)
    factor, count = way.factor * way.below, way.sizes[0] if way.sizes and way.sizes[0] < samples else samples
    total, each, alike = way.terms * factor, factor, True
    if way.weights is not None:
        size = way.weights.double().abs()
        alone, kept, largest = torch.stack([size.sum(), (size > 0).sum().double(), size.amax()]).tolist()
        count, alike = min(count, int(kept)), abs(alone - kept * largest) <= EXACT * alone
        total, each = alone * factor, alone * factor / max(kept, 1.0)
        if abs(alone - 1) <= EXACT and kept > 1:  # They add up to one, whatever weighs all of them.
            return _Told(True, way.where)
        if way.factor > NEAR and NEAR < alone * way.below / samples < 1 / NEAR:  # Samples' own weights add up to one.
            return _Told(False, way.where)
    if abs(total - 1) <= EXACT and (way.divided or each < NEAR):  # A sum of one term is a mean if it is divided by one.
        return _Told(True, way.where)
    if count <= 1 or each > NEAR or not each > 0:  # All weights are zero, or none is a number.
        return _Told(False, way.where)
    power = -math.log(each) / math.log(count)
    if power < SUM:
        return _Told(False, way.where, sure=False)
    # Weights that differ may be small of their own.
    if power > MEAN and (alike or power < 2 * MEAN):
        return _Told(True, way.where, sure=False)
    return _Told(None, f"{way.where}, of {count} terms that are weighted by {each:.2g}", sure=False)


def _ways(root: Node, stops: set[Node], samples: int, scale: float) -> Iterator[_Way]:
    """What was met on the way to every stop."""
    pending, seen = [(root, _Way(factor=1.0 / scale))], set()
    while pending:
        state = pending.pop()
        if state in seen:
            continue
        seen.add(state)
        node, way = state
        if node in stops:
            yield way
            continue
        way = _reduced(node, way, samples)
        pending += [(child, _weighted(node, at, way)) for at, (child, _) in enumerate(node.next_functions) if child]


def _reduced(node: Node, way: _Way, samples: int) -> _Way:
    """The way behind a node, but for what it multiplies by."""
    name = kind(node)
    if not way.where and name not in ("Mul", "Div"):
        way = replace(way, where=node.name())
    if name in CHOOSING:
        way = replace(way, chosen=False)
    if reduction := getattr(node, "_saved_reduction", 0):
        sizes = tuple(getattr(getattr(node, "_saved_self", None), "shape", ()))
        return replace(_over(node, way, sizes, math.prod(sizes), mean=reduction == 1), linear=False)
    if name in ("Sum", "Mean"):
        sizes, dims = node._saved_self_sym_sizes, getattr(node, "_saved_dim", None)  # type: ignore[attr-defined]
        # Negative dimensions are kept as unsigned numbers.
        dims = sorted({(dim if dim < 2**63 else dim - 2**64) % len(sizes) for dim in dims or ()}) if sizes else []
        if sizes and (not dims or len(dims) == len(sizes)):  # over everything, wherever samples are
            whole = math.prod(sizes) % samples == 0
            # Where it is no number of samples, it is that of those that were chosen.
            return _over(node, way, tuple(sizes), math.prod(sizes), mean=name == "Mean", chosen=not whole)
        if 0 in dims and sizes[0] % samples == 0:
            return _over(node, way, tuple(sizes), math.prod(sizes[dim] for dim in dims), mean=name == "Mean")
        return _within(node, way, sizes, dims, mean=name == "Mean") if sizes else way
    factors = [child for child, _ in node.next_functions if child is not None]
    if name not in LINEAR or (name in ("Mul", "Div") and len(factors) > 1):
        return replace(way, linear=False)
    return way


def _over(node: Node, way: _Way, sizes: tuple[int, ...], terms: int, *, mean: bool, chosen: bool = False) -> _Way:
    """The way behind a reduction over samples: what multiplied the terms of one above it multiplies it."""
    factor = way.factor * way.below
    return replace(
        way, mean=mean, where=node.name(), sizes=sizes, terms=terms, chosen=chosen, factor=factor, below=1.0,
        weights=None,
    )  # fmt: skip


def _within(node: Node, way: _Way, sizes: list[int], dims: list[int], *, mean: bool) -> _Way:
    """The way behind a reduction within samples."""
    length = math.prod(sizes[dim] for dim in dims)
    if way.mean is not False:
        return way
    if way.weights is not None and way.weights.ndim <= len(sizes):
        weights = way.weights
        if not node._saved_keepdim:  # type: ignore[attr-defined]
            for dim in dims:
                weights = weights.unsqueeze(min(dim, weights.ndim))
        if weights.ndim == len(sizes):
            weights = weights.expand([size if dim in dims else -1 for dim, size in enumerate(sizes)])
        return replace(way, weights=weights / length if mean else weights)
    # A sum of T divided by T is a mean within a sample, and says nothing of samples.
    undone = not mean and abs(way.below * length - 1) <= EXACT
    return replace(way, below=1.0) if undone else way


def _weighted(node: Node, at: int, way: _Way) -> _Way:
    """The way to a child of a node, by what the node multiplies it."""
    if not way.linear or way.mean is True:
        return way
    other = _constant(node, at)
    if other is None:
        return way
    if not isinstance(other, Tensor) or other.numel() == 1:
        size = abs(float(other)) or 1.0  # one host read, as of the weights
        if way.mean is None:
            return replace(way, factor=way.factor * size, divided=True)
        return replace(way, below=way.below * size, divided=True)
    if way.mean is None or not way.sizes or other.shape[0] != way.sizes[0]:
        return way  # of other dimensions than that of samples
    if way.weights is None:
        return replace(way, weights=other)
    pairs = zip(way.weights.shape, other.shape, strict=False)
    fits = way.weights.ndim == other.ndim and all(a == b or 1 in (a, b) for a, b in pairs)
    return replace(way, weights=way.weights * other) if fits else way


def _constant(node: Node, at: int) -> Tensor | float | None:
    """What a node multiplies one of its children by, if no gradient goes there."""
    name = kind(node)
    if name == "MaskedFill":
        return ~node._saved_mask  # type: ignore[attr-defined]
    if name == "Where":
        condition = node._saved_condition  # type: ignore[attr-defined]
        return condition if at == 0 else ~condition
    if name not in ("Mul", "Div"):
        return None
    if any(child is not None for place, (child, _) in enumerate(node.next_functions) if place != at):
        return None
    other = node._saved_self if name == "Mul" and at == 1 else node._saved_other  # type: ignore[attr-defined]
    if other is None:
        return None
    if name == "Div":
        return other.detach().reciprocal() if isinstance(other, Tensor) else 1.0 / other if other else None
    return other.detach() if isinstance(other, Tensor) else other
