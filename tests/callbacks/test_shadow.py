"""Shadow mode: the training is untouched, its twin is the training with the method, and foretells what that needs."""

import math

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_so import KFAC, SOAP, ConfigError, SecondOrder, Shadow
from lightning_so.callbacks.shadow.prediction import falling, predict, smoothed
from tests.support.daily import daily

METHOD = SOAP(start=4, period=4)
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Images(pytorch_lightning.LightningModule):
    """A small network with all that a second pass could disturb: BatchNorm, dropout, counters, lists."""

    def __init__(self, drop=0.2, automatic=True):
        super().__init__()
        torch.manual_seed(0)
        norm = [nn.BatchNorm1d(12), nn.Dropout(drop)] if drop else []
        self.net = nn.Sequential(nn.Linear(8, 12), *norm, nn.Tanh(), nn.Linear(12, 4))
        self.losses, self.calls, self.automatic_optimization = [], 0, automatic

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.calls += 1
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data(count):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 32, 8, generator=generator)
    teacher = torch.randn(8, 4, generator=generator)
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def fit(module, callbacks, count=24, ckpt_path=None, **arguments):
    torch.manual_seed(7)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, **{"max_epochs": 1, **QUIET, **arguments}
    )
    trainer.fit(module, DataLoader(data(count), batch_size=None, shuffle=True), ckpt_path=ckpt_path)
    return trainer


def everything(trainer, module):
    optimizer = trainer.optimizers[0].state_dict()["state"]
    moments = [value for state in optimizer.values() for value in state.values()]
    return [*module.state_dict().values(), *moments, torch.get_rng_state(), torch.tensor(module.losses)]


ODD = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}


@pytest.mark.parametrize("method", [METHOD, KFAC(period=4)], ids=["SOAP", "KFAC"])
@pytest.mark.parametrize("arguments", daily([{}, ODD], ODD))
def test_the_training_is_untouched_bit_for_bit(method, arguments):
    alone, watched = Images(), Images()
    base = fit(alone, [], **arguments)
    plain = everything(base, alone)
    shadow = SecondOrder(method, print_plan=False, shadow=Shadow(share=0.5))
    trainer = fit(watched, [shadow], **arguments)
    beside = everything(trainer, watched)
    assert trainer.callback_metrics["loss"] == base.callback_metrics["loss"]
    assert len(plain) == len(beside)
    assert all(map(torch.equal, plain, beside))
    assert watched.calls == 24
    assert len(shadow.foretold["samples"]) == (24 if not arguments else 8) // 2


def test_the_twin_is_the_training_with_the_method():
    # Taking every step, with the same batches and nothing drawn, its losses are those of a run with SOAP.
    alone = Images(drop=0)
    fit(alone, [SecondOrder(METHOD, print_plan=False)], gradient_clip_val=0.5)
    shadow = SecondOrder(METHOD, print_plan=False, shadow=Shadow(share=1.0))
    watched = Images(drop=0)
    fit(watched, [shadow], gradient_clip_val=0.5)
    assert [sample["method"] for sample in shadow.foretold["samples"]] == alone.losses
    assert [sample["base"] for sample in shadow.foretold["samples"]] == watched.losses
    assert shadow.foretold["memory"] > 0
    assert shadow.foretold["seconds_share"] > 0


@pytest.mark.slow
def test_what_it_foretells_is_logged_and_printed(capsys):
    module = Images(drop=0)
    shadow = SecondOrder(METHOD, shadow=Shadow(share=0.5))
    trainer = fit(module, [shadow], count=40, log_every_n_steps=10)
    assert 0 < trainer.callback_metrics["so/shadow_steps_share"] < 2
    assert trainer.callback_metrics["so/shadow_mem_gb"] > 0
    assert "so/shadow_time_share" in trainer.callback_metrics
    assert f"{shadow.foretold['text']}\n" in capsys.readouterr().out
    assert "SOAP would have needed" in shadow.foretold["text"]
    assert "20 steps of 40 on a copy" in shadow.foretold["text"]


@pytest.mark.parametrize(
    ("module", "arguments", "got"),
    [
        (Images(automatic=False), {}, "manual optimization"),
        (Images(), {"strategy": ModelParallelStrategy(), "devices": 2}, "no rank has the whole of a weight"),
    ],
)
def test_trainings_that_cannot_be_copied_are_refused(module, arguments, got):
    shadow = SecondOrder(METHOD, print_plan=False, shadow=True)
    trainer = pytorch_lightning.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, "callbacks": [shadow], **QUIET, **arguments}
    )
    with pytest.raises(ConfigError, match=got):
        shadow.setup(trainer, module, "fit")


def test_a_module_that_cannot_be_copied_is_refused_by_name():
    class Open(Images):
        def __deepcopy__(self, memo):
            raise TypeError("an open file")

    with pytest.raises(ConfigError, match=r"copy of Open, which copy\.deepcopy refuses: an open file"):
        fit(Open(), [SecondOrder(METHOD, print_plan=False, shadow=True)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"share": 0}, "share=0"), ({"share": 1.5}, "share=1.5"), ({"promote_at": 0}, "promote_at")],
)
def test_arguments_are_checked(arguments, match):
    with pytest.raises(ConfigError, match=match):
        Shadow(**arguments)
    with pytest.raises(ConfigError, match="shadow='yes'"):
        SecondOrder(METHOD, shadow="yes")


@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0])
def test_a_copy_that_is_some_times_as_fast_needs_so_many_steps(speed):
    def loss(step):
        return 1 + 3 * (step + 5) ** -0.7

    training = [loss(step) for step in range(1, 401)]
    copy = [loss(speed * step) for step in range(1, 101)]
    found = predict(training, copy)
    assert not found.seen
    # The last tenth of the steps says what is to be reached: half of that is 5 %.
    assert found.share == pytest.approx(1 / speed, rel=0.1)
    assert predict(training, [loss(5 * step) for step in range(1, 101)]).seen
    assert predict(training, copy[:9]) is None
    assert predict(training, [*copy, math.nan]) is None


def test_curves_are_smoothed_and_made_to_fall():
    assert smoothed([3.0] * 30) == pytest.approx([3.0] * 30)
    assert falling([3.0, 1.0, 2.0, 0.0]) == [3.0, 1.5, 1.5, 0.0]
    assert falling([1.0, 2.0]) == [1.5, 1.5]
