"""Which layers have units that can be looked at: how many, and where their numbers lie in inputs and outputs."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

#: What an activation does to its units: they may be exactly zero for good; or lie at the ends of a range.
ZERO, TANH, SIGMOID = "zero", "tanh", "sigmoid"
ACTIVATIONS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Threshold, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish), ZERO),
    nn.Tanh: TANH,
    nn.Sigmoid: SIGMOID,
}
#: Hugging Face's linear layer, by name alone.
CONV1D = "transformers.pytorch_utils.Conv1D"


@dataclass(frozen=True)
class Units:
    """The units of a layer.

    Attributes:
        width: How many there are: features, or channels.
        axis: Where they are in inputs and outputs.
        own: What the layer's own activation does to them; None without one.
        kernel: Sizes and steps of the kernel that slides over its input; None elsewhere.
    """

    width: int
    axis: int = -1
    own: str | None = None
    kernel: tuple[tuple[int, ...], tuple[int, ...]] | None = None


def units_of(module: nn.Module) -> Units | None:
    """The units of a module; None if it is no layer that is known."""
    found: Any = module
    kind = type(module)
    if isinstance(module, nn.Linear):
        return Units(module.out_features)
    if isinstance(module, _ConvNd):
        around = None if isinstance(module, _ConvTransposeNd) else (module.kernel_size, module.dilation)
        return Units(module.out_channels, -len(module.kernel_size) - 1, kernel=around)
    if isinstance(module, _NormBase):
        return Units(module.num_features, 1)
    if isinstance(module, nn.GroupNorm):
        return Units(module.num_channels, 1)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return Units(module.normalized_shape[0]) if len(module.normalized_shape) == 1 else None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Units(module.embedding_dim)
    if isinstance(module, nn.RNNBase):
        width = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        return Units(width, own=None if module.proj_size else _recurrent(getattr(module, "mode", "")))
    if isinstance(module, nn.RNNCellBase):
        mode = f"RNN_{found.nonlinearity.upper()}" if isinstance(module, nn.RNNCell) else "GRU"
        return Units(module.hidden_size, own=_recurrent(mode))
    if isinstance(module, nn.MultiheadAttention):
        return Units(module.embed_dim)
    if f"{kind.__module__}.{kind.__qualname__}" == CONV1D:
        return Units(found.nf)
    return None


def activation_of(module: nn.Module) -> str | None:
    """What a module does, if it is an activation: `ZERO`, `TANH` or `SIGMOID`; else None."""
    return next((what for kind, what in ACTIVATIONS.items() if isinstance(module, kind)), None)


def numbers_of(found: Any) -> Tensor | None:
    """The first tensor of what a layer was given or gave; None where it holds no plain numbers.

    Args:
        found: A tensor, or what holds it in front: (output, state), a packed sequence.

    Returns:
        The tensor.
    """
    while isinstance(found, tuple | list) and found:
        found = found[0]
    # Others hold their numbers elsewhere, or look as if they had some.
    if type(found) not in (Tensor, nn.Parameter):
        return None
    tensor = cast(Tensor, found)
    return tensor if not tensor.is_nested and tensor.ndim and tensor.numel() else None


def _recurrent(mode: str) -> str:
    """What the outputs of a recurrent layer are: those of LSTM and GRU lie in a tanh's range."""
    return ZERO if mode == "RNN_RELU" else TANH
