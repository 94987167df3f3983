"""Sides of Kronecker products from rows whose singular values fall, against dense matrices in float64."""

import pytest
import torch

from lightning_so.linalg import kron, sides, tiles
from lightning_so.linalg.sides import Gathered
from tests.support.spectra import EVERY, PRECISIONS, SHAPES, apart, cosine, matrix, units

CAPS = pytest.mark.parametrize("cap", [64, 20])
CPU = torch.device("cpu")


def side(X, cap):
    """A side that has seen the rows of X, and the dense factor of each of its tiles in float64."""
    shape = kron.shape(X.shape[1], 1, cap, diagonal=False)
    made = sides.statistics(shape, 1, X.dtype, CPU, CPU)
    one, sound = torch.ones(1, dtype=X.dtype), torch.zeros(1, dtype=torch.bool)
    for part in X.split(10):  # as micro-batches come
        made.add(0, part[None])
    made.fold([0], made.gathered([0]), one, one, sound)
    dense = X.double().mT @ X.double()
    return made, [dense[cut, cut] for cut in shape.cuts]


def fill(tiles, values):
    """Write flat solutions of one block into its tiles."""
    parts = values[0].split([tensor.numel() for tensor in tiles.tensors])
    for tensor, part in zip(tiles.tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


@EVERY
@PRECISIONS
@SHAPES
@CAPS
def test_a_window_is_the_gram_matrix_of_its_rows(spectrum, dtype, shape, cap):
    made, dense = side(matrix(*shape, spectrum).to(dtype), cap)
    for F, expected in zip(made.factors, dense, strict=True):
        assert units(apart(F[0], expected[None]), dtype) < 10
        # Nothing is negative beyond rounding, where the rows have a null space.
        assert units(-torch.linalg.eigvalsh(F[0, 0].double()).min() / expected.norm(), dtype) < 10


@EVERY
@PRECISIONS
@SHAPES
@CAPS
def test_solves_of_a_side_are_those_of_its_tiles(spectrum, dtype, shape, cap):
    made, dense = side(matrix(*shape, spectrum).to(dtype), cap)
    damping = 1e-3 * Gathered.of([(made, 0)]).mean()
    inverses = kron.inverses(made.shape, 1, dtype, CPU)
    found = Gathered.of([(made, 0)]).inverses(damping)
    assert sides.positive([sides.traces([tile]) for tile in found]).all()
    fill(inverses, sides.joined(found, [damping > 0]).value)
    X = matrix(shape[0], shape[1], spectrum, seed=1).to(dtype)
    damped = torch.block_diag(*(F + float(damping) * torch.eye(len(F)) for F in dense))
    expected = torch.linalg.solve(damped, X.double().mT).mT
    assert cosine(inverses.right(X[None], None)[0], expected) > 0.9999
    # In eigenbases: `Q [(Q' X') / (values + d)]`.
    found = Gathered.of([(made, 0)]).eigen()
    assert found.good.all()
    bases, count = kron.bases(made.shape, 1, dtype, CPU), shape[1]
    fill(bases, found.value[:, :-count])
    turned = bases.right(X[None], None) / (found.value[0, -count:] + damping)
    assert cosine(bases.right(turned, None, transpose=True)[0], expected) > 0.9999


@EVERY
@PRECISIONS
@SHAPES
@pytest.mark.parametrize("column", [False, True])
def test_gradients_fold_and_turn_there_and_back(spectrum, dtype, shape, column):
    G = matrix(*shape, spectrum).to(dtype)[None]
    cuts = tiles.tiles(shape[int(column)], 20)
    factors = [torch.zeros(1, cut.stop - cut.start, cut.stop - cut.start, dtype=dtype) for cut in cuts]
    tiles.fold(factors, cuts, G, 1.0, column=column)
    X = G.double().mT if column else G.double()
    for F, cut in zip(factors, cuts, strict=True):
        assert units(apart(F, X[:, cut] @ X[:, cut].mT), dtype) < 10
    bases = [torch.linalg.eigh(F.double())[1].to(dtype) for F in factors]
    there = tiles.turn(bases, cuts, G, column=column, leave=False)
    assert units(abs(float(there.double().norm() / G.double().norm()) - 1), dtype) < 10
    assert units(apart(tiles.turn(bases, cuts, there, column=column, leave=True), G), dtype) < 10
    exact = torch.cat([torch.linalg.eigvalsh(F.double()).clamp_min(0) for F in factors], 1)
    assert units((tiles.eigenvalues(factors, bases, cuts).double() - exact).abs().max() / exact.max(), dtype) < 20


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [[0, 1], [0, 2]])
def test_windows_that_are_not_finite_leave_factors_as_they_are(value, rows):
    made = sides.statistics(kron.shape(4, 1, 64, diagonal=False), 3, torch.float64, CPU, CPU)
    made.factors[0][:] = torch.eye(4, dtype=torch.float64)
    for row, entry in zip(rows, (1.0, value), strict=True):
        made.add(row, torch.full((1, 2, 4), entry, dtype=torch.float64))
    keep, weight = torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.0])
    made.fold(rows, made.gathered(rows), keep.double(), weight.double(), torch.tensor([False, True]))
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(made.factors[0][rows[0], 0], 0.5 * eye + 1, rtol=0, atol=0)
    torch.testing.assert_close(made.factors[0][1:, 0], eye.expand(2, 4, 4), rtol=0, atol=0)
