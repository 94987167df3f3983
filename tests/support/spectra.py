"""Matrices as gradients of trained networks are: their singular values fall, and some are zero."""

import pytest
import torch

#: By name, singular values of k directions. Gaussian matrices have none of these: they hide what rounding does.
SPECTRA = {
    "flat": torch.ones_like,
    "1/k": lambda k: 1 / k,
    "1/k^2": lambda k: 1 / k.square(),
    "null": lambda k: torch.where(k <= len(k) // 2, 1 / k, 0.0),
}
EVERY = pytest.mark.parametrize("spectrum", SPECTRA)
#: Precisions of curvature; products of polar factors have more.
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
#: Long, tall and square.
SHAPES = pytest.mark.parametrize("shape", [(32, 96), (96, 32), (48, 48)], ids=str)


def values(side, spectrum):
    """Its singular values."""
    return SPECTRA[spectrum](torch.arange(1.0, side + 1, dtype=torch.float64))


def basis(rows, columns, generator):
    """Orthonormal columns at random, float64."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def matrix(rows, columns, spectrum, seed=0):
    """A matrix of a spectrum between random bases, float64."""
    generator, least = torch.Generator().manual_seed(seed), min(rows, columns)
    U, V = (basis(side, least, generator) for side in (rows, columns))
    return (U * values(least, spectrum)) @ V.mT


def factor(side, spectrum, seed=0, count=1):
    """Symmetric matrices whose eigenvalues are a spectrum, shape (count, side, side), float64."""
    generator = torch.Generator().manual_seed(seed)
    found = [basis(side, side, generator) for _ in range(count)]
    return torch.stack([(Q * values(side, spectrum)) @ Q.mT for Q in found])


def units(error, dtype):
    """An error in units of the rounding of a precision."""
    return float(error) / torch.finfo(dtype).eps


def apart(found, expected):
    """How far matrices are from others, relative to these: the largest of a batch."""
    difference = (found.double() - expected.double()).flatten(1).norm(dim=1)
    return float((difference / expected.double().flatten(1).norm(dim=1)).max())


def cosine(X, Y):
    """Between two matrices of any precision."""
    X, Y = X.double(), Y.double()
    return float((X * Y).sum() / (X.norm() * Y.norm()))
