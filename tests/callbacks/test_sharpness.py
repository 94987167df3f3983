"""The rate is capped by the curvature that is measured, and where it is not capped nothing has changed."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_so import ConfigError, Muon, SecondOrder, SharpnessGuard
from tests.support import trainings
from tests.support.daily import daily
from tests.support.fits import fit
from tests.support.peers import needs_deepspeed

CURVATURES = torch.tensor([100.0, 10.0, 1.0, 0.1], dtype=torch.float64)


class Quadratic(pl.LightningModule):
    """`w' H w / 2`, H dense with known eigenvalues."""

    def __init__(self, base, **arguments):
        super().__init__()
        Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        self.H, self.base, self.arguments = Q @ torch.diag(CURVATURES) @ Q.mT, base, arguments
        self.w = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.rates, self.losses = [], []

    def training_step(self, batch, batch_idx):
        loss = self.w @ self.H @ self.w / 2
        self.losses.append(loss.item())
        return loss

    def on_before_zero_grad(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        return self.base([self.w], **self.arguments)


@pytest.mark.parametrize("momentum", daily([0.0, 0.9], 0.9))
def test_descent_at_a_rate_that_diverges_is_brought_below_the_limit(momentum):
    arguments = {"lr": 0.3, "momentum": momentum}
    alone, guard = Quadratic(torch.optim.SGD, **arguments), SharpnessGuard(every=1, safety=0.9, verbose=False)
    fit(alone, steps=100)
    assert not alone.losses[-1] < 1e6
    guarded = Quadratic(torch.optim.SGD, **arguments)
    caps = []

    class Caps(pl.Callback):
        def on_train_batch_end(self, *_):
            caps.append(guard.cap)

    fit(guarded, guard, Caps(), steps=100)
    assert caps[-1] == pytest.approx(0.9 * 2 * (1 + momentum) / 100, rel=1e-6)
    assert guarded.losses[-1] < guarded.losses[0]
    # Others see what was asked for.
    assert set(guarded.rates) == {0.3}
    assert guard.capped == 99


def test_of_adam_it_is_the_preconditioned_hessian_that_counts():
    module, guard = Quadratic(torch.optim.AdamW, lr=1e-4, weight_decay=0.0), SharpnessGuard(every=1, verbose=False)
    found = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            state = trainer.optimizers[0].state[module.w]
            P = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8
            top = torch.linalg.eigvalsh(module.H / (P[:, None] * P).sqrt())[-1]
            found.append((guard.cap, 38 / float(top)))

    fit(module, guard, Look(), steps=30)
    cap, expected = found[-1]
    assert cap == pytest.approx(expected, rel=1e-3)
    assert guard.capped == 0


def test_a_rate_below_the_cap_is_untouched():
    ends = []
    for callbacks in ([], [SharpnessGuard(every=3, verbose=False)]):
        module = Quadratic(torch.optim.SGD, lr=0.01, momentum=0.5)
        fit(module, *callbacks, steps=20)
        ends.append(module.w.detach().clone())
    assert torch.equal(*ends)


def test_a_constant_curvature_is_the_first():
    caps = []
    for curvature in ("measured", "constant"):
        module, guard = Quadratic(torch.optim.SGD, lr=0.01), SharpnessGuard(every=1, curvature=curvature, verbose=False)
        seen = caps.append([]) or caps[-1]

        class Look(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, guard=guard, seen=seen):
                seen.append(guard.cap)
                pl_module.H = 1.1 * pl_module.H

        fit(module, guard, Look(), steps=6)
    assert len(set(caps[0])) == 6
    assert len(set(caps[1])) == 1


def test_a_look_that_is_not_finite_leaves_the_cap():
    module, guard = Quadratic(torch.optim.SGD, lr=0.01), SharpnessGuard(every=1, verbose=False)
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(guard.cap)
            if batch_idx == 4:
                module.H = module.H * math.nan

    fit(module, guard, Look(), steps=8)
    assert seen[-1] == seen[4] < math.inf


def test_an_exception_leaves_the_rate_as_it_was():
    class Fails(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 5:
                assert optimizer.param_groups[0]["lr"] < 0.3
                self.optimizer = optimizer
                raise ZeroDivisionError

    guard, fails = SharpnessGuard(every=1, verbose=False), Fails()
    with pytest.raises(ZeroDivisionError):
        fit(Quadratic(torch.optim.SGD, lr=0.3), guard, fails)
    assert fails.optimizer.param_groups[0]["lr"] == 0.3
    assert not fails.optimizer._optimizer_step_post_hooks


def capped(strategy, grouped=False):
    guard = SharpnessGuard(every=2, safety=0.02, verbose=False)
    caps = []

    class Caps(pl.Callback):
        def on_train_batch_end(self, *_):
            caps.append(guard.cap)

    base = torch.optim.AdamW, {"lr": 0.5}
    found = trainings.train(strategy, None, base, 8, grouped=grouped, callbacks=[guard, Caps()])
    return caps[-1], guard.capped, found.weights


SLOW = [pytest.param("fsdp2", marks=pytest.mark.slow), pytest.param("zero2", marks=[pytest.mark.slow, needs_deepspeed])]


@pytest.mark.parametrize("strategy", ["ddp", *SLOW])
def test_ranks_have_the_cap_of_one_process(two, strategy):
    grouped = strategy == "zero2"  # It steps one group after the other.
    cap, count, alone = capped("one", grouped)
    found = two.run(capped, strategy, grouped)
    for other, also, weights in found:
        assert other == pytest.approx(cap, rel=2e-2)
        assert also == count > 0
        for name, value in weights.items():
            assert torch.equal(value, found[0][2][name])
            # A group whose rate is not capped ends elsewhere by 1 or 2.
            torch.testing.assert_close(value, alone[name], rtol=0, atol=0.05)
    assert found[0][0] == found[1][0]


def test_what_cannot_be_guarded_is_refused():
    with pytest.raises(ConfigError, match="SharpnessGuard beside SecondOrder"):
        fit(Quadratic(torch.optim.AdamW), SharpnessGuard(), SecondOrder(Muon()))
    with pytest.raises(ConfigError, match=r"one Adam, AdamW or SGD, and configure_optimizers gave Adagrad"):
        fit(Quadratic(torch.optim.Adagrad), SharpnessGuard())
    with pytest.raises(ConfigError, match=r"SharpnessGuard\(safety=0\)"):
        SharpnessGuard(safety=0)
