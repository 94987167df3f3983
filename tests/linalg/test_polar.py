"""Polar factors against singular vectors and against the plain iteration in float64, in every precision."""

import pytest
import torch

from lightning_so.linalg.polar import COEFFICIENTS, polar, polar_cost
from tests.support.spectra import EVERY, SPECTRA, cosine, matrix

SHAPES = [(64, 256), (256, 64), (96, 96), (60, 100)]
#: Least cosine with the same iteration in float64: of the matrix, and of the matrix as it is rounded. At 1/k^2 rounding
#: it to bf16 costs .008 by itself, to fp16 .00013: the iteration has never seen what was lost.
COSINES = {torch.bfloat16: 0.99, torch.float16: 0.9998, torch.float32: 0.99999}
ROUNDED = {torch.bfloat16: 0.998, torch.float16: 0.9999, torch.float32: 0.99999}


def plain(X, steps=5):
    """The iteration on the matrix itself."""
    a, b, c = COEFFICIENTS
    X = X / X.norm()
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", COSINES, ids=str)
def test_rounding_of_large_singular_values_does_not_reach_the_small_ones(precision, shape, spectrum):
    M = matrix(*shape, spectrum)
    expected, found = plain(M), polar(M.float()[None], precision=precision)[0].double()
    assert cosine(found, expected) > COSINES[precision]
    seen = M.float() / M.float().abs().max()
    assert cosine(found, plain((seen / seen.norm()).to(precision).double())) > ROUNDED[precision]
    assert float(torch.linalg.matrix_norm(found, 2)) < 1.25


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 12, 20])
@pytest.mark.parametrize("precision", COSINES, ids=str)
def test_nothing_grows_however_many_steps_there_are(precision, steps):
    for spectrum in SPECTRA:
        M = matrix(32, 128, spectrum)
        found = polar(M.float()[None], steps=steps, precision=precision)[0].double()
        assert float(torch.linalg.matrix_norm(found, 2)) < 1.25
        if spectrum in ("flat", "1/k"):
            assert cosine(found, plain(M, steps)) > (0.99 if precision is torch.bfloat16 else 0.999)


def test_the_cheaper_way_is_what_is_modelled():
    # Twice through the long side where no Gram matrix is formed anew, and once more for each that is.
    assert polar_cost((64, 1024), 5, torch.float32) == 2 * 64 * 64 * 1024 + 17 * 64**3
    assert polar_cost((1024, 64), 5, torch.bfloat16) == 6 * 64 * 64 * 1024 + 11 * 64**3
    assert polar_cost((64, 64), 5, torch.bfloat16) == 5 * (2 * 64**3 + 64**3)


def test_polar_is_near_the_svd_factor():
    for shape in ((3, 12, 5), (2, 5, 12), (1, 8, 8)):
        X = torch.randn(shape, dtype=torch.float64)
        U, _, V = torch.linalg.svd(X, full_matrices=False)
        factor = polar(X, steps=8)
        singular = torch.linalg.svdvals(factor)
        assert float(singular.min()) > 0.6
        assert float(singular.max()) < 1.3
        cosine = (factor * (U @ V)).sum((1, 2)) / (factor.norm(dim=(1, 2)) * (U @ V).norm(dim=(1, 2)))
        assert float(cosine.min()) > 0.97


def test_polar_by_the_gram_matrix_equals_the_plain_iteration():
    a, b, c = COEFFICIENTS
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
        # Singular values over five decades: those lost in the squares must not be blown up.
        U, V = torch.linalg.qr(torch.randn(10, 10, dtype=dtype)).Q, torch.linalg.qr(torch.randn(80, 10, dtype=dtype)).Q
        M = U @ torch.logspace(0, -5, 10, dtype=dtype).diag() @ V.mT
        X = M / M.norm()
        for _ in range(5):
            A = X @ X.mT
            X = a * X + (b * A + c * A @ A) @ X
        torch.testing.assert_close(polar(M[None])[0], X, rtol=0, atol=tolerance)
        torch.testing.assert_close(polar(M.mT[None])[0], X.mT, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", COSINES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (24, 96), (96, 24)], ids=str)
def test_polar_has_no_scale(shape, precision):
    assert not polar(torch.zeros(1, *shape), precision=precision).any()
    X = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    right = polar(X, precision=precision)
    # Of one batch: the largest does not decide what is left of the others.
    found = polar(torch.cat([X * 1e-30, torch.zeros_like(X), X * 1e30]), precision=precision)
    assert not found[1].any()
    for scaled in found[[0, 2]]:
        assert cosine(scaled, right[0]) > COSINES[precision]
        assert 0.9 < float(scaled.norm() / right.norm()) < 1.1


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_fp16_singular_vectors_are_those_of_the_matrix(shape, spectrum):
    """Of what 5 steps lift: singular values above 1/100 of the largest, and so of half of them at 1/k^2 and less."""
    M = matrix(*shape, spectrum)
    found = polar(M.float()[None], precision=torch.float16)[0].double()
    U, S, V = torch.linalg.svd(M, full_matrices=False)
    kept = S > 1e-2 * S[0]
    aligned = (U.mT @ found @ V.mT)[kept][:, kept]
    assert float(aligned.diagonal().min()) > 0.4
    assert float((aligned - aligned.diagonal().diag()).abs().max()) < 0.02
