"""Frames of vectors whose singular values fall, and parabolas along them, against float64."""

import pytest
import torch

from lightning_so.linalg.frame import beside, orthonormal, turned
from lightning_so.linalg.parabola import regression
from lightning_so.linalg.vectors import Piece, Space
from tests.support.spectra import EVERY, PRECISIONS, apart, factor, matrix, units

N = 300


def space(dtype):
    return Space((Piece("w", 0, N, N),), dtype=dtype)


@EVERY
@PRECISIONS
@pytest.mark.parametrize("k", [4, 16])
def test_a_frame_is_orthonormal_and_spans_its_vectors(spectrum, dtype, k):
    X = matrix(k, N, spectrum).to(dtype)
    found = orthonormal(X, space(dtype))
    assert found.ok is (spectrum != "null")  # dependent vectors are no frame
    if found.ok:
        Q, exact = found.value.double(), X.double()
        assert units((Q @ Q.mT - torch.eye(k)).abs().max(), dtype) < 20
        assert units(apart((exact @ Q.mT @ Q)[None], exact[None]), dtype) < 20
        L = exact @ Q.mT
        assert units(L.triu(1).abs().max(), dtype) < 20
        assert bool((L.diagonal() > 0).all())


@EVERY
@PRECISIONS
def test_what_a_vector_has_beside_a_frame_is_orthogonal_to_it(spectrum, dtype):
    rows = matrix(8, N, spectrum).to(dtype)
    V = torch.linalg.qr(rows.double().mT).Q.mT[:4].to(dtype)
    found = beside(V, rows[-1], space(dtype))
    if spectrum == "null":  # it is one of theirs
        assert found is None
        return
    assert found is not None
    assert units((V.double() @ found.double()).abs().max(), dtype) < 20
    assert units(abs(float(found.double().norm()) - 1), dtype) < 20


@EVERY
@PRECISIONS
def test_a_form_turns_with_its_frame(spectrum, dtype):
    A = factor(8, spectrum)[0]
    V = torch.linalg.qr(matrix(8, N, "flat").mT).Q.mT
    R = torch.linalg.qr(matrix(8, 8, "1/k")).Q
    found = turned(A, V.to(dtype), (R @ V).to(dtype), space(dtype))
    assert units((found - R @ A @ R.mT).abs().max(), dtype) < 20


@EVERY
@pytest.mark.parametrize("of", ["flat", "1/k", "1/k^2"])
def test_regression_has_the_curvature_of_what_has_moved(spectrum, of):
    """`y = H x` for positions x of a spectrum: exact in their span, and nothing between directions of none."""
    H, X = factor(12, of, seed=1)[0], matrix(40, 12, spectrum)
    found = regression(X.mT @ X, (X @ H).mT @ X)
    _, s, Vh = torch.linalg.svd(X, full_matrices=False)
    moved = s > 1e-9
    P = Vh[moved].mT @ Vh[moved]
    # The pairs of squares that divide are as far apart as the spectrum falls, twice.
    tolerance = 1e-13 / float(s[moved].min() ** 2)
    assert float((P @ (found - H) @ P).abs().max()) < tolerance
    assert float(((torch.eye(12) - P) @ found @ (torch.eye(12) - P)).abs().max()) < tolerance
