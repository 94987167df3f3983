"""Taps: layer inputs and output gradients of watched layers, added to the method's statistics as they pass.

A forward hook keeps the input and hooks the output *tensor*: its gradient comes once for every use of the layer,
whatever checkpointing does to the forward pass, and before an in-place activation behind it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from lightning_so.contract.block import Block, Tap
from lightning_so.contract.method import RowWise, Tapped
from lightning_so.core.statistics import fisher
from lightning_so.core.statistics.layer_call import USES, Use
from lightning_so.core.statistics.observation import Rows
from lightning_so.errors import ConfigError, TrustError
from lightning_so.losses.graph import joined, reaches

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


class Recorder:
    """Hooks the layers of one method that the coming step watches, and adds their rows to the windows.

    Attributes:
        accumulate: By how many micro-batches the loss of each was divided; None for as many as come.
        loss_scale: By what the loss was multiplied (a GradScaler's scale).
        silent: Names of blocks with a gradient whose layer has not fired.
        rows: Rows of this step, kept where gradients are preconditioned through them.
        watched: Blocks whose rows this step observes, by stack and row.
        fired: Of those that were observed, in how many micro-batches, and in which pass last.
        uses: Calls of hooked layers since the optimizer stepped.
        passes: Backward passes since then.
        mean: Whether the loss is a mean over samples.
        announced: Whether the coming backward pass is that of a loss; None if losses are not shown.
        ours: Whether passes are our own.
    """

    def __init__(self, engine: "Engine", method: Tapped) -> None:
        """Nothing is hooked yet."""
        self.engine, self.method = engine, method
        self.accumulate: int | None = None
        self.loss_scale = 1.0
        self.silent: set[str] = set()
        self.rows = Rows()
        single = engine.comm.ranks == 1 and engine.base.linear
        self._rowwise = isinstance(method, RowWise) and method.rowwise and single
        self._empirical = self.method.fisher == "empirical"
        self.watched: dict[tuple[int, int], Block] = {}
        self._handles: list[Any] = []
        self._output: Tap | None = None
        self._latest: Tap | None = None
        self._terms: Tensor | float | None = None
        self.passes = 0
        self._running = False
        self.fired: dict[Block, tuple[int, int]] = {}
        self.uses: list[Use] = []
        self.mean = engine.reduction != "sum"
        self.announced: bool | None = None
        self._counts, self.ours = True, False

    # ---------------------------------------------------------------- when

    def arm(self, step: int) -> None:
        """Hook the layers of the units that a step watches.

        Args:
            step: The coming step of the engine.
        """
        self.disarm()
        engine = self.engine
        self.rows = Rows()
        units = [engine.schedule.units[number] for number in engine.schedule.watched(step)]
        units = [unit for unit in units if engine.stacks[unit.stack].method is self.method]
        for (index, row), block in self.watched.items():
            if block in self.fired:  # and not folded: the step was skipped, or the block has no gradient
                self.method.clear(engine.stacks[index].stats, row)
        self.watched = {(u.stack, u.row): engine.stacks[u.stack].blocks[u.row] for u in units}
        self.fired, self.passes, self._terms, self._running, self.uses = {}, 0, None, False, []
        taps = []
        for index, stack in enumerate(engine.stacks):
            for row, block in enumerate(stack.blocks):
                if stack.method is not self.method or ((index, row) not in self.watched and not self._rowwise):
                    continue
                assert block.tap is not None
                self._hook(block.tap, (index, row, block))
                taps.append(block.tap)
        if self._output is not None and self._output not in taps:
            self._hook(self._output, None)

    def disarm(self) -> None:
        """Take all hooks back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._output is None:
            self._output = self._latest

    def _hook(self, tap: Tap, where: tuple[int, int, Block] | None) -> None:
        def told(x: Tensor, output: Tensor, arrange: Callable[[Tensor], Tensor]) -> None:
            if self.ours:
                return  # a checkpoint's recomputation
            outside = torch._C._current_graph_task_id() == -1
            if outside:
                self._running = False  # also after a backward pass that raised
            else:
                # A checkpoint's recomputation: its own backward, nested in this pass, must not count as another.
                self._begin_pass()
                self._check_recomputed(where)
            if not (torch.is_grad_enabled() and output.requires_grad):
                return
            self._latest = tap
            shape, base = output.shape, output._base

            def rows(g: Tensor) -> Tensor:
                return arrange(g.reshape(shape))

            @torch.compiler.disable
            def backward(g: Tensor) -> None:
                if self.ours:
                    return
                with torch.no_grad():
                    self._begin_pass()
                    if self._terms is None:
                        self._terms = self.method.terms(tap, x, rows(g))
                    if where is not None and self._counts:
                        self._commit(*where, x.detach(), rows(g))

            # An in-place operation behind a view leads the gradient past it, through what it is a view of.
            behind = base is not None and base.shape.numel() == shape.numel() and base.is_contiguous()
            tensor: Tensor = base if base is not None and behind and output.is_contiguous() else output
            tensor.register_hook(backward)
            if outside:
                samples = 1 if tap.layer.single(x) else x.shape[0]
                kept = None if self._empirical else x.detach()
                self.uses.append(Use(where, tap, kept, rows, get_gradient_edge(tensor), samples))
                if self._empirical:  # A use keeps the graph of a forward pass that may never go backward.
                    del self.uses[: -USES * len(self._handles)]

        self._handles += tap.layer.listen(tap.module, told)

    # ---------------------------------------------------------------- what the loss tells

    def before_backward(self, loss: Tensor) -> None:
        """Read from the graph of a loss how it joins its samples; take passes of our own through it.

        Args:
            loss: The loss, scaled and divided as it goes backward.

        Raises:
            ConfigError: If what the method must know cannot be read.
        """
        # Another optimizer's loss is none of ours.
        stops = {use.edge.node for use in self.uses}
        self.announced = reaches(loss.grad_fn, stops)
        if not self.announced:
            return
        samples = self.uses[-1].samples
        self.mean = self._is_mean(loss, stops, samples)
        if not self._empirical:
            self.passes += 1
            with self.ignoring():
                self.uses = fisher.observe(self, loss, samples)

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """Observe nothing for a while: passes of our own."""
        before, self.ours = self.ours, True
        try:
            yield
        finally:
            self.ours = before

    def _is_mean(self, loss: Tensor, stops: set[Node], samples: int) -> bool:
        engine = self.engine
        if engine.reduction is not None:
            return engine.reduction == "mean"
        scale = self.loss_scale / (self.accumulate or 1)
        told = joined(loss, stops, samples, scale)
        if told.mean is None and self.method.absolute(engine.base):
            raise ConfigError(
                f"{self.method}: its damping is in units of one sample's loss, and whether this loss ({told.where}) is "
                f"a mean or a sum over samples cannot be read from its graph: say reduction='mean' or reduction='sum' "
                f"beside the method, or give damping=Relative(...)."
            )
        return told.mean is not False

    def _check_recomputed(self, where: tuple[int, int, Block] | None) -> None:
        """Refuse a layer that runs with gradients only inside the backward pass, which ours cannot enter."""
        if not self._empirical and where is not None and where[:2] in self.watched and where[2] not in self.fired:
            raise ConfigError(
                f"{where[2].name}: {type(self.method).__name__}(fisher={self.method.fisher!r}) cannot reach into "
                f"checkpoint(..., use_reentrant=True): use use_reentrant=False, or fisher='empirical'."
            )

    # ---------------------------------------------------------------- what

    def _begin_pass(self) -> None:
        """Count backward passes; each has loss terms of its own."""
        if self._running:
            return
        self._running, self._terms = True, None
        self._counts = self.announced is not False  # Once losses are shown, other passes are none of theirs.
        self.passes += self._empirical

        def done() -> None:
            self._running = False
            if self.announced:
                self.announced = False

        torch.autograd.Variable._execution_engine.queue_callback(done)  # type: ignore[attr-defined]

    def _commit(self, index: int, row: int, block: Block, x: Tensor, g: Tensor) -> None:
        if not block.param.requires_grad:
            return
        if self._rowwise:
            self.rows.keep(block, x, g)
        if (index, row) not in self.watched or not self._empirical:
            return
        stats = self.engine.stacks[index].stats
        count, last = self.fired.get(block, (0, 0))
        if self.engine.access.cleared(block.param) and last != self.passes:
            # Gradients were set to none since: what is in the window belongs to them (another optimizer's turn).
            self.method.clear(stats, row)
            count = 0
        self.fired[block] = (count + (last != self.passes), self.passes)
        assert self._terms is not None
        g = g * ((self._terms if self.mean else 1.0) / self.loss_scale)
        # Several uses in one pass are positions of the same terms.
        terms = self._terms if last != self.passes else 0.0
        self.method.collect(stats, row, block, x, g, terms, self.engine.report.step)

    # ---------------------------------------------------------------- at the step

    def name_silent(self) -> None:
        """Name watched blocks that have a gradient although their layer's hooks have not fired, once each.

        Without rows they are never solved: they stay on the base.

        Raises:
            TrustError: If no loss was shown to a method that needs it.
        """
        if not self._empirical and self.announced is None and any(map(self.engine.lives, self.watched.values())):
            raise TrustError(
                f"{type(self.method).__name__}(fisher={self.method.fisher!r}) has not seen the loss: call "
                f"`engine.before_backward(loss)` before `loss.backward()` (in a LightningModule: "
                f"`self.manual_backward(loss)`), or use fisher='empirical'."
            )
        for block in self.watched.values():
            if self.engine.lives(block) and block not in self.fired and block.name not in self.silent:
                self.silent.add(block.name)
                warnings.warn(
                    f"{block.name} has a gradient, but its layer's hooks were not called in training mode: its weight "
                    f"is used functionally, or its code was compiled before this training without hooks (then call "
                    f"torch.compiler.reset() first). Without its layer's rows it stays on the base; "
                    f"route={{'base': ['{block.name}']}} says so.",
                    stacklevel=2,
                )

    def blocks(self) -> list[tuple[int, int]]:
        """(stack, row) of the watched blocks whose gradient is there."""
        return [place for place, block in self.watched.items() if self.engine.lives(block)]

    def spend(self) -> None:
        """Forget which blocks have fired, once their windows are folded."""
        for block in self.watched.values():
            if self.engine.lives(block):
                self.fired.pop(block, None)

    def factor(self) -> float:
        """K^2 over micro-batches, whose losses are divided by K before gradients are squared; K of a Hessian."""
        passes = max((count for count, _ in self.fired.values()), default=1)
        return float(self.accumulate or passes) ** (2 if self._empirical else 1)
