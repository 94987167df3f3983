"""Bases of factors whose eigenvalues fall: orthogonal, their factor's own, and still where it stands still."""

import itertools

import pytest
import torch

from lightning_so.linalg.basis import decompose, refresh, ridge
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
