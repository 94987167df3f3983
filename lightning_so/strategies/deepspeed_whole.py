"""States of a DeepSpeed training as one process has them: brought together on rank 0, and taken apart on all ranks.

What is written is numbered as `model.parameters()`, in the order of the optimizer's groups. So torch, which goes by the
order, and FSDP, which goes by the numbers, read the same of it.
"""

import copy
import importlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_so.comm import Pieces, Sharded
from lightning_so.comm.access.zero import ZeroAccess
from lightning_so.errors import StateError

#: What a group of a file does not say of the optimizer that reads it.
OWN = ("params", "param_names")


@dataclass(frozen=True)
class Gathering:
    """Pieces of the parameters that DeepSpeed trains, brought together on rank 0, one at a time.

    Attributes:
        access: Where the pieces are.
        comm: How they travel.
        pieces: Where those of the other ranks are, by parameter.
    """

    access: ZeroAccess
    comm: Sharded
    pieces: dict[Tensor, Pieces]

    @classmethod
    def of(cls, access: ZeroAccess, comm: Sharded) -> "Gathering":
        """Tell all ranks where the pieces are: a collective."""
        params = trained(access)
        spans = comm.spans([access.span(param) for param in params])
        return cls(access, comm, {param: Pieces(of, 0) for param, of in zip(params, spans, strict=True)})

    def whole(self, param: Tensor, piece: Tensor) -> Tensor | None:
        """What is whole of a parameter, on rank 0 and the CPU; None elsewhere: a collective."""
        (found,) = self.comm.to_owners([piece.detach()], [self.pieces[param]])
        return None if found is None else found.view(self.access.shape(param)).cpu()


def trained(access: ZeroAccess) -> list[Tensor]:
    """The parameters that DeepSpeed trains, in the order of the groups."""
    return [param for group in access.groups() for param in group["params"]]


def numbers(module: nn.Module) -> dict[Tensor, int]:
    """The numbers of parameters in files."""
    return {param: number for number, param in enumerate(module.parameters())}


# ---------------------------------------------------------------- written


@torch.no_grad()
def weights(module: nn.Module, gathering: Gathering | None, *, frozen: bool) -> dict[str, Any]:
    """A module's whole state dict on rank 0, with the fp32 masters of what is trained: a collective.

    Args:
        module: The module.
        gathering: How masters come together; None where there are none.
        frozen: Whether parameters that need no gradient are wanted.

    Returns:
        The state dict; on other ranks it has no weights.
    """
    found, whole = dict[str, Any](), dict[Tensor, Tensor | None]()
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, nn.Parameter):
            found[name] = value.detach() if isinstance(value, Tensor) else value
        elif frozen or value.requires_grad:
            if value not in whole:
                whole[value] = _whole(value, gathering)
            found[name] = whole[value]
    return found


def _whole(param: nn.Parameter, gathering: Gathering | None) -> Tensor | None:
    if gathering is not None and param in gathering.pieces:
        return gathering.whole(param, gathering.access.weight(param))
    if not hasattr(param, "ds_id"):
        return param.detach()
    with _gathered([param]):
        return param.detach().cpu().clone()


@torch.no_grad()
def optimizer_state(module: nn.Module, gathering: Gathering) -> dict[str, Any]:
    """The optimizer's whole state on rank 0, in the form of torch: a collective.

    Args:
        module: Whose parameters are counted.
        gathering: How moments come together.

    Returns:
        Groups with the parameters that DeepSpeed trains, and their states; on other ranks without moments.
    """
    access, number = gathering.access, numbers(module)
    state = dict[int, dict[str, Any]]()
    for param in trained(access):
        of_param = access.state(access.client, param)
        if of_param:
            state[number[param]] = {
                key: (gathering.whole(param, value) if value.ndim else value.clone())
                if isinstance(value, Tensor)
                else value
                for key, value in of_param.items()
            }
    groups = [{**group, "params": [number[param] for param in group["params"]]} for group in access.groups()]
    return {"state": state, "param_groups": groups}


# ---------------------------------------------------------------- read


def read_weights(module: nn.Module, state_dict: dict[str, Any], access: ZeroAccess | None, *, strict: bool) -> None:
    """Load a whole state dict on every rank: into the module, and without rounding into the fp32 masters.

    A collective in stage 3, where parameters are brought together one module after the other.

    Args:
        module: The module.
        state_dict: What every rank has read of the file.
        access: Where the masters are; None where there are none.
        strict: Whether names must be those of the module.

    Raises:
        StateError: If names or shapes are others.
    """
    # Hooks of modules may rename what they find: the masters are to have the same.
    left = OrderedDict(state_dict)
    metadata = getattr(state_dict, "_metadata", {})
    missing, unexpected, errors = list[str](), list[str](), list[str]()

    def load(part: nn.Module, prefix: str) -> None:
        with _gathered(part.parameters(recurse=False)):
            of_part = metadata.get(prefix[:-1], {})
            part._load_from_state_dict(left, prefix, of_part, True, missing, unexpected, errors)
        for name, child in part._modules.items():
            if child is not None:
                load(child, f"{prefix}{name}.")

    load(module, "")
    if strict and (missing or unexpected):
        errors.append(f"Only in the file: {unexpected[:5]}; only in this module: {missing[:5]}")
    if errors:
        raise StateError(
            f"the file's weights are not those of {type(module).__name__}: {'; '.join(errors)}. Give the file's model, "
            "or set strict_loading=False where names may differ."
        )
    if access is not None:
        ours = set(trained(access))
        for name, param in module.named_parameters(remove_duplicate=False):
            if param in ours and name in left:
                _cut(access, param, left[name], access.weight(param))


@torch.no_grad()
def read_optimizer(access: ZeroAccess, groups: Sequence[Sequence[Tensor]], saved: dict[str, Any]) -> None:
    """Load an optimizer's whole state, in the form of torch: every rank takes its pieces.

    Args:
        access: Where they are.
        groups: The parameters of the user's groups, also those that are not trained.
        saved: What every rank has read of the file.

    Raises:
        StateError: If the file's groups are others, or DeepSpeed's flat tensors cannot hold what it has.
    """
    theirs, mine = ([len(params) for params in of] for of in ([g["params"] for g in saved["param_groups"]], groups))
    if theirs != mine:
        raise StateError(
            f"the file's optimizer has groups of {theirs} parameters, this run's has {mine}: make the same groups in "
            "configure_optimizers."
        )
    found = {
        param: saved["state"][key]
        for group, params in zip(saved["param_groups"], groups, strict=True)
        for key, param in zip(group["params"], params, strict=True)
        if key in saved["state"]
    }
    for number, group in enumerate(saved["param_groups"]):
        live = access.group(access.client, number)
        live.update({key: copy.deepcopy(value) for key, value in group.items() if key not in OWN})
        owned = set(groups[number])
        for master, params in zip(access.masters(), access.calls(), strict=True):
            if states := {param: found[param] for param in params if param in owned and param in found}:
                _fill(access, live, master, states)


def _fill(access: ZeroAccess, group: dict[str, Any], master: Tensor, states: dict[Tensor, dict[str, Any]]) -> None:
    """Make the state of a master from those of its parameters."""
    single = _single(access, states)
    # What is not there for each number is there once for all: that of the parameter with the most steps.
    steps = [float(state.get("step", 0)) for state in states.values()]
    if min(steps) != max(steps):
        rank_zero_warn(
            f"the checkpoint has parameters that were stepped {min(steps):.0f} times beside others with "
            f"{max(steps):.0f}. DeepSpeed keeps one count for both: the larger, as if gradients had been zero."
        )
    state = list(states.values())[steps.index(max(steps))]
    moments = {key for of_param in states.values() for key in of_param} - single
    on_device = group.get("capturable") or group.get("fused")
    live = access.client.state[master] = {
        key: value.to(master.device if on_device else value.device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
        if key in single
    }
    live.update({key: torch.zeros_like(master) for key in sorted(moments)})
    for param, of_param in states.items():
        pieces = access.state(access.client, param)
        for key in moments:
            if isinstance(whole := of_param.get(key), Tensor):
                _cut(access, param, whole, pieces[key])


def _single(access: ZeroAccess, states: dict[Tensor, dict[str, Any]]) -> set[str]:
    """What an optimizer keeps of a parameter that is no moment, such as `step`."""
    single = {"step"}
    for param, state in states.items():
        shape = access.shape(param)
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shape:
                raise StateError(
                    f"the file's optimizer keeps {key} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(shape)}: DeepSpeed's flat tensors hold one number for each of the parameter's. Use an "
                    "optimizer that does (AdamW, SGD, ...)."
                )
            if value is not None and not (isinstance(value, Tensor) and value.shape == shape):
                single.add(key)
    return single


def _cut(access: ZeroAccess, param: Tensor, whole: Tensor, piece: Tensor) -> None:
    """Write this rank's piece of a whole tensor."""
    first, last = access.span(param)
    with torch.no_grad():
        piece.copy_(whole.reshape(-1)[first:last].view(piece.shape))


def _gathered(params: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Have parameters of stage 3 whole for a while, and keep what rank 0 writes; nothing in other stages."""
    return importlib.import_module("deepspeed").zero.GatheredParameters(list(params), modifier_rank=0)
