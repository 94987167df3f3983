"""Curvature under noise: gradients regressed on steps that followed them say 1 / eta; those of one batch do not."""

import pytest

from benchmarks.curvature.bias import reported, secant
from lightning_so import OGR, FewDirections


def test_steps_that_follow_their_own_noise_bias_regression_and_nothing_else():
    for eta, expected in ((0.1, 10.7), (1.0, 1.5)):
        found, theory = secant(eta, 50_000)
        assert found == pytest.approx(expected, rel=0.05)
        assert found == pytest.approx(theory, rel=0.01)
    # The same training for all: 20 numbers, curvature 1 along each.
    assert reported(OGR(k=4, beta=0.1), 20, 0.1, 150) > 1.5
    for unbiased in (OGR(k=4, beta=0.1, curvature="same-batch", every=2), FewDirections(k=4, every=2)):
        assert reported(unbiased, 20, 0.1, 150) == pytest.approx(1.0, rel=0.05)


def test_a_direction_that_is_the_noise_shows_a_maximum_where_there_is_none():
    assert reported(OGR(k=1, beta=0.1), 20, 0.1, 150) < -1.5
