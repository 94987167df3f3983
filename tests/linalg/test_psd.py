"""Inverses and eigenbases of damped factors whose eigenvalues fall, against float64."""

import pytest
import torch

from lightning_so.linalg import psd
from lightning_so.linalg.damping import Relative, split, strength
from tests.support.spectra import EVERY, PRECISIONS, SHAPES, apart, cosine, factor, matrix, units


@EVERY
@PRECISIONS
@pytest.mark.parametrize("damping", [1e-6, 1e-3])
def test_an_inverse_is_as_good_as_its_condition_lets_it_be(spectrum, dtype, damping):
    F = factor(48, spectrum, count=3).to(dtype)
    d = damping * F.diagonal(dim1=1, dim2=2).amax(1)
    found = psd.inverse(F, d)
    assert (found.ok, found.attempts) == (True, 1)
    damped = F.double() + d.double()[:, None, None] * torch.eye(48)
    condition = float(torch.linalg.cond(damped).max())
    assert units(apart(found.value, torch.linalg.inv(damped)), dtype) < 2 * condition


@EVERY
@PRECISIONS
def test_an_eigenbasis_makes_its_factor(spectrum, dtype):
    F = factor(48, spectrum, count=3).to(dtype)
    values, Q, ok = psd.eigenbasis(F)
    assert ok.all()
    assert bool((values >= 0).all())
    assert units(apart((Q.double() * values.double()[:, None]) @ Q.double().mT, F), dtype) < 20
    assert units((Q.double().mT @ Q.double() - torch.eye(48)).abs().max(), dtype) < 30


@EVERY
@SHAPES
def test_directions_of_kfac_are_those_of_float64(spectrum, shape):
    """`G^-1 X A^-1` of gradients X whose factors are their own: damped as K-FAC is where updates are bent."""

    def direction(X):
        sides = X.mT @ X / len(X), X @ X.mT / X.shape[1]
        means = [F.diagonal().mean() for F in sides]
        damping = split(strength(Relative(0.1), means), means)
        A, G = (psd.inverse(F[None], d[None]).value[0] for F, d in zip(sides, damping, strict=True))
        return G @ X @ A

    X = matrix(*shape, spectrum).float()
    assert cosine(direction(X), direction(X.double())) > 0.9999
