"""What users do between the backward pass and the step: it sees what it would see without us, and acts before us.

Each situation is one of a public thread, which its comment names.
"""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from lightning_so import EKFAC, KFAC, SecondOrder, Shampoo, attach
from tests.callbacks.test_second_order import METHOD, fit
from tests.support.daily import daily
from tests.together.test_situations import Plain, adamw, loss_of, net, same


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


METHODS = {
    "soap": (METHOD, adamw),
    "shampoo": (Shampoo(period=4), sgd),
    "kfac": (KFAC(fisher="empirical", clip=None, period=4), sgd),
}
PLACES = ("on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping")


class Between(Plain):
    """Calls a function with the network at one of Lightning's hooks."""

    def __init__(self, make, place, between, loss=None):
        super().__init__(make, loss)
        setattr(self, place, lambda *_, **__: between(self.net))


def by_hand(method, make, between, loss=loss_of):
    hand = net()
    optimizer = make(hand.parameters())
    engine = attach(hand, optimizer, method)
    for number in range(16):
        optimizer.zero_grad()
        loss(hand, number).backward()
        between(hand)
        optimizer.step()
    return hand, engine


@torch.no_grad()
def adaptive(model):
    """Gradients are at most a tenth as long as their weights: Brock et al. 2021, arXiv 2102.06171."""
    for param in model.parameters():
        length = param.norm().clamp_min(1e-3)
        param.grad.mul_((0.1 * length / param.grad.norm()).clamp_max(1))


# gtegner/mine-pytorch#8: adaptive clipping; Lightning-AI/pytorch-lightning#9584: the hook for it, after the other.
@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("how", METHODS)
def test_clipping_of_ones_own_sees_weights_and_gradients_as_they_are(how, place):
    method, make = METHODS[how]
    model, ours = Between(make, place, adaptive), SecondOrder(method)
    fit(model, [ours])
    hand, _ = by_hand(method, make, adaptive)
    same(model.net, hand)
    assert ours.engines[0].report.undone == 0
    with pytest.raises(AssertionError):
        same(model.net, by_hand(method, make, lambda _: None)[0])


# Lightning-AI/pytorch-lightning#18669: norms of gradients are logged in this hook.
@pytest.mark.parametrize("how", METHODS)
def test_norms_of_weights_and_gradients_are_those_of_the_plain_loop(how):
    method, make = METHODS[how]
    found = []

    def norms(model):
        found.append([float(t.norm()) for p in model.parameters() for t in (p.detach(), p.grad)])

    by_hand(method, make, norms)
    expected, found = found, []
    # A callback's hook comes before the module's, whichever was first in the list.
    fit(Between(make, PLACES[1], norms), [SecondOrder(method)], gradient_clip_val=None)
    assert found == expected


def seen_by(optimizer, weight, registered):
    """What hooks of somebody else on the optimizer's step see of a weight's norm, before the step and after it."""
    norms = []

    def look(*_):
        norms.append(float(weight.detach().norm()))

    def before(_, args, kwargs):
        if (closure := kwargs.get("closure")) is None:
            return look()
        return args[:1], {**kwargs, "closure": lambda: (closure(), look())[0]}

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(look)
    registered.append(norms)


class Others(pl.Callback):
    """Hooks of somebody else, registered at one of ours."""

    def __init__(self, when, registered):
        setattr(self, when, lambda trainer, module: seen_by(*trainer.optimizers, module.net.wide.weight, registered))


def test_other_hooks_of_the_optimizer_see_no_hidden_weight():
    registered, ours = [], SecondOrder(METHOD)
    early, late = (Others(when, registered) for when in ("on_fit_start", "on_train_start"))
    fit(Plain(), [early, ours, late])
    hand = net()
    optimizer = adamw(hand.parameters())
    seen_by(optimizer, hand.wide.weight, registered)
    attach(hand, optimizer, METHOD)
    seen_by(optimizer, hand.wide.weight, registered)
    for number in range(16):
        optimizer.zero_grad()
        loss_of(hand, number).backward()
        optimizer.step()
    expected, *others = registered
    assert len(expected) == 2 * 16
    assert min(expected) > 1
    assert others == [expected] * 3
    assert ours.engines[0].report.rotated == 3


def broken_loss(model, number):
    """At one step it is not a number."""
    return loss_of(model, number) * (float("nan") if number == 9 else 1.0)


def mended(model):
    for param in model.parameters():
        param.grad.nan_to_num_()


def dropped(model):
    if any(not bool(param.grad.isfinite().all()) for param in model.parameters()):
        model.zero_grad()


# ray-project/ray#47452: NaN gradients become zeros; Lightning-AI/pytorch-lightning#4956: they are taken away.
@pytest.mark.parametrize("place", daily(PLACES, "on_before_optimizer_step"))
@pytest.mark.parametrize("mend", [mended, dropped])
@pytest.mark.parametrize(
    "method",
    [METHOD, KFAC(fisher="empirical", clip=None, period=1), EKFAC(fisher="empirical", clip=None, period=1)],
    ids=["soap", "kfac", "ekfac"],
)
def test_gradients_that_were_mended_make_a_step(method, mend, place):
    make = adamw if method is METHOD else sgd
    model, ours = Between(make, place, mend, broken_loss), SecondOrder(method)
    fit(model, [ours])
    same(model.net, by_hand(method, make, mend, broken_loss)[0])
    report = ours.engines[0].report
    assert (report.step, report.skipped, report.failures) == (16, 0, 0)
    for stack in ours.engines[0].stacks:
        for _, tensor in stack.method.tensors(stack.stats):
            assert bool(tensor.isfinite().all())


# Lightning-AI/pytorch-lightning#21339: the scaler leaves a step out, and nobody is told.
def test_a_step_that_the_scaler_leaves_out_is_counted_and_its_rows_are_forgotten():
    method = KFAC(fisher="empirical", clip=None, period=1)

    def loss(model, number):
        return loss_of(model, number) * (float("inf") if number == 9 else 1.0)

    class Keeps(Plain):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=False)  # else rows of before are forgotten where gradients are

    model, ours = Keeps(sgd, loss), SecondOrder(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    fit(model, [ours], plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    report = ours.engines[0].report
    assert (report.step, report.skipped, report.failures) == (15, 1, 0)

    hand, scaler = net(), torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = sgd(hand.parameters())
    engine = attach(hand, optimizer, method)
    for number in range(16):
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cpu", torch.half):
            value = loss(hand, number)
        engine.loss_is(divided=None, scale=scaler.get_scale(), shown=False)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        if number == 9:
            engine.arm()
    same(model.net, hand)
