"""Health of layers, from sampled forward passes: dead and saturated units, collapsed ranks, how large activations are.

Legend: D units of a layer, L layers, n sampled rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.comm.wrappers import clean, unwrapped
from lightning_so.linalg.plain import plainly
from lightning_so.linalg.precision import FullPrecision
from lightning_so.monitor.hooks import hooked, unheard
from lightning_so.monitor.reading import Read, mark, read
from lightning_so.monitor.rows import LEAST_ROWS, RANK_ROWS, ROWS, effective_rank, sampled, seen_by_kernel
from lightning_so.monitor.units import SIGMOID, ZERO, activation_of, numbers_of, units_of

#: Looks that a unit must have been silent for, to be dead.
WINDOW = 8
#: Where a bounded unit is at an end of its range, and in which share of the samples a saturated one is.
TANH_END, SIGMOID_END, ALWAYS = 0.99, 0.01, 0.95
#: Less than this rank of what a layer reads, and that of what it gives says nothing of the layer.
RICH = 1.5
#: Rows of `Health.numbers`.
DEAD, SATURATED, RANK, LARGEST = range(4)


class Health:
    """Looks at the layers of a model during forward passes in training mode, and changes nothing.

    A unit is a feature or a channel. Those of a layer are seen as the next layer reads them, behind the activation
    between, which the graph of that layer's input tells, module or function. What the network itself is given has no
    layer before it, and is not looked at. Of a layer, `numbers` gives:

    - dead: the share of units that were exactly zero in every sampled row of the last `WINDOW` looks;
    - saturated: the share whose |tanh| is above 0.99 (sigmoid: outside 0.01 to 0.99) in 95 % of the rows of a look;
    - rank: the effective rank `(sum l)^2 / sum l^2` of the layer's outputs, units centred and brought to unit variance,
      so that a few large ones do not hide the others; where what the layer reads varies in one direction alone, that
      is not the layer's, and there is none;
    - largest: the root mean square of its outputs.

    Nothing is said where nothing can be seen: of compiled modules, of passes without a graph (the first of
    `checkpoint(..., use_reentrant=True)`; its second, in the backward pass, is seen while a look is open), inside
    `torch.func`, of tensors that hold their numbers elsewhere. A function that is compiled while a look is open is
    compiled once more after it, as hooks are guarded: do not look at a training's first step.

    Attributes:
        names: Layers, by the names of their modules without what wrappers put into them.
        widths: Their units, D.
        readers: The layer that was last seen to read a layer's units, by name; "" before.
        order: The layers' numbers in the order in which the last look saw them called.
    """

    def __init__(self, model: nn.Module) -> None:
        """Choose the layers.

        Args:
            model: The model, wrapped or not.
        """
        inner = unwrapped(model)
        hidden = unheard(inner)
        named = [(clean(f"{name}.")[:-1], module) for name, module in inner.named_modules() if module not in hidden]
        found = [(name, module, units) for name, module in named if (units := units_of(module))]
        self.names: list[str] = [name for name, _, _ in found]
        self.widths: list[int] = [units.width for _, _, units in found]
        self.readers: list[str] = ["" for _ in found]
        self.order = list(range(len(found)))
        self._model, self._units = inner, [units for _, _, units in found]
        self._modules = [module for _, module, _ in found]
        self._activations = [(module, what) for _, module in named if (what := activation_of(module))]
        ends = [0, *accumulate(self.widths)]
        self._spans = [slice(first, last) for first, last in pairwise(ends)]
        self._looks = [0 for _ in found]
        self._kept: _Kept | None = None
        self._seen: _Seen | None = None
        self._numbers: Tensor | None = None

    @contextmanager
    def look(self) -> Iterator[None]:
        """Have the layers' calls looked at inside: around the forward passes of one step.

        Yields:
            Nothing.
        """
        handles = [hooked(module, partial(self._heard, number)) for number, module in enumerate(self._modules)]
        handles += [hooked(module, partial(self._marked, what)) for module, what in self._activations]
        if self._kept is None or self._kept.device != self._device:
            self._kept = _Kept(self.widths, self._device)
        self._kept.clear()
        self._seen = _Seen(len(self.names))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            seen, self._seen = self._seen, None
        with torch.no_grad():
            self._numbers = self._end(self._kept, seen)

    def numbers(self) -> Tensor:
        """What the last look has seen.

        Returns:
            Shape (4, L), float32, on the device of the model: dead, saturated, rank, largest; nan where that does not
            apply, or the layer was not called. The host has not waited for them.
        """
        if self._numbers is None:
            return torch.full((4, len(self.names)), torch.nan, device=self._device)
        return self._numbers

    @property
    def _device(self) -> torch.device:
        return next((param.device for param in self._model.parameters()), torch.device("cpu"))

    # ---------------------------------------------------------------- a call of a layer

    def _marked(self, what: str, given: Any, output: Any) -> None:
        """Note what an activation is: where it works in place on a view, its node is not to be seen."""
        if isinstance(output, Tensor):
            mark(output, self, what)

    def _heard(self, number: int, given: Any, output: Any) -> None:
        """Look at one call of a layer, given its number, inputs and outputs."""
        x, y = numbers_of(given), numbers_of(output)
        units = self._units[number]
        if self._seen is None or y is None or not _has(y, units.axis) or y.shape[units.axis] != units.width:
            return
        assert self._kept is not None
        with torch.no_grad(), FullPrecision(), plainly():
            rows = sampled(y, units.axis, ROWS)
            self._kept.squares[number] += rows.square().mean().to(self._kept.squares)
            self._seen.calls[number] += 1
            if self._seen.calls[number] == 1:
                self._seen.order.append(number)
            if units.own is not None:
                self._fold(Read(number, units.own, dropped=False), rows)
            if x is not None and x.is_floating_point() and _has(x, units.axis):
                self._rank(number, x, rows)
                self._read(number, x)
        mark(y, self, number)

    def _rank(self, number: int, x: Tensor, rows: Tensor) -> None:
        """Add the rank of a call's outputs, where that of its inputs lets it."""
        units, kept = self._units[number], self._kept
        assert kept is not None
        if len(rows) < LEAST_ROWS or units.width < 2:
            return
        if units.kernel is not None:
            given = seen_by_kernel(x, *units.kernel, RANK_ROWS)
        else:
            given = sampled(x, units.axis, RANK_ROWS)
        rich = effective_rank(given, scaled=False) > RICH
        rank = effective_rank(rows[:RANK_ROWS], scaled=True)
        kept.ranks[0, number] += torch.where(rich, rank, 0.0).to(kept.ranks)
        kept.ranks[1, number] += rich.to(kept.ranks)

    def _read(self, number: int, x: Tensor) -> None:
        """Look at the units that a layer reads, as those of the layer before."""
        axis = self._units[number].axis
        features = x.shape[axis]
        found = read(x, self, lambda source: features % self.widths[source] == 0)
        if found is None:
            return
        self.readers[found.source] = self.names[number]
        rows, width = sampled(x, axis, ROWS), self.widths[found.source]
        if features != width:  # Flattened: a channel's positions follow each other; of features, the units of each.
            channels = self._units[found.source].axis != -1
            rows = rows.unflatten(1, (width, -1)).mT if channels else rows.unflatten(1, (-1, width))
            rows = rows.reshape(-1, width)
        self._fold(found, rows)

    def _fold(self, found: Read, rows: Tensor) -> None:
        """Add rows of units, shape (n, D), to what a look has seen of them."""
        kept, span = self._kept, self._spans[found.source]
        assert kept is not None
        assert self._seen is not None
        self._seen.kinds[found.source].add(found.kind == ZERO)
        there = rows != 0
        if found.kind == ZERO:
            kept.fired[span] |= there.any(0).to(kept.device)
            return
        size, top = rows.abs(), 1.0
        if found.dropped:  # Those that are left are larger, by how much is not known.
            top = size.amax().clamp(min=1.0)
        else:
            there = torch.ones_like(there)
        at_end = size > TANH_END * top
        if found.kind == SIGMOID:
            at_end |= size < SIGMOID_END * top
        kept.ends[0, span] += (at_end & there).sum(0).to(kept.ends)
        kept.ends[1, span] += there.sum(0).to(kept.ends)

    # ---------------------------------------------------------------- at the end of a look

    def _end(self, kept: "_Kept", seen: "_Seen") -> Tensor:
        """The numbers of a look; units grow older by one that were silent."""
        self.order = [*seen.order, *(number for number in range(len(self.names)) if not seen.calls[number])]
        zero = [float(True in kinds) for kinds in seen.kinds]
        self._looks = [looks + int(now) for looks, now in zip(self._looks, zero)]
        bounded = [float(False in kinds) for kinds in seen.kinds]
        needed = [float(min(looks, WINDOW)) for looks in self._looks]
        told = torch.tensor([zero, bounded, needed, seen.calls]).to(kept.device, non_blocking=True)
        looked = told[0].bool()[kept.owner]
        kept.age.copy_(torch.where(looked, torch.where(kept.fired, 0, kept.age + 1), kept.age))
        dead = kept.age >= told[2][kept.owner]
        saturated = kept.ends[0] > ALWAYS * kept.ends[1]
        shares = torch.zeros(2, len(self.names), device=kept.device)
        shares.index_add_(1, kept.owner, torch.stack([dead, saturated]).float())
        shares /= kept.widths
        shares = torch.where(told[:2] > 0, shares, torch.nan)
        rms = (kept.squares / told[3]).sqrt()
        # No numbers are no answer, but those of a layer that was called and gave nan are worse than large.
        rms = torch.where((told[3] > 0) & rms.isnan(), torch.inf, rms)
        return torch.cat([shares, (kept.ranks[0] / kept.ranks[1])[None], rms[None]])


class _Kept:
    """What a look adds up, for all layers' units in a row, made once; and how long each unit has been silent."""

    def __init__(self, widths: list[int], device: torch.device) -> None:
        """Nothing is seen yet."""
        self.device, total = device, sum(widths)
        self.owner = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths, dtype=torch.long))
        self.owner, self.widths = self.owner.to(device), torch.tensor(widths, dtype=torch.float32).to(device)
        self.age = torch.zeros(total, dtype=torch.int32, device=device)
        self.fired = torch.zeros(total, dtype=torch.bool, device=device)
        self.ends = torch.zeros(2, total, device=device)
        self.ranks, self.squares = torch.zeros(2, len(widths), device=device), torch.zeros(len(widths), device=device)

    def clear(self) -> None:
        """Begin a look."""
        for numbers in (self.fired, self.ends, self.ranks, self.squares):
            numbers.zero_()


class _Seen:
    """What the host knows of a look: how often layers were called, and what was between them."""

    def __init__(self, layers: int) -> None:
        """Nothing yet."""
        self.calls, self.order = [0.0 for _ in range(layers)], list[int]()
        self.kinds = [set[bool]() for _ in range(layers)]


def _has(tensor: Tensor, axis: int) -> bool:
    """Whether a tensor has the axis."""
    return -tensor.ndim <= axis < tensor.ndim
