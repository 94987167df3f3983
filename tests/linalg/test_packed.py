"""Strips of symmetric matrices against whole ones: nothing is lost, and what is folded in is the whole product."""

import pytest
import torch

from lightning_so.linalg import packed
from lightning_so.linalg.triangle import triangle
from tests.support.spectra import EVERY, PRECISIONS, apart, factor, matrix, units

SIDES = pytest.mark.parametrize("side", [1, 2, 16, 17, 100, 128])


@SIDES
def test_strips_hold_the_whole_matrix(side):
    F = factor(side, "1/k", count=3)
    F = (F + F.mT) / 2
    kept = packed.pack(F)
    assert kept.shape == (3, packed.size(side))
    assert torch.equal(packed.dense(kept, side), F)
    for begin, end, _ in packed.strips(side):
        F[:, end:, begin:end] = torch.nan  # Nothing below the strips is read.
    assert torch.equal(packed.pack(F), kept)


def test_strips_are_little_more_than_a_triangle():
    assert packed.size(1024) == 9 / 16 * 1024**2
    assert packed.size(16) == 16**2  # one strip: fewer rows are all launches


@EVERY
@PRECISIONS
def test_products_fold_into_strips(spectrum, dtype):
    F, X = factor(100, spectrum, count=2).to(dtype), matrix(100, 40, spectrum).to(dtype).repeat(2, 1, 1)
    kept = packed.pack(F)
    packed.fold(kept, X, 0.9, 0.1)
    exact = 0.9 * F.double() + 0.1 * X.double() @ X.double().mT
    assert units(apart(packed.dense(kept, 100), exact), dtype) < 10


@SIDES
def test_what_a_file_holds_fits_any_form(side):
    F = factor(side, "1/k")[0]
    F = (F + F.mT) / 2
    forms = {"whole": F, "strips": packed.pack(F), "triangle": triangle(F)}
    for saved in forms.values():
        for like in (forms["whole"], forms["strips"]):
            assert torch.equal(packed.fitted(saved, torch.empty_like(like)), like)


def test_what_fits_in_no_form_is_left_as_it_is():
    for saved, like in (((7,), (3, 3)), ((5, 5), (7,)), ((5,), (7,))):
        tensor = torch.ones(saved)
        assert packed.fitted(tensor, torch.ones(like)) is tensor
