"""Exchanges that travel behind the training: solves that land a step later, statistics beside DDP's gradients."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_so import EKFAC, KFAC, SOAP, ConfigError, SecondOrder, Shampoo, attach
from tests.support import ranks
from tests.support.trainings import Save, train

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})
#: Of every kind: gradients observed and bases, rows and inverses, rows and bases, roots.
METHODS = {
    "soap": (SOAP(start=10, period=4), ADAMW),
    "kfac": (KFAC(fisher="empirical", period=4), SGD),
    "ekfac": (EKFAC(fisher="empirical", start=10, period=4), ADAMW),
    "shampoo": (Shampoo(period=4), SGD),
}


def solved(method, base, lag):
    """Steps after which one process has swapped something in, and the weights of the end."""
    return ranks.train(method, *base, 24, shard=False, dtype=torch.float64, lag=lag)


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_wait_for_solves_as_long_as_one_process(two, name):
    method, base = METHODS[name]
    one, at_once = solved(method, base, 1), solved(method, base, 0)
    for weights, report, *_ in two.run(ranks.train, method, *base, 24, dtype=torch.float64, lag=1):
        assert report.failures == 0
        # The results of the last step are still on their way.
        assert at_once[1].solves - report.solves == at_once[1].solves - one[1].solves > 0
        for key, value in weights.items():
            torch.testing.assert_close(value, one[0][key], rtol=0, atol=1e-10)
    assert any(not torch.equal(one[0][key], at_once[0][key]) for key in one[0])


@pytest.mark.parametrize("stop", [13, 16])
@pytest.mark.parametrize("name", ["soap", "kfac"])
def test_resumes_bit_for_bit_with_a_solve_in_flight(two, name, stop):
    method, base = METHODS[name]
    for never, again in two.run(ranks.resumed, method, *base, 24, stop, lag=1):
        for key, value in never.items():
            assert torch.equal(value, again[key]), key


class Gone(pl.Callback):
    """How many windows have left, and how many solves are in the air, at the end of every backward pass."""

    def __init__(self):
        self.early, self.flying = [], []

    def on_after_backward(self, trainer, pl_module):
        engine = next(c for c in trainer.callbacks if isinstance(c, SecondOrder)).engines[0]
        self.early.append(len(engine.parts.windows.underway))
        self.flying.append(sum(flight.batches is None for flight in engine.parts.flights))


def train_and_tell(*args, **named):
    """Train with a `Gone`; the training, and what it saw."""
    gone = Gone()
    return train(*args, callbacks=[gone], **named), gone.early, gone.flying


@pytest.mark.parametrize("name", ["kfac", pytest.param("ekfac", marks=pytest.mark.slow)])
def test_statistics_leave_during_the_last_backward_pass_of_a_step(two, name):
    method, base = METHODS[name]
    wanted = {"steps": 20, "accumulate": 2, "dtype": torch.float64, "precision": "64-true", "lag": 1}
    one = train("one", method, base, **wanted)
    for found, early, flying in two.run(train_and_tell, "ddp_so", method, base, **wanted):
        assert found.report.failures == 0
        # Of two micro-batches, the first reduces nothing.
        assert not any(early[::2])
        assert all(early[1::2])
        assert any(flying)
        for key, value in found.weights.items():
            torch.testing.assert_close(value, one.weights[key], rtol=0, atol=1e-10)
    # Under Lightning's own strategy everything leaves at the step.
    assert not any(any(early) for _, early, _ in two.run(train_and_tell, "ddp", method, base, **{**wanted, "steps": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_so", "fsdp2"])
def test_a_checkpoint_holds_what_is_in_flight(two, strategy, tmp_path):
    method, base = METHODS["kfac"]
    for at in (13, 14):
        path = str(tmp_path / f"{at}.ckpt")
        never = two.run(train, strategy, method, base, 20, lag=1, callbacks=[Save(path, at)])
        again = two.run(train, strategy, method, base, 20, lag=1, resume=path)
        for (a, *_), (b, *_) in zip(never, again, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_plan_says_that_solves_are_used_later():
    model = torch.nn.Linear(4, 3)
    for lag, told in ((0, ""), (1, "solves are used a step later")):
        engine = attach(model, torch.optim.AdamW(model.parameters()), SOAP(), lag=lag)
        assert engine.plan.layout == told
        engine.detach()


def test_refuses_other_lags():
    with pytest.raises(ConfigError, match=r"SecondOrder\(lag=2\): lag must be one of \[0, 1\]"):
        SecondOrder(SOAP(), lag=2)
