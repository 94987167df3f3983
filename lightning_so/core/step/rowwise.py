"""P g from the rows that made the gradient: `(g G^-1)' (a A^-1)` costs less than `G^-1 (g' a) A^-1` where rows are few.

Whether rows did make it, up to a factor (a clip, a scale), is tried on a random vector at every step.
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from lightning_so.contract.block import Block
from lightning_so.contract.method import ActsOnRows
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.linalg.precision import FullPrecision

#: Largest relative deviation of a probed gradient from its rows, in units of the precision.
ROUNDING = 1e3

#: By block, input rows (N, I) and output gradients (N, O) of a step; None where they are not all.
Kept = Mapping[Block, tuple[Tensor, Tensor] | None]


@FullPrecision()
def precondition(cohort: Cohort, kept: Kept, over_B: Tensor | None) -> Tensor | None:
    """`g <- over P g` for a cohort from its rows, if they are there and do give the gradients.

    Args:
        cohort: The cohort.
        kept: The rows.
        over_B: By what each is multiplied, (B,); None for one.

    Returns:
        `<over P g, g>` of each block, shape (B,); None if nothing was done. One host read.
    """
    stack = cohort.stack
    if not isinstance(stack.method, ActsOnRows):
        return None
    found = [kept.get(block) for block in cohort.blocks]
    rows = [(a.to(stack.dtype), g.to(stack.dtype)) for a, g in (pair for pair in found if pair is not None)]
    if len(rows) < len(found):
        return None
    factors = _factors(cohort, rows)
    if factors is None:
        return None
    numbers, products = cohort.rows if cohort.rows is not None else range(len(cohort.blocks)), []
    for block, row, (a, g), factor in zip(cohort.blocks, numbers, rows, factors, strict=True):
        b, h = stack.method.of_rows(stack.stats, row, a, g)
        # With g = f sum_n g_n a_n', <P g, g> = f^2 sum_nm (h_n . g_m) (b_n . a_m).
        h = h if over_B is None else h * over_B[len(products)]
        products.append(factor.square() * torch.linalg.vecdot((h @ g.mT).flatten(), (b @ a.mT).flatten()))
        _write(block, factor * h, b)
    return torch.stack(products)


def _factors(cohort: Cohort, rows: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """By what the rows' products must be multiplied to be the gradients, (B,); None if they are others."""
    probe = _probe(cohort.stack.shape[1], cohort.stack.dtype, cohort.stack.device)
    seen = torch.stack([_applied(block, probe) for block in cohort.blocks])
    made = torch.stack([g.mT @ (a @ probe) for a, g in rows])
    factors = torch.linalg.vecdot(seen, made) / torch.linalg.vecdot(made, made)
    error = torch.linalg.vector_norm(seen - factors[:, None] * made, dim=1)
    bound = ROUNDING * torch.finfo(seen.dtype).eps * torch.linalg.vector_norm(seen, dim=1)
    return factors if bool((error <= bound).all()) else None


def _applied(block: Block, vector: Tensor) -> Tensor:
    """The gradient of a block, its bias' one as last column, times a vector."""
    weight, bias = block.param.grad, block.bias
    assert weight is not None
    columns = block.cols - (bias is not None)
    found = weight.flatten(1).to(vector.dtype) @ vector[:columns]
    if bias is not None and bias.grad is not None:
        found += bias.grad * vector[-1]
    return found


def _write(block: Block, h: Tensor, b: Tensor) -> None:
    """Make `h' b` the gradient of a block, in place and, where memory allows, at once."""
    weight, bias = block.param.grad, block.bias
    assert weight is not None
    columns = block.cols - (bias is not None)
    if weight.is_contiguous() and weight.dtype is h.dtype:
        torch.mm(h.mT, b[:, :columns], out=weight.view(block.rows, columns))
    else:
        weight.copy_((h.mT @ b[:, :columns]).view(weight.shape))
    if bias is not None and bias.grad is not None:
        bias.grad.copy_(h.mT @ b[:, -1])


@cache
def _probe(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A random vector, the same for every gradient of one width."""
    return torch.rand(length, dtype=dtype, generator=torch.Generator().manual_seed(length)).to(device) * 2 - 1
