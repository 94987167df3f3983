"""From what a layer reads back to the layer whose units these are, through the activation between: along the graph.

A functional activation is no module. But its node is in the graph of the next layer's input, whichever way it was
called, and behind it is the layer that it was applied to, also where other layers were called in between.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from lightning_so.monitor.units import SIGMOID, TANH, ZERO

#: What nodes of activations are called, without the number behind it.
KNOWN = {
    **dict.fromkeys(("Relu", "Threshold", "Hardtanh", "Gelu", "Silu", "Mish", "Hardswish"), ZERO),
    **dict.fromkeys(("Clamp", "ClampMin", "Maximum"), ZERO),
    "Tanh": TANH,
    "Sigmoid": SIGMOID,
}
#: Nodes behind which numbers are what they were, or fewer of them; the last one is FSDP2's.
SAME = frozenset(
    "View UnsafeView ReshapeAlias Permute Transpose T Squeeze Unsqueeze Clone ToCopy Slice Select Index IndexSelect "
    "Alias Expand Unfold MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D AsStrided "
    "ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D "
    "RegisterPostBackwardFunction".split()
)
#: Those behind which what was always zero is zero: means, and products with what else there is.
ZEROS = frozenset(
    "Mean AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D Sum Div Pow UpsampleNearest1D UpsampleNearest2D "
    "UpsampleBilinear2D UpsampleLinear1D".split()
)
DROPOUT = frozenset({"NativeDropout", "FusedDropout"})
#: Nodes that are looked at from a layer back to the one before.
REACH = 24


@dataclass(frozen=True)
class Read:
    """What a layer reads.

    Attributes:
        source: The number of the layer whose units they are.
        kind: What the activation between does: `ZERO`, `TANH` or `SIGMOID`.
        dropped: Whether a dropout is between: some are zero for no reason, and the others larger.
    """

    source: int
    kind: str
    dropped: bool


def mark(output: Tensor, key: Any, what: int | str) -> None:
    """Note on the graph where a layer's output is, or what an activation was; gone with the graph.

    Args:
        output: The output.
        key: Whose notes they are.
        what: The layer's number, or what the activation does.
    """
    # An operation in place on a view hides the view's node: what it is a view of keeps its own.
    for tensor in (output, output._base) if isinstance(what, int) else (output,):
        if tensor is not None and tensor.grad_fn is not None:
            _notes(tensor.grad_fn)[key] = what


def read(x: Tensor, key: Any, fits: Callable[[int], bool]) -> Read | None:
    """Whose units a layer reads.

    Args:
        x: Its input.
        key: Whose notes are read; see `mark`.
        fits: Whether the units of a layer, by its number, can be the input's features.

    Returns:
        What it reads; None where no activation is between, or what is between is not known.
    """
    if x.grad_fn is None:
        return None
    found = _activation(x.grad_fn, x.output_nr, key)
    if found is None:
        return None
    node, kind, dropped = found
    source = next((number for number in _layers(node, key) if fits(number)), None)
    return None if source is None else Read(source, kind, dropped)


def _activation(node: Node, output: int, key: Any) -> tuple[Node, str, bool] | None:
    """The first activation behind a layer's input, what it does, and whether a dropout is between."""
    behind, same, dropped = [(node, output)], True, False
    for _ in range(REACH):
        if not behind:
            return None
        node, output = behind.pop(0)
        noted = _notes(node).get(key)
        name = node.name().partition("Backward")[0]
        kind = noted if isinstance(noted, str) else KNOWN.get(name)
        if kind is not None and (same or kind == ZERO):
            return node, kind, dropped
        if isinstance(noted, int):
            continue
        parents = [(parent, number) for parent, number in node.next_functions if parent is not None]
        if name in SAME:
            # A function of several tensors gives each back at its place.
            own = node.next_functions[output : output + 1]
            behind[:0] = [edge for edge in parents if len(parents) == 1 or edge in own]
        elif name in DROPOUT or (name == "Mul" and len(parents) == 1):
            dropped = True
            behind[:0] = parents
        elif name == "Mul" or (name in ZEROS and parents):
            same = False
            behind[:0] = parents if name == "Mul" else parents[:1]
    return None


def _notes(node: Any) -> dict[Any, Any]:
    """What is noted on a node."""
    return node.metadata


def _layers(node: Node, key: Any) -> Iterator[int]:
    """Numbers of layers behind a node, the nearest first."""
    waiting, met = deque(parent for parent, _ in node.next_functions), {node}
    for _ in range(REACH):
        if not waiting:
            return
        before = waiting.popleft()
        if before is None or before in met:
            continue
        met.add(before)
        noted = _notes(before).get(key)
        if isinstance(noted, int):
            yield noted
        else:
            waiting.extend(parent for parent, _ in before.next_functions)
