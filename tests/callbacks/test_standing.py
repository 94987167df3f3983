"""What stands in a strategy's functions' place, whoever is released first."""

import pytest

from lightning_so.callbacks.standing import StandIn, ending


class Strategy:
    def __init__(self):
        self.said = []

    def optimizer_step(self):
        self.said.append("own")

    def teardown(self):
        self.said.append("end")


def standing(strategy, name):
    def make(original):
        def step():
            original()
            strategy.said.append(name)

        return step

    return StandIn(strategy, "optimizer_step", make)


def said(strategy):
    strategy.said.clear()
    strategy.optimizer_step()
    return strategy.said.copy()


@pytest.mark.parametrize("first", ["inner", "outer"])
def test_what_is_released_passes_calls_through_and_the_last_leaves_nothing(first):
    strategy = Strategy()
    pair = {name: standing(strategy, name) for name in ("inner", "outer")}
    kept = strategy.optimizer_step
    assert said(strategy) == ["own", "inner", "outer"]
    pair.pop(first).release()
    assert said(strategy) == ["own", *pair]
    for name in pair:
        pair[name].release()
    assert said(strategy) == ["own"]
    assert "optimizer_step" not in vars(strategy)
    strategy.said.clear()
    kept()
    assert strategy.said == ["own"]


def test_what_another_has_put_there_comes_back():
    strategy = Strategy()
    strategy.optimizer_step = lambda: strategy.said.append("theirs")
    ours = standing(strategy, "ours")
    assert said(strategy) == ["theirs", "ours"]
    ours.release()
    assert said(strategy) == ["theirs"]


def test_at_the_end_of_a_strategy_something_is_done_once():
    strategy, done = Strategy(), []

    def end():
        done.append(1)
        stands.release()

    stands = ending(strategy, end)
    strategy.teardown()
    strategy.teardown()
    assert done == [1]
    assert strategy.said == ["end", "end"]
