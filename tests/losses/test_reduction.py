"""Whether a loss is a mean or a sum over samples is read from its graph, however it is written."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import KFAC, ConfigError, Relative, attach
from lightning_so.losses.reduction import joined
from tests.methods.test_kfac import close, data, factors, linears, matrix, net

N = 12
LABELS = torch.arange(N) % 2
MASK = (torch.arange(N) % 3 > 0).double()


class Custom(torch.autograd.Function):
    """A loss function of somebody's own: its graph is one node."""

    @staticmethod
    def forward(ctx, f, y):
        ctx.save_for_backward(f - y)
        return (f - y).square().sum() / len(f)

    @staticmethod
    def backward(ctx, g):
        (r,) = ctx.saved_tensors
        return 2 * g * r / len(r), None


def ones(f, y):
    return (f - y).square().sum(1)


MEANS = {
    "mse_loss": lambda f, y: F.mse_loss(f, y),
    "cross_entropy": lambda f, y: F.cross_entropy(f, LABELS),
    "sum(1).mean()": lambda f, y: ones(f, y).mean(),
    "mean(1).mean(0)": lambda f, y: (f - y).square().mean(1).mean(0),
    "mean(0).sum()": lambda f, y: (f - y).square().mean(0).sum(),
    "mean(-2).sum()": lambda f, y: (f - y).square().mean(-2).sum(),
    "sum() / N": lambda f, y: ones(f, y).sum() / N,
    "sum() * (1 / N)": lambda f, y: (1 / N) * ones(f, y).sum(),
    "tensor times sum()": lambda f, y: torch.tensor(1 / N, dtype=f.dtype) * ones(f, y).sum(),
    "half of a mean": lambda f, y: 0.5 * F.mse_loss(f, y),
    "masked": lambda f, y: (F.cross_entropy(f, LABELS, reduction="none") * MASK).sum() / MASK.sum(),
    "two": lambda f, y: F.cross_entropy(f, LABELS) + 0.1 * ones(f, y).mean(),
    "of a list": lambda f, y: torch.stack([F.cross_entropy(f, LABELS), ones(f, y).mean()]).mean(),
    "batchmean": lambda f, y: F.kl_div(f.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "smooth_l1_loss": lambda f, y: F.smooth_l1_loss(f, y),
    "l1_loss": lambda f, y: F.l1_loss(f, y),
    "smoothed labels": lambda f, y: F.cross_entropy(f, LABELS, label_smoothing=0.1),
    "logistic": lambda f, y: F.binary_cross_entropy_with_logits(f, y.sigmoid()),
    "in float32": lambda f, y: ones(f, y).float().mean(),
    "module": lambda f, y: nn.HuberLoss()(f, y),
}
SUMS = {
    "mse_loss": lambda f, y: F.mse_loss(f, y, reduction="sum"),
    "cross_entropy": lambda f, y: F.cross_entropy(f, LABELS, reduction="sum"),
    "sum()": lambda f, y: ones(f, y).sum(),
    "sum(0).mean()": lambda f, y: (f - y).square().sum(0).mean(),
    "mean(1).sum()": lambda f, y: (f - y).square().mean(1).sum(),
    "half of a sum": lambda f, y: ones(f, y).sum() / 2,
    "two": lambda f, y: F.cross_entropy(f, LABELS, reduction="sum") + ones(f, y).sum(),
    "l1_loss": lambda f, y: F.l1_loss(f, y, reduction="sum"),
}
UNKNOWN = {
    "custom": (Custom.apply, "Custom"),
    "a product with weights": (lambda f, y: torch.full((N,), 1 / N, dtype=f.dtype) @ ones(f, y), "Dot"),
    "both": (lambda f, y: ones(f, y).mean() + F.cross_entropy(f, LABELS, reduction="sum"), "both a mean and a sum"),
}


def read(loss, scale=1.0):
    f = nn.Linear(3, 2, dtype=torch.float64)(torch.randn(N, 3, dtype=torch.float64))
    return joined(loss(f, torch.zeros_like(f)) * scale, {f.grad_fn}, N, scale)


@pytest.mark.parametrize("scale", [1.0, 0.25, 65536.0])
@pytest.mark.parametrize(("losses", "mean"), [(MEANS, True), (SUMS, False)], ids=["mean", "sum"])
def test_means_and_sums_are_told_apart_whatever_scales_them(losses, mean, scale):
    assert {name: read(loss, scale).mean for name, loss in losses.items()} == dict.fromkeys(losses, mean)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_graph_does_not_tell_is_not_guessed(name):
    loss, where = UNKNOWN[name]
    told = read(loss)
    assert told.mean is None
    assert where in told.where


def test_a_regulariser_without_samples_says_nothing():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    f = layer(torch.randn(N, 3, dtype=torch.float64))
    assert joined(f.square().mean() + layer.weight.square().sum(), {f.grad_fn}, N).mean is True


def trained(method, loss, lr, **options):
    torch.manual_seed(0)
    model = net()
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), method, **options)
    for t in range(6):
        x, y = data(N, seed=t)
        engine.optimizer.zero_grad()
        value = loss(model(x), y)
        if options.get("reduction") is None:
            engine.before_backward(value)
        value.backward()
        engine.optimizer.step()
    assert engine.report.preconditioned == 3
    return model, engine


@pytest.mark.parametrize("fisher", ["empirical", "sampled", "exact"])
@pytest.mark.parametrize("method", [{}, {"damping": 0.1, "exact": True}, {"clip": None, "damping": 1.0}])
def test_a_sum_trains_as_a_mean_with_the_same_damping(method, fisher):
    method = KFAC(period=2, fisher=fisher, **method)
    mean, one = trained(method, MEANS["sum(1).mean()"], lr=0.1)
    summed, other = trained(method, SUMS["sum()"], lr=0.1 / N)
    for a, b in zip(linears(mean).values(), linears(summed).values()):
        close(matrix(b), matrix(a))
    for name in linears(mean):
        for F1, F2 in zip(factors(one, name), factors(other, name)):
            close(F2, F1)


def test_the_reduction_that_is_said_is_taken():
    method = KFAC(fisher="empirical", period=2, clip=None)
    ends = [
        trained(method, loss, lr, **options)[0]
        for loss, lr, options in (
            (MEANS["sum(1).mean()"], 0.1, {}),
            (Custom.apply, 0.1, {"reduction": "mean"}),
            (lambda f, y: N * Custom.apply(f, y), 0.1 / N, {"reduction": "sum"}),
        )
    ]
    for model in ends[1:]:
        for a, b in zip(ends[0].parameters(), model.parameters()):
            close(b.detach(), a.detach())


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_absolute_damping_and_a_loss_that_does_not_tell_are_refused_with_the_next_move(name):
    loss, where = UNKNOWN[name]
    with pytest.raises(ConfigError, match=rf"(?s)KFAC.*{where}.*reduction='mean' or reduction='sum'.*Relative"):
        trained(KFAC(damping=0.1, fisher="empirical", period=2), loss, 0.1)
    trained(KFAC(period=2), loss, 1e-3)
    trained(KFAC(fisher="empirical", damping=Relative(1.0), period=2), loss, 1e-3)


@pytest.mark.parametrize("bad", ["avg", True, 1])
def test_a_bad_reduction_is_refused_by_name(bad):
    model = net()
    with pytest.raises(ConfigError, match=r"reduction=.*'mean', 'sum'"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC(fisher="empirical"), reduction=bad)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_not_of_a_loss_that_was_shown_are_no_statistics(set_to_none):
    plain = net()
    model, (x, y) = copy.deepcopy(plain), data(6)
    engines = [
        attach(m, torch.optim.SGD(m.parameters(), lr=0.05), KFAC(fisher="empirical", period=1)) for m in (plain, model)
    ]
    for engine in engines:
        for _ in range(3):
            engine.optimizer.zero_grad(set_to_none=set_to_none)
            loss = ones(engine.host.model(x), y).mean()
            if (
                engine.host.model is model and engine.report.step
            ):  # until the first loss is shown, all passes are losses
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            engine.before_backward(loss)
            loss.backward()
            if engine.host.model is model:
                torch.autograd.grad(ones(model(2 * x), y).mean(), list(model.parameters()))
            engine.optimizer.step()
    for name in linears(model):
        for found, expected in zip(factors(engines[1], name), factors(engines[0], name)):
            close(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_samples_may_be_anywhere_in_what_is_reduced_whole(reduction):
    layer, x = nn.Linear(3, 2), torch.randn(4, 5, 3)  # four samples
    out = layer(x)
    loss = getattr(out.transpose(0, 1).square(), reduction)()
    assert joined(loss, {out.grad_fn}, 4).mean is (reduction == "mean")
