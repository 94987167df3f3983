"""Some rows of what a layer was given or gave, and how many directions they fill.

Legend: N samples and positions, D features, n rows that are taken.
"""

import math

import torch
from torch import Tensor

#: Rows that are taken of one call, and of these those that a rank is of; of fewer than the least, a rank says nothing.
ROWS, RANK_ROWS, LEAST_ROWS = 256, 64, 8
#: A feature whose variance is less than this share of its mean square is constant: what is left is rounding.
CONSTANT = 1e-10
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def places(leading: torch.Size, most: int, device: torch.device) -> tuple[Tensor, ...]:
    """Places spread evenly over some dimensions, none twice, and always the same ones.

    They step through all by their golden section, made prime to their number: even strides would meet one position of
    every sequence, where lengths are powers of two.

    Args:
        leading: The dimensions' sizes.
        most: How many places are wanted.
        device: Where.

    Returns:
        Their numbers in each dimension.
    """
    total = leading.numel()
    stride = max(1, int(total * GOLDEN))
    while math.gcd(stride, total) != 1:
        stride += 1
    number, found = torch.arange(min(total, most), device=device) * stride % total, []
    for size in reversed(leading):
        found.insert(0, number % size)
        number = number // size
    return tuple(found)


def sampled(x: Tensor, axis: int, most: int) -> Tensor:
    """Rows of a tensor, one a sample and position, spread evenly.

    Args:
        x: Any shape with N > 0.
        axis: Where its features are.
        most: How many rows are taken.

    Returns:
        Rows, shape (n, D), float32 (float64 stays), without a graph; copies, but for a matrix that has few.
    """
    x = x.detach().movedim(axis, -1)
    if x.ndim == 1:
        x = x[None]
    few = x.ndim == 2 and len(x) <= most
    return _real(x if few else x[places(x.shape[:-1], most, x.device)])


def patches(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """What a kernel sees at every position that lies inside the input, as a view.

    Args:
        x: Shape (..., C, *positions).
        kernel: Its sizes, one a dimension.
        dilation: How far its taps are apart.

    Returns:
        Shape (..., C, *positions, *kernel); `x` with kernels of one where the input is smaller than the kernel.
    """
    last = x.ndim
    reach = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    if any(length < wide for length, wide in zip(x.shape[last - len(kernel) :], reach, strict=True)):
        return x[(..., *(None for _ in kernel))]
    for place, wide in enumerate(reach):
        x = x.unfold(last - len(kernel) + place, wide, 1)
    return x[(..., *(slice(None, None, step) for step in dilation))]


def seen_by_kernel(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], most: int) -> Tensor:
    """Rows of `patches`: everything that goes into one output, shape (n, C K)."""
    spatial = len(kernel)
    view = patches(x.detach(), kernel, dilation).movedim(-2 * spatial - 1, -spatial - 1)
    return _real(view[places(view.shape[: -spatial - 1], most, x.device)].flatten(1))


def _real(rows: Tensor) -> Tensor:
    return rows if rows.dtype is torch.float64 else rows.float()


def effective_rank(rows: Tensor, *, scaled: bool) -> Tensor:
    """How many directions centred rows fill: `(sum l)^2 / sum l^2` over eigenvalues l of their Gram matrix.

    The two sums are the Gram matrix' trace and its squared Frobenius norm: nothing is decomposed. From 1 to the least
    of D and n - 1.

    Args:
        rows: Shape (n, D).
        scaled: Whether features are brought to unit variance: a few large ones are then no less than others.

    Returns:
        A scalar; nan where no feature varies.
    """
    mean = rows.mean(0)
    X = rows - mean
    power = X.square().mean(0)
    varies = power > CONSTANT * (power + mean.square())
    # Through the scale of each feature, so that nothing overflows in float32.
    scale = power.rsqrt() if scaled else power.amax().rsqrt()
    X = torch.where(varies, X * scale, 0.0)
    return X.square().sum().square() / (X @ X.mT).square().sum()
