"""Inverse roots against eigenvalues in float64, and what happens where they fail."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_so import ConfigError
from lightning_so.linalg import roots
from lightning_so.linalg.psd import RUNGS
from lightning_so.linalg.roots import Newton, inverse_root
from tests.support.spectra import EVERY, PRECISIONS, SHAPES, apart, cosine, factor, matrix

CASES = [("eigen", p) for p in (1, 2, 4, 6, 8, 3, 1.5, 0.7)]
CASES += [("newton", p) for p in (1, 2, 3, 4, 6, 8)] + [("schulz", p) for p in (1, 2, 4, 8)]
WHOLE = pytest.mark.parametrize(("way", "p"), CASES)


def factors(sides, condition=1e3, count=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(count, sides, sides, generator=generator, dtype=torch.float64))[0]
    values = (
        torch.logspace(0, -math.log10(condition), sides, dtype=torch.float64)
        * torch.tensor([1.0, 1e4, 1e-5][:count])[:, None]
    )
    return ((Q * values[:, None]) @ Q.mT).to(dtype)


def truth(F, damping, p):
    values, vectors = torch.linalg.eigh(F.double())
    return (vectors * (values.clamp_min(0) + damping.double()[:, None]).pow(-1 / p)[:, None]) @ vectors.mT


def off(found, expected):
    return float(((found.double() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


@WHOLE
def test_a_batch_of_very_different_scales_has_its_roots(way, p):
    F = factors(7)
    damping = 1e-3 * F.diagonal(dim1=1, dim2=2).amax(1)
    result = inverse_root(F, damping, p, way=way)
    assert (result.ok, result.attempts) == (True, 1)
    assert off(result.value, truth(F, damping, p)) < 1e-6
    assert result.residual < 1e-5
    assert (result.iterations > 0) is (way != "eigen")


@WHOLE
def test_float32_is_good_to_its_own_precision_times_the_condition(way, p):
    F = factors(16, dtype=torch.float32)
    damping = 1e-2 * F.diagonal(dim1=1, dim2=2).amax(1)
    result = inverse_root(F, damping, p, way=way)
    assert result.ok
    assert result.value.dtype is torch.float32
    assert off(result.value, truth(F, damping, p)) < 1e-3


@EVERY
@PRECISIONS
@pytest.mark.parametrize("damping", [1e-6, 1e-3])
@WHOLE
def test_spectra_that_fall_have_roots_as_good_as_their_condition(way, p, damping, dtype, spectrum):
    F = factor(32, spectrum, count=2).to(dtype)
    d = damping * F.diagonal(dim1=1, dim2=2).amax(1)
    found = inverse_root(F, d, p, way=way)
    assert found.ok
    # Iterations may want more damping in a null space: it is that root.
    d = RUNGS[(found.attempts - 1) % len(RUNGS)] * d.double()
    L, Q = torch.linalg.eigh(F.double())
    L = L + d[:, None]
    condition = float((L[:, -1] / L[:, 0]).max())
    bound = 20 * torch.finfo(dtype).eps * condition + (1e-5 if way == "newton" else 0.0)
    assert apart(found.value, (Q * L.pow(-1 / p)[:, None]) @ Q.mT) < bound


@EVERY
@SHAPES
@pytest.mark.parametrize("p", [2, 4])
def test_directions_of_shampoo_are_those_of_float64(p, shape, spectrum):
    """`L^(-1/p) X R^(-1/p)` of gradients X whose factors are their own, damped by 1e-6 of the largest entry."""

    def direction(X):
        roots = []
        for F in (X @ X.mT, X.mT @ X):
            roots.append(inverse_root(F[None], 1e-6 * F.diagonal().max()[None], p).value[0])
        return roots[0] @ X @ roots[1]

    X = matrix(*shape, spectrum).float()
    # Eigenvalues of factors of 1/k^2 fall as 1/k^4: below the damping, which is as large as eigh's error in float32.
    # Decomposed in float64, for 1.4 to 2.2 times the time, the cosines are .9998 and .99999.
    least = {2: 0.97, 4: 0.998}[p] if spectrum == "1/k^2" else 0.9999
    assert cosine(direction(X), direction(X.double())) > least


@WHOLE
def test_the_largest_entry_of_a_batch_does_not_touch_the_others(way, p):
    F = factors(5)
    damping = torch.full((3,), 1e-9, dtype=F.dtype)
    alone = torch.cat([inverse_root(F[i : i + 1], damping[i : i + 1], p, way=way).value for i in range(2)])
    together = inverse_root(F[:2], damping[:2], p, way=way).value
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)


@given(st.integers(1, 9), st.floats(0.5, 8), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_root_of_a_scaled_factor_is_scaled(side, p, seed):
    F = factors(side, count=1, seed=seed)
    damping = torch.tensor([1e-3], dtype=F.dtype)
    one, many = inverse_root(F, damping, p).value, inverse_root(16 * F, 16 * damping, p).value
    torch.testing.assert_close(many, one * 16 ** (-1 / p), rtol=1e-9, atol=1e-12)


def test_newton_in_slices_is_newton_in_one():
    F = factors(8) + 1e-2 * torch.eye(8, dtype=torch.float64)
    whole, slices = Newton.begin(F, 4), Newton.begin(F, 4)
    whole.advance(100)
    while not slices.advance(3):
        pass
    assert torch.equal(whole.X, slices.X)
    assert whole.iterations == slices.iterations > 3


def test_a_near_inverse_is_a_start_and_a_far_one_is_none():
    F = factors(8, condition=1e4, count=1)
    none = torch.zeros(1, dtype=F.dtype)
    cold = inverse_root(F, none, 1, way="schulz")
    warm = inverse_root(F, none, 1, way="schulz", last=cold.value * 1.01)
    far = inverse_root(F, none, 1, way="schulz", last=cold.value * -50)
    assert warm.iterations < cold.iterations / 3
    assert far.iterations == cold.iterations
    for result in (warm, far):
        assert result.ok
        assert off(result.value, cold.value) < 1e-6


def test_the_pseudo_inverse_leaves_the_null_space_out():
    v = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    F = (v @ v.mT)[None]
    none = torch.zeros(1, dtype=F.dtype)
    result = inverse_root(F, none, 1, cutoff=1e-9)
    assert result.ok
    torch.testing.assert_close(result.value[0], torch.linalg.pinv(F[0]), rtol=1e-8, atol=1e-10)
    half = inverse_root(F, none, 2, cutoff=1e-9).value
    torch.testing.assert_close(half @ half, result.value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("way", roots.WAYS)
def test_a_singular_factor_climbs_the_ladder_by_damping(way):
    ones = torch.ones(1, 8, 8)
    result = inverse_root(ones, torch.tensor([1e-9]), 2, way=way)  # lost in float32
    assert result.ok
    assert result.attempts > 1
    again = inverse_root(ones.double(), torch.tensor([1e-9], dtype=torch.float64), 2, way=way)
    assert again.ok


@pytest.mark.parametrize("way", roots.WAYS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, "zero", "negative"])
def test_a_hopeless_factor_is_data_and_no_exception(way, bad):
    F = torch.eye(4).repeat(2, 1, 1)
    if bad == "zero":
        F[1] = 0
    elif bad == "negative":
        F[1, 0, 0] = -100.0
    else:
        F[1, 0, 0] = bad
    result = inverse_root(F, torch.zeros(2) if bad == "zero" else torch.full((2,), 1e-3), 2, way=way)
    assert not result.ok
    assert result.residual == math.inf


def test_eigh_that_returns_something_else_is_caught(monkeypatch):
    F, damping = factors(6, count=1, dtype=torch.float32), torch.tensor([1e-3])
    honest, calls = torch.linalg.eigh, []

    def lying(A):
        calls.append(A.dtype)
        values, vectors = honest(A)
        return (values, vectors.roll(1, -1)) if A.dtype is torch.float32 else (values, vectors)

    monkeypatch.setattr(torch.linalg, "eigh", lying)
    result = inverse_root(F, damping, 4)
    assert (result.ok, result.attempts) == (True, 4)
    assert calls[-1] is torch.float64
    monkeypatch.undo()
    assert off(result.value, truth(F, damping, 4)) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"p": 0}, "above 0"),
        ({"p": math.nan}, "above 0"),
        ({"p": 2.5, "way": "newton"}, "integer"),
        ({"p": 6, "way": "schulz"}, "1, 2, 4, 8"),
        ({"p": 2, "way": "newton", "cutoff": 1e-3}, "eigen"),
        ({"p": 2, "way": "magic"}, "eigen"),
    ],
)
def test_a_root_that_a_way_cannot_take_is_refused(arguments, match):
    with pytest.raises(ConfigError, match=match):
        inverse_root(torch.eye(2)[None], torch.zeros(1), **arguments)
