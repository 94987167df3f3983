"""Optimizers and tensors that are replaced in mid-training: the engines go with them, or say why they cannot."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_so import (
    KFAC,
    ConfigError,
    CurvatureMonitor,
    FewDirections,
    MatrixFree,
    SecondOrder,
    TrustError,
    attach,
)
from tests.callbacks.test_second_order import METHOD, fit
from tests.support import noted
from tests.support.problems import Net, batch, train
from tests.together.test_states import Once, WithRate, same

STAYS = KFAC(period=4)


def adamw(parameters, lr=5e-3):
    return torch.optim.AdamW(parameters, lr=lr)


def switch(make=adamw):
    """As PINA-org/PINA#608 does it."""

    def action(trainer, module):
        trainer.strategy.optimizers = [make(module.parameters())]

    return action


# ------------------------------------------------------------------ the optimizer
@pytest.mark.parametrize("method", [METHOD, STAYS], ids=["soap", "kfac"])
def test_an_optimizer_that_is_put_in_place_of_ours_gets_our_method(method, tmp_path, capsys):
    model, ours, old = WithRate(), SecondOrder(method), []
    watch = Once(lambda trainer, _: old.append(trainer.optimizers[0]), 7)
    trainer = fit(model, [ours, watch, Once(switch(torch.optim.RAdam), 8)], log_every_n_steps=1, length=20)
    engine = ours.engines[0]
    assert capsys.readouterr().out.count("of the elements, ") == 2  # the plan, again
    assert engine.optimizer is trainer.optimizers[0]
    assert (trainer.global_step, engine.report.step) == (20, 20)
    assert float(trainer.callback_metrics["so/rotated_blocks"]) == (3 if method is METHOD else 0)
    assert "__getstate__" not in old[0].__dict__
    assert not old[0]._optimizer_step_pre_hooks
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    file = torch.load(tmp_path / "end.ckpt", weights_only=False)["optimizer_states"][0]["state"]
    for number, state in trainer.optimizers[0].state_dict()["state"].items():
        assert torch.equal(state["exp_avg"], file[number]["exp_avg"])
        assert float(state["step"]) == 12


def test_another_optimizer_equals_a_training_that_began_with_it():
    # Nothing is known of another optimizer's parameters that this one could go on with.
    model, other = WithRate(), WithRate()
    seen = []

    def action(trainer, module):
        seen.append({name: value.clone() for name, value in module.state_dict().items()})
        switch(torch.optim.RAdam)(trainer, module)

    fit(model, [SecondOrder(METHOD, print_plan=False), Once(action, 8)], length=20)
    other.load_state_dict(seen[0])
    optimizer = torch.optim.RAdam(other.net.parameters(), lr=1e-3)
    engine = attach(other.net, optimizer, METHOD)
    # Slots of the schedule hang on the step.
    engine.report.step = 8
    engine.parts.units.schedule.restart(8)
    train(other.net, optimizer, range(8, 20))
    same(model, other)


def test_the_old_optimizer_is_left_with_plain_moments_and_curvature_stays_with_one_of_its_kind():
    model, ours = WithRate(), SecondOrder(METHOD, print_plan=False)
    found = []

    def action(trainer, module):
        found.append((trainer.optimizers[0], trainer.optimizers[0].state_dict()))
        new = adamw(module.parameters())
        new.load_state_dict(copy.deepcopy(found[0][1]))  # torch shares what it loads
        trainer.optimizers = [new]

    def look(trainer, module):
        found.append(ours.engines[0].report.rotated)

    # After the switch blocks wait as many steps as at the start, with the factors that there are.
    fit(model, [ours, Once(action, 10), Once(look, 12), Once(look, 18)], length=20)
    (old, plain), *rotated = found
    assert rotated == [0, 3]
    assert ours.engines[0].report.solves > 0
    for state, given in zip(old.state.values(), plain["state"].values(), strict=True):
        assert torch.equal(state["exp_avg"], given["exp_avg"])


def test_a_switch_right_before_a_save_is_in_the_file(tmp_path):
    def action(trainer, module):
        switch()(trainer, module)
        trainer.save_checkpoint(tmp_path / "now.ckpt")

    ours = SecondOrder(METHOD, print_plan=False)
    fit(WithRate(), [ours, Once(action, 10)])
    file = torch.load(tmp_path / "now.ckpt", weights_only=False)
    assert file["optimizer_states"][0]["state"] == {}
    assert file["callbacks"][ours.state_key]["engines"][0]["moments"] == {}
    assert ours.engines[0].report.step == 16


def test_a_switch_after_the_pass_is_followed_too():
    class Late(WithRate):
        def on_before_backward(self, loss):
            if self.global_step == 8:
                self.trainer.strategy.optimizers = [adamw(self.parameters())]

    model = Late()
    for method in (METHOD, STAYS):
        ours = SecondOrder(method, print_plan=False)
        fit(model, [ours])
        assert ours.engines[0].report.step in (15, 16)


def test_an_optimizer_that_no_method_knows_is_refused_where_it_comes():
    with pytest.raises(ConfigError, match="replaced in mid-training: optimizer LBFGS is not in the registry") as said:
        fit(WithRate(), [SecondOrder(METHOD, print_plan=False), Once(switch(torch.optim.LBFGS))])
    noted.refused(said, base="LBFGS", option="an optimizer that is replaced in mid-training")


def test_deepspeed_goes_on_with_its_own(monkeypatch):
    def action(trainer, module):
        monkeypatch.setattr("lightning_so.callbacks.following.strategies.is_deepspeed", lambda _: True)
        switch()(trainer, module)

    with pytest.raises(TrustError, match="DeepSpeed goes on stepping the one that it was given"):
        fit(WithRate(), [SecondOrder(METHOD, print_plan=False), Once(action)])


class Two(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.first, self.second = Net(), Net()

    def training_step(self, data, index):
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for net, optimizer in zip((self.first, self.second), optimizers, strict=False):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(data[0]), data[1]))
            optimizer.step()

    def configure_optimizers(self):
        return adamw(self.first.parameters()), adamw(self.second.parameters())


def test_of_two_optimizers_each_keeps_its_engine_and_a_new_one_gets_one():
    model, ours, engines = Two(), SecondOrder(METHOD, print_plan=False), []

    def remember(trainer, module):
        engines[:] = ours.engines

    def change(trainer, module):
        engines.append(ours.engines[1].report.step)
        trainer.strategy.optimizers = [trainer.optimizers[1], adamw(module.first.parameters())]
        module.first, module.second = module.second, module.first

    fit(model, [ours, Once(remember, 3), Once(change, 10)])
    first, second, steps = engines
    assert steps == 10
    assert ours.engines == [second, first]
    assert [engine.report.step for engine in ours.engines] == [16, 16]
    assert [engine.report.rotated for engine in ours.engines] == [3, 3]

    def drop(trainer, module):
        trainer.strategy.optimizers = trainer.optimizers[:1]

    def add(trainer, module):
        trainer.strategy.optimizers = [*trainer.optimizers, adamw(module.second.parameters())]

    model, ours = Two(), SecondOrder(METHOD, print_plan=False)
    fit(model, [ours, Once(drop, 6), Once(add, 9)])
    assert [engine.report.step for engine in ours.engines] == [16, 7]


# ------------------------------------------------------------------ tensors
def new_layer(net, optimizer, told=True):
    torch.manual_seed(7)
    net.tall = nn.Linear(net.tall.in_features, net.tall.out_features)
    if told:
        optimizer.param_groups[0]["params"] = list(net.parameters())


@pytest.mark.parametrize("method", [METHOD, STAYS], ids=["soap", "kfac"])
def test_a_tensor_that_is_replaced_is_a_block_anew_and_the_others_go_on(method):
    # mosaicml/composer#249: surgery on a model and its optimizer in mid-training.
    torch.manual_seed(0)
    net = Net()
    optimizer = adamw(net.parameters())
    engine = attach(net, optimizer, method)
    train(net, optimizer, range(12))
    old = net.tall.weight
    factors = {n: b["tensors"] for n, b in engine.state_dict()["blocks"].items()}
    new_layer(net, optimizer)
    engine.follow()
    state = engine.state_dict()
    for name, block in state["blocks"].items():
        same_as_before = all(torch.equal(block["tensors"][key], value) for key, value in factors[name].items())
        assert same_as_before is (name != "tall.weight")
        assert block["warm"] is (name != "tall.weight")
    train(net, optimizer, range(12, 16))
    here = {id(param) for param in net.parameters()}
    assert all(id(block.param) in here for block in engine.plan.blocks)
    assert id(old) not in here
    assert engine.report.step == 16
    if method is METHOD:
        assert engine.report.rotated == 2
        train(net, optimizer, range(16, 24))
        assert engine.report.rotated == 3


def test_a_tensor_that_comes_back_has_plain_moments():
    torch.manual_seed(0)
    net = Net()
    optimizer = adamw(net.parameters())
    engine = attach(net, optimizer, METHOD)
    train(net, optimizer, range(12))
    layer, plain = net.tall, optimizer.state_dict()["state"]
    number = [name for name, _ in net.named_parameters()].index("tall.weight")
    new_layer(net, optimizer)
    train(net, optimizer, range(12, 14))
    assert torch.equal(optimizer.state[layer.weight]["exp_avg"], plain[number]["exp_avg"])
    assert engine.report.step == 14


def test_a_tensor_that_only_the_model_has_is_refused():
    torch.manual_seed(0)
    net = Net()
    optimizer = adamw(net.parameters())
    attach(net, optimizer, METHOD)
    train(net, optimizer, range(6))
    new_layer(net, optimizer, told=False)
    optimizer.zero_grad()
    with pytest.raises(TrustError, match=r"tall.weight was replaced in mid-training: AdamW has the old tensor") as said:
        train(net, optimizer, range(6, 7))
    noted.refused(said, option="a parameter that is replaced in mid-training")


def test_a_frozen_layer_in_a_trained_one_s_place_is_allowed():
    torch.manual_seed(0)
    net = Net()
    optimizer = adamw(net.parameters())
    engine = attach(net, optimizer, METHOD)
    train(net, optimizer, range(6))
    new_layer(net, optimizer, told=False)
    net.tall.requires_grad_(False)
    optimizer.zero_grad()
    train(net, optimizer, range(6, 9))
    assert engine.report.rotated == 2


def test_rotated_moments_that_were_given_to_another_tensor_are_refused():
    torch.manual_seed(0)
    net = Net()
    optimizer = adamw(net.parameters())
    attach(net, optimizer, METHOD)
    train(net, optimizer, range(12))
    old = net.tall.weight
    new_layer(net, optimizer)
    optimizer.state[net.tall.weight] = optimizer.state.pop(old)
    with pytest.raises(TrustError, match=r"tall.weight is another tensor than before, and was given") as said:
        train(net, optimizer, range(12, 13))
    noted.refused(said, option="moments that are given to another tensor")


# ------------------------------------------------------------------ methods on the whole vector
def test_a_method_on_the_whole_vector_begins_anew():
    for change in (switch(torch.optim.RAdam), lambda trainer, module: new_layer(module.net, trainer.optimizers[0])):
        model, ours, engines = WithRate(), MatrixFree(FewDirections(), verbose=False), []
        watch = Once(lambda trainer, _, ours=ours, engines=engines: engines.append(ours.engine), 3)
        with pytest.warns(UserWarning, match="FewDirections begins anew"):
            trainer = fit(model, [ours, watch, Once(change, 7)])
        assert ours.engine is not engines[0]
        assert ours.engine.optimizer is trainer.optimizers[0]
        # At the batch of the change the callback had looked already.
        assert ours.engine.memory.counts.steps == 8


def test_a_method_on_the_whole_vector_is_attached_again():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    engine = attach(net, optimizer, FewDirections())

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(batch(0)[0]), batch(0)[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    new_layer(net, optimizer)
    with pytest.raises(TrustError, match=r"had when it began.*engine\.detach\(\)") as said:
        optimizer.step(closure)
    noted.refused(said, method="FewDirections", option="a parameter that is replaced in mid-training")
    engine.detach()
    engine = attach(net, optimizer, FewDirections())
    optimizer.step(closure)
    assert engine.memory.counts.steps == 1


def test_a_look_at_the_curvature_is_at_what_is_trained_now():
    model, monitor = WithRate(), CurvatureMonitor(every=4, verbose=False)
    seen = list[list[int]]()
    look = Once(lambda trainer, module: seen.append([id(p) for p in monitor.vector.params]), 15)
    change = Once(lambda trainer, module: new_layer(module.net, trainer.optimizers[0]), 6)
    trainer = fit(model, [monitor, change, look])
    assert seen == [[id(param) for param in trainer.lightning_module.parameters()]]
