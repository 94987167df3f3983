"""Matrices that the optimizer has and that are not trained: nothing is held for them until they are."""

import copy

import pytest
import torch
from torch import nn

from lightning_so import KFAC, SOAP, Memory, Muon, Shampoo, attach
from lightning_so.core.plan.route import FROZEN
from lightning_so.core.trust.memory import state_bytes
from tests.support.daily import one_in

SOON = SOAP(start=2, period=2)
METHODS = {
    "soap": SOON,
    "kfac": KFAC(fisher="empirical", period=2),
    "shampoo": Shampoo(period=2),
}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


class Training:
    """A regression of three layers in float64; one of them frozen, and in the optimizer all the same."""

    def __init__(self, method, frozen=True, memory=None, layer=0):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4)).double()
        self.layer = self.model[layer]
        self.freeze(frozen)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.engine = attach(self.model, self.optimizer, method, memory=memory)

    def freeze(self, frozen):
        self.layer.requires_grad_(not frozen)

    def steps(self, numbers):
        for number in numbers:
            x = torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            self.optimizer.zero_grad()
            loss = (self.model(x) - x[:, :4].tanh()).square().mean()
            self.engine.before_backward(loss)
            loss.backward()
            self.optimizer.step()
        return self

    @property
    def blocks(self):
        return [block.name for block in self.engine.plan.blocks]

    @property
    def bytes(self):
        return state_bytes(self.engine.parts.units, self.engine.parts.matrices)

    def saved(self):
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        return self.engine.state_dict(), copy.deepcopy(self.optimizer.state_dict()), weights

    def load(self, saved):
        curvature, own, weights = saved
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(own)
        self.engine.load_state_dict(curvature)
        return self


def weights(training):
    return list(training.model.parameters())


def equal(one, other):
    return all(map(torch.equal, weights(one), weights(other)))


@EACH
def test_nothing_is_held_for_what_is_frozen(method):
    frozen, alone = Training(method).steps(range(4)), Training(method, frozen=False)
    assert frozen.blocks == ["2.weight", "4.weight"]
    assert FROZEN in str(frozen.engine.plan)
    # The optimizer without it.
    alone.engine.detach()
    alone.optimizer = torch.optim.AdamW(alone.model[2:].parameters(), lr=1e-2)
    alone.freeze(True)
    alone.engine = attach(alone.model, alone.optimizer, method)
    alone.steps(range(4))
    assert equal(frozen, alone)
    assert frozen.bytes == alone.bytes
    assert frozen.engine.report.solves == alone.engine.report.solves
    rows = {row.name: row.numel for row in frozen.engine.plan.rows}
    trained = sum(rows.values()) - rows["0.weight"]
    biases = rows["2.bias"] + rows["4.bias"] if method is METHODS["kfac"] else 0
    assert frozen.engine.plan.coverage == (rows["2.weight"] + rows["4.weight"] + biases) / trained


@EACH
def test_it_is_taken_in_at_the_step_at_which_it_is_trained(method):
    said = []
    training = Training(method)
    training.engine.tell = said.append
    training.steps(range(5))
    assert not said
    training.freeze(False)
    training.steps(range(5, 6))
    assert training.blocks == ["0.weight", "2.weight", "4.weight"]
    assert [plan.frozen for plan in said] == [{}]
    # The others go on warm, and it stays when it is frozen again.
    assert training.engine.report.solves > 0
    training.freeze(True)
    training.steps(range(6, 8))
    assert len(said) == 1
    assert training.blocks == ["0.weight", "2.weight", "4.weight"]


def test_the_new_block_acts_as_one_that_joined_the_optimizer():
    ends = []
    for grows in (False, True):
        training = Training(SOON, layer=4)
        if grows:
            training.engine.detach()
            training.optimizer = torch.optim.AdamW(training.model[:4].parameters(), lr=1e-2)
            training.engine = attach(training.model, training.optimizer, SOON)
        training.steps(range(5))
        training.freeze(False)
        if grows:
            training.optimizer.add_param_group({"params": list(training.layer.parameters())})
        ends.append(training.steps(range(5, 16)))
        assert training.engine.report.rotated == 3
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*map(weights, ends), strict=True))


@pytest.mark.parametrize("method", one_in(3, METHODS.values()), ids=list(METHODS))
@pytest.mark.parametrize("late", [False, True], ids=["frozen before the load", "after it"])
@pytest.mark.parametrize("stop", [4, 9])
def test_a_resumed_run_equals_one_that_did_not_stop(method, late, stop):
    def on(training, first, last):
        for number in range(first, last):
            training.freeze(number < 6)
            training.steps([number])
        return training

    straight = on(Training(method), 0, 14)
    saved = on(Training(method), 0, stop).saved()
    again = Training(method, frozen=not late)
    again.load(saved)
    assert again.blocks == (["2.weight", "4.weight"] if stop < 6 else ["0.weight", "2.weight", "4.weight"])
    assert equal(on(again, stop, 14), straight)


def test_a_file_of_before_has_all_of_them():
    saved = Training(SOON, frozen=False).steps(range(6)).saved()
    assert "frozen" not in saved[0]
    again = Training(SOON).load(saved)
    assert again.blocks == ["0.weight", "2.weight", "4.weight"]
    again.steps(range(6, 8))


def test_where_all_is_frozen_all_is_taken_in():
    training = Training(SOON)
    training.engine.detach()
    training.model.requires_grad_(False)
    training.engine = attach(training.model, training.optimizer, SOON)
    assert training.blocks == ["0.weight", "2.weight", "4.weight"]
    training.model.requires_grad_(True)
    training.steps(range(6))
    assert training.engine.report.rotated == 3


def test_a_limit_of_memory_is_of_what_is_trained():
    whole = Training(SOON, frozen=False, memory=Memory())
    most = float(whole.engine.plan.memory.split()[0])
    frozen = Training(SOON, memory=most - 1)
    weights = [param.numel() for param in frozen.model.parameters()]
    trained = sum(weights) - sum(weights[:2])
    assert f"moments {2 * trained / sum(weights):.2f}" in frozen.engine.plan.memory
    assert frozen.blocks == ["2.weight", "4.weight"]


def test_what_bends_without_curvature_needs_no_room_for_it():
    assert Training(Muon()).blocks == ["2.weight", "4.weight"]
