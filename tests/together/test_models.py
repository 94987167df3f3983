"""Models as people build them: checkpointed, shared, tied, strided, compiled, made late, grown while training."""

import io

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import BaseFinetuning, EarlyStopping
from torch import nn

from lightning_so import SOAP, Muon, SecondOrder, attach
from tests.callbacks.test_second_order import METHOD, fit
from tests.support.noted import checkpoint
from tests.support.problems import Net, train
from tests.together.test_situations import Plain, adamw, by_hand, loss_of, net, same


# ------------------------------------------------------------------ how the forward pass runs
class Checkpointed(Net):
    """Net whose middle is computed again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        inner = torch.tanh(self.conv(x)).flatten(1)
        return self.wide(
            checkpoint(lambda y: torch.tanh(self.tall(y) * self.scale), inner, use_reentrant=self.reentrant)
        )


@pytest.mark.thread("pytorch/pytorch#81296")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    model, ours, plain = Plain(), SecondOrder(METHOD), Plain()
    torch.manual_seed(0)
    model.net = Checkpointed(reentrant)
    fit(model, [ours])
    fit(plain, [SecondOrder(METHOD)])
    same(model.net, plain.net)
    assert ours.engines[0].report.rotated == 3


def compiled(parameters):
    optimizer = adamw(parameters)
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    return optimizer


@pytest.mark.slow
@pytest.mark.thread("own")
def test_a_compiled_optimizer_step_is_ours():
    model, ours = Plain(compiled), SecondOrder(METHOD)
    fit(model, [ours])
    hand = net()
    optimizer = compiled(hand.parameters())
    attach(hand, optimizer, METHOD)
    for number in range(16):
        optimizer.zero_grad()
        loss_of(hand, number).backward()
        optimizer.step()
    same(model.net, hand)
    same(model.net, by_hand(16, lambda hand, number: loss_of(hand, number).backward()), atol=1e-5)
    report = ours.engines[0].report
    assert (report.step, report.undone, report.rotated) == (16, 0, 3)


# ------------------------------------------------------------------ odd weights
class Odd(nn.Module):
    """One layer used twice, a head tied to the embedding, and a weight with transposed strides."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.twice = nn.Linear(6, 6)
        self.strided = nn.Linear(6, 6)
        self.strided.weight = nn.Parameter(torch.randn(6, 6).t())
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = torch.tanh(self.twice(self.embed(tokens)))
        return self.head(torch.tanh(self.strided(torch.tanh(self.twice(x)))))


def odd():
    torch.manual_seed(0)
    return Odd()


def odd_loss(model, number):
    tokens = torch.randint(0, 12, (8, 5), generator=torch.Generator().manual_seed(number))
    return nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.thread("own")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("method", "names"), [(METHOD, ["embed", "twice", "strided"]), (Muon(), ["twice", "strided"])])
def test_shared_tied_and_strided_weights(method, names, fused):
    model, ours = Plain(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=fused), odd_loss), None
    model.net, ours = odd(), SecondOrder(method, verify_every=1)
    fit(model, [ours])
    hand = odd()
    optimizer = torch.optim.AdamW(hand.parameters(), lr=1e-2, fused=fused)
    attach(hand, optimizer, method)
    for number in range(16):
        optimizer.zero_grad()
        odd_loss(hand, number).backward()
        optimizer.step()
    same(model.net, hand)
    assert [block.name for block in ours.engines[0].plan.blocks] == [f"net.{name}.weight" for name in names]
    assert not model.net.strided.weight.is_contiguous()


# ------------------------------------------------------------------ models that are made late or grow
@pytest.mark.thread("own")
def test_configure_model_makes_the_parameters_late():
    class Late(Plain):
        def __init__(self):
            super().__init__()
            del self.net

        def configure_model(self):
            self.net = net()

    model, ours = Late(), SecondOrder(METHOD)
    fit(model, [ours])
    same(model.net, by_hand(16, lambda hand, number: loss_of(hand, number).backward()))
    assert ours.engines[0].report.rotated == 3


def grown_by_hand(method, at, steps):
    """The tall layer joins the optimizer later, as a group of its own."""
    hand = net()
    optimizer = adamw([p for name, p in hand.named_parameters() if "tall" not in name])
    engine = attach(hand, optimizer, method)
    for number in range(steps):
        if number == at:
            optimizer.add_param_group({"params": list(hand.tall.parameters()), "lr": 1e-3})
        hand.zero_grad()
        loss_of(hand, number).backward()
        optimizer.step()
    return hand, engine


@pytest.mark.thread("Lightning-AI/pytorch-lightning#6891")
@pytest.mark.parametrize("method", [SOAP(start=6, period=4), Muon()], ids=["soap", "muon"])
def test_parameters_added_later_are_taken_in(method):
    _, engine = grown_by_hand(method, 10, 11)
    assert [block.name for block in engine.plan.blocks] == ["conv.weight", "wide.weight", "tall.weight"]
    rotates = isinstance(method, SOAP)
    assert (engine.report.rotated, engine.report.bent) == ((2, 1) if rotates else (0, 3))  # the new one starts cold
    _, engine = grown_by_hand(method, 10, 30)
    assert engine.report.rotated == (3 if rotates else 0)
    assert engine.report.failures == engine.report.undone == 0
    assert engine.parts.units.schedule.origin == 10


class Unfreeze(BaseFinetuning):
    """Lightning's own way: frozen before training, added to the optimizer while training."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.tall)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.tall, optimizer, lr=1e-3)


class Thawing(Plain):
    def configure_optimizers(self):
        return adamw([p for p in self.parameters() if p.requires_grad])


@pytest.mark.thread("Lightning-AI/pytorch-lightning#21901")
@pytest.mark.parametrize("first", [True, False])
def test_finetuning_callbacks(first, capsys):
    model, ours, thaw = Thawing(), SecondOrder(METHOD), Unfreeze()
    fit(model, [ours, thaw] if first else [thaw, ours], length=12, max_epochs=3)
    engine = ours.engines[0]
    assert engine.report.rotated == 3
    assert engine.report.step == 36
    assert capsys.readouterr().out.count("tall.weight") == 1  # the plan is printed again with the new parameter


@pytest.mark.thread("Lightning-AI/pytorch-lightning#8502")
def test_resuming_a_grown_optimizer_is_exact():
    method = SOAP(start=6, period=4)
    straight, engine = grown_by_hand(method, 10, 20)
    files = io.BytesIO()
    torch.save([part.state_dict() for part in (straight, engine.optimizer, engine)], files)
    files.seek(0)
    again = net()
    optimizer = adamw([p for name, p in again.named_parameters() if "tall" not in name])
    other = attach(again, optimizer, method)  # before the group is added: the engine follows when it loads
    optimizer.add_param_group({"params": list(again.tall.parameters())})
    for part, state in zip((again, optimizer, other), torch.load(files, weights_only=True), strict=True):
        part.load_state_dict(state)
    for hand, base in ((straight, engine.optimizer), (again, optimizer)):
        for number in range(20, 36):
            hand.zero_grad()
            loss_of(hand, number).backward()
            base.step()
    same(again, straight)
    assert other.report.rotated == 3


# ------------------------------------------------------------------ ends of a training
class Failing(pytorch_lightning.Callback):
    """Raises in one hook at the tenth batch."""

    def __init__(self, hook, error):
        def fail(trainer, *_, **__):
            if trainer.global_step == 10:
                raise error("stop")

        setattr(self, hook, fail)


@pytest.mark.thread("own")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "hook",
    ["on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
     "on_before_optimizer_step", "on_train_batch_end"],
)  # fmt: skip
def test_an_exception_at_any_hook_leaves_the_model_as_without_us(hook, error):
    model, ours = Plain(), SecondOrder(METHOD)
    with pytest.raises((error, SystemExit)):
        fit(model, [ours, Failing(hook, error)])
    same(model.net, by_hand(10, lambda hand, number: loss_of(hand, number).backward()))
    assert not ours.engines[0].optimizer._optimizer_step_pre_hooks


@pytest.mark.thread("own")
def test_early_stopping_and_fitting_again():
    class Stopping(Plain):
        def training_step(self, data, index):
            loss = super().training_step(data, index)
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

    model, ours = Stopping(), SecondOrder(METHOD)
    stop = EarlyStopping("loss", stopping_threshold=100.0, check_on_train_epoch_end=True)
    trainer = fit(model, [ours, stop], max_epochs=4)
    assert trainer.current_epoch == 1
    same(model.net, by_hand(16, lambda hand, number: loss_of(hand, number).backward()))
    optimizer = trainer.optimizers[0]
    before = model.net.tall.weight.detach().clone()
    train(model.net, optimizer, range(2))  # the optimizer is the user's again: no hook of ours is left
    assert not torch.equal(model.net.tall.weight, before)
    assert ours.engines[0].report.step == 16
    fit(model, [ours])
    assert ours.engines[0].report.step == 16
    assert ours.engines[0].report.rotated == 3
