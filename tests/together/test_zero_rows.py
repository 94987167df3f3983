"""Padding and dead inputs: what never has a gradient never moves, bit for bit, whatever is rotated around it.

An embedding's padding is there to stay as it is (pytorch/pytorch#49237, pytorch/pytorch#3711).
"""

import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import EKFAC, KFAC, SOAP, Muon, SecondOrder, Shampoo, attach

DEAD, SILENT = [0, 2, 5, 6], [3, 7]  # inputs that are always zero, units that never fire
ADAMW, SGD = (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.0}), (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9})
CASES = {
    "SOAP": (SOAP(start=6, period=3), ADAMW),
    "SOAP, no ridge": (SOAP(start=6, period=3, ridge=0.0), ADAMW),
    "SOAP, polished": (SOAP(start=6, period=3, polish=True), ADAMW),
    "SOAP, tiles": (SOAP(start=6, period=3, cap=5), ADAMW),
    "EKFAC": (EKFAC(start=6, period=3), ADAMW),
    "EKFAC, preconditioned": (EKFAC(period=3), SGD),
    "KFAC": (KFAC(period=3), SGD),
    "KFAC, exact": (KFAC(period=3, exact=True), SGD),
    "KFAC, bent": (KFAC(period=3), ADAMW),
    "Shampoo": (Shampoo(period=3), ADAMW),
    "Shampoo, preconditioned": (Shampoo(period=3), SGD),
    "KL-Shampoo": (Shampoo(period=3, power=2, whiten=True), ADAMW),
    "Muon": (Muon(), ADAMW),
    "Muon, bf16": (Muon(precision="bf16"), ADAMW),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_never_have_a_gradient_never_move(case):
    method, (base, options) = CASES[case]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        net[0].weight[SILENT], net[0].bias[SILENT] = 0.0, -1.0
    first, last = (net[layer].weight.detach().clone() for layer in (0, 2))
    optimizer = base(net.parameters(), **options)
    engine = attach(net, optimizer, method)
    generator = torch.Generator().manual_seed(1)
    for _ in range(24):
        x = torch.randn(32, 12, generator=generator)
        x[:, DEAD] = 0
        loss = nn.functional.cross_entropy(net(x), x[:, [1, 3, 4, 7, 8]].argmax(1))
        optimizer.zero_grad()
        engine.before_backward(loss)
        loss.backward()
        assert not net[0].weight.grad[:, DEAD].any()
        optimizer.step()
    assert engine.report.rotated + engine.report.bent + engine.report.preconditioned > 0
    moved, other = net[0].weight.detach() - first, net[2].weight.detach() - last
    assert not moved[:, DEAD].any()
    assert not moved[SILENT].any()
    assert not other[:, SILENT].any()
    alive = [row for row in range(16) if row not in SILENT]
    assert moved[alive][:, 1].all()


class Tokens(pytorch_lightning.LightningModule):
    """The mean of embedded tokens, of which the first is padding that is no zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 4)
        with torch.no_grad():
            self.embed.weight[0] = torch.arange(8.0)
        self.before = self.embed.weight.detach().clone()

    def training_step(self, data, index):
        return nn.functional.cross_entropy(self.out(self.embed(data[0]).mean(1)), data[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)


@pytest.mark.parametrize("method", [SOAP(start=6, period=3), EKFAC(start=6, period=3), Shampoo(period=3)], ids=str)
def test_padding_stays_as_it_is(method):
    x = torch.randint(0, 20, (160, 6), generator=torch.Generator().manual_seed(0))
    model = Tokens()
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SecondOrder(method)],
    )
    trainer.fit(model, DataLoader(TensorDataset(x, x.sum(1) % 4), batch_size=16))
    assert torch.equal(model.embed.weight[0], model.before[0])
    assert (model.embed.weight[1:] != model.before[1:]).all()
