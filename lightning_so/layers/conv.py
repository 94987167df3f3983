"""Convolutions of one to three dimensions, plain and transposed, as rows. Source: Grosse and Martens 2016 (KFC).

Legend: Q groups, N samples, T positions, C channels, O output channels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.layers.registry import Layer, register

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """Patches of a convolution in its weight's own order, (Q, N, T, C/Q * k)."""
    assert isinstance(module, Conv)
    # torch keeps the padding of every side, the odd one of 'same' included, for the modes that it pads itself.
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(_batched(module, x), module._reversed_padding_repeated_twice, mode=mode)
    return _windows(module, x)


def pixels(module: nn.Module, x: Tensor) -> Tensor:
    """Gradients of output pixels, or input pixels of a transposed convolution, (Q, N, T, C/Q)."""
    assert isinstance(module, Conv | Transposed)
    return _batched(module, x).flatten(2).unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2)


def patches_out(module: nn.Module, g: Tensor) -> Tensor:
    """What reaches the patch that each input pixel of a transposed convolution writes, (Q, N, T, O/Q * k)."""
    assert isinstance(module, Transposed)
    # Output padding is what of the padding at the end is output after all.
    ends = zip(reversed(module.padding), reversed(module.output_padding), strict=True)
    sides = [side for p, extra in ends for side in (int(p), int(p) - extra)]
    return _windows(module, F.pad(_batched(module, g), sides))


def _windows(module: nn.Module, x: Tensor) -> Tensor:
    """All windows of a padded input, (Q, N, T, C/Q * k)."""
    assert isinstance(module, Conv | Transposed)
    dims = len(module.kernel_size)
    for axis, (k, d, s) in enumerate(zip(module.kernel_size, module.dilation, module.stride, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    x = x.unflatten(1, (module.groups, -1))  # (N, Q, C/Q, positions, kernel)
    x = x.movedim(2, 2 + dims).transpose(0, 1)
    return x.flatten(2, 1 + dims).flatten(3)


def _batched(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, Conv | Transposed)
    return x[None] if x.ndim < len(module.kernel_size) + 2 else x


def groups(module: nn.Module) -> int:
    """Groups of a convolution: each has weights and inputs of its own."""
    assert isinstance(module, Conv | Transposed)
    return module.groups


for dims, (conv, transposed) in enumerate(
    [(nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)], start=1
):

    def single(x: Tensor, least: int = dims + 2) -> bool:
        """Whether an input has no sample dimension."""
        return x.ndim < least

    register(conv, Layer(patches, pixels, groups=groups, single=single))
    register(
        transposed,
        Layer(pixels, patches_out, groups=groups, input_side=0, single=single, bias=None),
    )
