"""The callback in a real Trainer: equal to the plain loop, and nothing of the user's breaks."""

import copy
import importlib.metadata
import pickle

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_so import SOAP, ConfigError, Muon, SecondOrder, StateError, attach
from tests.support import noted
from tests.support.daily import daily
from tests.support.inside import Inside
from tests.support.problems import Net, batch

METHOD = SOAP(start=4, period=4)


class Batches(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return batch(index)


def module(lightning=pytorch_lightning, fail_at=None):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = Net()
            self.seen = []

        def training_step(self, data, index):
            loss = torch.nn.functional.cross_entropy(self.net(data[0]), data[1])
            if index == fail_at:
                loss = loss * float("nan")
            self.seen.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Module()


def fit(model, callbacks, length=16, lightning=pytorch_lightning, ckpt_path=None, **arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, **{"enable_checkpointing": False, **quiet, **arguments}
    )
    trainer.fit(model, DataLoader(Batches(length), batch_size=None), ckpt_path=ckpt_path)
    for ours in callbacks:
        noted.trained(trainer, getattr(ours, "engines", ()), "one")
    return trainer


def by_hand(steps=16, accumulate=1, clip=None, autocast=False):
    model = module()
    optimizer = model.configure_optimizers()
    optimizer, schedule = optimizer["optimizer"], optimizer["lr_scheduler"]["scheduler"]
    attach(model, optimizer, METHOD)
    for step in range(steps):
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.cross_entropy(model.net(x), y) / accumulate
        loss.backward()
        if (step + 1) % accumulate == 0:
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("lightning", [pytorch_lightning, lightning.pytorch], ids=["pytorch_lightning", "lightning"])
def test_equals_the_plain_loop_under_both_import_names(lightning, capsys):
    model, callback = module(lightning), SecondOrder(METHOD)
    trainer = fit(model, [callback], lightning=lightning)
    torch.testing.assert_close(model.state_dict(), by_hand().state_dict(), rtol=0, atol=0)
    assert callback.engines[0].report.rotated == 3
    assert "SOAP" in capsys.readouterr().out
    assert "optimizer_step" not in trainer.strategy.__dict__


@pytest.mark.parametrize(
    ("arguments", "hand"),
    [
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"gradient_clip_val": 0.5}, {"clip": 0.5}),
        ({"precision": "bf16-mixed"}, {"autocast": True}),
    ],
    ids=["accumulate", "clip", "bf16-mixed"],
)
def test_ordinary_situations_equal_the_plain_loop(arguments, hand):
    model = module()
    fit(model, [SecondOrder(METHOD)], **arguments)
    torch.testing.assert_close(model.state_dict(), by_hand(**hand).state_dict(), rtol=0, atol=0)


def test_reports_are_in_callback_metrics():
    trainer = fit(module(), [SecondOrder(METHOD)], log_every_n_steps=1)
    assert float(trainer.callback_metrics["so/rotated_blocks"]) == 3
    assert 0 < float(trainer.callback_metrics["so/coverage_params"]) < 1
    assert float(trainer.callback_metrics["so/skipped_steps"]) == 0


@pytest.mark.parametrize("method", [METHOD, Muon()], ids=["soap", "muon"])
def test_a_non_finite_loss_is_skipped_and_counted(method):
    model, callback = module(fail_at=9), SecondOrder(method)
    fit(model, [callback])
    assert callback.engines[0].report.skipped == 1
    assert callback.engines[0].report.step == 15
    assert all(bool(p.isfinite().all()) for p in model.parameters())


class Peek(Inside):
    """Looks at the weight wherever a callback can, and may raise in the middle of a step."""

    def __init__(self, raise_at=None, error=RuntimeError):
        self.raise_at, self.error, self.zeros = raise_at, error, 0

    def happen(self, trainer):
        if trainer.global_step == self.raise_at:
            raise self.error("stop")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.zeros += not pl_module.net.wide.weight.any()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.zeros += not pl_module.net.wide.weight.any()

    def on_exception(self, trainer, pl_module, exception):
        super().on_exception(trainer, pl_module, exception)
        self.zeros += not pl_module.net.wide.weight.any()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("first", [True, False])
def test_an_exception_inside_the_step_leaves_no_weight_hidden(error, first):
    model, ours, peek = module(), SecondOrder(METHOD), Peek(10, error)
    with pytest.raises((error, SystemExit)):
        fit(model, [peek, ours] if first else [ours, peek])
    assert peek.zeros == 0
    assert bool(model.net.wide.weight.any())
    assert ours.engines[0].report.undone == 1


@pytest.mark.parametrize("method", [METHOD, Muon()], ids=["soap", "muon"])
def test_resume_from_a_model_checkpoint_equals_not_having_stopped(tmp_path, method):
    straight = module()
    fit(straight, [SecondOrder(method)], max_epochs=2)
    saver = pytorch_lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="one", save_on_train_epoch_end=True)
    fit(module(), [SecondOrder(method), saver], enable_checkpointing=True)
    path = str(tmp_path / "one.ckpt")
    assert "lightning_so.SecondOrder" in torch.load(path, weights_only=True)["callbacks"]
    resumed, callback = module(), SecondOrder(method)
    fit(resumed, [callback], max_epochs=2, ckpt_path=path)
    assert callback.engines[0].report.step == 32
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    saver = pytorch_lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="one", save_on_train_epoch_end=True)
    fit(module(), [SecondOrder(METHOD), saver], enable_checkpointing=True)
    with pytest.raises(StateError, match="use the same arguments"):
        fit(module(), [SecondOrder(SOAP(start=9))], max_epochs=2, ckpt_path=str(tmp_path / "one.ckpt"))


def test_twice_is_refused():
    # A Trainer refuses two stateful callbacks of one key by itself; what comes past it is refused by us.
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `SecondOrder`"):
        fit(module(), [SecondOrder(METHOD), SecondOrder(Muon())])

    class Second(SecondOrder):
        state_key = "another"

    with pytest.raises(ConfigError, match="2 times"):
        fit(module(), [SecondOrder(METHOD), Second(Muon())])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"method": "soap"}, "method="), ({"method": METHOD, "min_coverage": 2}, r"SecondOrder\(min_coverage=")],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ConfigError, match=name):
        SecondOrder(**arguments)


def test_fit_twice_starts_anew_and_the_callback_can_be_copied():
    callback = SecondOrder(METHOD)
    model = module()
    fit(model, [callback])
    fit(model, [callback])
    assert callback.engines[0].report.step == 16
    assert copy.deepcopy(callback).engines == []


class LateRestore(pytorch_lightning.strategies.SingleDeviceStrategy):
    """Loads checkpoints after on_fit_start, as sharded strategies do."""

    restore_checkpoint_after_setup = True


@pytest.mark.parametrize("late", daily([False, True], True))
def test_state_may_come_before_or_after_fit_starts(tmp_path, late):
    """Pitfall 8: sharded strategies load checkpoints after `on_fit_start`, the others before."""
    straight = module()
    fit(straight, [SecondOrder(METHOD)], max_epochs=2)
    saver = pytorch_lightning.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="one", save_on_train_epoch_end=True)
    fit(module(), [SecondOrder(METHOD), saver], enable_checkpointing=True)
    order = []

    class Noting(SecondOrder):
        def on_fit_start(self, *arguments):
            order.append("fit")
            super().on_fit_start(*arguments)

        def load_state_dict(self, state):
            order.append("load")
            super().load_state_dict(state)

    resumed, strategy = module(), LateRestore(device="cpu") if late else "auto"
    fit(resumed, [Noting(METHOD)], max_epochs=2, ckpt_path=str(tmp_path / "one.ckpt"), strategy=strategy)
    assert order == (["fit", "load"] if late else ["load", "fit"])
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_installing_us_switches_nothing_on():
    # A callbacks factory would be asked by every Trainer of the environment.
    groups = {entry.group for entry in importlib.metadata.distribution("lightning-so").entry_points}
    assert not {group for group in groups if "callbacks_factory" in group}
    assert not any(isinstance(c, SecondOrder) for c in pytorch_lightning.Trainer(logger=False).callbacks)


def test_the_callback_can_be_pickled_before_and_while_it_runs():
    ours = SecondOrder(METHOD, verify_every=3)

    class Pickles(pytorch_lightning.Callback):
        def on_train_batch_end(self, *_):
            self.twin = pickle.loads(pickle.dumps(ours))

    pickles = Pickles()
    fit(module(), [ours, pickles])
    for twin in (pickle.loads(pickle.dumps(ours)), pickles.twin):
        assert (twin.method, twin.options, twin.engines) == (ours.method, ours.options, [])
        fit(module(), [twin])
        assert twin.engines[0].report.rotated == 3
