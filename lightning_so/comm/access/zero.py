"""Pieces of the parameters of DeepSpeed's ZeRO stages 1, 2 and 3, of which nothing but the engine is asked for.

The optimizer steps on flat fp32 tensors, the masters, each of which is this rank's part of several parameters:

    stages 1, 2   one master for each of the user's groups; of its parameters in a row, each rank has a range
    stage 3       one for each sub-group (`sub_group_size`) of a group; of every parameter each rank has a range
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_so.comm.access.whole import Access, private
from lightning_so.errors import ConfigError


class _Names(NamedTuple):
    """What the engine's optimizer calls things."""

    #: Flat masters.
    masters: str
    #: The parameters of each master, in the user's order.
    params: str


_NAMES = {
    1: _Names("single_partition_of_fp32_groups", "bit16_groups"),
    2: _Names("single_partition_of_fp32_groups", "bit16_groups"),
    3: _Names("fp32_partitioned_groups_flat", "fp16_groups"),
}


@dataclass(frozen=True)
class _Piece:
    """Where a parameter is.

    Attributes:
        master: Number of its master.
        start: Where this rank's piece begins in it.
        span: What this rank has of the parameter.
        place: Number of its gradient in the list of those of the master; -1 where the piece is empty.
    """

    master: int
    start: int
    span: tuple[int, int]
    place: int

    @property
    def size(self) -> int:
        return self.span[1] - self.span[0]


class ZeroAccess(Access):
    """Parameters of a DeepSpeed engine: pieces of the fp32 masters, and of what belongs to them.

    Gradients are there from the end of `engine.backward` to that of `engine.step`, at the accumulation boundary only.
    Before `engine.step` they carry the loss scale and are not clipped; within the client optimizer's step (in its
    hooks) they are unscaled and clipped. A parameter that got no gradient has zeros in stages 1 and 2, and in stage 3
    (deepspeed 0.19.8) what it had the last time: DeepSpeed steps with that.

    The client optimizer steps, and calls its hooks, once for every entry of `calls()`. Right after each of these
    steps the engine copies that master to the weights of the forward pass: what shall come into them has to be
    written in the hook.

    Attributes:
        engine: The engine.
    """

    sharded = True

    def __init__(self, engine: Any) -> None:
        """Find the parameters.

        Args:
            engine: What `deepspeed.initialize` gave.

        Raises:
            ConfigError: If the engine's optimizer is none of those of ZeRO, or has an option that is not supported.
        """
        refuse(engine)
        self.engine, self._zero = engine, engine.optimizer
        stage = int(engine.zero_optimization_stage())
        self._names, self._third = _NAMES[stage], stage == 3
        locate = _rows_of_shards if self._third else _ranges_of_groups
        self._pieces: dict[Tensor, _Piece] = locate(self._zero)
        self._hyper: dict[int, dict[str, Any]] = {}
        groups = self._groups_of_client()
        if len(groups) <= max(self._owners()):
            # Its Adagrad is made anew by DeepSpeed, with one group for all and the defaults.
            raise ConfigError(
                f"DeepSpeed has left {type(self.client).__name__} {len(groups)} of {max(self._owners()) + 1} parameter "
                "groups. Use one group, or an optimizer that DeepSpeed does not make anew (AdamW, SGD, ...)."
            )

    @property
    def client(self) -> Optimizer:
        """The user's optimizer, whose hooks the engine's step calls; not always the object that the user made."""
        return self._zero.optimizer

    def calls(self) -> list[list[Tensor]]:
        """The parameters that each call of the client optimizer's step finishes, in the order of the calls."""
        return [list(params) for params in private(self._zero, self._names.params)]

    def masters(self) -> list[Tensor]:
        """What those calls step on."""
        return list(private(self._zero, self._names.masters))

    def groups(self, optimizer: Optimizer | None = None) -> list[dict[str, Any]]:
        """The user's groups as they were: parameters of the model, with the hyper-parameters of this moment."""
        masters, owners = self.calls(), self._owners()
        return [
            {**group, "params": [p for master, owner in enumerate(owners) if owner == number for p in masters[master]]}
            for number, group in sorted(self._groups_of_client().items())
        ]

    def group(self, optimizer: Optimizer | None, number: int) -> dict[str, Any]:
        """See `Access.group`."""
        return self._groups_of_client()[number]

    def shape(self, param: Tensor) -> torch.Size:
        """Shape of the whole parameter."""
        return torch.Size(getattr(param, "ds_shape", param.shape))

    def span(self, param: Tensor) -> tuple[int, int]:
        """First number of the whole parameter that this rank holds, and the one after the last."""
        return self._piece(param).span

    def weight(self, param: Tensor) -> Tensor:
        """This rank's piece of the fp32 master, changed in place; one-dimensional."""
        piece = self._piece(param)
        return self._master(piece).detach().narrow(0, piece.start, piece.size)

    def grad(self, param: Tensor) -> Tensor | None:
        """This rank's piece of the averaged gradient, flat, changed in place; None where there is no gradient.

        Args:
            param: The parameter.

        Returns:
            The piece, in the dtype in which the engine accumulates.

        Raises:
            ConfigError: If the engine keeps gradients in another way than expected.
        """
        piece = self._piece(param)
        master = self._master(piece)
        if master.grad is not None:  # Within the client's step.
            return master.grad.view(-1).narrow(0, piece.start, piece.size)
        found = private(self._zero, "averaged_gradients").get(piece.master)
        if found is None or not self.engine.is_gradient_accumulation_boundary():
            return None
        if not piece.size:
            return master.detach()[:0]
        grad = found[piece.place]
        if self._third:
            return grad.view(-1).narrow(0, 0, piece.size)
        if grad.numel() != piece.size:
            raise ConfigError(
                f"DeepSpeed has a gradient of {grad.numel()} numbers where the piece of a parameter of shape "
                f"{tuple(self.shape(param))} has {piece.size}. Tested with deepspeed 0.19.8: install that."
            )
        return grad.view(-1)

    def state(self, optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter, tensors as this rank's pieces, changed in place; empty at first.

        Sliced here: DeepSpeed 0.19.8 finds none of a second group (it looks for all after the first has stepped).
        What is no moment (`step`) is one for all parameters of the master.

        Args:
            optimizer: The engine's optimizer or the client's.
            param: The parameter.

        Returns:
            The state.
        """
        piece = self._piece(param)
        master = self._master(piece)
        return {
            key: value.narrow(0, piece.start, piece.size)
            if isinstance(value, Tensor) and value.shape == master.shape
            else value
            for key, value in optimizer.state.get(master, {}).items()
        }

    def cleared(self, param: Tensor) -> bool:
        """See `Access.cleared`: the parameters have no gradients of their own."""
        return False

    def withhold(self, param: Tensor) -> Tensor | None:
        """See `Access.withhold`: DeepSpeed steps all the same, with a gradient of zero."""
        grad = self.grad(param)
        if grad is None:
            return None
        kept = grad.clone()
        grad.zero_()
        return kept

    def give_back(self, param: Tensor, withheld: Tensor | None) -> None:
        """See `Access.give_back`: the engine has used its gradients up."""

    def _piece(self, param: Tensor) -> _Piece:
        if (piece := self._pieces.get(param)) is not None:
            return piece
        raise ConfigError(
            f"a parameter of shape {tuple(self.shape(param))} is none of the {len(self._pieces)} that DeepSpeed's "
            "optimizer trains. Ask for parameters of groups()."
        )

    def _master(self, piece: _Piece) -> Tensor:
        return self.masters()[piece.master]

    def _owners(self) -> list[int]:
        """The number of the user's group that each master belongs to."""
        numbers = range(len(self.masters()))
        if self._third:
            owners = private(self._zero, "sub_group_to_group_id")
            return [owners[number] for number in numbers]
        return list(numbers)

    def _groups_of_client(self) -> dict[int, dict[str, Any]]:
        """The client's groups, by number: within its step, stages 1 and 2 leave it one of them alone."""
        groups = self.client.param_groups
        if self._third:
            return dict(enumerate(groups))
        numbers = {id(master): number for number, master in enumerate(self.masters())}
        self._hyper |= {numbers[id(group["params"][0])]: group for group in groups}
        return self._hyper


def _ranges_of_groups(zero: Any) -> dict[Tensor, _Piece]:
    """Stages 1 and 2: a group's parameters lie in a row, in the engine's order, and each rank has a part of the row."""
    pieces: dict[Tensor, _Piece] = {}
    rows = zip(private(zero, "round_robin_bit16_groups"), private(zero, "round_robin_bit16_offsets"), strict=True)
    for master, (params, offsets) in enumerate(rows):
        size = int(private(zero, "partition_size")[master])
        begin = size * dist.get_rank(private(zero, "real_dp_process_group")[master])
        filled = entries = 0
        for param, offset in zip(params, offsets, strict=True):
            numel = param.numel()
            start, stop = (min(max(edge - offset, 0), numel) for edge in (begin, begin + size))
            here = max(offset - begin, 0)
            place = -1
            if stop > start:
                entries += here > filled  # Padding between parameters has an entry of its own.
                place, filled = entries, here + stop - start
            entries += stop > start
            pieces[param] = _Piece(master, here if stop > start else 0, (start, stop), place)
    return pieces


def _rows_of_shards(zero: Any) -> dict[Tensor, _Piece]:
    """Stage 3: each parameter is cut in equal parts, the last ones padded; a rank's parts lie in a row."""
    pieces: dict[Tensor, _Piece] = {}
    for master, params in enumerate(private(zero, "fp16_groups")):
        start = 0
        for place, param in enumerate(params):
            size, numel = private(param, "partition_numel")(), private(param, "ds_numel")
            begin = size * dist.get_rank(private(param, "ds_process_group"))
            span = min(begin, numel), min(begin + size, numel)
            pieces[param] = _Piece(master, start, span, place)
            start += size
    return pieces


def refuse(engine: Any) -> None:
    """Say no to what keeps its numbers elsewhere.

    Args:
        engine: DeepSpeed's engine.

    Raises:
        ConfigError: If it does.
    """
    stage, kind = int(engine.zero_optimization_stage()), type(engine.optimizer).__name__
    if stage not in _NAMES or not hasattr(engine.optimizer, _NAMES[stage].masters):
        raise ConfigError(
            f"DeepSpeed's {kind} at ZeRO stage {stage} is not supported: stages 1 to 3 are, and stage 0 in fp32. In "
            "half precision use stage 1 without data_types.grad_accum_dtype, or stage 2 or 3."
        )
    weights = engine.zero_offload_param()
    offloaded = weights is not None and weights.device not in (None, "none")
    for option, found in {"offload_optimizer": engine.zero_use_cpu_optimizer(), "offload_param": offloaded}.items():
        if found:
            raise ConfigError(
                f"DeepSpeed's zero_optimization.{option} is not supported: masters, gradients or weights are "
                "elsewhere. Take it out of the configuration."
            )
    if engine.has_moe_layers:
        raise ConfigError(
            "DeepSpeed's mixture-of-experts layers are not supported: ranks hold different parameters. Use experts "
            "that all ranks have."
        )
