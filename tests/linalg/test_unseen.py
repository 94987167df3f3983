"""Rows of zeros in a factor stay axes, exactly, in bases, inverses and roots of it."""

import pytest
import torch

from lightning_so.linalg.basis import decompose, refresh
from lightning_so.linalg.psd import eigenbasis, inverse
from lightning_so.linalg.roots import inverse_root
from lightning_so.linalg.unseen import columns_of, unseen

T, DARK = 9, [0, 3, 4, 8]


def factor(dark=DARK, rank=20, batch=2, dtype=torch.float32):
    """A batch of factors, the first of which has seen nothing of some axes."""
    X = torch.randn(batch, T, rank, generator=torch.Generator().manual_seed(0)).to(dtype)
    X[0, dark] = 0
    return X @ X.mT


def axes(Q, dark=DARK):
    """Whether a basis has exact axes, and is orthogonal."""
    assert torch.linalg.norm(Q.double().mT @ Q.double() - torch.eye(T)) < 1e-5
    ones = (Q[dark] == 1).sum(1).tolist()
    columns = Q[dark].argmax(1)
    return ones == [1] * len(dark) and Q[dark].count_nonzero() == len(dark) == Q[:, columns].count_nonzero()


@pytest.mark.parametrize("floor", [None, torch.tensor(1e-6)])
@pytest.mark.parametrize("rank", [20, 2], ids=["full", "null space beside it"])
@pytest.mark.parametrize("strength", [0.0, 1e-2])
def test_a_basis_keeps_axes_of_which_nothing_was_seen(strength, rank, floor):
    F, Q = factor(rank=rank), torch.eye(T).repeat(2, 1, 1)
    if rank == 2 and strength == 0 and floor is None:
        return  # what else is zero is arbitrary
    for _ in range(30):
        found = refresh(F, Q, strength=strength, floor=floor)
        assert (found.ok, found.attempts) == (True, 1)
        assert axes(found.value[0])
        moved = (Q.mT @ found.value).gather(1, found.order[:, None]).squeeze(1)
        assert ((moved == 1).sum(-1) >= torch.tensor([len(DARK), 0])).all()  # the order says where they went
        Q = found.value
    off = Q.mT @ F @ Q
    assert rank == 2 or float((off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))).abs().max()) < 0.5


def test_an_axis_that_comes_alive_joins_and_one_that_is_forgotten_leaves():
    Q = refresh(factor(), torch.eye(T).repeat(2, 1, 1), strength=1e-2).value
    joined = refresh(factor(DARK[1:]), Q, strength=1e-2)
    assert joined.attempts == 1
    assert axes(joined.value[0], DARK[1:])
    assert joined.value[0, 0].count_nonzero() > 1
    left = refresh(factor(), joined.value, strength=1e-2)  # no axis of that basis: it is found anew
    assert (left.ok, left.attempts) == (True, 2)
    assert axes(left.value[0])
    again = refresh(factor(), left.value, strength=1e-2)
    assert again.attempts == 1
    assert axes(again.value[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_basis_from_the_factor_alone_has_the_axes_last(dtype):
    F, last = factor(dtype=dtype), -torch.linalg.qr(torch.randn(2, T, T, dtype=dtype)).Q
    for strength in (0.0, 1e-2):
        Q = decompose(F, last, strength).value
        assert axes(Q[0])
        assert torch.equal(Q[0, DARK, -len(DARK) :], torch.eye(len(DARK), dtype=dtype))
        values = (Q.mT @ F @ Q).diagonal(dim1=1, dim2=2)
        assert (values.diff() < 1e-5 * values[:, :1]).all()


def test_eigenvalues_of_what_was_not_seen_are_zero():
    values, vectors, ok = eigenbasis(factor())
    assert ok
    assert axes(vectors[0])
    expected = torch.linalg.eigvalsh(factor().double()).clamp_min(0).float()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    assert values[0, : len(DARK)].tolist() == [0] * len(DARK)


@pytest.mark.parametrize("solve", ["inverse", "eigen", "newton", "schulz"])
def test_inverses_and_roots_mix_nothing_with_it(solve):
    F, damping = factor(), torch.tensor([1e-2, 1e-2])
    found = inverse(F, damping) if solve == "inverse" else inverse_root(F, damping, 4, way=solve)
    assert found.ok
    X = found.value[0]
    assert X[DARK].count_nonzero() == len(DARK) == X[:, DARK].count_nonzero()
    torch.testing.assert_close(X.diagonal()[DARK], damping[:1].pow(-1.0 if solve == "inverse" else -0.25).expand(4))


def test_small_is_not_nothing():
    F = torch.diag(torch.tensor([1.0, 1e-40, 0.0, float("nan"), 2.0]))
    F[0, 2] = F[2, 0] = 1e-30  # a square that has underflowed
    assert unseen(F).tolist() == [False] * 5
    Q = torch.linalg.qr(torch.randn(3, 3)).Q
    assert columns_of(Q, torch.tensor([False, True, False])) is None
    assert columns_of(torch.eye(3), torch.tensor([False, True, False])).tolist() == [0, 1, 2]
