"""What users get wrong, or might misunderstand, is said in words of ours; what is in order is not complained of."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging
from torch import nn
from torch.nn import functional as F

from lightning_so import (
    KFAC,
    SOAP,
    ConfigError,
    CurvatureMonitor,
    FewDirections,
    MatrixFree,
    SecondOrder,
    SharpnessGuard,
    attach,
)
from lightning_so.callbacks import strategies
from tests.callbacks.test_second_order import fit

METHOD = SOAP(start=3, period=3)


def loss_of(model, index):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(index))
    return F.cross_entropy(model(x), torch.arange(8) % 3)


class Simple(pl.LightningModule):
    def __init__(self, *layers, make=torch.optim.AdamW):
        super().__init__()
        torch.manual_seed(0)
        self.make, self.lr = make, 1e-3
        self.net = nn.Sequential(*layers or [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)])

    def training_step(self, data, index):
        return loss_of(self.net, index)

    def configure_optimizers(self):
        return self.make and self.make(self.parameters())


def callbacks():
    return [SecondOrder(METHOD), MatrixFree(FewDirections()), CurvatureMonitor(every=2), SharpnessGuard(every=2)]


# ---------------------------------------------------------------- what cannot be


# Lightning-AI/pytorch-lightning#13764: lazy layers before a fit.
@pytest.mark.parametrize("callback", callbacks(), ids=lambda each: type(each).__name__)
def test_lazy_parameters_are_named(callback):
    with pytest.raises(ConfigError, match=r"2 parameters of lazy layers .*: net\.0\.weight, net\.0\.bias\. Call the"):
        fit(Simple(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3)), [callback])
    seen = Simple(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3))
    loss_of(seen.net, 0)
    fit(seen, [callback])


def test_lazy_parameters_are_named_in_a_plain_loop():
    model = nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3))
    for method in (METHOD, FewDirections()):
        with pytest.raises(ConfigError, match=r"2 parameters of lazy layers .*: 0\.weight, 0\.bias\. Call the"):
            attach(model, torch.optim.AdamW(model.parameters()), method)


@pytest.mark.parametrize("callback", callbacks(), ids=lambda each: type(each).__name__)
def test_no_optimizer_at_all_is_refused_by_every_callback(callback):
    name = type(callback).__name__
    with pytest.raises(ConfigError, match=f"{name}: configure_optimizers of Simple gave no optimizer"):
        fit(Simple(make=None), [callback])


# Lightning-AI/pytorch-lightning#18516: what Fabric makes of optimizers.
@pytest.mark.parametrize("method", [METHOD, KFAC(period=2), FewDirections()], ids=["soap", "kfac", "few directions"])
def test_an_optimizer_of_fabrics_is_refused_and_the_one_in_it_trains_as_alone(method):
    ends = []
    for wrapped in (False, True):
        model = Simple().net
        optimizer = outer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        fabric = Fabric(accelerator="cpu", devices=1)
        if wrapped:
            model, outer = fabric.setup(model, optimizer)
            with pytest.raises(
                ConfigError, match=r"FabricAdamW is a wrapper.* the AdamW in it, which steps: .*\.optimizer, "
            ):
                attach(model, outer, method)
        attach(model, optimizer, method)
        for index in range(8):

            def closure(model=model, outer=outer, index=index, fabric=fabric):
                outer.zero_grad()
                loss = loss_of(model, index)
                fabric.backward(loss)
                return loss

            outer.step(closure)
        ends.append(list(model.parameters()))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


# ---------------------------------------------------------------- what is in order


class Loaded(Simple):
    """With a loader of its own."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(32))


class Later(LearningRateFinder):
    """Does not search at the start."""

    def on_fit_start(self, *_):
        pass


# Lightning-AI/pytorch-lightning#20008: at the start, and in mid-training.
def test_a_finder_is_told_that_its_search_is_without_us(tmp_path):
    ours, finder = SecondOrder(METHOD, print_plan=False), LearningRateFinder(num_training_steps=4)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=8, callbacks=[ours, finder], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="LearningRateFinder searches without SecondOrder"):
        trainer.fit(Loaded())
    assert (ours.engines[0].report.step, ours.engines[0].report.rotated) == (8, 2)
    for finder, names in ((BatchSizeFinder(), ["BatchSizeFinder"]), (Later(), [])):
        assert strategies.finders(pl.Trainer(callbacks=[finder], logger=False)) == names


# Lightning-AI/pytorch-lightning#15113: averaged weights have the statistics of BatchNorm taken once more.
def test_an_epoch_for_the_statistics_of_batchnorm_is_no_reason_to_warn():
    model = Simple(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    average, ours = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1), SecondOrder(KFAC(period=1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = fit(model, [average, ours], max_epochs=2)
    assert trainer.current_epoch == 3
    assert ours.engines[0].report.step == 2 * 16 + 1
    assert not [str(warning.message) for warning in said if "hooks were not called" in str(warning.message)]
