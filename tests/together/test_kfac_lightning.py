"""K-FAC in a Trainer equals the hand loop: accumulation, clipping of raw gradients, a scaler."""

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from lightning_so import EKFAC, KFAC, ConfigError, SecondOrder, TrustError, attach
from tests.callbacks.test_second_order import fit
from tests.support import noted
from tests.support.daily import daily
from tests.support.problems import batch
from tests.together.test_situations import Plain, loss_of, net, same

METHOD = KFAC(fisher="empirical", period=4, damping=0.01)
METHODS = [METHOD, EKFAC(fisher="empirical", period=4, start=5, damping=0.01)]
BASES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]


def by_hand(method, base, accumulate=1, clip=None):
    hand = net()
    optimizer = base(hand.parameters())
    engine = attach(hand, optimizer, method)
    for number in range(0, 16, accumulate):
        optimizer.zero_grad()
        for i in range(accumulate):
            loss = loss_of(hand, number + i) / accumulate
            engine.before_backward(loss)
            loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(hand.parameters(), clip)
        optimizer.step()
    return hand, engine


@pytest.mark.parametrize("method", METHODS, ids=["kfac", "ekfac"])
@pytest.mark.parametrize("accumulate", daily([1, 4], 4))
@pytest.mark.parametrize("clip", daily([None, 0.05], 0.05))
def test_a_trainer_equals_the_hand_loop(method, base, accumulate, clip):
    model, ours = Plain(base), SecondOrder(method)
    fit(model, [ours], accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    hand, engine = by_hand(method, base, accumulate, clip)
    report = ours.engines[0].report
    same(model.net, hand)
    assert (report.preconditioned, report.bent) == (engine.report.preconditioned, engine.report.bent)
    assert report.preconditioned + report.bent + report.rotated == 3
    if clip:
        with pytest.raises(AssertionError):
            same(model.net, by_hand(method, base, accumulate)[0])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_the_scale_of_a_scaler_does_not_matter(cls, fused):
    ends = []
    for scale in (64.0, 1024.0):
        model = Plain(lambda parameters: cls(parameters, lr=1e-2, fused=fused))
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
        ours = SecondOrder(METHOD)
        fit(model, [ours], plugins=[plugin])
        ends.append(model.net)
        assert ours.engines[0].report.failures == ours.engines[0].report.skipped == 0
    same(*ends, atol=1e-3)  # what float16 rounds; with the scale in the factors it is a hundred times more


def trained(loss, method=METHOD, cls=torch.optim.SGD, lr=0.1, **arguments):
    model, ours = Plain(lambda parameters: cls(parameters, lr=lr), loss), SecondOrder(method)
    fit(model, [ours], **arguments)
    return model.net, ours.engines[0]


def summed(net, number):
    x, y = batch(number)
    return torch.nn.functional.cross_entropy(net(x), y, reduction="sum")


SIZE = len(batch(0)[0])


@pytest.mark.parametrize("fisher", ["empirical", "sampled", "exact"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_summed_loss_trains_as_its_mean_with_the_default_damping(accumulate, fisher):
    method = KFAC(period=4, fisher=fisher)
    mean, _ = trained(loss_of, method, accumulate_grad_batches=accumulate)
    other, engine = trained(summed, method, lr=0.1 / SIZE, accumulate_grad_batches=accumulate)
    assert engine.report.preconditioned == 3
    same(other, mean, atol=1e-6)


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_gradients_taken_inside_the_training_step_are_no_statistics(fisher):
    def penalised(net, number):
        torch.autograd.grad(loss_of(net, number + 1), list(net.parameters()))
        return loss_of(net, number)

    method = KFAC(period=4, fisher=fisher)
    same(trained(penalised, method)[0], trained(loss_of, method)[0])


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_a_scaler_does_not_change_the_model_s_own_fisher(fisher):
    ends = []
    for scale in (64.0, 1024.0):
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
        model, engine = trained(loss_of, KFAC(period=4, fisher=fisher), lr=1e-2, plugins=[plugin])
        assert engine.report.failures == engine.report.skipped == 0
        ends.append(model)
    same(*ends, atol=1e-3)


def test_a_backward_pass_past_the_trainer_is_refused_where_the_loss_must_be_seen():
    class Manual(Plain):
        automatic_optimization = False

        def training_step(self, data, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.loss(self.net, index).backward()
            optimizer.step()

    with pytest.raises(TrustError, match=r"self\.manual_backward") as said:
        fit(Manual(BASES["sgd"]), [SecondOrder(KFAC(fisher="sampled"))])
    noted.refused(said, method="KFAC", option="fisher='sampled' and loss.backward() instead of manual_backward")


def test_a_loss_that_does_not_tell_is_refused_by_name_and_said_beside_the_method():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, losses):
            ctx.count = len(losses)
            return losses.mean()

        @staticmethod
        def backward(ctx, g):
            return (g / ctx.count).expand(ctx.count)

    def own(net, number):
        x, y = batch(number)
        return Own.apply(torch.nn.functional.cross_entropy(net(x), y, reduction="none"))

    with pytest.raises(ConfigError, match=r"OwnBackward.*reduction='mean'") as said:
        trained(own)
    noted.refused(said, method="KFAC", option="a loss whose graph does not tell, without reduction=")
    model, ours = (
        Plain(lambda parameters: torch.optim.SGD(parameters, lr=0.1), own),
        SecondOrder(METHOD, reduction="mean"),
    )
    fit(model, [ours])
    same(model.net, trained(loss_of)[0], atol=1e-6)
    with pytest.raises(ConfigError, match=r"SecondOrder\(reduction='avg'\)"):
        SecondOrder(METHOD, reduction="avg")


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_the_loss_of_another_optimizer_is_none_of_ours(fisher):
    method = KFAC(period=4, fisher=fisher)

    class Two(Plain):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.other = net()

        def training_step(self, data, index):
            losses = [loss_of(self.net, index), summed(self.other, index)]
            for loss, optimizer in zip(losses, self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.other)]

    model, ours = Two(), SecondOrder(method)
    fit(model, [ours])
    same(model.net, trained(loss_of, method)[0], atol=1e-6)
    assert [engine.recorders[0].facts.mean for engine in ours.engines] == [True, False]
