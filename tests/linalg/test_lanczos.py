"""Lanczos and estimates from random signs on matrices whose spectra fall, against dense ones in float64."""

import pytest
import torch

from lightning_so.linalg.hutchinson import diagonal, trace
from lightning_so.linalg.lanczos import density, lanczos
from lightning_so.linalg.vectors import Piece, Space
from tests.support.spectra import EVERY, PRECISIONS, factor, matrix, units, values

SIDE = 64


def problem(spectrum, dtype):
    """A matrix, and the space of its vectors."""
    return factor(SIDE, spectrum)[0].to(dtype), Space((Piece("w", 0, SIDE, SIDE),), dtype=dtype)


@EVERY
@PRECISIONS
@pytest.mark.parametrize("steps", [8, 24, SIDE])
def test_values_are_within_their_bounds_and_vectors_orthonormal(spectrum, dtype, steps):
    A, space = problem(spectrum, dtype)
    found = lanczos(lambda v: A @ v, space.normal(0), steps, space)
    L = torch.linalg.eigvalsh(A.double())
    ritz, weights, errors = found.ritz()
    assert found.ok
    assert units(((ritz[:, None] - L).abs().amin(1) - errors).max(), dtype) < 20
    assert units((ritz[-1] - L[-1]).abs(), dtype) < 200
    assert float(ritz[0]) > float(L[0]) - 20 * torch.finfo(dtype).eps
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    V = found.basis.double()
    assert units((V @ V.mT - torch.eye(len(V))).abs().max(), dtype) < 20
    assert units((V @ A.double() @ V.mT).triu(2).abs().max(), dtype) < 20


@PRECISIONS
def test_an_invariant_subspace_is_the_end(dtype):
    """What is left is rounding: vectors made of it were not orthogonal, and eigenvalues of an identity thousands."""
    A, space = problem("flat", dtype)
    assert len(lanczos(lambda v: A @ v, space.normal(0), SIDE, space).diagonal) == 1
    A, space = problem("null", dtype)
    found = lanczos(lambda v: A @ v, space.normal(0), SIDE, space)
    assert SIDE // 2 < len(found.diagonal) < SIDE // 2 + 8
    assert found.rest == 0.0


@EVERY
@PRECISIONS
def test_a_density_has_the_moments_of_the_spectrum(spectrum, dtype):
    A, space = problem(spectrum, dtype)
    found = density(lambda v: A @ v, space, steps=12, probes=40)
    for power in (1, 2):
        mean, error = found.mean(lambda x, power=power: x**power)
        expected = float(values(SIDE, spectrum).pow(power).mean())
        assert abs(mean - expected) < 4 * error + 1e-5


@EVERY
@PRECISIONS
def test_signs_estimate_trace_and_diagonal(spectrum, dtype):
    A, space = problem(spectrum, dtype)
    found = trace(lambda v: A @ v, space, probes=40)
    assert abs(found.mean - float(A.double().trace())) < 4 * found.error + 1e-4
    z = space.rademacher(0, 0).double()
    assert abs(float(found.samples[0] - z @ A.double() @ z)) < 20 * SIDE * torch.finfo(dtype).eps
    beside = (A.double().square().sum(1) - A.double().diagonal().square()) / 400
    error = (diagonal(lambda v: A @ v, space, probes=400).double() - A.double().diagonal()).abs()
    assert bool((error < 5 * beside.sqrt() + 1e-5).all())


@EVERY
@PRECISIONS
def test_inner_products_are_sums_in_float64_or_in_one_pass(spectrum, dtype):
    X = matrix(8, 300, spectrum).to(dtype)
    space = Space((Piece("a", 0, 100, 100), Piece("b", 0, 200, 200)), dtype=dtype)
    exact = X.double() @ X.double().mT
    assert float((space.gram(X, X) - exact).abs().max()) < 1e-14
    assert units((space.along(X, X) - exact).abs().max(), dtype) < 5
