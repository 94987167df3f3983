"""Nyström's approximation of matrices whose spectra fall, against its formula in float64."""

import pytest
import torch

from lightning_so.linalg.nystrom import nystrom
from lightning_so.linalg.vectors import Piece, Space
from tests.support.spectra import EVERY, PRECISIONS, cosine, factor, units

SIDE, RANK = 64, 16


@EVERY
@PRECISIONS
def test_it_is_that_of_the_formula(spectrum, dtype):
    A = factor(SIDE, spectrum)[0].to(dtype)
    space = Space((Piece("w", 0, SIDE, SIDE),), dtype=dtype)
    Omega = torch.stack([space.normal(1, number) for number in range(RANK)])
    found = nystrom(Omega @ A, Omega, space)
    assert found.ok
    U = found.rows.double()
    Q = torch.linalg.qr(Omega.double().mT).Q.mT
    Y = Q @ A.double()
    expected = Y.mT @ torch.linalg.pinv(Y @ Q.mT, hermitian=True) @ Y
    error = torch.linalg.matrix_norm((U.mT * found.values) @ U - expected, 2)
    # Rounding of the products is amplified by how small the smallest of the sketch is: 1/k^2 of rank 16.
    assert units(error, dtype) < 500
    kept = torch.diag((found.values > 0).double())
    assert units((U @ U.mT - kept).abs().max(), dtype) < 2000
    # It is below A, and away from it by no more than the spectrum's rest allows a sketch at random.
    rest = A.double() - (U.mT * found.values) @ U
    assert float(torch.linalg.eigvalsh(rest)[0]) > -500 * torch.finfo(dtype).eps
    assert float(torch.linalg.matrix_norm(rest, 2)) < float(torch.linalg.matrix_norm(A.double() - expected, 2)) + 1e-4
    # What is divided by it is what the dense one divides.
    v = space.normal(2)
    for damping in (1e-3, 1e-1):
        dense = torch.linalg.solve(expected + damping * torch.eye(SIDE), v.double())
        assert cosine(found.inverse(v, damping, space), dense) > 0.9999


@PRECISIONS
@pytest.mark.parametrize("spectrum", ["1/k", "1/k^2"])
def test_a_matrix_with_a_negative_eigenvalue_is_refused_whatever_its_size(spectrum, dtype):
    A = factor(SIDE, spectrum)[0]
    space = Space((Piece("w", 0, SIDE, SIDE),), dtype=dtype)
    Omega = torch.linalg.qr(torch.stack([space.normal(1, number) for number in range(RANK)]).mT).Q.mT
    v = Omega[0].double()
    A = (A - 2 * v[:, None] * v).to(dtype)
    assert nystrom(Omega @ A, Omega, space).reason == "indefinite"
