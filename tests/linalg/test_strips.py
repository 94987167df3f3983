"""Sums of outer products by strips are the whole ones."""

import pytest
import torch

from lightning_so.linalg.kron import shape
from lightning_so.linalg.sides import statistics
from lightning_so.linalg.strips import STRIPS, WIDE, add_products, mirror


@pytest.mark.parametrize("T", [1, WIDE - 1, WIDE, WIDE + 1, 2 * WIDE + 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_strips_are_the_whole(T, groups):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(groups, 9, T, generator=generator, dtype=torch.float64)
    window = torch.zeros(groups, T, T, dtype=torch.float64)
    for part in rows.split(5, 1):
        add_products(window, part, 3.0)
    computed = (window != 0).double().mean()
    mirror(window)
    assert torch.allclose(window, 3 * rows.mT @ rows, rtol=1e-12, atol=1e-12)
    # The upper triangle of four strips, and the last of them may be narrower.
    assert T < WIDE or computed <= (STRIPS + 1) / (2 * STRIPS) + 2 / T


def test_a_side_gathers_whole_sums_of_one_block_or_of_several():
    generator = torch.Generator().manual_seed(0)
    side = statistics(shape(2 * WIDE, 1, 2 * WIDE, diagonal=False), 3, torch.float64, *[torch.device("cpu")] * 2)
    rows = torch.randn(2, 1, 7, 2 * WIDE, generator=generator, dtype=torch.float64)
    side.add(0, rows[0])
    side.add(2, rows[1], 2.0)
    sums = torch.stack([rows[0, 0].mT @ rows[0, 0], 2 * rows[1, 0].mT @ rows[1, 0]])
    (both,), (first,) = side.gathered([0, 2]), side.gathered([0])
    assert torch.allclose(both[:, 0], sums, rtol=1e-12, atol=1e-12)
    assert torch.allclose(first[0], sums[:1], rtol=1e-12, atol=1e-12)
