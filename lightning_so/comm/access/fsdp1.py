"""Pieces of the parameters of `FullyShardedDataParallel` (FSDP1), which it cuts from flat ones."""

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_so.comm.access.whole import Access, private
from lightning_so.errors import ConfigError


@dataclass(frozen=True)
class _Piece:
    """Where a parameter is.

    Attributes:
        shape: Shape of the whole parameter.
        span: What this rank has of it.
        flat: The flat parameter that it is in.
    """

    shape: torch.Size
    span: tuple[int, int]
    flat: Tensor


class FlatAccess(Access):
    """Parameters of FSDP1 with `use_orig_params=True`: one-dimensional views of the local part of a flat parameter.

    Valid outside forward and backward, where the parameters are such views. All sharding strategies are supported;
    replicas of `HYBRID_SHARD` have equal spans, `NO_SHARD` has whole parameters. Parameters that FSDP was told to
    ignore are whole on every rank.
    """

    sharded = True

    def __init__(self, model: nn.Module) -> None:
        """Find the parameters.

        Args:
            model: The model, in which modules are wrapped.

        Raises:
            ConfigError: If a module is wrapped with `use_orig_params=False`, or nothing is wrapped.
        """
        self._pieces: dict[Tensor, _Piece] = {}
        handles = [private(module, "_handle") for module in FullyShardedDataParallel.fsdp_modules(model)]
        if not handles:
            raise ConfigError(
                f"no module of {type(model).__name__} is wrapped by FullyShardedDataParallel. Pass the wrapped model."
            )
        for handle in handles:
            if handle is not None:  # A wrapper around modules that are all wrapped themselves has none.
                self._read(handle)

    def _read(self, handle: Any) -> None:
        flat = private(handle, "flat_param")
        if not private(handle, "_use_orig_params"):
            refuse(dtensors=False)
        shapes, params = private(flat, "_shapes"), private(flat, "_params")
        spans = _spans(private(flat, "_shard_param_infos"), [shape.numel() for shape in shapes])
        for param, shape, span in zip(params, shapes, spans, strict=True):
            self._pieces[param] = _Piece(torch.Size(shape), span, flat)

    def shape(self, param: Tensor) -> torch.Size:
        """Shape of the whole parameter."""
        piece = self._pieces.get(param)
        return param.shape if piece is None else piece.shape

    def span(self, param: Tensor) -> tuple[int, int]:
        """First number of the whole parameter that this rank holds, and the one after the last."""
        piece = self._pieces.get(param)
        return super().span(param) if piece is None else piece.span

    def grad(self, param: Tensor) -> Tensor | None:
        """This rank's piece of the reduced gradient, changed in place; None where there is no gradient."""
        piece = self._pieces.get(param)
        if piece is None or param.grad is not None or piece.span[0] != piece.span[1] or not param.requires_grad:
            return param.grad
        # FSDP leaves None where a rank has nothing of a parameter, which does not tell whether there is a gradient.
        whole = piece.flat.grad
        return None if whole is None else whole.view(-1)[:0]

    def cleared(self, param: Tensor) -> bool:
        """See `Access.cleared`: FSDP takes gradients away during backward passes, so that it cannot be seen."""
        return False


def _spans(infos: Any, sizes: list[int]) -> list[tuple[int, int]]:
    """What this rank has of each parameter of a flat one, in which they lie in order.

    Args:
        infos: FSDP's description of each.
        sizes: Numbers of each whole parameter.

    Returns:
        The spans. Parameters before this rank's part end before it, those after it have not begun.
    """
    here = [number for number, info in enumerate(infos) if info.in_shard]
    first = here[0] if here else len(sizes)  # Nothing but padding: behind all of them.
    return [
        (info.intra_param_start_idx, info.intra_param_end_idx + 1)
        if info.in_shard
        else ((size, size) if number < first else (0, 0))
        for number, (info, size) in enumerate(zip(infos, sizes, strict=True))
    ]


def refuse(*, dtensors: bool) -> NoReturn:
    """Say that parameters of FSDP1 cannot be told apart.

    Args:
        dtensors: Whether there are DTensors among them; flat parameters otherwise.

    Raises:
        ConfigError: Always.
    """
    if dtensors:
        raise ConfigError(
            "the model has DTensor parameters within FullyShardedDataParallel (FSDP1 with tensor parallelism), whose "
            "pieces are no ranges of rows. Use fully_shard (FSDP2, ModelParallelStrategy), or FSDP1 alone."
        )
    raise ConfigError(
        "the parameters are flat ones of FullyShardedDataParallel(use_orig_params=False), in which those of the model "
        "cannot be told apart. Wrap with use_orig_params=True (the default of Lightning's FSDPStrategy) and give the "
        "optimizer model.parameters() after wrapping; pass the wrapped model."
    )
