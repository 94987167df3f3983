"""Which parameters belong to layers whose rows can be tapped."""

from torch import Tensor, nn

from lightning_so.contract.block import Tap
from lightning_so.layers import attention as attention
from lightning_so.layers import common as common
from lightning_so.layers import conv as conv
from lightning_so.layers import norm as norm
from lightning_so.layers import recurrent as recurrent
from lightning_so.layers.registry import lookup, refusal


def find(model: nn.Module) -> dict[Tensor, Tap | str]:
    """The layer of every weight that a registered layer holds, or the reason why a parameter is none or not tapped.

    Args:
        model: The model.

    Returns:
        By parameter; those of which no layer says anything, and biases that are columns, are not in it.
    """
    holders: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for param in module.parameters(recurse=False):
            holders.setdefault(param, []).append(name)
    shared = {param: f"tied: {names[0]} and {names[-1]} share it" for param, names in holders.items() if names[1:]}
    found: dict[Tensor, Tap | str] = {}
    for module in model.modules():
        for param, verdict in _seen(module, shared).items():
            # A layer that uses the weight of a layer inside it comes first, and it knows.
            found.setdefault(param, verdict)
    return found


def _seen(module: nn.Module, shared: dict[Tensor, str]) -> dict[Tensor, Tap | str]:
    """What a module says of its own parameters, and of those that it uses."""
    own, layers = dict(module.named_parameters(recurse=False)), lookup(module)
    if not layers:
        return {param: shared.get(param, refusal(module)) for name, param in own.items() if "weight" in name}
    params = dict(module.named_parameters(remove_duplicate=False))
    found: dict[Tensor, Tap | str] = {}
    columns: list[str | None] = []
    for layer in layers:
        weight, bias = params.get(layer.weight), params.get(layer.bias or "")
        if weight is not None:
            reason = shared.get(weight) or layer.refuse(module)
            found[weight] = reason or Tap(module, layer, layer.groups(module), None if bias in shared else bias)
            columns.append(layer.bias)
    for name, param in own.items():
        if param in shared:
            found[param] = shared[param]
        elif param not in found and name not in columns:
            found[param] = f"{name} of {type(module).__name__} is not a column of its matrix"
    return found
