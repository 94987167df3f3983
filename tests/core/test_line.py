"""Solves behind the training's next passes: a stand-in that solves as late as it may shows what a stream may see."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Mixture, Muon, Shampoo, attach
from lightning_so.core.solves.line import InLine, line_of
from tests.support import ranks
from tests.support.daily import daily
from tests.support.late import late
from tests.support.problems import Net, batch

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})
METHODS = {
    "soap": (SOAP(start=6, period=2), ADAMW),
    "kfac": (KFAC(period=2), SGD),
    "kfac exact": (KFAC(period=2, exact=True), ADAMW),
    "ekfac": (EKFAC(start=6, period=2), ADAMW),
    "ekfac sgd": (EKFAC(start=6, period=2), SGD),
    "shampoo": (Shampoo(period=2), ADAMW),
    "mixture": (Mixture({"Conv2d": KFAC(period=2), "wide.*": Muon(), "*": SOAP(start=6, period=2)}), ADAMW),
}
STEPS = 20


def trained(method, base, poison=(), stops=()):
    """Weights, state and report after some steps: at some a gradient is not finite, after some it is resumed."""
    torch.manual_seed(0)
    model = Net()
    optimizer = base[0](model.parameters(), **base[1])
    engine = attach(model, optimizer, method, lag=1)
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        engine.before_backward(loss)
        loss.backward()
        if step in poison:
            model.tall.weight.grad[0, 0] = float("nan")
        optimizer.step()
        optimizer.zero_grad()
        if step in stops:
            state, of_base = engine.state_dict(), optimizer.state_dict()
            engine.detach()
            optimizer = base[0](model.parameters(), **base[1])
            engine = attach(model, optimizer, method, lag=1)
            optimizer.load_state_dict(of_base)
            engine.load_state_dict(state)
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, block in engine.state_dict()["blocks"].items():
        found |= {f"{name}:{key}": tensor for key, tensor in block["tensors"].items()}
    return found, engine.report


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", METHODS)
def test_solves_that_run_late_change_no_bit(name):
    expected, report = trained(*METHODS[name], poison=(8,))
    found, told = late(trained, *METHODS[name], poison=(8,))
    assert told == report
    assert report.solves > STEPS
    same(found, expected)


@pytest.mark.parametrize("name", ["soap", "kfac", "ekfac", "shampoo"])
def test_a_run_that_is_resumed_with_a_solve_not_yet_run_changes_no_bit(name):
    expected, _ = trained(*METHODS[name])
    found, _ = late(trained, *METHODS[name], stops=(3, 9, 12))
    same(found, expected)


@pytest.mark.parametrize("name", ["soap", "kfac"])
def test_a_state_is_loaded_over_factors_only_when_solves_have_read_them(name):
    def loaded():
        torch.manual_seed(0)
        model, (method, base) = Net(), METHODS[name]
        optimizer = base[0](model.parameters(), **base[1])
        engine = attach(model, optimizer, method, lag=1)
        before, flights = engine.state_dict(), []
        for step in range(1, 10):
            torch.nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            flights += [flight for flight in engine.parts.flights if flight not in flights]
        engine.load_state_dict(before)
        return [batch.solved.value for flight in flights for batch in flight.arrived()]

    for value, expected in zip(late(loaded), loaded(), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("name", daily(["soap", "kfac", "ekfac", "shampoo"], "soap"))
def test_two_ranks_that_solve_late_are_two_that_do_not(two, name):
    method, base = METHODS[name]
    expected = two.run(ranks.train, method, *base, STEPS, lag=1)
    for (found, report, *_), (weights, told, *_) in zip(
        two.run(late, ranks.train, method, *base, STEPS, lag=1), expected, strict=True
    ):
        # The exchange of the last solves has not begun.
        assert replace(report, sent=0) == replace(told, sent=0)
        same(found, weights)


def test_only_a_lag_on_one_cuda_device_has_a_stream_of_its_own():
    cpu, first, second = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))
    with mock.patch("lightning_so.core.solves.line.SideStream") as stream:
        for devices, lag in (([cpu], 1), ([first], 0), ([first, second], 1), ([first, cpu], 1), ([], 1)):
            assert type(line_of(devices, lag)) is InLine
        stream.assert_not_called()
        assert line_of([first, first], 1) is stream.return_value
        stream.assert_called_once_with(first)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_plan_says_where_solves_run(lag):
    class Elsewhere(InLine):
        told = ", and made elsewhere"

    with mock.patch("lightning_so.core.assembly.line_of", lambda devices, lag: Elsewhere() if lag else InLine()):
        model = Net()
        engine = attach(model, torch.optim.AdamW(model.parameters()), SOAP(), lag=lag)
    assert engine.plan.layout.endswith("used a step later, and made elsewhere" if lag else "")
    assert ("made elsewhere" in str(engine.plan)) == bool(lag)
