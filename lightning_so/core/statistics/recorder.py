"""The recorder: hooks on watched layers add their inputs and output gradients to the method's windows as they pass.

A forward hook keeps the input and hooks the output *tensor*: its gradient comes once for every use of the layer,
whatever checkpointing does to the forward pass, and before an in-place activation behind it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lightning_so.contract.block import Block, Tap, Use
from lightning_so.contract.method import ActsOnRows, ObservesRows
from lightning_so.core.host import Host
from lightning_so.core.report import Report
from lightning_so.core.schedule.units import Place, Units
from lightning_so.core.statistics import fisher
from lightning_so.core.statistics.labels import Labels
from lightning_so.core.statistics.layer_call import REMEMBERED, LayerCall
from lightning_so.core.statistics.loss import LossFacts, is_mean, written
from lightning_so.core.statistics.observation import Observation, name_silent
from lightning_so.errors import TrustError
from lightning_so.linalg.precision import FullPrecision
from lightning_so.losses.graph import reaches


class Recorder:
    """Hooks the layers of one method that the coming step watches, and adds their rows to the windows.

    Attributes:
        method: The method.
        facts: What is known of the loss.
        seen: What this step has observed.
        labels: Whose labels output gradients are of.
        silent: Names of blocks with a gradient whose layer has not fired.
        ours: Whether passes are our own.
    """

    def __init__(self, method: ObservesRows, units: Units, host: Host, report: Report, reduction: str | None) -> None:
        """Nothing is hooked yet.

        Args:
            method: The method.
            units: Its stacks, and when their blocks are watched.
            host: The training.
            report: Tells the step.
            reduction: Whether the loss is a "mean" or a "sum" over samples; None where its graph tells.
        """
        self.method, self.facts, self.seen = method, LossFacts(mean=reduction != "sum"), Observation()
        self.silent, self.ours, self._handles = set[str](), False, list[Any]()
        self._units, self._host, self._report, self._reduction = units, host, report, reduction
        single = host.team.ranks == 1 and host.base.linear
        self._rowwise = isinstance(method, ActsOnRows) and method.rowwise and single
        self.labels = Labels.of(method.fisher, sharded=host.access.sharded)
        self._output: Tap | None = None
        self._latest: Tap | None = None
        self._timed: Callable[[], AbstractContextManager[None]] = nullcontext

    # ---------------------------------------------------------------- when

    def arm(self, step: int, timed: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Hook the layers of the units that a step watches.

        Args:
            step: The coming step of the engine.
            timed: Gives a context around what a hook does in a backward pass.
        """
        self.disarm()
        self._timed = timed
        stacks, before = self._units.stacks, self.seen
        places = self._units.schedule.watched(step)
        self._forget_rows()  # not folded: the step was skipped, or the block has no gradient
        watched = {
            (index, row): stacks[index].blocks[row] for index, row in places if stacks[index].method is self.method
        }
        self.seen = Observation(watched, counts=before.counts)
        taps = []
        for index, stack in enumerate(stacks):
            for row, block in enumerate(stack.blocks):
                if stack.method is not self.method or ((index, row) not in watched and not self._rowwise):
                    continue
                assert block.tap is not None
                self._hook(block.tap, (index, row, block))
                taps.append(block.tap)
        if self._output is not None and self._output not in taps:
            self._hook(self._output, None)

    def _forget_rows(self) -> None:
        """Clear the windows of the blocks that have fired."""
        for (index, row), block in self.seen.watched.items():
            if block in self.seen.fired:
                self.method.clear(self._units.stacks[index].stats, [row])

    def look_away(self) -> None:
        """Watch nothing more at this step."""
        self.disarm()
        self.seen = Observation(counts=self.seen.counts)

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
                self.seen.running = False  # also after a backward pass that raised
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
                with torch.no_grad(), self._timed():
                    self._begin_pass()
                    # A batch, or an expert's part of one, may be without samples.
                    if self.seen.terms is None and g.numel():
                        terms = self.seen.terms = self.method.terms(tap, x, rows(g))
                        self.seen.unit = (terms if self.facts.mean else 1.0) / self.facts.scale
                        if self._host.base.linear:
                            self.seen.written = written(self.seen.loss, self.facts, terms, self._host.team.ranks)
                    if where is not None and self.seen.counts:
                        self._commit(*where, x.detach(), rows(g) if g.numel() else None)

            # An in-place operation behind a view leads the gradient past it, through what it is a view of.
            behind = base is not None and base.shape.numel() == shape.numel() and base.is_contiguous()
            tensor: Tensor = base if base is not None and behind and output.is_contiguous() else output
            tensor.register_hook(backward)
            if outside:
                samples = 1 if tap.layer.single(x) else x.shape[0]
                kept = None if self.labels.empirical else x.detach()
                self.seen.calls.append(LayerCall(where, tap, kept, rows, get_gradient_edge(tensor), samples))
                if self.labels.empirical:  # A call keeps the graph of a forward pass that may never go backward.
                    del self.seen.calls[: -REMEMBERED * len(self._handles)]

        def noted(x: Tensor, output: Tensor, arrange: Callable[[Tensor], Tensor]) -> None:
            with self._timed():
                told(x, output, arrange)

        self._handles += tap.layer.listen(tap.module, noted)

    # ---------------------------------------------------------------- what the loss tells

    def before_backward(self, loss: Tensor) -> None:
        """Read from the graph of a loss how it joins its samples; take passes of our own through it.

        Args:
            loss: The loss, scaled and divided as it goes backward.

        Raises:
            ConfigError: If what the method must know cannot be read.
        """
        self.seen.losses += 1
        # Another optimizer's loss is none of ours.
        stops = {call.edge.node for call in self.seen.calls}
        self.facts.announced = reaches(loss.grad_fn, stops)
        if not self.facts.announced:
            return
        self.seen.loss = loss.detach()
        if samples := next((call.samples for call in reversed(self.seen.calls) if call.samples), 0):
            if self.labels.open:
                bent = not self._host.base.linear
                self.labels.decide(loss, [call.edge for call in self.seen.calls], samples, bent=bent)
            # Of drawn labels the curvature is that of the loss as it is written.
            needed = self.labels.empirical and self.method.needs_loss_unit(self._host.base)
            by = self.method if needed else None
            self.facts.mean = is_mean(loss, stops, samples, self.facts, self._reduction, by)
        if self.labels.found in ("sampled", "exact"):
            self.seen.passes += 1
            asked = self.method, self.labels.found, self.seen, self.facts, self._units, self._host, loss, samples
            with self.ignoring():
                self.seen.calls = fisher.observe(*asked, self._report.step)

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """Have the hooks observe nothing inside the context: passes of our own run there."""
        before, self.ours = self.ours, True
        try:
            yield
        finally:
            self.ours = before

    def _check_recomputed(self, where: tuple[int, int, Block] | None) -> None:
        """Notice a layer that runs with gradients only inside the backward pass, which ours cannot enter."""
        if self.labels.empirical or where is None:
            return
        if where[:2] in self.seen.watched and where[2] not in self.seen.fired:
            self.labels.recomputed(where[2].name, type(self.method).__name__)
            self._forget_rows()

    # ---------------------------------------------------------------- what

    def _begin_pass(self) -> None:
        """Count backward passes; each has loss terms of its own."""
        if self.seen.running:
            return
        self.seen.running, self.seen.terms = True, None
        self.seen.counts = self.facts.announced is not False  # Once losses are shown, other passes are none of theirs.
        if self.labels.open and self.facts.announced is None:
            self.labels.settle("the loss was not shown to `engine.before_backward`")
        self.seen.passes += self.labels.empirical

        def done() -> None:
            self.seen.running = False
            if self.facts.announced:
                self.facts.announced = False

        torch.autograd.Variable._execution_engine.queue_callback(done)  # type: ignore[attr-defined]

    @FullPrecision()
    def _commit(self, index: int, row: int, block: Block, x: Tensor, g: Tensor | None) -> None:
        """Add one use of a layer to the windows, one without samples (None) in name alone."""
        if not block.param.requires_grad:
            return
        if self._rowwise and g is not None:
            self.seen.rows.keep(block, x, g)
        if (index, row) not in self.seen.watched or not self.labels.empirical:
            return
        stats = self._units.stacks[index].stats
        _, last = self.seen.fired.get(block, (0, 0))
        if self._host.access.cleared(block.param) and last != self.seen.passes:
            # Gradients were set to none since: what is in the window belongs to them (another optimizer's turn).
            self.method.clear(stats, [row])
            self.seen.fired.pop(block, None)
        self.seen.fire(block)
        if g is None:
            return
        assert self.seen.terms is not None
        # Several uses in one pass are positions of the same terms.
        first = self.seen.counted.get(block) != self.seen.passes
        told = (self.seen.terms, self.seen.written) if first else (0.0, None)
        self.seen.counted[block] = self.seen.passes
        self.method.collect(stats, row, block, Use(x, g, self.seen.unit, told[0], self._report.step, told[1]))

    # ---------------------------------------------------------------- at the step

    def name_silent(self, lives: Callable[[Block], bool]) -> None:
        """Name watched blocks that have a gradient although their layer's hooks have not fired, once each.

        Without rows they are never solved: they stay on the base.

        Args:
            lives: Whether a block has a gradient.

        Raises:
            TrustError: If no loss was shown to a method that needs it.
        """
        if self.labels.of_loss and self.facts.announced is None and any(map(lives, self.seen.watched.values())):
            raise TrustError(
                f"{type(self.method).__name__}(fisher={self.method.fisher!r}) has not seen the loss: call "
                f"`engine.before_backward(loss)` before `loss.backward()` (in a LightningModule: "
                f"`self.manual_backward(loss)`), or use fisher='empirical'."
            )
        if self.facts.announced is not None and not self.seen.losses:
            return  # No loss of ours went backward: gradients are older, or of a search for a rate.
        name_silent(self.seen, self.silent, lives)

    @property
    def share(self) -> float:
        """Which share of the method's blocks this step has watched."""
        blocks = sum(len(stack.blocks) for stack in self._units.stacks if stack.method is self.method)
        return len(self.seen.watched) / max(1, blocks)

    def places(self, lives: Callable[[Block], bool]) -> list[Place]:
        """The watched blocks whose gradient is there."""
        return [place for place, block in self.seen.watched.items() if lives(block)]

    def spend(self, lives: Callable[[Block], bool]) -> None:
        """Forget which blocks have fired, once their windows are folded."""
        for block in self.seen.watched.values():
            if lives(block):
                self.seen.fired.pop(block, None)

    def factor(self) -> float:
        """K^2 over micro-batches, whose losses are divided by K before gradients are squared; K of a Hessian."""
        passes = max((count for count, _ in self.seen.fired.values()), default=1)
        return float(self.facts.accumulate or passes) ** (2 if self.labels.empirical else 1)
