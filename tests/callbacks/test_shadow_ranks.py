"""Shadow mode under DDP: the training is untouched on every rank, and its twin is the one of one process."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from lightning_so import KFAC, SOAP, ConfigError, SecondOrder, Shadow
from tests.support import trainings

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
METHODS = {"soap": SOAP(start=4, period=2), "kfac": KFAC(fisher="empirical", period=2)}


class Foretold(pl.Callback):
    """What the race has foretold, as `SecondOrder` leaves it; promotes at a step."""

    def __init__(self, promote_at=None):
        self.samples, self.promote_at = [], promote_at

    def ours(self, trainer):
        return next(each for each in trainer.callbacks if isinstance(each, SecondOrder))

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.promote_at:
            self.ours(trainer).promote()

    def on_train_end(self, trainer, pl_module):
        self.samples = [sample["method"] for sample in self.ours(trainer).foretold["samples"]]


def shadowed(strategy, method, shadow=True, promote_at=None, steps=12, **named):
    """Train; the end of it, and the losses of the twin."""
    if not shadow:
        return trainings.train(strategy, None, ADAMW, steps, dtype=torch.float64, **named), []
    told = Foretold(promote_at)
    asked = {"callbacks": [told], "shadow": Shadow(share=1.0), "dtype": torch.float64, **named}
    return trainings.train(strategy, METHODS[method], ADAMW, steps, **asked), told.samples


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "clip": 0.5}], ids=["", "accumulate and clip"])
def test_ranks_have_the_twin_of_one_process(method, more, two):
    _, alone = shadowed("one", method, **more)
    plain = two.run(shadowed, "ddp", method, shadow=False, **more)
    many = two.run(shadowed, "ddp", method, **more)
    for (watched, _), (bare, _) in zip(many, plain, strict=True):
        assert watched.losses == bare.losses
        for name, weight in watched.weights.items():
            assert torch.equal(weight, bare.weights[name]), name
    together = torch.tensor([samples for _, samples in many], dtype=torch.float64).mean(0)
    torch.testing.assert_close(together, torch.tensor(alone, dtype=torch.float64), rtol=0, atol=1e-10)
    assert len(alone) == 12
    assert many[0][1] != many[1][1]  # each rank has losses of its own


@pytest.mark.slow
def test_a_promotion_is_the_same_on_ranks(two):
    one, _ = shadowed("one", "soap", promote_at=2, steps=20)
    many = two.run(shadowed, "ddp", "soap", promote_at=2, steps=20)
    for trained, _ in many:
        assert trained.report.rotated == one.report.rotated > 0
        for name, weight in trained.weights.items():
            torch.testing.assert_close(weight, one.weights[name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_ways_to_average_of_ones_own_are_refused():
    strategy = pl.strategies.DDPStrategy(ddp_comm_hook=bf16_compress_hook)
    shadow = SecondOrder(METHODS["soap"], print_plan=False, shadow=True)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, callbacks=[shadow], logger=False)
    with pytest.raises(ConfigError, match="a ddp_comm_hook, by which gradients are not the mean"):
        shadow.setup(trainer, nn.Linear(1, 1), "fit")
