"""Convolutions of one to three dimensions, plain and transposed, as rows. Source: Grosse and Martens 2016 (KFC).

Legend: Q groups, N samples, T positions, P some of all, C channels, O output channels, k entries of a kernel.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_so.layers.registry import Layer, register

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """Patches of a convolution in its weight's own order, (Q, N, T, C/Q * k)."""
    return _all(module, _padded(module, x))


def patches_at(module: nn.Module, x: Tensor, numbers_P: Tensor) -> Tensor:
    """Some of them, (Q, P, C/Q * k)."""
    return _some(module, _padded(module, x), numbers_P)


def _padded(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, Conv)
    # torch keeps the padding of every side, the odd one of 'same' included, for the modes that it pads itself.
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(_batched(module, x), module._reversed_padding_repeated_twice, mode=mode)


def pixels(module: nn.Module, x: Tensor) -> Tensor:
    """Gradients of output pixels, or input pixels of a transposed convolution, (Q, N, T, C/Q)."""
    assert isinstance(module, Conv | Transposed)
    return _batched(module, x).flatten(2).unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2)


def patches_out(module: nn.Module, g: Tensor) -> Tensor:
    """What reaches the patch that each input pixel of a transposed convolution writes, (Q, N, T, O/Q * k)."""
    return _all(module, _trimmed(module, g))


def patches_out_at(module: nn.Module, g: Tensor, numbers_P: Tensor) -> Tensor:
    """Some of them, (Q, P, O/Q * k)."""
    return _some(module, _trimmed(module, g), numbers_P)


def _trimmed(module: nn.Module, g: Tensor) -> Tensor:
    assert isinstance(module, Transposed)
    # Output padding is what of the padding at the end is output after all.
    ends = zip(reversed(module.padding), reversed(module.output_padding), strict=True)
    return F.pad(_batched(module, g), [side for p, extra in ends for side in (int(p), int(p) - extra)])


def _all(module: nn.Module, x: Tensor) -> Tensor:
    """All windows of a padded input, (Q, N, T, C/Q * k)."""
    windows, dims = _windows(module, x)
    return windows.flatten(2, 1 + dims).flatten(3)


def _some(module: nn.Module, x: Tensor, numbers_P: Tensor) -> Tensor:
    """The windows at some positions, counted through all samples, (Q, P, C/Q * k)."""
    windows, dims = _windows(module, x)
    places: list[Tensor] = []
    for size in reversed(windows.shape[2 : 2 + dims]):
        places.insert(0, numbers_P % size)
        numbers_P = numbers_P // size
    return windows[(slice(None), numbers_P, *places)].flatten(2)


def _windows(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """All windows of a padded input as a view, (Q, N, positions, C/Q, kernel), and how many dimensions both have."""
    assert isinstance(module, Conv | Transposed)
    dims = len(module.kernel_size)
    for axis, (k, d, s) in enumerate(zip(module.kernel_size, module.dilation, module.stride, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    x = x.unflatten(1, (module.groups, -1))  # (N, Q, C/Q, positions, kernel)
    return x.movedim(2, 2 + dims).transpose(0, 1), dims


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

    register(conv, Layer(patches, pixels, groups=groups, single=single, inputs_at=patches_at))
    register(
        transposed,
        Layer(pixels, patches_out, groups=groups, input_side=0, single=single, bias=None, outputs_at=patches_out_at),
    )
