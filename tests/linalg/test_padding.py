"""Matrices of several shapes in one batch: which are put together, and that each has the polar factor it has alone."""

import itertools

import pytest
import torch

from lightning_so.linalg.padding import CALL, Frames, joined
from lightning_so.linalg.polar import PolarFactor, polar
from tests.support.spectra import EVERY, cosine, matrix

#: Of the deep autoencoder and of a small CNN: number, rows and columns, biases in.
AUTOENCODER = ((1, 500, 785), (1, 250, 501), (1, 125, 251), (1, 30, 126), (1, 125, 31), (1, 250, 126), (1, 500, 251))
CNN = ((1, 16, 28), (2, 16, 144), (1, 32, 144), (2, 32, 288), (1, 64, 288), (1, 64, 576), (3, 128, 65))
FACTOR, DTYPE = PolarFactor(), torch.float32


def taken(sizes, groups, call):
    """What polar factors take in groups, in multiply-adds."""
    shapes = [Frames(tuple(sizes[number] for number in group)).shape for group in groups]
    return sum(count * FACTOR.cost((short, long), DTYPE) + call for count, short, long in shapes)


def together(sizes, **how):
    """Their polar factors, computed in one batch."""
    frames = Frames(tuple(tuple(X.shape) for X in sizes))
    room = torch.full(frames.shape, torch.nan, dtype=sizes[0].dtype)
    return frames.views(polar(frames.fill(room, iter(sizes)), **how))


# ---------------------------------------------------------------- which are put together


@pytest.mark.parametrize("sizes", [AUTOENCODER, CNN], ids=["autoencoder", "cnn"])
def test_a_dear_launch_joins_all_and_a_free_one_none(sizes):
    assert [set(group) for group in joined(sizes, FACTOR, DTYPE, 1e15)] == [set(range(len(sizes)))]
    assert sorted(joined(sizes, FACTOR, DTYPE, 0.0)) == [(number,) for number in range(len(sizes))]


def test_what_has_one_shape_when_wide_costs_nothing_to_join():
    assert set(joined(((2, 8, 24), (1, 9, 24), (3, 24, 8)), FACTOR, DTYPE, 0.0)) == {(0, 2), (1,)}


def test_what_is_large_stays_apart():
    assert joined(((8, 768, 768), (2, 768, 3072), (2, 3072, 768)), FACTOR, DTYPE) == ((0,), (1, 2))
    assert joined(AUTOENCODER, FACTOR, DTYPE) == ((2, 3, 4, 5), (1, 6), (0,))
    assert len(joined(CNN, FACTOR, DTYPE)) == 1


@pytest.mark.parametrize("call", [1e5, 1e7, CALL, 1e11])
@pytest.mark.parametrize("sizes", [AUTOENCODER[:5], CNN[:5]], ids=["autoencoder", "cnn"])
def test_no_other_row_of_groups_takes_less(sizes, call):
    groups = joined(sizes, FACTOR, DTYPE, call)
    assert sorted(itertools.chain(*groups)) == list(range(len(sizes)))
    assert all(list(group) == sorted(group) for group in groups)
    order = sorted(range(len(sizes)), key=lambda number: FACTOR.cost(sizes[number][1:], DTYPE))
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, len(sizes)), n) for n in range(len(sizes)))
    rows = [[order[a:b] for a, b in itertools.pairwise((0, *cut, len(sizes)))] for cut in cuts]
    assert taken(sizes, groups, call) == min(taken(sizes, row, call) for row in rows)


def test_nothing_is_one_group_less():
    assert joined((), FACTOR, DTYPE) == ()
    assert joined(((3, 4, 5),), FACTOR, DTYPE) == ((0,),)


# ---------------------------------------------------------------- what comes of it


def shapes(spectrum):
    """Matrices of a spectrum in several shapes, one of them alone in its batch."""
    found = [matrix(rows, columns, spectrum) for rows, columns in ((40, 64), (64, 24), (1, 50), (30, 1), (33, 33))]
    return [torch.stack([X, 1e-20 * X.flip(0)]) for X in found[:2]] + [X[None] for X in found[2:]]


@EVERY
@pytest.mark.parametrize("steps", [2, 5])
def test_polar_factors_are_those_of_each_shape_alone(spectrum, steps):
    Xs = shapes(spectrum)
    for found, X in zip(together(Xs, steps=steps), Xs, strict=True):
        assert found.shape == X.shape
        torch.testing.assert_close(found, polar(X, steps=steps), rtol=0, atol=1e-12)


def test_zeros_stay_zeros_and_what_is_not_finite_stays_where_it_is():
    Xs = shapes("1/k")
    Xs[0][1] = 0
    Xs[4][0, 3, 5] = torch.nan
    first, second, *_, last = together(Xs)
    assert not first[1].any()
    assert last.isnan().any()
    for found, X in ((first[0], Xs[0][:1]), (second, Xs[1])):
        torch.testing.assert_close(found, polar(X).view_as(found), rtol=0, atol=1e-12)


@EVERY
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_products_of_half_precision_lose_no_more_there(spectrum, precision):
    Xs = [X.float() for X in shapes(spectrum)]
    for found, X in zip(together(Xs, precision=precision), Xs, strict=True):
        for one, alone, expected in zip(found, polar(X, precision=precision), polar(X.double()), strict=True):
            if expected.any():
                assert 1 - cosine(one, expected) < 1.5 * (1 - cosine(alone, expected)) + torch.finfo(precision).eps / 16
            else:
                assert not one.any()
