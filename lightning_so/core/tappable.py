"""Which parameters belong to layers whose rows can be tapped."""

from torch import Tensor, nn

from lightning_so.core.block import Tap
from lightning_so.layers import common as common
from lightning_so.layers import conv as conv
from lightning_so.layers import norm as norm
from lightning_so.layers.registry import lookup, names


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
