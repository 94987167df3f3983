"""Ranks become one run: steps line up by number, parts add up where they are parts."""

import math

import pytest

from lightning_so.report.run import Run
from tests.support import recorded


def test_columns_line_up_by_step_and_the_last_steps_are_whole():
    run = Run("a", recorded.healthy(3, 3000))
    steps, losses = run.column("loss")
    assert steps == sorted({*range(2001, 3001), *recorded.kept(3000)})
    assert None not in losses
    assert run.length == 3000


def test_means_of_losses_and_the_slowest_of_times():
    recordings = recorded.healthy(2, 40)
    for each, loss, seconds in zip(recordings, (1.0, 3.0), (0.1, 0.4)):
        recorded.column([each], "loss", lambda step, loss=loss: loss)
        recorded.column([each], "step_seconds", lambda step, seconds=seconds: seconds)
    run = Run("a", recordings)
    assert set(run.column("loss")[1]) == {2.0}
    assert set(run.column("step_seconds")[1]) == {0.4}


def test_a_loss_that_is_not_finite_on_one_rank_is_not_finite():
    recordings = recorded.healthy(4, 40)
    recorded.lossy(recordings[2:3], lambda step, loss: None if step == 7 else loss)
    steps, losses = Run("a", recordings).column("loss")
    assert [step for step, loss in zip(steps, losses) if loss is None] == [7]


@pytest.mark.parametrize("sharded", [False, True])
def test_squared_norms_add_up_where_ranks_hold_parts(sharded):
    whole, parts = Run("a", recorded.healthy(1, 200)), Run("b", recorded.healthy(4, 200, sharded=sharded))
    for name in ("weight", "update", "gradient", "dot"):
        for row, of in zip(whole.layers[name].rows, parts.layers[name].rows):
            assert of == pytest.approx(row)
    ratio, step = parts.trust_ratios().rows[-1][0], whole.layers["update"].rows[-1][0]
    assert ratio == pytest.approx(math.sqrt(step / whole.layers["weight"].rows[-1][0]))
    assert parts.cosines().rows[0] == pytest.approx([0.4] * len(recorded.WEIGHTS))
    norms = (0.9 if sharded else 3.6) * len(parts.recordings) / 4
    assert parts.column("gradient")[1][0] > norms


def test_what_is_not_known_stays_unknown():
    recordings = recorded.healthy(1, 200)
    recorded.freeze(recordings, "head.weight")
    run = Run("a", recordings)
    place = run.layers["weight"].names.index("head.weight")
    assert {row[place] for row in run.trust_ratios().rows} == {0.0}
    assert {row[place] for row in run.cosines().rows} == {None}
    recordings[0]["layers"] = recordings[0]["units"] = None
    bare = Run("a", recordings)
    assert bare.trust_ratios() is bare.cosines() is bare.units("dead") is None


def test_a_unit_is_dead_where_it_is_on_all_ranks():
    recordings = recorded.healthy(2, 400)
    recorded.units(recordings[:1], "dead", "blocks.0.mlp.0", 0.9)
    dead = dict(Run("a", recordings).units("dead").layers())
    assert dead["blocks.0.mlp.0"][-1] < 0.1


def test_the_same_event_of_all_ranks_is_one():
    recordings = recorded.healthy(3, 100)
    recorded.event(recordings[1:2], 60, "skipped", "", "a gradient was not finite")
    events = Run("a", recordings).events
    assert [(event["step"], event["ranks"]) for event in events] == [(50, [0, 1, 2]), (60, [1])]


def test_seconds_of_a_solve_are_those_of_its_owner():
    solves = Run("a", recorded.healthy(4, 400)).solves()
    assert len(solves) == len({(step, owner) for step, owner, _, _ in solves})
    assert all(seconds is not None for _, _, seconds, _ in solves)


def test_missing_ranks_are_known():
    assert Run("a", recorded.healthy(4, 40)[1:3]).missing == [0, 3]
