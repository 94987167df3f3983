"""Polar factors by poles: the best function of its degree, singular vectors on falling spectra, extremes, breakdown."""

import pytest
import torch

from lightning_so.linalg.polar import COEFFICIENTS, _newton_schulz, polar, pole_way
from lightning_so.linalg.poles import LEAST, _zolotarev, poles, rational, resolves
from tests.support.spectra import EVERY, cosine, matrix

CPU = torch.device("cpu")
SHAPES = [(64, 256), (256, 64), (96, 96), (60, 100)]


@pytest.mark.parametrize(("least", "number"), [(0.08, 1), (2e-3, 2), (1e-4, 3), (1e-7, 5)])
def test_the_function_levels_between_its_bounds_as_often_as_the_best_one_does(least, number):
    found = _zolotarev(least, number)
    x = torch.logspace(torch.tensor(least).log10().item(), 0, 20001, dtype=torch.float64).clamp(least, 1)
    terms = (weight / (x * x + shift) for weight, shift in zip(found.weights, found.shifts, strict=True))
    image = found.scale * x * (1 + sum(terms))
    assert float((image - 1).abs().max()) == pytest.approx(found.error, rel=1e-6)
    # 2 P + 2 extremes in turns, which no other function of this degree comes under.
    at_bounds = image[(image - 1).abs() > found.error * (1 - 1e-3)] - 1
    assert int((at_bounds.sign().diff() != 0).sum()) + 1 == 2 * number + 2
    assert all(weight > 0 for weight in found.weights)


def test_no_more_poles_than_are_needed_and_none_below_the_rounding():
    assert [len(poles(COEFFICIENTS[0] ** -steps).shifts) for steps in (1, 3, 4, 5, 6, 7)] == [1, 1, 2, 2, 2, 3]
    assert [steps for steps in range(1, 21) if pole_way(CPU, steps, torch.float32)] == list(range(1, 7))
    assert [steps for steps in range(1, 21) if pole_way(CPU, steps, torch.float64)] == list(range(1, 15))
    assert pole_way(CPU, 5, torch.bfloat16) is None
    assert pole_way(torch.device("cuda"), 5, torch.float32) is None
    assert resolves(poles(2e-3), torch.float32)
    assert poles(2e-3).shifts[0] > LEAST * torch.finfo(torch.float32).eps


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_nearer_to_the_singular_vectors_than_the_iteration(dtype, shape, spectrum):
    M = matrix(*shape, spectrum)
    U, S, V = torch.linalg.svd(M, full_matrices=False)
    found = polar(M.to(dtype)[None])[0].double()
    flat = M / M.abs().max()
    iterated = _newton_schulz((flat.mT if shape[0] > shape[1] else flat)[None], 5, torch.float64)[0]
    iterated = iterated.mT if shape[0] > shape[1] else iterated
    assert cosine(found, U @ V) > cosine(iterated, U @ V) - 1e-6
    # In the singular vectors of M: its image is diagonal, near 1 from l on, and never above.
    image = U.mT @ found @ V.mT
    torch.testing.assert_close(image, image.diagonal().diag(), rtol=0, atol=2e-3 if dtype is torch.float32 else 1e-9)
    seen = image.diagonal()[S > 3e-3 * S.max()]
    assert float(seen.min()) > 0.84
    assert float(image.diagonal().max()) < 1.16


def test_float32_follows_float64_on_every_scale_and_zeros_stay():
    M = torch.stack([matrix(24, 40, "1/k^2") * scale for scale in (1.0, 1e-12, 1e12)] + [torch.zeros(24, 40).double()])
    expected = polar(M)
    for X in (M.float(), M.float().mT):
        found = polar(X)
        found = found if X.shape == M.shape else found.mT
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)
        assert not found[3].any()
    row = torch.tensor([[[3.0, 0.0, 4.0]]])
    torch.testing.assert_close(polar(row).mT, polar(row.mT))
    assert float(polar(row).norm()) == pytest.approx(1, abs=0.16)
    tiny = polar(M.float()[1:2] * 1e-25)  # Their squares underflow.
    assert float(tiny.norm()) > 1


def test_what_has_no_root_is_lost_and_not_made_up():
    A = torch.stack([torch.eye(3), -torch.eye(3), torch.full((3, 3), torch.nan)])
    R = rational(A, poles(2e-3))
    assert bool(R[0].isfinite().all())
    assert bool(R[1].isnan().any())
    assert bool(R[2].isnan().any())
    X = torch.randn(2, 3, 5)
    X[1, 0, 0] = torch.inf
    found = polar(X)
    assert bool(found[0].isfinite().all())
    assert not bool(found[1].isfinite().all())
