"""The diagonal of a Fisher matrix in bases of its sides that move: a moving average that starts from `l r'`.

Legend: B blocks of a stack, Q groups, T side of a tile, M rows and N columns of a group's matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_so.linalg.kron import permuted
from lightning_so.linalg.rows import each, put, some
from lightning_so.linalg.unseen import maybe


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

    def fold(self, rows: list[int], step: int, beta: float, scale: float) -> None:
        """`s <- b^k s + (1 - b^k) window`, k the steps since the last fold; the window is spent.

        One with numbers that are not finite counts for nothing.
        """
        # After a restart from factors alone, one window must not count for all steps before it.
        lost = [1 - beta ** (step - int(last) if last else 1) for last in self.folded.numpy()[rows]]
        self.folded.numpy()[rows] = step
        window, terms = some(self.window, rows), some(self.terms, rows)[:, 0]
        fired = ((terms > 0) & window.sum((1, 2, 3)).isfinite()).to(self.weight.dtype)
        added = fired * each(lost, fired)
        put(self.weight, rows, some(self.weight, rows) * (1 - added) + added)
        shape = (-1, 1, 1, 1)
        found = window * (added * scale / terms.clamp_min(1)).view(shape)
        if maybe(nothing := fired == 0):
            found.masked_fill_(nothing.view(shape), 0)
        put(self.mean, rows, some(self.mean, rows) * (1 - added).view(shape) + found)
        self.spend(rows)

    def spend(self, rows: list[int]) -> None:
        """Forget the windows of blocks."""
        for window in (self.window, self.terms):
            put(window, rows, 0)

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
