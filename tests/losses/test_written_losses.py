"""Losses as people write them: each is a mean or a sum as its samples' own gradients say in float64, or it is refused.

What is wrong about it elsewhere: f-dangel/curvlinops#108, keras-team/keras#18818, allenai/OLMo#523.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import KFAC, ConfigError, attach
from lightning_so.losses.reduction import joined

N, C, T = 32, 5, 7
G = torch.Generator().manual_seed(0)
Y, W = torch.randint(0, C, (N,), generator=G), torch.rand(N, generator=G, dtype=torch.float64) + 0.1
FEW, MANY = (torch.arange(N) % 11 == 0).double(), (torch.arange(N) % 3 > 0).double()
ONE = (torch.arange(N) == 4).double()
IGNORED = torch.where(FEW.bool(), Y, -100)
CLASS = torch.linspace(0.5, 2.0, C, dtype=torch.float64)
TOKENS = (torch.rand(N, T, generator=G) > 0.4).double()
TOKENS[:, 0] = 1
SQUARE = torch.ones(N, N, dtype=torch.float64)


def ce(f, **more):
    return F.cross_entropy(f, Y, reduction="none", **more)


def tokens(f, length=T):
    """Losses of the tokens of every sample, (N, T)."""
    return torch.stack([ce(f * (1 + 0.1 * t)) for t in range(length)], 1)


def smooth(f, y, **more):
    return F.cross_entropy(f, y, label_smoothing=0.1, **more)


#: By name, the loss of predictions f, and the losses of the samples; None for cross-entropy.
MEANS = {
    "cross_entropy": (lambda f: F.cross_entropy(f, Y), None),
    "class weights": (lambda f: F.cross_entropy(f, Y, weight=CLASS), lambda f: ce(f, weight=CLASS)),
    "ignored labels": (lambda f: F.cross_entropy(f, IGNORED), None),
    "smoothed labels": (lambda f: smooth(f, Y), lambda f: smooth(f, Y, reduction="none")),
    "smoothed and weighted": (lambda f: smooth(f, Y, weight=CLASS), lambda f: smooth(f, Y, reduction="none")),
    "probabilities": (lambda f: F.cross_entropy(f, F.one_hot(Y, C).double()), None),
    "normalised weights": (lambda f: (W / W.sum() * ce(f)).sum(), None),
    "normalised weights, behind": (lambda f: (ce(f) * (W / W.sum())).sum(), None),
    "half of them": (lambda f: 0.5 * (ce(f) * (W / W.sum())).sum(), None),
    "a fiftieth of them": (lambda f: 0.02 * (ce(f) * (W / W.sum())).sum(), None),
    "weights over their sum": (lambda f: (W * ce(f)).sum() / W.sum(), None),
    "weights over N": (lambda f: (W * ce(f)).sum() / N, None),
    "mean of weighted": (lambda f: (W * ce(f)).mean(), None),
    "few kept": (lambda f: (FEW * ce(f)).sum() / FEW.sum(), None),
    "few kept, a tenth": (lambda f: 0.1 * (FEW * ce(f)).sum() / FEW.sum(), None),
    "many kept": (lambda f: (ce(f) * MANY).sum() / MANY.sum().clamp_min(1), None),
    "kept by a bool": (lambda f: (ce(f) * FEW.bool()).sum() / FEW.sum(), None),
    "where": (lambda f: torch.where(FEW.bool(), ce(f), 0.0).sum() / FEW.sum(), None),
    "where not": (lambda f: torch.where(FEW.bool(), 0.0, ce(f)).sum() / (N - FEW.sum()), None),
    "masked_fill": (lambda f: ce(f).masked_fill(~FEW.bool(), 0.0).sum() / FEW.sum(), None),
    "chosen": (lambda f: ce(f)[FEW.bool()].mean(), None),
    "chosen by numbers": (lambda f: ce(f).index_select(0, torch.tensor([2, 3, 5])).mean(), None),
    "chosen, summed": (lambda f: ce(f)[FEW.bool()].sum() / FEW.sum(), None),
    "chosen predictions": (lambda f: F.cross_entropy(f[FEW.bool()], Y[FEW.bool()]), None),
    "chosen squares": (lambda f: f[FEW.bool()].square().sum(1).mean(), lambda f: f.square().sum(1)),
    "chosen by masked_select": (lambda f: ce(f).masked_select(FEW.bool()).mean(), None),
    "weighted and kept": (lambda f: (W * MANY * ce(f)).sum() / (W * MANY).sum(), None),
    "weighted, then kept": (lambda f: (W * (MANY * ce(f))).sum() / (W * MANY).sum(), None),
    "divided, then summed": (lambda f: (ce(f) / N).sum(), None),
    "accumulated by hand": (lambda f: ce(f).sum() / N / 8, None),
    "a mean, accumulated": (lambda f: F.cross_entropy(f, Y) / 8, None),
    "two terms": (lambda f: ce(f).mean() + 0.1 * f.square().sum(1).mean(), None),
    "focal": (lambda f: ((1 - (-ce(f)).exp()).detach() ** 2 * ce(f)).mean(), None),
    "real tokens": (lambda f: (tokens(f) * TOKENS).sum() / TOKENS.sum(), lambda f: tokens(f).mean(1)),
    "all tokens": (lambda f: tokens(f).mean(), lambda f: tokens(f).mean(1)),
    "all tokens, by hand": (lambda f: tokens(f).sum() / (N * T), lambda f: tokens(f).mean(1)),
    "sums of tokens": (lambda f: tokens(f).sum() / N, lambda f: tokens(f).sum(1)),
    "means of sequences": (
        lambda f: ((tokens(f) * TOKENS).sum(1) / TOKENS.sum(1)).mean(),
        lambda f: (tokens(f) * TOKENS).sum(1) / TOKENS.sum(1),
    ),
    "tokens in two sums": (lambda f: (tokens(f) * TOKENS).sum(1).sum() / TOKENS.sum(), lambda f: tokens(f).mean(1)),
    "weighted squares": (lambda f: (W / W.sum() * f.square().sum(1)).sum(), lambda f: f.square().sum(1)),
}
SUMS = {
    "cross_entropy": (lambda f: F.cross_entropy(f, Y, reduction="sum"), None),
    "smoothed labels": (lambda f: smooth(f, Y, reduction="sum"), lambda f: smooth(f, Y, reduction="none")),
    "weighted": (lambda f: (W * ce(f)).sum(), None),
    "few kept": (lambda f: (FEW * ce(f)).sum(), None),
    "where": (lambda f: torch.where(FEW.bool(), ce(f), 0.0).sum(), None),
    "chosen": (lambda f: ce(f)[FEW.bool()].sum(), None),
    "doubled": (lambda f: 2 * ce(f).sum(), None),
    "two terms": (lambda f: ce(f).sum() + 0.05 * f.square().sum(), None),
    "means of sequences": (
        lambda f: ((tokens(f) * TOKENS).sum(1) / TOKENS.sum(1)).sum(),
        lambda f: (tokens(f) * TOKENS).sum(1) / TOKENS.sum(1),
    ),
    "means of sequences as long as the batch": (
        lambda f: ((tokens(f, N) * SQUARE).sum(1) / SQUARE.sum(1)).sum(),
        lambda f: tokens(f, N).mean(1),
    ),
    "tokens over their number": (lambda f: (tokens(f, N).sum(1) / N).sum(), lambda f: tokens(f, N).mean(1)),
    "means of tokens": (lambda f: tokens(f, N).mean(1).sum(), lambda f: tokens(f, N).mean(1)),
    "squares of scaled residuals": (lambda f: (f / 20).square().sum(), lambda f: (f / 20).square().sum(1)),
    "products of scaled residuals": (lambda f: (f / 20 * (f / 20)).sum(), lambda f: (f / 20).square().sum(1)),
}
REFUSED = {
    "divided by something": lambda f: ce(f).sum() / 8,
    "small weights": lambda f: (1e-4 * W * ce(f)).sum(),
    "a product with weights": lambda f: (W / W.sum()) @ ce(f),
    "a mean and a sum": lambda f: ce(f).mean() + 0.2 * ce(f).sum(),
}


def predictions():
    layer = nn.Linear(4, C, dtype=torch.float64)
    return layer(torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def weights(loss, samples):
    """By what the loss weighs every sample's own: its gradient in the sample's prediction, over the sample's own."""
    f = predictions().detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(f), f)
    (u,) = torch.autograd.grad((samples or ce)(f).sum(), f)
    return (g * u).sum(1) / u.square().sum(1)


@pytest.mark.parametrize(
    ("name", "mean"), [*((name, True) for name in MEANS), *((name, False) for name in SUMS)], ids=str
)
def test_what_the_graph_tells_is_what_the_gradients_of_samples_say(name, mean):
    loss, samples = (MEANS if mean else SUMS)[name]
    torch.manual_seed(0)
    f = predictions()
    told = joined(loss(f), {f.grad_fn}, N)
    found = weights(loss, samples)
    each, total = found[found.abs() > 1e-9].mean(), found.sum()
    assert bool(total.log().abs() < each.log().abs()) is mean  # one of them is near to one
    assert told.mean is mean


@pytest.mark.parametrize("name", ["normalised weights", "few kept", "chosen"])
def test_a_training_takes_them_for_means(name):
    model = nn.Linear(4, C, dtype=torch.float64)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC(fisher="empirical", period=2))
    loss = MEANS[name][0](model(torch.randn(N, 4, dtype=torch.float64)))
    engine.before_backward(loss)
    loss.backward()
    engine.optimizer.step()
    assert engine.recorders[0].facts.mean


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_tell_is_refused_with_the_next_move(name):
    f = predictions()
    assert joined(REFUSED[name](f), {f.grad_fn}, N).mean is None
    model = nn.Linear(4, C, dtype=torch.float64)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC(damping=0.1, fisher="empirical"))
    with pytest.raises(ConfigError, match=r"(?s)KFAC.*reduction='mean' or reduction='sum'.*Relative"):
        engine.before_backward(REFUSED[name](model(torch.randn(N, 4, dtype=torch.float64))))
    engine.detach()


def test_one_term_that_is_kept_is_what_the_others_would_be():
    f = predictions()
    assert joined((ONE * ce(f)).sum() / ONE.sum(), {f.grad_fn}, N).mean is True
    assert joined((ONE * ce(f)).sum(), {f.grad_fn}, N).mean is False
    assert joined((0 * ONE * ce(f)).sum(), {f.grad_fn}, N).mean is not None
    assert joined((torch.nan * ONE * ce(f)).sum(), {f.grad_fn}, N).mean is not None


def test_what_a_sum_is_weighted_by_is_said():
    f = predictions()
    assert "of 32 terms that are weighted by 0.2" in joined(REFUSED["a mean and a sum"](f), {f.grad_fn}, N).where


@pytest.mark.parametrize("name", ["few kept", "normalised weights", "chosen"])
def test_a_scaled_loss_is_told_apart_as_well(name):
    f = predictions()
    for scale in (0.25, 65536.0):
        assert joined(scale * MEANS[name][0](f), {f.grad_fn}, N, scale).mean is True


def test_one_sample_alone_is_never_refused():
    layer = nn.Linear(4, C, dtype=torch.float64)
    f = layer(torch.randn(1, 4, dtype=torch.float64))
    for factor in (1.0, 0.3, 1e-3):
        assert joined(factor * F.cross_entropy(f, Y[:1], reduction="none").sum(), {f.grad_fn}, 1).mean is not None
