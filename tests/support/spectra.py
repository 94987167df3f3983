"""Matrices as gradients of trained networks are: their singular values fall, and some are zero."""

import torch

#: By name, singular values of k directions. Gaussian matrices have none of these: they hide what rounding does.
SPECTRA = {
    "flat": torch.ones_like,
    "1/k": lambda k: 1 / k,
    "1/k^2": lambda k: 1 / k.square(),
    "null": lambda k: torch.where(k <= len(k) // 2, 1 / k, 0.0),
}


def matrix(rows, columns, spectrum, seed=0):
    """A matrix of a spectrum between random bases, float64."""
    generator, least = torch.Generator().manual_seed(seed), min(rows, columns)
    U, V = (
        torch.linalg.qr(torch.randn(side, least, generator=generator, dtype=torch.float64)).Q
        for side in (rows, columns)
    )
    values = SPECTRA[spectrum](torch.arange(1.0, least + 1, dtype=torch.float64))
    return (U * values) @ V.mT
