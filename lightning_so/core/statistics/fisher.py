"""The passes of a Fisher matrix that does not take the batch's own labels: from the loss to the watched outputs.

    sampled:  one pass, labels drawn from the model's own distribution, or random signs; E G is the Gauss-Newton G
    exact:    one pass a column of B, H = B B' the Hessian of the loss function in the predictions

They run before the loss' own backward pass, on the same graph, and end at the outputs: no `.grad` is touched.
Source: Martens 2014, arXiv 1412.1193; Botev, Ritter and Barber 2017, arXiv 1706.03662.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lightning_so.contract.block import Block, Use
from lightning_so.contract.method import ObservesRows
from lightning_so.core.host import Host
from lightning_so.core.schedule.units import Units
from lightning_so.core.statistics.layer_call import LayerCall
from lightning_so.core.statistics.loss import LossFacts, written
from lightning_so.core.statistics.observation import Observation
from lightning_so.errors import ConfigError
from lightning_so.linalg.precision import FullPrecision
from lightning_so.losses import common as common
from lightning_so.losses.curvature import Curvature
from lightning_so.losses.graph import heads
from lightning_so.losses.registry import Head, unknown

Gradients = list[Tensor | None]


#: Most passes of an exact Fisher matrix in one micro-batch.
MOST = 4096
#: Draws that are told apart: of the micro-batches of a step, and of the loss functions of a micro-batch.
MICRO_BATCHES, HEADS = 256, 16


def observe(
    method: ObservesRows,
    how: str,
    seen: Observation,
    facts: LossFacts,
    units: Units,
    host: Host,
    loss: Tensor,
    samples: int,
    step: int,
) -> list[LayerCall]:
    """Add what passes of our own give to the windows of the watched blocks.

    Args:
        method: The method; its hooks are quiet.
        how: "sampled" or "exact".
        seen: What the step has observed of it; `fired` changes.
        facts: What is known of the loss.
        units: Its stacks, whose windows grow.
        host: The training.
        loss: The loss, before its backward pass.
        samples: Samples of the micro-batch; of none nothing is observed.
        step: Steps made.

    Returns:
        The calls that the loss does not reach: another loss may.
    """
    name = f"{type(method).__name__}(fisher={how!r})"
    for (index, row), block in seen.watched.items():
        if host.access.cleared(block.param):
            # Gradients were set to none since: what is in the window belongs to them.
            method.clear(units.stacks[index].stats, [row])
            seen.fired.pop(block, None)
    if not samples:
        for call in seen.calls:
            if call.where is not None and call.where[:2] in seen.watched:
                seen.fire(call.where[2])
        return []
    passes = Passes(loss, [call.edge for call in seen.calls], samples, name)
    seed = seed_of(step, seen.passes, host.team.rank, host.team.ranks)
    with torch.no_grad():
        drawn = passes.sampled(seed)
        reached = [(call, g) for call, g in zip(seen.calls, drawn, strict=True) if g is not None and g.numel()]
        if reached:
            last, g = reached[-1]
            assert last.x is not None
            terms = method.terms(last.tap, last.x, last.rows(g))
            found = [drawn] if how == "sampled" else passes.exact()
            seen.written = (
                written(loss.detach(), facts, terms, host.team.ranks, given=False) if host.base.linear else None
            )
            _collect(method, seen, facts, units, found, terms, step)
    return [call for call, g in zip(seen.calls, drawn, strict=True) if g is None]


def seed_of(step: int, micro_batch: int, rank: int, ranks: int) -> int:
    """A number for every draw, from which a resumed run draws what it would have drawn.

    Generators of the CPU take the last 32 bits of a seed, so places are counted and not shifted: no number comes again
    within 2^32 of them, which are 16,384 steps of 64 ranks, and 256 micro-batches of a step.

    Args:
        step: Steps made.
        micro_batch: Which of the step's.
        rank: This rank.
        ranks: How many there are.

    Returns:
        The first of `HEADS` seeds, one a loss function.
    """
    return ((step * MICRO_BATCHES + micro_batch) * ranks + rank) * HEADS


def _collect(
    method: ObservesRows,
    seen: Observation,
    facts: LossFacts,
    units: Units,
    passes: Iterable[Gradients],
    terms: Tensor | float,
    step: int,
) -> None:
    """Add the gradients of several passes, whose outer products sum."""
    # Their squares are weighted as the loss is: a mean divides them once by its terms, a scale multiplies them once.
    weight = terms if facts.mean else 1.0
    counted: set[Block] = set()
    for gradients in passes:
        for call, g in zip(seen.calls, gradients, strict=True):
            if g is None or call.where is None or call.x is None or call.where[:2] not in seen.watched:
                continue
            index, row, block = call.where
            if not block.param.requires_grad:
                continue
            seen.fire(block)
            if not g.numel():
                continue
            once, told = (0.0, None) if block in counted else (terms, seen.written)
            counted.add(block)
            dtype = torch.promote_types(g.dtype, torch.float32)
            unit = (torch.as_tensor(weight, dtype=dtype, device=g.device) / facts.scale).sqrt()
            use = Use(call.x, call.rows(g), unit, once, step, told)
            with FullPrecision():
                method.collect(units.stacks[index].stats, row, block, use)


class Passes:
    """Passes through the graph of one loss, from its loss functions to the outputs: sampled or exact."""

    def __init__(self, loss: Tensor, outputs: Sequence[GradientEdge], samples: int, method: str) -> None:
        """Find the loss functions.

        Args:
            loss: The loss, before its backward pass.
            outputs: Where the passes end.
            samples: Samples of the micro-batch.
            method: What errors call the method.

        Raises:
            ConfigError: If the loss is not a weighted sum of known loss functions.
        """
        stops: set[Node] = {edge.node for edge in outputs}
        self.loss, self.outputs, self.samples, self.method = loss, list(outputs), samples, method
        self.heads, other = heads(loss, stops)
        for head in self.heads:
            if not head.curvature.shape or head.curvature.shape[0] % samples:
                other = f"{head.node.name()} of no prediction a sample"
        if other is not None or not self.heads:
            way = "Use fisher='empirical', or add it with `lightning_so.losses.registry.register`."
            raise ConfigError(unknown(method, other, way))

    def sampled(self, seed: int) -> Gradients:
        """Gradients in the outputs, of one draw."""
        generators = {h: torch.Generator(self.loss.device).manual_seed(seed + n) for n, h in enumerate(self.heads)}
        return self._run({head: _drawn(head.curvature, generators[head]) for head in self.heads})

    def exact(self) -> Iterator[Gradients]:
        """Gradients in the outputs, of one column after the other.

        Raises:
            ConfigError: If there are too many.
        """
        counts = [head.curvature.columns(self.samples) for head in self.heads]
        if sum(counts) > MOST:
            raise ConfigError(
                f"{self.method} needs a backward pass for each of the {sum(counts):,} predictions of a sample; allowed "
                f"are {MOST:,}. Use fisher='sampled', which needs one."
            )
        for head, count in zip(self.heads, counts, strict=True):
            for index in range(count):
                yield self._run({head: _column(head.curvature, self.samples, index)})

    def _run(self, gradients: dict[Head, Callable[[Tensor], Tensor]]) -> Gradients:
        """Backward from the loss, where every head sends something else than its gradient; none where not given."""
        handles, weights = [], dict[Head, Tensor]()

        def replace(head: Head) -> Callable:
            def hook(leaving: tuple[Tensor | None, ...], arriving: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
                zeros = tuple(None if g is None else torch.zeros_like(g) for g in leaving)
                first = next(place for place, g in enumerate(leaving) if g is not None)
                if head not in gradients:
                    return zeros
                like = leaving[first]
                assert like is not None
                sent = gradients[head](weights[head]).to(like.dtype).reshape(like.shape)
                return (*zeros[:first], sent, *zeros[first + 1 :])

            return hook

        for head in self.heads:
            handles.append(head.overheard(weights))
            handles.append(head.node.register_hook(replace(head)))
        try:
            return list(torch.autograd.grad(self.loss, self.outputs, retain_graph=True, allow_unused=True))
        finally:
            for handle in handles:
                handle.remove()


def _drawn(curvature: Curvature, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda weights: curvature.draw(weights, generator)


def _column(curvature: Curvature, samples: int, index: int) -> Callable[[Tensor], Tensor]:
    return lambda weights: curvature.column(weights, samples, index)
