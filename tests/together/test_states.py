"""What optimizers give out and take in while blocks rotate, in mid-training, in an evaluation and after a fit."""

import copy
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateFinder
from torch.utils.data import DataLoader

from lightning_so import EKFAC, KFAC, FewDirections, MatrixFree, SaddleEscape, SecondOrder, Shampoo
from tests.callbacks.test_second_order import METHOD, Batches, fit, module
from tests.support.problems import Net, batch, train

SLOW = pytest.mark.slow
#: They rotate, bend and precondition.
METHODS = {"soap": METHOD, "ekfac": EKFAC(start=4, period=4), "kfac": KFAC(period=4), "shampoo": Shampoo(period=4)}
EACH = pytest.mark.parametrize(
    "method",
    [pytest.param(METHODS["soap"], id="soap"), pytest.param(METHODS["kfac"], id="kfac")]
    + [pytest.param(METHODS[name], marks=SLOW, id=name) for name in ("ekfac", "shampoo")],
)


class Once(pl.Callback):
    """Does something before the batch of one number."""

    def __init__(self, action, number=10):
        self.action, self.number = action, number

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == self.number:
            self.action(trainer, module)


def same(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def straight(method):
    model, ours = module(), SecondOrder(method, print_plan=False)
    fit(model, [ours])
    return model, ours


# ------------------------------------------------------------------ loads in mid-training
def saved(trainer, path):
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=False)


def of_a_file(trainer, path):
    trainer.optimizers[0].load_state_dict(saved(trainer, path)["optimizer_states"][0])


def of_its_own(trainer, path):
    trainer.optimizers[0].load_state_dict(copy.deepcopy(trainer.optimizers[0].state_dict()))


def all_of_it(trainer, path):
    saved(trainer, path)
    restore(trainer, path)


def restore(trainer, path):
    connector = trainer._checkpoint_connector
    connector.resume_start(path)
    connector.restore_model()
    connector.restore_callbacks()
    connector.restore_optimizers_and_schedulers()


@pytest.mark.parametrize("load", [of_a_file, of_its_own, all_of_it], ids=lambda load: load.__name__)
@EACH
def test_to_save_and_go_straight_back_changes_nothing(method, load, tmp_path):
    # Lightning-AI/pytorch-lightning#13099: going back to a checkpoint within a fit.
    want, _ = straight(method)
    model, ours = module(), SecondOrder(method, print_plan=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the optimizer's state was changed")
        fit(model, [ours, Once(lambda trainer, _: load(trainer, tmp_path / "now.ckpt"))])
    same(model, want)
    assert ours.engines[0].report.foreign == 0


class Back(pl.Callback):
    """Saves before a batch, and goes back four batches later; the batches between are as if they had not been."""

    def __init__(self, path, whole):
        self.path, self.whole, self.model = path, whole, None

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 10:
            self.model = copy.deepcopy(module.net.state_dict())
            self.optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
            self.schedule = trainer.lr_scheduler_configs[0].scheduler.state_dict()
            trainer.save_checkpoint(self.path)
        if index == 14 and self.whole:
            restore(trainer, self.path)
        elif index == 14:
            module.net.load_state_dict(self.model)
            trainer.optimizers[0].load_state_dict(self.optimizer)
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.schedule)


class Skipping(pl.LightningModule):
    """Net, whose batches are numbered without those from 10 to 13, where somebody goes back over them."""

    def __init__(self, back):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.back = Net(), back

    def training_step(self, data, index):
        x, y = batch(index - 4 if self.back and index >= 14 else index)
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]


@EACH
def test_a_rollback_of_a_whole_checkpoint_is_as_if_nothing_had_been(method, tmp_path):
    # Lightning-AI/pytorch-lightning#13099.
    want, model = Skipping(back=False), Skipping(back=True)
    fit(want, [SecondOrder(method, print_plan=False)], length=20)
    ours = SecondOrder(method, print_plan=False)
    fit(model, [ours, Back(tmp_path / "now.ckpt", whole=True)], length=24)
    same(model, want)
    assert ours.engines[0].report.step == 20


@EACH
def test_a_rollback_of_model_and_optimizer_alone_is_said(method, tmp_path):
    model, ours = Skipping(back=True), SecondOrder(method, print_plan=False)
    with pytest.warns(UserWarning, match=r"between steps 14 and 15, and what is known of curvature was not.*whole"):
        fit(model, [ours, Back(tmp_path / "now.ckpt", whole=False)], length=24)
    report = ours.engines[0].report
    assert (report.step, report.foreign) == (24, 1)
    assert report.rotated == (3 if method in (METHODS["soap"], METHODS["ekfac"]) else 0)
    assert "1 foreign states" in str(report)


class Search(LearningRateFinder):
    """Searches before an epoch, and takes nothing over."""

    def __init__(self):
        super().__init__(num_training_steps=6, update_attr=False)

    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


class WithRate(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.lr = Net(), 1e-2

    def training_step(self, data, index):
        return torch.nn.functional.cross_entropy(self.net(data[0]), data[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


@EACH
def test_a_search_for_a_rate_within_a_fit_changes_nothing(method, tmp_path):
    # Lightning-AI/pytorch-lightning#20008 and #15603: LearningRateFinder before an epoch in mid-training.
    want, model, ours = WithRate(), WithRate(), SecondOrder(method, print_plan=False)
    fit(want, [SecondOrder(method, print_plan=False)], length=10, max_epochs=3)
    fit(model, [ours, Search()], length=10, max_epochs=3, default_root_dir=tmp_path)
    same(model, want)
    assert ours.engines[0].report.step == 30


# ------------------------------------------------------------------ what evaluation has read
@pytest.mark.parametrize("failing", [False, True], ids=["ended", "failed"])
@EACH
def test_what_an_evaluation_has_read_does_not_start_the_next_fit(method, failing, tmp_path):
    # Lightning-AI/pytorch-lightning#9413: the state of a training is restored for `fit` alone.
    want, ours = straight(method)
    path, model = tmp_path / "first.ckpt", module()
    fit(module(), [ours]).save_checkpoint(path)

    class Tested(type(model)):
        def test_step(self, data, index):
            assert not failing

    tested = Tested()
    trainer = pl.Trainer(accelerator="cpu", callbacks=[ours], logger=False, enable_progress_bar=False)
    if failing:
        with pytest.raises(AssertionError):
            trainer.test(tested, DataLoader(Batches(1), batch_size=None), ckpt_path=path, verbose=False)
    else:
        trainer.test(tested, DataLoader(Batches(1), batch_size=None), ckpt_path=path, verbose=False)
        assert ours._loaded is None
    fit(model, [ours])
    same(model, want)


def test_what_an_evaluation_has_read_does_not_start_other_callbacks(tmp_path):
    callbacks = [MatrixFree(FewDirections(), verbose=False), SaddleEscape(every=4, verbose=False)]
    trainer = fit(module(), callbacks)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    for ours in callbacks:
        ours.load_state_dict(ours.state_dict())
        ours.on_load_checkpoint(trainer, None, {})
        ours.teardown(trainer, trainer.lightning_module, "test")
        assert ours._loaded is None
        ours.load_state_dict(ours.state_dict())
        ours.on_load_checkpoint(trainer, None, {})
        ours.setup(trainer, trainer.lightning_module, "fit")
        assert ours._loaded is None


def test_other_callbacks_go_back_too(tmp_path):
    seen = []

    def go_back(trainer, _):
        all_of_it(trainer, tmp_path / "now.ckpt")
        seen.append(callbacks[0].state_dict()["engine"]["counts"])

    want, model = module(), module()
    fit(want, [MatrixFree(FewDirections(), verbose=False), SaddleEscape(every=4, verbose=False)])
    callbacks = [MatrixFree(FewDirections(), verbose=False), SaddleEscape(every=4, verbose=False)]
    fit(model, [*callbacks, Once(go_back)])
    same(model, want)
    assert seen[0]["steps"] == 10
    assert callbacks[0].engine.memory.counts.steps == 16


# ------------------------------------------------------------------ after a fit
@pytest.mark.parametrize("method", [METHODS["soap"], pytest.param(METHODS["ekfac"], marks=SLOW)], ids=["soap", "ekfac"])
def test_after_a_fit_the_optimizer_goes_on_alone_and_a_file_exactly(method, tmp_path):
    model, ours = module(), SecondOrder(method, print_plan=False)
    trainer = fit(model, [ours], length=10)
    optimizer, path = trainer.optimizers[0], tmp_path / "end.ckpt"
    file = saved(trainer, path)
    moments = [state["exp_avg"] for state in file["optimizer_states"][0]["state"].values()]
    for (_, state), plain in zip(optimizer.state_dict()["state"].items(), moments, strict=True):
        torch.testing.assert_close(state["exp_avg"], plain, rtol=0, atol=0)
    exact = file["callbacks"][ours.state_key]["engines"][0]
    assert all(facts["warm"] for facts in exact["blocks"].values())
    assert len(exact["moments"]) == 3
    assert not torch.equal(exact["moments"]["net.tall.weight"]["exp_avg"], moments[2])
    again = module()
    fit(again, [SecondOrder(method, print_plan=False)], length=10, max_epochs=2, ckpt_path=path)
    twice = module()
    fit(twice, [SecondOrder(method, print_plan=False)], length=10, max_epochs=2)
    same(again, twice)
    # A loop by hand goes on, as from the file.
    hand = module()
    hand.load_state_dict(file["state_dict"])
    other = hand.configure_optimizers()["optimizer"]
    other.load_state_dict(file["optimizer_states"][0])
    for stepped, net in ((optimizer, model.net), (other, hand.net)):
        assert "__getstate__" not in stepped.__dict__
        assert not stepped._optimizer_state_dict_post_hooks
        train(net, stepped, range(20, 24))
    same(model, hand)
    # What is saved then are the moments of then.
    now = saved(trainer, path)
    for state, live in zip(now["optimizer_states"][0]["state"].values(), optimizer.state.values(), strict=True):
        torch.testing.assert_close(state["exp_avg"], live["exp_avg"], rtol=0, atol=0)
    exact = now["callbacks"][ours.state_key]["engines"][0]
    assert exact["moments"] == {}
    assert not any(facts["warm"] for facts in exact["blocks"].values())


def test_after_a_training_that_failed_the_optimizer_goes_on_alone():
    def fail(*_):
        raise RuntimeError("failed")

    model, ours = module(), SecondOrder(METHOD, print_plan=False)
    optimizers = []

    def remember(trainer, _):
        optimizers.append(trainer.optimizers[0])
        optimizers.append(trainer.optimizers[0].state_dict())

    with pytest.raises(RuntimeError, match="failed"):
        fit(model, [ours, Once(remember), Once(fail)])
    optimizer, plain = optimizers
    for state, given in zip(optimizer.state.values(), plain["state"].values(), strict=True):
        torch.testing.assert_close(state["exp_avg"], given["exp_avg"], rtol=0, atol=0)
    assert "__getstate__" not in optimizer.__dict__


def test_steps_after_the_end_of_a_fit_enter_anew_and_say_so():
    class Goes(pl.Callback):
        def on_train_end(self, trainer, module):
            train(module.net, trainer.optimizers[0], range(4))

    model, ours = module(), SecondOrder(METHOD, print_plan=False)
    with pytest.warns(UserWarning, match="between steps 16 and 17"):
        fit(model, [ours, Goes()])
    assert (ours.engines[0].report.step, ours.engines[0].report.foreign) == (20, 1)
