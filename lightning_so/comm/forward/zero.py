"""The weights that the forward pass reads under DeepSpeed, which are not those that its optimizer steps on.

A rank moves the numbers whose masters it has; then all ranks have them as after a step of the optimizer:

    stage 0       every rank moves all
    stages 1, 2   every rank has all, and they are exchanged
    stage 3       shards; the forward pass gathers them

Passes go around the engine: what it does when a gradient has come is taken away meanwhile, so that gradients stay where
they are, and their mean is taken here. Nothing of the engine has to be put back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_so.comm.access.whole import Access, private
from lightning_so.comm.forward.plain import Forward, Sent
from lightning_so.comm.local import Local
from lightning_so.comm.sharded import Sharded
from lightning_so.errors import ConfigError


class EngineForward(Forward):
    """Stage 0: every rank has, and moves, all."""

    def __init__(self, params: Sequence[Tensor], access: Access, comm: Local, engine: Any) -> None:
        """Remember them.

        Args:
            params: The parameters.
            access: Where their numbers are.
            comm: How ranks talk.
            engine: DeepSpeed's engine.
        """
        super().__init__(params, access)
        self._comm, self._engine = comm, engine

    def gradient(self, loss: Callable[[], Sent]) -> list[Tensor | None]:
        """See `Forward.gradient`: whole gradients, of which each rank takes its pieces once the mean is there."""
        self._spread()
        with _unheard(self.params):
            for param in self.params:
                param.grad = None
            loss().backward()
        whole = []
        for param in self.params:
            grad, param.grad = param.grad, None
            numel = self.access.shape(param).numel()
            whole.append(param.new_zeros(numel) if grad is None else grad.reshape(-1))
        mean = torch.cat([grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in whole])
        self._comm.sum(mean)
        mean /= self._comm.ranks
        parts = mean.split([grad.numel() for grad in whole])
        spans = (self.access.span(param) for param in self.params)
        return [part[first:last] for part, (first, last) in zip(parts, spans, strict=True)]

    @torch.no_grad()
    def take(self) -> None:
        """See `Forward.take`: a rank's masters into the forward pass, and those of all ranks."""
        for weight, param in zip(self.weights(), self.params, strict=True):
            weight.copy_(self.access.weight(param).view(weight.shape))
        self._spread()

    def _spread(self) -> None:
        """Have the weights of all ranks in the forward pass."""


class _RowsForward(EngineForward):
    """Stages 1 and 2: every rank has all, and moves a part."""

    def __init__(self, params: Sequence[Tensor], access: Access, comm: Local, engine: Any) -> None:
        """Tell all ranks who moves what: a collective."""
        super().__init__(params, access, comm, engine)
        assert isinstance(comm, Sharded)
        self._spans = comm.spans([access.span(param) for param in params])

    def weights(self) -> list[Tensor]:
        """See `Forward.weights`: of the engine's low-precision copies."""
        return [self._piece(param, self.access.span(param)) for param in self.params]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """See `Forward.kept`: from a copy, since others may not be there any more to ask."""
        copies = [param.detach().clone() for param in self.params]
        try:
            yield
        finally:
            for param, copy in zip(self.params, copies, strict=True):
                param.detach().copy_(copy)

    @torch.no_grad()
    def _spread(self) -> None:
        ranks = range(self._comm.ranks)
        pieces = [[self._piece(p, of[r]) for p, of in zip(self.params, self._spans, strict=True)] for r in ranks]
        mine = torch.cat([piece.view(torch.uint8) for piece in pieces[self._comm.rank]])
        wires = self._comm.gather(mine, [sum(piece.nbytes for piece in of_rank) for of_rank in pieces])
        for rank in ranks:
            parts = wires[rank].split([piece.nbytes for piece in pieces[rank]])
            for piece, part in zip(pieces[rank], parts, strict=True):
                piece.view(torch.uint8).copy_(part)

    def _piece(self, param: Tensor, span: tuple[int, int]) -> Tensor:
        return param.detach().view(-1)[slice(*span)]


class _ShardsForward(EngineForward):
    """Stage 3: each rank has shards, which the forward pass gathers."""

    def __init__(self, params: Sequence[Tensor], access: Access, comm: Local, engine: Any) -> None:
        """Refuse rounded copies.

        Raises:
            ConfigError: If the engine has them.
        """
        super().__init__(params, access, comm, engine)
        if engine.zero_quantized_weights():
            raise ConfigError(
                "curvature under DeepSpeed's zero_optimization.zero_quantized_weights is not supported: the forward "
                "pass reads rounded copies of the shards, and not what was moved. Take it out of the configuration."
            )

    def weights(self) -> list[Tensor]:
        """See `Forward.weights`: of the shards, whose ends may be padding."""
        spans = (self.access.span(param) for param in self.params)
        shards = [private(param, "ds_tensor").detach() for param in self.params]
        return [shard[: last - first] for shard, (first, last) in zip(shards, spans, strict=True)]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """See `Forward.kept`: gathered weights are let go of; small ones, which DeepSpeed keeps, are gathered anew."""
        try:
            yield
        except BaseException:
            self._spread()  # Others may not be there any more to gather with; the next pass does.
            raise
        self._anew()

    def take(self) -> None:
        """See `Forward.take`."""
        super().take()
        self._anew()

    def _anew(self) -> None:
        self._spread()
        if small := private(self._engine.optimizer, "persistent_parameters"):
            small[0].all_gather(small)

    def _spread(self) -> None:
        offload = private(self._engine.optimizer, "parameter_offload")
        private(offload, "release_backward_leftovers")()
        private(offload, "partition_all_parameters")()
        # Second copies (zero_hpz_partition_size), which DeepSpeed drops after its step too. Who has once asked for them
        # has them in every later training of the process.
        private(self._engine.optimizer, "invalidate_secondary_tensor")()


def engine_forward(params: Sequence[Tensor], access: Access, comm: Local, engine: Any) -> Forward:
    """The forward pass's side of an engine's parameters; see `forward_of`."""
    if any(param.dtype is torch.float16 for param in params):
        raise ConfigError(
            "curvature under DeepSpeed in fp16 is not supported: gradients need the engine's loss scale, and passes go "
            "around the engine. Use precision='bf16-mixed' or '32-true'."
        )
    stage = int(engine.zero_optimization_stage())
    kind = _ShardsForward if stage == 3 else _RowsForward if stage else EngineForward
    return kind(params, access, comm, engine)


@contextmanager
def _unheard(params: Sequence[Tensor]) -> Iterator[None]:
    """Call nothing when a gradient has come: not DeepSpeed, which would reduce it, count it and take it away."""
    hooks = [found for param in params if (found := private(param, "_post_accumulate_grad_hooks"))]
    kept = [dict(found) for found in hooks]
    for found in hooks:
        found.clear()
    try:
        yield
    finally:
        for found, before in zip(hooks, kept, strict=True):
            found.update(before)
