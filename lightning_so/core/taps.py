"""Taps: layer inputs and output gradients of watched layers, added to the method's statistics as they pass.

A forward hook keeps the input and hooks the output *tensor*: its gradient comes once for every use of the layer,
whatever checkpointing does to the forward pass, and before an in-place activation behind it.
"""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_so.core.block import Block, Tap
from lightning_so.core.method import RowWise, Tapped
from lightning_so.core.rows import Rows
from lightning_so.layers import common as common
from lightning_so.layers.registry import lookup, names

if TYPE_CHECKING:
    from lightning_so.core.engine import Engine


def find(model: nn.Module) -> dict[Tensor, Tap | str]:
    """The layer of every weight that a registered layer holds, or the reason why it cannot be tapped.

    Args:
        model: The model.

    Returns:
        By parameter; parameters of other modules are not in it.
    """
    found: dict[Tensor, Tap | str] = {}
    owners: dict[Tensor, str] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            continue
        layer = lookup(module)
        if weight in owners:
            found[weight] = f"tied: {owners[weight]} and {name} share it"
        elif layer is None:
            found[weight] = f"no rows for {type(module).__name__}; known: {', '.join(names())}"
        else:
            found[weight] = layer.refuse(module) or Tap(module, layer, layer.groups(module))
        owners[weight] = name
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module.out_proj.weight] = f"{name} uses it functionally: its hooks never fire"
    return found


class Recorder:
    """Hooks the layers that the coming step watches, and adds their rows to the windows.

    Attributes:
        accumulate: By how many micro-batches the loss of each was divided; None for as many as come.
        loss_scale: By what the loss was multiplied (a GradScaler's scale).
        silent: Names of blocks with a gradient whose layer has not fired.
        rows: Rows of this step, kept where gradients are preconditioned through them.
    """

    def __init__(self, engine: "Engine") -> None:
        """Nothing is hooked yet."""
        assert isinstance(engine.method, Tapped)
        self.engine, self.method = engine, engine.method
        self.accumulate: int | None = None
        self.loss_scale = 1.0
        self.silent: set[str] = set()
        self.rows = Rows()
        single = engine.comm.ranks == 1 and engine.base.linear
        self._rowwise = isinstance(engine.method, RowWise) and engine.method.rowwise and single
        self._watched: dict[tuple[int, int], Block] = {}
        self._handles: list[Any] = []
        self._output: nn.Module | None = None
        self._latest: nn.Module | None = None
        self._terms: Tensor | float | None = None
        self._passes = 0
        self._running = False
        self._fired: dict[Block, tuple[int, int]] = {}

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
        self._watched = {(u.stack, u.row): engine.stacks[u.stack].blocks[u.row] for u in units}
        self._fired, self._passes, self._terms, self._running = {}, 0, None, False
        modules = []
        for index, stack in enumerate(engine.stacks):
            for row, block in enumerate(stack.blocks):
                if (index, row) in self._watched:
                    self.method.clear(stack.stats, row)
                elif not self._rowwise:
                    continue
                assert block.tap is not None
                self._hook(block.tap.module, (index, row, block))
                modules.append(block.tap.module)
        if self._output is not None and self._output not in modules:
            self._hook(self._output, None)

    def disarm(self) -> None:
        """Take all hooks back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._output is None:
            self._output = self._latest

    def _hook(self, module: nn.Module, where: tuple[int, int, Block] | None) -> None:
        @torch.compiler.disable
        def forward(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            if torch._C._current_graph_task_id() == -1:
                self._running = False  # also after a backward pass that raised
            else:
                # A checkpoint's recomputation: its own backward, nested in this pass, must not count as another.
                self._begin_pass()
            if not (torch.is_grad_enabled() and module.training and output.requires_grad):
                return
            x = args[0] if args else kwargs["input"]
            self._latest = module

            @torch.compiler.disable
            def backward(g: Tensor) -> None:
                with torch.no_grad():
                    self._begin_pass()
                    if self._terms is None:
                        self._terms = self.method.terms(module, x, g.reshape(shape))
                    if where is not None:
                        self._commit(*where, x.detach(), g.reshape(shape))

            # An in-place operation behind a view leads the gradient past it, through what it is a view of.
            shape, base = output.shape, output._base
            behind = base is not None and base.shape.numel() == shape.numel() and base.is_contiguous()
            tensor: Tensor = base if base is not None and behind and output.is_contiguous() else output
            tensor.register_hook(backward)

        hook: Any = forward
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    # ---------------------------------------------------------------- what

    def _begin_pass(self) -> None:
        """Count backward passes; each has loss terms of its own."""
        if self._running:
            return
        self._running, self._terms = True, None
        self._passes += 1

        def done() -> None:
            self._running = False

        torch.autograd.Variable._execution_engine.queue_callback(done)  # type: ignore[attr-defined]

    def _commit(self, index: int, row: int, block: Block, x: Tensor, g: Tensor) -> None:
        if not block.param.requires_grad:
            return
        if self._rowwise:
            self.rows.keep(block, x, g)
        if (index, row) not in self._watched:
            return
        stats = self.engine.stacks[index].stats
        count, last = self._fired.get(block, (0, 0))
        if block.param.grad is None and last != self._passes:
            # Gradients were set to none since: what is in the window belongs to them (another optimizer's turn).
            self.method.clear(stats, row)
            count = 0
        self._fired[block] = (count + (last != self._passes), self._passes)
        assert self._terms is not None
        g = g * (self._terms / self.loss_scale)
        # Several uses in one pass are positions of the same terms.
        terms = self._terms if last != self._passes else 0.0
        self.method.collect(stats, row, block, x, g, terms, self.engine.report.step)

    # ---------------------------------------------------------------- at the step

    def name_silent(self) -> None:
        """Name watched blocks that have a gradient although their layer's hooks have not fired, once each.

        Without rows they are never solved: they stay on the base.
        """
        for block in self._watched.values():
            if block.live and block not in self._fired and block.name not in self.silent:
                self.silent.add(block.name)
                warnings.warn(
                    f"{block.name} has a gradient, but its layer was not called in training mode: its weight is used "
                    f"functionally. Without its layer's rows it stays on the base; route={{'base': ['{block.name}']}} "
                    f"says so.",
                    stacklevel=2,
                )

    def blocks(self) -> list[tuple[int, int]]:
        """(stack, row) of the watched blocks whose gradient is there."""
        return [place for place, block in self._watched.items() if block.live]

    def factor(self) -> float:
        """K^2 over micro-batches: each loss was divided by K before its gradients were squared."""
        passes = max((count for count, _ in self._fired.values()), default=1)
        return float(self.accumulate or passes) ** 2
