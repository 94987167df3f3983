"""Alarms are for what no healthy training does."""

import math

import pytest

from lightning_so.callbacks.record.alarms import QUIET, Alarms


def alarms(losses):
    seen = Alarms()
    found = ((step, seen.see(step, loss)) for step, loss in enumerate(losses, 1))
    return [(step, alarm[0]) for step, alarm in found if alarm is not None]


def noisy(steps, level=1.0):
    """A loss with a noise of some 10 %, the same at every run."""
    return [level * (1 + 0.1 * math.sin(12.9898 * step) * math.cos(78.233 * step)) for step in range(steps)]


def test_a_loss_that_is_not_finite():
    assert alarms([*noisy(30), math.nan, math.inf, *noisy(5)]) == [(31, "nan")]
    assert alarms([math.nan]) == [(1, "nan")]


def test_a_loss_far_above_those_before():
    assert alarms([*noisy(60), *noisy(10, 4.0)]) == [(61, "spike")]


def test_it_is_said_again_after_a_while():
    quiet = noisy(QUIET)
    assert alarms([*noisy(60), 4.0, *quiet, 4.0, 4.0]) == [(61, "spike"), (62 + QUIET, "spike")]


@pytest.mark.parametrize(
    "losses",
    [
        noisy(500),
        [5 * 0.99**step for step in range(500)],
        [0.01 * (1 + (step % 7 == 0)) for step in range(500)],
        [1.0] * 50 + [1.4] * 50,
        [-1.0 + 0.01 * each for each in noisy(200)],
        [None] * 50,
        [*noisy(18), 50.0],
    ],
    ids=["noise", "falling", "two kinds of batches", "a little more", "negative", "unknown", "too few"],
)
def test_no_alarm(losses):
    assert alarms(losses) == []
