"""Every way people use Lightning, against a loop written by hand or a run without us."""

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_so import SOAP, ConfigError, Muon, SecondOrder, attach
from tests.callbacks.test_second_order import METHOD, Batches, fit, module
from tests.support import noted
from tests.support.problems import Net, batch


def loss_of(net, number):
    x, y = batch(number)
    return nn.functional.cross_entropy(net(x), y)


def net():
    torch.manual_seed(0)
    return Net()


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def by_hand(steps, backward, method=METHOD, before=None):
    """Net trained by a plain loop: `backward(net, step)` leaves gradients."""
    hand = net()
    optimizer = adamw(hand.parameters())
    attach(hand, optimizer, method)
    for number in range(steps):
        optimizer.zero_grad()
        if before:
            before(hand, number)
        backward(hand, number)
        optimizer.step()
    return hand


def same(model, hand, atol=0.0):
    torch.testing.assert_close(model.state_dict(), hand.state_dict(), rtol=0, atol=atol)


class Plain(pytorch_lightning.LightningModule):
    """Net with AdamW and hooks for a test to change things."""

    def __init__(self, optimizer=None, loss=None):
        super().__init__()
        self.net = net()
        self.make = optimizer or adamw
        self.loss = loss or loss_of

    def training_step(self, data, index):
        return self.loss(self.net, index)

    def configure_optimizers(self):
        return self.make(self.parameters())


# ------------------------------------------------------------------ fp16 and its scaler
@pytest.mark.thread("Lightning-AI/pytorch-lightning#15501")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow", [None, 9])
def test_16_mixed_equals_the_hand_loop_and_skips_overflows(fused, overflow):
    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2, fused=fused)

    def loss(net, number):
        return loss_of(net, number) * (float("inf") if number == overflow else 1.0)

    model, ours = Plain(make, loss), SecondOrder(METHOD)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    trainer = fit(model, [ours], plugins=[plugin])
    hand, scaler = net(), torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = make(hand.parameters())
    attach(hand, optimizer, METHOD)
    for number in range(16):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.half):
            value = loss(hand, number)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    same(model.net, hand)
    report = ours.engines[0].report
    assert trainer.global_step == 16  # it moves on skipped steps: ours does not
    assert (report.step, report.skipped) == ((16, 0) if overflow is None else (15, 1))
    assert report.rotated == 3


@pytest.mark.thread("own")
def test_attach_refuses_scaled_gradients():
    model = net()
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), torch.amp.GradScaler("cpu")
    attach(model, optimizer, METHOD)
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(ConfigError, match=r"scaler\.unscale_\(optimizer\)") as said:
        scaler.step(optimizer)
    noted.refused(said, precision="16-mixed", option="a plain loop without scaler.unscale_")


# ------------------------------------------------------------------ several optimizers
class GAN(pytorch_lightning.LightningModule):
    """Two networks in manual optimization; the discriminator's gradients are left over in the generator's turn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))

    def losses(self, index):
        generator = torch.Generator().manual_seed(index)
        z, real = torch.randn(8, 6, generator=generator), torch.randn(8, 5, generator=generator)
        fake = self.generator(z)
        softplus = nn.functional.softplus
        yield softplus(self.critic(fake.detach())).mean() + softplus(-self.critic(real)).mean()
        yield softplus(-self.critic(fake)).mean()

    def training_step(self, data, index):
        critic, generator = self.optimizers()
        for optimizer, loss in zip((critic, generator), self.losses(index), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.critic.parameters(), lr=1e-2),
            torch.optim.AdamW(self.generator.parameters(), lr=3e-3),
        ]


@pytest.mark.thread("Lightning-AI/pytorch-lightning#17958")
def test_a_gan_in_manual_optimization_equals_the_hand_loop():
    model, ours = GAN(), SecondOrder(METHOD)
    fit(model, [ours])
    hand = GAN()
    optimizers = hand.configure_optimizers()
    for optimizer in optimizers:
        attach(hand, optimizer, METHOD)
    for index in range(16):
        for optimizer, loss in zip(optimizers, hand.losses(index), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    same(model, hand)
    assert [engine.report.step for engine in ours.engines] == [16, 16]
    assert [engine.report.rotated for engine in ours.engines] == [1, 1]  # the critic's last layer is a single row


# ------------------------------------------------------------------ clipping, missing gradients, frozen modules
@pytest.mark.thread("own")
def test_clipping_by_value_acts_on_the_gradient_before_us():
    model = Plain()
    fit(model, [SecondOrder(METHOD)], gradient_clip_val=0.01, gradient_clip_algorithm="value")

    def clipped(hand, number):
        loss_of(hand, number).backward()
        nn.utils.clip_grad_value_(hand.parameters(), 0.01)

    same(model.net, by_hand(16, clipped))


@pytest.mark.thread("Lightning-AI/pytorch-lightning#4653")
def test_a_short_last_accumulation_group_is_a_step():
    model, ours = Plain(), SecondOrder(METHOD)
    fit(model, [ours], length=11, accumulate_grad_batches=2)

    def backward(hand, number):
        for part in range(2 * number, min(2 * number + 2, 11)):
            (loss_of(hand, part) / 2).backward()

    same(model.net, by_hand(6, backward))
    assert ours.engines[0].report.step == 6


@pytest.mark.thread("Lightning-AI/pytorch-lightning#3491")
def test_a_training_step_without_loss_is_no_step_of_ours_and_harms_nothing():
    model, ours = Plain(loss=lambda net, n: None if n == 7 else loss_of(net, n)), SecondOrder(METHOD)
    fit(model, [ours])
    same(model.net, by_hand(16, lambda hand, number: None if number == 7 else loss_of(hand, number).backward()))
    assert ours.engines[0].report.failures == 0


@pytest.mark.thread("Lightning-AI/pytorch-lightning#21901")
@pytest.mark.parametrize("method", [METHOD, Muon()], ids=["soap", "muon"])
def test_modules_frozen_and_unfrozen_while_training(method):
    def switch(network, number):
        network.tall.requires_grad_(not 5 <= number < 11)

    class Freezing(Plain):
        def on_train_batch_start(self, data, index):
            switch(self.net, index)

    model, ours = Freezing(), SecondOrder(method)
    fit(model, [ours])
    hand = by_hand(16, lambda hand, number: loss_of(hand, number).backward(), method=method, before=switch)
    same(model.net, hand)
    assert ours.engines[0].report.failures == 0


@pytest.mark.thread("facebookresearch/optimizers#271")
def test_an_unused_module_stays_as_it_is():
    model, ours = Plain(), SecondOrder(METHOD)
    model.unused = nn.Linear(4, 4)
    before = model.unused.weight.detach().clone()
    fit(model, [ours])
    assert torch.equal(model.unused.weight, before)
    assert ours.engines[0].report.failures == 0
    assert ours.engines[0].report.rotated == 3


# ------------------------------------------------------------------ beside other callbacks and loops
@pytest.mark.thread("Lightning-AI/pytorch-lightning#8106")
@pytest.mark.parametrize("first", [True, False])
def test_weight_averaging_beside_us(first):
    alone = Plain()
    fit(alone, [SecondOrder(METHOD)])
    model, ours = Plain(), SecondOrder(METHOD)
    average = pytorch_lightning.callbacks.EMAWeightAveraging(decay=0.9)
    fit(model, [average, ours] if first else [ours, average])
    # The average is swapped in at the end: close to the trajectory, equal to neither zero nor its end.
    distance = (model.net.tall.weight - alone.net.tall.weight).norm() / alone.net.tall.weight.norm()
    assert 0 < float(distance) < 0.2
    assert ours.engines[0].report.rotated == 3


@pytest.mark.thread("own")
def test_validation_in_between_and_the_plan_change_nothing():
    class Validated(Plain):
        def validation_step(self, data, index):
            assert self.net.wide.weight.any()
            self.log("loss", loss_of(self.net, index))

    plain, model = Plain(), Validated()
    fit(plain, [SecondOrder(METHOD)])
    stop = pytorch_lightning.callbacks.EarlyStopping("loss", patience=100)
    ours = SecondOrder(METHOD, print_plan=False)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, val_check_interval=4, callbacks=[ours, stop],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loaders = DataLoader(Batches(16), batch_size=None), DataLoader(Batches(2), batch_size=None)
    trainer.fit(model, *loaders)
    trainer.validate(model, loaders[1])
    same(model.net, plain.net)


@pytest.mark.thread("Lightning-AI/pytorch-lightning#12591")
def test_bf16_true_trains():
    model, ours = module(), SecondOrder(SOAP(start=4, period=4))

    class Cast(type(model)):
        def training_step(self, data, index):
            return super().training_step((data[0].bfloat16(), data[1]), index)

    model.__class__ = Cast
    fit(model, [ours], precision="bf16-true")
    assert model.net.wide.weight.dtype is torch.bfloat16
    assert ours.engines[0].report.rotated == 3
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.thread("Lightning-AI/pytorch-lightning#20233")
def test_a_compiled_submodule_keeps_its_names():
    model, ours = Plain(), SecondOrder(METHOD)
    model.net.compile(backend="eager")
    model.net = torch.compile(model.net, backend="eager")
    fit(model, [ours])
    plain = Plain()
    fit(plain, [SecondOrder(METHOD)])
    assert [block.name for block in ours.engines[0].plan.blocks] == [
        f"net.{n}.weight" for n in ("conv", "tall", "wide")
    ]
    same(model.net._orig_mod, plain.net)
