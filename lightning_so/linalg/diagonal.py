"""The diagonal of a Fisher matrix in bases of its sides that move: a moving average that starts from `l r'`.

Legend: B blocks of a stack, Q groups, T side of a tile, M rows and N columns of a group's matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.kron import permuted


@dataclass
class Diagonal:
    """Second moments of the blocks of a stack; inert but for in-place folding.

    Attributes:
        mean: The moving average, not debiased, (B, Q, M, N). Replicated, saved; so are the next two.
        weight: Sum of its weights, (B,).
        folded: Step of each block's last fold, (B,), on the CPU.
        window: Sums since then, like `mean`. Summed over ranks, not saved; so is the next.
        terms: Loss terms of the windows, (B, 1).
    """

    mean: Tensor
    weight: Tensor
    folded: Tensor
    window: Tensor
    terms: Tensor

    def windows(self, row: int) -> list[Tensor]:
        """A block's window."""
        return [self.window[row], self.terms[row]]

    def fold(self, row: int, step: int, beta: float, scale: float) -> None:
        """`s <- b^k s + (1 - b^k) window`, k the steps since the last fold; the window is spent.

        One with numbers that are not finite counts for nothing.
        """
        last = int(self.folded[row])
        # After a restart from factors alone, one window must not count for all steps before it.
        keep = beta ** (step - last if last else 1)
        self.folded[row] = step
        fired = ((self.terms[row, 0] > 0) & self.window[row].sum().isfinite()).to(self.weight.dtype)
        kept, added = 1 - fired * (1 - keep), fired * (1 - keep)
        self.weight[row].mul_(kept).add_(added)
        found = self.window[row] * (added * scale / self.terms[row, 0].clamp_min(1))
        self.mean[row].mul_(kept).add_(found.masked_fill_(fired == 0, 0))
        self.spend(row)

    def spend(self, row: int) -> None:
        """Forget a block's window."""
        self.window[row] = 0
        self.terms[row] = 0

    def permute(self, row: int, cut: slice, side: int, order_QT: Tensor) -> None:
        """Move a block along when a tile of its rows (side 0) or columns (side 1) changes its basis."""
        part = self.mean[row][:, cut] if side == 0 else self.mean[row][:, :, cut]
        part.copy_(permuted(part, order_QT, side))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What is saved."""
        yield "moments", self.mean
        yield "moments.weight", self.weight
        yield "moments.folded", self.folded

    def estimate(self, product_BQMN: Tensor, rows: list[int] | slice) -> Tensor:
        """`s + (1 - w) l r'`, shape (B, Q, M, N): what was not seen yet is as the product of eigenvalues says."""
        return torch.addcmul(self.mean[rows], 1 - self.weight[rows, None, None, None], product_BQMN)


def diagonal(count: int, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Diagonal:
    """Nothing seen yet of `count` blocks of (Q, M, N)."""
    mean, weight, terms = (torch.zeros(count, *size, dtype=dtype, device=device) for size in (shape, (), (1,)))
    return Diagonal(mean, weight, torch.zeros(count), torch.zeros_like(mean), terms)
