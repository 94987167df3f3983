"""Bases of factors whose eigenvalues fall: orthogonal, their factor's own, and still where it stands still."""

import itertools
from unittest import mock

import pytest
import torch

from lightning_so.linalg import basis
from lightning_so.linalg.basis import by_cholesky, decompose, refresh, ridge
from tests.support.operations import READ, Operations
from tests.support.rounding import to_tf32
from tests.support.spectra import EVERY, PRECISIONS, apart, factor, units

SIDE = 48
RIDGES = pytest.mark.parametrize("strength", [0.0, 1e-2])


def off(F, Q):
    """The part of `Q' F Q` beside its diagonal, of all of it: the backward error of Q as an eigenbasis."""
    D = Q.double().mT @ F.double() @ Q.double()
    return apart(torch.diag_embed(D.diagonal(dim1=1, dim2=2)), D)


def orthogonal(Q, dtype):
    return units((Q.double().mT @ Q.double() - torch.eye(SIDE)).abs().max(), dtype) < 30


@EVERY
@PRECISIONS
@RIDGES
def test_a_decomposition_is_the_basis_of_what_was_decomposed(spectrum, dtype, strength):
    F = factor(SIDE, spectrum, count=2).to(dtype)
    found = decompose(F, torch.eye(SIDE, dtype=dtype).expand_as(F), strength)
    assert found.ok
    assert orthogonal(found.value, dtype)
    assert units(off(F.double() + torch.diag_embed(ridge(F.double(), strength)), found.value), dtype) < 20


@EVERY
@PRECISIONS
@RIDGES
def test_a_still_factor_keeps_its_basis(spectrum, dtype, strength):
    F = factor(SIDE, spectrum, count=2).to(dtype)
    first = Q = decompose(F, torch.eye(SIDE, dtype=dtype).expand_as(F), strength).value
    for _ in range(10):
        found = refresh(F, Q, strength=strength)
        assert found.good.all()
        Q = found.value
    assert orthogonal(Q, dtype)
    if not strength:
        assert units(off(F, Q), dtype) < 20
    turned = (first.double().mT @ Q.double()).abs().amax(1) < 0.99
    # Without the ridge a basis of the null space is rounding: half of the columns, and no other.
    free = SIDE // 2 if spectrum == "null" and not strength else 0
    assert int(turned.sum(1).max()) <= free


@EVERY
@PRECISIONS
def test_refreshes_of_any_basis_come_to_that_of_the_factor(spectrum, dtype):
    """Cold, and as fast as the gaps let an orthogonal iteration be: the large half of the energy first."""
    F = factor(SIDE, spectrum, count=2).to(dtype)
    Q = torch.eye(SIDE, dtype=dtype).expand_as(F)
    errors = []
    for _ in range(4):
        for _ in range(10):
            Q = refresh(F, Q, strength=0.0).value
        errors.append(off(F, Q))
        assert orthogonal(Q, dtype)
    rounding = 20 * torch.finfo(dtype).eps
    assert all(after < max(before, rounding) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.05


# ---------------------------------------------------------------- two Cholesky factorisations


def warm(spectrum, dtype, strength, *, unseen=0, side=64):
    """Factors that have moved by 5 % since their bases were found, and those bases; the first axes see nothing."""
    F = factor(side, spectrum, count=3)
    G = torch.randn(3, side, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = G @ G.mT
    sizes = [X.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] for X in (F, moved)]
    moved = F + 0.05 * sizes[0] / sizes[1] * moved
    for X in (F, moved):
        X[:, :unseen] = X[:, :, :unseen] = 0
    Q = torch.eye(side, dtype=dtype).expand(3, -1, -1).contiguous()
    for _ in range(12):
        Q = refresh(F.to(dtype), Q, strength=strength).value
    return moved.to(dtype), Q


@EVERY
@PRECISIONS
@RIDGES
@pytest.mark.parametrize("unseen", [0, 3])
def test_cholesky_finds_the_basis_of_householder(spectrum, dtype, strength, unseen):
    F, Q = warm(spectrum, dtype, strength, unseen=unseen)
    expected, found = (refresh(F, Q, strength=strength, **how) for how in ({}, {"how": by_cholesky}))
    assert torch.equal(found.order, expected.order)
    assert expected.good.all()
    if not found.good.all():
        # Without a ridge there is nothing to factorise in a null space: it is said, and the other way is taken.
        assert (spectrum, strength) == ("null", 0)
        return
    # Of 1/k^2 without a ridge the condition is 1e4: either is as far from the basis in float64.
    near = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    assert float((found.value - expected.value).abs().max()) < near
    assert units((found.value.double().mT @ found.value.double() - torch.eye(64)).abs().max(), dtype) < 100
    axes = found.value[:, :unseen]
    assert torch.equal(axes, expected.value[:, :unseen])
    assert torch.equal(axes.abs().sum(2), torch.ones(3, unseen, dtype=dtype))


@PRECISIONS
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cholesky_has_no_scale(dtype, scale):
    F, Q = warm("1/k", dtype, 1e-2)
    expected, found = refresh(F, Q, strength=1e-2), refresh(F * scale, Q, strength=1e-2, how=by_cholesky)
    assert found.good.all()
    assert float((found.value - expected.value).abs().max()) < 1e-5


def test_what_cholesky_cannot_do_is_marked_and_only_that():
    F, Q = warm("1/k", torch.float32, 1e-2)
    cases = {
        "zeros": torch.zeros_like(F[0]),
        "not finite": F[0].clone().fill_diagonal_(torch.nan),
        "infinite": F[0] * torch.inf,
        "indefinite": F[0] - 0.5 * F[0].diagonal().amax() * torch.eye(64),
        "sound": F[0],
    }
    found = refresh(torch.stack([*cases.values()]), Q[:1].expand(5, -1, -1), strength=1e-6, how=by_cholesky)
    assert found.good.tolist() == [name == "sound" for name in cases]


def test_bases_that_are_not_orthogonal_are_not_good():
    # Cold, of rank 3: finite, with both factors, and up to 2e-4 from orthogonal.
    G = torch.randn(8, 128, 3, generator=torch.Generator().manual_seed(0))
    with mock.patch.dict(basis.DEVIATION, {torch.float32: 2e-5}):
        found = refresh(G @ G.mT, torch.eye(128).expand(8, -1, -1), strength=1e-3, how=by_cholesky)
    deviation = (found.value.double().mT @ found.value.double() - torch.eye(128)).abs().amax((1, 2))
    assert found.value.isfinite().all()
    assert found.good.any()
    assert not found.good.all()
    assert float(deviation[found.good].max()) < 2.1e-5
    assert float(deviation[~found.good].min()) > 1.9e-5


def test_the_host_waits_for_no_factorisation():
    F, Q = warm("1/k", torch.float32, 1e-2)
    with mock.patch.object(basis, "maybe", return_value=True), Operations() as counted:
        refresh(F, Q, strength=1e-2, how=by_cholesky)
    assert not counted.found[READ]


def test_products_of_rounded_factors_would_be_seen():
    """What keeps TF32 away is needed: `flight.launch` is in full precision for it."""
    F, Q = warm("1/k^2", torch.float32, 1e-2)
    bmm = torch.bmm
    with mock.patch.object(torch, "bmm", lambda a, b: bmm(to_tf32(a), to_tf32(b))):
        found = refresh(F, Q, strength=1e-2, how=by_cholesky)
    assert not found.good.any()
