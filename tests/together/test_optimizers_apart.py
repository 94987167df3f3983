"""An optimizer before which no method can work, beside one where one can: left alone, and named in the plan."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import SOAP, ConfigError, Muon, SecondOrder, attach
from tests.callbacks.test_second_order import fit
from tests.support.trainings import Save

METHOD = SOAP(start=3, period=3)


def step(model, optimizers, index, backward):
    generator = torch.Generator().manual_seed(index)
    rows = torch.randint(0, 30, (16,), generator=generator)
    for optimizer in optimizers:
        optimizer.zero_grad()
    backward(F.cross_entropy(model.net(model.embedding(rows)), rows % 5))
    for optimizer in optimizers:
        optimizer.step()


class Recommender(pl.LightningModule):
    """An embedding with sparse gradients and an optimizer of its own, before a network."""

    def __init__(self, make=torch.optim.SparseAdam, sparse=True, last=None):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.embedding = nn.Embedding(30, 12, sparse=sparse)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
        self.make, self.last = make, last or (lambda params: torch.optim.AdamW(params, lr=1e-2))

    def training_step(self, data, index):
        step(self, self.optimizers(), self.trainer.global_step // 2, self.manual_backward)

    def configure_optimizers(self):
        return [self.make(self.embedding.parameters()), self.last(self.net.parameters())]


def dense(params):
    return torch.optim.AdamW(params, lr=1e-2)


# RUCAIBox/RecBole#558: sparse embeddings have an optimizer of their own.
@pytest.mark.parametrize(
    ("make", "sparse", "route", "reason"),
    [
        (torch.optim.SparseAdam, True, None, "SparseAdam is left alone: optimizer SparseAdam is not in the registry"),
        (torch.optim.SparseAdam, True, {"base": ["embedding.*"]}, "SparseAdam is left alone: optimizer SparseAdam is"),
        (torch.optim.Adafactor, False, None, "Adafactor is left alone: optimizer Adafactor is not in the registry"),
        (dense, False, {"base": ["embedding.*"]}, "AdamW is left alone: coverage is 0"),
    ],
    ids=["sparse", "sparse by route", "adafactor", "dense by route"],
)
def test_what_no_method_can_use_is_left_alone_and_named(make, sparse, route, reason, tmp_path, capsys):
    model, ours, path = Recommender(make, sparse), SecondOrder(METHOD, route), str(tmp_path / "some.ckpt")
    fit(model, [ours, Save(path, 2 * 12)])
    (engine,) = ours.engines
    assert (engine.report.step, engine.report.rotated) == (16, 2)
    said = capsys.readouterr().out
    assert f"Optimizer 0 of configure_optimizers: {reason}" in said
    assert "Optimizer 1 of configure_optimizers:" in said

    hand = Recommender(make, sparse)
    optimizers = hand.configure_optimizers()
    attach(hand, optimizers[1], METHOD, route=route)
    for index in range(16):
        step(hand, optimizers, index, torch.Tensor.backward)
    torch.testing.assert_close(model.state_dict(), hand.state_dict(), rtol=0, atol=0)

    resumed = Recommender(make, sparse)
    fit(resumed, [SecondOrder(METHOD, route)], length=16, ckpt_path=path)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_without_a_printed_plan_it_is_a_warning():
    with pytest.warns(UserWarning, match="Optimizer 0 of configure_optimizers: SparseAdam is left alone: optimizer"):
        fit(Recommender(), [SecondOrder(METHOD, print_plan=False)])


def test_a_training_without_any_that_can_be_used_is_refused_with_every_reason():
    model = Recommender(last=lambda params: torch.optim.Adafactor(params))
    with pytest.raises(ConfigError, match=r"none of the 2 optimizers\.\n.* 0 .*SparseAdam is not.*\n.* 1 .*Adafactor"):
        fit(model, [SecondOrder(METHOD)])


def test_a_least_coverage_is_that_of_every_optimizer():
    with pytest.raises(ConfigError, match=r"optimizer 0 is below min_coverage=0\.1: .*SparseAdam is not in"):
        fit(Recommender(), [SecondOrder(METHOD, min_coverage=0.1)])
    with pytest.raises(ConfigError, match=r"optimizer 0 is below min_coverage=0\.1: .*coverage is 0"):
        fit(Recommender(dense, False), [SecondOrder(METHOD, {"base": ["embedding.*"]}, min_coverage=0.1)])


def test_what_is_routed_to_the_base_is_not_refused():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    params = [{"params": model[0].parameters(), "momentum": 0.0}, {"params": model[1].parameters()}]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    with pytest.raises(ConfigError, match=r"Muon on SGD \(param_groups\[0\]\)"):
        attach(model, optimizer, Muon())
    engine = attach(model, optimizer, Muon(), route={"base": ["0.*"]})
    assert [block.name for block in engine.plan.blocks] == ["1.weight"]
