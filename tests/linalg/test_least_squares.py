"""Damped least squares with Jacobians whose singular values fall, long and tall, against singular vectors."""

import pytest
import torch

from lightning_so.linalg.least_squares import DampedLeastSquares
from tests.support.spectra import EVERY, PRECISIONS, SHAPES, matrix, values


@EVERY
@SHAPES
@PRECISIONS
@pytest.mark.parametrize("damping", [1e-12, 1e-6, 1e-2])
def test_a_solution_is_as_good_as_the_normal_equations_let_it_be(spectrum, shape, dtype, damping):
    J = matrix(*shape, spectrum).to(dtype)
    r = torch.randn(shape[0], generator=torch.Generator().manual_seed(1)).to(dtype)
    system = DampedLeastSquares(J, r)
    found = system.solve(damping)
    assert found.ok
    U, s, Vh = torch.linalg.svd(J.double(), full_matrices=False)
    expected = -(Vh.mT * (s / (s.square() + damping))) @ (U.mT @ r.double())
    # They have the squares of the singular values: what is damped by 1e-12 in a null space is good to 1e-4.
    condition = (1 + damping) / (float(s[-1]) ** 2 + damping)
    error = float((found.value - expected).norm() / expected.norm())
    assert error < 50 * torch.finfo(torch.float64).eps * condition
    # What is foretold is the change of the damped squares, at a minimum.
    change = (J.double() @ found.value + r.double()).square().sum() - r.double().square().sum()
    foretold = float(change + damping * found.value.square().sum()) / 2
    assert system.change(found.value, damping) == pytest.approx(foretold, rel=1e-9, abs=1e-12)
    assert system.scale == pytest.approx(float(values(min(shape), spectrum).square().sum()) / min(shape), rel=1e-5)
