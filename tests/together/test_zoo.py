"""Small models of the kinds that people train, under every method: none crashes, no parameter is lost silently."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo, attach
from tests.support.daily import daily, one_in

ADAMW = (torch.optim.AdamW, {"lr": 1e-3})
SGD = (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9})
METHODS = {
    "soap": (SOAP(start=4, period=4), ADAMW),
    "muon": (Muon(), ADAMW),
    "kfac": (KFAC(period=4), ADAMW),
    "kfac-sgd": (KFAC(period=4), SGD),
    "kfac-sampled": (KFAC(period=4, fisher="sampled"), SGD),
    "ekfac": (EKFAC(start=4, period=4), ADAMW),
    "ekfac-sgd": (EKFAC(period=4), SGD),
    "shampoo": (Shampoo(period=4), ADAMW),
    "shampoo-sgd": (Shampoo(period=4), SGD),
}


class Residual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        nn.init.zeros_(self.norm2.weight)
        self.down = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        return F.relu(
            self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True))) + self.down(x), inplace=True
        )


def resnet():
    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    stages = [Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(0.02 * torch.randn(1, 5, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(11, 16), nn.Embedding(6, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(3))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 11, bias=False)

    def forward(self, x):
        h = self.embed(x) + self.position(torch.arange(x.shape[1]))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norms[0](h)).chunk(3, -1))
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = h + self.down(F.gelu(self.up(self.norms[1](h))))
        return self.head(self.norms[2](h)).flatten(0, 1)


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(11, 8), cell(8, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.cell(self.embed(x))[0][:, -1])


class Graph(nn.Module):
    """Messages along random edges, summed where they arrive."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("edges", torch.randint(0, 10, (2, 30), generator=generator))
        self.message, self.update, self.head = nn.Linear(8, 8), nn.Linear(16, 4), nn.Linear(4, 5)

    def forward(self, x):
        sent = torch.relu(self.message(x))[:, self.edges[0]]
        arrived = torch.zeros_like(x).index_add(1, self.edges[1], sent)
        return self.head(torch.relu(self.update(torch.cat([x, arrived], -1))).mean(1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.low = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU())
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        high = self.down(x)
        return self.head(torch.cat([high, self.up(self.low(high))], 1))


def images(generator):
    return torch.randn(6, 3, 8, 8, generator=generator)


def tokens(generator):
    return torch.randint(0, 11, (6, 6), generator=generator)


#: name -> (model, inputs, number of classes' labels a batch)
MODELS = {
    "resnet": (resnet, images, (6,)),
    "vit": (ViT, images, (6,)),
    "gpt": (GPT, tokens, (36,)),
    "lstm": (lambda: Recurrent(nn.LSTM), tokens, (6,)),
    "gru": (lambda: Recurrent(nn.GRU), tokens, (6,)),
    "gnn": (Graph, lambda generator: torch.randn(6, 10, 8, generator=generator), (6,)),
    "unet": (UNet, images, (6, 8, 8)),
}


@pytest.mark.parametrize("name", one_in(2, MODELS))
@pytest.mark.parametrize("method", daily(METHODS, "soap", "kfac", "ekfac-sgd"))
def test_twenty_steps(name, method):
    torch.manual_seed(0)
    make, inputs, labels = MODELS[name]
    model, generator = make(), torch.Generator().manual_seed(0)
    chosen, (cls, arguments) = METHODS[method]
    engine = attach(model, cls(model.parameters(), **arguments), chosen, verify_every=3)
    rows = {row.name: row.verdict for row in engine.plan.rows}
    assert set(rows) == {key for key, _ in model.named_parameters()}
    assert all(verdict.startswith("base: ") is False or len(verdict) > len("base: ") for verdict in rows.values())
    if name == "vit":
        parts = {rows[f"encoder.layers.1.self_attn.{part}"] for part in ("in_proj_weight", "out_proj.weight")}
        assert not any(verdict.startswith("base") for verdict in parts)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    x, y = inputs(generator), torch.randint(0, 5, labels, generator=generator)
    losses = []
    for _ in range(20):
        engine.optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        engine.before_backward(loss)
        loss.backward()
        engine.optimizer.step()
        losses.append(float(loss.detach()))
    report = engine.report
    assert report.skipped == report.undone == report.failures == 0
    assert report.rotated + report.bent + report.preconditioned == len(engine.plan.blocks)
    assert losses[-1] < losses[0]
    for key, p in model.named_parameters():
        assert bool(p.isfinite().all())
        assert not torch.equal(p, before[key]), key
